"""What `compact` and `checkpoint` commands do, as errands; what they find is planned from the table.

A compaction is planned once, and its bins are grouped by *slot*, the lease under which a table
partition is compacted. What is small is done here, slot after slot. What is large is divided: for
each slot a work item is sent to the same topic, where any compactor of the group takes it, and the
outcome of the whole is what the status topic says of its parts. A compactor that dies costs its
unfinished parts; whoever gets the command again finds those that are done answered already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Final

import pyarrow as pa
from msgspec import Struct, field
from msgspec.structs import replace

from delta_sink.control import Checkpoint, Command, Compact, Outcome, Part, encode_command
from delta_sink.control_client import ControlClient, newer_outcomes, recent_offsets
from delta_sink.delta.checkpoint_write import write_checkpoint
from delta_sink.delta.commit import open_log
from delta_sink.delta.compaction import (
    Compacted,
    Rewritten,
    commit_rewritten,
    compaction_layout,
    rewrite_bin,
)
from delta_sink.delta.compaction_plan import Bin, CompactionPolicy, plan_bins, target_file_bytes
from delta_sink.delta.course import Course
from delta_sink.delta.file_stream import Weight
from delta_sink.delta.hive import partition_path
from delta_sink.delta.ordering import Order, check_order
from delta_sink.delta.parquet import FileLayout
from delta_sink.delta.schema import TableSchema
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.delta.state import LogState
from delta_sink.delta.table import Author
from delta_sink.errand import Ended, Errand, Rest, Steps, Turn, Upkeep, begin, do, first_of
from delta_sink.errors import FencedError, ObjectMissing, RetriableError, TableRefused
from delta_sink.lease import Held, lease_key, slot_key, slot_of
from delta_sink.model import OutgoingRecord, TopicPartition
from delta_sink.ports import Job
from delta_sink.view import file_layout
from delta_sink.where import WhereWrong, bind, parse_where

MIB: Final = 1024 * 1024
DIVIDE_FILES: Final = 2_000
DIVIDE_BYTES: Final = 2 * 1024 * MIB
"""A command with so many files or bytes to rewrite, in several slots, is divided."""

PLAN_FILES_MAX: Final = 50_000
"""A plan of more files is not kept for the next part: it takes some kilobytes a file."""

ROUNDS_MAX: Final = 3
"""How often what was dropped, because others changed the files, is planned anew."""

FOLLOW_MS: Final = 1_000
PROGRESS_COMMITS: Final = 10
EXPIRY_GRACE_MS: Final = 600_000
"""How long after its expiry a divided command waits for parts that had begun."""
CHECKPOINT_FIGURES: Final = ("version", "files", "tombstones", "txns", "size_bytes")
BASE_BYTES: Final = 160 * MIB
"""What the process takes before it rewrites anything."""
ROW_GROUP_BYTES: Final = 96 * MIB
"""Of a file in the making: the rows that wait for their row group, and those being read."""


class CompactionPlan(Struct, frozen=True):
    """What a command comes to: bins by slot, planned from the table at `state`.

    `course` is of the log since then. Only one errand works at a time, so that it is shared by all
    parts of a command.
    """

    state: LogState
    course: Course
    layout: FileLayout
    policy: CompactionPolicy
    slots: Mapping[int, tuple[Bin, ...]]

    @property
    def bins(self) -> tuple[Bin, ...]:
        """All bins."""
        return tuple(each for bins in self.slots.values() for each in bins)

    @property
    def is_large(self) -> bool:
        """Whether it is worth being divided among compactors."""
        files = sum(len(each.files) for each in self.bins)
        size_bytes = sum(each.size_bytes for each in self.bins)
        is_much = files >= DIVIDE_FILES or size_bytes >= DIVIDE_BYTES
        return is_much and len(self.slots) > 1


class Tally(Struct):
    """What was done so far, under the names of the outcome."""

    files_removed: int = 0
    files_added: int = 0
    bytes_removed: int = 0
    bytes_added: int = 0
    rows: int = 0
    commits: int = 0
    dropped: int = 0
    """Bins that were given up because somebody else changed their files."""

    def take(self, done: Compacted) -> None:
        """Count a step."""
        self.files_removed += done.files_removed
        self.files_added += done.files_added
        self.bytes_removed += done.bytes_removed
        self.bytes_added += done.bytes_added
        self.rows += done.rows
        self.commits += 1

    @property
    def result(self) -> dict[str, object]:
        """The figures of an outcome."""
        names = ("files_removed", "files_added", "bytes_removed", "bytes_added", "rows", "commits")
        return {name: getattr(self, name) for name in names}


def compact(errand: Errand) -> Steps[Ended]:
    """Return what became of a `compact` command, or of one of its parts."""
    args = errand.command.args
    assert isinstance(args, Compact), errand.command
    upkeep, part = errand.upkeep, errand.command.part
    try:
        plan = yield from do("plan", lambda: _planned(errand, args, part))
    except WhereWrong as error:
        return Ended("refused", f"'where': {error}")
    except TableRefused as error:
        return Ended("refused", str(error))
    if args.dry_run:
        return Ended("succeeded", _dry_sentence(plan), _dry_result(plan))
    if part is None and upkeep.client is not None and plan.is_large:
        _keep(upkeep, errand.command.id, plan)
        ended = yield from _divide(errand, upkeep.client, sorted(plan.slots))
        return ended
    tally = Tally()
    for round_number in range(ROUNDS_MAX):
        tally.dropped = 0
        for slots in _together(plan, bins_at_once(upkeep, plan.policy.target_file_bytes)):
            yield from _compact_slots(errand, args, plan, slots, tally)
        if not tally.dropped or round_number == ROUNDS_MAX - 1:
            break
        plan = yield from do("plan", lambda: plan_compaction_of(upkeep, args, part))
    message = ""
    if tally.dropped:
        message = f"{tally.dropped} bins were left: others changed their files meanwhile"
    return Ended("succeeded", message, tally.result)


def _dry_sentence(plan: CompactionPlan) -> str:
    files = sum(len(each.files) for each in plan.bins)
    return f"{files} files in {len(plan.bins)} bins would be rewritten; nothing was changed"


def _dry_result(plan: CompactionPlan) -> dict[str, object]:
    return {
        "dry_run": True,
        "files_removed": sum(len(each.files) for each in plan.bins),
        "bytes_removed": sum(each.size_bytes for each in plan.bins),
        "bins": len(plan.bins),
        "table_partitions": len({each.values for each in plan.bins}),
    }


# --- planning: a job ------------------------------------------------------------------------------


def plan_compaction_of(upkeep: Upkeep, args: Compact, part: Part | None) -> CompactionPlan:
    """Return the bins that a command means, of the table as it is now.

    Raises:
        WhereWrong: the filter does not fit the table.
        TableRefused: there is no table, or it is none whose files this sink may replace.
    """
    log = upkeep.log
    for _ in range(ROUNDS_MAX):
        snapshot = read_snapshot(log)
        if snapshot is None:
            raise TableRefused("there is no table to compact: its log is empty")
        state = snapshot.state
        policy = policy_of(upkeep, args, state)
        schema = TableSchema.from_json(state.metadata.schema_string)
        like = file_layout(upkeep.settings, schema, state.metadata.partition_columns)
        layout = compaction_layout(state, like)
        if policy.order is not None:
            check_order(policy.order, layout.schema, layout.partition_by)
        where = None
        if args.where is not None:
            where = bind(parse_where(args.where), layout.schema, layout.partition_by).selects
        try:
            files = snapshot.files()
        except ObjectMissing:
            continue  # The checkpoint was cleaned up under us: there is a newer one.
        now_ms = log.clock.wall_ms()
        bins = plan_bins(files, layout.partition_by, policy, now_ms=now_ms, where=where)
        del snapshot, files
        # What planning took would stay in the process beside what rewriting takes.
        pa.default_memory_pool().release_unused()
        slots = _by_slot(bins, layout.partition_by, part)
        return CompactionPlan(state, Course(state, bins), layout, policy, slots)
    raise TableRefused("checkpoints came and went faster than they could be read: try again")


def _planned(errand: Errand, args: Compact, part: Part | None) -> CompactionPlan:
    """Return what a command or a part comes to; parts of one command are planned together.

    To plan is to read the table's whole state. A plan that was made some time ago is as good: what
    is no longer true of it is noticed before a commit, and planned anew.
    """
    upkeep = errand.upkeep
    if part is None:
        return plan_compaction_of(upkeep, args, None)
    found = upkeep.plans.get(part.parent)
    if not isinstance(found, CompactionPlan):
        found = plan_compaction_of(upkeep, args, None)
        _keep(upkeep, part.parent, found)
    bins = found.slots.get(part.slot)
    return replace(found, slots={} if bins is None else {part.slot: bins})


def _keep(upkeep: Upkeep, command_id: str, plan: CompactionPlan) -> None:
    """Keep the plan for the parts of this command, in place of another's."""
    upkeep.plans.clear()
    if sum(len(each.files) for each in plan.bins) <= PLAN_FILES_MAX:
        upkeep.plans[command_id] = plan


