"""Log clean-up: what may go, in which order, and that the audit proves the same afterwards."""

import json

import msgspec
import pyarrow.parquet as pq
import pytest

from delta_sink.audit import audit_log, write_anchor
from delta_sink.audit_anchor import anchor_path, chosen_anchor, decode_anchor
from delta_sink.delta.actions import Txn
from delta_sink.delta.checkpoint_write import write_checkpoint
from delta_sink.delta.cleanup import clean_log, log_retention_ms, plan_cleanup
from delta_sink.delta.commit import commit, open_log
from delta_sink.delta.logstore import LAST_CHECKPOINT_PATH, entry_path
from delta_sink.delta.plan import Plan
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt, partition_receipt
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.delta.table import Author, commit_info
from delta_sink.delta.vacuum import raise_fence
from delta_sink.errors import CommitConflict, StoreRefused, StoreUnavailable, TableRefused
from delta_sink.model import AppId, OffsetRange
from tests.unit.maintained import AUTHOR, DAY_MS, HOUR_MS, P0, P1, Killed, Maintained
from tests.unit.scripted import lost_after, lost_before, refused
from tests.unit.test_compaction import compact
from tests.unit.test_snapshot import checkpointed, in_sidecars

WEEK_MS = 7 * DAY_MS
LOG = "_delta_log/"


def clean(table, *, vacuum_retention_ms=WEEK_MS, **options):
    plan = plan_cleanup(table.log, vacuum_retention_ms=vacuum_retention_ms)
    options.setdefault("fold", lambda version: write_anchor(table.log, version))
    return plan, clean_log(table.log, plan, **options)


def entries(table):
    return sorted(
        int(path[11:31])
        for path in table.store.objects
        if path.startswith(LOG) and len(path) == len(entry_path(0)) and path.endswith(".json")
    )


def checkpoints(table):
    return sorted(int(p[11:31]) for p in table.store.objects if ".checkpoint." in p)


def aged(*, days=12, properties=None):
    """Return a table with three appends and a checkpoint on each of `days` days."""
    properties = {"delta.logRetentionDuration": "interval 7 days"} | (properties or {})
    table = Maintained(properties=properties)
    for day in range(days):
        for _ in range(2):
            table.append(4, P0, apart_ms=HOUR_MS)
        table.append(3, P1, apart_ms=HOUR_MS)
        if day % 2 == 0:
            write_checkpoint(table.log)
        table.clock.now_ms += DAY_MS - 3 * HOUR_MS
    return table


# --- what goes ------------------------------------------------------------------------------------


def test_old_entries_go_and_nothing_else_changes(tmp_path):
    table = aged()
    before = table.read(tmp_path / "a")
    txns = open_log(table.log).txns
    audit = audit_log(table.log, AUTHOR.sink)
    head = table.state.version
    plan, done = clean(table)
    assert done.is_complete
    assert done.objects_removed == len(plan.objects) > 10
    assert entries(table) == list(range(plan.keep_from, head + 1))
    assert min(checkpoints(table)) == plan.keep_from
    assert table.read(tmp_path / "b") == before
    state = open_log(table.log)
    assert (state.version, state.txns) == (head, txns)
    found = audit_log(table.log, AUTHOR.sink)
    assert found == audit
    assert found.proven
    assert all(part.offset_first == 0 for part in found.partitions)
    for version in range(plan.keep_from, head + 1):
        read_snapshot(table.log, version)
    assert clean(table)[1].objects_removed == 0


def ages(table):
    now_ms = table.clock.wall_ms()
    return {v: now_ms - table.store.modified[entry_path(v)] for v in entries(table)}


@pytest.mark.parametrize(
    ("log_days", "vacuum_ms"), [(1, WEEK_MS), (7, DAY_MS), (7, WEEK_MS), (1, HOUR_MS), (30, DAY_MS)]
)
def test_no_entry_goes_that_is_young_or_needed(log_days, vacuum_ms):
    table = aged(properties={"delta.logRetentionDuration": f"interval {log_days} days"})
    before = ages(table)
    plan, _ = clean(table, vacuum_retention_ms=vacuum_ms)
    gone = set(before) - set(entries(table))
    if plan.keep_from is None:
        assert gone == set()
        assert log_days == 30
        return
    assert gone == set(range(plan.keep_from))
    assert min(before[v] for v in gone) > max(DAY_MS, log_days * DAY_MS)
    # What vacuum may choose as its W, and everything after it, can be built.
    wanted = max(v for v, age in before.items() if age > vacuum_ms)
    assert plan.keep_from <= wanted
    assert plan.keep_from in checkpoints(table)


