"""The columns beside the value, tombstones, table partitions, and what is said of each part."""

import datetime as dt
import zoneinfo

import numpy as np
import pyarrow as pa
import pytest

from delta_sink.decode.json import JsonDecoder
from delta_sink.decode.rows import DecodeSpec
from delta_sink.delta.schema import METADATA_FIELDS, Decimal, Derived, Field, TableSchema
from delta_sink.model import Records, TopicPartition

ALL = ("topic", "partition", "offset", "timestamp", "key", "headers")
UTC = zoneinfo.ZoneInfo("UTC")


def schema_of(*fields, metadata=ALL):
    return TableSchema((*fields, *(METADATA_FIELDS[name] for name in metadata)))


def records(values, *, topic="orders", partition=0, first=0, step=1, millis=1_700_000_000_123, extras=True):  # fmt: skip
    count = len(values)
    offsets = [first + i * step for i in range(count)]
    return Records(
        TopicPartition(topic, partition),
        first + count * step,
        offsets,
        values,
        [millis] * count,
        [b"k%d" % i if i % 2 else None for i in range(count)] if extras else (),
        [[("h", b"1"), ("h", None)] if i % 2 else [] for i in range(count)] if extras else (),
    )


def test_each_row_carries_where_it_came_from():
    spec = DecodeSpec(schema_of(Field("a", "long")), metadata_columns=ALL)
    chunk = [
        records([b'{"a":1}', b"bad", b'{"a":2}'], partition=4, first=10, step=5),
        records([], topic="empty"),
        records([b'{"a":3}', None], topic="returns", first=7),
    ]
    decoded = JsonDecoder(spec).decode(chunk)
    at = dt.datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
    header = [{"key": "h", "value": b"1"}, {"key": "h", "value": None}]
    assert decoded.rows.schema == spec.schema.arrow
    assert [tuple(row.values()) for row in decoded.rows.to_pylist()] == [
        (1, "orders", 4, 10, at, None, []),
        (2, "orders", 4, 20, at, None, []),
        (3, "returns", 0, 7, at, None, []),
    ]
    first, empty, last = decoded.parts
    assert (first.rows, [(b.offset, b.index) for b in first.bad], first.skipped) == (
        2,
        [(15, 1)],
        (),
    )
    assert (empty.tp.topic, empty.rows, empty.bad, empty.skipped) == ("empty", 0, (), ())
    assert (last.rows, last.bad, last.skipped) == (1, (), ((8, 9),))
    chunk = [records([b'{"a":1}', b'{"a":2}'])]
    assert JsonDecoder(spec).decode(chunk).rows["_kafka_headers"].to_pylist() == [[], header]
    assert JsonDecoder(spec).decode(chunk).rows["_kafka_key"].to_pylist() == [None, b"k1"]


def test_the_table_decides_the_order_of_columns():
    fields = (METADATA_FIELDS["offset"], Field("day", "date"), Field("a", "long"), Field("at", "timestamp"))  # fmt: skip
    spec = DecodeSpec(
        TableSchema(fields), (Derived("day", "date", "at"),), metadata_columns=("offset",)
    )
    decoded = JsonDecoder(spec).decode([records([b'{"a":1,"at":"2024-01-02"}'])])
    assert decoded.rows.column_names == ["_kafka_offset", "day", "a", "at"]


@pytest.mark.parametrize("chunk", [[], [records([])], [records([]), records([])]])
def test_nothing_to_decode(chunk):
    spec = DecodeSpec(schema_of(Field("a", "long")), metadata_columns=ALL)
    decoded = JsonDecoder(spec).decode(chunk)
    assert decoded.rows.num_rows == 0
    assert decoded.rows.schema == spec.schema.arrow
    assert [part.rows for part in decoded.parts] == [0] * len(chunk)


def test_kafkas_timestamp_is_null_where_there_is_none():
    spec = DecodeSpec(schema_of(Field("a", "long"), metadata=("timestamp",)), metadata_columns=("timestamp",))  # fmt: skip
    for millis, expected in [
        (-1, None),
        (2**62, None),
        (0, dt.datetime(1970, 1, 1, tzinfo=UTC)),
        (-86_400_000, dt.datetime(1969, 12, 31, tzinfo=UTC)),
    ]:
        decoded = JsonDecoder(spec).decode([records([b'{"a":1}'], millis=millis)])
        assert decoded.rows["_kafka_timestamp"].to_pylist() == [expected]


