"""Vacuum deletes what nothing needs, and nothing that a paused writer can still commit."""

import json

import msgspec
import pyarrow as pa
import pytest

from delta_sink.audit import audit_log
from delta_sink.delta.actions import Add, Remove
from delta_sink.delta.checkpoint_write import write_checkpoint
from delta_sink.delta.commit import commit, follow, open_log
from delta_sink.delta.conditions import FenceBelow, FenceReached
from delta_sink.delta.logstore import ConditionalPutLog, entry_path, listing_of
from delta_sink.delta.parquet import file_name
from delta_sink.delta.store_time import store_now_ms, version_before
from delta_sink.delta.vacuum import (
    DeletionRule,
    Retention,
    delete_planned,
    plan_vacuum,
    raise_fence,
    referenced_paths,
)
from delta_sink.errors import CommitConflict, StoreRefused, StoreUnavailable, TableRefused
from delta_sink.model import VACUUM_APP_ID
from delta_sink.ports import ObjectInfo
from tests.unit.maintained import AUTHOR, DAY_MS, HOUR_MS, P0, P1, Killed, Maintained
from tests.unit.scripted import after, lost_after, lost_before, refused
from tests.unit.test_compaction import compact, filled, with_vectors

WEEK = Retention(7 * DAY_MS, 0, 7 * DAY_MS)
NOTHING = Retention(0, 0, 7 * DAY_MS)


def vacuum(table, retention=WEEK, *, dry_run=False, **options):
    plan = plan_vacuum(table.log, retention, AUTHOR, dry_run=dry_run)
    return plan, delete_planned(table.log, plan, AUTHOR, **options)


def data_files(table):
    return {path for path in table.store.objects if path.endswith(".parquet") and path[0] != "_"}


def compacted(versions=4):
    """Return a table whose small files were compacted more than a week ago."""
    table = filled(versions)
    compact(table)
    table.clock.now_ms += 8 * DAY_MS
    table.append(4, P0)
    return table


# --- what goes and what stays ---------------------------------------------------------------------


def test_removed_files_go_and_rows_stay(tmp_path):
    table = compacted()
    before = table.read(tmp_path / "a")
    plan, done = vacuum(table)
    assert (done.files_deleted, done.is_complete) == (16, True)
    assert done.bytes_deleted == plan.size_bytes > 0
    assert table.read(tmp_path / "b") == before
    assert len(data_files(table)) == 2 + 2
    assert open_log(table.log).vacuum_fence == plan.fence
    assert audit_log(table.log, AUTHOR.sink).ok
    again, done = vacuum(table)
    assert done.files_deleted == 0
    assert again.fence == plan.fence


def test_every_version_inside_the_retention_can_still_be_read(tmp_path):
    table = filled(3)
    compact(table)
    table.clock.now_ms += 5 * DAY_MS
    table.append(6, P1)
    compact(table)
    table.clock.now_ms += 3 * DAY_MS
    table.append(6, P1)
    before = {v: table.read(tmp_path / "a", v) for v in range(table.state.version + 1)}
    plan, done = vacuum(table)
    assert done.files_deleted == 12
    head = plan.through
    for version in range(plan.fence, head):
        assert table.read(tmp_path / f"b{version}", version) == before[version]
    with pytest.raises(Exception, match=r"(?i)not found|no such file"):
        table.read(tmp_path / "c", plan.fence - 3)


def test_young_versions_keep_what_they_need(tmp_path):
    table = filled(3)
    table.clock.now_ms += 8 * DAY_MS
    compact(table)  # the small files were still live a moment ago
    table.clock.now_ms += HOUR_MS
    plan, done = vacuum(table)
    assert (plan.files, done.files_deleted) == ((), 0)
    assert plan.fence is not None


def test_a_table_that_is_younger_than_the_retention():
    table = filled(2)
    table.encode(5, P0)  # an orphan
    plan, done = vacuum(table)
    assert (plan.fence, plan.files, done.files_deleted) == (None, (), 0)
    assert open_log(table.log).vacuum_fence == -1


def test_orphans_of_ours_go_by_their_tag():
    table = filled(2)
    orphan = table.encode(5, P0).files[0]  # uploaded, and its writer died
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P0)
    young = table.encode(5, P0).files[0]
    plan, _ = vacuum(table)
    assert not table.exists(orphan.path)
    assert table.exists(young.path)
    assert [info.path for info in plan.files if "day=" not in info.path] == []


