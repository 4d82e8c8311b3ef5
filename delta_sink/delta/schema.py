"""The schema of a table: its types, its JSON in the log, its Arrow form, its columns in the file.

Three spellings of one thing meet here. `TableSchema` is the one that the code uses; `schemaString`
is how Delta's log keeps it; a list of mappings is how a user writes it. What this sink cannot
write or other engines cannot read is refused here, before a first commit could carry it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, cast, get_args

import pyarrow as pa
from msgspec import Struct

from delta_sink.delta.types import (
    DECIMAL_PATTERN,
    NESTING_MAX,
    PRIMITIVES,
    ArrayType,
    DataType,
    Decimal,
    Field,
    MapType,
    Primitive,
    StructType,
    arrow_field,
    arrow_type,
    mentions,
    parse_decimal,
    type_text,
)
from delta_sink.errors import TableRefused

__all__ = [
    "METADATA_FIELDS",
    "ArrayType",
    "DataType",
    "Decimal",
    "Derived",
    "Field",
    "MapType",
    "ParsedColumns",
    "Primitive",
    "StructType",
    "TableSchema",
    "arrow_type",
    "differences",
    "parse_columns",
    "type_text",
]


class TableSchema(Struct, frozen=True, dict=True):
    """The columns of a table, in their order."""

    fields: tuple[Field, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(f.name for f in self.fields)

    def field(self, name: str) -> Field:
        """Return the column of exactly this name. Raises KeyError if there is none."""
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    @cached_property
    def arrow(self) -> pa.Schema:
        """The Arrow schema that rows of this table have between decoder and file."""
        return pa.schema([arrow_field(f) for f in self.fields])  # used several times a batch

    @property
    def has_timestamp_ntz(self) -> bool:
        """Whether the table's protocol must name the feature `timestampNtz`."""
        return any(mentions(f.type, "timestamp_ntz") for f in self.fields)

    def to_json(self) -> str:
        """Return Delta's `schemaString`."""
        return json.dumps(
            _type_json(StructType(self.fields)), ensure_ascii=False, separators=(",", ":")
        )

    @classmethod
    def from_json(cls, text: str) -> TableSchema:
        """Return the schema that a table's `schemaString` describes.

        Raises:
            TableRefused: it is no schema, or has types or column properties that this sink does
                not write (variant, generated and identity columns, invariants, …).
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TableRefused("the table's schemaString is not readable JSON") from error
        parsed = _parse_type(raw, "the table", 0)
        if not isinstance(parsed, StructType):
            raise TableRefused(f"the table's schema is {type_text(parsed)}, wanted a struct")
        return cls(parsed.fields)


# --- the log's JSON -----------------------------------------------------------------------------


def _type_json(data_type: DataType) -> object:
    match data_type:
        case ArrayType(element, contains_null):
            return {
                "type": "array",
                "elementType": _type_json(element),
                "containsNull": contains_null,
            }
        case MapType(key, value, value_contains_null):
            return {
                "type": "map",
                "keyType": _type_json(key),
                "valueType": _type_json(value),
                "valueContainsNull": value_contains_null,
            }
        case StructType(fields):
            return {"type": "struct", "fields": [_field_json(f) for f in fields]}
        case simple:
            return type_text(simple)


def _field_json(column: Field) -> dict[str, object]:
    return {
        "name": column.name,
        "type": _type_json(column.type),
        "nullable": column.nullable,
        "metadata": dict(column.metadata),
    }


_REFUSED_TYPES = {
    "void": "void (a column without a type)",
    "null": "void (a column without a type)",
    "variant": "variant",
    "geometry": "geometry",
    "geography": "geography",
}
_REFUSED_METADATA = {
    "delta.invariants": "an invariant",
    "delta.generationExpression": "a generation expression",
    "delta.identity.": "identity values",
    "delta.columnMapping.": "column mapping",
    "delta.typeChanges": "type widening",
    "CURRENT_DEFAULT": "a default value",
    "__COLLATIONS": "a collation",
}


def _parse_type(raw: object, where: str, depth: int) -> DataType:
    if depth > NESTING_MAX:
        raise TableRefused(f"{where}: the type is nested deeper than {NESTING_MAX} levels")
    if isinstance(raw, str):
        return _parse_type_name(raw, where)
    if isinstance(raw, dict):
        kind = raw.get("type")
        if kind == "struct" and isinstance(raw.get("fields"), list):
            return StructType(tuple(_parse_field(f, where, depth + 1) for f in raw["fields"]))
        if kind == "array" and "elementType" in raw:
            element = _parse_type(raw["elementType"], f"{where}.element", depth + 1)
            return ArrayType(element, bool(raw.get("containsNull", True)))
        if kind == "map" and "keyType" in raw and "valueType" in raw:
            return MapType(
                _parse_type(raw["keyType"], f"{where}.key", depth + 1),
                _parse_type(raw["valueType"], f"{where}.value", depth + 1),
                bool(raw.get("valueContainsNull", True)),
            )
        raise TableRefused(f"{where}: the schema holds a type {kind!r} that this sink cannot read")
    raise TableRefused(f"{where}: the schema holds {type(raw).__name__}, wanted a type")


def _parse_type_name(name: str, where: str) -> DataType:
    if name in PRIMITIVES:
        return cast("Primitive", name)
    decimal = parse_decimal(name)
    if decimal is not None:
        return decimal
    named = _REFUSED_TYPES.get(name, name)
    raise TableRefused(f"{where}: the type is {named}, which this sink does not write")


def _parse_field(raw: object, where: str, depth: int) -> Field:
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str) or "type" not in raw:
        raise TableRefused(f"{where}: the schema holds a field without name or type")
    place = f"column {raw['name']!r}" if depth == 1 else f"{where}.{raw['name']}"
    metadata = raw.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise TableRefused(f"{place}: its metadata is {type(metadata).__name__}, wanted an object")
    for key in metadata:
        for refused, what in _REFUSED_METADATA.items():
            if key == refused or (refused.endswith(".") and key.startswith(refused)):
                raise TableRefused(f"{place}: it has {what} ({key}), which this sink does not keep")
    data_type = _parse_type(raw["type"], place, depth)
    return Field(raw["name"], data_type, bool(raw.get("nullable", True)), metadata)


# --- the columns in the user's file ------------------------------------------------------------

DerivedFunction = Literal["date", "year", "month", "day", "hour"]


class Derived(Struct, frozen=True):
    """The column `column` is `function` of the timestamp column `source`, in UTC."""

    column: str
    function: DerivedFunction
    source: str


class ParsedColumns(Struct, frozen=True):
    """What `table.schema` says; `fields` is usable only if `problems` is empty."""

    fields: tuple[Field, ...]
    derived: tuple[Derived, ...]
    problems: tuple[str, ...]


METADATA_FIELDS: dict[str, Field] = {
    "topic": Field("_kafka_topic", "string"),
    "partition": Field("_kafka_partition", "integer"),
    "offset": Field("_kafka_offset", "long"),
    "timestamp": Field("_kafka_timestamp", "timestamp"),
    "key": Field("_kafka_key", "binary"),
    "headers": Field(
        "_kafka_headers", ArrayType(StructType((Field("key", "string"), Field("value", "binary"))))
    ),
}
"""The columns that `table.metadata_columns` may ask for, in the order that tables have them."""

METADATA_PREFIX = "_kafka_"
_NAME_FORBIDDEN = re.compile(r"[ ,;{}()\n\t=.\x00-\x1f\x7f\ud800-\udfff]")
_KEYS = ("name", "type", "nullable", "comment")
_FROM = re.compile(r" *([A-Za-z_]+) *\( *(.+?) *\) *")
_SPELLED_OTHERWISE = {
    "int": "integer",
    "int8": "byte",
    "int16": "short",
    "int32": "integer",
    "int64": "long",
    "tinyint": "byte",
    "smallint": "short",
    "bigint": "long",
    "float32": "float",
    "float64": "double",
    "real": "float",
    "number": "double",
    "bool": "boolean",
    "str": "string",
    "text": "string",
    "varchar": "string",
    "bytes": "binary",
    "datetime": "timestamp",
    "timestamptz": "timestamp",
    "timestamp_ltz": "timestamp",
    "list": "{array: …}",
    "array": "{array: …}",
    "struct": "{struct: [...]}",
    "object": "{struct: [...]}",
    "map": "{map: {key: …, value: …}}",
    "decimal": "decimal(12,2)",
    "numeric": "decimal(12,2)",
}


def parse_columns(
    columns: Sequence[Mapping[str, object]],
    path: str,
    metadata_columns: Sequence[str] = (),
) -> ParsedColumns:
    """Return the columns that a user wrote, or every problem with them, each `path: sentence`.

    `metadata_columns` are those of the table: a column may be derived from `_kafka_timestamp` if
    `timestamp` is among them. The metadata columns themselves are not part of `fields`.
    """
    problems: list[str] = []
    if not isinstance(columns, Sequence) or isinstance(columns, str) or not columns:
        return ParsedColumns((), (), (f"{path}: wanted a list of at least one column",))
    fields = _parse_fields(columns, path, problems, depth=0)
    sources = {f.name: f for f in fields if f is not None}
    if "timestamp" in metadata_columns:
        sources[METADATA_FIELDS["timestamp"].name] = METADATA_FIELDS["timestamp"]
    derived: list[Derived] = []
    for index, (column, parsed) in enumerate(zip(columns, fields, strict=True)):
        if parsed is not None and "from" in column:
            found = _parse_derived(parsed, column["from"], sources, f"{path}[{index}]", problems)
            derived += [found] if found is not None else []
    return ParsedColumns(tuple(f for f in fields if f is not None), tuple(derived), tuple(problems))


def _parse_fields(
    columns: Sequence[object], path: str, problems: list[str], *, depth: int
) -> list[Field | None]:
    """Return one field for each entry; None where it has no name or type to go on with."""
    parsed: list[Field | None] = []
    seen: dict[str, str] = {}
    for index, column in enumerate(columns):
        place = f"{path}[{index}]"
        if not isinstance(column, Mapping):
            problems.append(f"{place}: got {_shown(column)}, wanted a mapping with name and type")
            parsed.append(None)
            continue
        _check_keys(column, place, problems, top=depth == 0)
        name = _parse_name(column.get("name"), place, seen, problems, top=depth == 0)
        data_type = _parse_user_type(column.get("type"), f"{place}.type", problems, depth)
        nullable = column.get("nullable", True)
        if not isinstance(nullable, bool):
            problems.append(f"{place}.nullable: got {_shown(nullable)}, wanted true or false")
        comment = column.get("comment")
        if comment is not None and not isinstance(comment, str):
            problems.append(f"{place}.comment: got {_shown(comment)}, wanted text")
        metadata = {} if comment is None else {"comment": str(comment)}
        usable = name is not None and data_type is not None
        parsed.append(Field(name, data_type, bool(nullable), metadata) if usable else None)  # type: ignore[arg-type]  # usable says that neither is None
    return parsed


def _check_keys(
    column: Mapping[str, object], place: str, problems: list[str], *, top: bool
) -> None:
    known = (*_KEYS, "from") if top else _KEYS
    problems += [
        f"{place}: unknown key {_shown(key)}, wanted {', '.join(known)}"
        for key in column
        if key not in known
    ]


def _parse_name(
    name: object, place: str, seen: dict[str, str], problems: list[str], *, top: bool
) -> str | None:
    where = f"{place}.name"
    if not isinstance(name, str) or not name:
        problems.append(f"{where}: got {_shown(name)}, wanted a name")
        return None
    forbidden = _NAME_FORBIDDEN.search(name)
    if forbidden is not None:
        problems.append(
            f"{where}: {name!r} contains {forbidden[0]!r}, which other engines cannot read in names"
        )
    if top and name.lower().startswith(METADATA_PREFIX):
        problems.append(
            f"{where}: {name!r} begins with {METADATA_PREFIX}, which is kept for"
            " table.metadata_columns"
        )
    if name.lower() in seen:
        twin = seen[name.lower()]
        problems.append(f"{where}: {name!r} is there twice ({twin!r}); case makes no difference")
    seen[name.lower()] = name
    return name


def _parse_user_type(raw: object, where: str, problems: list[str], depth: int) -> DataType | None:
    if depth >= NESTING_MAX:
        problems.append(f"{where}: nested deeper than {NESTING_MAX} levels")
        return None
    if isinstance(raw, str):
        return _parse_user_type_name(raw.strip(), where, problems)
    if isinstance(raw, Mapping) and len(raw) == 1:
        kind, inner = next(iter(raw.items()))
        if kind == "array":
            element = _parse_user_type(inner, f"{where}.array", problems, depth + 1)
            return None if element is None else ArrayType(element)
        if kind == "map":
            return _parse_user_map(inner, f"{where}.map", problems, depth)
        if kind == "struct":
            return _parse_user_struct(inner, f"{where}.struct", problems, depth)
    problems.append(
        f"{where}: got {_shown(raw)}, wanted a type name, {{array: …}}, {{struct: [...]}} or"
        " {map: {key: …, value: …}}"
    )
    return None


def _parse_user_type_name(name: str, where: str, problems: list[str]) -> DataType | None:
    if name in PRIMITIVES:
        return cast("Primitive", name)
    decimal = parse_decimal(name)
    if decimal is not None:
        return decimal
    if DECIMAL_PATTERN.fullmatch(name):
        problems.append(
            f"{where}: {name} is out of bounds, wanted precision 1 to 38, scale at most that"
        )
        return None
    meant = _SPELLED_OTHERWISE.get(name.lower(), name.lower())
    known = meant in PRIMITIVES or meant != name.lower()
    hint = (
        f"did you mean {meant}?"
        if known
        else f"wanted one of {', '.join(get_args(Primitive))}, decimal(p,s)"
    )
    problems.append(f"{where}: unknown type {name!r}; {hint}")
    return None


def _parse_user_map(inner: object, where: str, problems: list[str], depth: int) -> MapType | None:
    if not isinstance(inner, Mapping) or set(inner) != {"key", "value"}:
        problems.append(f"{where}: got {_shown(inner)}, wanted {{key: …, value: …}}")
        return None
    key = _parse_user_type(inner["key"], f"{where}.key", problems, depth + 1)
    value = _parse_user_type(inner["value"], f"{where}.value", problems, depth + 1)
    return None if key is None or value is None else MapType(key, value)


def _parse_user_struct(
    inner: object, where: str, problems: list[str], depth: int
) -> StructType | None:
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
        problems.append(f"{where}: got {_shown(inner)}, wanted a list of at least one field")
        return None
    fields = _parse_fields(inner, where, problems, depth=depth + 1)
    return None if None in fields else StructType(tuple(f for f in fields if f is not None))


def _parse_derived(
    column: Field,
    text: object,
    sources: Mapping[str, Field],
    place: str,
    problems: list[str],
) -> Derived | None:
    where = f"{place}.from"
    match = _FROM.fullmatch(text) if isinstance(text, str) else None
    if match is None or match[1] not in get_args(DerivedFunction):
        functions = ", ".join(get_args(DerivedFunction))
        problems.append(
            f"{where}: got {_shown(text)}, wanted FUNCTION(COLUMN) with one of {functions}"
        )
        return None
    function, source = cast("DerivedFunction", match[1]), sources.get(match[2])
    wanted: Primitive = "date" if function == "date" else "integer"
    if column.type != wanted:
        got = type_text(column.type)
        problems.append(f"{place}.type: {function}() gives {wanted}, got {got}")
    if source is None:
        problems.append(f"{where}: there is no column {match[2]!r}")
        return None
    if source.type not in ("timestamp", "timestamp_ntz"):
        problems.append(
            f"{where}: column {source.name!r} is {type_text(source.type)}, wanted a timestamp"
        )
    if source.nullable and not column.nullable:
        problems.append(
            f"{place}.nullable: {source.name!r} may be null, so {column.name!r} may be too"
        )
    return Derived(column.name, function, source.name)


def _shown(value: object) -> str:
    """A value of the user's file, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# --- two schemas --------------------------------------------------------------------------------


