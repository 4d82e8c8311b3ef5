"""What is waiting, and when it is due. Pure: time is an argument, nothing here starts anything.

Records arrive as *pieces* (consecutive records of one partition). Pieces are cut into *chunks*,
the unit of decoding; chunks are gathered into *batches*, the unit of commit. A batch covers
consecutive offsets of each of its partitions and goes into the log whole or not at all.

    poll → Intake (pieces → chunks) → decode → Gathering (chunks → batches) → upload → commit
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from delta_sink.decode import Decoded
from delta_sink.model import OffsetRange, Records, Run, TopicPartition, runs_join, runs_of

RUNS_MAX = 20_000
"""A batch that lists so many runs of offsets is due: its receipt must stay small."""

IDLE_FLUSH_MS = 60_000
"""After so long without a row, offsets that have nothing to ride along with go alone."""


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When a batch is due: so long after its first record, or so large."""

    interval_ms: int
    rows_max: int
    bytes_max: int
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Records of one partition with the offset from which they continue.

    `offset_first` is where the piece before ended, so that pieces chain even where offsets have
    gaps. `gone` are offsets that Kafka no longer had and the operator chose to skip.
    """

    offset_first: int
    records: Records
    gone: tuple[Run, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pieces that are decoded together.

    `since_ms` is when the first record of its batch arrived. `ends_batch` says that what comes
    after belongs to the next batch.
    """

    pieces: tuple[Piece, ...]
    size_bytes: int
    since_ms: int
    ends_batch: bool


class Intake:
    """Records that no decode job has yet, and the size of the batch that they belong to."""

    def __init__(self, policy: FlushPolicy) -> None:
        self._policy = policy
        self._pieces: list[Piece] = []
        self._bytes = 0
        self._batch_since_ms: int | None = None
        self._batch_records = 0
        self._batch_bytes = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the records that wait here."""
        return self._bytes

    @property
    def is_empty(self) -> bool:
        """Return whether nothing waits here and the batch has no chunk before it either."""
        return not self._pieces and self._batch_since_ms is None

    def add(self, piece: Piece, now_ms: int) -> None:
        """Take `piece`, which continues the last one of its partition."""
        self._pieces.append(piece)
        self._bytes += piece.records.size_bytes
        self._batch_records += len(piece.records)
        self._batch_bytes += piece.records.size_bytes
        if self._batch_since_ms is None:
            self._batch_since_ms = now_ms

    def due_in_ms(self, now_ms: int) -> int | None:
        """Return in how many ms the batch is due (0: now), or None while there is none."""
        if self._batch_since_ms is None:
            return None
        if (
            self._batch_records >= self._policy.rows_max
            or self._batch_bytes >= self._policy.bytes_max
        ):
            return 0
        return max(0, self._batch_since_ms + self._policy.interval_ms - now_ms)

    def cut(self, *, ends_batch: bool) -> Chunk | None:
        """Return what waits as a chunk, or None if there is too little to decode yet.

        With `ends_batch` all of it is cut, however little; the chunk may even be empty, as the
        mark behind chunks that were cut before. Without it only a full chunk is.
        """
        if ends_batch:
            if self._batch_since_ms is None:
                return None
        elif self._bytes < self._policy.chunk_bytes:
            return None
        assert self._batch_since_ms is not None
        chunk = Chunk(tuple(self._pieces), self._bytes, self._batch_since_ms, ends_batch)
        self._pieces = []
        self._bytes = 0
        if ends_batch:
            self._batch_since_ms = None
            self._batch_records = 0
            self._batch_bytes = 0
        return chunk

    def clear(self) -> None:
        """Forget everything."""
        self.__init__(self._policy)  # type: ignore[misc]  # a cleared intake is a new one


@dataclass(frozen=True, slots=True)
class DecodedChunk:
    """A chunk with its rows and outcomes; `decoded.parts` matches `chunk.pieces`."""

    chunk: Chunk
    decoded: Decoded


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit covers: rows, and for each partition one range of offsets."""

    chunks: tuple[DecodedChunk, ...]
    ranges: tuple[OffsetRange, ...]
    size_bytes: int
    since_ms: int

    @property
    def tables(self) -> list[pa.Table]:
        """The rows, in the order in which their records were read."""
        return [chunk.decoded.rows for chunk in self.chunks if chunk.decoded.rows.num_rows]

    @property
    def rows_count(self) -> int:
        """How many rows the batch has."""
        return sum(covered.rows for covered in self.ranges)

    @property
    def produced_first_ms(self) -> int | None:
        """When the oldest record was produced, by its timestamp; None where none is known."""
        stamps = [
            piece.records.timestamps_ms[0]
            for chunk in self.chunks
            for piece in chunk.chunk.pieces
            if len(piece.records.timestamps_ms) and piece.records.timestamps_ms[0] >= 0
        ]
        return min(stamps, default=None)


