"""The compiled plain path alone: what it takes, what it leaves, and that it leaks nothing.

That its rows are those of the exact path is shown with the other paths (`test_decode_paths.py`,
`test_decode_json.py`); here it must really have been it that made them.
"""

import gc
import json
import os
import threading
from decimal import Decimal as Exactly

import psutil
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.cli import cli
from delta_sink.decode import native
from delta_sink.decode.exact import ExactDecoder
from delta_sink.decode.json import JsonDecoder, Refused
from delta_sink.decode.native import can_decode, is_compiled, native_decoder
from delta_sink.decode.packed import PackedValues
from delta_sink.decode.rows import DecodeSpec
from delta_sink.delta.schema import ArrayType, Decimal, Field, MapType, StructType, TableSchema
from delta_sink.errors import DataError
from delta_sink.model import Records, TopicPartition

pytestmark = pytest.mark.skipif(
    not is_compiled() and not os.environ.get("CI"),
    reason="the plain path is not compiled here: `pip install -v -e .` says why",
)

PLAIN = [
    ("long", "-9223372036854775808"),
    ("long", "9223372036854775807"),
    ("long", "-0"),
    ("integer", "-2147483648"),
    ("short", "32767"),
    ("byte", "-128"),
    ("double", "0.1"),
    ("double", "-0.0"),
    ("double", "1.7976931348623157e308"),
    ("double", "5e-324"),
    ("double", "123456789012345678901234567890"),
    ("float", "3.4028235e38"),
    ("float", "16777217"),
    ("boolean", "true"),
    ("boolean", "false"),
    ("string", '""'),
    ("string", '"Zürich \\u00e9\\n\\ud83e\\udd80 \\"x\\" \\\\"'),
    ("date", '"2024-02-29"'),
    ("date", '"0001-01-01"'),
    ("timestamp", '"2024-01-02T03:04:05Z"'),
    ("timestamp", '"2024-01-02 03:04:05.123456789+02:00"'),
    ("timestamp", '"1969-12-31T23:59:59.9-0130"'),
    ("timestamp", '"9999-12-31T23:59:59.999999"'),
    ("timestamp_ntz", '"2024-01-02T03:04:05.1"'),
    ("binary", '"aGk="'),
    (Decimal(12, 2), "12.5"),
    (Decimal(12, 2), '"-0012.50"'),
    (Decimal(38, 38), "0." + "9" * 38),
    (Decimal(38, 0), "9" * 38),
    (ArrayType("long"), "[1,null,2]"),
    (ArrayType(StructType((Field("x", "long"), Field("y", "date")))), '[{"x":1,"zz":{"a":[1]}},null]'),
    (StructType((Field("x", StructType((Field("y", "string"),))),)), '{"x":{"y":"z"}}'),
    (MapType("string", "long"), '{"a":1,"b":null}'),
    (MapType("string", MapType("string", "string")), '{"a":{},"b":{"c":"d"}}'),
]  # fmt: skip

DOUBTS = [
    ("long", "1.0"),
    ("long", "9223372036854775808"),
    ("long", '"1"'),
    ("long", "01"),
    ("long", "+1"),
    ("long", "true"),
    ("byte", "128"),
    ("double", "1e400"),
    ("double", "NaN"),
    ("double", "1."),
    ("double", ".5"),
    ("double", "1e"),
    ("double", "-"),
    ("float", "1e39"),
    ("boolean", "True"),
    ("string", "1"),
    ("string", '"\t"'),
    ("string", '"\\x"'),
    ("string", '"\\ud800"'),
    ("string", '"\\udc00\\ud800"'),
    ("string", '"\\u12g4"'),
    ("string", '"open'),
    ("date", '"2023-02-29"'),
    ("date", '"2024-1-02"'),
    ("date", '"0000-01-01"'),
    ("timestamp", '"2024-01-02T24:00:00Z"'),
    ("timestamp", '"2024-01-02T03:04:60Z"'),
    ("timestamp", '"2024-01-02T03:04:05."'),
    ("timestamp", '"2024-01-02T03:04:05+2"'),
    ("timestamp", '"0001-01-01T00:00:00+01:00"'),
    ("timestamp_ntz", '"2024-01-02T03:04:05Z"'),
    ("binary", '"aGk"'),
    (Decimal(12, 2), "1.234"),
    (Decimal(12, 2), "12345678901"),
    (Decimal(12, 2), '"1."'),
    (Decimal(12, 2), '"."'),
    (Decimal(12, 2), '""'),
    (Decimal(12, 2), '"1e1"'),
    (ArrayType("long", contains_null=False), "[1,null]"),
    (ArrayType("long"), "[1,]"),
    (ArrayType("long"), "[1 2]"),
    (ArrayType("long"), "{}"),
    (StructType((Field("x", "long", nullable=False),)), "{}"),
    (StructType((Field("x", "long", nullable=False),)), '{"x":null}'),
    (StructType((Field("x", "long"),)), '{"x":1,"x":1}'),
    (StructType((Field("x", "long"),)), '{"zz":1,"zz":1}'),
    (StructType((Field("x", "long"),)), '{"zz":{"a":1,"a":2}}'),
    (StructType((Field("x", "long"),)), '{"\\u0078":1}'),
    (StructType((Field("x", "long"),)), '{"x":1,}'),
    (MapType("string", "long"), '{"a":1,"a":2}'),
    (MapType("string", "long", value_contains_null=False), '{"a":null}'),
]  # fmt: skip


