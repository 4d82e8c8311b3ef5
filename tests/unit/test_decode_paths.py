"""Both paths of the JSON decoder agree, on anything, and with an oracle that shares no code.

The oracle reads numbers as fractions and times with `datetime`; it decides by arithmetic where
the decoder decides by text.
"""

import base64
import datetime as dt
import json
from decimal import Decimal as Exactly
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.decode.json import ArrowFastPath, JsonDecoder, Refused, Sure
from delta_sink.decode.rows import DecodeSpec
from delta_sink.delta.schema import ArrayType, Decimal, Field, MapType, StructType, TableSchema
from delta_sink.model import Records, TopicPartition


def records(values):
    return Records(TopicPartition("t", 0), len(values), range(len(values)), values)


def never_fast(_spec):
    return lambda _values: Refused()


class WithoutExact:
    """The fast path alone: what it does not vouch for is left out of the answer."""

    def __init__(self, spec):
        self._fast = ArrowFastPath(spec)

    def rows(self, values):
        outcome = self._fast(values)
        if not isinstance(outcome, Sure):
            return {}
        return dict(zip(outcome.taken.tolist(), outcome.rows.to_pylist(), strict=True))


# --- values as text -------------------------------------------------------------------------------

digits = st.text("0123456789", min_size=1, max_size=40)
whole = st.one_of(st.just("0"), st.builds(lambda a, b: a + b, st.sampled_from("123456789"), st.one_of(st.just(""), digits)))  # fmt: skip
fraction = st.one_of(st.just(""), digits.map(lambda d: f".{d}"), st.integers(1, 50).map(lambda n: "." + "0" * n))  # fmt: skip
exponent = st.one_of(
    st.just(""),
    st.builds(lambda e, s, n: f"{e}{s}{n}", st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.one_of(st.integers(0, 50), st.sampled_from([308, 324, 400, 10**9]))),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-(2**63) - 2, 2**63 + 2).map(str),
    st.integers(-300, 300).map(str),
    st.integers(-40000, 40000).map(lambda i: f"{i}.0"),
    st.decimals(-1000, 1000, places=2).map(lambda d: format(d, "f")),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds(
        lambda s, a, b, c: s + a + b + c, st.sampled_from(["", "-"]), whole, fraction, exponent
    ),
)
strings = st.text(st.characters(codec="utf-8"), max_size=12)
zones = st.sampled_from(["", "Z", "+02:00", "-0130", "+05", "+23:59", "-14:60", "z"])
times = st.builds(
    lambda year, month, day, sep, clock, below, zone: f"{year:04d}-{month:02d}-{day:02d}" + (f"{sep}{clock}{below}{zone}" if clock else ""),
    st.sampled_from([0, 1, 1677, 1969, 1970, 2000, 2024, 2262, 9999]),
    st.integers(0, 13),
    st.sampled_from([0, 1, 28, 29, 30, 31, 32]),
    st.sampled_from("TT t"),
    st.sampled_from(["", "00:00:00", "23:59:59", "12:30:59", "24:00:00", "23:59:60"]),
    st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=11).map(lambda d: f".{d}")),
    zones,
)  # fmt: skip
days = times.map(lambda t: t[:10])


def quoted(text):
    return json.dumps(text)


anything = st.one_of(
    numbers,
    strings.map(quoted),
    numbers.map(quoted),
    times.map(quoted),
    st.sampled_from(["null", "true", "false", "[]", "{}", "NaN", "-Infinity", '"\\ud800"', '{"x":1,"x":2}', "[1", "01", '"\t"']),
)  # fmt: skip

LEAVES = {
    "long": numbers,
    "integer": numbers,
    "byte": numbers,
    "double": numbers,
    "float": numbers,
    "string": strings.map(quoted),
    "boolean": st.sampled_from(["true", "false"]),
    "date": days.map(quoted),
    "timestamp": times.map(quoted),
    "timestamp_ntz": times.map(quoted),
    "binary": st.binary(max_size=6).map(lambda b: quoted(base64.b64encode(b).decode())),
    Decimal(12, 2): st.one_of(numbers, numbers.map(quoted)),
    Decimal(38, 18): st.one_of(numbers, numbers.map(quoted)),
    Decimal(38, 38): numbers,
    Decimal(5, 0): numbers,
}  # fmt: skip


@st.composite
def columns(draw, depth=2):
    """A type and a strategy of texts that mostly fit it."""
    kind = draw(st.sampled_from(["leaf"] * 4 + (["list", "struct"] if depth else [])))
    if kind == "leaf":
        leaf = draw(st.sampled_from(list(LEAVES)))
        return leaf, LEAVES[leaf]
    inner, texts = draw(columns(depth=depth - 1))
    nullable = draw(st.booleans())
    texts = st.one_of(texts, st.just("null"))
    if kind == "list":
        items = st.lists(texts, max_size=3).map(lambda t: f"[{','.join(t)}]")
        return ArrayType(inner, nullable), items
    fields = StructType((Field("x", inner, nullable), Field("y", "string")))
    members = st.lists(
        st.one_of(
            texts.map(lambda t: f'"x":{t}'),
            strings.map(lambda t: f'"y":{quoted(t)}'),
            st.just('"zz":[1]'),
        ),
        max_size=3,
    )
    return fields, members.map(lambda m: "{" + ",".join(m) + "}")


