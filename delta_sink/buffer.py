"""What is waiting, and when it is due. Pure: time is an argument, nothing here starts anything.

Records arrive as *pieces* (consecutive records of one partition). Pieces are cut into *chunks*,
the unit of decoding; chunks are gathered into *batches*, the unit of commit. A batch covers
consecutive offsets of each of its partitions and goes into the log whole or not at all.

    poll → Intake (pieces → chunks) → decode → Gathering (chunks → batches) → upload → commit
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import pyarrow as pa
from msgspec import Struct

from delta_sink.decode import BadRecord, Decoded, PartOutcome
from delta_sink.model import (
    Header,
    OffsetRange,
    Records,
    Run,
    TopicPartition,
    runs_join,
    runs_of,
)

RUNS_MAX = 20_000
"""A batch that lists so many runs of offsets is due: its receipt must stay small."""

RECORD_OVERHEAD_BYTES = 24
"""What a record occupies beside its bytes: a newline, its length, its timestamp."""

KEY_OVERHEAD_BYTES = 48
HEADERS_OVERHEAD_BYTES = 300
"""What a key, and a record's headers, occupy beside their bytes where they are read at all: they
are objects of Python's."""

LETTER_OVERHEAD_BYTES = 1_000
"""What a dead letter occupies beside its value: objects, and two sentences."""

IDLE_FLUSH_MS = 60_000
"""After so long without a row, offsets that have nothing to ride along with go alone."""


class FlushPolicy(Struct, frozen=True):
    """When a batch is due: so long after its first record, or so large."""

    interval_ms: int
    rows_max: int
    bytes_max: int
    chunk_bytes: int


class Piece(Struct, frozen=True):
    """Records of one partition with the offset from which they continue.

    `offset_first` is where the piece before ended, so that pieces chain even where offsets have
    gaps. `gone` are offsets that Kafka no longer had and the operator chose to skip.
    """

    offset_first: int
    records: Records
    gone: tuple[Run, ...] = ()

    @property
    def held_bytes(self) -> int:
        """What the piece occupies: its bytes, and Python's objects around them."""
        records = self.records
        overhead_bytes = RECORD_OVERHEAD_BYTES * len(records)
        overhead_bytes += KEY_OVERHEAD_BYTES * len(records.keys)
        overhead_bytes += HEADERS_OVERHEAD_BYTES * len(records.headers)
        return records.size_bytes + overhead_bytes


class Chunk(Struct, frozen=True):
    """Pieces that are decoded together.

    `size_bytes` are the records' own, `held_bytes` what they occupy. `since_ms` is when the first
    record of its batch arrived. `ends_batch` says that what comes after belongs to the next one.
    """

    pieces: tuple[Piece, ...]
    size_bytes: int
    held_bytes: int
    since_ms: int
    ends_batch: bool


