"""Compaction on real tables: rows stay, files get the size, races lose nothing and double nothing."""

import datetime as dt
import json
import subprocess
import sys
import textwrap
from decimal import Decimal
from itertools import pairwise

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from msgspec.structs import replace

from delta_sink.audit import audit_log
from delta_sink.delta.actions import Add, Metadata, Remove, Txn
from delta_sink.delta.checkpoint_write import write_checkpoint
from delta_sink.delta.commit import open_log
from delta_sink.delta.compaction import (
    commit_rewritten,
    compaction_layout,
    read_input,
    rewrite_bin,
)
from delta_sink.delta.compaction_plan import Bin, CompactionPolicy, InputFile, plan_bins
from delta_sink.delta.conditions import InputsLive, InputsUnseen
from delta_sink.delta.conform import Columns
from delta_sink.delta.logstore import entry_path
from delta_sink.delta.ordering import Order, check_order, ordered
from delta_sink.delta.parquet import FileLayout, encode_files, tag_of
from delta_sink.delta.plan import Plan
from delta_sink.delta.schema import ArrayType, Field, MapType, StructType, TableSchema
from delta_sink.delta.schema import Decimal as DecimalType
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.delta.statistics import file_statistics
from delta_sink.delta.statistics_merge import merge_statistics
from delta_sink.delta.table import Author, commit_info
from delta_sink.delta.types import arrow_field
from delta_sink.errors import (
    CommitConflict,
    CommitUnknown,
    ObjectMissing,
    StoreUnavailable,
    TableRefused,
)
from delta_sink.model import VACUUM_APP_ID
from tests.unit.delta_tables import multiset, tables
from tests.unit.maintained import AUTHOR, P0, P1, Maintained, rows_in
from tests.unit.scripted import first, lost_after, lost_before
from tests.unit.vectors import inline_vector, stored_vectors

WORKER = Author("orders-sink", "compactor-1", 7)
TARGET = 20_000


def planned(table, target=TARGET, **options):
    """Return a snapshot and the bins of everything that is there."""
    snapshot = read_snapshot(table.log)
    options.setdefault("bytes_per_saved_file_max", 10**9)
    policy = CompactionPolicy(target, **options)
    columns = snapshot.state.metadata.partition_columns
    now_ms = table.clock.wall_ms() + 1
    return snapshot.state, plan_bins(snapshot.files(), columns, policy, now_ms=now_ms)


def rewritten(table, state, one, target=TARGET, **options):
    layout = compaction_layout(state)
    return list(
        rewrite_bin(table.log, one, layout, state=state, target_file_bytes=target, **options)
    )


def compact(table, target=TARGET, order=None, **options):
    """Compact everything; return what each step did."""
    state, bins = planned(table, target, order=order, **options)
    done, at = [], state
    for one in bins:
        for step in rewritten(table, state, one, target, order=order):
            done.append(commit_rewritten(table.log, at, step, WORKER))
            at = done[-1].state
    return done


def filled(versions=6, **options):
    table = Maintained(**options)
    for _ in range(versions):
        table.append(20, P0)
        table.append(15, P1)
    return table


# --- rows and files -------------------------------------------------------------------------------


def test_rows_stay_and_files_get_few(tmp_path):
    table = filled()
    before = table.read(tmp_path / "a")
    txns = dict(table.state.txns)
    done = compact(table)
    assert [(c.files_removed, c.files_added) for c in done] == [(12, 1), (12, 1)]
    assert sum(c.rows for c in done) == 6 * 35
    assert table.read(tmp_path / "b") == before
    delta = table.delta(tmp_path / "b")
    assert len(delta.file_uris()) == 2
    state = open_log(table.log)
    assert state.txns == txns
    audit = audit_log(table.log, AUTHOR.sink)
    assert (audit.violations, audit.unproven) == ((), ())
    assert audit.commits.compaction == 2
    for version in range(state.version - 2, state.version + 1):
        assert table.read(tmp_path / "b", version) == before
    assert compact(table) == []


