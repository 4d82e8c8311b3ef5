"""The commit protocol: how a plan gets into the log once, and how a worker follows the log.

Theory of operation
-------------------
The log is the only fence. A commit is a compare-and-set: version N+1 is claimed with a
put-if-absent by a worker that has applied every entry up to N and whose plan holds there.

An attempt at N+1 ends in one of these ways:

    created    landed.
    exists     means nothing until entry N+1 was read. It carries the plan's commit id: landed.
               It carries another: apply it, check the plan, try N+2. It is not there (some stores
               answer 409 with nothing landed; or the entry came and was cleaned up): open anew.
    no answer  the plan is *in doubt*: the PUT may land at any later time. The identical body goes
               to the same version again until the answer is created or exists, and to no other
               version meanwhile. A store's definite no is believed only when not in doubt.

Knowledge has an age, counted from the start of the last look at the log. Past the limit nothing
is sent and no answer is believed, because log clean-up may have removed what would contradict it.
A look is a LIST from V. If entry V still has its e_tag and no checkpoint lies above V, then
nothing from V on was ever cleaned up and the knowledge is renewed. Otherwise the log is opened
anew, and a plan that was in doubt is dropped: whether it landed is for the log to say.

What a look has shown is read, not sent to. A checkpoint and a clean-up may come at any moment
after the look, and take entries above V that are a day old: a PUT to one of these would be
*created* below the checkpoint, where nobody ever reads it.

Why this is safe: a worker sends N+1 only where its last look has shown nothing above N, so that
whatever is or was there since is younger than the knowledge, and no clean-up may remove it; every
version is claimed once; and the plan was checked on exactly the prefix that it is committed on.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from delta_sink.delta.actions import Entry, parse_entry
from delta_sink.delta.checkpoint import read_checkpoint
from delta_sink.delta.logstore import LAST_CHECKPOINT_PATH, Listing, LogStore
from delta_sink.delta.plan import Plan
from delta_sink.delta.receipt import receipt_of
from delta_sink.delta.state import LogState
from delta_sink.errors import (
    CommitUnknown,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
    TableRefused,
)
from delta_sink.ports import Clock, Created, Entropy, Exists, ObjectStore, Telemetry

OPEN_TRIES_MAX = 5
"""How often a log is opened again when clean-up removes entries between LIST and GET."""

COMMIT_TRIES_MAX = 200
"""Answers to one plan (conflicts and silences) after which a worker starts over."""

DOUBT_MAX_MS = 120_000
"""How long a plan in doubt is sent again before the worker opens the log anew."""

BACKOFF_FIRST_MS = 50
BACKOFF_MAX_MS = 5_000
CONFLICTS_BEFORE_LOOK = 2
"""After so many lost races in a row one LIST catches up faster than a PUT for every version."""


class Log(Struct, frozen=True):
    """The log of one table, with all that following and writing it needs."""

    store: ObjectStore
    entries: LogStore
    clock: Clock
    entropy: Entropy
    telemetry: Telemetry
    readback: bool = False
    """Read an entry back before *created* counts (a store may lose conditions under faults)."""
    heard: Callable[[Entry], None] | None = None
    """Called, in the job that moves a state, with each entry that it applies; may be told twice."""

    def apply(self, state: LogState, entry: Entry) -> LogState:
        """Return the state after `entry`, of which whoever listens is told."""
        if self.heard is not None:
            self.heard(entry)
        return state.applied(entry)


def open_log(log: Log) -> LogState | None:
    """Return the state at the head of the log, or None if there is no table yet.

    Raises:
        TableRefused: the log has a gap or is damaged.
        StoreUnavailable, StoreRefused: as the store says.
    """
    for _ in range(OPEN_TRIES_MAX):
        started_ms = log.clock.elapsed_ms()
        listing = _list_from_checkpoint(log)
        if not listing.entries and not listing.checkpoints:
            return None
        try:
            return _open_listed(log, listing, started_ms)
        except ObjectMissing:
            continue  # Cleaned up between LIST and GET: what is newer is in a later listing.
    raise TableRefused(
        f"the log changed {OPEN_TRIES_MAX} times while it was opened: something removes entries "
        f"faster than they can be read"
    )


def _list_from_checkpoint(log: Log) -> Listing:
    """Return a listing that has the newest checkpoint, if there is one, and all after it.

    `_last_checkpoint` may be stale, so it only says from where to list: a log that keeps a week
    of entries would take hundreds of pages. Where no checkpoint is found from there on, all of
    the log is listed.
    """
    try:
        hint = msgspec.json.decode(log.store.get(LAST_CHECKPOINT_PATH).data, type=_LastCheckpoint)
    except (ObjectMissing, msgspec.DecodeError):
        return log.entries.list()
    listing = log.entries.list(hint.version)
    return listing if listing.checkpoints else log.entries.list()


class _LastCheckpoint(msgspec.Struct):
    version: int


def _open_listed(log: Log, listing: Listing, started_ms: int) -> LogState:
    newest = max(listing.entries, default=-1)
    if listing.checkpoints:
        checkpoint = listing.checkpoints[-1]
        protocol, metadata, txns = read_checkpoint(log.store, checkpoint)
        info = listing.entries.get(checkpoint.version)
        state = LogState(
            checkpoint.version,
            info.e_tag if info is not None else "",
            protocol,
            metadata,
            txns,
            started_ms,
        )
    else:
        state = _first_state(_read_listed(log, listing, 0), started_ms)
    for version in range(state.version + 1, newest + 1):
        state = state.applied(_read_listed(log, listing, version))
    return state


def _read_listed(log: Log, listing: Listing, version: int) -> Entry:
    if version not in listing.entries:
        raise TableRefused(
            f"the log has no entry {version} although it has later ones: entries were removed "
            f"by hand or by a clean-up without a checkpoint; restore _delta_log from a backup"
        )
    entry = log.entries.read(version)
    if entry is None:
        raise ObjectMissing(f"log entry {version}")
    return entry


def _first_state(entry: Entry, started_ms: int) -> LogState:
    if entry.protocol is None or entry.metadata is None:
        raise TableRefused("log entry 0 has no protocol or no metadata: this is no Delta table")
    return LogState(
        entry.version, entry.e_tag, entry.protocol, entry.metadata, entry.txns or {}, started_ms
    )


def _look(log: Log, state: LogState) -> tuple[LogState, list[int]] | None:
    """Return renewed knowledge and the versions above it that the LIST showed, in order.

    None: what was known may have been cleaned up since; only opening anew helps.
    """
    started_ms = log.clock.elapsed_ms()
    listing = log.entries.list(state.version)
    info = listing.entries.get(state.version)
    if info is None or info.e_tag != state.e_tag:
        return None
    if any(checkpoint.version > state.version for checkpoint in listing.checkpoints):
        return None
    newer = sorted(version for version in listing.entries if version > state.version)
    return replace(state, looked_at_ms=started_ms), newer


def follow(log: Log, state: LogState) -> LogState:
    """Return the state at the head of the log as a look that begins now shows it.

    Raises:
        TableRefused: the table is gone.
        StoreUnavailable, StoreRefused: as the store says.
    """
    found = _look(log, state)
    if found is not None:
        state, newer = found
        for version in newer:
            entry = log.entries.read(version)
            if entry is None or version != state.version + 1:
                return _reopen(log)
            state = log.apply(state, entry)
        return state
    return _reopen(log)


def _reopen(log: Log) -> LogState:
    state = open_log(log)
    if state is None:
        raise TableRefused("the table's log is gone: was the table dropped while it was written?")
    return state


def commit(log: Log, state: LogState, plan: Plan) -> LogState:
    """Return the state after `plan` landed: all of it, once, on a prefix where it holds.

    Raises:
        FencedError, CommitConflict: a condition no longer holds. Nothing landed; drop the plan.
        CommitUnknown: it may have landed. Drop the plan, open the log, do as it says.
        StoreRefused: a definite no; nothing landed.
        FatalError: a condition that only a person can settle.
    """
    return _Attempts(log, state, plan).run()


class _Attempts:
    """The attempts to land one plan. It lives for one call of `commit`."""

    def __init__(self, log: Log, state: LogState, plan: Plan) -> None:
        self._log = log
        self._state = state
        self._plan = plan
        self._shown_to = state.version  # the newest version that a look has shown
        self._doubt_since_ms: int | None = None  # set: a PUT of state.version + 1 has no answer
        self._silences = 0
        self._conflicts = 0

    def run(self) -> LogState:
        self._plan.check(self._state, None)
        for _ in range(COMMIT_TRIES_MAX):
            if self._is_old() or self._conflicts >= CONFLICTS_BEFORE_LOOK:
                landed = self._renew()
            elif self._state.version < self._shown_to:
                landed = self._catch_up()
            else:
                landed = self._attempt()
            if landed:
                return self._state
        raise self._give_up(f"{COMMIT_TRIES_MAX} attempts")

    def _attempt(self) -> bool:
        """Send the plan once; return whether it has landed."""
        version = self._state.version + 1
        try:
            answer: Created | Exists | None = self._log.entries.create(version, self._plan.body)
        except StoreUnavailable:
            answer = None
        except StoreRefused:
            if self._doubt_since_ms is None:
                raise
            answer = None
        if answer is None:
            self._in_doubt()
            return False
        if self._is_old():
            # What this answer rests on may have been cleaned up before it was given.
            self._doubt()
            return False
        if isinstance(answer, Exists):
            return self._read(version)
        if self._log.readback:
            # It was acknowledged: if it is not there now, it may yet appear.
            self._doubt()
            return self._read(version)
        self._count("committed")
        entry = parse_entry(version, self._plan.body, answer.e_tag)
        self._state = self._log.apply(self._state, entry)
        return True

    def _read(self, version: int) -> bool:
        """Read the entry that took `version`; return whether it is the plan's."""
        try:
            entry = self._log.entries.read(version)
        except (StoreUnavailable, StoreRefused) as error:
            if isinstance(error, StoreRefused) and self._doubt_since_ms is None:
                raise
            self._in_doubt()
            return False
        if self._is_old():
            self._doubt()
            return False
        if entry is None:
            self._open_anew()
            return False
        return self._take(entry)

    def _take(self, entry: Entry) -> bool:
        """Apply the next entry; return whether it is the plan's own.

        Whoever holds this version now, a PUT of ours to it can no longer land: no more doubt.
        """
        receipt = receipt_of(entry)
        is_ours = receipt is not None and receipt.commit_id == self._plan.commit_id
        self._state = self._log.apply(self._state, entry)
        self._doubt_since_ms = None
        if is_ours:
            self._count("committed")
            return True
        self._conflicts += 1
        self._count("conflict")
        self._plan.check(self._state, entry)
        return False

    def _renew(self) -> bool:
        """Look at the log; return whether the plan turned out to have landed."""
        try:
            found = _look(self._log, self._state)
            if found is None:
                self._open_anew()
                return False
        except (StoreUnavailable, StoreRefused) as error:
            self._unanswered(error)
            return False
        self._state, newer = found
        self._conflicts = 0
        self._shown_to = max(newer, default=self._state.version)
        return self._catch_up()

    def _catch_up(self) -> bool:
        """Read on to where the last look has shown the log to reach; return whether the plan is there."""
        try:
            while self._state.version < self._shown_to:
                entry = self._log.entries.read(self._state.version + 1)
                if self._is_old():
                    return False
                if entry is None:
                    self._open_anew()
                    return False
                if self._take(entry):
                    return True
            self._conflicts = 0
        except (StoreUnavailable, StoreRefused) as error:
            self._unanswered(error)
        return False

    def _unanswered(self, error: StoreUnavailable | StoreRefused) -> None:
        """The log could not be read: wait a little. A definite no counts only when not in doubt."""
        if self._doubt_since_ms is not None:
            self._in_doubt()
        elif isinstance(error, StoreRefused):
            raise error
        else:
            self._back_off()

    def _open_anew(self) -> None:
        """Go on from what the log says now; a plan in doubt is dropped."""
        if self._doubt_since_ms is not None:
            raise self._give_up("the log moved on behind a checkpoint")
        state = open_log(self._log)
        if state is None:
            raise TableRefused("the table's log is gone: was the table dropped while in use?")
        self._state = state
        self._shown_to = state.version
        self._conflicts = 0
        self._plan.check(state, None)

    def _doubt(self) -> int:
        """Hold the plan to be in doubt from now on; return for how long it has been."""
        now_ms = self._log.clock.elapsed_ms()
        if self._doubt_since_ms is None:
            self._doubt_since_ms = now_ms
        return now_ms - self._doubt_since_ms

    def _in_doubt(self) -> None:
        """There was no answer: wait a little, so that the same bytes are sent again."""
        if self._doubt() >= DOUBT_MAX_MS:
            raise self._give_up(f"{DOUBT_MAX_MS // 1000} s without an answer")
        self._count("unknown")
        self._log.telemetry.event(
            "commit_retried", "warning", version=self._state.version + 1, attempt=self._silences + 1
        )
        self._back_off()

    def _back_off(self) -> None:
        base_ms = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << min(self._silences, 10))
        self._silences += 1
        self._log.clock.sleep_ms(round(base_ms * (0.5 + self._log.entropy.fraction())))

    def _give_up(self, why: str) -> CommitUnknown:
        return CommitUnknown(
            f"version {self._state.version + 1}: no certain answer ({why}); the log decides"
        )

    def _is_old(self) -> bool:
        return self._state.is_old(self._log.clock.elapsed_ms())

    def _count(self, outcome: str) -> None:
        self._log.telemetry.count("delta_sink_commit_attempts_total", outcome=outcome)
