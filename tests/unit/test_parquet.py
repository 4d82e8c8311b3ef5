"""Data files: statistics against a full scan, and what deltalake reads of a table made of them."""

import datetime as dt
import itertools
import json
import math
from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.delta.hive import add_path
from delta_sink.delta.parquet import DataFile, FileLayout, encode_files, file_name, tag_of
from delta_sink.delta.schema import ArrayType, Field, MapType, StructType, TableSchema
from delta_sink.delta.schema import Decimal as DecimalType
from delta_sink.delta.statistics import TEXT_MAX, file_statistics
from delta_sink.errors import ConfigError

UTC = dt.UTC


def ids():
    counter = itertools.count()
    return lambda: f"{next(counter):032x}"


def encode(layout, *tables, tag=7):
    return encode_files(list(tables), layout, tag=tag, unique_id=ids())


def rows_of(schema, rows):
    return pa.Table.from_pylist(rows, schema=schema.arrow)


def write_table(folder, layout, files):
    """Put `files` into `folder` with one log entry written by hand; return deltalake's table."""
    ntz = ["timestampNtz"] if layout.schema.has_timestamp_ntz else []
    metadata = {
        "id": "t",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": layout.schema.to_json(),
        "partitionColumns": list(layout.partition_by),
        "configuration": {},
        "createdTime": 0,
    }
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    actions = [
        {"protocol": {**protocol, "readerFeatures": ntz, "writerFeatures": ntz}},
        {"metaData": metadata},
    ]
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(file.data)
        add = {
            "path": add_path(file.path),
            "partitionValues": file.partition_values,
            "size": file.size_bytes,
            "modificationTime": 0,
            "dataChange": True,
            "stats": file.stats,
        }
        actions.append({"add": add})
    (folder / "_delta_log").mkdir()
    entry = folder / "_delta_log" / f"{0:020d}.json"
    lines = [json.dumps(a, ensure_ascii=False) for a in actions]
    entry.write_bytes("\n".join(lines).encode())
    return DeltaTable(str(folder))


def query(table, sql):
    return pa.table(QueryBuilder().register("t", table).execute(sql).read_all())


