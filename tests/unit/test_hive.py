"""Table partition values: each spelling, and that deltalake finds file and value by it."""

import datetime as dt
import json
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.delta.hive import (
    SEGMENT_BYTES_MAX,
    add_path,
    escape,
    object_path,
    partition_path,
    partition_problems,
    partition_strings,
    unusable,
)
from delta_sink.delta.schema import ArrayType, Field, StructType, TableSchema, arrow_type
from delta_sink.delta.schema import Decimal as DecimalType
from delta_sink.errors import TableRefused

UTC = dt.UTC
ODD_TEXTS = [
    "a b",
    " ",
    "50%",
    "%41",
    "%2F",
    "a=b",
    "a:b",
    "ü",
    "u\u0308",
    "a/b",
    "../../evil",
    "..",
    ".",
    "😀",
    "\U00020000",
    "a+b",
    "q?x#y",
    "line\nbreak",
    "tab\t",
    "\u2028",
    "\x01\x7f",
    "quote'\"\\",
    "a&b;c,d",
    "~^[]{}|<>`*!@$()",
    "__HIVE_DEFAULT_PARTITION__",
    "null",
    "x" * (SEGMENT_BYTES_MAX - len("p=")),
]


def read_partitions(folder, column_type, array):
    """Write one file a value by hand, with our three spellings; return what deltalake reads."""
    schema = TableSchema((Field("p", column_type), Field("v", "long")))
    ntz = ["timestampNtz"] if schema.has_timestamp_ntz else []
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    protocol |= {"readerFeatures": ntz, "writerFeatures": ntz}
    metadata = {
        "id": "t",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema.to_json(),
        "partitionColumns": ["p"],
        "configuration": {},
        "createdTime": 0,
    }
    actions = [{"protocol": protocol}, {"metaData": metadata}]
    for index, text in enumerate(partition_strings(array).to_pylist()):
        path = f"{partition_path(['p'], [text])}/{index}.parquet"
        (folder / path).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"v": [index]}), folder / path)
        add = {"path": add_path(path), "partitionValues": {"p": text}, "dataChange": True}
        size = (folder / path).stat().st_size
        actions.append({"add": {**add, "size": size, "modificationTime": 0}})
    (folder / "_delta_log").mkdir()
    entry = folder / "_delta_log" / f"{0:020d}.json"
    entry.write_text(
        "\n".join(json.dumps(a, ensure_ascii=False) for a in actions), encoding="utf-8"
    )
    query = QueryBuilder().register("t", DeltaTable(str(folder)))
    return pa.table(query.execute("select p, v from t order by v").read_all())["p"].to_pylist()


@pytest.mark.parametrize(
    ("column_type", "values", "texts"),
    [
        ("string", [*ODD_TEXTS, None], [*ODD_TEXTS, None]),
        ("long", [-(2**63), 2**63 - 1, None], [str(-(2**63)), str(2**63 - 1), None]),
        ("byte", [-128, 127], ["-128", "127"]),
        ("boolean", [True, False, None], ["true", "false", None]),
        (
            "date",
            [dt.date(1, 1, 1), dt.date(2024, 2, 29), dt.date(9999, 12, 31), None],
            ["0001-01-01", "2024-02-29", "9999-12-31", None],
        ),
        (
            "timestamp",
            [
                dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
                dt.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
                dt.datetime(1, 1, 1, tzinfo=UTC),
                None,
            ],
            [
                "2024-01-02T03:04:05.000000Z",
                "1969-12-31T23:59:59.999999Z",
                "0001-01-01T00:00:00.000000Z",
                None,
            ],
        ),
        (
            "timestamp_ntz",
            [dt.datetime(2024, 1, 2, 3, 4, 5), dt.datetime(1900, 1, 1, 0, 0, 0, 1), None],  # noqa: DTZ001  # zone-less is the point
            ["2024-01-02 03:04:05", "1900-01-01 00:00:00.000001", None],
        ),
        (
            DecimalType(12, 2),
            [Decimal("1.20"), Decimal("-0.05"), Decimal("0.00"), Decimal("-1234567890.12"), None],
            ["1.20", "-0.05", "0.00", "-1234567890.12", None],
        ),
        (
            DecimalType(38, 10),
            [Decimal("1E-10"), Decimal("0E-10"), Decimal("-1234567890123456789012345678.5")],
            ["0.0000000001", "0.0000000000", "-1234567890123456789012345678.5000000000"],
        ),
        (
            "double",
            [0.1, -1e300, 5e-324, 1e16, None],
            ["0.1", "-1e+300", "5e-324", "1e+16", None],
        ),
        ("float", [0.5, 2.0**100], ["0.5", "1.2676506e+30"]),
    ],
    ids=str,
)
def test_values_are_spelled_as_delta_does_and_read_back(tmp_path, column_type, values, texts):
    array = pa.array(values, arrow_type(column_type))
    assert partition_strings(array).to_pylist() == texts
    assert not any(unusable(array, "p").to_pylist())
    assert read_partitions(tmp_path, column_type, array) == array.to_pylist()