class Gathering:
    """Decoded chunks that no batch has taken yet, in order.

    A batch without a single row is not worth a commit: its offsets wait here for the next one,
    until they have waited an idle minute or their lists grow long.
    """

    def __init__(self, policy: FlushPolicy) -> None:
        self._policy = policy
        self._chunks: deque[DecodedChunk] = deque()
        self._rows = 0
        self._bytes = 0
        self._runs = 0
        self._ended = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the records whose outcome waits here."""
        return self._bytes

    @property
    def is_empty(self) -> bool:
        """Return whether nothing waits here."""
        return not self._chunks

    def add(self, chunk: DecodedChunk) -> None:
        """Take the next chunk, in the order in which chunks were cut."""
        assert len(chunk.chunk.pieces) == len(chunk.decoded.parts), "one outcome for each piece"
        self._chunks.append(chunk)
        self._rows += chunk.decoded.rows.num_rows
        self._bytes += chunk.chunk.size_bytes
        self._runs += sum(len(part.bad) + len(part.skipped) for part in chunk.decoded.parts)
        self._ended = chunk.chunk.ends_batch

    def due_in_ms(self, now_ms: int) -> int | None:
        """Return in how many ms what waits must go even without a row; None: nothing waits."""
        if not self._chunks or not self._ended:
            return None
        if self._rows or self._runs >= RUNS_MAX or self._bytes >= self._policy.bytes_max:
            return 0
        return max(0, self._chunks[0].chunk.since_ms + IDLE_FLUSH_MS - now_ms)

    def take(self, now_ms: int, *, force: bool = False) -> Batch | None:
        """Return what waits as a batch if it is due (with `force`: in any case), else None."""
        if not force and self.due_in_ms(now_ms) != 0:
            return None
        if not self._chunks:
            return None
        chunks = tuple(self._chunks)
        batch = Batch(chunks, ranges_of(chunks), self._bytes, chunks[0].chunk.since_ms)
        self.clear()
        return batch

    def clear(self) -> None:
        """Forget everything."""
        self.__init__(self._policy)  # type: ignore[misc]  # a cleared gathering is a new one


def ranges_of(chunks: Sequence[DecodedChunk]) -> tuple[OffsetRange, ...]:
    """Return for each partition of `chunks` the one range that its pieces make up, by partition."""
    ranges: dict[TopicPartition, OffsetRange] = {}
    for chunk in chunks:
        for piece, part in zip(chunk.chunk.pieces, chunk.decoded.parts, strict=True):
            assert piece.records.tp == part.tp, (piece.records.tp, part.tp)
            covered = OffsetRange(
                tp=part.tp,
                offset_first=piece.offset_first,
                offset_next=piece.records.offset_next,
                records=len(piece.records),
                rows=part.rows,
                dead_letters=runs_of(bad.offset for bad in part.bad),
                skipped=part.skipped,
                gone=piece.gone,
            )
            before = ranges.get(part.tp)
            ranges[part.tp] = covered if before is None else _joined(before, covered)
    return tuple(ranges[tp] for tp in sorted(ranges))


def _joined(left: OffsetRange, right: OffsetRange) -> OffsetRange:
    assert left.offset_next == right.offset_first, (left, right)
    return OffsetRange(
        tp=left.tp,
        offset_first=left.offset_first,
        offset_next=right.offset_next,
        records=left.records + right.records,
        rows=left.rows + right.rows,
        dead_letters=runs_join(left.dead_letters, right.dead_letters),
        skipped=runs_join(left.skipped, right.skipped),
        gone=runs_join(left.gone, right.gone),
    )


class BadRecordRatio:
    """How many of the last records were bad, over a sliding window of chunks."""

    def __init__(self, *, ratio_max: float, window_records: int, records_min: int = 1_000) -> None:
        self._ratio_max = ratio_max
        self._window_records = window_records
        self._records_min = records_min
        self._seen: deque[tuple[int, int]] = deque()
        self._records = 0
        self._bad = 0

    def add(self, *, records: int, bad: int) -> float | None:
        """Count a chunk; return the ratio if it is above the limit, else None."""
        self._seen.append((records, bad))
        self._records += records
        self._bad += bad
        while self._seen and self._records - self._seen[0][0] >= self._window_records:
            old_records, old_bad = self._seen.popleft()
            self._records -= old_records
            self._bad -= old_bad
        if self._records < self._records_min:
            return None
        ratio = self._bad / self._records
        return ratio if ratio > self._ratio_max else None
