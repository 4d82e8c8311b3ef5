"""Deletion vectors: which rows of a data file no longer count, as other engines write them down.

A vector is a set of row positions, counted from 0 through the whole file. It stands either in the
log itself, as Z85 text, or in a file of its own: one byte of version, then at the vector's offset
its length, its bytes and their CRC-32. The bytes are a magic number and a set of 64-bit numbers in
the portable form of Roaring bitmaps: for each upper half that occurs, a bitmap of lower halves,
itself cut into containers of 65,536 numbers.

Source: Delta protocol, "Deletion Vector Format"; Roaring bitmap format specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from delta_sink.errors import TableRefused

Positions = npt.NDArray[np.int64]
"""Row positions, rising."""

MAGIC = 1_681_511_377
FILE_VERSION = 1
POSITIONS_MAX = 2**31
"""A file holds fewer rows than this; a vector that says otherwise is damaged."""

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_Z85_VALUES = {character: value for value, character in enumerate(_Z85)}
_UUID_CHARACTERS = 20
_COOKIE_RUNS, _COOKIE_PLAIN = 12_347, 12_346
_OFFSETS_FROM_CONTAINERS = 4
_ARRAY_MAX = 4_096
_BITMAP_BYTES = 8_192


class VectorPlace(Struct, frozen=True):
    """Where a vector's bytes lie: `length` bytes from `offset` on in the object `path`.

    They are length, bytes and checksum together, as `stored_positions` takes them.
    """

    path: str
    offset: int
    length: int


def vector_path(vector: Mapping[str, object]) -> str | None:
    """Return the object, relative to the table, that holds a vector; None if the log itself does.

    Raises:
        TableRefused: it lies outside of the table, or the descriptor is none.
    """
    kind, text = vector.get("storageType"), vector.get("pathOrInlineDv")
    if not isinstance(text, str):
        raise TableRefused("the log has a deletion vector without pathOrInlineDv")
    if kind == "i":
        return None
    if kind != "u":
        raise TableRefused(
            f"the log has a deletion vector of storage type {kind!r}, which lies outside of the "
            f"table: this sink reads only those within it"
        )
    prefix, name = text[:-_UUID_CHARACTERS], text[-_UUID_CHARACTERS:]
    h = _z85_bytes(name).hex()
    if len(h) != 32 or "/" in prefix or prefix in (".", ".."):
        raise TableRefused(f"the log has a deletion vector with no usable name: {text!r}")
    file = f"deletion_vector_{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}.bin"
    return f"{prefix}/{file}" if prefix else file


def vector_place(vector: Mapping[str, object]) -> VectorPlace | None:
    """Return where to read a vector, or None if the log itself holds it.

    Raises: as `vector_path`.
    """
    path = vector_path(vector)
    if path is None:
        return None
    offset = vector.get("offset")
    size = _number(vector, "sizeInBytes")
    return VectorPlace(path, offset if isinstance(offset, int) else 1, size + 8)


def inline_positions(vector: Mapping[str, object]) -> Positions:
    """Return the positions of a vector that stands in the log.

    Raises:
        TableRefused: it is damaged.
    """
    size = _number(vector, "sizeInBytes")
    data = _z85_bytes(str(vector["pathOrInlineDv"]))
    if len(data) < size:
        raise TableRefused(f"a deletion vector in the log has {len(data)} bytes, wanted {size}")
    return _checked(decode_positions(data[:size]), vector)


def stored_positions(vector: Mapping[str, object], data: bytes) -> Positions:
    """Return the positions of a vector whose place in a file held `data`.

    Raises:
        TableRefused: length or checksum do not fit, or it is damaged.
    """
    size = _number(vector, "sizeInBytes")
    found = int.from_bytes(data[:4], "big")
    body, checksum = data[4 : 4 + size], int.from_bytes(data[4 + size : 8 + size], "big")
    if found != size or len(data) != size + 8:
        raise TableRefused(f"a deletion vector's file says {found} bytes, the log says {size}")
    if zlib.crc32(body) != checksum:
        raise TableRefused("a deletion vector's checksum does not fit: its file is damaged")
    return _checked(decode_positions(body), vector)


def _checked(positions: Positions, vector: Mapping[str, object]) -> Positions:
    wanted = _number(vector, "cardinality")
    if len(positions) != wanted:
        raise TableRefused(f"a deletion vector has {len(positions)} rows, the log says {wanted}")
    return positions


def _number(vector: Mapping[str, object], name: str) -> int:
    value = vector.get(name)
    if not isinstance(value, int) or value < 0:
        raise TableRefused(f"the log has a deletion vector whose {name} is {value!r}")
    return value


def _z85_bytes(text: str) -> bytes:
    if len(text) % 5:
        raise TableRefused(f"a deletion vector in the log has {len(text)} characters of Z85")
    words: list[bytes] = []
    for start in range(0, len(text), 5):
        word = 0
        for character in text[start : start + 5]:
            if character not in _Z85_VALUES:
                raise TableRefused(f"a deletion vector in the log has {character!r} in its Z85")
            word = word * 85 + _Z85_VALUES[character]
        if word >= 2**32:
            raise TableRefused("a deletion vector in the log has no Z85: a word is too large")
        words.append(word.to_bytes(4, "big"))
    return b"".join(words)


# --- Roaring --------------------------------------------------------------------------------------


def decode_positions(data: bytes) -> Positions:
    """Return the numbers of a serialized set, rising.

    Raises:
        TableRefused: it is none, or names a position that no file has.
    """
    try:
        return _decode(data)
    except (struct.error, ValueError) as error:
        raise TableRefused(f"a deletion vector ends too early or is damaged ({error})") from error


def _decode(data: bytes) -> Positions:
    magic, bitmaps = struct.unpack_from("<iQ", data)
    if magic != MAGIC:
        raise TableRefused(f"a deletion vector has the magic number {magic}, wanted {MAGIC}")
    at = 12
    parts: list[Positions] = []
    for _ in range(bitmaps):
        (key,) = struct.unpack_from("<I", data, at)
        if key:
            raise TableRefused(f"a deletion vector has positions above {POSITIONS_MAX}")
        lower, at = _decode_bitmap(data, at + 4)
        parts.append(lower)
    if at != len(data):
        raise TableRefused(f"a deletion vector has {len(data) - at} bytes too many")
    positions = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if len(positions) and (positions[-1] >= POSITIONS_MAX or (np.diff(positions) <= 0).any()):
        raise TableRefused("a deletion vector's positions do not rise")
    return positions


def _decode_bitmap(data: bytes, at: int) -> tuple[Positions, int]:
    """Return the numbers of the 32-bit bitmap that begins at `at`, and where it ends."""
    (cookie,) = struct.unpack_from("<I", data, at)
    at += 4
    is_run = np.zeros(0, np.uint8)
    has_runs = cookie & 0xFFFF == _COOKIE_RUNS
    if has_runs:
        count = (cookie >> 16) + 1
        flags = np.frombuffer(data, np.uint8, (count + 7) // 8, at)
        is_run = np.unpackbits(flags, bitorder="little")
        at += len(flags)
    elif cookie == _COOKIE_PLAIN:
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
    else:
        raise TableRefused(f"a deletion vector has the cookie {cookie}, which is no bitmap's")
    heads = np.frombuffer(data, "<u2", 2 * count, at).reshape(-1, 2).astype(np.int64)
    at += 4 * count
    if not has_runs or count >= _OFFSETS_FROM_CONTAINERS:
        at += 4 * count  # where each container begins, which reading them in order tells as well
    parts: list[Positions] = []
    for index, (key, less_one) in enumerate(heads.tolist()):
        runs = has_runs and bool(is_run[index])
        lower, at = _decode_container(data, at, cardinality=less_one + 1, is_run=runs)
        parts.append(lower + (key << 16))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64), at


def _decode_container(
    data: bytes, at: int, *, cardinality: int, is_run: bool
) -> tuple[Positions, int]:
    if is_run:
        (count,) = struct.unpack_from("<H", data, at)
        runs = np.frombuffer(data, "<u2", 2 * count, at + 2).reshape(-1, 2).astype(np.int64)
        parts = [np.arange(first, first + more + 1) for first, more in runs.tolist()]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64), at + 2 + 4 * count
    if cardinality <= _ARRAY_MAX:
        found = np.frombuffer(data, "<u2", cardinality, at).astype(np.int64)
        return found, at + 2 * cardinality
    bits = np.unpackbits(np.frombuffer(data, np.uint8, _BITMAP_BYTES, at), bitorder="little")
    return np.flatnonzero(bits).astype(np.int64), at + _BITMAP_BYTES
