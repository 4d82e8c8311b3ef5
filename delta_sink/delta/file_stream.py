"""Data files written as a stream: rows come in pieces, and the file ends near a wanted size.

What a file will weigh is only known once it is encoded. So rows that wait for their row group are
weighed by how those before them were compressed, and a file is held to be large enough only by
the bytes that it has.
"""

from __future__ import annotations

import io
import mmap
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from delta_sink.delta.parquet import DataFile, FileLayout, file_path, open_writer
from delta_sink.delta.statistics import file_statistics
from delta_sink.delta.statistics_merge import merge_statistics

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

GROUP_BYTES_MIN = 4 * 1024 * 1024
GROUP_BYTES_MAX = 32 * 1024 * 1024
ROOM_SHARE = 1.25
"""Room for so much of the wanted size is set aside for a file; it grows where that is too little."""


def group_bytes(target_file_bytes: int) -> int:
    """Return how large the Arrow columns of a row group are in files of that size.

    As large as the file within limits: a large row group takes memory, many small ones take room.
    """
    return max(GROUP_BYTES_MIN, min(GROUP_BYTES_MAX, target_file_bytes))


class Weight(Struct):
    """How many bytes of a file one byte of Arrow columns becomes, as seen so far."""

    arrow_bytes: int = 0
    file_bytes: int = 0

    def take(self, *, arrow_bytes: int, file_bytes: int) -> None:
        """Learn from a row group."""
        self.arrow_bytes += arrow_bytes
        self.file_bytes += file_bytes

    def of(self, arrow_bytes: int) -> float:
        """Return how large these columns will be in a file; 1 to 1 while nothing is known."""
        if not self.arrow_bytes:
            return arrow_bytes
        return arrow_bytes * self.file_bytes / self.arrow_bytes


class Room(io.RawIOBase):
    """A file that is written into memory of its own, which the system has back when it is dropped.

    A buffer of Arrow's doubles, and is copied, until the file fits; what was freed on the way stays
    with the process for a while. Here only pages that were written to take memory.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._pages = mmap.mmap(-1, size_bytes)
        self._written = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._written

    def write(self, data: ReadableBuffer, /) -> int:
        """Append `data`, and return its size in bytes."""
        with memoryview(data) as view:
            end = self._written + view.nbytes
            if end > len(self._pages):
                larger = mmap.mmap(-1, 2 * end)
                larger[: self._written] = self._pages[: self._written]
                self._pages = larger
            self._pages[self._written : end] = view
            self._written = end
            return view.nbytes

    def taken(self) -> memoryview:
        """Return what was written; nothing more may be."""
        return memoryview(self._pages)[: self._written]


class FileStream:
    """One data file of one table partition in the making. Memory: the file, and one row group.

    `values` are those of the table partition, in the order of `layout.partition_by`. The file is to
    be about `target_file_bytes` large; whoever writes it decides when it is.
    """

    def __init__(
        self,
        layout: FileLayout,
        values: tuple[str | None, ...],
        weight: Weight,
        target_file_bytes: int,
    ) -> None:
        """Set room aside."""
        self.layout = layout
        self.values = values
        self.weight = weight
        self.target_file_bytes = target_file_bytes
        self.rows = 0
        self._room = Room(round(ROOM_SHARE * target_file_bytes) + group_bytes(target_file_bytes))
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._waiting_rows = 0
        self._stats: list[str] = []

    def write(self, table: pa.Table, arrow_bytes: int) -> None:
        """Take rows with the columns of `layout.file_fields`; they follow those before.

        `arrow_bytes` is `table.nbytes`, which takes long to find out.
        """
        self._waiting.append(table)
        self._waiting_bytes += arrow_bytes
        self._waiting_rows += table.num_rows
        self.rows += table.num_rows
        is_large = self._waiting_bytes >= group_bytes(self.target_file_bytes)
        if is_large or self._waiting_rows >= self.layout.row_group_rows:
            self.flush()

    @property
    def written_bytes(self) -> int:
        """Bytes of the row groups that are encoded."""
        return self._room.tell()

    @property
    def estimated_bytes(self) -> float:
        """About how large the file would be if it ended here."""
        return self.written_bytes + self.weight.of(self._waiting_bytes)

    def flush(self) -> None:
        """Encode what waits as a row group."""
        if not self._waiting_rows:
            return
        # In the chunks that it came in: to join them would take the row group's memory once more.
        table = pa.concat_tables(self._waiting)
        if self._writer is None:
            self._writer = open_writer(self._room, table, self.layout)
        before = self.written_bytes
        self._writer.write_table(table, row_group_size=self.layout.row_group_rows)
        self.weight.take(arrow_bytes=self._waiting_bytes, file_bytes=self.written_bytes - before)
        columns_max = self.layout.statistics_columns
        self._stats.append(file_statistics(self.layout.file_fields, table, columns_max=columns_max))
        self._waiting, self._waiting_bytes, self._waiting_rows = [], 0, 0

    def finish(self, *, tag: int, unique_id: str) -> DataFile:
        """Return the file, ready to be uploaded. Only when it has rows; the stream ends here."""
        self.flush()
        assert self._writer is not None, "a file without rows"
        self._writer.close()
        data = self._room.taken()
        found = pq.read_metadata(pa.BufferReader(data)).num_rows
        assert found == self.rows, f"a file was written with {found} rows, wanted {self.rows}"
        return DataFile(
            path=file_path(self.layout, self.values, tag=tag, unique_id=unique_id),
            data=data,
            partition_values=dict(zip(self.layout.partition_by, self.values, strict=True)),
            rows=self.rows,
            stats=merge_statistics(self.layout.file_fields, self._stats),
        )
