"""Which columns of a Parquet file are worth a dictionary.

A dictionary pays where values come again and again within a row group: each stands in the file once,
and only once it is compressed. It costs where they do not, and most where it grows beyond what a
dictionary may take, since the writer then gives up half-way. So two samples from either end of the
rows are looked at, and the values that both have say how many there are in all, as the marked fish
of a second catch say how many are in the pond.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from msgspec import Struct

SAMPLE_ROWS = 512
"""Rows, and about as many values of a column, in each of the two samples."""
REPEATS_MIN = 4
"""A column gets a dictionary if a value comes this often on average."""
DICTIONARY_BYTES_MAX = 1024 * 1024
"""What the writer lets a dictionary take."""


def repeating_columns(table: pa.Table, row_group_rows: int) -> list[str]:
    """Return the paths, as Parquet spells them, of leaf columns whose values repeat themselves.

    `row_group_rows` is how many of the rows will stand in the first row group, if there are as
    many.
    """
    rows = min(table.num_rows, row_group_rows)
    first = table.slice(0, min(rows, SAMPLE_ROWS))
    second_at = max(first.num_rows, rows - SAMPLE_ROWS)
    second = table.slice(second_at, rows - second_at)
    times = rows / max(1, first.num_rows + second.num_rows)
    return [
        some.path
        for some, others in zip(leaf_columns(first), leaf_columns(second), strict=True)
        if _repeats(some.values, others.values, times)
    ]


class Leaf(Struct, frozen=True):
    """A leaf column: its path as Parquet spells it, and its values in one array.

    `is_single` tells whether each row has one value: the column is in no list and in no map.
    """

    path: str
    values: pa.Array
    is_single: bool


def leaf_columns(table: pa.Table) -> Iterator[Leaf]:
    """Yield the leaf columns of `table`, in order."""
    for field, column in zip(table.schema, table.columns, strict=True):
        yield from _leaves(field.name, column.combine_chunks(), is_single=True)


def _leaves(path: str, array: pa.Array, *, is_single: bool) -> Iterator[Leaf]:
    kind = array.type
    if pa.types.is_struct(kind):
        for field, child in zip(kind, array.flatten(), strict=True):
            yield from _leaves(f"{path}.{field.name}", child, is_single=is_single)
    elif pa.types.is_map(kind):
        entries = array.offsets[0].as_py(), array.offsets[-1].as_py()
        for name, child in (("key", array.keys), ("value", array.items)):
            part = child.slice(entries[0], entries[1] - entries[0])
            yield from _leaves(f"{path}.key_value.{name}", part, is_single=False)
    elif pa.types.is_list(kind):
        inner = f"{path}.list.{kind.value_field.name}"
        yield from _leaves(inner, array.flatten(), is_single=False)
    else:
        yield Leaf(path, array, is_single)


def _repeats(some: pa.Array, others: pa.Array, times: float) -> bool:
    """Whether each value comes often among `times` as many values as these."""
    if pa.types.is_boolean(some.type):
        return False  # one bit a value is less than any dictionary
    values = times * (len(some) + len(others) - some.null_count - others.null_count)
    some, others = _spread(some).drop_null(), _spread(others).drop_null()
    coded = pa.concat_arrays([some, others]).dictionary_encode()
    distinct_seen = len(coded.dictionary)
    if REPEATS_MIN * distinct_seen <= len(coded):
        return distinct_seen > 0
    codes = coded.indices.to_numpy()
    first, second = (
        np.bincount(part, minlength=distinct_seen) > 0 for part in np.split(codes, [len(some)])
    )
    both = np.count_nonzero(first & second)
    if not both:
        return False
    distinct = np.count_nonzero(first) * np.count_nonzero(second) / both
    dictionary_bytes: float = distinct * coded.dictionary.nbytes / distinct_seen
    return bool(REPEATS_MIN * distinct <= values and dictionary_bytes <= DICTIONARY_BYTES_MAX)


def _spread(values: pa.Array) -> pa.Array:
    """Return about `SAMPLE_ROWS` of these values: of a list's, some of each rather than all of a few."""
    step = len(values) // SAMPLE_ROWS
    return values if step < 2 else values.take(pa.array(np.arange(0, len(values), step)))