def canonical(value):
    """A row as something that compares: NaN to itself, -0.0 apart from 0.0."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return tuple((k, canonical(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(canonical(v) for v in value)
    return value


def multiset(table):
    return Counter(canonical(row) for row in table.to_pylist())


# --- random tables ------------------------------------------------------------------------------

texts = st.text(max_size=6) | st.text('a\ud7ff\U0010ffff\ue000é😀\0"', min_size=28, max_size=40)
VALUES = {
    "string": texts,
    "long": st.integers(-(2**63), 2**63 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "short": st.integers(-(2**15), 2**15 - 1),
    "byte": st.integers(-128, 127),
    "double": st.floats() | st.sampled_from([0.0, -0.0]),
    "float": st.floats(width=32) | st.sampled_from([0.0, -0.0]),
    "boolean": st.booleans(),
    "binary": st.binary(max_size=5),
    "date": st.dates(),
    "timestamp": st.datetimes(timezones=st.just(UTC)),
    "timestamp_ntz": st.datetimes(),
}


def values_of(data_type):
    match data_type:
        case DecimalType(precision, scale):
            limit = 10**precision - 1
            numbers = st.integers(-limit, limit)
            strategy = numbers.map(
                lambda n: Decimal((n < 0, Decimal(abs(n)).as_tuple().digits, -scale))
            )
        case ArrayType(element):
            strategy = st.lists(values_of(element), max_size=3)
        case MapType(key, value):
            keys = values_of(key).filter(lambda k: k is not None)
            strategy = st.dictionaries(keys, values_of(value), max_size=3).map(
                lambda d: list(d.items())
            )
        case StructType(fields):
            strategy = st.fixed_dictionaries({f.name: values_of(f.type) for f in fields})
        case name:
            strategy = VALUES[name]
    return st.none() | strategy


simple = st.sampled_from(sorted(VALUES)) | st.sampled_from([DecimalType(38, 10), DecimalType(5, 0)])
structs = st.lists(simple, min_size=1, max_size=3).map(
    lambda kinds: StructType(tuple(Field(f"f{i}", kind) for i, kind in enumerate(kinds)))
)
types = simple | structs | st.builds(ArrayType, simple) | st.just(MapType("string", "long"))
types |= structs.map(lambda s: StructType((Field("deep", s), Field("flat", "long"))))


@st.composite
def tables(draw):
    kinds = draw(st.lists(types, min_size=1, max_size=4))
    schema = TableSchema(tuple(Field(f"c{i}", kind) for i, kind in enumerate(kinds)))
    row = st.fixed_dictionaries({f.name: values_of(f.type) for f in schema.fields})
    rows = draw(st.lists(row, min_size=1, max_size=12))
    return schema, rows_of(schema, rows)


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


# --- files --------------------------------------------------------------------------------------

EVENTS = TableSchema(
    (
        Field("id", "long", nullable=False),
        Field("day", "date"),
        Field("region", "string"),
        Field("amount", DecimalType(12, 2)),
        Field("at", "timestamp"),
        Field("s", StructType((Field("x", "string"), Field("y", "integer")))),
        Field("l", ArrayType(StructType((Field("sku", "string"),)))),
        Field("m", MapType("string", "double")),
    )
)


def events(first, count):
    return rows_of(
        EVENTS,
        [
            {
                "id": i,
                "day": dt.date(2024, 1, 1 + i % 3),
                "region": [None, "eu", "a/b %"][i % 7 % 3],
                "amount": Decimal(i) / 4,
                "at": dt.datetime(2024, 1, 1, tzinfo=UTC) + dt.timedelta(microseconds=i),
                "s": None if i % 5 == 0 else {"x": f"x{i}", "y": i % 4},
                "l": [{"sku": f"sku{i % 2}"}] * (i % 3),
                "m": [("k", i / 3)] if i % 2 else None,
            }
            for i in range(first, first + count)
        ],
    )


def test_a_table_of_our_files_is_read_with_equal_rows_and_partitions(tmp_path):
    layout = FileLayout(EVENTS, partition_by=("day", "region"))
    source = [events(0, 50), events(50, 1), events(51, 200)]
    files = encode(layout, *source)
    table = write_table(tmp_path, layout, files)
    whole = pa.concat_tables(source)
    assert multiset(query(table, "select * from t")) == multiset(whole)
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert {a["num_records"] for a in actions} == {f.rows for f in files}
    for file in files:
        (action,) = [a for a in actions if a["path"] == add_path(file.path)]
        day, region = file.partition_values["day"], file.partition_values["region"]
        assert action["partition.day"] == dt.date.fromisoformat(day)
        assert action["partition.region"] == region
        same = [
            r for r in whole.to_pylist() if (r["day"].isoformat(), r["region"]) == (day, region)
        ]
        assert action["num_records"] == len(same)
        assert action["min.id"] == min(r["id"] for r in same)
        assert action["max.amount"] == max(r["amount"] for r in same)
        assert action["null_count.s.x"] == sum(r["s"] is None for r in same)


@given(tables())
@settings(max_examples=25, deadline=None)
def test_random_tables_are_read_with_equal_rows(tmp_path_factory, schema_and_rows):
    schema, rows = schema_and_rows
    layout = FileLayout(schema)
    half = rows.num_rows // 2
    files = [
        f
        for part in (rows[:half], rows[half:])
        for f in encode_files([part], layout, tag=1, unique_id=UNIQUE)
    ]
    table = write_table(tmp_path_factory.mktemp("t"), layout, files)
    assert multiset(query(table, "select * from t")) == multiset(rows)


UNIQUE = ids()


def test_files_come_in_the_order_of_their_values_and_rows_keep_theirs():
    layout = FileLayout(EVENTS, partition_by=("region", "day"))
    source = [events(0, 40), events(40, 60)]
    files = encode(layout, *source)
    values = [tuple(f.partition_values.values()) for f in files]
    assert values == sorted(values, key=lambda v: [(text is None, text) for text in v])
    assert len(set(values)) == len(values) == 9
    for file in files:
        stored = pq.read_table(pa.BufferReader(file.data))["id"].to_pylist()
        assert stored == sorted(stored)
        assert len(stored) == file.rows
    assert sum(f.rows for f in files) == 100
    again = encode(layout, *source)
    assert [(f.path, bytes(f.data), f.stats) for f in files] == [
        (f.path, bytes(f.data), f.stats) for f in again
    ]


def test_partition_columns_stand_in_the_path_and_not_in_the_file():
    layout = FileLayout(EVENTS, partition_by=("region",))
    file = encode(layout, events(0, 5))[0]
    assert file.partition_values == {"region": "a/b %"}
    assert file.path == f"region=a%2Fb %25/part-{7:020d}-{0:032x}.zstd.parquet"
    assert "region" not in pq.read_schema(pa.BufferReader(file.data)).names
    assert "region" not in json.loads(file.stats)["nullCount"]
    assert isinstance(file, DataFile)
    assert file.size_bytes == len(file.data) == len(bytes(file.data))


def test_what_the_file_holds_has_the_types_of_the_schema():
    file = encode(FileLayout(EVENTS), events(0, 9))[0]
    stored = pq.read_table(pa.BufferReader(file.data))
    assert stored.schema.equals(EVENTS.arrow, check_metadata=False)
    assert stored.equals(events(0, 9))
    assert pq.ParquetFile(pa.BufferReader(file.data)).metadata.metadata is None


def test_no_rows_give_no_file():
    layout = FileLayout(EVENTS, partition_by=("day",))
    assert encode(layout) == []
    assert encode(layout, EVENTS.arrow.empty_table()) == []


def test_rows_of_another_schema_are_a_programmers_error():
    with pytest.raises(AssertionError, match="wanted"):
        encode(FileLayout(EVENTS), events(0, 1).drop_columns(["day"]))


def test_a_null_in_a_required_column_reaches_no_file():
    rows = events(0, 1).set_column(0, EVENTS.arrow.field("id"), pa.nulls(1, pa.int64()))
    with pytest.raises(pa.ArrowInvalid, match="non-nullable"):
        encode(FileLayout(EVENTS), rows)


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "brotli", "lz4", "none"])
def test_each_codec_is_used_and_read(tmp_path, compression):
    layout = FileLayout(EVENTS, compression=compression)
    (file,) = encode(layout, events(0, 3))
    column = pq.ParquetFile(pa.BufferReader(file.data)).metadata.row_group(0).column(0)
    assert column.compression == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())
    assert query(write_table(tmp_path, layout, [file]), "select id from t").num_rows == 3
    assert tag_of(file.path) == 7


def test_many_small_tables_become_whole_row_groups():
    layout = FileLayout(EVENTS, row_group_rows=64)
    (file,) = encode(layout, *[events(i, 1) for i in range(150)])
    metadata = pq.ParquetFile(pa.BufferReader(file.data)).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [64, 64, 22]


# --- dictionaries and bloom filters -------------------------------------------------------------


def dictionary_paths(file):
    group = pq.ParquetFile(pa.BufferReader(file.data)).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    return {c.path_in_schema for c in columns if c.has_dictionary_page}


def test_only_columns_that_repeat_themselves_get_a_dictionary():
    (file,) = encode(FileLayout(EVENTS), events(0, 300))
    assert dictionary_paths(file) == {
        "day",
        "region",
        "s.y",
        "l.list.element.sku",
        "m.key_value.key",
    }


def test_dictionaries_by_name_all_or_none():
    def paths(dictionary):
        return dictionary_paths(encode(FileLayout(EVENTS, dictionary=dictionary), events(0, 50))[0])

    assert paths(("id", "s")) == {"id", "s.x", "s.y"}
    assert paths(False) == set()
    assert {"id", "amount", "s.x", "day"} <= paths(True)
    assert paths(()) == set()


def test_a_bloom_filter_is_written_where_it_is_asked_for():
    def blooms(*columns):
        (file,) = encode(FileLayout(EVENTS, bloom_filter_columns=columns), events(0, 300))
        return file.size_bytes, pq.read_table(pa.BufferReader(file.data))

    plain, rows = blooms()
    filtered, same = blooms("id", "region")
    assert rows.equals(same)
    assert filtered > plain + 300


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"compression": "lzo"}, "unknown compression 'lzo', wanted one of zstd, "),
        ({"compression_level": 23}, "zstd has no level 23, wanted 1 to 22"),
        ({"row_group_rows": 0}, "row groups of 0 rows, wanted at least 1"),
        ({"partition_by": ("s",)}, "column 's' is struct<x:string,y:integer>, which cannot"),
        ({"partition_by": ("nope",)}, "there is no column 'nope' to partition by"),
        ({"dictionary": ("nope",)}, "there is no column 'nope' for a dictionary"),
        ({"bloom_filter_columns": ("nope",)}, "there is no column 'nope' in the files"),
        ({"bloom_filter_columns": ("l",)}, "column 'l' has a type that gets no bloom filter"),
        (
            {"bloom_filter_columns": ("day",), "partition_by": ("day",)},
            "there is no column 'day' in the files",
        ),
    ],
)
def test_a_layout_that_cannot_be_written_is_refused(choice, sentence):
    with pytest.raises(ConfigError, match="table: ") as refused:
        FileLayout(EVENTS, **choice)
    assert any(sentence in problem for problem in refused.value.problems)


def test_a_pyarrow_without_bloom_filters_is_named(monkeypatch):
    class OldWriter:
        def __init__(self, where, schema): ...

    monkeypatch.setattr(pq, "ParquetWriter", OldWriter)
    with pytest.raises(ConfigError, match="writes no bloom filters"):
        FileLayout(EVENTS, bloom_filter_columns=("id",))
    FileLayout(EVENTS)


# --- names --------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1))
def test_a_name_carries_its_tag(tag):
    name = file_name(tag, "0123456789abcdef" * 2, "zstd")
    assert tag_of(name) == tag_of(f"day=2024-01-01/x=a%2Fb/{name}") == tag


@pytest.mark.parametrize(
    "path",
    [
        "part-00000-e232e999-e68e-451d-965a-a607bfc7603b-c000.snappy.parquet",
        "part-00000000000000000007-e232e999-e68e-451d-965a-a607bfc7603b-c000.zstd.parquet",
        f"part-{7:020d}-{0:032x}.zstd.parquet.tmp",
        f"part-{7:020d}-{0:032x}.zstd.parquet/x",
        f"part-{7:019d}-{0:032x}.zstd.parquet",
        "",
    ],
)
def test_names_of_others_have_no_tag(path):
    assert tag_of(path) is None


@pytest.mark.parametrize("unique_id", ["", "X" * 32, "0" * 31, "../" + "0" * 29])
def test_an_id_that_tag_of_would_not_read_is_a_programmers_error(unique_id):
    with pytest.raises(AssertionError):
        file_name(1, unique_id, "zstd")


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
