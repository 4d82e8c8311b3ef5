"""What a plan's bins share of the log: read once, and nothing of theirs is overlooked."""

from collections import Counter

import pytest
from msgspec.structs import replace

from delta_sink.delta.actions import Add, Remove
from delta_sink.delta.checkpoint_write import write_checkpoint
from delta_sink.delta.compaction import commit_rewritten
from delta_sink.delta.course import Course
from delta_sink.errors import CommitConflict
from tests.unit.maintained import P0, P1
from tests.unit.test_compaction import WORKER, filled, planned, rewritten

SMALL = 2_500
"""A target so small that each table partition gets several bins."""


def several(table):
    """Return a state, and several bins with their steps."""
    state, bins = planned(table, SMALL, bin_files_max=2)
    assert len(bins) >= 6
    return state, [(one, rewritten(table, state, one, 10**6)) for one in bins]


def commit_all(table, course, state, steps, *, between=lambda: None):
    """Commit as a compactor does: each bin knows only the state from which it was planned."""
    for one, of_bin in steps:
        at = state
        for step in of_bin:
            live = course.live_at(one.files, at)
            done = commit_rewritten(course.listen(table.log), live, step, WORKER)
            course.reach(done.state)
            at = done.state
            between()


def reads_of_entries(table):
    return Counter(
        path for kind, path in table.store.asked if kind == "get" and path.endswith(".json")
    )


def test_entries_are_read_once_for_all_bins(tmp_path):
    table = filled()
    before = table.read(tmp_path / "a")
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    table.append(8, P0)
    table.store.asked.clear()
    commit_all(table, course, state, steps)
    reads = reads_of_entries(table)
    assert reads.total() <= 1, reads  # the append's; what the bins commit nobody reads
    found = table.read(tmp_path / "b")
    assert sum(found.values()) == sum(before.values()) + 8


def test_appends_meanwhile_are_heard_in_order(tmp_path):
    table = filled()
    before = table.read(tmp_path / "a")
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    heard = []
    commit_all(table, course, state, steps, between=lambda: heard.append(table.append(8, P1)))
    assert len(heard) >= 6
    assert sum(table.read(tmp_path / "b").values()) == sum(before.values()) + 8 * len(heard)


def test_an_input_that_was_removed_while_another_bin_was_committed_is_missed():
    table = filled()
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    victim = steps[-1][0].files[0]
    table.foreign(Remove(victim.path, deletion_timestamp=1))
    commit_all(table, course, state, steps[:-1])
    with pytest.raises(CommitConflict, match=r"version \d+ removed or changed .* being compacted"):
        course.live_at(steps[-1][0].files, state)


def test_an_input_that_was_added_anew_is_another_file():
    table = filled()
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    victim = steps[-1][0].files[0]
    table.foreign(
        Add(victim.path, dict(victim.partition_values), victim.size_bytes, 1, data_change=False)
    )
    commit_all(table, course, state, steps[:-1])
    with pytest.raises(CommitConflict, match="removed or changed"):
        course.live_at(steps[-1][0].files, state)


def test_another_bin_has_its_inputs_still():
    table = filled()
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    table.foreign(Remove(steps[-1][0].files[0].path, deletion_timestamp=1))
    commit_all(table, course, state, steps[:2])
    assert course.live_at(steps[2][0].files, state).version > state.version + 1


def test_behind_a_gap_each_bin_goes_by_itself(tmp_path):
    """The log jumps behind a checkpoint: what was not heard is looked up, for each bin."""
    table = filled()
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    commit_all(table, course, state, steps[:1])
    victim = steps[-1][0].files[0]
    table.foreign(Remove(victim.path, deletion_timestamp=1))
    table.append(8, P0)
    write_checkpoint(table.log)
    table.append(8, P0)
    table.clock.now_ms += 600_000
    before = table.read(tmp_path / "a")
    commit_all(table, course, state, steps[1:-1])
    with pytest.raises(CommitConflict):
        commit_all(table, course, state, steps[-1:])
    assert table.read(tmp_path / "b") == before


def test_what_is_told_again_changes_nothing():
    table = filled()
    state, steps = several(table)
    course = Course(state, [one for one, _ in steps])
    commit_all(table, course, state, steps[:1])
    reached = course.live_at(steps[1][0].files, state)
    commit_rewritten(course.listen(table.log), state, steps[1][1][0], WORKER)  # from the beginning
    assert course.live_at(steps[2][0].files, state) == reached
    commit_all(table, course, state, steps[2:])


def test_others_hear_as_well():
    table = filled()
    state, steps = several(table)
    told = []
    log = Course(state, []).listen(replace(table.log, heard=told.append))
    commit_rewritten(log, state, steps[0][1][0], WORKER)
    assert [entry.version for entry in told] == [state.version + 1]