def policy_of(upkeep: Upkeep, args: Compact, state: LogState) -> CompactionPolicy:
    """Return what is worth rewriting: as the command says, else the table, else the file."""
    order: Order | None = None
    if args.sort_by:
        order = Order("sort", args.sort_by)
    elif args.zorder_by:
        order = Order("zorder", args.zorder_by)
    configured = upkeep.settings.compaction
    target = args.target_file_bytes or target_file_bytes(
        state.metadata, configured.target_file_bytes
    )
    return CompactionPolicy(target, quiet_ms=configured.quiet_ms, order=order)


def _by_slot(
    bins: Sequence[Bin], partition_by: Sequence[str], part: Part | None
) -> dict[int, tuple[Bin, ...]]:
    found: dict[int, list[Bin]] = {}
    for each in bins:
        slot = slot_of(partition_path(partition_by, each.values))
        if part is None or slot == part.slot:
            found.setdefault(slot, []).append(each)
    return {slot: tuple(several) for slot, several in found.items()}


# --- rewriting ------------------------------------------------------------------------------------


class _Underway(Struct):
    """A bin while it is rewritten; its `state` is where its inputs are known to be live.

    `begun_ms` is when its present step was begun.
    """

    steps: Iterator[Rewritten]
    state: LogState
    course: Course
    held: Held | None
    weight: Weight = field(default_factory=Weight)
    begun_ms: int = 0


