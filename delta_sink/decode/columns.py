"""How pyarrow reads a column of JSON so that no value changes, and what is checked afterwards.

What pyarrow 26 does with each kind of JSON value was measured for every type (the tests repeat
it). Where its conversion is exact or refuses, the column is read as what it is. Elsewhere it is
read as something that keeps the value, and converted here:

* float, double: a value that is not finite sends its record to the exact path (`NaN` and
  `Infinity` are read as numbers, 10^39 as an infinite float);
* date, timestamp_ntz, binary: read as strings (a date column would take numbers, a timestamp_ntz
  column would convert zones, a binary column would take the text);
* epoch timestamps: read as whole numbers;
* decimals: exact, but the range is checked here (see `WHOLE`);
* integers written `1.0` or `1e3`: refused when read as integers. `Mode.numbers` reads the column
  twice: as double, which proves that no value is a string, and as decimal, which proves that it
  is whole;
* timestamps that pyarrow refuses (more than microseconds, no date at all): `Mode.texts` reads the
  column as strings, and converts those alone that Arrow's cast does not take as they are.

A map cannot be read at all.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal as PythonDecimal
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from delta_sink.decode.rows import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, DecodeSpec
from delta_sink.decode.scalars import (
    INTEGER_BITS,
    Misfit,
    binary_reader,
    read_date,
    timestamp_reader,
)
from delta_sink.delta.types import (
    ArrayType,
    DataType,
    Decimal,
    Field,
    MapType,
    StructType,
    arrow_type,
)

Indexes: TypeAlias = npt.NDArray[np.int64]
_NONE: Indexes = np.empty(0, np.int64)


class Mode(Struct, frozen=True):
    """How the columns of one pass are read; each step away from the default costs more.

    `numbers`: integer columns as double or as `WHOLE`, decimals as `PLACES`. `texts`: timestamps as strings.
    `others`: fields that the table does not have are let through.
    """

    others: bool = False
    numbers: pa.DataType | None = None
    texts: bool = False


WHOLE = pa.decimal256(38, 18)
"""Holds every 64-bit integer and 18 digits after the point; a number beyond that is refused."""
PLACES = pa.decimal256(38, 38)
"""Holds what lies outside of a decimal column too, to say which records are at fault.

