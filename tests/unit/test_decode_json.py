"""What becomes of each kind of JSON value in each type of column: the acceptance list.

Every case is decided four times: alone, among many good neighbours (the plain path must leave it or
agree), so without the plain path (pyarrow must refuse or agree) and by the exact path. The answers
must be the same.
"""

import datetime as dt
import json
import math
import zoneinfo
from decimal import Decimal as Exactly

import pyarrow as pa
import pyarrow.json as pj
import pytest

from delta_sink.decode.json import ArrowFastPath, JsonDecoder, Refused, Sure
from delta_sink.decode.rows import DecodeSpec
from delta_sink.delta.schema import ArrayType, Decimal, Field, MapType, StructType, TableSchema
from delta_sink.model import Records, TopicPartition

TP = TopicPartition("orders", 3)
UTC = zoneinfo.ZoneInfo("UTC")


def records(values):
    return Records(TP, 100 + len(values), range(100, 100 + len(values)), values)


def never_fast(_spec):
    return lambda _values: Refused()


def spec_of(data_type, **options):
    return DecodeSpec(TableSchema((Field("a", data_type), Field("n", "long"))), **options)


def fates(spec, value, *, wrap=True):
    """The row or reason of one value, decided in four ways that must agree."""
    value = b'{"a":%s}' % value if wrap else value
    answers = []
    ways = ((None, 0, 0), (None, 30, 30), (ArrowFastPath, 30, 30), (never_fast, 3, 3))
    for fast, before, after in ways:
        chunk = [b'{"n":%d}' % i for i in range(before)] + [value]
        chunk += [b'{"n":%d}' % i for i in range(after)]
        decoded = JsonDecoder(spec, fast).decode([records(chunk)])
        (part,) = decoded.parts
        assert part.rows == decoded.rows.num_rows == len(chunk) - len(part.bad)
        decoded.rows.validate(full=True)
        assert decoded.rows.schema == spec.schema.arrow
        if part.bad:
            (bad,) = part.bad
            assert (bad.index, bad.offset) == (before, 100 + before)
            answers.append((bad.reason, bad.message.split(": ", 1)[1]))
        else:
            answers.append(("row", decoded.rows.slice(before, 1).to_pylist()[0]["a"]))
    assert len({repr(answer[1]).replace("'", "") for answer in answers}) == 1, answers
    assert all(answer == answers[0] for answer in answers) or _both_nan(answers)
    return answers[0]


def _both_nan(answers):
    return all(isinstance(a[1], float) and math.isnan(a[1]) for a in answers)


def wall(*args):
    return dt.datetime(*args)  # noqa: DTZ001 - a column without a zone


def ts(*args):
    return dt.datetime(*args, tzinfo=UTC)


MIN_LONG, MAX_LONG = -(2**63), 2**63 - 1