def bins_at_once(upkeep: Upkeep, target_file_bytes: int) -> int:
    """Return how many bins are rewritten side by side: cores and memory allow so many."""
    room = upkeep.memory_bytes_max - BASE_BYTES
    by_memory = room // (target_file_bytes + ROW_GROUP_BYTES)
    return max(1, min(by_memory, upkeep.cores, upkeep.settings.compaction.threads_max))


def _together(plan: CompactionPlan, at_once: int) -> Iterator[list[int]]:
    """Yield slots, rising, as many together as it takes for `at_once` bins."""
    slots: list[int] = []
    count = 0
    for slot in sorted(plan.slots):
        slots.append(slot)
        count += len(plan.slots[slot])
        if count >= at_once:
            yield slots
            slots, count = [], 0
    if slots:
        yield slots


def _compact_slots(
    errand: Errand, args: Compact, plan: CompactionPlan, slots: Sequence[int], tally: Tally
) -> Steps[None]:
    """Rewrite the bins of these slots, each under its lease.

    Leases are taken in rising order by everybody: no two wait for each other.
    """
    upkeep = errand.upkeep
    keys = {slot: slot_key(upkeep.table_uri, slot) for slot in slots}
    held: dict[int, Held | None] = {}
    asked_ms = upkeep.log.clock.elapsed_ms()
    for slot, key in keys.items():
        held[slot] = yield from errand.hold(key)
    if upkeep.log.clock.elapsed_ms() - asked_ms >= FOLLOW_MS:
        # Somebody else had a slot until now: what was planned before may well be done.
        plan = yield from do("plan", lambda: plan_compaction_of(upkeep, args, None))
    bins = [(each, held[slot]) for slot in slots for each in plan.slots.get(slot, ())]
    yield from _rewrite_all(errand, plan, bins, tally)
    for key in keys.values():
        yield from errand.let_go(key)