def test_never_younger_than_a_day_whatever_the_table_says():
    table = aged(days=3, properties={"delta.logRetentionDuration": "interval 24 hours"})
    before = ages(table)
    clean(table, vacuum_retention_ms=0)
    gone = set(before) - set(entries(table))
    assert gone
    assert min(before[v] for v in gone) >= DAY_MS
    metadata = table.state.metadata
    short = {"delta.logRetentionDuration": "interval 1 hour"}
    assert log_retention_ms(msgspec.structs.replace(metadata, configuration=short)) == DAY_MS
    assert log_retention_ms(msgspec.structs.replace(metadata, configuration={})) == 30 * DAY_MS


def test_nothing_goes_without_a_checkpoint_above_it():
    table = aged()
    for path in [p for p in table.store.objects if "checkpoint" in p]:
        table.store.delete(path)
    plan, done = clean(table)
    assert (plan.keep_from, done.objects_removed) == (None, 0)
    assert entries(table)[0] == 0


def test_what_vacuums_fence_needs_stays():
    table = aged()
    free = plan_cleanup(table.log, vacuum_retention_ms=WEEK_MS).keep_from
    fence = checkpoints(table)[1] + 1
    raise_fence(table.log, open_log(table.log), fence, AUTHOR)
    plan, _ = clean(table)
    assert plan.keep_from == checkpoints(table)[0] < free
    assert plan.keep_from <= fence


def test_a_table_that_is_young():
    table = aged(days=2)
    plan, done = clean(table)
    assert (plan.keep_from, plan.objects, done.objects_removed) == (None, (), 0)


def test_what_belongs_to_old_versions_goes_with_them(tmp_path):
    table = aged()
    others = {
        f"{LOG}{3:020d}.crc": True,
        f"{LOG}{2:020d}.{4:020d}.compacted.json": True,
        f"{LOG}{2:020d}.{30:020d}.compacted.json": False,
        f"{LOG}{3:020d}.checkpoint.{1:010d}.{2:010d}.parquet": True,
        f"{LOG}{30:020d}.crc": False,
        f"{LOG}_staged/{3:020d}.json": False,
        f"{LOG}notes.txt": False,
    }
    for path in others:
        table.store.store(path, b"x")
        table.store.modified[path] -= 20 * DAY_MS
    clean(table)
    for path, goes in others.items():
        assert table.exists(path) is not goes, path


def test_sidecars_go_with_the_checkpoint_that_names_them(tmp_path):
    """Two V2 checkpoints share a sidecar: it stays with the one that stays."""
    rows_of_checkpoint, _ = checkpointed(tmp_path)
    in_sidecars(tmp_path, rows_of_checkpoint, is_json=True)
    names = sorted(p.name for p in (tmp_path / LOG / "_sidecars").iterdir())
    [main] = (tmp_path / LOG).glob("*.checkpoint.*.json")
    table = aged()
    kept = plan_cleanup(table.log, vacuum_retention_ms=WEEK_MS).keep_from
    lines = [line for line in main.read_text().splitlines() if '"sidecar"' in line]
    uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f"
    old, new = (
        f"{LOG}{3:020d}.checkpoint.{uuid}0.json",
        f"{LOG}{kept + 1:020d}.checkpoint.{uuid}1.json",
    )
    table.store.store(old, "\n".join(lines).encode())
    table.store.store(new, lines[0].encode())
    for name in names:
        table.store.store(f"{LOG}_sidecars/{name}", b"x")
    table.store.modified[old] -= 20 * DAY_MS
    table.store.modified[new] -= 1 * DAY_MS
    clean(table, fold=lambda version: None)
    assert not table.exists(old)
    assert [table.exists(f"{LOG}_sidecars/{name}") for name in names] == [True, False]


def test_a_hint_that_names_what_goes_is_taken_away(tmp_path):
    table = aged()
    before = table.read(tmp_path / "a")
    table.store.store(LAST_CHECKPOINT_PATH, json.dumps({"version": 4, "size": 1}).encode())
    clean(table)
    assert not table.exists(LAST_CHECKPOINT_PATH)
    assert table.read(tmp_path / "b") == before
    fresh = aged()
    clean(fresh)
    assert fresh.exists(LAST_CHECKPOINT_PATH)


