"""The types of Delta's columns as values, how people write them, and their Arrow form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import pyarrow as pa
from msgspec import Struct, field

Primitive = Literal[
    "string",
    "long",
    "integer",
    "short",
    "byte",
    "float",
    "double",
    "boolean",
    "binary",
    "date",
    "timestamp",
    "timestamp_ntz",
]
"""Delta's names of the types that hold one value. `timestamp` is UTC, `timestamp_ntz` no zone."""

PRIMITIVES: frozenset[str] = frozenset(get_args(Primitive))
NESTING_MAX = 64
"""Types deeper than this are refused: far above real schemas, far below Python's recursion."""


class Decimal(Struct, frozen=True):
    """Exact numbers with up to `precision` digits (1 to 38), `scale` of them after the point."""

    precision: int
    scale: int


class ArrayType(Struct, frozen=True):
    """Lists of `element`."""

    element: DataType
    contains_null: bool = True


class MapType(Struct, frozen=True):
    """Maps; keys are never null."""

    key: DataType
    value: DataType
    value_contains_null: bool = True


class StructType(Struct, frozen=True):
    """Named fields inside one column."""

    fields: tuple[Field, ...]


class Field(Struct, frozen=True):
    """A column of a table or a field of a struct. `metadata` is kept as the log has it."""

    name: str
    type: DataType
    nullable: bool = True
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __hash__(self) -> int:
        """Without `metadata`, which has none."""
        return hash((self.name, self.type, self.nullable))


DataType: TypeAlias = Primitive | Decimal | ArrayType | MapType | StructType


def type_text(data_type: DataType) -> str:
    """Return a type as people write it: `decimal(12,2)`, `array<struct<sku:string>>`."""
    match data_type:
        case Decimal(precision, scale):
            return f"decimal({precision},{scale})"
        case ArrayType(element):
            return f"array<{type_text(element)}>"
        case MapType(key, value):
            return f"map<{type_text(key)},{type_text(value)}>"
        case StructType(fields):
            return f"struct<{','.join(f'{f.name}:{type_text(f.type)}' for f in fields)}>"
        case name:
            return name


_ARROW: dict[str, pa.DataType] = {
    "string": pa.string(),
    "long": pa.int64(),
    "integer": pa.int32(),
    "short": pa.int16(),
    "byte": pa.int8(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "timestamp_ntz": pa.timestamp("us"),
}


def arrow_type(data_type: DataType) -> pa.DataType:
    """Return the Arrow type of a column of this type."""
    match data_type:
        case Decimal(precision, scale):
            return pa.decimal128(precision, scale)
        case ArrayType(element, contains_null):
            return pa.list_(pa.field("element", arrow_type(element), contains_null))
        case MapType(key, value, value_contains_null):
            return pa.map_(
                pa.field("key", arrow_type(key), nullable=False),
                pa.field("value", arrow_type(value), value_contains_null),
            )
        case StructType(fields):
            return pa.struct([arrow_field(f) for f in fields])
        case name:
            return _ARROW[name]


def arrow_field(column: Field) -> pa.Field:
    """Return the Arrow field of a column, with its nullability."""
    return pa.field(column.name, arrow_type(column.type), column.nullable)


def mentions(data_type: DataType, primitive: Primitive) -> bool:
    """Return whether a value of this primitive may lie anywhere inside `data_type`."""
    match data_type:
        case Decimal():
            return False
        case ArrayType(element):
            return mentions(element, primitive)
        case MapType(key, value):
            return mentions(key, primitive) or mentions(value, primitive)
        case StructType(fields):
            return any(mentions(f.type, primitive) for f in fields)
        case name:
            return name == primitive


DECIMAL_PATTERN = re.compile(r"decimal\( *([0-9]{1,3}) *, *([0-9]{1,3}) *\)")


def parse_decimal(text: str) -> Decimal | None:
    """Return `decimal(12,2)` as a type; None for any other text, or digits out of bounds."""
    match = DECIMAL_PATTERN.fullmatch(text)
    if match is None:
        return None
    precision, scale = int(match[1]), int(match[2])
    return Decimal(precision, scale) if 1 <= precision <= 38 and scale <= precision else None