def test_zero_keeps_its_sign(tmp_path):
    found = read_partitions(tmp_path, "double", pa.array([-0.0, 0.0]))
    assert [math.copysign(1, x) for x in found] == [-1, 1]


def test_strings_of_chunked_columns_are_one_array():
    column = pa.chunked_array([pa.array([1, None]), pa.array([3])])
    assert partition_strings(column).to_pylist() == ["1", None, "3"]
    assert unusable(column).to_pylist() == [False, False, False]


@pytest.mark.parametrize("kind", [pa.binary(), pa.list_(pa.int64()), pa.struct([("a", pa.int8())])])
def test_types_that_cannot_partition_raise(kind):
    with pytest.raises(ValueError, match="cannot partition"):
        partition_strings(pa.nulls(1, kind))


# --- values that cannot be a table partition ---------------------------------------------------


@pytest.mark.parametrize(
    ("value", "is_unusable"),
    [
        ("", True),
        ("a\0b", True),
        ("x" * 253, False),
        ("x" * 254, True),
        (":" * 84, False),
        (":" * 85, True),
        ("ü" * 126, False),
        ("ü" * 127, True),
        ("..", False),
        (None, False),
    ],
)
def test_text_that_cannot_be_a_folder_is_unusable(value, is_unusable):
    assert unusable(pa.array([value], pa.string()), "p").to_pylist() == [is_unusable]


@given(st.lists(st.text(max_size=90) | st.text("%:/=ü😀\0 ", max_size=90)), st.text(max_size=3))
@settings(max_examples=300, deadline=None)
def test_usable_means_that_the_folder_name_fits(texts, name):
    column = pa.array(texts, pa.string())
    for text, bad in zip(texts, unusable(column, name).to_pylist(), strict=True):
        segment = partition_path([name], [text])
        too_long = len(segment.encode()) > SEGMENT_BYTES_MAX
        assert bad == (text == "" or "\0" in text or too_long)
        assert "/" not in segment
        assert not any(ord(mark) < 32 for mark in segment)


def test_numbers_and_days_that_readers_cannot_parse_are_unusable():
    floats = pa.array([1.0, math.nan, math.inf, -math.inf, None])
    assert unusable(floats).to_pylist() == [False, True, True, True, False]
    days = pa.array([-719_162, -719_163, 2_932_896, 2_932_897, None], pa.int32())
    expected = [False, True, False, True, False]
    assert unusable(days.cast(pa.date32())).to_pylist() == expected
    first, after = -62_135_596_800_000_000, 253_402_300_800_000_000
    micros = pa.array([first, first - 1, after - 1, after, None])
    for kind in (pa.timestamp("us"), pa.timestamp("us", tz="UTC")):
        assert unusable(micros.cast(kind)).to_pylist() == expected
    assert unusable(pa.array([True, None])).to_pylist() == [False, False]


# --- paths --------------------------------------------------------------------------------------


def test_folders_are_hives():
    assert partition_path((), ()) == ""
    path = partition_path(("day", "a/b"), ("2026-11-24", None))
    assert path == "day=2026-11-24/a%2Fb=__HIVE_DEFAULT_PARTITION__"
    assert escape("ü 😀 50%:") == "ü 😀 50%25%3A"


def test_the_log_holds_the_path_as_a_url():
    assert add_path("p=ü 50%25/x.parquet") == "p=%C3%BC%2050%2525/x.parquet"
    assert add_path("p=a+b&c/x") == "p=a%2Bb%26c/x"


@given(st.text(min_size=1))
def test_object_path_undoes_add_path(text):
    path = f"{partition_path(['p'], [text])}/x.parquet"
    assert object_path(add_path(path)) == path


@pytest.mark.parametrize(
    "path",
    [
        "s3://other/x.parquet",
        "file:/etc/passwd",
        "/etc/passwd",
        "%2Fetc/x",
        "a/../../x",
        "p/%2E./x",
    ],
)
def test_a_path_out_of_the_table_is_refused(path):
    with pytest.raises(TableRefused, match="outside the table"):
        object_path(path)


# --- partition_by -------------------------------------------------------------------------------

SCHEMA = TableSchema(
    (
        Field("day", "date"),
        Field("raw", "binary"),
        Field("l", ArrayType("long")),
        Field("s", StructType((Field("x", "long"),))),
    )
)


@pytest.mark.parametrize(
    ("partition_by", "problems"),
    [
        ((), []),
        (("day",), []),
        (("Day",), ["there is no column 'Day' to partition by"]),
        (("day", "day"), ["column 'day' is named twice to partition by"]),
        (("raw",), ["column 'raw' is binary, which cannot partition a table"]),
        (("l",), ["column 'l' is array<long>, which cannot partition a table"]),
        (("s",), ["column 's' is struct<x:long>, which cannot partition a table"]),
    ],
)
def test_columns_that_cannot_partition_are_named(partition_by, problems):
    assert partition_problems(SCHEMA, partition_by) == problems


def test_a_table_of_nothing_but_partition_columns_is_refused():
    schema = TableSchema((Field("a", "long"), Field("b", "long")))
    assert "all columns" in partition_problems(schema, ("b", "a"))[0]
    assert partition_problems(schema, ("a",)) == []