def test_files_of_other_engines_go_by_the_stores_time():
    table = compacted()
    foreign = {name: f"day=2026-11-01/{name}" for name in ("old.parquet", "new.parquet")}
    for name, path in foreign.items():
        table.store.store(path, b"x")
        if name.startswith("old"):
            table.store.modified[path] -= 8 * DAY_MS
    old_vector = "deletion_vector_00010203-0405-0607-0809-0a0b0c0d0e0f.bin"
    table.store.store(old_vector, b"x")
    table.store.modified[old_vector] -= 8 * DAY_MS
    vacuum(table)
    assert not table.exists(foreign["old.parquet"])
    assert table.exists(foreign["new.parquet"])
    assert not table.exists(old_vector)


def test_a_vector_that_a_version_refers_to_stays(tmp_path):
    table = filled(2)
    with_vectors(table, [0, 1], stored=True)
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P0)
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P0)
    before = table.read(tmp_path / "a")
    for path in list(table.store.modified):
        table.store.modified[path] -= 0
    _, done = vacuum(table)
    assert done.files_deleted == 0
    assert table.read(tmp_path / "b") == before
    compact(table)
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P0)
    plan, _ = vacuum(table)
    assert any(info.path.startswith("dv/deletion_vector_") for info in plan.files)


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        ("a.parquet", True),
        ("x/y/a.c000.snappy.parquet", True),
        ("_kafka_topic=orders/a.parquet", True),
        ("deletion_vector_00010203-0405-0607-0809-0a0b0c0d0e0f.bin", True),
        (file_name(5, "0" * 32, "zstd"), True),
        (file_name(6, "0" * 32, "zstd"), False),
        ("_delta_log/00000000000000000000.checkpoint.parquet", False),
        ("_delta_log/" + file_name(1, "0" * 32, "zstd"), False),
        ("_delta_sink/a.parquet", False),
        ("_change_data/a.parquet", False),
        ("_day=1/a.parquet", False),
        (".hidden/a.parquet", False),
        ("day=1/_a.parquet", False),
        ("day=1/.a.parquet", False),
        ("README.md", False),
        ("deletion_vector_x.bin", False),
    ],
)
def test_which_objects_may_go(path, goes):
    rule = DeletionRule(5, 1_000, ("day", "_kafka_topic"))
    assert rule.allows(ObjectInfo(path, 1, 999, "")) is goes
    if "part-" not in path:
        assert not rule.allows(ObjectInfo(path, 1, 1_000, ""))


def test_a_table_partitioned_by_a_metadata_column():
    table = Maintained(partition_by=("_kafka_topic",))
    table.append(5, P0)
    orphan = table.encode(5, P0).files[0]
    assert orphan.path.startswith("_kafka_topic=")
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P0)
    vacuum(table)
    assert not table.exists(orphan.path)


# --- the fence ------------------------------------------------------------------------------------


def test_a_writer_that_was_paused_for_a_month_cannot_commit_a_deleted_file(tmp_path):
    table = filled(2)
    paused = table.encode(9, P0)
    plan = table.plan(paused)
    known = table.state
    table.clock.now_ms += 30 * DAY_MS
    table.append(3, P1)  # life goes on
    vacuum(table)
    assert not table.exists(paused.files[0].path)
    before = table.read(tmp_path / "a")
    with pytest.raises(CommitConflict, match="behind vacuum's fence"):
        commit(table.log, known, plan)
    assert table.read(tmp_path / "b") == before


def test_with_no_retention_at_all_an_upload_in_flight_is_safe(tmp_path):
    """The file is deleted; its commit is refused, and a new upload under a new tag goes in."""
    table = filled(2)
    flying = table.encode(9, P0)
    plan = table.plan(flying)
    table.clock.now_ms += 1_000
    _, done = vacuum(table, NOTHING)
    assert done.files_deleted == 2
    with pytest.raises(CommitConflict):
        commit(table.log, table.state, plan)
    table.reopen()
    table.append(9, P0)
    assert sum(table.read(tmp_path / "b").values()) == 70 + 9


def test_what_landed_before_the_fence_is_kept(tmp_path):
    """An append that lands between the choice of W and the fence is read, for the log is read last."""
    table = filled(2)
    flying = table.encode(9, P0)
    plan = table.plan(flying)
    table.offsets[P0] += 9
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P1)
    table.reopen()
    landed = []

    def land():
        if not landed:
            landed.append(commit(table.worker(), open_log(table.log), plan))

    table.store.script("put_if_absent", lambda honest: (land(), honest())[1])
    _, done = vacuum(table)
    assert landed
    assert done.files_deleted == 0
    assert sum(table.read(tmp_path / "a").values()) == 70 + 9 + 3