def test_numpy_columns_do_as_well():
    spec = DecodeSpec(schema_of(Field("a", "long"), metadata=ALL[:4]), metadata_columns=ALL[:4])
    part = Records(
        TopicPartition("t", 0), 3, np.arange(3), [b'{"a":1}', b"x", None], np.zeros(3, np.int64)
    )
    decoded = JsonDecoder(spec).decode([part])
    assert decoded.rows["_kafka_offset"].to_pylist() == [0]
    assert type(decoded.parts[0].bad[0].offset) is int
    assert decoded.parts[0].skipped == ((2, 3),)


def test_columns_that_were_not_read_are_a_programmers_error():
    spec = DecodeSpec(schema_of(Field("a", "long")), metadata_columns=ALL)
    with pytest.raises(AssertionError, match="keys"):
        JsonDecoder(spec).decode([records([b'{"a":1}'], extras=False)])


@pytest.mark.parametrize(
    ("function", "data_type", "expected"),
    [
        ("date", "date", [dt.date(1969, 12, 31), dt.date(2024, 2, 29), None]),
        ("year", "integer", [1969, 2024, None]),
        ("month", "integer", [12, 2, None]),
        ("day", "integer", [31, 29, None]),
        ("hour", "integer", [23, 22, None]),
    ],
)
@pytest.mark.parametrize("source_type", ["timestamp", "timestamp_ntz"])
def test_derived_columns_are_in_utc(function, data_type, expected, source_type):
    schema = TableSchema((Field("at", source_type), Field("d", data_type)))
    spec = DecodeSpec(schema, (Derived("d", function, "at"),), ("d",))
    zone = "+02:00" if source_type == "timestamp" else ""
    late = f"2024-03-01T00:59:59{zone}" if zone else "2024-02-29T22:59:59"
    values = [b'{"at":"1969-12-31T23:59:59.999999"}', b'{"at":"%s"}' % late.encode(), b"{}"]
    decoded = JsonDecoder(spec).decode([records(values)])
    assert decoded.rows["d"].to_pylist() == expected
    assert decoded.rows.schema == schema.arrow


def test_a_column_derived_from_kafkas_timestamp():
    schema = schema_of(Field("a", "long"), Field("d", "date"), metadata=("timestamp",))
    spec = DecodeSpec(schema, (Derived("d", "date", "_kafka_timestamp"),), ("d",), ("timestamp",))
    decoded = JsonDecoder(spec).decode([records([b'{"a":1}'])])
    assert decoded.rows["d"].to_pylist() == [dt.date(2023, 11, 14)]


def test_a_derived_column_in_the_value_is_an_unknown_field():
    schema = TableSchema((Field("at", "timestamp"), Field("d", "date")))
    spec = DecodeSpec(schema, (Derived("d", "date", "at"),))
    value = b'{"at":"2024-01-02","d":"1999-01-01"}'
    for count in (1, 50):
        decoded = JsonDecoder(spec).decode([records([value] * count)])
        assert set(decoded.rows["d"].to_pylist()) == {dt.date(2024, 1, 2)}
        assert decoded.unknown_fields == count


# --- tombstones -----------------------------------------------------------------------------------

TOMBSTONES = [None, b'{"a":1}', None, None, b'{"a":2}', None]


def test_tombstones_skipped():
    spec = DecodeSpec(TableSchema((Field("a", "long"),)), tombstones="skip")
    decoded = JsonDecoder(spec).decode([records(TOMBSTONES, first=10)])
    assert decoded.rows["a"].to_pylist() == [1, 2]
    assert decoded.parts[0].skipped == ((10, 11), (12, 14), (15, 16))
    only = JsonDecoder(spec).decode([records([None] * 3)])
    assert (only.rows.num_rows, only.parts[0].skipped) == (0, ((0, 3),))


