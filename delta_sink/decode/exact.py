"""The exact path: one JSON value, decided by Python's own parser and by text, never by rounding.

It is the authority on what a record is worth. The fast path may only ever agree with it or pass.
Numbers stay text until their column's type is known, so nothing is lost on the way. Rules:

* one value: as `scalars` has it;
* map: an object. Its keys are strings; for other key types the key's text is read as that type
  would be read as a value (numbers as JSON writes them, `true`, `false`);
* a key that occurs twice in one object is refused at every level, read by the table or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

import pyarrow as pa

from delta_sink.decode.rows import (
    DecodeSpec,
    Reason,
    bad,
    missing_field,
    shortened,
)
from delta_sink.decode.scalars import Misfit, Number, reader_of
from delta_sink.decode.screen import nesting_of
from delta_sink.delta.types import (
    ArrayType,
    DataType,
    Field,
    MapType,
    StructType,
    arrow_field,
    type_text,
)
from delta_sink.errors import DataError

Tally = list[int]
"""One number: the unknown fields seen so far. A list, because converters share it."""

Convert = Callable[[object, Tally], object]
"""From a parsed JSON value that is not null to what `pyarrow.array` takes for the column's type."""


class ExactDecoder:
    """Decodes one value at a time. Holds nothing that changes; safe in several jobs at once."""

    def __init__(self, spec: DecodeSpec) -> None:
        self._spec = spec
        self._fields = spec.value_fields
        self._convert = _struct(self._fields, "", spec)
        self._schema = pa.schema([arrow_field(f) for f in self._fields])

    def decode(self, value: bytes) -> tuple[dict[str, object], int]:
        """Return the row of `value`, and how many fields of it the table does not have.

        Raises:
            DataError: the value cannot become a row; `message` and `redacted` lack the position.
        """
        tally = [0]
        parsed = parse(value, self._spec)
        if not isinstance(parsed, dict):
            raise bad(
                "not_an_object",
                f"expected a JSON object, got {_shown(parsed)}",
                f"expected a JSON object, got {_kind(parsed)}",
            )
        row = self._convert(parsed, tally)
        assert isinstance(row, dict)
        return row, tally[0]

    def table(self, rows: Sequence[dict[str, object]]) -> pa.Table:
        """Return rows that `decode` gave as the value columns."""
        columns = [pa.array([row[f.name] for row in rows], f.type) for f in self._schema]
        return pa.table(columns, schema=self._schema)


# --- bytes to parsed JSON -----------------------------------------------------------------------

_WHITESPACE = b" \t\r\n"
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse(value: bytes, spec: DecodeSpec) -> object:
    """Return the one JSON document that `value` is; numbers are `Number`.

    Raises:
        DataError: it is empty, too large, too deep, not UTF-8, or not exactly one document.
    """
    if len(value) > spec.record_bytes_max:
        sentence = f"expected at most {spec.record_bytes_max} bytes, got {len(value)}"
        raise bad("too_large", sentence, sentence)
    if not value.strip(_WHITESPACE):
        raise bad("empty_value", "expected a JSON object, got nothing", "expected a JSON object, got nothing")  # fmt: skip
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        sentence = f"expected UTF-8, got a wrong byte at {error.start}"
        raise bad("invalid_utf8", sentence, sentence) from None
    if nesting_of(value, spec.nesting_max) > spec.nesting_max:
        raise _too_deep(spec)
    try:
        parsed: object = _JSON.decode(text)
    except json.JSONDecodeError as error:
        sentence = f"expected one JSON object, got other text at character {error.pos}"
        raise bad("invalid_json", f"{sentence} ({error.msg})", sentence) from None
    except RecursionError:
        raise _too_deep(spec) from None
    if _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(parsed)
    return parsed


def _too_deep(spec: DecodeSpec) -> DataError:
    sentence = f"expected at most {spec.nesting_max} levels of nesting, got more"
    return bad("too_deep", sentence, sentence)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # `add` returns None on purpose here
        raise bad(
            "duplicate_key",
            f"expected each key once in an object, got {shortened(repr(twice))} twice",
            "expected each key once in an object, got one twice",
        )
    return found


def _constant(name: str) -> NoReturn:
    sentence = f"expected a JSON value, got {name}"
    raise bad("invalid_json", sentence, sentence)


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_float=Number, parse_int=Number, parse_constant=_constant
)


def _refuse_lone_surrogates(parsed: object) -> None:
    if isinstance(parsed, str):
        try:
            parsed.encode()
        except UnicodeEncodeError:
            sentence = "expected text, got half of a surrogate pair"
            raise bad("invalid_json", sentence, sentence) from None
    elif isinstance(parsed, dict):
        for key, item in parsed.items():
            _refuse_lone_surrogates(key)
            _refuse_lone_surrogates(item)
    elif isinstance(parsed, list):
        for item in parsed:
            _refuse_lone_surrogates(item)


# --- sentences ----------------------------------------------------------------------------------


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, dict) else "a list"


