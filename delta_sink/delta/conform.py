"""Rows of data files that anybody wrote, in the columns that the table's schema has now.

Files of one table differ: columns came later, engines name the elements of lists otherwise, keep
times in other units or with dictionaries. What cannot be turned into the table's type without
changing a value is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from delta_sink.delta.types import ArrayType, DataType, Field, MapType, StructType, arrow_field
from delta_sink.errors import TableRefused


class Columns:
    """The columns that the files of a table are to have: `fields`, in their order."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = fields
        self._schema = pa.schema([arrow_field(field) for field in fields])

    def conform(self, table: pa.Table, path: str) -> pa.Table:
        """Return `table` with exactly these columns; those that it lacks are null.

        Raises:
            TableRefused: a value would change, or a column that may not be null is missing.
        """
        if table.schema.equals(self._schema, check_metadata=False):
            return table.replace_schema_metadata(None)
        columns = [_column(table, field, path) for field in self._fields]
        return pa.Table.from_arrays(columns, schema=self._schema)


def _column(table: pa.Table, field: Field, path: str) -> pa.ChunkedArray:
    name = _found_name(table.column_names, field.name)
    if name is None:
        if not field.nullable:
            raise TableRefused(f"{path} has no column {field.name!r}, which may not be null")
        return pa.chunked_array([pa.nulls(table.num_rows, arrow_field(field).type)])
    column = table[name]
    if not field.nullable and column.null_count:
        raise TableRefused(f"{path}: column {field.name!r} has nulls, which the table forbids")
    try:
        chunks = [_array(chunk, field.type) for chunk in column.chunks]
        return pa.chunked_array(chunks, arrow_field(field).type)
    except pa.ArrowException as error:
        raise TableRefused(
            f"{path}: column {field.name!r} is {column.type} and cannot become the table's type "
            f"without a change of values ({type(error).__name__})"
        ) from error


def _found_name(names: Sequence[str], wanted: str) -> str | None:
    """Return the column of this name; case makes no difference to Delta."""
    if wanted in names:
        return wanted
    folded = [name for name in names if name.lower() == wanted.lower()]
    return folded[0] if len(folded) == 1 else None


def _array(array: pa.Array, data_type: DataType) -> pa.Array:
    wanted = arrow_field(Field("", data_type)).type
    if array.type.equals(wanted):
        return array
    if isinstance(data_type, StructType) and pa.types.is_struct(array.type):
        return _struct(array, data_type)
    if isinstance(data_type, ArrayType) and pa.types.is_list(array.type):
        # Not `flatten`, which leaves out what lies below a null.
        values = _array(array.values, data_type.element)
        return pa.ListArray.from_arrays(_offsets(array), values, type=wanted, mask=_nulls(array))
    if isinstance(data_type, MapType) and pa.types.is_map(array.type):
        keys, items = _array(array.keys, data_type.key), _array(array.items, data_type.value)
        return pa.MapArray.from_arrays(
            _offsets(array), keys, items, type=wanted, mask=_nulls(array)
        )
    if not _is_kin(array.type, wanted):
        raise pa.ArrowTypeError(f"{array.type} is no {wanted}")
    return array.cast(wanted)


def _is_kin(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Return whether values of `found` are `wanted` ones in another form; a cast checks each."""
    if pa.types.is_dictionary(found):
        return _is_kin(found.value_type, wanted)
    if pa.types.is_timestamp(found) and pa.types.is_timestamp(wanted):
        # Without a zone are those of INT96, which are UTC; a zone is never taken away.
        return found.tz is None or wanted.tz is not None
    return found.equals(wanted) or any(is_one(found) and is_one(wanted) for is_one in _FAMILIES)


_FAMILIES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_date,
    lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
    lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_binary_view(t),
)


def _struct(array: pa.StructArray, data_type: StructType) -> pa.StructArray:
    names = [field.name for field in array.type]
    children: list[pa.Array] = []
    for field in data_type.fields:
        name = _found_name(names, field.name)
        if name is None:
            children.append(pa.nulls(len(array), arrow_field(field).type))
        else:
            children.append(_array(array.field(names.index(name)), field.type))
    fields = [arrow_field(field) for field in data_type.fields]
    return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())


def _offsets(array: pa.Array) -> pa.Array:
    # As a fresh array: Arrow takes no null bitmap beside offsets that are part of a larger array.
    return pa.array(array.offsets.to_numpy(), pa.int32())


def _nulls(array: pa.Array) -> pa.Array | None:
    return array.is_null() if array.null_count else None