For a decimal pyarrow compares the digits of the text with the precision and only then scales them
up, without a second look: `decimal(12,2)` takes 11 digits before the point, and in 128 bits a
value may come back as another one. So a decimal is read with room for all its digits at its
scale (38 digits times 10^38 fit 256 bits), and its range is checked here. The other half of the
caution is `many_places`.
"""


def holds(data_type: DataType, kinds: frozenset[str]) -> bool:
    """Return whether a type of these names (`map` too) lies anywhere inside `data_type`."""
    match data_type:
        case StructType(fields):
            return any(holds(f.type, kinds) for f in fields)
        case ArrayType(element):
            return holds(element, kinds)
        case MapType():
            return "map" in kinds
        case Decimal():
            return "decimal" in kinds
        case name:
            return name in kinds


def is_readable(data_type: DataType) -> bool:
    """Return whether pyarrow can read the type: no map in it, and no struct without fields."""
    match data_type:
        case StructType(fields):
            return bool(fields) and all(is_readable(f.type) for f in fields)
        case ArrayType(element):
            return is_readable(element)
        case MapType():
            return False
        case _:
            return True


def read_as(data_type: DataType, spec: DecodeSpec, mode: Mode) -> pa.DataType:
    """Return the type under which pyarrow reads a column; every field in it is nullable."""
    match data_type:
        case StructType(fields):
            return pa.struct([(f.name, read_as(f.type, spec, mode)) for f in fields])
        case ArrayType(element):
            return pa.list_(pa.field("element", read_as(element, spec, mode)))
        case "date" | "binary":
            return pa.string()
        case Decimal() if mode.numbers is not None:
            return PLACES
        case Decimal(precision, scale) if precision + scale > 38:
            return pa.decimal256(precision, scale)
        case "timestamp" | "timestamp_ntz" if spec.timestamp_format != "iso8601":
            return pa.int64() if mode.numbers is None else mode.numbers
        case "timestamp" if not mode.texts:
            return arrow_type(data_type)
        case "timestamp" | "timestamp_ntz":
            return pa.string()
        case str() as name if name in INTEGER_BITS and mode.numbers is not None:
            return mode.numbers
        case _:
            return arrow_type(data_type)


# --- after reading ------------------------------------------------------------------------------


def convert(
    array: pa.Array, field: Field, spec: DecodeSpec, mode: Mode
) -> tuple[pa.Array, Indexes]:
    """Return a column as its Arrow type, and the places in it that only the exact path may decide.

    At those places the returned column holds anything.
    """
    converted, doubtful = _convert(array, field.type, spec, mode)
    if not field.nullable and converted.null_count:
        doubtful = np.concatenate([doubtful, _true(converted.is_null())])
    return converted, doubtful


def _convert(
    array: pa.Array, data_type: DataType, spec: DecodeSpec, mode: Mode
) -> tuple[pa.Array, Indexes]:
    match data_type:
        case StructType(fields):
            return _convert_struct(array, fields, spec, mode)
        case ArrayType():
            return _convert_list(array, data_type, spec, mode)
        case "float" | "double":
            return array, _true(pc.invert(pc.is_finite(array)))
        case Decimal():
            return _fitting(array, data_type)
        case "date":
            return _in_years(*_by_cast(array, pa.date32(), read_date), pa.date32())
        case "binary":
            return _one_by_one(array, pa.binary(), binary_reader(spec))
        case "timestamp" | "timestamp_ntz" if spec.timestamp_format != "iso8601":
            return _from_epoch(array, data_type, spec)
        case "timestamp" | "timestamp_ntz":
            return _from_iso(array, data_type, spec)
        case str() as name if name in INTEGER_BITS and pa.types.is_decimal(array.type):
            return _whole(array, INTEGER_BITS[name])
        case _:
            return array, _NONE


def _convert_struct(
    array: pa.Array, fields: tuple[Field, ...], spec: DecodeSpec, mode: Mode
) -> tuple[pa.Array, Indexes]:
    children, doubtful = [], [_NONE]
    absent = array.is_null() if array.null_count else None
    for i, field in enumerate(fields):
        child, found = _convert(array.field(i), field.type, spec, mode)
        if not field.nullable and child.null_count:
            missing = child.is_null()
            if absent is not None:
                missing = pc.and_not(missing, absent)
            found = np.concatenate([found, _true(missing)])
        children.append(child)
        doubtful.append(found)
    rebuilt = pa.StructArray.from_arrays(children, names=[f.name for f in fields], mask=absent)
    return rebuilt, np.unique(np.concatenate(doubtful))


def _convert_list(
    array: pa.Array, data_type: ArrayType, spec: DecodeSpec, mode: Mode
) -> tuple[pa.Array, Indexes]:
    items, doubtful = _convert(array.values, data_type.element, spec, mode)
    if not data_type.contains_null and items.null_count:
        doubtful = np.concatenate([doubtful, _true(items.is_null())])
    wanted = pa.list_(pa.field("element", items.type))
    rebuilt = pa.ListArray.from_buffers(
        wanted, len(array), array.buffers()[:2], array.null_count, children=[items]
    )
    if not len(doubtful):
        return rebuilt, _NONE
    ends = array.offsets.to_numpy()[1:]
    return rebuilt, np.unique(np.searchsorted(ends, doubtful, side="right"))


def _true(mask: pa.Array) -> Indexes:
    """Return where `mask` is true; null is not."""
    if not mask.true_count:
        return _NONE
    return np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False))


def _in_years(array: pa.Array, doubtful: Indexes, wanted: pa.DataType) -> tuple[pa.Array, Indexes]:
    """Add what lies outside of the years 1 to 9999: Arrow knows a year 0, other engines do not."""
    if pa.types.is_date(wanted):
        first, last = TIMESTAMP_MIN_US // 86_400_000_000, TIMESTAMP_MAX_US // 86_400_000_000
        numbers = array.view(pa.int32())
    else:
        first, last = TIMESTAMP_MIN_US, TIMESTAMP_MAX_US
        numbers = array.view(pa.int64())
    outside = _true(pc.or_(pc.less(numbers, first), pc.greater(numbers, last)))
    return array, np.concatenate([doubtful, outside]) if len(outside) else doubtful


def _by_cast(
    texts: pa.Array, wanted: pa.DataType, read: Callable[[object], object]
) -> tuple[pa.Array, Indexes]:
    """Convert by Arrow's cast; if that refuses the column, each distinct text by `read`."""
    try:
        return texts.cast(wanted), _NONE
    except pa.ArrowInvalid:
        distinct = texts.dictionary_encode()
        values, wrong = _one_by_one(distinct.dictionary, wanted, read)
        converted = values.take(distinct.indices)
        if not len(wrong):
            return converted, _NONE
        return converted, _true(pc.is_in(distinct.indices, pa.array(wrong, pa.int32())))


