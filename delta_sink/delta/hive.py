"""Table partition values: as the log spells them, as folders of the store, as URLs in the log.

One value goes through three spellings. `partition_strings` gives the text of
`add.partitionValues`, which is what readers take the value from. `partition_path` gives the
folder below the table, with Hive's escapes; no reader parses it. `add_path` gives the URL-encoded
`add.path`, from which readers find the object, so a `%` of the folder's name is `%25` there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

from delta_sink.delta.schema import ArrayType, MapType, StructType, TableSchema, type_text
from delta_sink.errors import TableRefused

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
SEGMENT_BYTES_MAX = 255
"""Local file systems refuse longer names, and a table must be able to move to one."""

_ESCAPED = r"[\x00-\x1f\x7f\"#%'*/:=?\\{\[\]^]"
_ESCAPED_PATTERN = re.compile(_ESCAPED)
_SECONDS_FIRST, _SECONDS_AFTER = -62_135_596_800, 253_402_300_800
"""From 0001-01-01 up to 10000-01-01: readers parse four digits of year and no sign."""
_DAY_S = 86_400


def partition_strings(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return each value as `add.partitionValues` spells it; null stays null.

    Timestamps are ISO 8601 in UTC with `Z`, the one form that no reader takes for its own local
    time; zone-less ones have a space and no zone. Decimals show their whole scale, floats the
    shortest text that reads back the same, `-0` included.

    Raises:
        ValueError: the type cannot be a table partition (`partition_problems` says so earlier).

    Source: Delta protocol, "Partition Value Serialization"; read back in tests/unit/test_hive.py.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_string(kind):
        return array
    if pa.types.is_decimal(kind):
        # Arrow writes small decimals with an exponent, which no reader of Delta takes.
        return pa.array(
            [None if value is None else format(value, "f") for value in array.to_pylist()],
            pa.string(),
        )
    if pa.types.is_timestamp(kind):
        return _timestamp_strings(array)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return array.cast(pa.string())
    if pa.types.is_boolean(kind) or pa.types.is_date32(kind):
        return array.cast(pa.string())
    raise ValueError(f"a column of type {kind} cannot partition a table")


def _timestamp_strings(array: pa.Array) -> pa.Array:
    # Without its zone a timestamp is spelled in UTC, and no time zone database is asked.
    text = array.cast(pa.int64()).cast(pa.timestamp("us")).cast(pa.string())
    if array.type.tz is not None:
        return pc.binary_join_element_wise(pc.replace_substring(text, " ", "T"), "Z", "")
    return pc.replace_substring_regex(text, r"\.000000$", "")


def unusable(column: pa.Array | pa.ChunkedArray, name: str = "") -> pa.BooleanArray:
    """Return True for each value that cannot be a table partition of column `name`.

    Those are: the empty string (null to the protocol, and readers differ), text with a NUL, a folder name of more
    than `SEGMENT_BYTES_MAX` bytes, a float that is no finite number, a day outside the years 1 to
    9999. Null is usable.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = array.type
    if pa.types.is_string(kind):
        bad = _unusable_strings(array, len(escape(name).encode()) + len("="))
    elif pa.types.is_floating(kind):
        bad = pc.invert(pc.is_finite(array))
    elif pa.types.is_date32(kind):
        first, after = _SECONDS_FIRST // _DAY_S, _SECONDS_AFTER // _DAY_S
        bad = _outside(array.cast(pa.int32()), first, after)
    elif pa.types.is_timestamp(kind):
        bad = _outside(
            array.cast(pa.int64()), _SECONDS_FIRST * 1_000_000, _SECONDS_AFTER * 1_000_000
        )
    else:
        bad = pc.is_null(array, nan_is_null=False)
        return pc.and_(bad, False)
    return pc.fill_null(bad, False)


def _unusable_strings(array: pa.Array, prefix_bytes: int) -> pa.Array:
    escapes = pc.multiply(pc.count_substring_regex(array, pattern=_ESCAPED), 2)
    size = pc.add(pc.add(pc.binary_length(array), escapes), prefix_bytes)
    impossible = pc.or_(pc.equal(array, ""), pc.match_substring(array, "\0"))
    return pc.or_(impossible, pc.greater(size, SEGMENT_BYTES_MAX))


def _outside(numbers: pa.Array, first: int, after: int) -> pa.Array:
    return pc.or_(pc.less(numbers, first), pc.greater_equal(numbers, after))


def partition_problems(schema: TableSchema, partition_by: Sequence[str]) -> list[str]:
    """Return a sentence for each reason why these columns cannot partition this table."""
    problems: list[str] = []
    for index, name in enumerate(partition_by):
        if name not in schema.names:
            problems.append(f"there is no column {name!r} to partition by")
            continue
        kind = schema.field(name).type
        if kind == "binary" or isinstance(kind, StructType | ArrayType | MapType):
            problems.append(f"column {name!r} is {type_text(kind)}, which cannot partition a table")
        if name in partition_by[:index]:
            problems.append(f"column {name!r} is named twice to partition by")
    if not problems and len(partition_by) == len(schema.fields):
        problems.append("all columns are table partition columns, wanted one that is not")
    return problems


def escape(text: str) -> str:
    """Return `text` as Hive writes it into a folder's name; spaces and non-ASCII stay."""
    return _ESCAPED_PATTERN.sub(lambda match: f"%{ord(match[0]):02X}", text)


def partition_path(names: Sequence[str], values: Sequence[str | None]) -> str:
    """Return the folder of a table partition, `day=2026-11-24/region=eu`; `""` without columns.

    `values` are those of `partition_strings`, in the order of `names`.
    """
    return "/".join(
        f"{escape(name)}={NULL_FOLDER if value is None else escape(value)}"
        for name, value in zip(names, values, strict=True)
    )


def add_path(path: str) -> str:
    """Return an object's path, relative to the table, as `add.path` and `remove.path` spell it."""
    return quote(path, safe="/=")


def object_path(path: str) -> str:
    """Return the object's path, relative to the table, that an `add.path` means.

    Raises:
        TableRefused: the path leaves the table (absolute, with a scheme, or through `..`), as in
            a shallow clone; this sink must neither rewrite nor delete what lies there.
    """
    plain = unquote(path)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path)
    if scheme or plain.startswith("/") or ".." in plain.split("/"):
        raise TableRefused(f"the log names a file outside the table: {path!r}")
    return plain
