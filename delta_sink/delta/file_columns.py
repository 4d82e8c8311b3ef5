"""The file actions of the log as Arrow columns: `add` and `remove`, and what identifies a file.

Two actions speak of the same file if path and deletion vector are the same, compared as the log
spells them.

Source: Delta protocol, "Add File and Remove File", "Deletion Vector Descriptor Schema".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from delta_sink.delta.actions import Add, Remove
from delta_sink.delta.parquet import tag_of
from delta_sink.errors import TableRefused

VECTOR_TYPE = pa.struct(
    [
        pa.field("storageType", pa.string(), nullable=False),
        pa.field("pathOrInlineDv", pa.string(), nullable=False),
        pa.field("offset", pa.int32()),
        pa.field("sizeInBytes", pa.int32(), nullable=False),
        pa.field("cardinality", pa.int64(), nullable=False),
    ]
)
TEXT_MAP = pa.map_(pa.string(), pa.string())

FILE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("partitionValues", TEXT_MAP, nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("modificationTime", pa.int64(), nullable=False),
        pa.field("stats", pa.string()),
        pa.field("tags", TEXT_MAP),
        pa.field("deletionVector", VECTOR_TYPE),
    ]
)
"""A live file. `modificationTime` is in ms, `stats` is the JSON text of the log."""

TOMBSTONE_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("deletionTimestamp", pa.int64()),
        pa.field("dataChange", pa.bool_(), nullable=False),
        pa.field("extendedFileMetadata", pa.bool_()),
        pa.field("partitionValues", TEXT_MAP),
        pa.field("size", pa.int64()),
        pa.field("deletionVector", VECTOR_TYPE),
    ]
)
"""A file that was removed, at `deletionTimestamp` ms by the clock of whoever removed it."""

FACT_SCHEMA = pa.schema(
    [
        *(FILE_SCHEMA.field(name) for name in ("path", "partitionValues", "size")),
        FILE_SCHEMA.field("modificationTime"),
        FILE_SCHEMA.field("deletionVector"),
        pa.field("numRecords", pa.int64()),
        pa.field("tag", pa.int64()),
    ]
)
"""What planning needs of a live file.

`numRecords` counts the rows in the file, those of its deletion vector included; null where the
log does not say. `tag` is null for files that this sink did not name.
"""

_FIELDS = {name: "".join(f"_{c.lower()}" if c.isupper() else c for c in name) for name in (
    *FILE_SCHEMA.names, *TOMBSTONE_SCHEMA.names
)}  # fmt: skip


def batch_of(actions: Sequence[Add | Remove], schema: pa.Schema) -> pa.RecordBatch:
    """Return actions of one kind as a batch of `schema`, in their order.

    Raises:
        TableRefused: a field holds what Delta does not put there.
    """
    columns: list[pa.Array] = []
    for field in schema:
        values = [getattr(action, _FIELDS[field.name]) for action in actions]
        if field.type == TEXT_MAP:
            values = [None if value is None else list(value.items()) for value in values]
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowException, TypeError) as error:
            raise TableRefused(
                f"the log has a file action whose {field.name} is not as Delta has it ({error})"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def vector_id(vector: Mapping[str, object]) -> str:
    """Return what tells this deletion vector from any other."""
    text = f"{vector['storageType']}{vector['pathOrInlineDv']}"
    offset = vector.get("offset")
    return text if offset is None else f"{text}@{offset}"


def file_key(path: str, vector: Mapping[str, object] | None) -> str:
    """Return what identifies a file in the log: equal keys mean the same file.

    Raises:
        TableRefused: the deletion vector is none that Delta describes.
    """
    if vector is None:
        return path
    try:
        return f"{path}\n{vector_id(vector)}"
    except KeyError as error:
        raise TableRefused(f"the log has a deletion vector without {error} at {path}") from error


def file_keys(batch: pa.RecordBatch | pa.Table) -> pa.Array | pa.ChunkedArray:
    """Return `file_key` of each row of a batch with `path` and `deletionVector`."""
    paths, vectors = batch["path"], batch["deletionVector"]
    if vectors.null_count == len(vectors):
        return paths
    offset = pc.struct_field(vectors, "offset").cast(pa.string())
    suffix = pc.binary_join_element_wise(
        "\n",
        pc.struct_field(vectors, "storageType"),
        pc.struct_field(vectors, "pathOrInlineDv"),
        pc.coalesce(pc.binary_join_element_wise("@", offset, ""), pa.scalar("")),
        "",
    )
    return pc.if_else(pc.is_null(vectors), paths, pc.binary_join_element_wise(paths, suffix, ""))


def without_keys(batch: pa.RecordBatch, keys: pa.Array) -> pa.RecordBatch:
    """Return the rows of `batch` whose file is not among `keys`."""
    if not len(keys) or not batch.num_rows:
        return batch
    return batch.filter(pc.invert(pc.is_in(file_keys(batch), value_set=keys)))


class _Stats(msgspec.Struct, rename="camel"):
    num_records: int | None = None


_stats_decoder = msgspec.json.Decoder(_Stats)


def rows_in_stats(stats: str | None) -> int | None:
    """Return `numRecords` of a file's statistics, or None where they do not say."""
    if stats is None:
        return None
    try:
        return _stats_decoder.decode(stats).num_records
    except msgspec.DecodeError:
        return None


def with_facts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch of `FILE_SCHEMA` as one of `FACT_SCHEMA`."""
    rows = pa.array([rows_in_stats(text) for text in batch["stats"].to_pylist()], pa.int64())
    tags = pa.array([tag_of(path) for path in batch["path"].to_pylist()], pa.int64())
    kept = [batch[name] for name in FACT_SCHEMA.names[:5]]
    return pa.RecordBatch.from_arrays([*kept, rows, tags], schema=FACT_SCHEMA)