def _one_by_one(
    texts: pa.Array, wanted: pa.DataType, read: Callable[[object], object]
) -> tuple[pa.Array, Indexes]:
    values: list[object] = []
    wrong: list[int] = []
    for i, text in enumerate(texts.to_pylist()):
        try:
            values.append(None if text is None else read(text))
        except Misfit:
            values.append(None)
            wrong.append(i)
    return pa.array(values, wanted), np.array(wrong, np.int64)


_BELOW_MICROSECONDS = r"([.][0-9]{6})[0-9]+"
_NO_ZONE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+)?$"


def _from_iso(array: pa.Array, data_type: DataType, spec: DecodeSpec) -> tuple[pa.Array, Indexes]:
    wanted = arrow_type(data_type)
    if pa.types.is_timestamp(array.type):
        return _in_years(array, _NONE, wanted)
    read = timestamp_reader(zoned=data_type == "timestamp", spec=spec)
    try:
        return _in_years(array.cast(wanted), _NONE, wanted)
    except pa.ArrowInvalid:
        cut = pc.replace_substring_regex(array, _BELOW_MICROSECONDS, r"\1", max_replacements=1)
    if data_type == "timestamp":
        bare = pc.match_substring_regex(cut, _NO_ZONE)
        timed = pc.match_substring(cut, ":")
        cut = pc.if_else(pc.and_(bare, timed), pc.binary_join_element_wise(cut, "Z", ""), cut)
    return _in_years(*_by_cast(cut, wanted, read), wanted)


def _from_epoch(array: pa.Array, data_type: DataType, spec: DecodeSpec) -> tuple[pa.Array, Indexes]:
    wanted = arrow_type(data_type)
    numbers, doubtful = _whole(array, 64) if pa.types.is_decimal(array.type) else (array, _NONE)
    factor = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}[spec.timestamp_format]
    first, last = -(-TIMESTAMP_MIN_US // factor), TIMESTAMP_MAX_US // factor
    outside = pc.or_(pc.less(numbers, first), pc.greater(numbers, last))
    numbers, found = _without(numbers, outside)
    converted = pc.multiply_checked(numbers, factor).cast(wanted)
    return converted, np.concatenate([doubtful, found])


def _whole(array: pa.Array, bits: int) -> tuple[pa.Array, Indexes]:
    """Convert decimals to integers; what is not whole or does not fit is left to the exact path."""
    limit = 1 << (bits - 1)
    wanted = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]
    array, outside = _within(_widest(array), PythonDecimal(-limit), PythonDecimal(limit - 1))
    array, fractions = _without(array, pc.not_equal(array, pc.trunc(array)))
    return array.cast(wanted), np.concatenate([outside, fractions])


def _fitting(array: pa.Array, data_type: Decimal) -> tuple[pa.Array, Indexes]:
    """Convert to the column's decimal; what would be rounded or is out of range is left."""
    scale = data_type.scale
    largest = PythonDecimal(f"{'9' * data_type.precision}E-{scale}")
    array, outside = _within(_widest(array), -largest, largest)
    rounded = _NONE
    if array.type.scale != scale:
        shorter = pc.round(array, ndigits=scale, round_mode="towards_zero")
        array, rounded = _without(array, pc.not_equal(array, shorter))
    return array.cast(arrow_type(data_type)), np.concatenate([outside, rounded])


def _widest(array: pa.Array) -> pa.Array:
    """Return the same decimals under the largest precision, which no value can exceed."""
    kind = array.type
    wide = pa.decimal256 if kind.bit_width == 256 else pa.decimal128
    return array.view(wide(76 if kind.bit_width == 256 else 38, kind.scale))


def _within(array: pa.Array, first: PythonDecimal, last: PythonDecimal) -> tuple[pa.Array, Indexes]:
    """Put null where a decimal is outside of `first` to `last`, and say where."""
    low, high = pa.scalar(first, array.type), pa.scalar(last, array.type)
    return _without(array, pc.or_(pc.less(array, low), pc.greater(array, high)))


def _without(array: pa.Array, wrong: pa.Array) -> tuple[pa.Array, Indexes]:
    """Put null where `wrong` is true, and say where."""
    found = _true(wrong)
    if len(found):
        array = pc.if_else(wrong, pa.scalar(None, array.type), array)
    return array, found
