"""Putting rows in an order that lets readers skip files: sorted, or along a Z-curve.

Sorting by several columns helps those who ask for the first. A Z-curve mixes the bits of each
column's rank, so that rows near each other in any of the columns tend to lie near each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from delta_sink.delta.schema import TableSchema, type_text
from delta_sink.delta.types import ArrayType, MapType, StructType
from delta_sink.errors import TableRefused

BITS_MAX = 63


class Order(Struct, frozen=True):
    """`sort` by these columns, the first one first, or along their `zorder`."""

    kind: Literal["sort", "zorder"]
    columns: tuple[str, ...]


def check_order(order: Order, schema: TableSchema, partition_by: Sequence[str]) -> None:
    """Return if rows of the table can be put in this order.

    Raises:
        TableRefused: a column is not in the files, or has a type without an order.
    """
    for name in order.columns:
        if name not in schema.names:
            raise TableRefused(f"there is no column {name!r} to sort by")
        if name in partition_by:
            raise TableRefused(f"column {name!r} is a table partition column: it sorts nothing")
        kind = schema.field(name).type
        if isinstance(kind, ArrayType | MapType | StructType):
            raise TableRefused(f"column {name!r} is {type_text(kind)}, which has no order")
    if not order.columns or len(order.columns) > BITS_MAX:
        raise TableRefused(f"got {len(order.columns)} columns to sort by, wanted 1 to {BITS_MAX}")


def ordered(table: pa.Table, order: Order) -> pa.Table:
    """Return the rows of `table` in this order; nulls come last, equal rows stay as they are."""
    if order.kind == "sort":
        return table.sort_by([(name, "ascending") for name in order.columns])
    bits = BITS_MAX // len(order.columns)
    ranks = [_ranks(table[name], bits) for name in order.columns]
    return table.take(pa.array(np.argsort(_interleaved(ranks, bits), kind="stable")))


def _ranks(column: pa.ChunkedArray, bits: int) -> npt.NDArray[np.int64]:
    """Return the place of each value among the distinct ones, scaled to `bits` bits."""
    ranks = pc.rank(column, sort_keys="ascending", tiebreaker="dense")  # nulls are last
    numbers: npt.NDArray[np.int64] = ranks.to_numpy().astype(np.int64) - 1
    highest = int(numbers.max(initial=0))
    if highest < 1 << bits:
        # Stretched to all bits, so that a column of few values weighs as much as one of many.
        return np.left_shift(numbers, bits - highest.bit_length())
    return np.right_shift(numbers, highest.bit_length() - bits)


def _interleaved(ranks: Sequence[npt.NDArray[np.int64]], bits: int) -> npt.NDArray[np.int64]:
    code = np.zeros(len(ranks[0]), np.int64)
    for bit in range(bits - 1, -1, -1):
        for numbers in ranks:
            code = (code << 1) | ((numbers >> bit) & 1)
    return code
