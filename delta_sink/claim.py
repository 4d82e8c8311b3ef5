"""Where each partition starts: catch up with the log, guard, and claim what nobody has yet.

A partition that has a `txn` starts there, whatever Kafka's group offsets say. A partition without
one is *claimed*: the configured start is resolved once and committed for all partitions that the
topics have, before a record is read. `latest` therefore means one moment for ever, and of several
workers that start at once one decides for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from delta_sink.delta.actions import Action, Txn
from delta_sink.delta.commit import Log, commit, follow, open_log
from delta_sink.delta.plan import (
    Condition,
    NoRival,
    Plan,
    StillSupported,
    TxnIs,
    retired_sentence,
    rival_sentence,
)
from delta_sink.delta.receipt import RECEIPT_FORMAT, RETIRED, Receipt, partition_receipt
from delta_sink.delta.state import LogState
from delta_sink.delta.support import refuse_log_store, refuse_unsupported
from delta_sink.delta.table import Author, TableSpec, commit_info, create_table
from delta_sink.errors import BrokerUnavailable, FencedError, SourceRefused, TableRefused
from delta_sink.model import AppId, OffsetRange, Run, TopicPartition
from delta_sink.ports import Broker, Topic
from delta_sink.settings import Settings
from delta_sink.start import (
    StartEarliest,
    StartGroup,
    StartLatest,
    StartOffsets,
    StartTimestamp,
)

CLAIM_TRIES_MAX = 20
"""Lost races for a claim before a worker starts over; each lost race is somebody's success."""


class Start(Struct, frozen=True):
    """Where a partition goes on: the log has `offset_next`, reading begins at `read_from`.

    They differ only where Kafka lost what lies between and the operator chose to skip it: `gone`.
    """

    app_id: AppId
    offset_next: int
    read_from: int
    gone: tuple[Run, ...] = ()


class Settled(Struct, frozen=True):
    """The answer to "where do these partitions start": a start or a reason why not, for each."""

    state: LogState
    starts: Mapping[TopicPartition, Start]
    halted: Mapping[TopicPartition, str]
    ends: Mapping[AppId, int] | None = None


class Source(Struct, frozen=True):
    """What the questions of this module are asked with."""

    settings: Settings
    log: Log
    broker: Broker
    table: TableSpec | None
    """The table to create where there is none; None: it must exist."""

    def topics(self) -> dict[str, Topic]:
        """Return the topics of this sink that exist now."""
        source = self.settings.source
        found = self.broker.topics(source.topics or (), source.topics_regex)
        return {topic.name: topic for topic in found}

    def app_id(self, topic: Topic, partition: int) -> AppId:
        """Return the name under which the log keeps this partition's offset."""
        with_id = self.settings.source.topic_ids == "required"
        if with_id and topic.topic_id is None:
            raise BrokerUnavailable(f"the brokers gave no id of topic '{topic.name}'")
        topic_id = topic.topic_id if with_id else None
        return AppId(self.settings.name, TopicPartition(topic.name, partition), topic_id)

    def app_ids(self, topics: Iterable[Topic]) -> dict[TopicPartition, AppId]:
        """Return the app ids of all partitions of `topics`."""
        return {
            TopicPartition(topic.name, partition): self.app_id(topic, partition)
            for topic in topics
            for partition in range(topic.partitions)
        }

    def confirm(self, read_as: Mapping[TopicPartition, AppId]) -> None:
        """Return if the brokers have no other topic now under a name that was read as `read_as`.

        Asked after a batch was read and before it is committed: a topic that is deleted, created
        again and filled past the old offset reads on as if it were the old one.

        Raises:
            FencedError: a topic was created again; settling says what to do.
            BrokerUnavailable: no broker answered.
        """
        if self.settings.source.topic_ids != "required":
            return
        names = sorted({tp.topic for tp in read_as})
        found = self.app_ids(self.broker.topics(names, None))
        for tp, app_id in read_as.items():
            if found.get(tp, app_id) != app_id:
                raise FencedError(rival_sentence(found[tp], app_id))


def open_table(source: Source, author: Author) -> LogState:
    """Return the state of the table, created if there was none and the file says how.

    Raises:
        TableRefused: there is none and no `table.schema`, or it is not one to append to.
    """
    state = open_log(source.log)
    if state is None:
        if source.table is None:
            raise TableRefused(
                f"there is no table at {source.settings.table.uri} and the configuration has no "
                f"table.schema to create it from"
            )
        state = create_table(source.log, source.table, author)
    refuse_unsupported(state.protocol, state.metadata)
    refuse_log_store(state.metadata, source.log.entries.kind)
    return state