TAKEN = [
    # Whole numbers, however they are written.
    ("long", "1", 1),
    ("long", "1.0", 1),
    ("long", "1e3", 1000),
    ("long", "1.5e1", 15),
    ("long", "-0", 0),
    ("long", "-0.0", 0),
    ("long", "0e999999999999", 0),
    ("long", "1200e-2", 12),
    ("long", "9007199254740993", 2**53 + 1),
    ("long", "9007199254740993.0", 2**53 + 1),
    ("long", str(MIN_LONG), MIN_LONG),
    ("long", f"{MAX_LONG}.000", MAX_LONG),
    ("integer", "2147483647", 2**31 - 1),
    ("short", "-32768", -(2**15)),
    ("byte", "127", 127),
    ("long", "null", None),
    # Binary floats mean the nearest value; underflow is such a value.
    ("double", "1.5", 1.5),
    ("double", "3", 3.0),
    ("double", "0.1", 0.1),
    ("double", "-0.0", -0.0),
    ("double", "1e-400", 0.0),
    ("double", "1.7976931348623157e308", 1.7976931348623157e308),
    ("double", "5e-324", 5e-324),
    ("float", "1.5", 1.5),
    ("float", "3.4028235e38", 3.4028234663852886e38),
    ("float", "1e-60", 0.0),
    ("boolean", "true", True),
    ("boolean", "false", False),
    # Text.
    ("string", '""', ""),
    ("string", '"NaN"', "NaN"),
    ("string", r'"\u0041\/\n"', "A/\n"),
    ("string", r'"\ud83d\ude00"', "😀"),
    ("string", '"é😀"', "é😀"),
    ("string", r'"a\u0000b"', "a\0b"),
    # Decimals as number or string, if they fit exactly.
    (Decimal(12, 2), "12.34", Exactly("12.34")),
    (Decimal(12, 2), '"12.34"', Exactly("12.34")),
    (Decimal(12, 2), "1e2", Exactly("100.00")),
    (Decimal(12, 2), '"+1.5"', Exactly("1.50")),
    (Decimal(12, 2), "12.3400000000000000000000000000000000000000000000", Exactly("12.34")),
    (Decimal(12, 2), "9999999999.99", Exactly("9999999999.99")),
    (Decimal(12, 2), "0e-999999999", Exactly("0.00")),
    (Decimal(12, 2), '"-0.00"', Exactly("0.00")),
    (Decimal(38, 38), '"0.1"', Exactly("0.1" + "0" * 37)),
    (Decimal(38, 0), "9" * 38, Exactly("9" * 38)),
    # Dates and times.
    ("date", '"2024-02-29"', dt.date(2024, 2, 29)),
    ("date", '"0001-01-01"', dt.date(1, 1, 1)),
    ("timestamp", '"2024-01-02T03:04:05Z"', ts(2024, 1, 2, 3, 4, 5)),
    ("timestamp", '"2024-01-02T03:04:05"', ts(2024, 1, 2, 3, 4, 5)),
    ("timestamp", '"2024-01-02 03:04"', ts(2024, 1, 2, 3, 4)),
    ("timestamp", '"2024-01-02T03"', ts(2024, 1, 2, 3)),
    ("timestamp", '"2024-01-02"', ts(2024, 1, 2)),
    ("timestamp", '"2024-01-02T03:04:05+02:00"', ts(2024, 1, 2, 1, 4, 5)),
    ("timestamp", '"2024-01-02T03:04:05-0130"', ts(2024, 1, 2, 4, 34, 5)),
    ("timestamp", '"2024-01-02T03:04:05+02"', ts(2024, 1, 2, 1, 4, 5)),
    ("timestamp", '"2024-01-02T03:04:05.1234569Z"', ts(2024, 1, 2, 3, 4, 5, 123456)),
    ("timestamp", '"1969-12-31T23:59:59.999999999"', ts(1969, 12, 31, 23, 59, 59, 999999)),
    ("timestamp", '"9999-12-31T23:59:59.9999999Z"', ts(9999, 12, 31, 23, 59, 59, 999999)),
    ("timestamp_ntz", '"2024-01-02T03:04:05"', wall(2024, 1, 2, 3, 4, 5)),
    ("timestamp_ntz", '"2024-01-02 03:04:05.1234567"', wall(2024, 1, 2, 3, 4, 5, 123456)),
    ("binary", '"aGk="', b"hi"),
    ("binary", '""', b""),
    # Nested.
    (ArrayType("long"), "[1,null,2.0]", [1, None, 2]),
    (ArrayType("long"), "[]", []),
    (StructType((Field("x", "long"), Field("y", "date"))), '{"y":"2024-01-02"}', {"x": None, "y": dt.date(2024, 1, 2)}),
    (ArrayType(StructType((Field("x", "long"),))), '[null,{},{"x":1}]', [None, {"x": None}, {"x": 1}]),
    (MapType("string", "long"), '{"k":1,"":null}', [("k", 1), ("", None)]),
    (MapType("long", "date"), '{"1":"2024-01-02"}', [(1, dt.date(2024, 1, 2))]),
    (MapType("boolean", "string"), '{"true":"x"}', [(True, "x")]),
]  # fmt: skip

