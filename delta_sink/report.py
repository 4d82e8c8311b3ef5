"""What a writer says of its work: figures of each read and commit, and how it stands.

Nothing here decides anything. Everything is called by the writer's state thread; `status` may be
read by any thread, since it is replaced whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from msgspec import Struct

from delta_sink import telemetry as declared
from delta_sink.append import EncodedBatch
from delta_sink.delta.commit import Log
from delta_sink.delta.state import LogState
from delta_sink.model import OffsetRange, Records, TopicPartition, runs_count
from delta_sink.part import Part
from delta_sink.pipeline import Sealed
from delta_sink.status import PartitionStatus, State, WorkerStatus
from delta_sink.traces import Trace

STATUS_PERIOD_MS = 1_000


class _Read(Struct, frozen=True):
    """One read of a partition that is not committed: `produced_ms` is its first record's time."""

    offset_next: int
    produced_ms: int
    at_ms: int


class Reporter:
    """Says what one writer does. The cost is a few operations for each read and each commit."""

    def __init__(self, log: Log, *, worker: str, table: str) -> None:
        self._telemetry = log.telemetry
        self._clock = log.clock
        self._last_commit_ms: int | None = None
        self._reads: dict[TopicPartition, deque[_Read]] = {}
        self.status = WorkerStatus(
            worker=worker,
            role="writer",
            state="starting",
            at_ms=log.clock.elapsed_ms(),
            since_ms=log.clock.wall_ms(),
            table=table,
        )

    def read(self, records: Records) -> None:
        """Count what was read of one partition and goes into the pipeline."""
        topic = records.tp.topic
        self._telemetry.count(declared.CONSUMED_RECORDS, len(records), topic=topic)
        self._telemetry.count(declared.CONSUMED_BYTES, records.size_bytes, topic=topic)
        if records.produced_first_ms is not None:
            reads = self._reads.setdefault(records.tp, deque())
            at_ms = self._clock.elapsed_ms()
            reads.append(_Read(records.offset_next, records.produced_first_ms, at_ms))

    def polled(self, records: Iterable[Records], took_ms: int) -> None:
        """Count one poll, if anything came of it: waiting for records is no work."""
        if any(len(some) for some in records):
            self._telemetry.observe(declared.STAGE_DURATION, took_ms / 1000, stage="poll")

    def dropped(self) -> None:
        """Forget what was read and is read again."""
        self._reads.clear()

    def committed(self, state: LogState, sealed: Sealed, encoded: EncodedBatch) -> None:
        """Say what a commit has made visible."""
        now_ms, wall_ms = self._clock.elapsed_ms(), self._clock.wall_ms()
        self._last_commit_ms = wall_ms
        dead_letters = skipped = 0
        for covered in encoded.ranges:
            topic = covered.tp.topic
            dead_letters += runs_count(covered.dead_letters)
            skipped += runs_count(covered.skipped)
            self._telemetry.count(declared.COMMITTED_RECORDS, covered.records, topic=topic)
            if covered.gone:
                gone = runs_count(covered.gone)
                self._telemetry.count(declared.OFFSET_GAP_RECORDS, gone, topic=topic)
        self._telemetry.count(declared.SKIPPED_RECORDS, skipped, reason="tombstone")
        freshness_ms: int | None = None
        if sealed.produced_first_ms is not None:
            freshness_ms = wall_ms - sealed.produced_first_ms
        for topic, produced_ms in self._taken(encoded.ranges).items():
            fresh_s = max(0, wall_ms - produced_ms) / 1000
            self._telemetry.observe(declared.FRESHNESS, fresh_s, topic=topic)
        self._telemetry.event(
            declared.TABLE_COMMITTED,
            version=state.version,
            rows=encoded.rows_count,
            files=len(encoded.files),
            bytes=encoded.size_bytes,
            partitions=len(encoded.ranges),
            dead_letters=dead_letters,
            skipped=skipped,
            freshness_ms=freshness_ms,
            duration_ms=now_ms - sealed.since_ms,
        )
        facts = {"rows": encoded.rows_count, "files": len(encoded.files)}
        facts |= {"bytes": encoded.size_bytes, "version": state.version}
        self._trace(sealed, now_ms, facts)

    def not_committed(self, sealed: Sealed | None, error: Exception) -> None:
        """Say that the commit of a batch, if it was one, came to nothing."""
        if sealed is not None:
            self._trace(sealed, self._clock.elapsed_ms(), {}, str(error))

    def _trace(
        self, sealed: Sealed, now_ms: int, facts: Mapping[str, int], error: str | None = None
    ) -> None:
        if self._telemetry.is_tracing:
            fields = {"commit_id": sealed.commit_id, **facts}
            spans = tuple(sealed.spans.found)
            batch = Trace(declared.BATCH_TRACE, sealed.since_ms, now_ms, spans, fields, error)
            self._telemetry.trace(batch)

    def _taken(self, ranges: Iterable[OffsetRange]) -> dict[str, int]:
        """Let go of the reads that `ranges` cover; return each topic's oldest timestamp in them."""
        oldest: dict[str, int] = {}
        for covered in ranges:
            reads = self._reads.get(covered.tp)
            while reads and reads[0].offset_next <= covered.offset_next:
                produced_ms = reads.popleft().produced_ms
                topic = covered.tp.topic
                oldest[topic] = min(produced_ms, oldest.get(topic, produced_ms))
        return oldest

    def renew(
        self,
        state: State,
        parts: Mapping[TopicPartition, Part],
        *,
        held_bytes: int,
        table_version: int | None,
    ) -> None:
        """Make the status anew, once in `STATUS_PERIOD_MS` or when the state is another."""
        now_ms, before = self._clock.elapsed_ms(), self.status
        if state == before.state and now_ms - before.at_ms < STATUS_PERIOD_MS:
            return
        for tp in [tp for tp in self._reads if tp not in parts]:
            del self._reads[tp]
        partitions = tuple(self._partition(tp, part) for tp, part in sorted(parts.items()))
        since_ms = min((reads[0].at_ms for reads in self._reads.values() if reads), default=now_ms)
        self.status = WorkerStatus(
            worker=before.worker,
            role=before.role,
            state=state,
            at_ms=now_ms,
            since_ms=before.since_ms,
            table=before.table,
            table_version=table_version,
            partitions=partitions,
            buffered_bytes=held_bytes,
            buffer_age_ms=now_ms - since_ms,
            last_commit_ms=self._last_commit_ms,
        )

    def _partition(self, tp: TopicPartition, part: Part) -> PartitionStatus:
        reads = self._reads.get(tp)
        return PartitionStatus(
            tp=tp,
            offset_committed=part.committed if part.start is not None else None,
            offset_next=part.offset_next,
            oldest_ms=reads[0].produced_ms if reads else None,
            halted=part.halted,
        )
