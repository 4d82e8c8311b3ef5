"""The pipeline of a writer: records in, stored batches out, in order.

    Intake ─ decode jobs ─ Gathering ─ encode job ─ put jobs ─▶ head()

Decode and put jobs run side by side; their results are taken in the order in which the records
were read, so that each batch continues the one before. Nothing here knows of the log or of Kafka:
the writer decides what goes in, when to throw everything away, and what is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import Struct, field

from delta_sink.append import DeadLetterTarget, EncodedBatch, encode_batch, store_files
from delta_sink.buffer import (
    BadRecordRatio,
    Batch,
    Chunk,
    DecodedChunk,
    FlushPolicy,
    Gathering,
    Intake,
    Piece,
)
from delta_sink.decode import BadRecord, Decoded
from delta_sink.delta.commit import Log
from delta_sink.delta.parquet import DataFile
from delta_sink.errors import FatalError
from delta_sink.memory import MemoryBudget
from delta_sink.model import OffsetRange
from delta_sink.ports import Job, Jobs
from delta_sink.settings import Settings
from delta_sink.traces import Spans
from delta_sink.view import TableView

DECODES_MAX = 3
"""Chunks being decoded at a time: enough for the cores that a writer is given."""

SEALED_MAX = 2
"""Batches beyond the gathering: while one commits, the next is encoded and stored."""

PUT_JOBS_MAX = 4

OVERFULL = 1.25
"""So many times its budget may be held before reading stops altogether."""


class Sealed(Struct):
    """A batch on its way into the log. Its rows are let go once its files are encoded."""

    commit_id: str
    since_ms: int
    produced_first_ms: int | None
    held_bytes: int
    chunks_count: int
    encoding: Job[EncodedBatch]
    spans: Spans = field(default_factory=Spans)
    encoded: EncodedBatch | None = None
    puts: list[Job[None]] = field(default_factory=list)

    @property
    def occupies_bytes(self) -> int:
        """What it holds now: its rows, and once these are encoded its files."""
        return self.held_bytes if self.encoded is None else self.encoded.size_bytes

    @property
    def is_stored(self) -> bool:
        """Whether all its files are durable, so that it may be committed."""
        return self.encoded is not None and not self.puts


class BadRecords(FatalError):
    """Records are bad and the operator's policy is to stop. What came before them may go on."""