def test_listing_the_log_before_the_fence_would_lose_rows(tmp_path, monkeypatch):
    """The mutant: references are read up to the version at which vacuum began."""
    import delta_sink.delta.vacuum as module

    table = filled(2)
    flying = table.encode(9, P0)
    plan = table.plan(flying)
    table.offsets[P0] += 9
    table.clock.now_ms += 8 * DAY_MS
    table.append(3, P1)
    table.reopen()
    began = table.state.version
    honest_read = module.referenced_paths
    monkeypatch.setattr(
        module,
        "referenced_paths",
        lambda log, *, first, through: honest_read(log, first=first, through=began),
    )
    land = lambda honest: (commit(table.worker(), open_log(table.log), plan), honest())[1]  # noqa: E731
    table.store.script("put_if_absent", land)
    vacuum(table)
    assert not table.exists(flying.files[0].path)


def test_a_fence_never_falls():
    table = filled(6)
    table.clock.now_ms += 8 * DAY_MS
    state = raise_fence(table.log, open_log(table.log), 5, AUTHOR)
    assert state.vacuum_fence == 5
    lower = raise_fence(table.log, state, 3, AUTHOR)
    assert (lower.vacuum_fence, lower.version) == (5, state.version)
    with pytest.raises(FenceReached, match="fence is at 5, wanted to raise it to 5"):
        FenceBelow(5).check(state, None)
    assert raise_fence(table.log, state, 6, AUTHOR).vacuum_fence == 6


def test_two_vacuums_at_once(tmp_path):
    table = compacted()
    before = table.read(tmp_path / "a")
    other = plan_vacuum(table.worker(), WEEK, AUTHOR, dry_run=False)
    plan = plan_vacuum(table.log, WEEK, AUTHOR, dry_run=False)
    assert {i.path for i in plan.files} == {i.path for i in other.files}
    delete_planned(table.log, plan, AUTHOR)
    delete_planned(table.worker(), other, AUTHOR)
    assert table.read(tmp_path / "b") == before
    assert len(data_files(table)) == 4


def test_the_fence_of_another_that_lands_first():
    table = compacted()
    state = open_log(table.log)
    theirs = lambda: raise_fence(table.worker(), open_log(table.log), 4, AUTHOR)  # noqa: E731
    table.store.script("put_if_absent", lambda honest: (theirs(), honest())[1])
    mine = raise_fence(table.log, state, 4, AUTHOR)
    assert (mine.vacuum_fence, mine.version) == (4, state.version + 1)


# --- the stores own time --------------------------------------------------------------------------


@pytest.mark.parametrize("skew_ms", [-40 * DAY_MS, HOUR_MS, 40 * DAY_MS])
def test_the_workers_clock_decides_nothing(skew_ms):
    table = filled(2)
    table.store.skew_ms = 0
    orphan = table.encode(5, P0).files[0]
    moved = table.clock.wall_ms
    table.clock.wall_ms = lambda: moved() + skew_ms
    table.store.skew_ms = -skew_ms  # the store's own clock goes on as it did
    table.clock.now_ms += 6 * DAY_MS
    plan, _ = vacuum(table)
    assert (plan.fence, table.exists(orphan.path)) == (None, True)
    table.clock.now_ms += 2 * DAY_MS
    vacuum(table)
    assert not table.exists(orphan.path)


def test_the_time_of_the_store_is_read_off_a_fresh_object():
    table = filled(1)
    table.store.skew_ms = 5_000_000
    assert store_now_ms(table.log) == table.clock.wall_ms() + 5_000_000
    table.store.script("put", lost_after, lost_before)
    table.store.script("list", lost_before)
    slept = len(table.clock.slept_ms)
    store_now_ms(table.log)
    assert len(table.clock.slept_ms) == slept + 3


def listing(entries, checkpoints=()):
    objects = [ObjectInfo(entry_path(v), 1, at, "e") for v, at in entries.items()]
    objects += [
        ObjectInfo(f"_delta_log/{v:020d}.checkpoint.parquet", 1, 0, "e") for v in checkpoints
    ]
    return listing_of(objects)