def spec_of(data_type, **options):
    return DecodeSpec(TableSchema((Field("a", data_type), Field("n", "long"))), **options)


def decoded(spec, values):
    packed = PackedValues.of(values)
    found = native_decoder(spec).decode(packed, 0, len(packed))
    found.rows.validate(full=True)
    assert found.rows.schema == spec.schema.arrow
    assert found.rows.num_rows == len(found.taken)
    return found


def never_fast(_spec):
    return lambda _values: Refused()


ENDS = [b"", b" " * 16]
"""What stands behind a record: near its end it is read byte by byte, before that in lanes of 16."""


@pytest.mark.parametrize("end", ENDS, ids=len)
@pytest.mark.parametrize(("data_type", "text"), PLAIN, ids=str)
def test_what_is_plain_is_taken_and_right(data_type, text, end):
    spec = spec_of(data_type)
    values = [b'{"a":%s,"n":%d}' % (text.encode(), i) + end for i in range(20)]
    found = decoded(spec, values)
    assert found.taken.tolist() == list(range(20))
    exact = [ExactDecoder(spec).decode(value) for value in values]
    wanted = ExactDecoder(spec).table([row for row, _ in exact])
    assert repr(found.rows.to_pylist()) == repr(wanted.to_pylist())
    assert found.unknown_fields == sum(unknown for _, unknown in exact)


@pytest.mark.parametrize("end", ENDS, ids=len)
@pytest.mark.parametrize(("data_type", "text"), DOUBTS, ids=str)
def test_a_doubt_leaves_the_record_and_no_other(data_type, text, end):
    plain = b'{"n":%d}'
    doubt = b'{"n":7,"a":%s}' % text.encode() + end
    values = [plain % 1, doubt, plain % 2, doubt, doubt, plain % 3]
    found = decoded(spec_of(data_type), values)
    assert found.taken.tolist() == [0, 2, 5]
    assert found.rows.to_pylist() == [{"a": None, "n": number} for number in (1, 2, 3)]
    assert found.unknown_fields == 0