BAD = [
    ("long", "1.5", "not_exact"),
    ("long", "1.0000000000000000000000000001", "not_exact"),
    ("long", "1e-999999999", "not_exact"),
    ("long", '"1"', "type_mismatch"),
    ("long", "true", "type_mismatch"),
    ("long", "[1]", "type_mismatch"),
    ("long", str(2**63), "out_of_range"),
    ("long", str(-(2**63) - 1), "out_of_range"),
    ("long", "1e999999999999999999999", "out_of_range"),
    ("integer", "2147483648", "out_of_range"),
    ("integer", "3000000000.0", "out_of_range"),
    ("byte", "128", "out_of_range"),
    ("double", '"1.5"', "type_mismatch"),
    ("double", '"NaN"', "type_mismatch"),
    ("double", "NaN", "invalid_json"),
    ("double", "Infinity", "invalid_json"),
    ("double", "-Infinity", "invalid_json"),
    ("double", "Inf", "invalid_json"),
    ("double", "1e400", "out_of_range"),
    ("double", "-1e400", "out_of_range"),
    ("double", "01", "invalid_json"),
    ("double", "1.", "invalid_json"),
    ("double", ".5", "invalid_json"),
    ("double", "+1", "invalid_json"),
    ("float", "1e39", "out_of_range"),
    ("float", "3.5e38", "out_of_range"),
    ("boolean", "1", "type_mismatch"),
    ("boolean", '"true"', "type_mismatch"),
    ("string", "1", "type_mismatch"),
    ("string", "true", "type_mismatch"),
    ("string", "{}", "type_mismatch"),
    ("string", '"\t"', "invalid_json"),
    ("string", '"\x00"', "invalid_json"),
    ("string", r'"\ud800"', "invalid_json"),
    ("string", r'"\ud83d x"', "invalid_json"),
    ("string", r'"\ude00\ud83d"', "invalid_json"),
    ("string", r'"\x"', "invalid_json"),
    (Decimal(12, 2), "12.345", "not_exact"),
    (Decimal(12, 2), '"12.345"', "not_exact"),
    (Decimal(12, 2), "10000000000", "out_of_range"),
    (Decimal(12, 2), '"99999999999"', "out_of_range"),
    (Decimal(38, 38), "1", "out_of_range"),
    (Decimal(5, 0), "99e-39", "not_exact"),
    (Decimal(5, 0), "1e-999999999", "not_exact"),
    (Decimal(5, 0), '"1e-999999999"', "not_exact"),
    (Decimal(5, 0), r'"1\u0065-999999999"', "not_exact"),
    (Decimal(5, 0), r'"1e\u002d999999999"', "not_exact"),
    (Decimal(5, 0), "0." + "0" * 60 + "1", "not_exact"),
    (Decimal(12, 2), '"abc"', "type_mismatch"),
    (Decimal(12, 2), '""', "type_mismatch"),
    (Decimal(12, 2), '" 1"', "type_mismatch"),
    (Decimal(12, 2), '"NaN"', "type_mismatch"),
    (Decimal(12, 2), "true", "type_mismatch"),
    ("date", "1", "type_mismatch"),
    ("date", '"2024-01-02T03:04:05"', "type_mismatch"),
    ("date", '"2024-01-02T00:00:00Z"', "type_mismatch"),
    ("date", '"2024-02-30"', "out_of_range"),
    ("date", '"0000-01-01"', "out_of_range"),
    ("timestamp", "1700000000", "type_mismatch"),
    ("timestamp", '"nonsense"', "type_mismatch"),
    ("timestamp", '"2024-02-30T00:00:00Z"', "out_of_range"),
    ("timestamp", '"2024-01-02T24:00:00Z"', "out_of_range"),
    ("timestamp", '"2024-01-02T23:59:60Z"', "out_of_range"),
    ("timestamp", '"0000-12-31T00:00:00Z"', "out_of_range"),
    ("timestamp", '"0001-01-01T00:00:00+01:00"', "out_of_range"),
    ("timestamp", '"9999-12-31T23:59:59-01:00"', "out_of_range"),
    ("timestamp_ntz", '"2024-01-02T03:04:05Z"', "type_mismatch"),
    ("timestamp_ntz", '"2024-01-02T03:04:05+02:00"', "type_mismatch"),
    ("binary", '"aGk"', "type_mismatch"),
    ("binary", '"a Gk="', "type_mismatch"),
    ("binary", '"_-8="', "type_mismatch"),
    ("binary", "1", "type_mismatch"),
    (ArrayType("long", contains_null=False), "[1,null]", "missing_field"),
    (ArrayType("long"), "{}", "type_mismatch"),
    (ArrayType("long"), "[1,2.5]", "not_exact"),
    (StructType((Field("x", "long", nullable=False),)), "{}", "missing_field"),
    (StructType((Field("x", "long"),)), "[]", "type_mismatch"),
    (StructType((Field("x", "long"),)), '{"x":1,"x":1}', "duplicate_key"),
    (ArrayType(StructType((Field("x", "long"),))), '[{"x":1,"\\u0078":1}]', "duplicate_key"),
    (MapType("string", "long"), '{"k":1,"k":1}', "duplicate_key"),
    (MapType("long", "long"), '{"1":1,"1.0":1}', "duplicate_key"),
    (MapType("long", "long"), '{"x":1}', "type_mismatch"),
    (MapType("string", "long", value_contains_null=False), '{"k":null}', "missing_field"),
]  # fmt: skip


