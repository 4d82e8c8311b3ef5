"""Offsets moved by hand: a commit that says where partitions go on, and who wanted it and why.

Theory of operation
-------------------
A seek is one commit through the same compare-and-set as a writer's: it holds only while each
moved partition's `txn` is what the seek starts from. A writer whose `txn` moved drops all that is
not committed and goes on from the log, so that nobody has to be stopped for a seek to be right.

Writers commit all the time, and a seek may lose the race against one. Then it is made again from
the new offsets, the target staying what it was. A partition that a writer carried past a target
ahead of it stays there, and if an offset fell meanwhile another person is at work: refused.

Taking over (`adopt_topic`, `adopt_sink`) makes partitions go on under another app id. The old
app id's `txn` cannot be removed, and a writer may still run under it. So the same commit sets it
to RETIRED: every plan under the old name is fenced from then on, and a worker that settles under
it is refused with a sentence. There is no moment at which both names could commit.

A seek is not idempotent. Whether one that was never answered has landed is told by its commit id
alone, and only once the version to which it was sent is certainly somebody's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from delta_sink.claim import Source, refuse_other_names
from delta_sink.delta.actions import Action, Txn
from delta_sink.delta.commit import Log, commit, follow, open_log
from delta_sink.delta.plan import (
    Condition,
    NoRival,
    Plan,
    StillSupported,
    TxnIs,
    rival_sentence,
)
from delta_sink.delta.receipt import (
    RECEIPT_FORMAT,
    RETIRED,
    PartitionReceipt,
    Receipt,
    receipt_of,
)
from delta_sink.delta.state import LogState
from delta_sink.delta.support import refuse_log_store, refuse_unsupported
from delta_sink.delta.table import commit_info
from delta_sink.errors import (
    CommitUnknown,
    FencedError,
    SourceRefused,
    StoreUnavailable,
    TableRefused,
)
from delta_sink.model import AppId, TopicPartition
from delta_sink.start import StartEarliest, StartLatest, StartTimestamp

SEEK_TRIES_MAX = 50
"""Races that a seek may lose against running writers before it asks to stop them."""

LOOKS_MAX = 10
LOOK_PAUSE_MS = 1_000
"""How often, and how far apart, the log is looked at for a seek that was never answered."""

TWICE_ADVICE = (
    "rows that are read twice are in the table twice: delete the old ones if you do not want them"
)
AGAIN_ADVICE = (
    "if the purpose is to decode the records again, stop the writers first: a running one may "
    "still commit what it decoded before"
)
STOP_ADVICE = (
    "stop the writers of '{name}': they can commit nothing of these partitions any more, and "
    "leave with a sentence"
)


class ToOffset(Struct, frozen=True):
    """Go on at this offset."""

    offset: int


Target = StartEarliest | StartLatest | StartTimestamp | ToOffset


class SeekRequest(Struct, frozen=True):
    """What an operator asks for. `operator` and `reason` stand in the commit for ever.

    `topic` None means all topics of the sink, empty `partitions` all of theirs. With
    `adopt_sink` there is no target; with `adopt_topic` None is the new topic's first record.
    """

    operator: str
    reason: str
    target: Target | None = None
    topic: str | None = None
    partitions: tuple[int, ...] = ()
    adopt_topic: bool = False
    adopt_sink: str | None = None


class Move(Struct, frozen=True):
    """One partition of a seek: `app_id` goes from one offset to another.

    `offset_from` is None where it has no `txn` yet, and RETIRED where it had been taken over.
    `twice` and `never` count the offsets between the two that Kafka still has: those that will be
    read again, or never. `replaces` is the app id in whose place this one goes on.
    """

    app_id: AppId
    offset_from: int | None
    offset_to: int
    twice: int = 0
    never: int = 0
    replaces: str | None = None

    def __str__(self) -> str:
        tp = self.app_id.tp
        if self.replaces is not None:
            return f"{tp}: goes on at {self.offset_to} in place of '{self.replaces}'"
        if self.offset_from is None:
            return f"{tp}: begins at {self.offset_to}"
        start, to = self.offset_from, self.offset_to
        if to < start:
            what = f"offsets {to} to {start - 1} are read twice (Kafka still has {self.twice})"
        else:
            what = f"offsets {start} to {to - 1} are never read (Kafka still has {self.never})"
        return f"{tp}: {start} to {to}: {what}"

    def to_json(self) -> dict[str, object]:
        """Return the object that `seek --json` has for this partition."""
        return {
            "topic": self.app_id.tp.topic,
            "partition": self.app_id.tp.partition,
            "app_id": str(self.app_id),
            "offset_from": self.offset_from,
            "offset_to": self.offset_to,
            "twice": self.twice,
            "never": self.never,
            "replaces": self.replaces,
        }


class Seeking(Struct, frozen=True):
    """What a seek does at `table_version`.

    `retired` are the app ids given up and the offsets they had. `stays` are sentences about
    what it does not touch, `advice` about what a person should do.
    """

    table_version: int
    moves: tuple[Move, ...]
    retired: Mapping[str, int] = field(default_factory=dict)
    stays: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """Return what a person should read."""
        lines = [str(move) for move in self.moves]
        if not self.moves and not self.retired:
            lines.append("nothing to move: every partition is there already")
        replaced = {move.replaces for move in self.moves}
        lines += [f"'{text}' is given up" for text in sorted(self.retired) if text not in replaced]
        return [*lines, *self.stays, *self.advice]

    def to_json(self) -> dict[str, object]:
        """Return what `seek --json` prints of it."""
        return {
            "table_version": self.table_version,
            "moves": [move.to_json() for move in self.moves],
            "retired": dict(self.retired),
            "stays": list(self.stays),
            "advice": list(self.advice),
        }


class Sought(Struct, frozen=True):
    """A seek that was carried out: as `version`, or not at all (None) as nothing was to move."""

    seeking: Seeking
    version: int | None


def show_seek(source: Source, request: SeekRequest) -> Seeking:
    """Return what `execute_seek` would do now. Nothing is changed.

    Raises:
        SourceRefused, TableRefused: it would be wrong; the sentence says why.
        RetriableError: brokers or store did not answer.
    """
    state = _opened(source)
    seeking = _seeking(_Aim.of(source, request, state), state)
    _plan(source, request, seeking).check(state, None)
    return seeking


def execute_seek(source: Source, request: SeekRequest) -> Sought:
    """Return once the seek is in the log, all partitions at once.

    Raises:
        SourceRefused: it would be wrong, or it lost every race. Nothing was moved.
        CommitUnknown: nobody can tell whether it is in the log; the sentence says how to look.
        RetriableError, TableRefused, StoreRefused: nothing was moved.
    """
    state = _opened(source)
    aim = _Aim.of(source, request, state)
    first = _seeking(aim, state)
    for _ in range(SEEK_TRIES_MAX):
        seeking = _raced(first, _seeking(aim, state))
        if not seeking.moves and not seeking.retired:
            return Sought(seeking, None)
        plan = _plan(source, request, seeking)
        try:
            version: int | None = commit(source.log, state, plan).version
        except FencedError:
            version = None
        except (CommitUnknown, StoreUnavailable) as error:
            version = _settled(source.log, plan.commit_id, after=state.version, error=error)
        if version is not None:
            return Sought(seeking, version)
        state = follow(source.log, state)
    raise SourceRefused(
        f"the seek lost {SEEK_TRIES_MAX} races against commits of running writers, nothing was "
        f"moved: stop the writers, seek, and start them again"
    )


def _opened(source: Source) -> LogState:
    state = open_log(source.log)
    if state is None:
        raise TableRefused(f"there is no table at {source.settings.table.uri}")
    refuse_unsupported(state.protocol, state.metadata)
    refuse_log_store(state.metadata, source.log.entries.kind)
    return state


# --- what is meant ------------------------------------------------------------------------------


class _Aim(Struct, frozen=True):
    """A request with all that the brokers had to say to it: fixed, whatever writers do meanwhile.

    `targets` are empty with `adopt_sink`, whose targets are in the log.
    """

    request: SeekRequest
    sink: str
    app_ids: Mapping[TopicPartition, AppId]
    earliest: Mapping[TopicPartition, int]
    end: Mapping[TopicPartition, int]
    targets: Mapping[TopicPartition, int]

    @classmethod
    def of(cls, source: Source, request: SeekRequest, state: LogState) -> _Aim:
        _refuse_contradictions(source, request)
        app_ids = _selected(source, request)
        if request.adopt_topic:
            app_ids = _recreated(app_ids, state)
        elif request.adopt_sink is None:
            refuse_other_names(state, app_ids)
        tps = sorted(app_ids)
        earliest = source.broker.offsets(tps, "earliest")
        end = source.broker.offsets(tps, "latest")
        targets: Mapping[TopicPartition, int] = {}
        match request.target:
            case None | StartEarliest():
                targets = earliest if request.adopt_sink is None else {}
            case StartLatest():
                targets = end
            case StartTimestamp(timestamp_ms):
                targets = source.broker.offsets(tps, timestamp_ms)
            case ToOffset(offset):
                targets = dict.fromkeys(tps, offset)
                for tp in tps:
                    if not earliest[tp] <= offset <= end[tp]:
                        raise SourceRefused(
                            f"{tp}: asked to go on at offset {offset}, but Kafka has "
                            f"{earliest[tp]} up to {end[tp]}"
                        )
        return cls(request, source.settings.name, app_ids, earliest, end, targets)


def _refuse_contradictions(source: Source, request: SeekRequest) -> None:
    """Refuse a request that does not say one thing."""
    if not request.reason.strip():
        raise SourceRefused("a seek needs a reason: it stands in the table's history")
    adopts = request.adopt_topic or request.adopt_sink is not None
    if request.adopt_topic and request.adopt_sink is not None:
        raise SourceRefused("adopt a topic or a sink, not both in one seek")
    if adopts and request.partitions:
        raise SourceRefused("partitions are adopted together: leave out --partition")
    if request.adopt_sink is not None and request.target is not None:
        raise SourceRefused(
            "--adopt-sink goes on at the offsets of the other sink: it takes no target; seek "
            "afterwards if you want to be elsewhere"
        )
    if not adopts and request.target is None:
        raise SourceRefused("say where to go: an offset, a time, earliest or latest")
    if request.adopt_sink == source.settings.name:
        raise SourceRefused(f"'{request.adopt_sink}' is this sink's own name")
    if request.adopt_topic and source.settings.source.topic_ids == "none":
        raise SourceRefused(
            "with source.topic_ids: none a topic that was created again cannot be told from the "
            "one before: seek to its earliest offset instead"
        )
    if isinstance(request.target, StartTimestamp):
        now_ms = source.log.clock.wall_ms()
        if request.target.timestamp_ms > now_ms:
            raise SourceRefused("the time lies in the future: use --to-latest to go to the end")


def _selected(source: Source, request: SeekRequest) -> dict[TopicPartition, AppId]:
    topics = source.topics()
    if request.topic is not None and request.topic not in topics:
        known = ", ".join(sorted(topics)) or "none"
        raise SourceRefused(
            f"topic '{request.topic}' is not one that this sink reads and that exists; those "
            f"are: {known}"
        )
    chosen = topics if request.topic is None else {request.topic: topics[request.topic]}
    if not chosen:
        raise SourceRefused("none of the sink's topics exists")
    if request.partitions and len(chosen) > 1:
        raise SourceRefused("--partition needs --topic: the sink reads several topics")
    app_ids = source.app_ids(chosen.values())
    if request.partitions:
        [name] = chosen
        wanted = {TopicPartition(name, partition) for partition in request.partitions}
        unknown = sorted(wanted - app_ids.keys())
        if unknown:
            raise SourceRefused(
                f"{unknown[0]} does not exist: the topic has {chosen[name].partitions} partitions"
            )
        app_ids = {tp: app_id for tp, app_id in app_ids.items() if tp in wanted}
    elif isinstance(request.target, ToOffset) and len(app_ids) > 1:
        raise SourceRefused(
            f"an offset means another record in each partition: say for which of the "
            f"{len(app_ids)} partitions it is meant (--partition)"
        )
    return app_ids


def _recreated(
    app_ids: Mapping[TopicPartition, AppId], state: LogState
) -> dict[TopicPartition, AppId]:
    """Return the partitions of those topics that this sink has under another topic id."""
    ids = {app_id.tp.topic: app_id for app_id in app_ids.values()}
    found = set()
    for other in _live(state):
        mine = ids.get(other.tp.topic)
        if mine is None or other.sink != mine.sink or other.topic_id == mine.topic_id:
            continue
        if other.topic_id is None:
            raise SourceRefused(rival_sentence(mine, other))
        found.add(other.tp.topic)
    if not found:
        raise SourceRefused(
            f"nothing to adopt: the log knows {', '.join(sorted(ids))} under the id that the "
            f"brokers give"
        )
    return {tp: app_id for tp, app_id in app_ids.items() if tp.topic in found}


def _live(state: LogState) -> list[AppId]:
    """Return the app ids of all sinks that somebody may go on from."""
    return [
        app_id
        for text, txn in sorted(state.txns.items())
        if txn != RETIRED and (app_id := AppId.parse(text)) is not None
    ]


# --- what it does -------------------------------------------------------------------------------


def _seeking(aim: _Aim, state: LogState) -> Seeking:
    """Return what the aim means at `state`."""
    if aim.request.adopt_sink is not None:
        return _adopted_sink(aim, state, aim.request.adopt_sink)
    if aim.request.adopt_topic:
        return _adopted_topic(aim, state)
    moves = []
    unclaimed = []
    for tp, app_id in sorted(aim.app_ids.items()):
        txn = state.txns.get(str(app_id))
        if txn is None:
            unclaimed.append(tp)
        elif txn != aim.targets[tp]:
            moves.append(_moved(aim, app_id, txn))
    if unclaimed and (aim.request.partitions or len(unclaimed) == len(aim.app_ids)):
        raise SourceRefused(
            f"{unclaimed[0]}: no writer has begun with it, so there is no offset to move: "
            f"source.start says where it begins"
        )
    stays = tuple(f"{tp}: stays, no writer has begun with it" for tp in unclaimed)
    return Seeking(state.version, tuple(moves), stays=stays, advice=_advice(moves))


def _moved(aim: _Aim, app_id: AppId, txn: int) -> Move:
    tp = app_id.tp
    to = aim.targets[tp]
    first, after = max(min(txn, to), aim.earliest[tp]), min(max(txn, to), aim.end[tp])
    known = max(0, after - first)
    return Move(app_id, txn, to, twice=known if to < txn else 0, never=known if to > txn else 0)


def _advice(moves: Sequence[Move]) -> tuple[str, ...]:
    if not any(
        move.offset_from is not None and move.offset_to < move.offset_from for move in moves
    ):
        return ()
    return (TWICE_ADVICE, AGAIN_ADVICE)


def _adopted_topic(aim: _Aim, state: LogState) -> Seeking:
    topics = {tp.topic for tp in aim.app_ids}
    current = {str(app_id) for app_id in aim.app_ids.values()}
    old = {
        other.tp: str(other)
        for other in _live(state)
        if other.sink == aim.sink and other.tp.topic in topics and str(other) not in current
    }
    moves = [
        Move(app_id, state.txns.get(str(app_id)), aim.targets[tp], replaces=old.get(tp))
        for tp, app_id in sorted(aim.app_ids.items())
    ]
    if not old:
        raise SourceRefused("the topic was adopted meanwhile: look again")
    return Seeking(
        state.version,
        tuple(moves),
        retired={text: state.txns[text] for text in old.values()},
        advice=("what the old topic held and no writer had read is lost with it",),
    )


def _adopted_sink(aim: _Aim, state: LogState, name: str) -> Seeking:
    live = _live(state)
    others = {other.tp: other for other in live if other.sink == name}
    taken = {tp: other for tp, other in others.items() if tp in aim.app_ids}
    if not taken:
        known = sorted({other.sink for other in live} - {aim.sink}) or ["no other sink"]
        raise SourceRefused(
            f"the table has no offsets of a sink '{name}' for these topics; it has those of "
            f"{', '.join(known)}"
        )
    moves = []
    for tp, other in sorted(taken.items()):
        mine = aim.app_ids[tp]
        if other.topic_id != mine.topic_id:
            raise SourceRefused(
                f"{tp}: sink '{name}' knows the topic under another id ({other.topic_id}) than "
                f"the brokers give ({mine.topic_id}), so that its offsets mean other records: "
                f"adopt the topic under the name '{name}' first"
            )
        found = state.txns.get(str(mine))
        if found is not None and found != RETIRED:
            raise SourceRefused(f"{tp}: this sink has an offset of its own already ({found})")
        moves.append(Move(mine, found, state.txns[str(other)], replaces=str(other)))
    left = sorted({other.tp.topic for other in others.values()} - {tp.topic for tp in taken})
    return Seeking(
        state.version,
        tuple(moves),
        retired={str(other): state.txns[str(other)] for other in taken.values()},
        stays=tuple(f"topic {topic} stays with '{name}'" for topic in left),
        advice=(STOP_ADVICE.format(name=name),),
    )


def _raced(first: Seeking, now: Seeking) -> Seeking:
    """Return what is left of the seek that was meant, after writers went on from `first` to `now`.

    A writer that passed the target meanwhile has done all that was wanted: moved now, its
    partition would go the other way.

    Raises:
        SourceRefused: another person moved an offset.
    """
    before = {move.app_id: move for move in first.moves}
    moves = []
    for move in now.moves:
        meant = before.get(move.app_id)
        if meant is None:
            continue
        if meant.offset_from is not None and move.offset_from is not None:
            if move.offset_from < meant.offset_from:
                raise SourceRefused(
                    f"{move.app_id.tp}: somebody else moved it from {meant.offset_from} back to "
                    f"{move.offset_from} just now: look again"
                )
            if meant.offset_from < meant.offset_to < move.offset_from:
                continue
        moves.append(move)
    return replace(now, moves=tuple(moves))


# --- the commit ---------------------------------------------------------------------------------


def _plan(source: Source, request: SeekRequest, seeking: Seeking) -> Plan:
    commit_id = source.log.entropy.unique_id()
    parts: list[PartitionReceipt] = []
    actions: list[Action] = []
    conditions: list[Condition] = [StillSupported(source.log.entries.kind)]

    def move(app_id: AppId, before: int | None, *, first: int, after: int) -> None:
        text = str(app_id)
        tp = app_id.tp
        parts.append(PartitionReceipt(text, tp.topic, tp.partition, first, after, 0, 0))
        actions.append(Txn(text, after))
        conditions.append(TxnIs(text, before))

    for text, txn in sorted(seeking.retired.items()):
        app_id = AppId.parse(text)
        assert app_id is not None, text
        move(app_id, txn, first=txn, after=RETIRED)
    replaced = frozenset(seeking.retired)
    for moved in seeking.moves:
        before, to = moved.offset_from, moved.offset_to
        move(moved.app_id, before, first=to if before is None else before, after=to)
        conditions.append(NoRival(moved.app_id, replaced))
    receipt = Receipt(
        RECEIPT_FORMAT,
        "seek",
        source.settings.name,
        request.operator,
        0,
        commit_id,
        tuple(parts),
        request.reason,
    )
    parameters = {"operator": request.operator, "reason": request.reason}
    info = commit_info(source.log, receipt, "SEEK", parameters, is_blind_append=True)
    return Plan.of(commit_id, [info, *actions], conditions)


def _settled(log: Log, commit_id: str, *, after: int, error: Exception) -> int | None:
    """Return the version that carries `commit_id`, or None once it is certain that none ever will.

    The seek was last sent to a version that was at most one above the head as it was then. It
    cannot land any more as soon as the head is above the first one seen here.
    """
    head_first: int | None = None
    for look in range(LOOKS_MAX):
        if look:
            log.clock.sleep_ms(LOOK_PAUSE_MS)
        try:
            newer = sorted(log.entries.list(after).entries)
            versions = [version for version in newer if version > after]
            entries = [log.entries.read(version) for version in versions]
        except StoreUnavailable:
            continue
        head = max(versions, default=after)
        head_first = head if head_first is None else head_first
        if versions != list(range(after + 1, head + 1)):
            break  # Entries were cleaned up: one that landed among them is read by nobody.
        for entry in entries:
            receipt = receipt_of(entry) if entry is not None else None
            if entry is not None and receipt is not None and receipt.commit_id == commit_id:
                return entry.version
        if None not in entries and head > head_first:
            return None
    raise CommitUnknown(
        f"it is not known whether the seek is in the log, and it may still land ({error}): do not "
        f"repeat it before the table has a newer version than {head_first or after}; then look "
        f"for commit id {commit_id} in the table's history, or at the seeks that "
        f"`delta-sink audit` lists"
    )