@pytest.mark.parametrize(
    "value",
    [b"", b" ", b"null", b"[]", b"{", b"{}{}", b"{} x", b'{"n":1', b'{"n"}', b'{"n":}', b'{n:1}',
     b'{"a";"x"}', b'{"a" "x"}', b'{"n";1}', b'{"a":"\t"}', b'{"a":"\x1f"}', b'{"n":1}\0', b'{"a":"\xff"}', b'{"a":"\xed\xa0\x80"}', b'{"\xff":1}', b"\xef\xbb\xbf{}"],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("end", ENDS, ids=len)
def test_what_is_no_plain_object_is_left(value, end):
    found = decoded(spec_of("string"), [b'{"n":1}', value + end, b'{"n":2}'])
    assert found.taken.tolist() == [0, 2]


def test_spaces_order_and_absent_fields_are_plain():
    spec = spec_of("string")
    values = [b' {\r\n\t"n" : 1 , "a" : "x" } ', b'{"a":"y","n":2}', b"{ }", b'{"n":null}']
    assert decoded(spec, values).rows.to_pylist() == [
        {"a": "x", "n": 1},
        {"a": "y", "n": 2},
        {"a": None, "n": None},
        {"a": None, "n": None},
    ]


def test_bounds_of_size_and_nesting():
    spec = spec_of("string", record_bytes_max=40, nesting_max=3)
    deep = b'{"zz":[[%s]]}'
    values = [b'{"a":"%s"}' % (b"x" * 32), b'{"a":"%s"}' % (b"x" * 33), deep % b"1", deep % b"[]"]
    assert decoded(spec, values).taken.tolist() == [0, 2]
    nested = spec_of(ArrayType(ArrayType("long")), nesting_max=2)
    assert decoded(nested, [b'{"a":[]}', b'{"a":[[]]}']).taken.tolist() == [0]


def test_unknown_fields_are_counted_or_refused():
    values = [b'{"n":1,"x":[{"y":1}],"z":"\\u0041"}', b'{"n":2}']
    assert decoded(spec_of("long"), values).unknown_fields == 2
    assert decoded(spec_of("long", unknown_fields="fail"), values).taken.tolist() == [1]


@pytest.mark.parametrize(
    ("timestamp_format", "wanted_us"),
    [("epoch_s", 1_500_000_000_000_000), ("epoch_ms", 1_500_000_000_000), ("epoch_us", 1_500_000_000)],
)  # fmt: skip
def test_epoch_numbers(timestamp_format, wanted_us):
    spec = spec_of("timestamp", timestamp_format=timestamp_format)
    found = decoded(spec, [b'{"a":1500000000}', b'{"a":9223372036854775807}', b'{"a":"1"}'])
    assert found.taken.tolist() == [0]
    assert found.rows["a"].cast(pa.int64()).to_pylist() == [wanted_us]


def test_hex():
    spec = spec_of("binary", binary="hex")
    found = decoded(spec, [b'{"a":"00fFA0"}', b'{"a":""}', b'{"a":"0"}', b'{"a":"0g"}'])
    assert found.rows["a"].to_pylist() == [b"\x00\xff\xa0", b""]


@pytest.mark.parametrize(
    ("data_type", "is_known"),
    [
        ("string", True),
        (MapType("string", "long"), True),
        (MapType("long", "long"), False),
        (StructType((Field('quo"te', "long"),)), False),
        (StructType((Field("back\\slash", "long"),)), False),
        (StructType(()), False),
        (StructType(tuple(Field(f"f{i}", "long") for i in range(256))), True),
        (StructType(tuple(Field(f"f{i}", "long") for i in range(257))), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_tables_that_it_does_not_know_are_left_to_the_others(data_type, is_known):
    spec = spec_of(data_type)
    assert can_decode(spec) is is_known
    assert (native_decoder(spec) is not None) is is_known


def test_a_slice_of_values_has_its_own_places():
    packed = PackedValues.of([b'{"n":%d}' % i for i in range(10)] + [b"x"])
    found = native_decoder(spec_of("long")).decode(packed, 7, 11)
    assert found.taken.tolist() == [0, 1, 2]
    assert found.rows["n"].to_pylist() == [7, 8, 9]


def test_keys_of_all_lengths_in_any_order_and_at_the_end():
    names = ["k" * length for length in range(1, 40)]
    spec = DecodeSpec(TableSchema(tuple(Field(name, "long") for name in names)))
    rows = [dict(zip(names, range(len(names)), strict=True))]
    rows += [{name: 7} for name in names]
    rows += [{name: 7, names[0]: 8} for name in names[1:]]
    rows.append(dict(reversed(rows[0].items())))
    values = [json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() for row in rows]
    nearly = [b'{"%s":7}' % (name.encode() + b"_") for name in names]
    found = decoded(spec, values + nearly)
    assert len(found.taken) == len(values) + len(nearly)
    assert found.unknown_fields == len(nearly)
    wanted = [{name: row.get(name) for name in names} for row in rows + [{}] * len(nearly)]
    assert found.rows.to_pylist() == wanted


@pytest.mark.parametrize("behind", [b"}", b',"n":1}', b',"zz":"' + b"y" * 200 + b'"}'], ids=len)
def test_texts_of_all_lengths(behind):
    texts = ["é" * (length % 2) + "x" * (length - 2 * (length % 2)) for length in range(2, 140)]
    values = [b'{"a":"%s"' % text.encode() + behind for text in texts]
    assert decoded(spec_of("string"), values).rows["a"].to_pylist() == texts


@pytest.mark.parametrize("place", [0, 1, 7, 8, 63, 64, 65, 100, 199])
def test_the_first_null_of_a_column(place):
    values = [b'{"a":[{"s":"x","n":%d}],"n":%d}' % (i, i) for i in range(200)]
    values[place] = b'{"a":[{"n":3},null]}'
    item = StructType((Field("s", "string"), Field("n", "long")))
    rows = [{"a": [{"s": "x", "n": i}], "n": i} for i in range(200)]
    rows[place] = {"a": [{"s": None, "n": 3}, None], "n": None}
    assert decoded(spec_of(ArrayType(item)), values).rows.to_pylist() == rows
    values[place] = b'{"a":[{"n":3},null,0]}'  # a doubt behind the nulls takes them back
    assert (
        decoded(spec_of(ArrayType(item)), values).rows.to_pylist()
        == rows[:place] + rows[place + 1 :]
    )


@pytest.mark.parametrize("first", [b"{}", b"", b'{"a":"' + b"x" * 60_000 + b'"}'], ids=len)
@pytest.mark.parametrize("then", [b"{}", b'{"a":"' + b"x" * 600_000 + b'","n":1}'], ids=len)
def test_first_records_unlike_the_others(first, then):
    """The room that is made for all of them is neither too small to do nor hundreds of megabytes."""
    numbers = [Field(f"n{i}", "long") for i in range(20)]
    spec = DecodeSpec(TableSchema((Field("a", "string"), *numbers)))
    values = PackedValues.of([first] * 64 + [then] * 32)
    decoder, process = native_decoder(spec), psutil.Process()
    before_bytes = process.memory_info().vms
    found = decoder.decode(values, 0, len(values))
    assert process.memory_info().vms - before_bytes < 8 * values.size_bytes + 16 * 1024 * 1024
    assert len(found.taken) == 96 - 64 * (not first)
    assert found.rows["a"].to_pylist()[-1] == json.loads(then).get("a")


# --- any bytes at all ---------------------------------------------------------------------------

MANY = DecodeSpec(
    TableSchema(
        (
            Field("l", "long"),
            Field("d", "double"),
            Field("f", "float"),
            Field("c", Decimal(20, 6)),
            Field("s", "string"),
            Field("t", "timestamp"),
            Field("y", "date"),
            Field("b", "binary"),
            Field("o", StructType((Field("l", "long", nullable=False), Field("a", ArrayType("string"))))),
            Field("m", MapType("string", ArrayType("double"))),
        )
    )
)  # fmt: skip
TOKENS = [
    *'{}[]:,"\\',
    *('"l":', '"d":', '"f":', '"c":', '"s":', '"t":', '"y":', '"b":', '"o":{', '"m":{', '"a":[', '"zz":'),
    *("null", "true", "0", "-1", "12345678901234567890", "1.5", "-0.25e-3", "1e22", "9007199254740993.0"),
    *('"x"', '"\\u00e9"', '"é"', '"2024-01-02"', '"2024-01-02T03:04:05.5+01:00"', '"aGk="', " ", "\n"),
]  # fmt: skip
texts = st.lists(st.sampled_from(TOKENS), max_size=14).map(lambda parts: "".join(parts).encode())


def members():
    values = st.sampled_from([token for token in TOKENS if token.strip('{}[]:,"\\ \n')])
    return st.lists(st.tuples(st.sampled_from("ldfcstyboz"), values), max_size=5).map(
        lambda pairs: b"{" + ",".join(f'"{k}":{v}' for k, v in pairs).encode() + b"}"
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(texts, members(), st.binary(max_size=20)), min_size=1, max_size=12))
def test_what_it_takes_is_what_the_exact_path_takes(values):
    assert_exact(values)
    assert_exact([value + b" " * 16 for value in values])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(members(), min_size=1, max_size=3),
    st.lists(st.one_of(texts, members()), max_size=6),
    st.integers(60, 70),
    st.integers(0, 40),
)
def test_room_that_was_guessed_by_the_first_records_is_only_a_guess(first, then, some, others):
    """Behind 64 records it makes room for all of them, as if they went on alike."""
    assert_exact((first * some)[:some] + then * others)


def assert_exact(values):
    """Of these values it takes only what the exact path takes, with the same rows."""
    found = decoded(MANY, values)
    exact = ExactDecoder(MANY)
    rows, unknown = [], 0
    for place in found.taken.tolist():
        try:
            row, count = exact.decode(values[place])
        except DataError as error:
            pytest.fail(f"{values[place]!r} was taken, but {error}")
        rows.append(row)
        unknown += count
    assert repr(found.rows.to_pylist()) == repr(exact.table(rows).to_pylist())
    assert found.unknown_fields == unknown


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_doubles_come_back_to_the_bit(numbers):
    spec = spec_of("double")
    shapes = (repr, "{:.17e}".format, "{:.30f}".format)
    for shape in shapes:
        values = [b'{"a":%s}' % shape(number).encode() for number in numbers]
        found = decoded(spec, values)
        assert len(found.taken) == len(values)
        wanted = [float(shape(number)) for number in numbers]
        assert [repr(x) for x in found.rows["a"].to_pylist()] == [repr(x) for x in wanted]


@settings(max_examples=200, deadline=None)
@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=6, min_value=-(10**13), max_value=10**13
    )
)
def test_decimals_keep_every_digit(number):
    for text in (format(number, "f"), f'"{number:f}"'):
        found = decoded(spec_of(Decimal(20, 6)), [b'{"a":%s}' % text.encode()])
        assert found.rows["a"].to_pylist() == [Exactly(number)]