def test_what_the_log_says_of_it(tmp_path):
    table = filled(2)
    done = compact(table)
    lines = [
        json.loads(line)
        for line in table.store.objects[entry_path(done[0].state.version)][0].splitlines()
    ]
    removes = [line["remove"] for line in lines if "remove" in line]
    [add] = [line["add"] for line in lines if "add" in line]
    assert len(removes) == 4
    for remove in removes:
        assert remove["dataChange"] is False
        assert remove["extendedFileMetadata"] is True
        assert remove["partitionValues"] == add["partitionValues"] == {"day": "2026-11-01"}
        assert remove["size"] > 0
        assert abs(remove["deletionTimestamp"] - table.clock.wall_ms()) < 60_000
    assert add["dataChange"] is False
    assert tag_of(add["path"]) < done[0].state.version
    info = lines[0]["commitInfo"]
    assert (info["operation"], info["isBlindAppend"]) == ("OPTIMIZE", False)
    metrics = {name: int(value) for name, value in info["operationMetrics"].items()}
    assert metrics["numRemovedFiles"] == 4
    assert metrics["numAddedFiles"] == 1
    assert metrics["numRemovedBytes"] == sum(remove["size"] for remove in removes)
    size = add["size"]
    names = ("numAddedBytes", "minFileSize", "maxFileSize", "p25FileSize", "p75FileSize")
    assert {metrics[name] for name in names} == {size}
    receipt = json.loads(info["userMetadata"])
    assert (receipt["kind"], receipt["worker"], receipt["generation"]) == (
        "compaction",
        "compactor-1",
        7,
    )
    history = table.delta(tmp_path).history(1)[0]
    assert history["operation"] == "OPTIMIZE"


def sized(rows, files, **options):
    """Return a table of one table partition whose files hold incompressible text."""
    table = Maintained(partition_by=(), **options)
    table._claim(P0)
    for number in range(files):
        table.offsets[P0] = number * rows
        table.clock.now_ms += 1_000
        table.rows = lambda tp, count, days, number=number: noisy(table, number, count)
        encoded = table.encode(rows, P0)
        table.offsets[P0] += rows
        table.commit(table.plan(encoded))
    return table


def noisy(table, number, count):
    import random

    dice = random.Random(number)
    return pa.Table.from_pylist(
        [
            {
                "id": dice.randrange(10**12),
                "day": dt.date(2026, 11, 1),
                "name": dice.randbytes(30).hex(),
                "_kafka_topic": "orders",
                "_kafka_partition": 0,
                "_kafka_offset": number * count + n,
            }
            for n in range(count)
        ],
        schema=table.schema.arrow,
    )


@pytest.mark.parametrize("target", [40_000, 100_000])
def test_all_files_but_the_last_have_the_size(tmp_path, target):
    table = sized(100, 60)
    before = table.read(tmp_path / "a")
    done = compact(table, target)
    assert table.read(tmp_path / "b") == before
    sizes = [step.bytes_added for step in done]
    assert len(sizes) > 2
    assert all(0.8 * target <= size <= 1.2 * target for size in sizes[:-1]), sizes
    assert sorted(sizes) == sorted(read_snapshot(table.log).files()["size"].to_pylist())


def test_an_input_may_end_up_in_several_files(tmp_path):
    table = sized(1_000, 5)
    before = table.read(tmp_path / "a")
    state = read_snapshot(table.log).state
    files = planned(table, 10**9)[1]
    steps = rewritten(table, state, files[0], 15_000)
    assert max(len(step.outputs) for step in steps) > 2
    at = state
    for step in steps:
        at = commit_rewritten(table.log, at, step, WORKER).state
    assert table.read(tmp_path / "b") == before
    sizes = read_snapshot(table.log).files()["size"].to_pylist()
    assert sum(12_000 <= size <= 18_000 for size in sizes) >= len(sizes) - 5