@pytest.mark.parametrize(
    ("entries", "checkpoints", "wanted"),
    [
        ({}, (), None),
        ({0: 10, 1: 20, 2: 30}, (), 1),  # 25 is the cut-off
        ({0: 30}, (), None),
        ({0: 1, 1: 2}, (), 1),
        ({5: 10, 6: 20, 7: 30}, (), None),  # nothing to come to 6 from
        ({5: 10, 6: 20, 7: 30}, (5,), 6),
        ({5: 10, 6: 20, 7: 30}, (4,), 6),
        ({5: 10, 6: 20, 7: 30}, (3,), None),
        ({5: 10, 6: 20, 7: 30}, (7,), None),
        ({1: 5, 2: 6, 4: 10, 5: 20, 6: 30}, (2, 4), 5),
        ({1: 5, 2: 6, 4: 30, 5: 31}, (2, 4), None),  # the chain is broken at 3
        ({0: 10, 1: 30, 2: 20, 3: 40}, (), 2),  # 1 was stored late: it is older than 2 all the same
    ],
)
def test_the_newest_version_before_a_time(entries, checkpoints, wanted):
    assert version_before(listing(entries, checkpoints), 25) == wanted


# --- behind checkpoints and clean-ups -------------------------------------------------------------


def test_behind_a_checkpoint(tmp_path):
    table = compacted()
    write_checkpoint(table.log, 9)
    for version in range(9):
        table.store.delete(entry_path(version))
    before = table.read(tmp_path / "a")
    _, done = vacuum(table)
    assert done.files_deleted == 16
    assert table.read(tmp_path / "b") == before


def test_a_log_that_is_cleaned_up_while_it_is_read():
    table = compacted()
    head = table.state.version
    read = ConditionalPutLog.read
    table.log.entries.read = lambda version: (
        None if version == head else read(table.log.entries, version)
    )
    with pytest.raises(CommitConflict, match="was cleaned up while vacuum read the log"):
        referenced_paths(table.log, first=head - 1, through=head)


# --- refusals -------------------------------------------------------------------------------------


def test_the_floor_of_the_workers_own_configuration():
    with pytest.raises(TableRefused, match=r"retention of 1 hours .* allows 168 at least"):
        Retention(HOUR_MS, 7 * DAY_MS, 7 * DAY_MS)


def test_files_outside_of_the_table_are_refused():
    table = compacted()
    table.foreign(Add("s3://elsewhere/x.parquet", {"day": None}, 1, 1, data_change=True))
    with pytest.raises(TableRefused, match="outside the table"):
        vacuum(table)
    assert len(data_files(table)) == 16 + 4


def test_tables_that_this_sink_does_not_implement():
    table = compacted()
    configuration = {**table.state.metadata.configuration, "delta.enableRowTracking": "true"}
    table.foreign(msgspec.structs.replace(table.state.metadata, configuration=configuration))
    with pytest.raises(TableRefused, match="row tracking"):
        vacuum(table)
    table.store.objects.clear()
    with pytest.raises(TableRefused, match="no table to vacuum"):
        plan_vacuum(table.log, WEEK, AUTHOR, dry_run=True)


def test_a_dry_run_changes_nothing_and_says_what_would_go():
    table = compacted()
    table.store.script("put", lambda honest: honest())
    stored = {p: v for p, v in table.store.objects.items() if not p.startswith("_delta_sink")}
    plan = plan_vacuum(table.log, WEEK, AUTHOR, dry_run=True)
    assert (len(plan.files), plan.dry_run) == (16, True)
    left = {p: v for p, v in table.store.objects.items() if not p.startswith("_delta_sink")}
    assert left == stored
    with pytest.raises(AssertionError, match="dry run has put up no fence"):
        delete_planned(table.log, plan, AUTHOR)
    assert plan.size_bytes == vacuum(table)[1].bytes_deleted


# --- how it is done -------------------------------------------------------------------------------


def operations(table):
    found = []
    for version in range(table.state.version, open_log(table.log).version + 1):
        for line in table.store.objects[entry_path(version)][0].splitlines():
            action = json.loads(line)
            if "commitInfo" in action:
                found.append(action["commitInfo"])
    return found[1:]