# --- in a process that runs for months ----------------------------------------------------------


def test_its_memory_is_given_back():
    spec = spec_of(ArrayType(StructType((Field("s", "string"), Field("d", "double")))))
    item = json.dumps({"s": "x" * 50, "d": 1.5})
    values = PackedValues.of([b'{"a":[%s],"n":1}' % ",".join([item] * 20).encode()] * 2_000)
    decoder, process = native_decoder(spec), psutil.Process()
    for _ in range(10):
        decoder.decode(values, 0, len(values))
    gc.collect()
    before_bytes = process.memory_info().rss
    for _ in range(100):
        rows = decoder.decode(values, 0, len(values)).rows
    grown_bytes = process.memory_info().rss - before_bytes
    assert rows.nbytes > 2_000_000
    assert grown_bytes < 20 * rows.nbytes  # of a hundred times as much


def test_rows_outlive_their_decoder_and_each_other():
    spec = spec_of("string")
    tables = []
    for number in range(50):
        packed = PackedValues.of([b'{"a":"%d","n":%d}' % (number, number)] * 100)
        tables.append(native_decoder(spec).decode(packed, 0, 100).rows.slice(number, 1)["a"])
        del packed
    gc.collect()
    assert [table.to_pylist() for table in tables] == [[str(number)] for number in range(50)]