def test_a_remainder_is_left_where_more_can_join_it(tmp_path):
    table = sized(100, 30)
    state, [one] = planned(table, 40_000)
    more = replace(one, has_more=True)
    steps = rewritten(table, state, more, 50_000)
    assert sum(len(step.inputs) for step in steps) < 30
    assert all(sum(f.size_bytes for f in step.outputs) > 40_000 for step in steps)
    few = Bin(one.values, one.files[:2], has_more=True)
    [step] = rewritten(table, state, few, 40_000)  # a bin always gets somewhere
    assert len(step.inputs) == 2


def test_statistics_are_those_of_the_rows(tmp_path):
    table = filled()
    compact(table)
    for file in read_snapshot(table.log).live_batches():
        for row in file.to_pylist():
            data = table.store.objects[row["path"].replace("%25", "%")][0]
            found = pq.read_table(pa.BufferReader(data))
            fields = table.layout.file_fields
            schema = pa.schema([arrow_field(field) for field in fields])
            assert row["stats"] == file_statistics(fields, found.cast(schema))


@given(tables())
@settings(max_examples=60, deadline=None)
def test_merged_statistics_are_those_of_the_whole(drawn):
    schema, rows = drawn
    whole = file_statistics(schema.fields, rows)
    for cut in {1, rows.num_rows // 2, rows.num_rows - 1} - {0, rows.num_rows}:
        parts = [file_statistics(schema.fields, p) for p in (rows[:cut], rows[cut:])]
        merged = merge_statistics(schema.fields, parts)
        assert json.loads(merged) == json.loads(whole)
        assert merged == whole


# --- what inputs may be ---------------------------------------------------------------------------


def with_vectors(table, numbers, *, stored=False):
    """Let another engine delete these rows of the first file; return the file's old row count."""
    row = read_snapshot(table.log).files().sort_by("path").to_pylist()[0]
    if stored:
        path, content, [vector] = stored_vectors(numbers, uuid=bytes(range(16)), prefix="dv")
        table.store.store(path, content)
    else:
        vector = inline_vector(numbers)
    stats = json.dumps({"numRecords": row["numRecords"]})
    values = dict(row["partitionValues"])
    protocol = msgspec.structs.replace(
        table.state.protocol,
        min_reader_version=3,
        min_writer_version=7,
        reader_features=("deletionVectors",),
        writer_features=("deletionVectors",),
    )
    table.foreign(protocol)
    table.foreign(
        Remove(row["path"], deletion_timestamp=1),
        Add(row["path"], values, row["size"], 1, True, stats, None, vector),
    )
    return row["numRecords"]


@pytest.mark.parametrize("stored", [False, True])
def test_deletion_vectors_are_applied(tmp_path, stored):
    table = filled(3)
    count = with_vectors(table, [0, 3, 4, 7], stored=stored)
    before = table.read(tmp_path / "a")
    assert sum(before.values()) == 3 * 35 - 4
    done = compact(table)
    assert table.read(tmp_path / "b") == before
    assert sum(c.rows for c in done) == 3 * 35 - 4
    assert count > 8
    files = read_snapshot(table.log).files().to_pylist()
    assert [file["deletionVector"] for file in files] == [None, None]
    audit = audit_log(table.log, AUTHOR.sink)
    assert audit.violations == ()


def test_a_file_of_which_nothing_is_left(tmp_path):
    table = Maintained()
    table.append(10, P0, days=1)
    table.append(4, P0, days=1)
    with_vectors(table, list(range(10)))
    before = table.read(tmp_path / "a")
    done = compact(table)
    assert table.read(tmp_path / "b") == before
    assert (done[0].files_removed, done[0].rows) == (2, 4)
    only = Maintained()
    only.append(10, P0, days=1)
    with_vectors(only, list(range(10)))
    [step] = compact(only)
    assert (step.files_removed, step.files_added, step.rows) == (1, 0, 0)
    assert read_snapshot(only.log).files().num_rows == 0


def test_a_vector_that_names_rows_beyond_the_file():
    table = filled(2)
    with_vectors(table, [0, 5_000])
    with pytest.raises(TableRefused, match="names row 5000 of"):
        compact(table)


def test_rows_that_the_log_does_not_know():
    table = filled(2)
    row = read_snapshot(table.log).files().to_pylist()[0]
    stats = json.dumps({"numRecords": 999})
    values = dict(row["partitionValues"])
    table.foreign(Add(row["path"], values, row["size"], 1, data_change=False, stats=stats))
    with pytest.raises(TableRefused, match=r"has \d+ rows, the log says 999"):
        compact(table)


def test_a_file_that_is_no_parquet_or_is_gone():
    table = filled(2)
    path = read_snapshot(table.log).files()["path"].to_pylist()[0]
    data = table.store.objects[path][0]
    table.store.store(path, data[:50])
    with pytest.raises(TableRefused, match="is no readable Parquet file"):
        compact(table)
    table.store.delete(path)
    with pytest.raises(ObjectMissing):
        compact(table)


NESTED = TableSchema(
    (
        Field("id", "long", nullable=False),
        Field("at", "timestamp"),
        Field("amount", DecimalType(12, 2)),
        Field("lines", ArrayType(StructType((Field("sku", "string"), Field("n", "integer"))))),
        Field("tags", MapType("string", "long")),
        Field("late", StructType((Field("x", "double"),))),
    )
)


def conformed(table, schema=NESTED):
    return Columns(schema.fields).conform(table, "f.parquet")


def test_files_of_older_schemas_and_other_engines():
    line = pa.struct([("n", pa.int16()), ("extra", pa.bool_()), ("sku", pa.large_string())])
    there = pa.table(
        {
            "ID": pa.array([1, 2, 3], pa.int32()),
            "at": pa.array([0, None, 10**9], pa.timestamp("ns", "Europe/Berlin")),
            "amount": pa.array([Decimal("1.5"), None, Decimal("-2.0")], pa.decimal128(9, 1)),
            "lines": pa.array(
                [[{"n": 1, "extra": True, "sku": "a"}, None], None, []],
                pa.list_(pa.field("item", line)),
            ),
            "tags": pa.array(
                [[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())
            ),
            "gone": pa.array([1, 2, 3]),
        }
    )  # fmt: skip
    for part in (there, there.slice(1)):
        found = conformed(part)
        found.validate(full=True)
        assert found.schema.equals(NESTED.arrow)
    rows = conformed(there).to_pylist()
    assert rows[0] == {
        "id": 1,
        "at": dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
        "amount": Decimal("1.50"),
        "lines": [{"sku": "a", "n": 1}, None],
        "tags": [("k", 1)],
        "late": None,
    }
    assert (rows[1]["lines"], rows[1]["tags"], rows[2]["lines"]) == (None, [], [])
    same = conformed(there).slice(1)
    assert conformed(same).equals(same)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"at": [1]}, "has no column 'id', which may not be null"),
        ({"id": pa.array([None], pa.int64())}, "column 'id' has nulls, which the table forbids"),
        ({"id": ["1"]}, "cannot become the table's type"),
        ({"id": [1], "at": pa.array([1], pa.timestamp("ns", "UTC"))}, "without a change of values"),
        ({"id": [1], "amount": pa.array([Decimal("1.234")])}, "without a change of values"),
        ({"id": [1], "lines": [{"sku": "a"}]}, "cannot become the table's type"),
    ],
)
def test_files_that_do_not_fit_the_table(columns, sentence):
    with pytest.raises(TableRefused, match=sentence):
        conformed(pa.table(columns))


