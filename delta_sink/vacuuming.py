"""What `vacuum` and `cleanup-log` commands do, as errands. Only these delete anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from delta_sink.audit import write_anchor
from delta_sink.control import CleanupLog, Vacuum
from delta_sink.delta.checkpoint_write import file_retention_ms
from delta_sink.delta.cleanup import CleanedUp, CleanupPlan, clean_log, plan_cleanup
from delta_sink.delta.commit import open_log
from delta_sink.delta.table import Author
from delta_sink.delta.vacuum import Retention, Vacuumed, VacuumPlan, delete_planned, plan_vacuum
from delta_sink.errand import Ended, Errand, Interrupted, Steps, Upkeep, do
from delta_sink.errors import FencedError, TableRefused
from delta_sink.lease import lease_key

HOUR_MS: Final = 3_600_000
PLANS_MAX: Final = 3
"""How often a plan is made anew because the log was cleaned up while it was read."""


def vacuum(errand: Errand) -> Steps[Ended]:
    """Return what became of a `vacuum` command."""
    args = errand.command.args
    assert isinstance(args, Vacuum), errand.command
    upkeep = errand.upkeep
    held = yield from errand.hold(lease_key(upkeep.table_uri, "vacuum"))
    author = errand.author(held)
    try:
        retention = yield from do("open", lambda: retention_of(upkeep, args))
        plan = yield from _planned(errand, retention, author, dry_run=args.dry_run)
        if args.dry_run:
            return Ended(
                "succeeded",
                "nothing was changed",
                _figures(plan, len(plan.files), plan.size_bytes, dry_run=True),
            )
        yield from errand.go_on()
        done = yield from do("delete", _deleting(errand, plan, author))
    except TableRefused as error:
        return Ended("refused", str(error))
    count = upkeep.log.telemetry.count
    count("delta_sink_vacuum_deleted_files_total", done.files_deleted)
    count("delta_sink_vacuum_deleted_bytes_total", done.bytes_deleted)
    if not done.is_complete:
        raise Interrupted("the worker was asked to stop; a new vacuum goes on")
    return Ended(
        "succeeded", "", _figures(plan, done.files_deleted, done.bytes_deleted, dry_run=False)
    )


def retention_of(upkeep: Upkeep, args: Vacuum) -> Retention:
    """Return how long what nothing needs is kept: as the command says, else the file, else the table.

    Without either it is a week, as Delta has it. The floor is this worker's own.

    Raises:
        TableRefused: there is no table, or less is asked for than this worker allows.
    """
    configured = upkeep.settings.vacuum
    state = open_log(upkeep.log)
    if state is None:
        raise TableRefused("there is no table to vacuum: its log is empty")
    table_ms = file_retention_ms(state.metadata)
    hours = configured.retention_hours if args.retention_hours is None else args.retention_hours
    wanted_ms = table_ms if hours is None else hours * HOUR_MS
    return Retention(wanted_ms, configured.retention_hours_min * HOUR_MS, table_ms)


def _planned(
    errand: Errand, retention: Retention, author: Author, *, dry_run: bool
) -> Steps[VacuumPlan]:
    log = errand.upkeep.log
    for tries_left in reversed(range(PLANS_MAX)):
        yield from errand.go_on()
        try:
            plan = yield from do(
                "plan", lambda: plan_vacuum(log, retention, author, dry_run=dry_run)
            )
        except FencedError:
            if not tries_left:
                raise
            continue
        return plan
    raise AssertionError("the last try returns or raises")


def _deleting(errand: Errand, plan: VacuumPlan, author: Author) -> Callable[[], Vacuumed]:
    upkeep = errand.upkeep
    return lambda: delete_planned(
        upkeep.log,
        plan,
        author,
        per_second_max=upkeep.settings.vacuum.deletes_per_s_max,
        should_stop=lambda: not errand.may_go_on,
    )


def _figures(plan: VacuumPlan, files: int, size_bytes: int, *, dry_run: bool) -> dict[str, object]:
    return {
        "files_deleted": files,
        "bytes_deleted": size_bytes,
        "dry_run": dry_run,
        "fence": plan.fence,
    }


# --- the log --------------------------------------------------------------------------------------


def cleanup_log(errand: Errand) -> Steps[Ended]:
    """Return what became of a `cleanup-log` command."""
    args = errand.command.args
    assert isinstance(args, CleanupLog), errand.command
    upkeep = errand.upkeep
    yield from errand.hold(lease_key(upkeep.table_uri, "cleanup"))
    try:
        plan = yield from do("plan", lambda: _cleanup_plan(upkeep))
    except TableRefused as error:
        return Ended("refused", str(error))
    result = {"entries": plan.entries, "bytes": plan.size_bytes, "keep_from": plan.keep_from}
    if args.dry_run:
        return Ended("succeeded", "nothing was changed", {"dry_run": True, **result})
    yield from errand.go_on()
    done = yield from do("cleanup", lambda: _cleaned(errand, plan))
    if not done.is_complete:
        raise Interrupted("the worker was asked to stop; a new clean-up goes on")
    return Ended("succeeded", "", {"dry_run": False, **result})


def _cleanup_plan(upkeep: Upkeep) -> CleanupPlan:
    retention = retention_of(upkeep, Vacuum(dry_run=True))
    # What vacuum may still be asked for at the least is what must stay readable.
    needed_ms = max(retention.retention_ms, retention.floor_ms, retention.table_ms)
    return plan_cleanup(upkeep.log, vacuum_retention_ms=needed_ms)


def _cleaned(errand: Errand, plan: CleanupPlan) -> CleanedUp:
    log = errand.upkeep.log
    return clean_log(
        log,
        plan,
        fold=lambda version: write_anchor(log, version),
        should_stop=lambda: not errand.may_go_on,
    )
