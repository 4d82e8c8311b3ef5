"""Reading checkpoints that anybody wrote: the columns `txn`, `protocol` and `metaData` only.

Classic checkpoints (one file or several parts) and V2 checkpoints are read; of a V2 checkpoint
its main file is enough, since sidecars hold nothing but file actions. Of a Parquet file the footer
and the wanted column chunks are fetched, a row group at a time, so that a table of a million files
costs no more memory here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from delta_sink.delta.actions import Metadata, Protocol, Txn, parse_entry
from delta_sink.delta.logstore import Checkpoint
from delta_sink.errors import TableRefused
from delta_sink.ports import ObjectInfo, ObjectStore

CheckpointContent = tuple[Protocol, Metadata, dict[str, int]]


def read_checkpoint(store: ObjectStore, checkpoint: Checkpoint) -> CheckpointContent:
    """Return protocol, metadata and the `txn` map as `checkpoint` has them.

    Raises:
        ObjectMissing: it was cleaned up meanwhile; list again.
        TableRefused: it is damaged.
    """
    protocol: Protocol | None = None
    metadata: Metadata | None = None
    txns: dict[str, int] = {}
    for info in checkpoint.files:
        for action in _actions(store, checkpoint.version, info):
            match action:
                case Protocol():
                    protocol = action
                case Metadata():
                    metadata = action
                case Txn():
                    txns[action.app_id] = action.version
    if protocol is None or metadata is None:
        raise TableRefused(
            f"checkpoint {checkpoint.version} has no protocol or no metadata: it is damaged; "
            f"remove it if an older one and all log entries since are there"
        )
    return protocol, metadata, txns


def _actions(
    store: ObjectStore, version: int, info: ObjectInfo
) -> Iterator[Protocol | Metadata | Txn]:
    if info.path.endswith(".json"):
        entry = parse_entry(version, store.get(info.path).data, info.e_tag)
        if entry.protocol is not None:
            yield entry.protocol
        if entry.metadata is not None:
            yield entry.metadata
        for app_id, txn_version in (entry.txns or {}).items():
            yield Txn(app_id, txn_version)
        return
    try:
        yield from _parquet_actions(FetchedFile(store, info))
    except (pa.ArrowException, OSError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise TableRefused(f"{info.path} is no readable checkpoint ({error})") from error


_COLUMNS: dict[str, type[Protocol | Metadata | Txn]] = {
    "protocol": Protocol,
    "metaData": Metadata,
    "txn": Txn,
}


def _parquet_actions(file: FetchedFile) -> Iterator[Protocol | Metadata | Txn]:
    file.fetch_footer()
    # Nearly every checkpoint of a table that is kept small came whole: no further request.
    whole = file.whole
    parquet = pq.ParquetFile(file if whole is None else pa.BufferReader(whole))
    there = parquet.schema_arrow.names
    names = [name for name in _COLUMNS if name in there]
    for index in range(parquet.num_row_groups):
        if whole is None:
            file.fetch(_chunk_ranges(parquet.metadata.row_group(index), names))
        group = parquet.read_row_group(index, columns=names, use_threads=False)
        for name in names:
            for value in group.column(name).drop_null().to_pylist(maps_as_pydicts="strict"):
                yield msgspec.convert(_without_nulls(value), _COLUMNS[name], strict=False)


def _chunk_ranges(group: pq.RowGroupMetaData, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return offset and end of the bytes in which the columns `names` of a row group lie."""
    ranges: list[tuple[int, int]] = []
    for index in range(group.num_columns):
        chunk = group.column(index)
        if chunk.path_in_schema.split(".")[0] in names:
            pages = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
            ranges.append((min(pages), min(pages) + chunk.total_compressed_size))
    return ranges


def _without_nulls(value: object) -> object:
    """Return an Arrow value as JSON would have it: without members that are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value


FOOTER_BYTES = 64 * 1024
"""What is fetched of a file's end at first; nearly every footer of a checkpoint fits."""

GAP_BYTES_MAX = 64 * 1024
"""Ranges that lie this near to each other are fetched in one request."""


class FetchedFile(io.RawIOBase):
    """The parts of an object that were fetched, as the file object that Parquet readers want.

    Arrow reads from threads of its own, and a port may be called from a job alone: so the parts
    are fetched first, and a read of anything else is an error.
    """

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self._info = info
        self._position = 0
        self._footer: tuple[int, bytes] = (info.size_bytes, b"")
        self._parts: list[tuple[int, bytes]] = []

    def fetch_footer(self) -> None:
        """Make the footer readable, in one request or two."""
        size = self._info.size_bytes
        self._footer = self._part(max(0, size - FOOTER_BYTES), size)
        tail = self._footer[1]
        # The last eight bytes are the footer's length and a magic number.
        footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
        if len(tail) < footer_bytes <= size:
            self._footer = self._part(size - footer_bytes, size)

    @property
    def whole(self) -> bytes | None:
        """The object's bytes, if all of them came with the footer."""
        first, data = self._footer
        return data if first == 0 and len(data) == self._info.size_bytes else None

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Make these ranges (offset, end) readable in place of those fetched before."""
        merged: list[tuple[int, int]] = []
        for first, end in sorted(ranges):
            if merged and first - merged[-1][1] <= GAP_BYTES_MAX:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        self._parts = [self._part(first, end) for first, end in merged]

    def _part(self, first: int, end: int) -> tuple[int, bytes]:
        return first, self._store.get_range(self._info.path, first, end - first)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move, and return where the next read begins."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size_bytes}
        self._position = base[whence] + offset
        return self._position

    def readinto(self, buffer: object) -> int:
        """Fill `buffer` with what follows; return how many bytes that were.

        Raises:
            OSError: these bytes were not fetched: the file says something else of itself than
                its footer does.
        """
        view = memoryview(buffer)  # type: ignore[arg-type]  # the base class says `object`
        length = min(len(view), self._info.size_bytes - self._position)
        if length <= 0:
            return 0
        for first, data in (*self._parts, self._footer):
            start = self._position - first
            if 0 <= start < len(data):
                found = data[start : start + length]
                view[: len(found)] = found
                self._position += len(found)
                return len(found)
        raise OSError(f"bytes from {self._position} on were not expected to be read")