def test_a_column_that_came_later(tmp_path):
    table = filled(2)
    metadata = table.state.metadata
    schema = TableSchema((*table.schema.fields, Field("later", "double")))
    table.foreign(msgspec.structs.replace(metadata, schema_string=schema.to_json()))
    before = table.read(tmp_path / "a")
    compact(table)
    assert table.read(tmp_path / "b") == before
    assert rows_in(table.delta(tmp_path / "b"))["later"].null_count == 70


def test_large_inputs_are_read_in_parts(tmp_path, monkeypatch):
    import delta_sink.delta.compaction as module

    table = sized(2_000, 3)
    before = table.read(tmp_path / "a")
    _, [one] = planned(table, 10**7)
    path = one.files[0].path
    whole = pq.read_table(pa.BufferReader(table.store.objects[path][0]))
    sink = pa.BufferOutputStream()
    pq.write_table(whole, sink, row_group_size=300)
    data = sink.getvalue().to_pybytes()
    table.store.store(path, data)
    monkeypatch.setattr(module, "WHOLE_BYTES_MAX", 1_000)
    monkeypatch.setattr(module, "READ_ROWS", 128)
    files = (InputFile(path, {}, len(data), 2_000, inline_vector([0, 299, 300, 1_999])),)
    columns = Columns(table.layout.file_fields)
    parts = list(read_input(table.log.store, files[0], columns))
    assert max(part.num_rows for part in parts) <= 128
    kept = [n for n in range(2_000) if n not in (0, 299, 300, 1_999)]
    assert pa.concat_tables(parts).equals(whole.take(kept).cast(parts[0].schema))
    assert sum(before.values()) == 6_000