def differences(wanted: TableSchema, found: TableSchema) -> list[str]:
    """Return a sentence for each point where a configured schema and a table's do not agree.

    Order, comments and whether elements and map values may be null are not compared: the table
    decides those.
    """
    return _field_differences(wanted.fields, found.fields, "")


_NULLABLE = {True: "nullable", False: "not null"}


def _field_differences(
    wanted: tuple[Field, ...], found: tuple[Field, ...], prefix: str
) -> list[str]:
    there = {f.name: f for f in found}
    folded = {f.name.lower(): f.name for f in found}
    sentences: list[str] = []
    for column in wanted:
        name = f"{prefix}{column.name}"
        other = there.get(column.name)
        if other is None:
            twin = folded.get(column.name.lower())
            hint = "" if twin is None else f", only {twin!r}"
            sentences.append(
                f"column {name!r} ({type_text(column.type)}) is not in the table{hint}"
            )
            continue
        sentences += _type_differences(column.type, other.type, name)
        if column.nullable != other.nullable:
            ours, theirs = _NULLABLE[column.nullable], _NULLABLE[other.nullable]
            sentences.append(f"column {name!r} is {ours} as configured, {theirs} in the table")
    names = {f.name for f in wanted}
    sentences += [
        f"the table has a column {prefix + f.name!r} ({type_text(f.type)}) that is not configured"
        for f in found
        if f.name not in names
    ]
    return sentences


def _type_differences(wanted: DataType, found: DataType, name: str) -> list[str]:
    match wanted, found:
        case StructType(ours), StructType(theirs):
            return _field_differences(ours, theirs, f"{name}.")
        case ArrayType(ours), ArrayType(theirs):
            return _type_differences(ours, theirs, f"{name}.element")
        case MapType(key, value), MapType(their_key, their_value):
            return _type_differences(key, their_key, f"{name}.key") + _type_differences(
                value, their_value, f"{name}.value"
            )
    if wanted == found:
        return []
    return [
        f"column {name!r} is {type_text(wanted)} as configured, {type_text(found)} in the table"
    ]
