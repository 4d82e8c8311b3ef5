"""Writing checkpoints: one Parquet object a version, put if absent, streamed from a snapshot.

Nobody waits for a checkpoint and nothing depends on who wrote it: it says what the entries up to
its version say. So two that write the same one do no harm, and one that dies leaves either the
whole object or none.

What is written: protocol, metadata, every `txn`, every live file with its statistics and deletion
vector, and the tombstones that are young enough. A `txn` goes in without `lastUpdated`: only a
table property that this sink refuses could make it expire.

Source: Delta protocol, "Checkpoints", "Checkpoint Schema", "Last Checkpoint File".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from delta_sink.delta.actions import Metadata
from delta_sink.delta.commit import Log
from delta_sink.delta.file_columns import FILE_SCHEMA, TEXT_MAP, TOMBSTONE_SCHEMA
from delta_sink.delta.logstore import LAST_CHECKPOINT_PATH, LOG_FOLDER
from delta_sink.delta.repeat import put_once
from delta_sink.delta.snapshot import Snapshot, read_snapshot
from delta_sink.delta.state import LogState
from delta_sink.delta.support import interval_ms, refuse_unsupported
from delta_sink.errors import ObjectMissing, RetriableError, StoreRefused, TableRefused

FILE_RETENTION_PROPERTY = "delta.deletedFileRetentionDuration"
FILE_RETENTION_DEFAULT_MS = 7 * 86_400_000
TOMBSTONE_MARGIN_MS = 86_400_000
"""Tombstones are kept so much longer than the table asks, since clocks of workers differ."""

ROW_GROUP_ROWS = 65_536
READ_TRIES_MAX = 3

_TEXTS = pa.list_(pa.field("element", pa.string(), nullable=False))
_ADD = pa.struct([*list(FILE_SCHEMA)[:4], pa.field("dataChange", pa.bool_(), nullable=False),
                  *list(FILE_SCHEMA)[4:]])  # fmt: skip
_FORMAT = pa.struct([pa.field("provider", pa.string(), nullable=False),
                     pa.field("options", TEXT_MAP, nullable=False)])  # fmt: skip
CHECKPOINT_SCHEMA = pa.schema(
    {
        "txn": pa.struct(
            [
                pa.field("appId", pa.string(), nullable=False),
                pa.field("version", pa.int64(), nullable=False),
                pa.field("lastUpdated", pa.int64()),
            ]
        ),
        "add": _ADD,
        "remove": pa.struct(list(TOMBSTONE_SCHEMA)),
        "metaData": pa.struct(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("name", pa.string()),
                pa.field("description", pa.string()),
                pa.field("format", _FORMAT, nullable=False),
                pa.field("schemaString", pa.string(), nullable=False),
                pa.field("partitionColumns", _TEXTS, nullable=False),
                pa.field("createdTime", pa.int64()),
                pa.field("configuration", TEXT_MAP, nullable=False),
            ]
        ),
        "protocol": pa.struct(
            [
                pa.field("minReaderVersion", pa.int32(), nullable=False),
                pa.field("minWriterVersion", pa.int32(), nullable=False),
                pa.field("readerFeatures", _TEXTS),
                pa.field("writerFeatures", _TEXTS),
            ]
        ),
    }
)
"""The columns of a checkpoint: each row has exactly one that is not null."""

# Paths and statistics never repeat; a dictionary of them would only take memory.
_DICTIONARY = [
    f"{action}.partitionValues.key_value.{part}"
    for action in ("add", "remove")
    for part in ("key", "value")
]


class CheckpointWritten(Struct, frozen=True):
    """A checkpoint of `version` is there. `is_ours` is False if it was there before."""

    version: int
    is_ours: bool
    files: int
    tombstones: int
    txns: int
    size_bytes: int


def write_checkpoint(log: Log, version: int | None = None) -> CheckpointWritten | None:
    """Return once there is a checkpoint of `version` (None: of the head); None without a table.

    Memory holds the log entries since the last checkpoint as columns, and the new object.

    Raises:
        TableRefused: the table uses something that this sink could not carry over, or its log
            cannot show that version.
        RetriableError: the store did not answer for long. Nothing is lost; try again later.
        StoreRefused: a definite no.
    """
    for _ in range(READ_TRIES_MAX):
        snapshot = read_snapshot(log, version)
        if snapshot is None:
            return None
        state = snapshot.state
        refuse_unsupported(state.protocol, state.metadata)
        try:
            encoded = encode_checkpoint(
                snapshot, now_ms=snapshot.modified_ms or log.clock.wall_ms()
            )
        except ObjectMissing:
            continue  # The older checkpoint was cleaned up under us: there is a newer one.
        path = f"{LOG_FOLDER}{state.version:020d}.checkpoint.parquet"
        is_ours = put_once(log.store, path, encoded.data, log.clock, log.entropy)
        if is_ours:
            _point_at(log, state.version, encoded)
        return CheckpointWritten(
            state.version,
            is_ours,
            encoded.files,
            encoded.tombstones,
            len(state.txns),
            len(encoded.data),
        )
    raise TableRefused(
        f"checkpoints were removed {READ_TRIES_MAX} times while a new one was made of them"
    )


class EncodedCheckpoint(Struct, frozen=True, eq=False):
    """The object, and how many live files, tombstones and actions of any kind it holds."""

    data: memoryview
    files: int
    tombstones: int
    actions: int


def encode_checkpoint(snapshot: Snapshot, *, now_ms: int) -> EncodedCheckpoint:
    """Return `snapshot` as one Parquet file; tombstones count as young or old at `now_ms`.

    Raises:
        ObjectMissing: the checkpoint below was cleaned up meanwhile.
    """
    oldest_ms = now_ms - file_retention_ms(snapshot.state.metadata) - TOMBSTONE_MARGIN_MS
    files = tombstones = actions = 0
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        CHECKPOINT_SCHEMA,
        compression="snappy",  # every reader has it
        use_dictionary=_DICTIONARY,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        for batch in _head_batches(snapshot.state):
            writer.write_batch(batch, ROW_GROUP_ROWS)
            actions += batch.num_rows
        for batch in snapshot.live_batches():
            if batch.num_rows:
                writer.write_batch(_row_batch("add", _adds(batch)), ROW_GROUP_ROWS)
                files += batch.num_rows
        for batch in snapshot.tombstone_batches():
            young = batch.filter(pc.greater(batch["deletionTimestamp"], oldest_ms))
            if young.num_rows:
                rows = pa.StructArray.from_arrays(young.columns, fields=list(TOMBSTONE_SCHEMA))
                writer.write_batch(_row_batch("remove", rows), ROW_GROUP_ROWS)
                tombstones += young.num_rows
    actions += files + tombstones
    data = sink.getvalue()
    written = pq.read_metadata(pa.BufferReader(data)).num_rows
    assert written == actions, (written, actions)
    return EncodedCheckpoint(memoryview(data).cast("B"), files, tombstones, actions)


def file_retention_ms(metadata: Metadata) -> int:
    """Return how long the table wants removed files to be kept, in ms."""
    text = metadata.configuration.get(FILE_RETENTION_PROPERTY)
    return FILE_RETENTION_DEFAULT_MS if text is None else interval_ms(text)


def _head_batches(state: LogState) -> Iterator[pa.RecordBatch]:
    protocol, metadata = state.protocol, state.metadata
    yield _one_row(
        "protocol",
        {
            "minReaderVersion": protocol.min_reader_version,
            "minWriterVersion": protocol.min_writer_version,
            "readerFeatures": protocol.reader_features,
            "writerFeatures": protocol.writer_features,
        },
    )
    yield _one_row(
        "metaData",
        {
            "id": metadata.id,
            "name": metadata.name,
            "description": metadata.description,
            "format": {
                "provider": metadata.format.provider,
                "options": list(metadata.format.options.items()),
            },
            "schemaString": metadata.schema_string,
            "partitionColumns": metadata.partition_columns,
            "createdTime": metadata.created_time,
            "configuration": list(metadata.configuration.items()),
        },
    )
    if state.txns:
        rows = [{"appId": name, "version": txn} for name, txn in sorted(state.txns.items())]
        yield _row_batch("txn", pa.array(rows, CHECKPOINT_SCHEMA.field("txn").type))


def _one_row(name: str, value: dict[str, object]) -> pa.RecordBatch:
    return _row_batch(name, pa.array([value], CHECKPOINT_SCHEMA.field(name).type))


def _adds(batch: pa.RecordBatch) -> pa.StructArray:
    unchanged = pa.repeat(pa.scalar(False), batch.num_rows)
    columns: Sequence[pa.Array] = [*batch.columns[:4], unchanged, *batch.columns[4:]]
    return pa.StructArray.from_arrays(columns, fields=list(_ADD))


def _row_batch(name: str, rows: pa.StructArray) -> pa.RecordBatch:
    """Return rows of a checkpoint that all hold an action of one kind."""
    columns = [
        _filled(rows if field.name == name else pa.nulls(len(rows), field.type))
        for field in CHECKPOINT_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=CHECKPOINT_SCHEMA)


_FILL = {pa.string(): "", pa.int32(): 0, pa.int64(): 0, pa.bool_(): False}


def _filled(rows: pa.StructArray) -> pa.StructArray:
    """Return equal rows whose required fields have a value even below a null.

    Nobody sees those values; pyarrow 26 refuses to write a required column without them.
    """
    children: list[pa.Array] = []
    for place, field in enumerate(rows.type):
        child = rows.field(place)
        if pa.types.is_struct(field.type):
            child = _filled(child)
            if not field.nullable and child.null_count:
                values = [child.field(index) for index in range(child.type.num_fields)]
                child = pa.StructArray.from_arrays(values, fields=list(field.type))
        elif not field.nullable and child.null_count:
            child = _without_nulls(child)
        children.append(child)
    return pa.StructArray.from_arrays(children, fields=list(rows.type), mask=rows.is_null())


def _without_nulls(column: pa.Array) -> pa.Array:
    if column.type in _FILL:
        return pc.fill_null(column, _FILL[column.type])
    assert column.null_count == len(column), "a required map or list below a row that is there"
    return pa.array([[]] * len(column), column.type)


class _LastCheckpoint(msgspec.Struct, rename="camel"):
    version: int
    size: int
    size_in_bytes: int
    num_of_add_files: int


class _Version(msgspec.Struct):
    version: int


def _point_at(log: Log, version: int, encoded: EncodedCheckpoint) -> None:
    """Let `_last_checkpoint` name this version unless it names a later one.

    It only saves readers a listing, so a failure is no failure, and neither is a race.
    """
    hint = _LastCheckpoint(version, encoded.actions, len(encoded.data), encoded.files)
    try:
        found = msgspec.json.decode(log.store.get(LAST_CHECKPOINT_PATH).data, type=_Version)
        if found.version >= version:
            return
    except (ObjectMissing, msgspec.DecodeError):
        pass
    except (RetriableError, StoreRefused):
        return
    try:
        log.store.put(LAST_CHECKPOINT_PATH, msgspec.json.encode(hint))
    except (RetriableError, StoreRefused):
        return