# --- order ----------------------------------------------------------------------------------------


def test_sorted_bins_let_readers_skip_files(tmp_path):
    table = sized(200, 10)
    before = table.read(tmp_path / "a")
    done = compact(table, 20_000, order=Order("sort", ("id",)), bin_bytes_max=10**9)
    assert table.read(tmp_path / "b") == before
    [only] = done
    assert only.files_added > 2
    bounds = sorted(
        (stats["minValues"]["id"], stats["maxValues"]["id"])
        for stats in all_stats(table)
    )  # fmt: skip
    assert all(high <= low for (_, high), (low, _) in pairwise(bounds))
    lines = table.store.objects[entry_path(only.state.version)][0].splitlines()
    assert json.loads(lines[0])["commitInfo"]["operationParameters"]["sortBy"] == '["id"]'


def all_stats(table):
    batches = read_snapshot(table.log).live_batches()
    return [json.loads(row["stats"]) for batch in batches for row in batch.to_pylist()]


def test_a_z_curve_narrows_every_column(tmp_path):
    table = sized(200, 10)
    before = table.read(tmp_path / "a")
    order = Order("zorder", ("id", "_kafka_offset"))
    compact(table, 8_000, order=order, bin_bytes_max=10**9)
    assert table.read(tmp_path / "b") == before
    stats = all_stats(table)
    assert len(stats) >= 8

    def width(name):
        whole = max(s["maxValues"][name] for s in stats) - min(s["minValues"][name] for s in stats)
        spans = [s["maxValues"][name] - s["minValues"][name] for s in stats]
        return sum(spans) / len(spans) / whole

    assert width("id") < 0.6
    assert width("_kafka_offset") < 0.6


def test_ordering_takes_every_type_that_has_an_order():
    early, late = (dt.datetime(2020, 1, day, tzinfo=dt.UTC) for day in (1, 3))
    kinds = ("long", "date", "string", "timestamp", "boolean", "double", "binary")
    values = [
        [3, None, 1, 3], [dt.date(2020, 1, 3), None, dt.date(2020, 1, 1), dt.date(2020, 1, 3)],
        ["c", None, "a", "c"], [late, None, early, late], [True, None, False, True], [3.5, None, 1.5, 3.5],
        [b"c", None, b"a", b"c"],
    ]  # fmt: skip
    fields = [Field(kind, kind) for kind in kinds] + [Field("d", DecimalType(5, 1))]
    values.append([Decimal("3.0"), None, Decimal("1.0"), Decimal("3.0")])
    table = pa.table(
        [pa.array(v, arrow_field(f).type) for f, v in zip(fields, values, strict=True)],
        names=[f.name for f in fields],
    ).append_column("n", pa.array(range(4)))
    for field in fields:
        for kind in ("sort", "zorder"):
            found = ordered(table, Order(kind, (field.name,)))
            assert found["n"].to_pylist() == [2, 0, 3, 1], (field, kind)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (("nope",), "no column 'nope'"),
        (("day",), "table partition column"),
        (("l",), "array<string>, which has no order"),
        ((), "got 0 columns"),
    ],
)
def test_orders_that_make_no_sense(columns, sentence):
    fields = (Field("id", "long"), Field("day", "date"), Field("l", ArrayType("string")))
    with pytest.raises(TableRefused, match=sentence):
        check_order(Order("sort", columns), TableSchema(fields), ("day",))


