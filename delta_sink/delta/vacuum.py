"""Deleting data files that nothing needs any more, fenced by the log and not by clocks.

Theory of operation. Every data file of ours carries a tag in its name: the log version that its
writer knew when the upload began. Vacuum

1. takes W: the newest version older than the retention, by the store's own time;
2. commits `txn("delta-sink/vacuum", W)`, its *fence*, unless one as high is there;
3. reads which files any version from W up to that commit refers to;
4. deletes files that none of them refers to and whose tag is at most W.

A file that is uploaded and in no commit yet may have such a tag: its writer was paused for longer
than the retention. To commit it, that writer has to apply the entry with the fence, and then its
plan no longer holds. What it committed before the fence is among what step 3 has read. So the
order of 2 and 3 is what everything rests on, and clocks decide only how far back W lies.

Files without a tag are other engines'. They go when they are older than the retention by the
store's time and nothing refers to them, which is all that any other vacuum knows too. Only Parquet
files and deletion vectors are deleted; never `_delta_log`, nor what lies in a folder whose name
begins with `_` or `.`, unless it is that of a table partition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from delta_sink.delta.actions import Action, Entry, Txn
from delta_sink.delta.commit import Log, commit, follow, open_log
from delta_sink.delta.conditions import FenceBelow, FenceReached
from delta_sink.delta.deletion_vector import vector_path
from delta_sink.delta.hive import escape, object_path
from delta_sink.delta.parquet import tag_of
from delta_sink.delta.plan import Condition, Plan, StillSupported
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt
from delta_sink.delta.repeat import repeat
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.delta.state import LogState
from delta_sink.delta.store_time import store_now_ms, version_before
from delta_sink.delta.support import refuse_log_store, refuse_unsupported
from delta_sink.delta.table import Author, commit_info
from delta_sink.errors import CommitConflict, ObjectMissing, TableRefused
from delta_sink.model import VACUUM_APP_ID
from delta_sink.ports import ObjectInfo

DELETE_BATCH = 100
"""After so many deletions the throttle and the wish to stop are looked at."""

READ_TRIES_MAX = 3

_VECTOR_FILE = re.compile(r"deletion_vector_[0-9a-f-]{36}\.bin")


class Retention(Struct, frozen=True):
    """How long files that no current version needs are kept.

    `retention_ms` is what was asked for, `floor_ms` what this worker's own configuration allows at
    least, `table_ms` what the table says (it goes into the log's record, nothing else).

    Raises:
        TableRefused: less was asked for than is allowed.
    """

    retention_ms: int
    floor_ms: int
    table_ms: int

    def __post_init__(self) -> None:
        if self.retention_ms < self.floor_ms:
            raise TableRefused(
                f"a vacuum with a retention of {self.retention_ms / 3_600_000:g} hours was asked "
                f"for; this worker allows {self.floor_ms / 3_600_000:g} at least "
                f"(vacuum.retention_hours_min)"
            )


class VacuumPlan(Struct, frozen=True):
    """What may be deleted: it stays so whatever happens, as the fence never falls.

    `fence` is W, None where no version is old enough; `through` the version up to which the log
    was read. A dry run has committed no fence, so nothing of it may be deleted.
    """

    state: LogState
    fence: int | None
    through: int
    files: tuple[ObjectInfo, ...]
    retention: Retention
    dry_run: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(info.size_bytes for info in self.files)


class Vacuumed(Struct, frozen=True):
    """What was deleted. `is_complete` is False where the worker was asked to stop."""

    state: LogState
    files_deleted: int
    bytes_deleted: int
    is_complete: bool


def plan_vacuum(log: Log, retention: Retention, author: Author, *, dry_run: bool) -> VacuumPlan:
    """Return what to delete; unless it is a dry run, the fence stands in the log by then.

    Memory holds the paths of all files that any version since W refers to, and a listing of the
    whole table.

    Raises:
        TableRefused: there is no table, or it uses something that this sink does not implement.
        CommitConflict: the log was cleaned up while it was read. Nothing is lost; plan again.
        CommitUnknown: the fence may have landed. Plan again.
        RetriableError, StoreRefused: as the store says.
    """
    now_ms = store_now_ms(log)
    state = open_log(log)
    if state is None:
        raise TableRefused("there is no table to vacuum: its log is empty")
    refuse_unsupported(state.protocol, state.metadata)
    refuse_log_store(state.metadata, log.entries.kind)
    cutoff_ms = now_ms - retention.retention_ms
    fence = version_before(log.entries.list(), cutoff_ms)
    if fence is None:
        return VacuumPlan(state, None, state.version, (), retention, dry_run)
    if not dry_run:
        state = raise_fence(log, state, fence, author)
    referenced = referenced_paths(log, first=fence, through=state.version)
    rule = DeletionRule(fence, cutoff_ms, state.metadata.partition_columns)
    listed = repeat(lambda: log.store.list(""), log.clock, log.entropy)
    files = tuple(_unreferenced([info for info in listed if rule.allows(info)], referenced))
    return VacuumPlan(state, fence, state.version, files, retention, dry_run)


def raise_fence(log: Log, state: LogState, fence: int, author: Author) -> LogState:
    """Return a state at which vacuum's fence is `fence` or higher.

    Raises: as `commit`.
    """
    receipt = _receipt(log, author)
    info = commit_info(log, receipt, "VACUUM FENCE", {"fence": str(fence)}, is_blind_append=True)
    conditions: list[Condition] = [FenceBelow(fence), StillSupported(log.entries.kind)]
    plan = Plan.of(receipt.commit_id, [info, Txn(VACUUM_APP_ID, fence)], conditions)
    try:
        return commit(log, state, plan)
    except FenceReached:
        # Somebody else's is as high: go on with our own W, at a state that has theirs.
        state = follow(log, state)
        assert state.vacuum_fence >= fence, (state.vacuum_fence, fence)
        return state


def _receipt(log: Log, author: Author) -> Receipt:
    commit_id = log.entropy.unique_id()
    return Receipt(
        RECEIPT_FORMAT, "vacuum", author.sink, author.worker, author.generation, commit_id
    )


# --- what is needed -------------------------------------------------------------------------------


def referenced_paths(log: Log, *, first: int, through: int) -> pa.ChunkedArray:
    """Return the objects that any version from `first` to `through` refers to, some repeatedly.

    Raises:
        CommitConflict: the log was cleaned up under us.
        TableRefused: the log names files outside of the table, or cannot show that version.
    """
    chunks: list[pa.Array] = []
    for _ in range(READ_TRIES_MAX):
        snapshot = read_snapshot(log, first)
        if snapshot is None:
            raise TableRefused("the table's log is gone: was the table dropped while in use?")
        try:
            chunks = [
                _paths(batch["path"].to_pylist(), batch["deletionVector"].to_pylist())
                for batch in snapshot.live_batches()
            ]
            break
        except ObjectMissing:
            continue
    else:
        raise CommitConflict(f"version {first} was cleaned up while vacuum read it: plan again")
    for version in range(first + 1, through + 1):
        entry = log.entries.read(version)
        if entry is None:
            raise CommitConflict(
                f"log entry {version} was cleaned up while vacuum read the log: plan again"
            )
        if entry.adds:
            chunks.append(_added(entry))
    return pa.chunked_array(chunks, pa.string())


def _added(entry: Entry) -> pa.Array:
    return _paths([add.path for add in entry.adds], [add.deletion_vector for add in entry.adds])


def _paths(paths: Sequence[str], vectors: Sequence[Mapping[str, object] | None]) -> pa.Array:
    found = [object_path(path) for path in paths]
    for vector in vectors:
        path = vector_path(vector) if vector is not None else None
        if path is not None:
            found.append(path)
    return pa.array(found, pa.string())


class DeletionRule(Struct, frozen=True):
    """Which objects may be deleted if nothing refers to them.

    Those with a tag at or below `fence`; those without one that are Parquet files or deletion
    vectors and were stored before `cutoff_ms` by the store's time.
    """

    fence: int
    cutoff_ms: int
    partition_columns: tuple[str, ...]

    def allows(self, info: ObjectInfo) -> bool:
        """Return whether this object may go."""
        *folders, name = info.path.split("/")
        if name.startswith(("_", ".")) or any(map(self._is_hidden, folders)):
            return False
        tag = tag_of(info.path)
        if tag is not None:
            return tag <= self.fence
        is_ours_to_judge = name.endswith(".parquet") or _VECTOR_FILE.fullmatch(name) is not None
        return is_ours_to_judge and info.modified_ms < self.cutoff_ms

    def _is_hidden(self, folder: str) -> bool:
        if not folder.startswith(("_", ".")):
            return False
        return not any(folder.startswith(f"{escape(c)}=") for c in self.partition_columns)


def _unreferenced(
    candidates: Sequence[ObjectInfo], referenced: pa.ChunkedArray
) -> Iterator[ObjectInfo]:
    paths = pa.array([info.path for info in candidates], pa.string())
    needed = pc.is_in(paths, value_set=referenced.combine_chunks()).to_pylist()
    for info, is_needed in zip(candidates, needed, strict=True):
        if not is_needed:
            yield info


# --- deleting -------------------------------------------------------------------------------------


def delete_planned(
    log: Log,
    plan: VacuumPlan,
    author: Author,
    *,
    per_second_max: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Vacuumed:
    """Return once the plan's files are deleted, or `should_stop` said so.

    Started and ended are recorded in the log, if there is anything to delete. A run that was
    stopped or died is resumed by a new plan, which finds what is left. `on_progress` is told how
    many files and bytes are deleted so far.

    Raises:
        RetriableError, StoreRefused: as the store says; what was deleted stays deleted.
    """
    assert not plan.dry_run, "a dry run has put up no fence: its files may be somebody's"
    if not plan.files:
        return Vacuumed(plan.state, 0, 0, is_complete=True)
    state = _record_start(log, plan, author)
    files = size_bytes = 0
    for first in range(0, len(plan.files), DELETE_BATCH):
        if should_stop():
            break
        began_ms = log.clock.elapsed_ms()
        batch = plan.files[first : first + DELETE_BATCH]
        for info in batch:
            repeat(lambda path=info.path: log.store.delete(path), log.clock, log.entropy)  # type: ignore[misc]  # mypy cannot type a default of a lambda
        files += len(batch)
        size_bytes += sum(info.size_bytes for info in batch)
        if on_progress is not None:
            on_progress(files, size_bytes)
        _slow_down(log, began_ms, len(batch), per_second_max)
    is_complete = files == len(plan.files)
    folders = {info.path.rpartition("/")[0] for info in plan.files[:files]}
    state = _record_end(log, state, author, files, len(folders), is_complete=is_complete)
    return Vacuumed(state, files, size_bytes, is_complete)


def _slow_down(log: Log, began_ms: int, count: int, per_second_max: float | None) -> None:
    if per_second_max is None:
        return
    wanted_ms = round(1_000 * count / per_second_max)
    spare_ms = began_ms + wanted_ms - log.clock.elapsed_ms()
    if spare_ms > 0:
        log.clock.sleep_ms(spare_ms)


def _record_start(log: Log, plan: VacuumPlan, author: Author) -> LogState:
    retention = plan.retention
    parameters = {
        "retentionCheckEnabled": "true",
        "specifiedRetentionMillis": str(retention.retention_ms),
        "defaultRetentionMillis": str(retention.table_ms),
    }
    metrics = {
        "numFilesToDelete": str(len(plan.files)),
        "sizeOfDataToDelete": str(plan.size_bytes),
    }
    return _record(log, plan.state, author, "VACUUM START", parameters, metrics)


def _record_end(
    log: Log, state: LogState, author: Author, files: int, folders: int, *, is_complete: bool
) -> LogState:
    parameters = {"status": "COMPLETED" if is_complete else "FAILED"}
    metrics = {"numDeletedFiles": str(files), "numVacuumedDirectories": str(folders)}
    return _record(log, state, author, "VACUUM END", parameters, metrics)


def _record(
    log: Log,
    state: LogState,
    author: Author,
    operation: str,
    parameters: Mapping[str, object],
    metrics: dict[str, object] | dict[str, str],
) -> LogState:
    receipt = _receipt(log, author)
    info = commit_info(
        log, receipt, operation, parameters, is_blind_append=True, operation_metrics=metrics
    )
    actions: list[Action] = [info]
    plan = Plan.of(receipt.commit_id, actions, [StillSupported(log.entries.kind)])
    return commit(log, state, plan)
