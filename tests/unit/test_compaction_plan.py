"""Which files are rewritten together: pure, deterministic, bounded, and worth the work."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink.delta.compaction_plan import CompactionPolicy, plan_bins
from delta_sink.delta.file_columns import FACT_SCHEMA
from delta_sink.delta.ordering import Order
from tests.unit.vectors import inline_vector

MIB = 1024 * 1024
NOW = 1_000_000
POLICY = CompactionPolicy(target_file_bytes=100, quiet_ms=1_000)


def file(path, size=10, *, day="a", at=0, rows=100, deleted=0):
    vector = inline_vector(list(range(deleted))) if deleted else None
    return {
        "path": path,
        "partitionValues": [("day", day)],
        "size": size,
        "modificationTime": at,
        "deletionVector": vector,
        "numRecords": rows,
        "tag": None,
    }


def plan(files, policy=POLICY, where=None, columns=("day",)):
    table = pa.Table.from_pylist(files, schema=FACT_SCHEMA)
    return plan_bins(table, columns, policy, now_ms=NOW, where=where)


def shown(bins):
    return [(b.values, [f.path for f in b.files]) for b in bins]


def test_bins_are_by_table_partition_and_oldest_first():
    files = [
        file("c", day="y", at=5),
        file("a", day="x", at=9),
        file("b", day="x", at=3),
        file("d", day="y", at=5),
        file("n", day=None, at=1),
        file("m", day="", at=2),  # to Delta the empty string is null
    ]
    assert shown(plan(files)) == [
        (("x",), ["b", "a"]),
        (("y",), ["c", "d"]),
        ((None,), ["n", "m"]),
    ]


def test_a_table_without_partitions():
    files = [{**file("a"), "partitionValues": []}, {**file("b"), "partitionValues": []}]
    assert shown(plan(files, columns=())) == [((), ["a", "b"])]
    assert plan([], columns=()) == []


def test_young_and_large_files_are_left_out():
    young = [file("y1", at=NOW - 999), file("y2", at=NOW + 50)]
    old = [file("o1", at=NOW - 1_000), file("o2", at=0)]
    large = [file("l1", 80), file("l2", 500), file("s", 79, at=1)]
    assert shown(plan(young + old)) == [(("a",), ["o2", "o1"])]
    assert plan(large) == []  # the small one alone saves nothing


def test_what_is_not_worth_it():
    assert plan([file("a")]) == []
    assert plan([file("a", 70), file("b", 1)]) == []  # rewriting 70 bytes to save one file
    strict = CompactionPolicy(100, bytes_per_saved_file_max=30)
    few = [file("a", 70), file("b", 1), file("c", 1)]
    assert shown(plan(few, strict)) == [(("a",), ["b", "c"])]
    assert len(plan([*few, file("d", 1)], strict)[0].files) == 4
    policy = CompactionPolicy(100, bytes_per_saved_file_max=1_000)
    assert shown(plan([file("a", 70), file("b", 1)], policy)) == [(("a",), ["a", "b"])]
    assert plan([file("a", 70), file("b", 70)], policy) == []  # two would become two


def test_rows_that_are_deleted_already():
    assert plan([file("a", 70, deleted=10)]) == []
    assert shown(plan([file("a", 90, deleted=30)])) == [(("a",), ["a"])]
    assert shown(plan([file("a", 300, deleted=80)])) == [(("a",), ["a"])]
    assert plan([file("a", 300, rows=None, deleted=80)]) == []  # how many rows is not known
    assert plan([file("a", 300, rows=0)]) == []


def test_a_filter_on_table_partitions():
    files = [file(f"{day}{n}", day=day) for day in "xyz" for n in range(2)]
    asked = []

    def where(values):
        asked.append(values)
        return values["day"] != "y"

    assert [b.values for b in plan(files, where=where)] == [("x",), ("z",)]
    assert asked == [{"day": "x"}, {"day": "y"}, {"day": "z"}]


def test_bins_are_bounded_and_say_whether_more_follow():
    files = [file(f"f{n:02d}", 10, at=n) for n in range(50)]
    bins = plan(files, CompactionPolicy(100, bin_bytes_max=200))
    assert [len(b.files) for b in bins] == [20, 20, 10]
    assert [b.has_more for b in bins] == [True, True, False]
    assert [b.size_bytes for b in bins] == [200, 200, 100]
    bins = plan(files, CompactionPolicy(100, bin_files_max=7))
    assert [len(b.files) for b in bins] == [7] * 7  # the last file alone is not worth it
    bins = plan(files, CompactionPolicy(100, bin_bytes_max=200, files_max=25))
    assert [len(b.files) for b in bins] == [20]


def test_with_an_order_all_files_are_taken_up_to_twice_the_target():
    files = [file("a", 150), file("b", 201), file("c", 60), file("d", 60, day="z")]
    policy = CompactionPolicy(100, order=Order("sort", ("id",)))
    assert shown(plan(files, policy)) == [
        (("a",), ["a"]),
        (("a",), ["c"]),
        (("z",), ["d"]),
    ]


@given(
    st.lists(
        st.tuples(st.integers(1, 120), st.sampled_from("xyz"), st.integers(0, 20)), max_size=60
    ),
    st.randoms(),
)
def test_any_files(specs, dice):
    files = [file(f"f{i}", size, day=day, at=at) for i, (size, day, at) in enumerate(specs)]
    policy = CompactionPolicy(100, bin_bytes_max=400, bin_files_max=9)
    bins = plan(files, policy)
    shuffled = list(files)
    dice.shuffle(shuffled)
    assert plan(shuffled, policy) == bins
    chosen = [f.path for b in bins for f in b.files]
    assert len(chosen) == len(set(chosen))
    sizes = {f["path"]: f["size"] for f in files}
    days = {f["path"]: f["partitionValues"][0][1] for f in files}
    for one in bins:
        assert {days[f.path] for f in one.files} == {one.values[0]}
        assert all(sizes[f.path] < 80 for f in one.files)
        assert one.size_bytes <= 400 or len(one.files) == 1
        assert 1 <= len(one.files) <= 9
    # What was left of each table partition is not worth a plan of its own.
    left = [f for f in files if f["path"] not in chosen]
    assert len(plan(left, policy)) <= len(bins) or not bins


def test_a_hundred_thousand_files():
    count = 100_000
    table = pa.table(
        [
            pa.array([f"day={n % 50}/part-{n:040d}.parquet" for n in range(count)]),
            pa.array([[("day", f"{n % 50}")] for n in range(count)], FACT_SCHEMA.field(1).type),
            pa.array([MIB] * count),
            pa.array(range(count)),
            pa.nulls(count, FACT_SCHEMA.field(4).type),
            pa.array([1_000] * count),
            pa.nulls(count, pa.int64()),
        ],
        schema=FACT_SCHEMA,
    )
    bins = plan_bins(table, ["day"], CompactionPolicy(128 * MIB), now_ms=10**9)
    assert sum(len(b.files) for b in bins) == count
    assert all(b.size_bytes <= 16 * 128 * MIB for b in bins)


@pytest.mark.parametrize("kind", ["sort", "zorder"])
def test_an_order_is_a_value(kind):
    assert Order(kind, ("a",)) == Order(kind, ("a",))