def _shown(value: object) -> str:
    """The value itself where it is short text, else its kind: for dead letters only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Number):
        return shortened(str(value))
    if isinstance(value, str):
        return shortened(repr(value[:200]))
    return _kind(value)


def _wrong(
    path: str, wanted: str, value: object, reason: Reason = "type_mismatch", why: str = ""
) -> DataError:
    """Return the error of one field: where, wanted, got; `why` never shows the value."""
    start = f"field '{path}': expected {wanted}, got "
    return bad(reason, f"{start}{_shown(value)}{why}", f"{start}{_kind(value)}{why}")


# --- converters, made once a schema -------------------------------------------------------------


def _converter(data_type: DataType, path: str, spec: DecodeSpec) -> Convert:
    """Return the converter of a type; `path` is where it stands, as errors write it."""
    match data_type:
        case StructType(fields):
            return _struct(fields, f"{path}.", spec)
        case ArrayType():
            return _array(data_type, path, spec)
        case MapType():
            return _map(data_type, path, spec)
        case _:
            return _simple(data_type, path, spec)


def _struct(fields: tuple[Field, ...], prefix: str, spec: DecodeSpec) -> Convert:
    columns = [(f, _converter(f.type, prefix + f.name, spec)) for f in fields]
    known = frozenset(f.name for f in fields)
    fails = spec.unknown_fields == "fail"

    def convert(value: object, tally: Tally) -> object:
        if type(value) is not dict:
            raise _wrong(prefix.removesuffix("."), "an object", value)
        row: dict[str, object] = {}
        for field, inner in columns:
            item = value.get(field.name)
            if item is None and not field.nullable:
                raise missing_field(prefix + field.name, field)
            row[field.name] = None if item is None else inner(item, tally)
        unknown = value.keys() - known
        if unknown and fails:
            raise _unknown_field(prefix, min(unknown))
        tally[0] += len(unknown)
        return row

    return convert


def _unknown_field(prefix: str, name: str) -> DataError:
    where = f"in field '{prefix.removesuffix('.')}'" if prefix else "at the top"
    return bad(
        "unknown_field",
        f"expected only fields of the table {where}, got {shortened(repr(name))}",
        f"expected only fields of the table {where}, got another",
    )


def _array(data_type: ArrayType, path: str, spec: DecodeSpec) -> Convert:
    inner = _converter(data_type.element, f"{path}[]", spec)
    element = Field("element", data_type.element, data_type.contains_null)
    wanted = type_text(data_type)

    def convert(value: object, tally: Tally) -> object:
        if type(value) is not list:
            raise _wrong(path, wanted, value)
        if not element.nullable and None in value:
            raise missing_field(f"{path}[]", element)
        return [None if item is None else inner(item, tally) for item in value]

    return convert


def _map(data_type: MapType, path: str, spec: DecodeSpec) -> Convert:
    inner = _converter(data_type.value, f"{path}{{}}", spec)
    key_of = _map_key(data_type.key, f"{path}{{key}}", spec)
    element = Field("value", data_type.value, data_type.value_contains_null)
    wanted = type_text(data_type)

    def convert(value: object, tally: Tally) -> object:
        if type(value) is not dict:
            raise _wrong(path, wanted, value)
        pairs: list[tuple[object, object]] = []
        for key, item in value.items():
            if item is None and not element.nullable:
                raise missing_field(f"{path}{{}}", element)
            pairs.append((key_of(key, tally), None if item is None else inner(item, tally)))
        if len({key for key, _ in pairs}) != len(pairs):
            sentence = f"field '{path}': expected each key of a map once, got one in two spellings"
            raise bad("duplicate_key", sentence, sentence)
        return pairs

    return convert


_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMERIC = frozenset({"long", "integer", "short", "byte", "float", "double"})


def _map_key(data_type: DataType, path: str, spec: DecodeSpec) -> Convert:
    """Return the converter of a map's keys, which JSON can only write as strings."""
    wanted = type_text(data_type)
    if isinstance(data_type, ArrayType | MapType | StructType):

        def refuse(value: object, _tally: Tally) -> object:
            raise _wrong(path, wanted, value)

        return refuse
    inner = _simple(data_type, path, spec)
    is_time = data_type in ("timestamp", "timestamp_ntz")
    as_number = data_type in _NUMERIC or (is_time and spec.timestamp_format != "iso8601")

    def convert(value: object, tally: Tally) -> object:
        text = str(value)
        if data_type == "boolean" and text in ("true", "false"):
            return text == "true"
        if as_number and _JSON_NUMBER.fullmatch(text):
            return inner(Number(text), tally)
        return inner(text, tally)

    return convert


def _simple(data_type: DataType, path: str, spec: DecodeSpec) -> Convert:
    """Return the converter of a type that holds one value."""
    wanted = type_text(data_type)
    read = reader_of(data_type, spec)

    def convert(value: object, _tally: Tally) -> object:
        try:
            return read(value)
        except Misfit as refused:
            raise _wrong(path, wanted, value, refused.reason, refused.why) from None

    return convert
