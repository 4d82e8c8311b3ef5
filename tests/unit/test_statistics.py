"""Statistics: against a full scan of random tables, and against a reader that skips by them."""

import datetime as dt
import json
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from delta_sink.delta.parquet import DataFile, FileLayout, encode_files
from delta_sink.delta.schema import ArrayType, Field, MapType, StructType, TableSchema
from delta_sink.delta.schema import Decimal as DecimalType
from delta_sink.delta.statistics import TEXT_MAX, file_statistics
from tests.unit.delta_tables import encode, ids, query, rows_of, tables, write_table

UTC = dt.UTC
UNIQUE = ids()


def leaf_values(fields, rows):
    """Yield path, type and all values of each leaf column; a null struct has null fields."""
    for field in fields:
        values = [None if row is None else row[field.name] for row in rows]
        if isinstance(field.type, StructType):
            for path, kind, inner in leaf_values(field.type.fields, values):
                yield (field.name, *path), kind, inner
        else:
            yield (field.name,), field.type, values


def at(tree, path):
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return None
        tree = tree[name]
    return tree


def bound_of(kind, value):
    """A bound of `add.stats` as a value of the column."""
    match kind:
        case "date":
            return dt.date.fromisoformat(value)
        case "timestamp" | "timestamp_ntz":
            return dt.datetime.fromisoformat(value)
        case _:
            return value


@given(tables())
@settings(max_examples=300, deadline=None)
def test_statistics_are_those_of_a_full_scan(schema_and_rows):
    schema, table = schema_and_rows
    stats = json.loads(file_statistics(schema.fields, table), parse_float=Decimal)
    assert stats["numRecords"] == table.num_rows
    for path, kind, values in leaf_values(schema.fields, table.to_pylist()):
        assert at(stats["nullCount"], path) == sum(v is None for v in values)
        low, high = at(stats["minValues"], path), at(stats["maxValues"], path)
        present = [v for v in values if v is not None]
        finite = not any(isinstance(v, float) and not math.isfinite(v) for v in present)
        if not present or not finite or isinstance(kind, ArrayType | MapType):
            assert low is None
            assert high is None
            continue
        if kind in ("binary", "boolean"):
            assert (low, high) == (None, None)
            continue
        check_bounds(kind, present, low, high)


def check_bounds(kind, present, low, high):
    least, greatest = min(present), max(present)
    if kind == "string":
        assert low == least[:TEXT_MAX]
        assert low <= least
        if len(greatest) <= TEXT_MAX:
            assert high == greatest
        elif high is None:
            assert set(greatest[:TEXT_MAX]) == {"\U0010ffff"}
        else:
            assert high > greatest
            assert high.encode() > greatest.encode()
            assert len(high) <= TEXT_MAX
    elif kind in ("timestamp", "timestamp_ntz"):
        if high is None:
            assert greatest > dt.datetime.max.replace(microsecond=999_000, tzinfo=greatest.tzinfo)
        else:
            assert dt.timedelta(0) <= bound_of(kind, high) - greatest < dt.timedelta(milliseconds=1)
        assert dt.timedelta(0) <= least - bound_of(kind, low) < dt.timedelta(milliseconds=1)
    elif kind in ("float", "double"):
        assert float(low) == least
        assert float(high) == greatest
    else:
        assert bound_of(kind, low) == least
        assert bound_of(kind, high) == greatest


def stats_of(kind, array, **more):
    schema = TableSchema((Field("c", kind),))
    table = pa.Table.from_arrays([array], schema=schema.arrow)
    return json.loads(file_statistics(schema.fields, table, **more))


