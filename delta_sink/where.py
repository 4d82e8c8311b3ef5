"""`where`: a filter on table partition columns, as commands carry it. Parsed, typed, evaluated.

    day >= '2026-11-01' and (region in ('eu', 'us') or not region != 'uk')

The grammar, words in any case, names of columns as they are (in backticks if they are not plain):

    or      = and {"or" and}
    and     = not {"and" not}
    not     = "not" not | "(" or ")" | test
    test    = column ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") literal
            | column ["not"] "in" "(" literal {"," literal} ")"
            | column "is" ["not"] "null"
    literal = 'text' (a quote is doubled) | number | true | false

Nothing else is understood: no functions, no arithmetic, no columns on both sides. A comparison
with a null is neither true nor false, as in SQL, and what is not true is not selected. Literals
are of the column's type: numbers for numbers, quoted text for strings, dates and timestamps. A
timestamp without a zone is in UTC.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal as Number
from decimal import InvalidOperation
from typing import Final, Literal, TypeAlias, assert_never

from msgspec import Struct

from delta_sink.delta.schema import TableSchema, type_text
from delta_sink.delta.types import DataType, Decimal

LENGTH_MAX: Final = 8_192
DEPTH_MAX: Final = 32
"""Parentheses and `not`s inside each other; far above what a person writes."""
NUMBER_DIGITS_MAX: Final = 64

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Constant: TypeAlias = str | Number | bool
Value: TypeAlias = str | Number | bool | float | dt.date | dt.datetime


class WhereWrong(ValueError):
    """The filter is not one; the message is one sentence that says where and why."""


# --- what a filter is ----------------------------------------------------------------------------


class Compare(Struct, frozen=True):
    """A column against a literal."""

    column: str
    operator: Operator
    literal: Constant


class In(Struct, frozen=True):
    """A column among literals."""

    column: str
    literals: tuple[Constant, ...]


class IsNull(Struct, frozen=True):
    """A column without a value."""

    column: str


class Not(Struct, frozen=True):
    """The opposite; of what is unknown, unknown."""

    inner: Where


class AllOf(Struct, frozen=True):
    """Every one of them."""

    parts: tuple[Where, ...]


class AnyOf(Struct, frozen=True):
    """At least one of them."""

    parts: tuple[Where, ...]


Where: TypeAlias = Compare | In | IsNull | Not | AllOf | AnyOf


def columns_of(where: Where) -> frozenset[str]:
    """Return the names of the columns that a filter asks about."""
    match where:
        case Compare(column) | In(column) | IsNull(column):
            return frozenset({column})
        case Not(inner):
            return columns_of(inner)
        case AllOf(parts) | AnyOf(parts):
            return frozenset().union(*(columns_of(part) for part in parts))


# --- against a table -----------------------------------------------------------------------------

Test: TypeAlias = Callable[[Mapping[str, "Value | None"]], "bool | None"]


class PartitionFilter(Struct, frozen=True):
    """A filter whose columns and literals fit a table. Made by `bind`."""

    types: Mapping[str, DataType]
    test: Test

    def selects(self, partition_values: Mapping[str, str | None]) -> bool:
        """Return whether a table partition is meant.

        `partition_values` is spelled as in the log (`add.partitionValues`).

        Raises:
            WhereWrong: a value is not of its column's type: the log is not to be trusted.
        """
        values = {
            name: partition_value(partition_values.get(name), data_type, name)
            for name, data_type in self.types.items()
        }
        return self.test(values) is True


def bind(where: Where, schema: TableSchema, partition_by: Sequence[str]) -> PartitionFilter:
    """Return the filter for a table, its literals turned into values of the columns' types.

    Raises:
        WhereWrong: a column is none that partitions the table, or a literal is not of its type.
    """
    types: dict[str, DataType] = {}
    for name in sorted(columns_of(where)):
        if name not in partition_by:
            known = ", ".join(partition_by) or "none, the table is not partitioned"
            raise WhereWrong(
                f"column '{name}' does not partition the table; those that do: {known}"
            )
        types[name] = schema.field(name).type
    return PartitionFilter(types, _test(where, types))


def _test(where: Where, types: Mapping[str, DataType]) -> Test:
    match where:
        case Compare(column, operator, literal):
            return _compare(column, operator, _typed(literal, types[column], column))
        case In(column, literals):
            wanted = [_typed(literal, types[column], column) for literal in literals]
            return _among(column, wanted)
        case IsNull(column):
            return lambda values: values[column] is None
        case Not(inner):
            return _opposite(_test(inner, types))
        case AllOf(parts):
            return _combined([_test(part, types) for part in parts], decided_by=False)
        case AnyOf(parts):
            return _combined([_test(part, types) for part in parts], decided_by=True)
        case _:
            assert_never(where)


def _compare(column: str, operator: Operator, literal: Value) -> Test:
    def test(values: Mapping[str, Value | None]) -> bool | None:
        value = values[column]
        return None if value is None else _holds(value, operator, literal)

    return test


def _holds(value: Value, operator: Operator, literal: Value) -> bool:
    # Both sides were made by the column's one type, so that they compare.
    left: float = value  # type: ignore[assignment]  # see above: any ordered type will do
    right: float = literal  # type: ignore[assignment]  # see above: any ordered type will do
    match operator:
        case "=":
            return left == right
        case "!=":
            return left != right
        case "<":
            return left < right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case ">=":
            return left >= right


def _among(column: str, wanted: Sequence[Value]) -> Test:
    return lambda values: None if values[column] is None else values[column] in wanted


def _opposite(test: Test) -> Test:
    def opposite(values: Mapping[str, Value | None]) -> bool | None:
        found = test(values)
        return None if found is None else not found

    return opposite


def _combined(tests: Sequence[Test], *, decided_by: bool) -> Test:
    def combined(values: Mapping[str, Value | None]) -> bool | None:
        found = {test(values) for test in tests}
        if decided_by in found:
            return decided_by
        return None if None in found else not decided_by

    return combined


# --- literals and values as their column's type --------------------------------------------------

_BOUNDS: Final = {"byte": 7, "short": 15, "integer": 31, "long": 63}


def _typed(literal: Constant, data_type: DataType, column: str) -> Value:
    wanted = type_text(data_type)
    if isinstance(literal, str):
        if data_type == "string":
            return literal
        if data_type in ("date", "timestamp", "timestamp_ntz"):
            return _parsed(literal, data_type, column)
        raise WhereWrong(f"column '{column}': expected {wanted}, got text in quotes")
    if isinstance(literal, bool) or data_type == "boolean":
        if isinstance(literal, bool) and data_type == "boolean":
            return literal
        raise WhereWrong(f"column '{column}': expected {wanted}, got {str(literal).lower()}")
    if isinstance(data_type, Decimal):
        return literal
    if data_type in ("float", "double"):
        return float(literal)
    if data_type in _BOUNDS:
        return literal  # compared as numbers: `n < 2.5` is right for whole ones too
    raise WhereWrong(f"column '{column}': expected {wanted} in quotes, got the number {literal}")


def partition_value(text: str | None, data_type: DataType, column: str) -> Value | None:
    """Return a table partition's value as its type; null and the empty text are None.

    Raises:
        WhereWrong: the text is no such value.
    """
    if text is None or text == "":
        return None
    if data_type == "string":
        return text
    return _parsed(text, data_type, column)


def _parsed(text: str, data_type: DataType, column: str) -> Value:
    try:
        if data_type == "date":
            return dt.date.fromisoformat(text)
        if data_type in ("timestamp", "timestamp_ntz"):
            found = dt.datetime.fromisoformat(text)
            return found.astimezone(dt.UTC) if found.tzinfo else found.replace(tzinfo=dt.UTC)
        if data_type == "boolean":
            return {"true": True, "false": False}[text.lower()]
        if data_type in ("float", "double"):
            return float(text)
        if isinstance(data_type, Decimal) or data_type in _BOUNDS:
            return Number(text)
    except (ValueError, KeyError, InvalidOperation, OverflowError) as error:
        raise WhereWrong(f"column '{column}': {text!r} is no {type_text(data_type)}") from error
    raise WhereWrong(f"column '{column}': {type_text(data_type)} cannot be compared")


def where_of(
    partition_by: Sequence[str], values: Sequence[str | None], schema: TableSchema
) -> str | None:
    """Return the filter that selects one table partition and no other; None if none can say it.

    A table without table partitions has no filter either.
    """
    parts = [
        _equals(name, value, schema.field(name).type)
        for name, value in zip(partition_by, values, strict=True)
    ]
    text = " and ".join(parts)
    try:
        found = bind(parse_where(text), schema, partition_by)
        is_meant = found.selects(dict(zip(partition_by, values, strict=True)))
    except WhereWrong:
        return None  # A name or a value that the grammar cannot spell.
    return text if is_meant else None


def _equals(name: str, value: str | None, data_type: DataType) -> str:
    column = f"`{name}`"
    if value is None or value == "":
        return f"{column} is null"
    is_bare = data_type in _BOUNDS or data_type in ("boolean", "float", "double")
    if is_bare or isinstance(data_type, Decimal):
        return f"{column} = {value}"
    quoted = value.replace("'", "''")
    return f"{column} = '{quoted}'"


# --- text to filter ------------------------------------------------------------------------------


def parse_where(text: str) -> Where:
    """Return the filter that `text` is. Columns are not looked up: `bind` does.

    Raises:
        WhereWrong: it is none, or longer or deeper than the bounds.
    """
    if len(text) > LENGTH_MAX:
        raise WhereWrong(f"the filter has {len(text)} characters, at most {LENGTH_MAX} are taken")
    parser = _Parser(list(_tokens(text)))
    found = parser.either(0)
    parser.end()
    return found


class _Token(Struct, frozen=True):
    """A piece of the text: `kind` is name, word, text, number, sign or end."""

    kind: str
    text: str
    position: int


_PIECES: Final = re.compile(
    r"""\s+
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>`[^`]+`)
    | (?P<number>[+-]?[0-9]+(?:\.[0-9]+)?(?![\w.]))
    | (?P<name>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|<>|[=<>(),])
    """,
    re.VERBOSE,
)
_WORDS: Final = frozenset({"and", "or", "not", "in", "is", "null", "true", "false"})


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while position < len(text):
        match = _PIECES.match(text, position)
        if match is None:
            raise WhereWrong(f"character {position + 1}: {text[position]!r} is not understood here")
        at, position = position + 1, match.end()
        kind, piece = match.lastgroup, match[0]
        if kind == "text":
            yield _Token("text", piece[1:-1].replace("''", "'"), at)
        elif kind == "quoted":
            yield _Token("name", piece[1:-1], at)
        elif kind == "name" and piece.lower() in _WORDS:
            yield _Token("word", piece.lower(), at)
        elif kind is not None:
            yield _Token(kind, piece, at)
    yield _Token("end", "the end", position + 1)


class _Parser:
    """One pass over the tokens; each method takes what it names and returns it."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._next = 0

    def either(self, depth: int) -> Where:
        parts = [self._both(depth)]
        while self._take("word", "or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def end(self) -> None:
        if not self._take("end"):
            raise self._wrong("'and', 'or' or the end")

    def _both(self, depth: int) -> Where:
        parts = [self._single(depth)]
        while self._take("word", "and"):
            parts.append(self._single(depth))
        return parts[0] if len(parts) == 1 else AllOf(tuple(parts))

    def _single(self, depth: int) -> Where:
        if depth > DEPTH_MAX:
            raise WhereWrong(f"the filter is nested deeper than {DEPTH_MAX}")
        if self._take("word", "not"):
            return Not(self._single(depth + 1))
        if self._take("sign", "("):
            found = self.either(depth + 1)
            self._require("sign", ")")
            return found
        return self._about(self._require("name", what="the name of a column").text)

    def _about(self, column: str) -> Where:
        if self._take("word", "is"):
            negated = self._take("word", "not") is not None
            self._require("word", "null")
            return Not(IsNull(column)) if negated else IsNull(column)
        if self._take("word", "not"):
            self._require("word", "in")
            return Not(self._in(column))
        if self._take("word", "in"):
            return self._in(column)
        sign = self._take("sign")
        match sign.text if sign else "":
            case "=" | "!=" | "<" | "<=" | ">" | ">=" as operator:
                return Compare(column, operator, self._literal())
            case "<>":
                return Compare(column, "!=", self._literal())
            case _:
                self._next -= sign is not None
                raise self._wrong("a comparison, 'in' or 'is'")

    def _in(self, column: str) -> In:
        self._require("sign", "(")
        literals = [self._literal()]
        while self._take("sign", ","):
            literals.append(self._literal())
        self._require("sign", ")")
        return In(column, tuple(literals))

    def _literal(self) -> Constant:
        if token := self._take("text"):
            return token.text
        if token := self._take("number"):
            if len(token.text) > NUMBER_DIGITS_MAX:
                raise WhereWrong(f"character {token.position}: the number is too long")
            return Number(token.text)
        for word in ("true", "false"):
            if self._take("word", word):
                return word == "true"
        raise self._wrong("a number, text in single quotes, true or false")

    def _take(self, kind: str, text: str | None = None) -> _Token | None:
        token = self._tokens[self._next]
        if token.kind != kind or (text is not None and token.text != text):
            return None
        self._next += kind != "end"
        return token

    def _require(self, kind: str, text: str | None = None, *, what: str | None = None) -> _Token:
        token = self._take(kind, text)
        if token is None:
            raise self._wrong(what or f"'{text}'")
        return token

    def _wrong(self, wanted: str) -> WhereWrong:
        token = self._tokens[self._next]
        got = "the end" if token.kind == "end" else repr(token.text[:40])
        return WhereWrong(f"character {token.position}: expected {wanted}, got {got}")