def test_the_log_says_when_it_began_and_ended(tmp_path):
    table = compacted()
    plan, done = vacuum(table)
    fence, start, end = operations(table)
    assert (fence["operation"], fence["operationParameters"]) == (
        "VACUUM FENCE",
        {"fence": str(plan.fence)},
    )
    assert start["operation"] == "VACUUM START"
    assert start["operationParameters"] == {
        "retentionCheckEnabled": "true",
        "specifiedRetentionMillis": str(7 * DAY_MS),
        "defaultRetentionMillis": str(7 * DAY_MS),
    }
    assert start["operationMetrics"] == {
        "numFilesToDelete": "16",
        "sizeOfDataToDelete": str(done.bytes_deleted),
    }
    assert end["operationParameters"] == {"status": "COMPLETED"}
    assert end["operationMetrics"] == {"numDeletedFiles": "16", "numVacuumedDirectories": "2"}
    history = table.delta(tmp_path).history(3)
    assert [h["operation"] for h in history] == ["VACUUM END", "VACUUM START", "VACUUM FENCE"]
    assert table.delta(tmp_path).transaction_version(VACUUM_APP_ID) == plan.fence
    audit = audit_log(table.log, AUTHOR.sink)
    assert (audit.ok, audit.commits.vacuum) == (True, 3)


def test_it_stops_when_asked_and_goes_on_later():
    table = Maintained()
    table.append(5, P0)
    for number in range(250):
        table.store.store(f"day=2026-11-01/{number}.parquet", b"xx")
    table.clock.now_ms += 8 * DAY_MS
    table.append(5, P0)
    told = []
    stops = iter([False, True])
    _, done = vacuum(
        table,
        should_stop=lambda: next(stops),
        on_progress=lambda files, size_bytes: told.append((files, size_bytes)),
    )
    assert (done.files_deleted, done.bytes_deleted, done.is_complete) == (100, 200, False)
    assert told == [(100, 200)]
    assert operations(table)[-1]["operationParameters"] == {"status": "FAILED"}
    _, done = vacuum(table)
    assert (done.files_deleted, done.is_complete) == (150, True)


def test_it_does_not_delete_faster_than_it_may():
    table = Maintained()
    table.append(5, P0)
    for number in range(250):
        table.store.store(f"{number}.parquet", b"xx")
    table.clock.now_ms += 8 * DAY_MS
    table.append(5, P0)
    plan = plan_vacuum(table.log, WEEK, AUTHOR, dry_run=False)
    began = table.clock.now_ms
    delete_planned(table.log, plan, AUTHOR, per_second_max=10)
    assert table.clock.now_ms - began == 25_000


@pytest.mark.parametrize("moment", ["before", "after"])
def test_it_may_die_at_every_write(tmp_path, moment):
    clean = compacted(2)
    first = clean.store.writes
    vacuum(clean)
    wanted = data_files(clean)
    steps = clean.store.writes - first
    assert steps > 8
    for step in range(1, steps + 1):
        table = compacted(2)
        table.store.kill_at = (table.store.writes + step, moment)
        with pytest.raises(Killed):
            vacuum(table)
        table.store.kill_at = None
        assert sum(table.read(tmp_path / f"a{step}").values()) == 74
        assert audit_log(table.log, AUTHOR.sink).ok
        vacuum(table)
        assert data_files(table) == wanted
        assert sum(table.read(tmp_path / f"b{step}").values()) == 74


def test_deletions_are_repeated_and_refusals_are_final():
    table = compacted()
    table.store.script("delete", lost_after, lost_before)
    _, done = vacuum(table)
    assert done.files_deleted == 16
    other = compacted()
    other.store.script("delete", refused)
    with pytest.raises(StoreRefused):
        vacuum(other)
    silent = compacted()
    silent.store.script("delete", *[lost_before] * 50)
    with pytest.raises(StoreUnavailable):
        vacuum(silent)


def test_others_may_append_all_the_while(tmp_path):
    table = compacted()
    table.store.script("delete", *[after(lambda: table.append(2, P1))] * 5)
    vacuum(table)
    assert sum(table.read(tmp_path / "a").values()) == 4 * 35 + 4 + 10
    assert follow(table.log, table.state).version == open_log(table.log).version


def test_removes_without_a_file_and_files_never_added():
    table = compacted()
    table.foreign(Remove("day=2026-11-01/never.parquet", deletion_timestamp=1))
    referenced = referenced_paths(table.log, first=2, through=table.state.version)
    assert isinstance(referenced, pa.ChunkedArray)
    assert "day=2026-11-01/never.parquet" not in referenced.to_pylist()
