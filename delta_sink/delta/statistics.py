"""The statistics of a data file as `add.stats` keeps them: what lets a reader skip the file.

A bound that is too wide costs a reader time; one that is too narrow costs it rows. So every bound
here contains all values of its column under each order and rounding that readers use, and where
no such bound can be written there is none: Delta's readers then keep the file.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Sequence
from decimal import Decimal as Exact
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from delta_sink.delta.types import ArrayType, DataType, Decimal, Field, MapType, StructType

COLUMNS_MAX = 32
"""`delta.dataSkippingNumIndexedCols` of a table that does not set it, counted in leaf columns."""
TEXT_MAX = 32
"""Characters (code points) of a string bound; longer ones are cut."""

_CODE_POINT_MAX, _SURROGATES_FIRST, _SURROGATES_AFTER = 0x10FFFF, 0xD800, 0xE000
_EPOCH = dt.datetime(1970, 1, 1)  # noqa: DTZ001  # the zone is written by hand, as text
_MS_FIRST, _MS_LAST = -62_135_596_800_000, 253_402_300_799_999
"""Milliseconds of the years 1 to 9999; readers parse no others."""
_DAY_MS = 86_400_000
_NO_BOUNDS = frozenset({"binary", "boolean"})

_Tree: TypeAlias = "dict[str, str | _Tree]"
"""Column name to a value that is JSON already, or to the fields of a struct."""


class _Collector:
    """Walks the columns in order; stops looking once `columns_left` leaves were seen."""

    def __init__(self, columns_max: int) -> None:
        self.columns_left = columns_max if columns_max >= 0 else None

    def collect(
        self, fields: Sequence[Field], columns: Sequence[pa.ChunkedArray]
    ) -> tuple[_Tree, _Tree, _Tree]:
        """Return minima, maxima and null counts of these sibling columns."""
        low: _Tree = {}
        high: _Tree = {}
        nulls: _Tree = {}
        for field, column in zip(fields, columns, strict=True):
            if self.columns_left == 0:
                break
            if isinstance(field.type, StructType):
                # flatten() puts a struct's nulls into its fields, which is what Delta counts.
                trees = self.collect(field.type.fields, column.flatten())
                for target, tree in zip((low, high, nulls), trees, strict=True):
                    if tree:
                        target[field.name] = tree
                continue
            if self.columns_left is not None:
                self.columns_left -= 1
            nulls[field.name] = str(column.null_count)
            minimum, maximum = _bounds(field.type, column)
            if minimum is not None:
                low[field.name] = minimum
            if maximum is not None:
                high[field.name] = maximum
        return low, high, nulls


def file_statistics(
    fields: Sequence[Field], table: pa.Table, *, columns_max: int = COLUMNS_MAX
) -> str:
    """Return the JSON text of `add.stats` for a file that holds the rows of `table`.

    `fields` describe the columns of `table`, in order, without table partition columns.
    Statistics cover the first `columns_max` leaf columns, all of them if it is negative.

    Source: Delta protocol, "Per-file Statistics".
    """
    low, high, nulls = _Collector(columns_max).collect(fields, table.columns)
    return _render(
        {
            "numRecords": str(table.num_rows),
            "minValues": low,
            "maxValues": high,
            "nullCount": nulls,
        }
    )


def _render(tree: _Tree) -> str:
    """By hand, because `json` would round decimals through a float."""
    return (
        "{"
        + ",".join(
            f"{_text(name)}:{value if isinstance(value, str) else _render(value)}"
            for name, value in tree.items()
        )
        + "}"
    )


def _bounds(data_type: DataType, column: pa.ChunkedArray) -> tuple[str | None, str | None]:
    """Return lower and upper bound as JSON; None where there is none that holds."""
    if isinstance(data_type, ArrayType | MapType) or data_type in _NO_BOUNDS:
        return None, None
    if column.null_count == len(column):
        return None, None
    if data_type in ("float", "double"):
        return _float_bounds(column)
    if data_type in ("timestamp", "timestamp_ntz"):
        column = column.cast(pa.int64())
    if data_type == "date":
        column = column.cast(pa.int32())
    found = pc.min_max(column)
    low, high = found["min"].as_py(), found["max"].as_py()
    match data_type:
        case "string":
            return _text(low[:TEXT_MAX]), _text_upper_bound(high)
        case "date":
            return _day(low), _day(high)
        case "timestamp" | "timestamp_ntz":
            zone = "Z" if data_type == "timestamp" else ""
            # Floor and ceiling: readers keep milliseconds only, and the bounds must still hold.
            return _instant(low // 1_000, zone), _instant(-(-high // 1_000), zone)
        case Decimal():
            return _exact(low), _exact(high)
        case _:
            return str(low), str(high)


def _float_bounds(column: pa.ChunkedArray) -> tuple[str | None, str | None]:
    if pc.any(pc.is_nan(column)).as_py():
        return None, None
    found = pc.min_max(column)
    low, high = found["min"].as_py(), found["max"].as_py()
    if not (math.isfinite(low) and math.isfinite(high)):
        return None, None
    # Some readers order -0.0 before 0.0; Arrow's minimum of both is whichever came first.
    return repr(low if low else -0.0), repr(high if high else 0.0)


def _exact(value: Exact) -> str:
    return format(value, "f")


# Not as escapes: arrow-rs, under deltalake 1.6.6, joins surrogate pairs of U+20000 and above
# wrongly, and then skips files (tests/unit/test_parquet.py has such a value).
_text = json.JSONEncoder(ensure_ascii=False).encode


def _day(days: int) -> str | None:
    if not _MS_FIRST <= days * _DAY_MS <= _MS_LAST:
        return None
    return json.dumps((_EPOCH + dt.timedelta(days=days)).date().isoformat())


def _instant(at_ms: int, zone: str) -> str | None:
    if not _MS_FIRST <= at_ms <= _MS_LAST:
        return None
    at = _EPOCH + dt.timedelta(milliseconds=at_ms)
    return json.dumps(at.isoformat(timespec="milliseconds") + zone)


def _text_upper_bound(text: str) -> str | None:
    """Return `text`, or if it is long the least cut text above everything that begins like it.

    Order is that of code points, which is also that of UTF-8 bytes.
    """
    if len(text) <= TEXT_MAX:
        return _text(text)
    for end in range(TEXT_MAX, 0, -1):
        following = ord(text[end - 1]) + 1
        if following <= _CODE_POINT_MAX:
            if _SURROGATES_FIRST <= following < _SURROGATES_AFTER:
                following = _SURROGATES_AFTER
            return _text(text[: end - 1] + chr(following))
    return None