def test_tombstones_as_dead_letters():
    spec = DecodeSpec(TableSchema((Field("a", "long"),)), tombstones="dead_letter")
    (part,) = JsonDecoder(spec).decode([records(TOMBSTONES, first=10)]).parts
    assert part.skipped == ()
    assert [(b.offset, b.reason) for b in part.bad] == [(o, "tombstone") for o in (10, 12, 13, 15)]
    assert part.bad[0].message == "orders/0@10: no value (a tombstone)"


def test_tombstones_as_rows_of_null():
    schema = schema_of(Field("a", "long"), Field("d", "date"), Field("m", Decimal(5, 2)), metadata=ALL[:4])  # fmt: skip
    spec = DecodeSpec(
        schema, (Derived("d", "date", "_kafka_timestamp"),), (), ALL[:4], tombstones="null_row"
    )
    decoded = JsonDecoder(spec).decode([records(TOMBSTONES, first=10), records([None])])
    assert decoded.rows["a"].to_pylist() == [None, 1, None, None, 2, None, None]
    assert decoded.rows["_kafka_offset"].to_pylist() == [10, 11, 12, 13, 14, 15, 0]
    assert decoded.rows["d"].null_count == 0
    assert [(p.rows, p.bad, p.skipped) for p in decoded.parts] == [(6, (), ()), (1, (), ())]


def test_a_row_of_null_is_bad_where_a_column_forbids_it():
    schema = TableSchema((Field("a", "long"), Field("b", "string", nullable=False)))
    (part,) = JsonDecoder(DecodeSpec(schema, tombstones="null_row")).decode([records([None])]).parts
    assert [(b.reason, b.message) for b in part.bad] == [
        ("missing_field", "orders/0@0: field 'b': expected string, got a tombstone")
    ]


# --- table partitions and columns that may not be null --------------------------------------------


def test_a_value_that_cannot_be_a_table_partition_is_a_bad_record():
    schema = schema_of(Field("a", "long"), Field("p", "string"), metadata=("offset",))
    spec = DecodeSpec(schema, (), ("p",), ("offset",))
    values = [b'{"p":"x/y"}', b'{"p":""}', b'{"p":null}', b'{"p":"a\\u0000b"}', b'{"p":"z"}'] * 5
    decoded = JsonDecoder(spec).decode([records(values)])
    assert decoded.rows["p"].to_pylist() == ["x/y", None, "z"] * 5
    assert decoded.rows["_kafka_offset"].to_pylist()[:4] == [0, 2, 4, 5]
    (part,) = decoded.parts
    assert {b.reason for b in part.bad} == {"bad_partition_value"}
    assert [b.offset for b in part.bad][:3] == [1, 3, 6]
    assert "'a\\x00b'" in part.bad[1].message
    assert "x00" not in part.bad[1].redacted


def test_a_derived_column_that_may_not_be_null():
    schema = TableSchema((Field("at", "timestamp"), Field("y", "integer", nullable=False)))
    spec = DecodeSpec(schema, (Derived("y", "year", "at"),))
    decoded = JsonDecoder(spec).decode([records([b"{}", b'{"at":"2024-01-02"}'])])
    assert decoded.rows["y"].to_pylist() == [2024]
    assert [(b.index, b.reason) for b in decoded.parts[0].bad] == [(0, "missing_field")]


def test_a_table_of_metadata_columns_only():
    spec = DecodeSpec(schema_of(metadata=("offset",)), metadata_columns=("offset",))
    decoded = JsonDecoder(spec).decode([records([b"{}", b"x", b'{"a":1}', None])])
    assert decoded.rows.to_pydict() == {"_kafka_offset": [0, 2]}
    assert decoded.unknown_fields == 1


def test_rows_keep_the_order_of_records_whoever_decided_them():
    spec = DecodeSpec(TableSchema((Field("a", "long"), Field("t", "timestamp"))))
    odd = {0: b'{"a":0.0}', 7: b"[]", 8: b'{"a":8,"zz":1}', 300: b'{"a":300,"t":"2024-01-02T00:00:00.1234567Z"}'}  # fmt: skip
    values = [odd.get(i, b'{"a":%d}' % i) for i in range(1000)]
    decoded = JsonDecoder(spec).decode([records(values[:400]), records(values[400:])])
    assert decoded.rows["a"].to_pylist() == [i for i in range(1000) if i != 7]
    assert isinstance(decoded.rows, pa.Table)
