"""`where`: what is understood, what is refused and with which sentence, and what is selected."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.delta.schema import TableSchema
from delta_sink.delta.types import Decimal, Field
from delta_sink.where import (
    DEPTH_MAX,
    LENGTH_MAX,
    AllOf,
    AnyOf,
    Compare,
    In,
    IsNull,
    Not,
    WhereWrong,
    bind,
    columns_of,
    parse_where,
)

SCHEMA = TableSchema(
    (
        Field("id", "long"),
        Field("day", "date"),
        Field("region", "string"),
        Field("hour", "integer"),
        Field("price", Decimal(12, 2)),
        Field("ratio", "double"),
        Field("is_test", "boolean"),
        Field("at", "timestamp"),
        Field("local", "timestamp_ntz"),
        Field("odd name", "string"),
    )
)
PARTITION_BY = [name for name in SCHEMA.names if name != "id"]
VALUES = {
    "day": "2026-11-24",
    "region": "eu",
    "hour": "7",
    "price": "10.50",
    "ratio": "0.5",
    "is_test": "false",
    "at": "2026-11-24T10:00:00.000000Z",
    "local": "2026-11-24 10:00:00",
    "odd name": "it's",
}


def selects(text: str, values=None) -> bool:
    return bind(parse_where(text), SCHEMA, PARTITION_BY).selects({**VALUES, **(values or {})})


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a = 'x'", "Compare(column='a', operator='=', literal='x')"),
        ("a <> 'it''s'", """Compare(column='a', operator='!=', literal="it's")"""),
        ("A>=-1.50", "Compare(column='A', operator='>=', literal=Decimal('-1.50'))"),
        ("a NOT IN (1,2)", "Not(inner=In(column='a', literals=(Decimal('1'), Decimal('2'))))"),
        ("`odd name` is not null", "Not(inner=IsNull(column='odd name'))"),
    ],
)
def test_what_is_understood(text, tree):
    assert repr(parse_where(text)) == tree


def test_and_binds_closer_than_or_and_not_closest():
    found = parse_where("a = 1 or not b = 1 and c = 1")
    assert isinstance(found, AnyOf)
    assert isinstance(found.parts[1], AllOf)
    assert isinstance(found.parts[1].parts[0], Not)
    assert columns_of(found) == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("text", "is_selected"),
    [
        ("day >= '2026-11-01'", True),
        ("day > '2026-11-24'", False),
        ("day in ('2026-11-23', '2026-11-24')", True),
        ("region = 'eu' and hour < 10", True),
        ("hour < 7.5 and hour > 6.5", True),
        ("hour = 07", True),
        ("price = 10.5", True),
        ("ratio <= 0.5", True),
        ("is_test = false", True),
        ("not is_test != false", True),
        ("at = '2026-11-24T11:00:00+01:00'", True),
        ("at >= '2026-11-24'", True),
        ("local < '2026-11-24T10:00:01'", True),
        ("`odd name` = 'it''s'", True),
        ("region not in ('us')", True),
        ("region is null", False),
        ("(region = 'us' or (hour = 7))", True),
    ],
)
def test_what_is_selected(text, is_selected):
    assert selects(text) is is_selected


@pytest.mark.parametrize("null", [None, ""])
def test_null_is_neither_equal_nor_unequal(null):
    values = {"region": null}
    for text in (
        "region = 'eu'",
        "region != 'eu'",
        "not region = 'eu'",
        "region in ('eu')",
        "region not in ('eu')",
        "region is not null",
        "region = 'eu' and hour = 7",
    ):
        assert not selects(text, values), text
    for text in ("region is null", "region = 'eu' or hour = 7", "not (region = 'eu' and hour = 8)"):
        assert selects(text, values), text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "character 1: expected the name of a column, got the end"),
        ("day", "character 4: expected a comparison, 'in' or 'is', got the end"),
        ("day = ", "expected a number, text in single quotes, true or false"),
        ("'x' = day", "character 1: expected the name of a column, got 'x'"),
        ('day = "x"', "is not understood here"),
        ("day == 'x'", "expected a number, text in single quotes"),
        ("day = null", "got 'null'"),
        ("day = hour", "got 'hour'"),
        ("day = 'x' day = 'y'", "expected 'and', 'or' or the end, got 'day'"),
        ("day = 'x';", "character 10: ';' is not understood here"),
        ("lower(region) = 'eu'", "expected a comparison, 'in' or 'is', got '('"),
        ("region like 'e%'", "got 'like'"),
        ("hour + 1 = 2", "is not understood here"),
        ("region in ()", "got ')'"),
        ("region in ('a',)", "got ')'"),
        ("(region = 'a'", "expected ')', got the end"),
        ("region = 'a", 'character 10: "\'" is not understood here'),
        ("hour = 1e5", "is not understood here"),
        ("hour = " + "1" * 100, "the number is too long"),
        ("__import__('os').system('x')", "character 17: '.' is not understood here"),
        ("(" * (DEPTH_MAX + 2) + "hour = 1" + ")" * (DEPTH_MAX + 2), "nested deeper"),
        ("not " * (DEPTH_MAX + 2) + "hour = 1", "nested deeper"),
        ("x" * (LENGTH_MAX + 1), "at most 8192"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_refused(text, sentence):
    with pytest.raises(WhereWrong) as wrong:
        parse_where(text)
    assert sentence in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id = 1", "column 'id' does not partition the table"),
        ("Day = '2026-11-24'", "column 'Day' does not partition the table"),
        ("day = 20261124", "column 'day': expected date in quotes, got the number 20261124"),
        ("day = '2026-13-01'", "column 'day': '2026-13-01' is no date"),
        ("hour = '7'", "column 'hour': expected integer, got text in quotes"),
        ("hour = true", "column 'hour': expected integer, got true"),
        ("region = 7", "column 'region': expected string in quotes, got the number 7"),
        ("is_test = 1", "column 'is_test': expected boolean, got 1"),
        ("at > 'soon'", "column 'at': 'soon' is no timestamp"),
        ("region in ('eu', false)", "expected string, got false"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(text, sentence):
    where = parse_where(text)
    with pytest.raises(WhereWrong) as wrong:
        bind(where, SCHEMA, PARTITION_BY)
    assert sentence in str(wrong.value)


def test_a_table_without_partitions_says_so():
    with pytest.raises(WhereWrong, match="the table is not partitioned"):
        bind(parse_where("day = '2026-11-24'"), SCHEMA, [])


def test_a_value_that_is_not_of_its_type_selects_nothing_silently():
    with pytest.raises(WhereWrong, match="'seven' is no integer"):
        selects("hour = 7", {"hour": "seven"})


# --- against an engine that shares no code -------------------------------------------------------

_NUMBERS = st.integers(-3, 3)
_TEXTS = st.sampled_from(["", "a", "b", "it's", "é", "B"]).filter(bool)


def _literal(value: object) -> str:
    return str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"


@st.composite
def _tests(draw):
    column, values = draw(st.sampled_from([("n", _NUMBERS), ("s", _TEXTS)]))
    match draw(st.sampled_from(["compare", "in", "null"])):
        case "compare":
            operator = draw(st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="]))
            return f"{column} {operator} {_literal(draw(values))}"
        case "in":
            found = draw(st.lists(values, min_size=1, max_size=3))
            negated = draw(st.sampled_from(["", "not "]))
            return f"{column} {negated}in ({', '.join(map(_literal, found))})"
        case _:
            return f"{column} is {draw(st.sampled_from(['', 'not ']))}null"


_WHERES = st.recursive(
    _tests(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "AND", "Or"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"not ({text})"),
        inner.map(lambda text: f"not {text}"),
    ),
    max_leaves=8,
)
_TABLE = TableSchema((Field("n", "long"), Field("s", "string"), Field("x", "long")))


@settings(max_examples=400, deadline=None)
@given(text=_WHERES, n=st.none() | _NUMBERS, s=st.none() | _TEXTS)
def test_it_selects_what_sqlite_selects(text, n, s):
    connection = sqlite3.connect(":memory:")
    try:
        query = f"select ({text}) is true from (select ? as n, ? as s)"
        wanted = bool(connection.execute(query, (n, s)).fetchone()[0])
    finally:
        connection.close()
    found = bind(parse_where(text), _TABLE, ["n", "s"])
    assert found.selects({"n": None if n is None else str(n), "s": s}) is wanted, text


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="nsx=<>!()', 019.-`andorit\n\0é", max_size=60))
def test_any_text_is_a_filter_or_is_refused(text):
    try:
        found = parse_where(text)
    except WhereWrong:
        return
    assert isinstance(found, Compare | In | IsNull | Not | AllOf | AnyOf)