def _rewrite_all(
    errand: Errand, plan: CompactionPlan, bins: Sequence[tuple[Bin, Held | None]], tally: Tally
) -> Steps[None]:
    """Rewrite bins, several side by side; a step is committed while the other bins go on."""
    upkeep, waiting = errand.upkeep, list(reversed(bins))
    weights = [Weight() for _ in range(bins_at_once(upkeep, plan.policy.target_file_bytes))]
    running: list[tuple[_Underway, Job[Rewritten | object | None]]] = []
    due_ms = 0
    try:
        while waiting or running:
            yield from errand.go_on()
            while waiting and weights:
                each = _begun(upkeep, plan, *waiting.pop(), weights.pop())
                running.append((each, (yield from _next_begun(upkeep, each))))
            yield from first_of([job for _, job in running])
            each, job = running.pop(next(i for i, (_, job) in enumerate(running) if job.is_done()))
            step = job.result()
            if isinstance(step, Rewritten) and (yield from _commit(errand, each, step, tally)):
                bytes_read = sum(file.size_bytes for file in step.inputs)
                due_ms = yield from _slow_down(upkeep, bytes_read, max(due_ms, each.begun_ms))
                running.append((each, (yield from _next_begun(upkeep, each))))
            else:
                tally.dropped += step is not None
                weights.append(each.weight)
    except Exception:
        for _, job in running:  # leases are given back when nobody rewrites under them any more
            yield from first_of([job])
        raise


def _begun(
    upkeep: Upkeep, plan: CompactionPlan, planned: Bin, held: Held | None, weight: Weight
) -> _Underway:
    steps = rewrite_bin(
        upkeep.log,
        planned,
        plan.layout,
        state=plan.state,
        target_file_bytes=plan.policy.target_file_bytes,
        order=plan.policy.order,
        weight=weight,
    )
    return _Underway(steps, plan.state, plan.course, held, weight)


_DROPPED: Final = object()


def _next_begun(upkeep: Upkeep, underway: _Underway) -> Steps[Job[Rewritten | object | None]]:
    underway.begun_ms = upkeep.log.clock.elapsed_ms()
    return begin("rewrite", partial(_next, underway))


def _next(underway: _Underway) -> Rewritten | object | None:
    """Return the bin's next step, None at its end, or `_DROPPED`: an input is gone. A job."""
    try:
        return next(underway.steps, None)
    except ObjectMissing:
        return _DROPPED


def _commit(errand: Errand, underway: _Underway, step: Rewritten, tally: Tally) -> Steps[bool]:
    """Return whether a step is in the log, so that its bin may go on."""
    yield from errand.go_on()
    upkeep, author = errand.upkeep, errand.author(underway.held)
    try:
        done = yield from do("commit", lambda: _committed(upkeep, underway, step, author))
    except FencedError as error:
        upkeep.log.telemetry.event("compaction_dropped", "info", reason=str(error))
        return False
    underway.state = done.state
    tally.take(done)
    count = upkeep.log.telemetry.count
    count("delta_sink_compaction_bytes_total", done.bytes_removed, direction="read")
    count("delta_sink_compaction_bytes_total", done.bytes_added, direction="written")
    if tally.commits % PROGRESS_COMMITS == 0:
        yield from errand.tell("progress", "", tally.result)
    return True


def _committed(upkeep: Upkeep, underway: _Underway, step: Rewritten, author: Author) -> Compacted:
    """Return once a step is in the log, from the newest state that the plan's bins have reached."""
    course = underway.course
    state = course.live_at(step.inputs, underway.state)
    done = commit_rewritten(course.listen(upkeep.log), state, step, author)
    course.reach(done.state)
    return done