def settle(
    source: Source,
    state: LogState | None,
    partitions: Sequence[TopicPartition],
    author: Author,
    *,
    ends: bool = False,
) -> Settled:
    """Return where each of `partitions` starts, with all that lacked a `txn` claimed.

    With `ends` also where every partition of the topics ends now; then the topics must exist.

    Raises:
        SourceRefused: the topic is another sink's, or was created again; only a person can tell.
        RetriableError: brokers or store did not answer; try again.
        TableRefused, StoreRefused: as the table and the store say.
    """
    state = open_table(source, author) if state is None else follow(source.log, state)
    refuse_unsupported(state.protocol, state.metadata)
    refuse_log_store(state.metadata, source.log.entries.kind)
    topics = source.topics()
    app_ids = source.app_ids(topics.values())
    missing = sorted(set(partitions) - set(app_ids))
    if missing:
        raise BrokerUnavailable(f"the brokers do not know {missing[0]}, which is assigned to us")
    refuse_other_names(state, app_ids)
    state = _claim_all(source, state, app_ids, author)
    starts, halted = _guarded(source, state, {tp: app_ids[tp] for tp in partitions})
    return Settled(state, starts, halted, _ends(source, state, app_ids) if ends else None)


def _ends(
    source: Source, state: LogState, app_ids: Mapping[TopicPartition, AppId]
) -> dict[AppId, int]:
    """Return the end of every partition, once all topics that the configuration names exist.

    An end below what the table has would be reached before anything was read, so that a topic
    which was made anew would pass for one that was read to its end.
    """
    wanted = source.settings.source.topics or ()
    missing = sorted(set(wanted) - {tp.topic for tp in app_ids})
    if missing or not app_ids:
        name = f"topic '{missing[0]}'" if missing else "a topic that source.topics_regex matches"
        raise BrokerUnavailable(f"waiting for {name}: it does not exist yet")
    offsets = source.broker.offsets(list(app_ids), "latest")
    for tp, app_id in sorted(app_ids.items()):
        if state.txns[str(app_id)] > offsets[tp]:
            raise SourceRefused(_truncated(tp, state.txns[str(app_id)], offsets[tp]))
    return {app_id: offsets[tp] for tp, app_id in app_ids.items()}


def _truncated(tp: TopicPartition, offset: int, end: int) -> str:
    return (
        f"{tp}: the table has everything up to offset {offset}, but the topic ends at {end}: it "
        f"was truncated or created again; check the topic, then move the offset with "
        f"`delta-sink seek`"
    )


def refuse_other_names(state: LogState, app_ids: Mapping[TopicPartition, AppId]) -> None:
    """Return if each partition goes on under its app id, and under no other of this sink's.

    Retired app ids of this sink are no others: what replaced them is in the log.

    Raises:
        SourceRefused: this sink has the partition under another topic id, or another sink took
            it over.
    """
    live = [
        app_id
        for text, txn in state.txns.items()
        if txn != RETIRED and (app_id := AppId.parse(text)) is not None
    ]
    for other in live:
        mine = app_ids.get(other.tp)
        if mine is not None and other.sink == mine.sink and other != mine:
            raise SourceRefused(rival_sentence(mine, other))
    for _, mine in sorted(app_ids.items()):
        if state.txns.get(str(mine)) == RETIRED:
            raise SourceRefused(retired_sentence(mine, live))


def _claim_all(
    source: Source,
    state: LogState,
    app_ids: Mapping[TopicPartition, AppId],
    author: Author,
) -> LogState:
    """Return a state in which every partition of `app_ids` has a `txn`."""
    for _ in range(CLAIM_TRIES_MAX):
        missing = {tp: app_id for tp, app_id in app_ids.items() if str(app_id) not in state.txns}
        if not missing:
            return state
        offsets = _resolve(source, state, app_ids, missing)
        try:
            state = commit(source.log, state, _claim_plan(source, missing, offsets, author))
        except FencedError:
            state = follow(source.log, state)
            continue
        source.log.telemetry.event(
            "offsets_claimed",
            version=state.version,
            partitions={str(tp): offset for tp, offset in sorted(offsets.items())},
        )
        return state
    raise BrokerUnavailable(f"lost {CLAIM_TRIES_MAX} races for the claim of start offsets")