@pytest.mark.parametrize(("data_type", "text", "expected"), TAKEN, ids=str)
def test_taken_exactly(data_type, text, expected):
    assert repr(fates(spec_of(data_type), text.encode())) == repr(("row", expected))


@pytest.mark.parametrize(("data_type", "text", "reason"), BAD, ids=lambda v: str(v)[:60])
def test_bad(data_type, text, reason):
    assert fates(spec_of(data_type), text.encode("utf-8", "surrogatepass"))[0] == reason


WHOLE_VALUES = [
    (b"", "empty_value"),
    (b" \t\r\n", "empty_value"),
    (b"null", "not_an_object"),
    (b"[]", "not_an_object"),
    (b'"x"', "not_an_object"),
    (b"1", "not_an_object"),
    (b'{"n":1}{"n":2}', "invalid_json"),
    (b'{"n":1}\n{"n":2}', "invalid_json"),
    (b'{"n":1} x', "invalid_json"),
    (b'{"n":1', "invalid_json"),
    (b'{"n":1,}', "invalid_json"),
    (b'{"n":1 /* */}', "invalid_json"),
    (b"{'n':1}", "invalid_json"),
    (b'{"n":1}\0', "invalid_json"),
    (b"\0", "invalid_json"),
    (b'{"n":1}\0{"n":2}', "invalid_json"),
    (b'\xef\xbb\xbf{"n":1}', "invalid_json"),
    (b'{"n":1,"zz":1.2.3}', "invalid_json"),
    (b'{"n":1,"zz":NaN}', "invalid_json"),
    (b'{"n":1,"zz":"\\ud800"}', "invalid_json"),
    (b'{"n":1,"zz":"\xff"}', "invalid_utf8"),
    (b'{"n":1,"zz":"\xed\xa0\x80"}', "invalid_utf8"),
    (b'{"n":1,"zz":1,"zz":2}', "duplicate_key"),
    (b'{"n":1,"zz":[{"q":1,"q":1}]}', "duplicate_key"),
    (b'{"n":1,"zz":{"q":":","q":"\\u003a"}}', "duplicate_key"),
    (b'{"n":1,"n":1}', "duplicate_key"),
    (b'{"n":null,"n":1}', "duplicate_key"),
    (b'{"n":1,"\\u006e":1}', "duplicate_key"),
    (b'{"n":1,"zz":' + b"[" * 100 + b"]" * 100 + b"}", "too_deep"),
    (b'{"n":1,"zz":"' + b"x" * 5000 + b'"}', "too_large"),
]


@pytest.mark.parametrize(("value", "reason"), WHOLE_VALUES, ids=lambda v: str(v)[:60])
def test_values_that_are_not_one_object(value, reason):
    spec = spec_of("string", record_bytes_max=4096)
    assert fates(spec, value, wrap=False)[0] == reason


@pytest.mark.parametrize(
    "value",
    [
        b' {"a":"x"}',
        b'{"a":"x"}\n',
        b'\r\n\t{"a" : "x" } ',
        b'{"a":"x","zz":' + b"[" * 60 + b"]" * 60 + b"}",
        b'{"a":"x","zz":"' + b"[{" * 200 + b'"}',
        b'{"a":"x","zz":1e400}',
        b'{"a":"x","zz":' + b"9" * 5000 + b"}",
        b'{"a":"x","zz":"\\u003a:"}',
        b'{"\\u0061":"x"}',
    ],
    ids=lambda v: str(v)[:40],
)
def test_values_that_are_unusual_and_right(value):
    assert fates(spec_of("string"), value, wrap=False) == ("row", "x")


def test_halves_of_objects_never_join():
    """Two values that only make sense together are two bad records, wherever they stand."""
    halves = [
        (b'{"n":[{}', b"{}]}"),
        (b'{"n":"}', b'{"}'),
        (b'{"n":1,"zz":{}', b'{"q":1}}'),
        (b"{", b"}"),
    ]
    for first, second in halves:
        values = [b'{"n":1}'] * 20 + [first, second] + [b'{"n":1}'] * 20
        (part,) = JsonDecoder(spec_of("string")).decode([records(values)]).parts
        assert [(bad.index, bad.reason) for bad in part.bad] == [(20, "invalid_json"), (21, "invalid_json")]  # fmt: skip


