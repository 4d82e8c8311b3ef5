"""Asking for maintenance by policy: the errand without an end of one compactor a table.

Under the lease `scheduler` it follows the table's log and sends commands to the control topic as
anybody else would: compactions of the table partitions whose small files ask for one, checkpoints
by commits and age, clean-ups of the log, and what the cron expressions say. An id says what was
asked for and in which minute, so that two schedulers, where the lock is broken, ask once.

The holder also says how the table stands: the figures of `FIGURES`. Only one worker has the lease,
so that sums over workers are true; whoever loses it says nothing any more, and while the lock store
is away nobody does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct, field

from delta_sink import telemetry as declared
from delta_sink.asking import Wanted, command_for, compactions_for
from delta_sink.compacting import policy_of
from delta_sink.control import Checkpoint, CleanupLog, Compact, Vacuum
from delta_sink.control_client import ControlClient, send_command
from delta_sink.delta.snapshot import checkpoint_hint, read_snapshot
from delta_sink.delta.state import LogState
from delta_sink.errand import Errand, Interrupted, Rest, Steps, Upkeep, do
from delta_sink.errors import FencedError, ObjectMissing, RetriableError, TableRefused
from delta_sink.lease import lease_key
from delta_sink.policy import MINUTE_MS, Debt, FileTotals, SmallFiles, Values, cron_due
from delta_sink.ports import Tag, Telemetry

PERIOD_MS: Final = 10_000
REOPEN_MS: Final = 600_000
"""So often the table is read anew: what others have checkpointed or cleaned up shows then."""

REPEAT_MS: Final = 60_000
REPEAT_IDLE_MS: Final = 600_000
"""A request of which nothing came is made again so late."""

CLEANUP_MS: Final = 3_600_000
CRON_BACK_MS: Final = 5 * MINUTE_MS
"""A new scheduler looks back so far for times that its predecessor may have missed."""

INTERVAL_PROPERTY: Final = "delta.checkpointInterval"


class Watched(Struct):
    """What the scheduler knows of the table, and what it has asked for."""

    state: LogState
    small: SmallFiles
    totals: FileTotals
    opened_ms: int
    version: int
    checkpoint_version: int
    checkpoint_ms: int
    cron_ms: int
    cleanup_version: int
    cleanup_ms: int
    asked: dict[Values, tuple[Debt, int]] = field(default_factory=dict)
    checkpointed: int = -1
    """The newest checkpoint that is there; `checkpoint_version` may only have been asked for."""


FIGURES: Final[tuple[tuple[str, dict[str, Tag]], ...]] = (
    (declared.TABLE_VERSION, {}),
    (declared.TABLE_BYTES, {}),
    (declared.TABLE_FILES, {"size": "small"}),
    (declared.TABLE_FILES, {"size": "large"}),
    (declared.COMMITS_SINCE_CHECKPOINT, {}),
)


def schedule(errand: Errand) -> Steps[None]:
    """Ask for what is due until the worker stops."""
    upkeep = errand.upkeep
    assert upkeep.client is not None, "without a topic there is nobody to ask"
    telemetry = upkeep.log.telemetry
    key = lease_key(upkeep.table_uri, "scheduler")
    watched: Watched | None = None
    while True:
        held = yield from errand.hold(key)
        try:
            if held is None:  # No locks: the lease is tried for again after each look.
                watched = yield from _look(errand, upkeep.client, watched)
            else:
                yield from _look_for_ever(errand, upkeep.client, watched)
        except (RetriableError, FencedError, TableRefused) as error:
            watched = None
            telemetry.event("waiting", "warning", reason=str(error))
        except Interrupted:
            watched = None
            if errand.is_stopping:
                _say(telemetry, None)
                yield from errand.let_go(key)
                return
        _say(telemetry, None)
        yield from errand.let_go(key)
        yield Rest(PERIOD_MS)


def _look_for_ever(errand: Errand, client: ControlClient, watched: Watched | None) -> Steps[None]:
    while True:
        watched = yield from _look(errand, client, watched)
        _say(errand.upkeep.log.telemetry, watched if errand.may_go_on else None)
        yield Rest(PERIOD_MS)


def _look(errand: Errand, client: ControlClient, before: Watched | None) -> Steps[Watched | None]:
    """Ask for what is due now; return what is known of the table."""
    upkeep = errand.upkeep
    yield from errand.go_on()
    watched = yield from do("follow", lambda: _followed(upkeep, before))
    if watched is not None:
        for wanted in wanted_now(upkeep, watched, upkeep.log.clock.wall_ms()):
            yield from _send(errand, client, wanted)
    return watched


def _say(telemetry: Telemetry, watched: Watched | None) -> None:
    """Export how the table stands, or nothing of it."""
    values: tuple[float | None, ...] = (None,) * len(FIGURES)
    if watched is not None:
        small, totals = len(watched.small), watched.totals
        commits = watched.version - watched.checkpointed
        values = (watched.version, totals.size_bytes, small, totals.files - small, commits)
    for (metric, tags), value in zip(FIGURES, values, strict=True):
        telemetry.gauge(metric, value, **tags)


def _send(errand: Errand, client: ControlClient, wanted: Wanted) -> Steps[None]:
    upkeep = errand.upkeep
    command = command_for(wanted, upkeep.table_uri, "scheduler", now_ms=upkeep.log.clock.wall_ms())
    yield from do("ask", lambda: send_command(client, command))
    upkeep.log.telemetry.event(
        "command_sent", command=command.command, id=command.id, reason=wanted.reason
    )


# --- what is seen: jobs ---------------------------------------------------------------------------


def _followed(upkeep: Upkeep, watched: Watched | None) -> Watched | None:
    """Return what is known of the table now; None while there is none."""
    now_ms = upkeep.log.clock.elapsed_ms()
    if watched is None or now_ms - watched.opened_ms >= REOPEN_MS:
        return _opened(upkeep, watched)
    while (entry := upkeep.log.entries.read(watched.version + 1)) is not None:
        watched.small.apply(entry)
        watched.totals.apply(entry)
        is_other_table = entry.metadata is not None or entry.protocol is not None
        if is_other_table or not watched.totals.is_exact:
            return _opened(upkeep, watched)
        watched.version = entry.version
    hint = checkpoint_hint(upkeep.log)
    watched.checkpointed = max(watched.checkpointed, -1 if hint is None else hint)
    return watched


def _opened(upkeep: Upkeep, before: Watched | None) -> Watched | None:
    """Return the table as it is now, with what was asked for before."""
    log, wall_ms = upkeep.log, upkeep.log.clock.wall_ms()
    snapshot = read_snapshot(log)
    if snapshot is None:
        return None
    state = snapshot.state
    small = SmallFiles(state.metadata.partition_columns, policy_of(upkeep, Compact(), state))
    totals = FileTotals()
    try:
        files = snapshot.files()
        small.take(files)
        totals.take(files)
    except ObjectMissing:
        return before  # The checkpoint was cleaned up under us: next time.
    checkpoint = -1 if snapshot.checkpoint is None else snapshot.checkpoint.version
    found = Watched(
        state=state,
        small=small,
        totals=totals,
        opened_ms=log.clock.elapsed_ms(),
        version=state.version,
        checkpoint_version=checkpoint,
        checkpoint_ms=wall_ms,
        cron_ms=wall_ms - CRON_BACK_MS,
        cleanup_version=-1,
        cleanup_ms=wall_ms,
        checkpointed=checkpoint,
    )
    if before is not None:
        found.checkpoint_version = max(checkpoint, before.checkpoint_version)
        found.checkpoint_ms, found.cron_ms = before.checkpoint_ms, before.cron_ms
        found.cleanup_version, found.cleanup_ms = before.cleanup_version, before.cleanup_ms
        found.asked = before.asked
    return found


# --- what is wanted: pure -------------------------------------------------------------------------


def wanted_now(upkeep: Upkeep, watched: Watched, now_ms: int) -> list[Wanted]:
    """Return what is to be asked for now; `watched` notes that it was asked."""
    return [
        *_compactions(upkeep, watched, now_ms),
        *_checkpoints(upkeep, watched, now_ms),
        *_cleanups(watched, now_ms),
        *_by_cron(upkeep, watched, now_ms),
    ]


def _compactions(upkeep: Upkeep, watched: Watched, now_ms: int) -> Iterator[Wanted]:
    due = []
    for debt in watched.small.due(upkeep.settings.compaction, now_ms):
        last = watched.asked.get(debt.values)
        if last is not None and not _may_ask_again(debt, *last, now_ms):
            continue
        watched.asked[debt.values] = (debt, now_ms)
        due.append(debt)
    yield from compactions_for(due, watched.state.metadata, now_ms)


def _may_ask_again(debt: Debt, before: Debt, asked_ms: int, now_ms: int) -> bool:
    is_same = (debt.files, debt.newest_ms) == (before.files, before.newest_ms)
    return now_ms - asked_ms >= (REPEAT_IDLE_MS if is_same else REPEAT_MS)


def _checkpoints(upkeep: Upkeep, watched: Watched, now_ms: int) -> Iterator[Wanted]:
    configured = upkeep.settings.checkpoint
    interval = watched.state.metadata.configuration.get(INTERVAL_PROPERTY) or ""
    commits_max = int(interval) if interval.isdigit() and int(interval) else configured.commits_max
    commits = watched.version - watched.checkpoint_version
    age_ms = now_ms - watched.checkpoint_ms
    if commits <= 0 or (commits < commits_max and age_ms < configured.age_max_ms):
        return
    watched.checkpoint_version, watched.checkpoint_ms = watched.version, now_ms
    reason = f"{commits} commits since the last one, {age_ms // 1000} s"
    yield Wanted(f"checkpoint.{watched.version}", Checkpoint(), reason, now_ms)


def _cleanups(watched: Watched, now_ms: int) -> Iterator[Wanted]:
    if now_ms - watched.cleanup_ms < CLEANUP_MS or watched.version <= watched.cleanup_version:
        return
    watched.cleanup_ms, watched.cleanup_version = now_ms, watched.version
    yield Wanted("cleanup-log", CleanupLog(), "an hour has passed", now_ms)


def _by_cron(upkeep: Upkeep, watched: Watched, now_ms: int) -> Iterator[Wanted]:
    settings, after_ms = upkeep.settings, watched.cron_ms
    watched.cron_ms = now_ms
    for name, expression, args in (
        ("cron.compact", settings.compaction.cron, Compact()),
        ("cron.vacuum", settings.vacuum.cron, Vacuum(dry_run=False)),
    ):
        at_ms = None if expression is None else cron_due(expression, after_ms, now_ms)
        if at_ms is not None:
            yield Wanted(name, args, f"its time is {expression}", at_ms)