# --- races ----------------------------------------------------------------------------------------


def test_appends_meanwhile_do_not_matter(tmp_path):
    table = filled(3)
    state, bins = planned(table)
    steps = [step for one in bins for step in rewritten(table, state, one)]
    at = state
    for step in steps:
        table.append(8, P0)
        at = commit_rewritten(table.log, at, step, WORKER).state
        table.append(8, P1)
    assert sum(table.read(tmp_path / "b").values()) == 3 * 35 + 4 * 8
    assert audit_log(table.log, AUTHOR.sink).ok


def test_two_compactions_of_one_snapshot_do_not_double_the_table(tmp_path):
    """Both rewrite; whoever comes second finds its inputs gone. (deltalake 1.6.6 lets both in.)"""
    table = filled()
    before = table.read(tmp_path / "a")
    state, [one, *_] = planned(table)
    [mine] = rewritten(table, state, one)
    [theirs] = rewritten(table, state, one)
    commit_rewritten(table.worker(), state, theirs, WORKER)
    with pytest.raises(CommitConflict, match="which was being compacted"):
        commit_rewritten(table.log, state, mine, WORKER)
    assert table.read(tmp_path / "b") == before


def test_without_looking_whether_inputs_are_live_rows_would_double(tmp_path, monkeypatch):
    """The mutant: what the condition is for."""
    table = filled()
    before = table.read(tmp_path / "a")
    state, [one, *_] = planned(table)
    steps = [rewritten(table, state, one)[0] for _ in range(2)]
    monkeypatch.setattr(InputsLive, "check", lambda self, state, entry: None)
    for step in steps:
        commit_rewritten(table.log, state, step, WORKER)
    assert sum(table.read(tmp_path / "b").values()) > sum(before.values())


def test_an_input_that_another_engine_removed_or_changed(tmp_path):
    for change in ("remove", "vector"):
        table = filled(2)
        state, [one, *_] = planned(table)
        [step] = rewritten(table, state, one)
        file = one.files[1]
        if change == "remove":
            table.foreign(Remove(file.path, deletion_timestamp=1))
        else:
            with_vectors(table, [1])
            changed = read_snapshot(table.log).files().to_pylist()
            vector = [f for f in changed if f["deletionVector"] is not None]
            assert vector[0]["path"] in {f.path for f in one.files}
        before = table.read(tmp_path / f"{change}-a")
        with pytest.raises(CommitConflict):
            commit_rewritten(table.log, state, step, WORKER)
        assert table.read(tmp_path / f"{change}-b") == before


def test_a_file_is_removed_that_was_not_ours_to_rewrite(tmp_path):
    table = filled(2)
    state, [one, other] = planned(table)
    [step] = rewritten(table, state, one)
    table.foreign(Remove(other.files[0].path, deletion_timestamp=1))
    assert commit_rewritten(table.log, state, step, WORKER).files_removed == len(one.files)


def test_a_long_rewrite_behind_checkpoints_goes_on(tmp_path):
    """Minutes pass, checkpoints come: the inputs are looked up in a new snapshot."""
    table = filled(3)
    state, bins = planned(table)
    steps = [step for one in bins for step in rewritten(table, state, one)]
    table.append(8, P0)
    write_checkpoint(table.log)
    table.append(8, P0)
    table.clock.now_ms += 600_000
    before = table.read(tmp_path / "a")
    at = state
    for step in steps:
        at = commit_rewritten(table.log, at, step, WORKER).state
    assert table.read(tmp_path / "b") == before
    assert read_snapshot(table.log).files().num_rows == 2 + 4