@pytest.mark.parametrize("skew_ms", [-40 * DAY_MS, 40 * DAY_MS])
def test_the_workers_clock_decides_nothing(skew_ms):
    table, straight = aged(), aged()
    wall = table.clock.wall_ms
    table.clock.wall_ms = lambda: wall() + skew_ms
    table.store.skew_ms = -skew_ms
    wanted = plan_cleanup(straight.log, vacuum_retention_ms=WEEK_MS).keep_from
    assert plan_cleanup(table.log, vacuum_retention_ms=WEEK_MS).keep_from == wanted


def test_tables_that_are_refused():
    table = aged(days=1)
    configuration = {**table.state.metadata.configuration, "delta.enableRowTracking": "true"}
    table.foreign(msgspec.structs.replace(table.state.metadata, configuration=configuration))
    with pytest.raises(TableRefused, match="row tracking"):
        clean(table)
    table.store.objects.clear()
    with pytest.raises(TableRefused, match="no table to clean up"):
        clean(table)


# --- order, deaths, answers -----------------------------------------------------------------------


def test_oldest_first_and_the_anchor_before_all():
    table = aged()
    order = []
    delete = table.store.delete
    table.store.delete = lambda path: (order.append(path), delete(path))[1]
    fold = lambda version: (write_anchor(table.log, version), order.append("anchor"))  # noqa: E731
    plan, _ = clean(table, fold=fold)
    assert order[0] == "anchor"
    removed = [path for path in order if path.startswith(LOG)]
    versions = [int(path[11:31]) for path in removed]
    assert versions == sorted(versions)
    assert set(versions) == set(range(plan.keep_from))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_it_may_die_at_every_write(tmp_path, moment):
    model = aged()
    audit = audit_log(model.log, AUTHOR.sink)
    first = model.store.writes
    clean(model)
    wanted, steps = entries(model), model.store.writes - first
    assert steps > 15
    total = sum(model.read(tmp_path / "m").values())
    for step in range(1, steps + 1):
        table = aged()
        table.store.kill_at = (table.store.writes + step, moment)
        with pytest.raises(Killed):
            clean(table)
        table.store.kill_at = None
        left = entries(table)
        assert left == list(range(left[0], table.state.version + 1))
        assert open_log(table.log).txns == model.state.txns
        assert audit_log(table.log, AUTHOR.sink) == audit
        if step % 5 == 0:
            assert sum(table.read(tmp_path / f"a{step}").values()) == total
        clean(table)
        assert entries(table) == wanted
        assert audit_log(table.log, AUTHOR.sink) == audit


def test_it_stops_when_asked_and_goes_on_later():
    table = aged()
    answers = iter([False] * 5 + [True])
    plan, done = clean(table, should_stop=lambda: next(answers))
    assert (done.objects_removed, done.is_complete) == (5, False)
    assert done.bytes_removed == sum(info.size_bytes for info in plan.objects[:5])
    again, done = clean(table)
    assert len(again.objects) == len(plan.objects) - 5
    assert done.is_complete


def test_answers_that_get_lost():
    table = aged()
    table.store.script("delete", lost_after, lost_before)
    table.store.script("put_if_absent", lost_after)
    plan, done = clean(table)
    assert done.objects_removed == len(plan.objects)
    other = aged()
    other.store.script("delete", refused)
    with pytest.raises(StoreRefused):
        clean(other)
    silent = aged()
    silent.store.script("put_if_absent", *[lost_before] * 50)
    with pytest.raises(StoreUnavailable):
        clean(silent)
    assert entries(silent)[0] == 0  # no anchor, so nothing went


def test_a_writer_that_was_away_is_not_fooled(tmp_path):
    """The version it would have claimed was taken and cleaned up: a PUT there would be lost."""
    table = aged(days=6, properties={"delta.logRetentionDuration": "interval 1 days"})
    known = table.state
    encoded = table.encode(5, P0)
    plan = table.plan(encoded)
    table.offsets[P0] += 5
    for _ in range(4):
        table.append(2, P1, apart_ms=DAY_MS)
        write_checkpoint(table.log)
    clean(table, vacuum_retention_ms=DAY_MS)
    assert known.version + 1 not in entries(table)
    before = table.read(tmp_path / "a")
    head = open_log(table.log).version
    assert commit(table.worker(), known, plan).version == head + 1
    assert sum(table.read(tmp_path / "b").values()) == sum(before.values()) + 5
    assert audit_log(table.log, AUTHOR.sink).proven


