"""Records that kill, stall or starve a decoder: each one alone, and in the middle of good ones."""

import gc
import time
from types import TracebackType

import pytest

from delta_sink.decode.exact import ExactDecoder
from delta_sink.decode.json import ArrowFastPath, JsonDecoder, Refused, Sure, _slices
from delta_sink.decode.packed import PackedValues
from delta_sink.decode.rows import DecodeSpec
from delta_sink.decode.screen import many_places, nesting_of, screen
from delta_sink.delta.schema import ArrayType, Decimal, Field, StructType, TableSchema
from delta_sink.model import Records, TopicPartition

SPEC = DecodeSpec(
    TableSchema(
        (
            Field("n", "long"),
            Field("a", Decimal(12, 2)),
            Field("t", "timestamp"),
            Field("s", "string"),
            Field("d", "double"),
            Field("l", ArrayType(StructType((Field("x", "long"),)))),
        )
    )
)
GOOD = b'{"n":1,"a":1.5,"t":"2024-01-02T03:04:05Z","s":"x","d":0.5,"l":[null,{"x":1}]}'

POISON = {
    "a million brackets": (b"[" * 1_000_000, "too_deep"),
    "a million brackets in an ignored field": (b'{"zz":' + b"[" * 1_000_000 + b"}", "too_deep"),
    "20,000 levels": (b'{"zz":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}", "too_deep"),
    "20,000 levels in a string column": (b'{"s":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "too_deep"),
    "null": (b"null", "not_an_object"),
    "a very small decimal": (b'{"a":1e-999999999}', "not_exact"),
    "a very small decimal as a string": (b'{"a":"1E-2000000000"}', "not_exact"),
    "a very small integer": (b'{"n":1e-999999999}', "not_exact"),
    "a very large integer": (b'{"n":1e999999999}', "out_of_range"),
    "a very large decimal": (b'{"a":1e999999999}', "out_of_range"),
    "a million digits": (b'{"n":' + b"9" * 1_000_000 + b"}", "out_of_range"),
    "a million digits for a double": (b'{"d":' + b"9" * 1_000_000 + b"}", "out_of_range"),
    "a million digits after the point": (b'{"a":0.' + b"3" * 1_000_000 + b"}", "not_exact"),
    "a million escapes without an end": (b'{"s":"' + b'\\"' * 1_000_000, "invalid_json"),
    "brackets and quotes without an end": (b'{"s":' + b'["' * 500_000, "too_deep"),
    "over the cap": (b'{"s":"' + b"x" * 17_000_000 + b'"}', "too_large"),
    "nothing": (b"", "empty_value"),
    "a NUL": (b"\0", "invalid_json"),
}  # fmt: skip


def records(values):
    return Records(TopicPartition("t", 0), len(values), range(len(values)), values)


@pytest.mark.parametrize("name", POISON)
@pytest.mark.parametrize("place", ["alone", "first", "last", "everywhere"])
@pytest.mark.parametrize("fast", [None, ArrowFastPath], ids=["plain", "pyarrow"])
def test_poison_is_a_bad_record_and_nothing_else(name, place, fast):
    poison, reason = POISON[name]
    before, after, times = {
        "alone": (0, 0, 1),
        "first": (0, 40, 1),
        "last": (40, 0, 1),
        "everywhere": (10, 10, 12 if len(poison) < 3_000_000 else 1),
    }[place]
    values = [GOOD] * before + [poison] * times + [GOOD] * after
    started = time.monotonic()
    decoded = JsonDecoder(SPEC, fast).decode([records(values)])
    assert time.monotonic() - started < 30
    (part,) = decoded.parts
    assert {bad.reason for bad in part.bad} == {reason}
    assert [bad.index for bad in part.bad] == list(range(before, before + times))
    assert decoded.rows.num_rows == before + after
    assert all(len(bad.message) < 600 for bad in part.bad)


def test_all_poison_in_one_chunk():
    values = [poison for poison, _ in POISON.values()]
    for fast in (None, ArrowFastPath):
        (part,) = JsonDecoder(SPEC, fast).decode([records(values)]).parts
        assert [bad.reason for bad in part.bad] == [reason for _, reason in POISON.values()]


def test_a_record_of_ten_megabytes_is_a_row():
    value = b'{"n":1,"s":"' + b"x" * 10_000_000 + b'"}'
    for fast in (None, ArrowFastPath):
        decoded = JsonDecoder(SPEC, fast).decode([records([GOOD] * 20 + [value] + [GOOD] * 20)])
        assert decoded.rows.num_rows == 41
        assert len(decoded.rows["s"][20].as_py()) == 10_000_000


def test_three_bad_records_among_ten_thousand_cost_a_few_passes():
    values = [b'{"n":%d,"a":"1.50","s":"x"}' % i for i in range(10_000)]
    for place, value in ((17, b'{"n":"x"}'), (5_000, b'{"n":1,,}'), (9_999, b'{"t":"nope"}')):
        values[place] = value
    passed = []

    class Counted(ArrowFastPath):
        def __call__(self, values):
            passed.append(len(values))
            return super().__call__(values)

    decoded = JsonDecoder(SPEC, Counted).decode([records(values)])
    (part,) = decoded.parts
    assert [bad.index for bad in part.bad] == [17, 5_000, 9_999]
    assert decoded.rows["n"].to_pylist() == [
        i for i in range(10_000) if i not in (17, 5_000, 9_999)
    ]
    assert len(passed) < 60
    assert sum(passed) < 6 * len(values)


def test_a_chunk_of_only_bad_records_does_not_go_over_and_over():
    calls = []

    class Counted(ArrowFastPath):
        def __call__(self, values):
            calls.append(len(values))
            return super().__call__(values)

    (part,) = JsonDecoder(SPEC, Counted).decode([records([b'{"n":"x"}'] * 20_000)]).parts
    assert len(part.bad) == 20_000
    assert len(calls) <= 4 * 20_000 // 500 + 1


def test_good_records_never_see_the_exact_path(monkeypatch):
    monkeypatch.setattr(ExactDecoder, "decode", lambda *_: pytest.fail("not needed"))
    values = [GOOD, GOOD.replace(b"1,", b"1.0,"), GOOD[:-1] + b',"zz":{"a":[1]}}', GOOD.replace(b"Z", b".123456789Z")]  # fmt: skip
    for some in ([GOOD], values[:2], values[:3], values):
        for fast in (None, ArrowFastPath):
            decoded = JsonDecoder(SPEC, fast).decode([records(some * 100)])
            assert decoded.rows.num_rows == 100 * len(some)


def test_another_fast_path_can_be_put_in():
    class Nothing:
        def __init__(self, spec):
            assert spec is SPEC

        def __call__(self, values):
            return Refused(suspect=len(values) + 5)  # out of bounds: a hint, not an order

    decoded = JsonDecoder(SPEC, Nothing).decode([records([GOOD] * 100)])
    assert decoded.rows.num_rows == 100


def test_no_bad_record_keeps_the_frames_it_failed_in():
    def tracebacks():
        found = [o for o in gc.get_objects() if isinstance(o, TracebackType)]
        return [o for o in found if "delta_sink/decode" in o.tb_frame.f_code.co_filename]

    before = tracebacks()  # of other tests
    values = [b'{"n":"x"}'] * 20
    decoded = JsonDecoder(SPEC).decode([records(values)])
    assert len(decoded.parts[0].bad) == 20
    assert not [trace for trace in tracebacks() if trace not in before]


def test_slices_are_bounded_and_cover_everything(monkeypatch):
    monkeypatch.setattr("delta_sink.decode.json.SLICE_BYTES_MAX", 10)
    sizes = [3, 3, 3, 3, 25, 1, 9, 10, 0, 0, 11]
    slices = _slices(PackedValues.of([b"x" * size for size in sizes]))
    assert [after for _, after in slices][:-1] == [first for first, _ in slices][1:]
    assert (slices[0][0], slices[-1][1]) == (0, len(sizes))
    assert all(sum(sizes[a:b]) <= 10 or b == a + 1 for a, b in slices)
    assert _slices(PackedValues.of([])) == []


# --- the screen -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "depth"),
    [
        (b'{"a":[{"b":[]}]}', 4),
        (b'{"a":"[[[[[["}', 1),
        (b'{"a":"\\"[[[[","b":[[]]}', 3),
        (b'{"a":"\\\\","b":[[]]}', 3),
        (b"[][][][][]", 1),
        (b'"[[[', 0),
        (b'["\\', 1),
        (b"]]]][[", 0),
        (b"", 0),
    ],
)
def test_nesting(value, depth):
    assert nesting_of(value, 0) == depth


def test_the_screen_keeps_places():
    values = [b"", b' {"a":1}\n', b"[[[[]]]]", b'{"a":[[]]}', b"{}", b'{"a":"[[[["}', b"\0", b'{"\xff":1}', b"x" * 99]  # fmt: skip
    screened = screen(values, record_bytes_max=50, nesting_max=2)
    assert screened.taken.tolist() == [1, 4, 5]
    assert screened.values == [b'{"a":1}', b"{}", b'{"a":"[[[["}']
    assert screened.joined == b'{"a":1}\n{}\n{"a":"[[[["}'
    assert screen([], record_bytes_max=50, nesting_max=2).values == []


@pytest.mark.parametrize(
    ("value", "is_caught"),
    [
        (b'{"a":1e-10}', True),
        (b'{"a": -1.5E-0010}', True),
        (b'{"a":"5.e-39"}', True),
        (b'{"a":[1,2e-39]}', True),
        (b'{"a":"1\\u0065-39"}', True),
        (b'{"a":"1e\\u002d39"}', True),
        (b'{"a":"1e-\\u00339"}', True),
        (b'{"a":0.' + b"0" * 23 + b"1}", True),
        (b'{"a":1e-9}', False),
        (b'{"a":0.' + b"0" * 22 + b"1}", False),
        (b'{"a":"0f3e-12d4-9e-1234"}', False),
        (b'{"a":"\\u003c\\u003e\\u0026"}', False),
        (b'{"a":' + b"1" * 60 + b"}", False),
    ],
    ids=str,
)
def test_numbers_with_many_places_are_caught(value, is_caught):
    values = [b'{"a":1}', value, b'{"a":2}']
    screened = screen(values, record_bytes_max=1000, nesting_max=5)
    assert many_places(screened) == ({1} if is_caught else set())
    left = screened.without(many_places(screened))
    assert left.taken.tolist() == ([0, 2] if is_caught else [0, 1, 2])
    assert left.joined == b"\n".join(left.values)


def test_a_false_alarm_only_takes_the_exact_path():
    values = [b'{"s":"%d 1e-12","a":1.5}' % i for i in range(100)]
    sure = ArrowFastPath(SPEC)(values)
    assert isinstance(sure, Sure)
    assert len(sure.taken) == 0
    assert JsonDecoder(SPEC).decode([records(values)]).rows.num_rows == 100
