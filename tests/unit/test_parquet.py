"""Data files: how rows become files, and what deltalake reads of a table made of them."""

import datetime as dt
import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.delta.hive import add_path
from delta_sink.delta.parquet import DataFile, FileLayout, encode_files, file_name, tag_of
from delta_sink.delta.schema import ArrayType, Field, MapType, StructType, TableSchema
from delta_sink.delta.schema import Decimal as DecimalType
from delta_sink.errors import ConfigError
from tests.unit.delta_tables import encode, ids, multiset, query, rows_of, tables, write_table

UTC = dt.UTC

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


def test_two_table_partitions_are_two_files():
    rows = events(0, 2)
    files = encode(FileLayout(EVENTS, partition_by=("day",)), rows)
    assert [f.partition_values["day"] for f in files] == ["2024-01-01", "2024-01-02"]
    stored = pa.concat_tables(pq.read_table(pa.BufferReader(f.data)) for f in files)
    assert stored.equals(rows.drop_columns(["day"]))


def test_values_equal_in_arrow_and_not_in_delta_stay_apart():
    schema = TableSchema((Field("p", "double"), Field("v", "long")))
    rows = rows_of(schema, [{"p": p, "v": i} for i, p in enumerate([0.0, -0.0, None, 0.0])])
    files = encode(FileLayout(schema, partition_by=("p",)), rows)
    found = [(f.partition_values["p"], f.rows) for f in files]
    assert found == [("-0", 1), ("0", 2), (None, 1)]


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


def test_statistics_of_what_has_one_value_a_row():
    (file,) = encode(FileLayout(EVENTS), events(0, 300))
    group = pq.ParquetFile(pa.BufferReader(file.data)).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    assert {c.path_in_schema for c in columns if c.is_stats_set} == {
        *("id", "day", "region", "amount", "at", "s.x", "s.y")
    }


def test_dictionaries_by_name_all_or_none():
    def paths(dictionary):
        return dictionary_paths(encode(FileLayout(EVENTS, dictionary=dictionary), events(0, 50))[0])

    assert paths(("id", "s")) == {"id", "s.x", "s.y"}
    assert paths(("m", "l")) == {"m.key_value.key", "m.key_value.value", "l.list.element.sku"}
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