# --- the audit's anchor ---------------------------------------------------------------------------


def anchors(table):
    return sorted(int(p[-25:-5]) for p in table.store.objects if p.startswith("_delta_sink/audit/"))


def test_clean_ups_chain_over_months(tmp_path):
    table = aged()
    reference = aged()
    for _ in range(3):
        clean(table)
        for both in (table, reference):
            for _ in range(4):
                both.append(5, P0, apart_ms=2 * DAY_MS)
                both.append(2, P1, apart_ms=DAY_MS)
            write_checkpoint(both.log)
    clean(table)
    assert len(anchors(table)) == 4
    assert entries(reference)[0] == 0
    assert entries(table)[0] > 50
    found, wanted = audit_log(table.log, AUTHOR.sink), audit_log(reference.log, AUTHOR.sink)
    assert found == wanted
    assert (found.proven, found.commits.version_first) == (True, 0)
    for mine, theirs in zip(found.partitions, wanted.partitions, strict=True):
        assert mine.cover.rows.sum() == theirs.cover.rows.sum()
        assert mine.cover.offset_next.max() == theirs.cover.offset_next.max()
        assert len(mine.cover.rows) < len(theirs.cover.rows)


def test_an_anchor_is_small_and_says_its_format():
    table = aged()
    clean(table)
    [version] = anchors(table)
    data = table.store.objects[anchor_path(version)][0]
    found = json.loads(data)
    assert (found["format"], found["version"], found["version_first"]) == (1, version, 0)
    assert len(data) < 1_500
    chain = next(c for c in found["chains"] if c["app_id"].endswith("/0"))
    assert chain["ranges"] == [[0, chain["txn"], chain["txn"], version - 1]]


def test_compactions_are_compared_over_an_anchor(tmp_path):
    table = aged()
    clean(table)
    compact(table)
    found = audit_log(table.log, AUTHOR.sink)
    assert (found.violations, found.unproven) == ((), ())
    assert found.commits.compaction > 0
    # A compaction that loses a row of a file from before the anchor is found.
    table.reopen()
    path = entry_path(table.state.version)
    lines = [json.loads(line) for line in table.store.objects[path][0].splitlines()]
    [add] = [line["add"] for line in lines if "add" in line]
    stats = json.loads(add["stats"])
    add["stats"] = json.dumps(stats | {"numRecords": stats["numRecords"] - 1})
    table.store.store(path, "\n".join(map(json.dumps, lines)).encode())
    found = audit_log(table.log, AUTHOR.sink)
    assert any("rearranged" in sentence for sentence in found.violations)


def seek(table, tp, first, after, sink=AUTHOR.sink):
    commit_id = table.log.entropy.unique_id()
    app_id = str(AppId(sink, tp, None))
    part = msgspec.structs.replace(
        partition_receipt(app_id, OffsetRange(tp, 0, 0, 0, 0)),
        offset_first=first,
        offset_next=after,
    )
    receipt = Receipt(RECEIPT_FORMAT, "seek", sink, "op", 0, commit_id, (part,), "again")
    info = commit_info(table.log, receipt, "SEEK", {})
    table.commit(Plan.of(commit_id, [info, Txn(app_id, after)], []))


def test_seeks_and_wrongs_are_kept(tmp_path):
    """What an audit says of entries, it says of them after they are gone."""
    table = Maintained(properties={"delta.logRetentionDuration": "interval 7 days"})
    table.append(10, P0)
    seek(table, P0, 10, 4)
    table.offsets[P0] = 4
    table.append(3, P0)
    other = Author("other-sink", "w9", 1)
    seek(table, P1, 0, 7, other.sink)  # without a claim: a violation of the other sink's
    table.foreign(Txn(str(AppId(AUTHOR.sink, P0, None)), 20))  # nobody says why
    table.offsets[P0] = 20
    table.append(3, P0)
    write_checkpoint(table.log)
    table.clock.now_ms += 20 * DAY_MS
    table.append(3, P0)
    table.clock.now_ms += 20 * DAY_MS
    table.append(3, P0)
    before = {sink: audit_log(table.log, sink) for sink in (AUTHOR.sink, other.sink)}
    assert len(before[AUTHOR.sink].violations) >= 1
    assert [s.offset_to for s in before[AUTHOR.sink].seeks] == [4]
    clean(table)
    assert entries(table)[0] > 0
    for sink, wanted in before.items():
        found = audit_log(table.log, sink)
        assert set(found.violations) == set(wanted.violations)
        assert found.seeks == wanted.seeks
        assert found.commits == wanted.commits
        assert found.partitions == wanted.partitions