def _resolve(
    source: Source,
    state: LogState,
    app_ids: Mapping[TopicPartition, AppId],
    missing: Mapping[TopicPartition, AppId],
) -> dict[TopicPartition, int]:
    """Return the start of each missing partition, from the configuration or from its beginning.

    A topic of which this sink has claimed a partition before was claimed whole then: what is
    missing now was created afterwards, and everything in it is new.
    """
    claimed = {tp.topic for tp, app_id in app_ids.items() if str(app_id) in state.txns}
    later = [tp for tp in missing if tp.topic in claimed]
    first = [tp for tp in missing if tp.topic not in claimed]
    offsets = source.broker.offsets(later, "earliest") if later else {}
    if first:
        offsets = offsets | _configured_start(source, first)
    return offsets


def _configured_start(
    source: Source, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    start = source.settings.source.start
    broker = source.broker
    match start:
        case StartEarliest():
            return broker.offsets(partitions, "earliest")
        case StartLatest():
            return broker.offsets(partitions, "latest")
        case StartTimestamp():
            return broker.offsets(partitions, start.timestamp_ms)
        case StartGroup():
            offsets = broker.group_offsets(start.group, partitions)
            if not offsets:
                raise SourceRefused(
                    f"source.start.group: group '{start.group}' has no committed offset for "
                    f"{partitions[0].topic}: is the name right?"
                )
        case StartOffsets():
            offsets = {tp: start.offsets[tp] for tp in partitions if tp in start.offsets}
    # Of what is named nowhere nothing was read yet: whatever it holds is still to come.
    rest = [tp for tp in partitions if tp not in offsets]
    _refuse_outside(broker, offsets)
    return offsets | (broker.offsets(rest, "earliest") if rest else {})


def _refuse_outside(broker: Broker, offsets: Mapping[TopicPartition, int]) -> None:
    earliest = broker.offsets(list(offsets), "earliest")
    end = broker.offsets(list(offsets), "latest")
    for tp, offset in sorted(offsets.items()):
        if not earliest[tp] <= offset <= end[tp]:
            raise SourceRefused(
                f"source.start: {tp} is asked to start at offset {offset}, but Kafka has "
                f"{earliest[tp]} up to {end[tp]}"
            )


def _claim_plan(
    source: Source,
    missing: Mapping[TopicPartition, AppId],
    offsets: Mapping[TopicPartition, int],
    author: Author,
) -> Plan:
    commit_id = source.log.entropy.unique_id()
    conditions: list[Condition] = [StillSupported(source.log.entries.kind)]
    receipts = []
    actions: list[Action] = []
    for tp, app_id in sorted(missing.items()):
        conditions += [NoRival(app_id), TxnIs(str(app_id), None)]
        actions.append(Txn(str(app_id), offsets[tp]))
        nothing = OffsetRange(tp, offsets[tp], offsets[tp], records=0, rows=0)
        receipts.append(partition_receipt(str(app_id), nothing))
    receipt = Receipt(
        RECEIPT_FORMAT,
        "claim",
        author.sink,
        author.worker,
        author.generation,
        commit_id,
        tuple(receipts),
    )
    info = commit_info(source.log, receipt, "CLAIM", {}, is_blind_append=True)
    return Plan.of(commit_id, [info, *actions], conditions)


def _guarded(
    source: Source, state: LogState, app_ids: Mapping[TopicPartition, AppId]
) -> tuple[dict[TopicPartition, Start], dict[TopicPartition, str]]:
    """Return for each partition its start, or why Kafka cannot serve it."""
    earliest = source.broker.offsets(list(app_ids), "earliest")
    end = source.broker.offsets(list(app_ids), "latest")
    starts: dict[TopicPartition, Start] = {}
    halted: dict[TopicPartition, str] = {}
    for tp, app_id in app_ids.items():
        offset = state.txns[str(app_id)]
        if offset > end[tp]:
            halted[tp] = _truncated(tp, offset, end[tp])
        elif offset >= earliest[tp]:
            starts[tp] = Start(app_id, offset, offset)
        elif source.settings.source.on_offset_gap == "skip":
            starts[tp] = Start(app_id, offset, earliest[tp], ((offset, earliest[tp]),))
        else:
            halted[tp] = (
                f"{tp}: offsets {offset} to {earliest[tp] - 1} are no longer in Kafka "
                f"({earliest[tp] - offset} offsets were deleted before they were read): set "
                f"source.on_offset_gap: skip to go on without them, which the table records"
            )
    return starts, halted