def test_behind_a_checkpoint_a_removed_input_is_found(tmp_path):
    table = filled(3)
    state, [one, *_] = planned(table)
    [mine] = rewritten(table, state, one)
    [theirs] = rewritten(table, state, one)
    commit_rewritten(table.worker(), state, theirs, WORKER)
    write_checkpoint(table.log)
    table.clock.now_ms += 600_000
    before = table.read(tmp_path / "a")
    with pytest.raises(CommitConflict, match="6 of 6 files were removed"):
        commit_rewritten(table.log, state, mine, WORKER)
    assert table.read(tmp_path / "b") == before


def test_a_jump_is_no_proof_that_inputs_live():
    condition = InputsLive(5, frozenset({"x"}), frozenset({"x"}))
    table = filled(1)
    with pytest.raises(InputsUnseen, match="live at version 5"):
        condition.check(table.state, None)


def test_behind_the_fence_a_step_is_dropped(tmp_path):
    table = filled(2)
    state, [one, *_] = planned(table)
    [step] = rewritten(table, state, one)
    commit_id = table.log.entropy.unique_id()
    info = commit_info(table.log, receipt(commit_id), "VACUUM FENCE", {})
    table.commit(Plan.of(commit_id, [info, Txn(VACUUM_APP_ID, step.tag)], []))
    with pytest.raises(CommitConflict, match="behind vacuum's fence"):
        commit_rewritten(table.log, state, step, WORKER)


def receipt(commit_id):
    from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt

    return Receipt(RECEIPT_FORMAT, "vacuum", "orders-sink", "v", 0, commit_id)


def test_a_schema_that_changed_drops_the_step():
    table = filled(2)
    state, [one, *_] = planned(table)
    [step] = rewritten(table, state, one)
    schema = TableSchema((*table.schema.fields, Field("later", "double")))
    metadata = msgspec.structs.replace(table.state.metadata, schema_string=schema.to_json())
    table.foreign(metadata)
    with pytest.raises(CommitConflict, match="schema or protocol changed"):
        commit_rewritten(table.log, state, step, WORKER)


def with_feed(metadata: Metadata) -> Metadata:
    configuration = {**metadata.configuration, "delta.enableChangeDataFeed": "true"}
    return msgspec.structs.replace(metadata, configuration=configuration)


def test_a_change_data_feed_is_refused_before_and_meanwhile():
    table = filled(2)
    state, [one, *_] = planned(table)
    [step] = rewritten(table, state, one)
    table.foreign(with_feed(table.state.metadata))
    with pytest.raises(TableRefused, match="does not compact it"):
        commit_rewritten(table.log, state, step, WORKER)
    with pytest.raises(TableRefused, match="change data feed"):
        compaction_layout(open_log(table.log))
    table.append(3, P0)  # appending goes on


@pytest.mark.parametrize("step_of", [lost_before, lost_after])
def test_a_lost_answer_lands_once(tmp_path, step_of):
    table = filled(2)
    before = table.read(tmp_path / "a")
    state, [one, *_] = planned(table)
    [step] = rewritten(table, state, one)
    table.store.script("put_if_absent", step_of)
    commit_rewritten(table.log, state, step, WORKER)
    assert table.read(tmp_path / "b") == before
    assert audit_log(table.log, AUTHOR.sink).ok


def test_no_certain_answer_is_left_to_the_log(tmp_path):
    table = filled(2)
    before = table.read(tmp_path / "a")
    state, [one, *_] = planned(table)
    [step] = rewritten(table, state, one)
    table.store.script("put_if_absent", lost_after, *[lost_before] * 300)
    table.store.script("list", *[lost_before] * 300)
    with pytest.raises(CommitUnknown):
        commit_rewritten(table.log, state, step, WORKER)
    table.store._script.clear()
    assert table.read(tmp_path / "b") == before
    assert [len(b.files) for b in planned(table)[1]] == [4]  # it landed: the other bin is left