def test_a_clean_up_by_another_engine_is_unproven_behind_the_anchor():
    table = aged()
    clean(table)
    [version] = anchors(table)
    write_checkpoint(table.log)
    for number in entries(table):
        if number <= version + 2:
            table.store.delete(entry_path(number))
    found = audit_log(table.log, AUTHOR.sink)
    assert found.violations == ()
    assert any(f"before version {version + 3}" in sentence for sentence in found.unproven)
    assert all(part.offset_first == 0 for part in found.partitions)


def test_an_anchor_that_contradicts_the_checkpoint_is_found():
    table = aged()
    clean(table)
    [version] = anchors(table)
    data = json.loads(table.store.objects[anchor_path(version)][0])
    data["chains"][0]["txn"] += 1
    table.store.store(anchor_path(version), json.dumps(data).encode())
    found = audit_log(table.log, AUTHOR.sink)
    assert any(f"checkpoint {version}" in sentence for sentence in found.violations)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: b"not json", "is damaged"),
        (
            lambda data: data.replace(b'"format":1', b'"format":2'),
            "format 2, this .* reads up to 1",
        ),
        (lambda data: data.replace(b'"version":', b'"version":1', 1), "says that it is of version"),
    ],
)
def test_anchors_that_cannot_be_used(change, sentence):
    table = aged()
    clean(table)
    [version] = anchors(table)
    path = anchor_path(version)
    table.store.store(path, change(table.store.objects[path][0]))
    with pytest.raises(TableRefused, match=sentence):
        audit_log(table.log, AUTHOR.sink)
    again = aged()
    again.store.store(path, change(again_data(again, version)))
    with pytest.raises(TableRefused, match=sentence):
        clean(again)
    assert entries(again)[0] == 0


def again_data(table, version):
    write_anchor(table.log, version)
    data = table.store.objects[anchor_path(version)][0]
    assert decode_anchor(version, data).version == version
    return data


def test_an_anchor_needs_a_checkpoint():
    table = aged(days=2)
    with pytest.raises(CommitConflict, match="version 1 has no checkpoint"):
        write_anchor(table.log, 1)


def test_a_clean_up_that_another_overtook_is_planned_again():
    """Another engine removes the entry that is to be kept, and leaves its checkpoint."""
    table = aged()
    plan = plan_cleanup(table.log, vacuum_retention_ms=WEEK_MS)
    for version in range(plan.keep_from + 1):
        del table.store.objects[entry_path(version)]
    before = set(table.store.objects)
    fold = lambda version: write_anchor(table.log, version)  # noqa: E731
    with pytest.raises(CommitConflict, match=f"version {plan.keep_from} has no log entry"):
        clean_log(table.log, plan, fold=fold)
    assert set(table.store.objects) == before
    again, done = clean(table)
    assert done.is_complete
    assert again.keep_from is None or again.keep_from > plan.keep_from
    assert audit_log(table.log, AUTHOR.sink).violations == ()


@pytest.mark.parametrize(
    ("found", "first_entry", "wanted"),
    [
        ([], 5, None),
        ([4, 9], 0, None),
        ([4, 9], 5, 4),
        ([4, 9], 4, 4),
        ([4, 9], 6, 9),
        ([4, 9], 20, 9),
    ],
)
def test_from_which_anchor_an_audit_goes_on(found, first_entry, wanted):
    assert chosen_anchor(found, first_entry) == wanted


def test_checkpoints_are_still_readable_after_all(tmp_path):
    table = aged()
    clean(table)
    table.store.save(tmp_path)
    for path in (tmp_path / LOG).glob("*.checkpoint.parquet"):
        assert pq.read_metadata(path).num_rows > 2