def test_several_threads_at_once():
    spec = spec_of("string")
    decoder, wrong = JsonDecoder(spec), []

    def work(name):
        values = [b'{"a":"%s","n":%d}' % (name, i) for i in range(500)] + [b"bad"]
        records = Records(TopicPartition("t", 0), len(values), range(len(values)), values)
        for _ in range(40):
            rows = decoder.decode([records]).rows
            if rows["n"].to_pylist() != list(range(500)) or set(rows["a"].to_pylist()) != {
                name.decode()
            }:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(b"%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_without_it_the_same_rows_come_out(monkeypatch):
    values = [b'{"a":"x","n":1}', b'{"a":1}', b'{"n":2.0}'] * 20
    records = Records(TopicPartition("t", 0), len(values), range(len(values)), values)
    spec = spec_of("string")
    with_it = JsonDecoder(spec).decode([records])
    monkeypatch.setattr("delta_sink.decode.native._function", lambda: None)
    assert native_decoder(spec) is None
    without = JsonDecoder(spec).decode([records])
    assert with_it.rows.equals(without.rows)
    assert with_it.parts == without.parts


@pytest.mark.parametrize("library", ["nothing.so", "of an older checkout"])
def test_a_library_that_does_not_fit_is_not_used(monkeypatch, library):
    if library == "nothing.so":
        monkeypatch.setattr(native, "LIBRARY", native.LIBRARY.with_name(library))
    else:
        monkeypatch.setattr(native, "FUNCTION", "delta_sink_json_0")
    native._function.cache_clear()
    try:
        assert not is_compiled()
        assert native_decoder(spec_of("long")) is None
    finally:
        native._function.cache_clear()


def test_check_config_says_that_it_is_missing(monkeypatch, tmp_path):
    path = tmp_path / "sink.yaml"
    path.write_text(
        "name: orders\nkafka: {bootstrap.servers: localhost:9092}\nsource: {topics: [orders]}\n"
        "value: {format: json}\n"
        f"table: {{uri: {tmp_path}/orders, schema: [{{name: a, type: long}}]}}\n"
    )
    said = {}
    for compiled in (True, False):
        monkeypatch.setattr("delta_sink.cli_setup.is_compiled", lambda c=compiled: c)
        done = CliRunner().invoke(cli, ["check-config", "-c", str(path)])
        assert done.exit_code == 0, done.output
        said[compiled] = native.NOT_COMPILED in done.stderr
    assert said == {True: False, False: True}