@pytest.mark.parametrize(
    ("greatest", "bound"),
    [
        ("a" * 33, "a" * 31 + "b"),
        ("a" * 32, "a" * 32),
        ("a" * 31 + "\ud7ff" + "x", "a" * 31 + "\ue000"),
        ("a" * 31 + "\U0010ffff" + "x", "a" * 30 + "b"),
        ("a" * 30 + "\ud7ff" + "\U0010ffff" * 2, "a" * 30 + "\ue000"),
        ("😀" * 33, "😀" * 31 + "😁"),
        ("\U0010ffff" * 33, None),
        ("\U0010ffff" * 32, "\U0010ffff" * 32),
        ("a" * 31 + "\uffff" + "x", "a" * 31 + "\U00010000"),
    ],
)
def test_long_text_has_a_cut_bound_that_still_holds(greatest, bound):
    stats = stats_of("string", pa.array([greatest]))
    assert stats["minValues"]["c"] == greatest[:TEXT_MAX]
    assert stats["maxValues"].get("c") == bound


def test_zero_is_bounded_on_both_sides_whatever_its_sign():
    for values in ([0.0, -0.0], [-0.0, 0.0], [0.0], [-0.0]):
        text = file_statistics((Field("c", "double"),), pa.table({"c": values}))
        assert '"minValues":{"c":-0.0}' in text
        assert '"maxValues":{"c":0.0}' in text


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_column_with_a_number_that_json_lacks_has_no_bounds(kind, odd):
    array = pa.array([1.5, odd, None, 2.5], pa.float32() if kind == "float" else pa.float64())
    stats = stats_of(kind, array)
    assert stats["minValues"] == stats["maxValues"] == {}
    assert stats["nullCount"] == {"c": 1}


def test_decimals_are_written_digit_by_digit():
    values = [Decimal("-1234567890123456789012345678.0123456789"), Decimal("1E-10"), Decimal(0)]
    schema = (Field("c", DecimalType(38, 10)),)
    table = pa.table({"c": pa.array(values, pa.decimal128(38, 10))})
    text = file_statistics(schema, table)
    assert '"minValues":{"c":-1234567890123456789012345678.0123456789}' in text
    assert '"maxValues":{"c":0.0000000001}' in text


def test_times_that_readers_cannot_parse_are_no_bounds():
    micros = pa.array([-62_135_596_800_000_001, 253_402_300_799_999_001])
    stats = stats_of("timestamp", micros.cast(pa.timestamp("us", tz="UTC")))
    assert stats["minValues"] == stats["maxValues"] == {}
    days = pa.array([-719_163, 2_932_897], pa.int32())
    stats = stats_of("date", days.cast(pa.date32()))
    assert stats["minValues"] == stats["maxValues"] == {}


def test_the_first_leaf_columns_have_statistics_and_no_more():
    kind = StructType((Field("x", "long"), Field("y", ArrayType("long")), Field("z", "long")))
    schema = TableSchema((Field("a", "long"), Field("s", kind), Field("b", "long")))
    table = rows_of(schema, [{"a": 1, "s": {"x": 2, "y": [3], "z": 4}, "b": 5}])

    def counted(columns_max):
        stats = json.loads(file_statistics(schema.fields, table, columns_max=columns_max))
        return stats["nullCount"]

    assert counted(3) == {"a": 0, "s": {"x": 0, "y": 0}}
    assert counted(1) == {"a": 0}
    assert counted(0) == {}
    assert counted(-1) == {"a": 0, "s": {"x": 0, "y": 0, "z": 0}, "b": 0}
    wide = TableSchema(tuple(Field(f"c{i}", "long") for i in range(40)))
    text = file_statistics(wide.fields, rows_of(wide, [{}]))
    assert len(json.loads(text)["nullCount"]) == 32


# --- readers skip files by our statistics, and miss nothing ------------------------------------