@pytest.mark.parametrize(
    ("timestamp_format", "text", "expected"),
    [
        ("epoch_s", "1700000000", ts(2023, 11, 14, 22, 13, 20)),
        ("epoch_s", "1.7e9", ts(2023, 11, 14, 22, 13, 20)),
        ("epoch_s", "-1", ts(1969, 12, 31, 23, 59, 59)),
        ("epoch_ms", "1700000000123", ts(2023, 11, 14, 22, 13, 20, 123000)),
        ("epoch_us", "1700000000123456.0", ts(2023, 11, 14, 22, 13, 20, 123456)),
        ("epoch_s", "253402300799", ts(9999, 12, 31, 23, 59, 59)),
    ],
)
def test_epoch_numbers(timestamp_format, text, expected):
    spec = spec_of("timestamp", timestamp_format=timestamp_format)
    assert fates(spec, text.encode()) == ("row", expected)
    spec = spec_of("timestamp_ntz", timestamp_format=timestamp_format)
    assert fates(spec, text.encode()) == ("row", expected.replace(tzinfo=None))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.5", "not_exact"),
        ('"1700000000"', "type_mismatch"),
        ('"2024-01-02T03:04:05Z"', "type_mismatch"),
        ("253402300800", "out_of_range"),
        ("-62135596801", "out_of_range"),
        (str(2**63 - 1), "out_of_range"),
    ],
)
def test_numbers_that_are_no_epoch(text, reason):
    assert fates(spec_of("timestamp", timestamp_format="epoch_s"), text.encode())[0] == reason


def test_hex():
    spec = spec_of("binary", binary="hex")
    assert fates(spec, b'"00fFa1"') == ("row", b"\x00\xff\xa1")
    for wrong in (b'"0"', b'"zz"', b'"00 ff"', '"\u0660\u0660"'.encode()):
        assert fates(spec, wrong)[0] == "type_mismatch"


def test_unknown_fields_are_counted_once_where_the_table_lacks_them():
    struct = StructType((Field("x", "long"),))
    schema = TableSchema((Field("s", struct), Field("l", ArrayType(struct))))
    value = b'{"s":{"x":1,"u":{"deep":1}},"l":[{"x":1},null,{"u":1,"v":2}],"w":[{"q":1}]}'
    for fast in (None, never_fast):
        decoded = JsonDecoder(DecodeSpec(schema), fast).decode([records([value] * 20)])
        assert decoded.rows.num_rows == 20
        assert decoded.unknown_fields == 20 * 4
    failing = DecodeSpec(schema, unknown_fields="fail")
    for fast in (None, never_fast):
        (part,) = JsonDecoder(failing, fast).decode([records([value] * 20)]).parts
        assert {bad.reason for bad in part.bad} == {"unknown_field"}
        assert "'u'" in part.bad[0].message
        assert "'u'" not in part.bad[0].redacted


def test_sentences():
    schema = TableSchema((Field("a", StructType((Field("b", ArrayType(StructType((Field("c", Decimal(12, 2)),)))),))),))  # fmt: skip
    values = [b'{"a":{"b":[{"c":"abc"}]}}', b'{"a":{"b":[{"c":12.345}]}}', b'{"a":1}']
    (part,) = JsonDecoder(DecodeSpec(schema)).decode([records(values)]).parts
    assert [bad.message for bad in part.bad] == [
        "orders/3@100: field 'a.b[].c': expected decimal(12,2), got 'abc'",
        "orders/3@101: field 'a.b[].c': expected decimal(12,2), got 12.345 (it would be rounded)",
        "orders/3@102: field 'a': expected an object, got 1",
    ]
    assert [bad.redacted for bad in part.bad] == [
        "orders/3@100: field 'a.b[].c': expected decimal(12,2), got a string",
        "orders/3@101: field 'a.b[].c': expected decimal(12,2), got a number (it would be rounded)",
        "orders/3@102: field 'a': expected an object, got a number",
    ]


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "value",
    [
        b'{"a":"s3cr3t"}',
        b'{"s3cr3t":1,"s3cr3t":2}',
        b'{"a":1} s3cr3t',
        b's3cr3t {"a":1}',
        b'{"a":"s3cr3t\xff"}',
        b'"s3cr3t"',
        b'{"s3cr3t":1}',
        b'{"a":NaN,"x":"s3cr3t"}',
        b'{"a":"s3cr3t\\ud800"}',
    ],
)
def test_redacted_sentences_show_no_value(value):
    spec = DecodeSpec(TableSchema((Field("a", "long"),)), unknown_fields="fail")
    (part,) = JsonDecoder(spec).decode([records([value])]).parts
    assert len(part.bad) == 1
    assert SECRET not in part.bad[0].redacted