class Pipeline:
    """What a writer holds between poll and commit. Only the state thread touches it."""

    def __init__(
        self,
        settings: Settings,
        log: Log,
        jobs: Jobs,
        budget: MemoryBudget,
        dead_letters: DeadLetterTarget | None,
        confirming: Callable[[Sequence[OffsetRange]], Callable[[], None]],
    ) -> None:
        """Begin empty.

        `confirming` is given the ranges of a batch once it is whole, and returns what a job calls
        before it encodes them: it raises if they may not be committed.
        """
        self._settings = settings
        self._log = log
        self._jobs = jobs
        self._dead_letters = dead_letters
        self._confirming = confirming
        self._pipeline_bytes = budget.pipeline_bytes
        self._batch_bytes = budget.batch_bytes
        flush = settings.flush
        policy = FlushPolicy(flush.interval_ms, flush.rows_max, flush.bytes_max, budget.chunk_bytes)
        self._intake = Intake(policy)
        self._decoding: deque[tuple[Chunk, Job[Decoded], Spans]] = deque()
        self._gathering = Gathering(policy)
        self._sealed: deque[Sealed] = deque()
        self._spans = self._no_spans()  # of the batch that is gathered
        self._cut_ms = 0
        self._ratio = BadRecordRatio(
            ratio_max=settings.errors.ratio_max,
            window_records=settings.errors.ratio_window_records,
        )

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as the memory budget allows."""
        return self.held_bytes >= self._pipeline_bytes

    @property
    def room_bytes(self) -> int:
        """How much it may still take before it is full."""
        return max(0, self._pipeline_bytes - self.held_bytes)

    @property
    def is_overfull(self) -> bool:
        """Whether it holds so much more than it should that nothing at all may be added."""
        return self.held_bytes >= self._pipeline_bytes * OVERFULL

    @property
    def has_room(self) -> bool:
        """Whether it has come down so far that reading again is worth a new fetch."""
        return self.held_bytes <= self._pipeline_bytes // 2

    @property
    def held_bytes(self) -> int:
        """What is occupied between poll and store: records, rows and files."""
        held = self._intake.held_bytes + self._gathering.held_bytes
        for chunk, _, _ in self._decoding:
            held += chunk.held_bytes
        for sealed in self._sealed:
            held += sealed.occupies_bytes
        return held

    @property
    def oldest_produced_ms(self) -> int | None:
        """The Kafka timestamp of the oldest record that is encoded and not committed, or None."""
        return self._sealed[0].produced_first_ms if self._sealed else None

    @property
    def has_jobs(self) -> bool:
        """Whether something is being decoded, encoded or stored, or waits for its commit."""
        return bool(self._decoding or self._sealed)

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all is in it."""
        return not self.has_jobs and self._intake.is_empty and self._gathering.is_empty

    def due_in_ms(self, now_ms: int) -> int | None:
        """Return in how many ms something becomes due (0: now), or None."""
        due = [self._intake.due_in_ms(now_ms), self._gathering.due_in_ms(now_ms)]
        return min((ms for ms in due if ms is not None), default=None)

    def add(self, piece: Piece, now_ms: int) -> None:
        """Take `piece`, which continues the last one of its partition."""
        self._intake.add(piece, now_ms)

    def clear(self) -> None:
        """Forget everything. Jobs that are out run on; their results are not taken."""
        # What is dropped is read again: its bad records must not be counted twice.
        sealed_count = sum(sealed.chunks_count for sealed in self._sealed)
        self._ratio.forget(sealed_count + self._gathering.chunks_count)
        self._intake.clear()
        self._decoding.clear()
        self._gathering.clear()
        self._sealed.clear()
        self._spans = self._no_spans()

    def head(self) -> Sealed | None:
        """Return the batch that is to be committed next, if its files are stored."""
        return self._sealed[0] if self._sealed and self._sealed[0].is_stored else None

    def committed(self, sealed: Sealed) -> None:
        """Let go of the head; of one that was thrown away before, nothing is known."""
        if self._sealed and self._sealed[0] is sealed:
            self._sealed.popleft()

    def advance(self, view: TableView, *, tag: int, flush: bool) -> None:
        """Take what jobs have done, and start those that can start.

        `tag` is the log version known now. With `flush` nothing waits for more.

        Raises:
            BadRecords: by policy the worker stops; everything read after them is forgotten.
            FencedError: what was read may not be committed. Clear and ask the log where to go on.
            RetriableError: dead letters or files did not get through. Clear and read again.
            FatalError: as brokers and store say.
        """
        if self.is_empty:
            return
        self._take_decoded()
        self._take_encoded()
        moving = self._batches_moving()
        # Nothing more comes in while it is full: what is in must go, due or not.
        flush = flush or (self.is_full and not moving)
        # A batch that took all the room would keep the next one out until its files are there. But
        # where the log is the slowest part, what waits for it may as well be one large batch.
        has_share = self._intake.batch_held_bytes >= self._batch_bytes and moving < SEALED_MAX
        self._start_decodes(view, ends_batch=flush or has_share)
        self._start_encode(view, tag=tag, flush=flush)

    def _batches_moving(self) -> int:
        """Return how many batches are on their way into the log, so that they will make room.

        One without rows, which waits for company, is not: that may take it a minute.
        """
        ends = sum(chunk.ends_batch for chunk, _, _ in self._decoding)
        return len(self._sealed) + ends + self._is_gathered

    @property
    def _is_gathered(self) -> bool:
        """Whether a batch is whole and due."""
        return self._gathering.due_in_ms(self._log.clock.elapsed_ms()) == 0

    def _take_decoded(self) -> None:
        """Gather what is decoded, up to the end of a batch: what follows is of the next one."""
        while self._decoding and self._decoding[0][1].is_done() and not self._is_gathered:
            chunk, job, spans = self._decoding.popleft()
            decoded = job.result()
            try:
                self._accept(decoded)
            except BadRecords:
                self._intake.clear()
                self._decoding.clear()
                raise
            self._log.telemetry.count("delta_sink_unknown_fields_total", decoded.unknown_fields)
            self._gathering.add(DecodedChunk.of(chunk, decoded))
            self._spans.join(spans)

    def _accept(self, decoded: Decoded) -> None:
        """Return if the bad records among `decoded` may go to the dead letters."""
        errors = self._settings.errors
        # Tombstones are there by the operator's own policy: they say nothing about the topic.
        bad = [b for part in decoded.parts for b in part.bad if b.reason != "tombstone"]
        if bad and errors.tolerance == "none":
            raise BadRecords(
                f"{bad[0].redacted}; nothing from it on was committed: mend what produces it, or "
                f"set errors.tolerance: all and errors.dead_letter_topic"
            )
        for record in bad:
            self._log.telemetry.count(
                "delta_sink_dead_letters_total", stage="decode", reason=record.reason
            )
        self._watch_ratio(decoded, bad)

    def _watch_ratio(self, decoded: Decoded, bad: Sequence[BadRecord]) -> None:
        records = sum(part.rows + len(part.bad) for part in decoded.parts)
        ratio = self._ratio.add(records=records, bad=len(bad))
        if ratio is not None:
            latest = f"; the latest: {bad[-1].redacted}" if bad else ""
            raise BadRecords(
                f"{ratio:.1%} of the last records are bad, errors.ratio_max is "
                f"{self._settings.errors.ratio_max:.1%}: the topic does not fit the table{latest}"
            )

    def _take_encoded(self) -> None:
        for sealed in self._sealed:
            if sealed.encoded is None and sealed.encoding.is_done():
                sealed.encoded = sealed.encoding.result()
                sealed.puts = self._start_puts(sealed.encoded, sealed.spans)
            if sealed.puts and all(job.is_done() for job in sealed.puts):
                for job in sealed.puts:
                    job.result()
                sealed.puts = []

    def _start_puts(self, encoded: EncodedBatch, spans: Spans) -> list[Job[None]]:
        log = self._log

        def put(files: Sequence[DataFile]) -> Callable[[], None]:
            store = partial(store_files, files, log.store, log.clock, log.entropy)
            return spans.timed("upload", store)

        groups = [encoded.files[index::PUT_JOBS_MAX] for index in range(PUT_JOBS_MAX)]
        return [self._jobs.submit("put", put(group)) for group in groups if group]

    def _start_decodes(self, view: TableView, *, ends_batch: bool) -> None:
        now_ms = self._log.clock.elapsed_ms()
        while len(self._decoding) < DECODES_MAX:
            chunk = self._intake.cut(ends_batch=ends_batch or self._intake.due_in_ms(now_ms) == 0)
            if chunk is None:
                return
            spans = self._no_spans()
            spans.add("poll", max(chunk.since_ms, self._cut_ms))
            self._cut_ms = now_ms
            self._decoding.append((chunk, self._submit_decode(view, chunk, spans), spans))

    def _submit_decode(self, view: TableView, chunk: Chunk, spans: Spans) -> Job[Decoded]:
        records = [piece.records for piece in chunk.pieces]
        decode = spans.timed("decode", lambda: view.decoder.decode(records))
        return self._jobs.submit("decode", decode)

    def _no_spans(self) -> Spans:
        """Return spans to begin with; where nobody wants traces nothing is ever in them."""
        log = self._log
        return Spans(log.clock.elapsed_ms if log.telemetry.is_tracing else None)

    def _start_encode(self, view: TableView, *, tag: int, flush: bool) -> None:
        if len(self._sealed) >= SEALED_MAX:
            return
        nothing_before = self._intake.is_empty and not self._decoding
        chunks_count = self._gathering.chunks_count
        batch = self._gathering.take(self._log.clock.elapsed_ms(), force=flush and nothing_before)
        if batch is None:
            return
        commit_id = self._log.entropy.unique_id()
        spans, self._spans = self._spans, self._no_spans()
        self._sealed.append(
            Sealed(
                commit_id,
                batch.since_ms,
                batch.produced_first_ms,
                batch.held_bytes,
                chunks_count,
                self._submit_encode(view, batch, commit_id, tag, spans),
                spans,
            )
        )

    def _submit_encode(
        self, view: TableView, batch: Batch, commit_id: str, tag: int, spans: Spans
    ) -> Job[EncodedBatch]:
        log, target, sink = self._log, self._dead_letters, self._settings.name
        confirm = self._confirming(batch.ranges)

        def encode() -> EncodedBatch:
            confirm()
            return encode_batch(
                batch,
                view.layout,
                sink=sink,
                commit_id=commit_id,
                tag=tag,
                entropy=log.entropy,
                clock=log.clock,
                dead_letters=target,
            )

        return self._jobs.submit("encode", spans.timed("encode", encode))