SKIPPED_BY = {
    "string": [
        "",
        "a" * 31,
        "a" * 32,
        "a" * 33,
        "a" * 31 + "\ud7ff" + "z",
        "a" * 31 + "\U0010ffff",
        "a" * 31 + "\U0010ffff" + "z",
        "\U0010ffff" * 34,
        "😀" * 40,
        "é\n\"'",
    ],
    "long": [-(2**63), 2**63 - 1, 2**53 + 1, 0],
    "double": [0.1, -0.0, 0.0, 5e-324, 1.7976931348623157e308, -1e300],
    "float": [np.float32(0.1).item(), np.float32(16_777_217.0).item(), -0.5],
    "timestamp": [
        dt.datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        dt.datetime(2024, 1, 1, 0, 0, 0, 999_999, tzinfo=UTC),
        dt.datetime(1969, 12, 31, 23, 59, 59, 999_001, tzinfo=UTC),
        dt.datetime(1900, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    ],
    "timestamp_ntz": [
        dt.datetime(2024, 1, 1, 0, 0, 0, 1),  # noqa: DTZ001  # zone-less is the point
        dt.datetime(1950, 1, 1, 0, 0, 0, 999_999),  # noqa: DTZ001  # zone-less is the point
    ],
    "date": [dt.date(1, 1, 1), dt.date(1969, 12, 31), dt.date(9999, 12, 31)],
    DecimalType(38, 10): [
        Decimal("-1234567890123456789012345678.0123456789"),
        Decimal("1234567890123456789012345678.0123456789"),
        Decimal("1E-10"),
    ],
    DecimalType(12, 2): [Decimal("-0.05"), Decimal("0.10"), Decimal("9999999999.99")],
    "boolean": [True, False],
}


def literal(kind, value):
    match kind:
        case "string":
            return "'" + value.replace("'", "''") + "'"
        case "timestamp":
            return f"arrow_cast('{value.isoformat()}', 'Timestamp(Microsecond, Some(\"UTC\"))')"
        case "timestamp_ntz":
            return f"arrow_cast('{value.isoformat()}', 'Timestamp(Microsecond, None)')"
        case "date":
            return f"arrow_cast('{value.isoformat()}', 'Date32')"
        case "float":
            return f"arrow_cast({value!r}, 'Float32')"
        case "double":
            return f"arrow_cast({value!r}, 'Float64')"
        case DecimalType(precision, scale):
            return f"arrow_cast('{value:f}', 'Decimal128({precision}, {scale})')"
        case _:
            return str(value)


@pytest.mark.parametrize("kind", SKIPPED_BY, ids=str)
def test_a_predicate_on_any_value_finds_its_rows(tmp_path, kind):
    """One file a value: a bound that is too narrow by anything makes its file disappear."""
    schema = TableSchema((Field("c", kind), Field("n", "long")))
    layout = FileLayout(schema)
    values = SKIPPED_BY[kind]
    files = [
        file
        for index, value in enumerate(values)
        for file in encode_files(
            [rows_of(schema, [{"c": value, "n": index}])], layout, tag=1, unique_id=UNIQUE
        )
    ]
    table = write_table(tmp_path, layout, files)
    for value in values:
        text = literal(kind, value)
        found = query(table, f"select n from t where c = {text}")["n"].to_pylist()
        assert values.index(value) in found
        for sign, holds in ((">=", lambda v, w: v >= w), ("<=", lambda v, w: v <= w)):
            sql = f"select n from t where c {sign} {text}"
            expected = {n for n, v in enumerate(values) if holds(v, value)}
            assert expected <= set(query(table, sql)["n"].to_pylist())


def test_the_reader_of_these_tests_does_skip_files_by_their_statistics(tmp_path):
    """Otherwise the test above would prove nothing: with wrong bounds the rows are gone."""
    schema = TableSchema((Field("c", "long"),))
    layout = FileLayout(schema)
    (file,) = encode(layout, rows_of(schema, [{"c": 5}]))
    wrong = DataFile(file.path, file.data, {}, 1, file.stats.replace('"c":5', '"c":6'))
    table = write_table(tmp_path, layout, [wrong])
    assert query(table, "select * from t where c = 5").num_rows == 0
    assert query(table, "select * from t").num_rows == 1