def _slow_down(upkeep: Upkeep, bytes_read: int, began_ms: int) -> Steps[int]:
    """Wait so long that the budget of bytes read a second is kept; return when that is.

    Time in which nothing was read, as in a pause, is not made up for later.
    """
    per_second_max = upkeep.settings.compaction.bytes_per_s_max
    if per_second_max is None:
        return 0
    due_ms = began_ms + 1_000 * bytes_read // per_second_max
    spare_ms = due_ms - upkeep.log.clock.elapsed_ms()
    if spare_ms > 0:
        yield Rest(spare_ms)
    return due_ms


# --- dividing -------------------------------------------------------------------------------------


def _divide(errand: Errand, client: ControlClient, slots: Sequence[int]) -> Steps[Ended]:
    """Return what became of a command whose slots are work items of the group."""
    items = [
        part_of(errand.command, Part(errand.command.id, index, len(slots), slot))
        for index, slot in enumerate(slots)
    ]
    offsets = yield from do("follow", lambda: recent_offsets(client))
    # Their own ids are their keys, so that they spread over the topic's partitions.
    records = [
        OutgoingRecord(item.id.encode(), encode_command(item, client.signer)) for item in items
    ]
    yield from do("divide", lambda: client.producer.send(client.topic, records))
    yield from errand.tell("progress", f"divided into {len(items)} parts")
    yield Turn(give_back=True)
    final = yield from _followed(errand, client, {item.id for item in items}, offsets)
    return summary(items, final)


def part_of(command: Command, part: Part) -> Command:
    """Return a work item of `command`; made again for the same slot, it has the same id."""
    return replace(command, id=f"{command.id[:120]}.{part.slot:02d}", part=part)


def _followed(
    errand: Errand, client: ControlClient, ids: set[str], offsets: dict[TopicPartition, int]
) -> Steps[dict[str, Outcome]]:
    """Return the final outcome of each part; those that have none when the command expires lack."""
    final: dict[str, Outcome] = {}
    clock = errand.upkeep.log.clock
    expiry_ms = errand.command.expiry_ms
    while True:
        yield from errand.go_on()
        try:
            found = yield from do("follow", lambda: list(newer_outcomes(client, offsets)))
        except RetriableError:
            found = []
        for outcome in found:
            if outcome.id in ids and outcome.is_final:
                final.setdefault(outcome.id, outcome)
        is_too_late = expiry_ms is not None and clock.wall_ms() > expiry_ms + EXPIRY_GRACE_MS
        if is_too_late or not ids - final.keys():
            return final
        yield Rest(FOLLOW_MS)


def summary(items: Sequence[Command], final: Mapping[str, Outcome]) -> Ended:
    """Return the outcome of the whole from those of its parts: figures add up, one bad is bad."""
    result = Tally().result
    for outcome in final.values():
        for name in result:
            value = outcome.result.get(name)
            if type(value) is int:
                result[name] += value  # type: ignore[operator]  # a Tally holds whole numbers
    result["parts"] = len(items)
    missing = [item.id for item in items if item.id not in final]
    if missing:
        return Ended("failed", f"{len(missing)} of {len(items)} parts had no outcome", result)
    bad = [outcome for outcome in final.values() if outcome.state != "succeeded"]
    if bad:
        sentence = f"{len(bad)} of {len(items)} parts did not succeed: {bad[0].message}"
        return Ended("failed", sentence, result)
    return Ended("succeeded", "", result)


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint(errand: Errand) -> Steps[Ended]:
    """Return what became of a `checkpoint` command."""
    args = errand.command.args
    assert isinstance(args, Checkpoint), errand.command
    upkeep = errand.upkeep
    if args.dry_run:
        state = yield from do("open", lambda: open_log(upkeep.log))
        if state is None:
            return Ended("refused", "there is no table: its log is empty")
        return Ended("succeeded", "", {"dry_run": True, "version": state.version})
    yield from errand.hold(lease_key(upkeep.table_uri, "checkpoint"))
    written = yield from do("checkpoint", lambda: write_checkpoint(upkeep.log))
    if written is None:
        return Ended("refused", "there is no table: its log is empty")
    message = "" if written.is_ours else "it was there already"
    result = {name: getattr(written, name) for name in CHECKPOINT_FIGURES}
    return Ended("succeeded", message, result)