@st.composite
def chunks(draw):
    data_type, texts = draw(columns())
    spec = DecodeSpec(
        TableSchema((Field("a", data_type, draw(st.booleans())), Field("b", "long"))),
        unknown_fields=draw(st.sampled_from(["ignore", "ignore", "fail"])),
        nesting_max=draw(st.sampled_from([4, 64])),
    )
    odd = st.one_of(anything, texts, texts, texts)
    objects = st.one_of(
        odd.map('{{"a":{}}}'.format),
        texts.map(' {{"b":7, "a" : {}}}\n'.format),
        st.builds('{{"a":{},"zz":{}}}'.format, texts, anything),
        st.sampled_from(['{"a":null}', "{}", "", "null", '{"b":1}{"b":2}', '{"b":"', '"}', "[]", '{"zz":[{}', "{}]}"]),
    )  # fmt: skip
    few = draw(st.lists(objects, min_size=1, max_size=6))
    values = draw(st.lists(st.sampled_from(few), min_size=1, max_size=40))
    return spec, [value.encode("utf-8", "surrogatepass") for value in values]


def assert_same(left, right):
    assert left.parts == right.parts
    assert left.unknown_fields == right.unknown_fields
    assert left.rows.schema == right.rows.schema
    assert repr(left.rows.to_pylist()) == repr(right.rows.to_pylist())


@settings(max_examples=200, deadline=None)
@given(chunks())
def test_it_makes_no_difference_which_path_decides(case):
    spec, values = case
    exactly = JsonDecoder(spec, never_fast).decode([records(values)])
    for fast in (None, ArrowFastPath):  # None: the plain path first
        several = JsonDecoder(spec, fast).decode([records(values)])
        several.rows.validate(full=True)
        assert_same(several, exactly)
    good = dict(
        zip(
            sorted(set(range(len(values))) - {bad.index for bad in exactly.parts[0].bad}),
            exactly.rows.to_pylist(),
            strict=True,
        )
    )
    for place, row in WithoutExact(spec).rows(values).items():
        assert repr(good[place]) == repr(row), values[place]


# --- the oracle -----------------------------------------------------------------------------------


class Bad(Exception):
    pass


def fraction_of(text):
    if abs(int(Exactly(text).adjusted())) > 5000:
        raise Bad
    return Fraction(text)


def oracle_integer(bits):
    def read(value):
        if not isinstance(value, Text):
            raise Bad
        number = 0 if not Exactly(value) else fraction_of(value)
        if number != int(number) or not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise Bad
        return int(number)

    return read


def oracle_decimal(precision, scale):
    def read(value):
        if not isinstance(value, str):
            raise Bad
        number = Fraction(0) if not Exactly(value) else fraction_of(value)
        unscaled = number * 10**scale
        if unscaled.denominator != 1 or abs(unscaled) >= 10**precision:
            raise Bad
        return Exactly(f"{int(unscaled)}E-{scale}")

    return read


def oracle_double(value):
    if not isinstance(value, Text) or abs(float(value)) == float("inf"):
        raise Bad
    return float(value)


def oracle_float(value):
    """The 32-bit float nearest to the text, even on a tie: by comparing exact distances."""
    middle = oracle_double(value)
    exact = 0 if not Exactly(value) or Exactly(value).adjusted() < -400 else Fraction(value)
    if (
        abs(exact) >= 2**128 - 2**103
    ):  # halfway between the largest float and the next, were there one
        raise Bad
    near = np.float32(min(max(middle, -3.4028234663852886e38), 3.4028234663852886e38))
    options = [near, np.nextafter(near, np.float32("-inf")), np.nextafter(near, np.float32("inf"))]
    finite = [o for o in options if np.isfinite(o)]
    best = min(finite, key=lambda o: (abs(Fraction(float(o)) - exact), o.view(np.uint32) & 1))
    return -0.0 if best == 0 and value.startswith("-") else float(best) + 0.0


def oracle_date(value):
    if type(value) is not str:
        raise Bad
    try:
        return dt.datetime.strptime(value, "%Y-%m-%d").date()  # noqa: DTZ007 - a date has no zone
    except ValueError:
        raise Bad from None


