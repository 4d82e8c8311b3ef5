"""Reading checkpoints that anybody wrote: the columns `txn`, `protocol` and `metaData` only.

Classic checkpoints (one file or several parts) and V2 checkpoints are read; of a V2 checkpoint
its main file is enough, since sidecars hold nothing but file actions. Row groups are read one at
a time, through range requests, so that a table of a million files costs no more memory here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

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
    with io.BufferedReader(RangeFile(store, info), buffer_size=256 * 1024) as file:
        try:
            yield from _parquet_actions(pq.ParquetFile(file))
        except (pa.ArrowException, msgspec.ValidationError) as error:
            raise TableRefused(f"{info.path} is no readable checkpoint ({error})") from error


_COLUMNS: dict[str, type[Protocol | Metadata | Txn]] = {
    "protocol": Protocol,
    "metaData": Metadata,
    "txn": Txn,
}


def _parquet_actions(file: pq.ParquetFile) -> Iterator[Protocol | Metadata | Txn]:
    names = [name for name in _COLUMNS if name in file.schema_arrow.names]
    for index in range(file.num_row_groups):
        group = file.read_row_group(index, columns=names, use_threads=False)
        for name in names:
            for value in group.column(name).drop_null().to_pylist():
                yield msgspec.convert(_as_json(value), _COLUMNS[name], strict=False)


def _as_json(value: object) -> object:
    """Return an Arrow value as JSON would have it: maps as objects, no empty members."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        return dict(value)
    return value


class RangeFile(io.RawIOBase):
    """An object read through range requests, as the file object that Parquet readers want."""

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self._info = info
        self._position = 0

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
        """Fill `buffer` with what follows; return how many bytes that were."""
        view = memoryview(buffer)  # type: ignore[arg-type]  # the base class says `object`
        length = min(len(view), self._info.size_bytes - self._position)
        if length <= 0:
            return 0
        data = self._store.get_range(self._info.path, self._position, length)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)
