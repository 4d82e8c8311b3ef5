"""The file actions of checkpoints that anybody wrote, as a stream of batches.

Classic checkpoints, those in parts and V2 checkpoints are read; of a V2 checkpoint the sidecars
too, which is where its file actions mostly are. Only the fields that Delta's protocol names are
fetched: checkpoints repeat statistics and table partition values in a parsed form, which can be
larger than all the rest.

Source: Delta protocol, "Checkpoints", "V2 Spec", "Sidecar Files".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from urllib.parse import unquote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from delta_sink.delta.actions import parse_entry
from delta_sink.delta.checkpoint import FetchedFile
from delta_sink.delta.file_columns import FILE_SCHEMA, TOMBSTONE_SCHEMA, batch_of
from delta_sink.delta.logstore import LOG_FOLDER, Checkpoint
from delta_sink.errors import TableRefused
from delta_sink.ports import ObjectInfo, ObjectStore

BATCH_ROWS = 8_192
SIDECAR_FOLDER = LOG_FOLDER + "_sidecars/"

Kind = Literal["add", "remove"]
_SCHEMAS: dict[str, pa.Schema] = {"add": FILE_SCHEMA, "remove": TOMBSTONE_SCHEMA}


def checkpoint_batches(
    store: ObjectStore, checkpoint: Checkpoint, kind: Kind
) -> Iterator[pa.RecordBatch]:
    """Yield the `add`s (`FILE_SCHEMA`) or `remove`s (`TOMBSTONE_SCHEMA`) of a checkpoint.

    Raises:
        ObjectMissing: it was cleaned up meanwhile; list again.
        TableRefused: it is damaged.
    """
    for info in checkpoint.files:
        yield from _batches(store, checkpoint.version, info, kind)
    for sidecar in sidecars_of(store, checkpoint):
        yield from _batches(store, checkpoint.version, sidecar, kind)


class _Sidecar(msgspec.Struct, rename="camel"):
    path: str
    size_in_bytes: int


class _Line(msgspec.Struct):
    sidecar: _Sidecar | None = None


def sidecars_of(store: ObjectStore, checkpoint: Checkpoint) -> list[ObjectInfo]:
    """Return the sidecars that a checkpoint names; none for any but V2 checkpoints.

    Raises: as `checkpoint_batches`.
    """
    found: list[_Sidecar] = []
    for info in checkpoint.files:
        if info.path.endswith(".json"):
            found += _json_sidecars(store.get(info.path).data, info.path)
            continue
        for batch in _structs(store, info, "sidecar", ("path", "sizeInBytes")):
            for row in batch.to_pylist():
                found.append(_Sidecar(row["path"], row["sizeInBytes"]))
    return [
        # They always lie in this folder, whatever else their path may say.
        ObjectInfo(SIDECAR_FOLDER + unquote(s.path).rpartition("/")[2], s.size_in_bytes, 0, "")
        for s in found
    ]


def _json_sidecars(data: bytes, path: str) -> list[_Sidecar]:
    try:
        lines = [msgspec.json.decode(text, type=_Line) for text in data.splitlines() if text]
    except msgspec.DecodeError as error:
        raise TableRefused(f"{path} is no readable checkpoint ({error})") from error
    return [line.sidecar for line in lines if line.sidecar is not None]


def _batches(
    store: ObjectStore, version: int, info: ObjectInfo, kind: Kind
) -> Iterator[pa.RecordBatch]:
    schema = _SCHEMAS[kind]
    if info.path.endswith(".json"):
        entry = parse_entry(version, store.get(info.path).data, info.e_tag)
        actions = entry.adds if kind == "add" else entry.removes
        if actions:
            yield batch_of(actions, schema)
        return
    for rows in _structs(store, info, kind, tuple(schema.names)):
        yield _conform(rows, schema, info.path)


def _structs(
    store: ObjectStore, info: ObjectInfo, column: str, fields: tuple[str, ...]
) -> Iterator[pa.StructArray]:
    """Yield the values of a struct column that are not null, with these of its fields."""
    file = FetchedFile(store, info)
    wanted = {f"{column}.{name}" for name in fields}
    try:
        file.fetch_footer()
        parquet = pq.ParquetFile(file)
        if column not in parquet.schema_arrow.names:
            return
        for index in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(index)
            paths, ranges = _chunks(group, wanted)
            file.fetch(ranges)
            for batch in parquet.iter_batches(
                BATCH_ROWS, row_groups=[index], columns=paths, use_threads=False
            ):
                rows = batch.column(0)
                rows = rows.filter(rows.is_valid())
                if len(rows):
                    yield rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableRefused(f"{info.path} is no readable checkpoint ({error})") from error


def _chunks(
    group: pq.RowGroupMetaData, wanted: set[str]
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the leaf columns below `wanted` fields, and where their bytes lie."""
    paths: list[str] = []
    ranges: list[tuple[int, int]] = []
    for index in range(group.num_columns):
        chunk = group.column(index)
        path = chunk.path_in_schema
        if ".".join(path.split(".")[:2]) in wanted:
            first = min(
                chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset
            )
            paths.append(path)
            ranges.append((first, first + chunk.total_compressed_size))
    return paths, ranges


def _conform(rows: pa.StructArray, schema: pa.Schema, path: str) -> pa.RecordBatch:
    """Return the fields of `rows` as columns; those that the writer left out are null."""
    columns: list[pa.Array] = []
    for field in schema:
        place = rows.type.get_field_index(field.name)
        if place < 0:
            columns.append(pa.nulls(len(rows), field.type))
            continue
        column = rows.field(place)
        try:
            if pa.types.is_struct(field.type):
                columns.append(_conform_struct(column, field.type))
            else:
                columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            raise TableRefused(
                f"{path}: the field {field.name} is {column.type}, wanted {field.type}"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _conform_struct(column: pa.StructArray, wanted: pa.StructType) -> pa.StructArray:
    found = {field.name: place for place, field in enumerate(column.type)}
    children = [
        column.field(found[field.name]).cast(field.type)
        if field.name in found
        else pa.nulls(len(column), field.type)
        for field in wanted
    ]
    return pa.StructArray.from_arrays(children, fields=list(wanted), mask=column.is_null())
