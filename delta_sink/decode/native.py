"""The plain path: compiled code that decodes the records about which there is no doubt.

`native/json.zig` reads each byte of a record once and writes Arrow columns, without Python's lock.
It takes a record only if it is spelt as programs spell JSON; every other one it leaves, whether it
is wrong or merely unusual, and pyarrow and the exact path decide about it. So it can be absent:
where it could not be compiled the same rows come out, at several times the cost.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from delta_sink.decode.packed import PackedValues
from delta_sink.decode.rows import DecodeSpec, Sure
from delta_sink.delta.types import (
    ArrayType,
    DataType,
    Decimal,
    Field,
    MapType,
    StructType,
    arrow_field,
)

LIBRARY = Path(__file__).parent / "native" / "libdelta_sink_json.so"
FUNCTION = "delta_sink_json_2"
"""With the number of its interface: a library of an older checkout has no function of this name."""

NOT_COMPILED = (
    "decoded by pyarrow, at several times the CPU, because this installation has no compiled decoder "
    "(install it with `pip install -v --force-reinstall --no-deps`, which says why)"
)

_FIELDS_MAX = 256
_KINDS = {
    "boolean": 0,
    "byte": 1,
    "short": 2,
    "integer": 3,
    "long": 4,
    "float": 5,
    "double": 6,
    "date": 8,
    "timestamp": 9,
    "timestamp_ntz": 9,
    "string": 10,
}
_DECIMAL, _BASE64, _HEX, _LIST, _MAP, _OBJECT = 7, 11, 12, 13, 14, 15
"""`Kind` of `columns.zig`."""
_FACTORS = {"iso8601": 0, "epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}
_NODE = struct.Struct("@IIIIBBBBBq")
_ARROW_ARRAY_BYTES = 80


class NativeDecoder:
    """Decodes many values in one call. Holds nothing that changes; safe in several jobs at once."""

    def __init__(self, function: Callable[..., int], spec: DecodeSpec) -> None:
        """Prepare for the table of `spec`, of which `can_decode` holds."""
        self._decode = function
        self._schema = pa.schema([arrow_field(f) for f in spec.value_fields])
        nodes, keys = _described(spec)
        self._nodes = b"".join(nodes)
        self._node_count = len(nodes)
        self._keys = keys
        self._options = struct.pack(
            "@qIB3x", spec.record_bytes_max, spec.nesting_max, spec.unknown_fields == "fail"
        )

    def decode(self, values: PackedValues, first: int, after: int) -> Sure:
        """Return the rows of those values from `first` up to `after` that are beyond doubt.

        Raises:
            MemoryError: there is not enough of it for the rows.
        """
        count = after - first
        addresses = np.ascontiguousarray(values.addresses[first:after])
        lengths = np.ascontiguousarray(values.lengths[first:after])
        taken = np.empty(count, np.uint8)
        unknown = ctypes.c_int64()
        array = ctypes.create_string_buffer(_ARROW_ARRAY_BYTES)
        answer = self._decode(
            self._nodes,
            self._node_count,
            self._keys,
            len(self._keys),
            self._options,
            addresses.ctypes.data,
            lengths.ctypes.data,
            count,
            taken.ctypes.data,
            ctypes.byref(unknown),
            array,
        )
        if answer != 0:
            raise MemoryError(f"no memory for the rows of {lengths.sum()} bytes of JSON")
        batch = pa.RecordBatch._import_from_c(ctypes.addressof(array), self._schema)
        rows = pa.Table.from_batches([batch], self._schema)
        return Sure(rows, np.flatnonzero(taken), unknown.value)


def native_decoder(spec: DecodeSpec) -> NativeDecoder | None:
    """Return the decoder for this table; None where it is not compiled or a type is not for it."""
    function = _function()
    return None if function is None or not can_decode(spec) else NativeDecoder(function, spec)


def is_compiled() -> bool:
    """Return whether the compiled code is part of this installation."""
    return _function() is not None


def can_decode(spec: DecodeSpec) -> bool:
    """Return whether every value column has a type and names that the compiled code knows."""
    root = StructType(spec.value_fields)
    return bool(root.fields) and _is_known(root)


@cache
def _function() -> Callable[..., int] | None:
    try:
        found = getattr(ctypes.CDLL(str(LIBRARY)), FUNCTION)
    except (OSError, AttributeError):
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    found.argtypes = [
        *(ctypes.c_char_p, size),
        *(ctypes.c_char_p, size),
        ctypes.c_char_p,
        *(pointer, pointer, size),
        *(pointer, pointer, pointer),
    ]
    found.restype = ctypes.c_int32
    function: Callable[..., int] = found
    return function


def _is_known(data_type: DataType) -> bool:
    match data_type:
        case StructType(fields):
            return 0 < len(fields) <= _FIELDS_MAX and all(
                _is_bare(f.name) and _is_known(f.type) for f in fields
            )
        case ArrayType(element):
            return _is_known(element)
        case MapType(key, value):
            return key == "string" and _is_known(value)
        case Decimal():
            return True
        case name:
            return name in _KINDS or name == "binary"


def _is_bare(name: str) -> bool:
    """Whether JSON writes the name as it is: the compiled code compares bytes."""
    return name.isprintable() and not set('"\\') & set(name)


def _described(spec: DecodeSpec) -> tuple[list[bytes], bytes]:
    """Return the nodes of the row and of all columns in it, children together, and their keys.

    A key is the name as programs write it in JSON, with its quotes and its colon.
    """
    nodes: list[bytes] = []
    keys = bytearray()
    waiting: list[Field] = [Field("", StructType(spec.value_fields), nullable=False)]
    made = 0
    while made < len(waiting):
        field = waiting[made]
        children = list(_children(field.type))
        key = f'"{field.name}":'.encode()
        nodes.append(
            _NODE.pack(
                len(keys),
                len(key),
                len(waiting),
                len(children),
                _kind(field.type, spec),
                field.nullable,
                field.type == "timestamp",
                *(
                    (field.type.precision, field.type.scale)
                    if isinstance(field.type, Decimal)
                    else (0, 0)
                ),
                _FACTORS[spec.timestamp_format],
            )
        )
        keys += key
        waiting += children
        made += 1
    return nodes, bytes(keys)


def _children(data_type: DataType) -> Iterator[Field]:
    match data_type:
        case StructType(fields):
            yield from fields
        case ArrayType(element, contains_null):
            yield Field("element", element, contains_null)
        case MapType(key, value, contains_null):
            pair = (Field("key", key, nullable=False), Field("value", value, contains_null))
            yield Field("entries", StructType(pair), nullable=False)


def _kind(data_type: DataType, spec: DecodeSpec) -> int:
    match data_type:
        case StructType():
            return _OBJECT
        case ArrayType():
            return _LIST
        case MapType():
            return _MAP
        case Decimal():
            return _DECIMAL
        case "binary":
            return _HEX if spec.binary == "hex" else _BASE64
        case name:
            return _KINDS[name]