class Intake:
    """Records that no decode job has yet, and the size of the batch that they belong to."""

    def __init__(self, policy: FlushPolicy) -> None:
        self._policy = policy
        self._pieces: list[Piece] = []
        self._bytes = 0
        self._held_bytes = 0
        self._batch_since_ms: int | None = None
        self._batch_records = 0
        self._batch_bytes = 0
        self._batch_held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What the records that wait here occupy."""
        return self._held_bytes

    @property
    def batch_held_bytes(self) -> int:
        """What all records of the batch occupied when they came, those of earlier chunks too."""
        return self._batch_held_bytes

    @property
    def is_empty(self) -> bool:
        """Return whether nothing waits here and the batch has no chunk before it either."""
        return not self._pieces and self._batch_since_ms is None

    def add(self, piece: Piece, now_ms: int) -> None:
        """Take `piece`, which continues the last one of its partition."""
        held_bytes = piece.held_bytes
        self._pieces.append(piece)
        self._bytes += piece.records.size_bytes
        self._held_bytes += held_bytes
        self._batch_records += len(piece.records)
        self._batch_bytes += piece.records.size_bytes
        self._batch_held_bytes += held_bytes
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
        chunk = Chunk(
            tuple(self._pieces), self._bytes, self._held_bytes, self._batch_since_ms, ends_batch
        )
        self._pieces = []
        self._bytes = self._held_bytes = 0
        if ends_batch:
            self._batch_since_ms = None
            self._batch_records = self._batch_bytes = self._batch_held_bytes = 0
        return chunk

    def clear(self) -> None:
        """Forget everything."""
        self.__init__(self._policy)  # type: ignore[misc]  # a cleared intake is a new one


class Letter(Struct, frozen=True):
    """A bad record on its way to the dead letters: itself, and what is wrong with it."""

    tp: TopicPartition
    bad: BadRecord
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]


class DecodedChunk(Struct, frozen=True):
    """What is left of a chunk once it is decoded: rows, ranges of offsets, bad records.

    `ranges` has one for each piece, in order; the records themselves are let go. `size_bytes` were
    the records' own, `held_bytes` are what the outcome occupies.
    `produced_first_ms` is the oldest record's timestamp, None where none is known.
    """

    rows: pa.Table
    ranges: tuple[OffsetRange, ...]
    letters: tuple[Letter, ...]
    size_bytes: int
    held_bytes: int
    since_ms: int
    produced_first_ms: int | None
    ends_batch: bool

    @classmethod
    def of(cls, chunk: Chunk, decoded: Decoded) -> DecodedChunk:
        """Return the outcome of `chunk`, whose pieces `decoded.parts` matches one to one."""
        pairs = list(zip(chunk.pieces, decoded.parts, strict=True))
        stamps = [
            piece.records.produced_first_ms
            for piece in chunk.pieces
            if piece.records.produced_first_ms is not None
        ]
        letters = tuple(_letter(piece.records, bad) for piece, part in pairs for bad in part.bad)
        letters_bytes = sum(LETTER_OVERHEAD_BYTES + len(letter.value or b"") for letter in letters)
        return cls(
            rows=decoded.rows,
            ranges=tuple(_range_of(piece, part) for piece, part in pairs),
            letters=letters,
            size_bytes=chunk.size_bytes,
            held_bytes=int(decoded.rows.nbytes) + letters_bytes,
            since_ms=chunk.since_ms,
            produced_first_ms=min(stamps, default=None),
            ends_batch=chunk.ends_batch,
        )


def _range_of(piece: Piece, part: PartOutcome) -> OffsetRange:
    assert piece.records.tp == part.tp, (piece.records.tp, part.tp)
    return OffsetRange(
        tp=part.tp,
        offset_first=piece.offset_first,
        offset_next=piece.records.offset_next,
        records=len(piece.records),
        rows=part.rows,
        dead_letters=runs_of(bad.offset for bad in part.bad),
        skipped=part.skipped,
        gone=piece.gone,
    )


def _letter(records: Records, bad: BadRecord) -> Letter:
    return Letter(
        tp=records.tp,
        bad=bad,
        key=records.keys[bad.index] if records.keys else None,
        value=records.values[bad.index],
        headers=records.headers[bad.index] if records.headers else (),
    )


class Batch(Struct, frozen=True):
    """What one commit covers: rows, and for each partition one range of offsets."""

    tables: tuple[pa.Table, ...]
    ranges: tuple[OffsetRange, ...]
    letters: tuple[Letter, ...]
    held_bytes: int
    since_ms: int
    produced_first_ms: int | None

    @property
    def rows_count(self) -> int:
        """How many rows the batch has."""
        return sum(covered.rows for covered in self.ranges)


def batch_of(chunks: Sequence[DecodedChunk]) -> Batch:
    """Return consecutive chunks as one batch."""
    stamps = [c.produced_first_ms for c in chunks if c.produced_first_ms is not None]
    return Batch(
        tables=tuple(chunk.rows for chunk in chunks if chunk.rows.num_rows),
        ranges=ranges_joined(covered for chunk in chunks for covered in chunk.ranges),
        letters=tuple(letter for chunk in chunks for letter in chunk.letters),
        held_bytes=sum(chunk.held_bytes for chunk in chunks),
        since_ms=chunks[0].since_ms,
        produced_first_ms=min(stamps, default=None),
    )


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
        self._held_bytes = 0
        self._runs = 0
        self._ended = False

    @property
    def held_bytes(self) -> int:
        """What the outcomes that wait here occupy."""
        return self._held_bytes

    @property
    def is_empty(self) -> bool:
        """Return whether nothing waits here."""
        return not self._chunks

    @property
    def chunks_count(self) -> int:
        """How many chunks wait here."""
        return len(self._chunks)

    def add(self, chunk: DecodedChunk) -> None:
        """Take the next chunk, in the order in which chunks were cut."""
        self._chunks.append(chunk)
        self._rows += chunk.rows.num_rows
        self._bytes += chunk.size_bytes
        self._held_bytes += chunk.held_bytes
        self._runs += sum(len(part.dead_letters) + len(part.skipped) for part in chunk.ranges)
        self._ended = chunk.ends_batch

    def due_in_ms(self, now_ms: int) -> int | None:
        """Return in how many ms what waits must go even without a row; None: nothing waits."""
        if not self._chunks or not self._ended:
            return None
        if self._rows or self._runs >= RUNS_MAX or self._bytes >= self._policy.bytes_max:
            return 0
        return max(0, self._chunks[0].since_ms + IDLE_FLUSH_MS - now_ms)

    def take(self, now_ms: int, *, force: bool = False) -> Batch | None:
        """Return what waits as a batch if it is due (with `force`: in any case), else None."""
        if not force and self.due_in_ms(now_ms) != 0:
            return None
        if not self._chunks:
            return None
        batch = batch_of(self._chunks)
        self.clear()
        return batch

    def clear(self) -> None:
        """Forget everything."""
        self.__init__(self._policy)  # type: ignore[misc]  # a cleared gathering is a new one


def ranges_joined(pieces: Iterable[OffsetRange]) -> tuple[OffsetRange, ...]:
    """Return for each partition the one range that its `pieces`, in order, make up."""
    ranges: dict[TopicPartition, OffsetRange] = {}
    for piece in pieces:
        before = ranges.get(piece.tp)
        ranges[piece.tp] = piece if before is None else _joined(before, piece)
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

    def forget(self, chunks: int) -> None:
        """Count the last `chunks` chunks no longer: they were dropped and are read again."""
        for _ in range(min(chunks, len(self._seen))):
            records, bad = self._seen.pop()
            self._records -= records
            self._bad -= bad