def test_uploads_are_repeated_and_given_up():
    table = filled(2)
    state, [one, *_] = planned(table)
    table.store.script("put", lost_after, lost_before)
    assert len(rewritten(table, state, one)) == 1
    table.store.script("put", *[lost_before] * 20)
    with pytest.raises(StoreUnavailable):
        rewritten(table, state, one)


def test_a_race_during_the_commit_itself(tmp_path):
    """Another append takes the version between the check and the PUT, three times."""
    table = filled(2)
    state, [one, *_] = planned(table)
    [step] = rewritten(table, state, one)
    encoded = [table.encode(5, P0) for _ in range(1)]
    table.offsets[P0] += 5
    plan = table.plan(encoded[0])
    table.store.script("put_if_absent", first(lambda: table.commit(plan)))
    done = commit_rewritten(table.log, state, step, WORKER)
    assert done.state.version == state.version + 2
    assert sum(table.read(tmp_path / "b").values()) == 70 + 5


# --- layout ---------------------------------------------------------------------------------------


def test_the_layout_is_the_tables_with_the_writers_codec():
    table = filled(1, properties={"delta.dataSkippingNumIndexedCols": "2"})
    like = FileLayout(table.schema, compression="snappy", compression_level=None)
    layout = compaction_layout(table.state, like)
    assert (layout.partition_by, layout.compression) == (("day",), "snappy")
    assert layout.statistics_columns == 2
    compact(table)
    files = encode_files([table.rows(P0, 3)], layout, tag=1, unique_id=lambda: "0" * 32)
    assert set(json.loads(files[0].stats)["nullCount"]) == {"id", "name"}


# --- memory ---------------------------------------------------------------------------------------

BIG = """
    import json, sys
    from io import StringIO
    from delta_sink.adapters.localdisk import LocalDisk
    from delta_sink.adapters.logs import LogTelemetry
    from delta_sink.adapters.system import SystemClock, SystemEntropy
    from delta_sink.delta.commit import Log
    from delta_sink.delta.compaction import *
    from delta_sink.delta.compaction_plan import *
    from delta_sink.delta.logstore import ConditionalPutLog
    from delta_sink.delta.snapshot import read_snapshot
    from delta_sink.delta.table import Author

    def peak():
        lines = open("/proc/self/status").read().splitlines()
        return [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")][0]

    store = LocalDisk(sys.argv[1], fsync=False)
    telemetry = LogTelemetry(StringIO(), clock=SystemClock())
    log = Log(store, ConditionalPutLog(store), SystemClock(), SystemEntropy(), telemetry)
    snapshot = read_snapshot(log)
    state = at = snapshot.state
    [one] = plan_bins(snapshot.files(), (), CompactionPolicy(8 << 20), now_ms=10**15)
    before, rows = peak(), 0
    for step in rewrite_bin(log, one, compaction_layout(state), state=state,
                            target_file_bytes=8 << 20):
        at = commit_rewritten(log, at, step, Author("s", "w")).state
        rows += step.rows
    print(json.dumps({"before": before, "peak": peak(), "rows": rows, "bytes": one.size_bytes}))
"""


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_bin(tmp_path):
    """50 MB of files, of which the product holds one of 8 MiB and a row group."""
    table = sized(1, 1)
    layout = table.layout
    rows = 20_000
    for number in range(64):
        [file] = encode_files(
            [noisy(table, number, rows)], layout, tag=0, unique_id=table.log.entropy.unique_id
        )
        table.store.store(file.path, bytes(file.data))
        table.foreign(Add(file.path, {}, file.size_bytes, 1, True, file.stats))
        if number == 0:
            noise = file.data
            table.rows = None
        del file
        if number % 8 == 7:
            table.store.save(tmp_path)
    assert len(noise) > 500_000
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BIG), str(tmp_path)],
        check=True,
        capture_output=True,
    )
    found = json.loads(done.stdout)
    print(found)
    assert found["rows"] == 64 * rows + 1
    assert found["bytes"] > 40_000_000
    assert found["peak"] - found["before"] < 150
    assert multiset(rows_in(DeltaTable(str(tmp_path))).slice(0, 1))