# --- what the fast path takes, and the behaviour of pyarrow that it stands on ---------------------


@pytest.mark.parametrize(
    ("data_type", "text"),
    [
        ("long", "12"),
        ("long", "12.0"),
        ("short", "1e1"),
        ("double", "1.5"),
        ("float", "1.5"),
        ("boolean", "true"),
        ("string", '"x"'),
        (Decimal(12, 2), "12.5"),
        (Decimal(38, 18), '"12.5"'),
        ("date", '"2024-01-02"'),
        ("timestamp", '"2024-01-02T03:04:05.123456789+02:00"'),
        ("timestamp", '"9999-12-31"'),
        ("timestamp_ntz", '"2024-01-02T03:04:05.1234567"'),
        ("binary", '"aGk="'),
        (ArrayType(StructType((Field("x", "long"), Field("y", "date")))), '[{"x":1,"zz":1},null]'),
    ],
    ids=str,
)
def test_ordinary_values_take_the_fast_path(data_type, text):
    values = [b'{"a":%s,"n":%d}' % (text.encode(), i) for i in range(50)]
    sure = ArrowFastPath(spec_of(data_type))(values)
    assert isinstance(sure, Sure)
    assert sure.taken.tolist() == list(range(50))
    assert sure.rows["n"].to_pylist() == list(range(50))


def read(text, data_type, others="error"):
    return pj.read_json(
        pa.BufferReader(text.encode()),
        read_options=pj.ReadOptions(use_threads=False),
        parse_options=pj.ParseOptions(
            explicit_schema=pa.schema([("a", data_type)]), unexpected_field_behavior=others
        ),
    )


@pytest.mark.parametrize(
    ("text", "data_type", "hint"),
    [
        ('{"a":1}\n{"z":1}', pa.int64(), "unexpected field"),
        ('{"a":1}\n{"a":1.0}', pa.int64(), "Failed to convert JSON to int64"),
        ('{"a":1}\n{"a":1.001}', pa.decimal128(5, 2), "JSON to decimal128"),
        ('{"a":"x"}', pa.timestamp("us", "UTC"), "Failed to convert JSON to timestamp"),
        ('{"a":1}\n{"a":"x"}', pa.int64(), "in row 1"),
        ('{"a":1}\n{"a":1,"a":1}', pa.int64(), "twice in row 1"),
    ],
)
def test_pyarrow_still_says_why_it_refuses(text, data_type, hint):
    """Speed, not correctness, rests on these words: without them the exact path does the work."""
    with pytest.raises(pa.ArrowInvalid, match=hint):
        read(text, data_type)


@pytest.mark.parametrize(
    ("text", "data_type", "changed"),
    [
        ('{"a":NaN}', pa.float64(), "nan"),
        ('{"a":1e39}', pa.float32(), "inf"),
        ('{"a":1}', pa.date32(), "datetime.date(1970, 1, 2)"),
        ('{"a":"2024-01-02T03:00Z"}', pa.timestamp("us"), "datetime.datetime(2024, 1, 2, 3, 0)"),
        ('{"a":"xx"}', pa.binary(), "b'xx'"),
        ('{"a":"1"}', pa.decimal128(38, 18), "Decimal('1.000000000000000000')"),
        ('{"a":99e-39}', pa.decimal128(5, 0), "Decimal('0')"),
        ('{"a":99999}', pa.decimal128(5, 2), "Decimal('99999.00')"),
    ],
)
def test_what_pyarrow_changes_and_why_we_do_not_ask_it_to(text, data_type, changed):
    """When one of these fails, pyarrow has become stricter and a check of ours may go."""
    assert repr(read(text, data_type)["a"].to_pylist()[0]) == changed


def test_everything_written_back_reads_as_python_reads_it():
    rows = [{"a": {"x": i, "y": i / 7, "z": f"{i}é"}, "n": None} for i in range(100)]
    struct = StructType((Field("x", "long"), Field("y", "double"), Field("z", "string")))
    decoded = JsonDecoder(spec_of(struct)).decode([records([json.dumps(r).encode() for r in rows])])
    assert decoded.rows.to_pylist() == rows