def oracle_time(zoned):
    def read(value):
        # Python is laxer here: small letters, 60 minutes of zone, and 24:00 in newer versions.
        if type(value) is not str or (value.endswith(":60") and "-14" in value):
            raise Bad
        if "t" in value or "z" in value or "24:00:00" in value:
            raise Bad
        try:
            parsed = dt.datetime.fromisoformat(value)
        except ValueError:
            raise Bad from None
        if not zoned:
            if parsed.tzinfo is not None:
                raise Bad
            return parsed
        try:
            return parsed.replace(tzinfo=parsed.tzinfo or dt.UTC).astimezone(dt.UTC)
        except OverflowError:
            raise Bad from None

    return read


class Text(str):
    __slots__ = ()


ORACLES = [
    ("long", oracle_integer(64), numbers),
    ("integer", oracle_integer(32), numbers),
    ("short", oracle_integer(16), numbers),
    ("byte", oracle_integer(8), numbers),
    ("double", oracle_double, numbers),
    ("float", oracle_float, numbers),
    (Decimal(12, 2), oracle_decimal(12, 2), st.one_of(numbers, numbers.map(quoted))),
    (Decimal(38, 38), oracle_decimal(38, 38), numbers),
    (Decimal(38, 10), oracle_decimal(38, 10), numbers),
    (Decimal(20, 0), oracle_decimal(20, 0), numbers),
    ("date", oracle_date, days.map(quoted)),
    ("timestamp", oracle_time(True), times.map(quoted)),
    ("timestamp_ntz", oracle_time(False), times.map(quoted)),
]


@pytest.mark.parametrize(("data_type", "oracle", "texts"), ORACLES, ids=lambda v: str(v)[:24])
def test_values_are_what_arithmetic_says(data_type, oracle, texts):
    spec = DecodeSpec(TableSchema((Field("a", data_type),)))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(texts, min_size=1, max_size=12))
    def check(tokens):
        values = [b'{"a":%s}' % token.encode() for token in tokens]
        expected = []
        for token in tokens:
            try:
                expected.append(oracle(json.loads(token, parse_float=Text, parse_int=Text)))
            except Bad:
                expected.append(Bad)
        good = [e for e in expected if e is not Bad]
        for fast in (None, ArrowFastPath, never_fast):
            decoded = JsonDecoder(spec, fast).decode([records(values * 2)])
            got = decoded.rows["a"].to_pylist()
            assert [repr(g) for g in naive(got)] == [repr(g) for g in naive(good * 2)], tokens
        for place, row in WithoutExact(spec).rows(values).items():
            assert expected[place] is not Bad, tokens[place]
            assert naive([row["a"]]) == naive([expected[place]])

    check()


def naive(values):
    """Zones as objects differ between Arrow and Python; UTC does not."""
    return [v.replace(tzinfo=None) if isinstance(v, dt.datetime) else v for v in values]


# --- JSON itself ----------------------------------------------------------------------------------

json_text = st.one_of(
    st.binary(max_size=30),
    st.text(st.sampled_from('{}[]":,\\/u0d8 \n\t19.eE-+tfnalsr\0é'), max_size=30).map(str.encode),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), strings),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3)),
        max_leaves=8,
    ).map(lambda v: json.dumps(v).encode()),
)  # fmt: skip


def strictly(value):
    """Whether the bytes are one strict JSON object without a key that occurs twice."""

    def unique(pairs):
        if len({k for k, _ in pairs}) != len(pairs):
            raise ValueError("twice")
        return dict(pairs)

    def refuse(_name):
        raise ValueError("no JSON")

    try:
        text = value.decode()
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        json.dumps(parsed, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(json_text, json_text.map(lambda j: b'{"zz":' + j + b"}")), max_size=6))
def test_only_strict_json_objects_pass(values):
    """With no field that the table has, a row says exactly that the value is a strict object."""
    spec = DecodeSpec(TableSchema((Field("\U0001f980", "long"),)))
    for fast in (None, ArrowFastPath):
        (part,) = JsonDecoder(spec, fast).decode([records(values * 3)]).parts
        wrong = {bad.index for bad in part.bad}
        assert [i not in wrong for i in range(len(values))] == [strictly(v) for v in values]
    alone = WithoutExact(spec)
    assert all(strictly(values[place]) for place in alone.rows(values))


@pytest.mark.parametrize("fast", [None, ArrowFastPath])
def test_maps_come_out_whole(fast):
    spec = DecodeSpec(TableSchema((Field("m", MapType("string", Decimal(5, 2))),)))
    values = [b'{"m":{"a":1.5,"b":"2"}}', b'{"m":{}}', b'{"m":null}', b'{"m":{"a":1.555}}'] * 10
    decoded = JsonDecoder(spec, fast).decode([records(values)])
    assert decoded.rows["m"].to_pylist()[:3] == [
        [("a", Exactly("1.50")), ("b", Exactly("2.00"))],
        [],
        None,
    ]
    assert decoded.rows["m"].type == pa.map_(pa.string(), pa.decimal128(5, 2))
    assert len(decoded.parts[0].bad) == 10
