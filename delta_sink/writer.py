"""The writer: Kafka partitions to Delta append commits, exactly once.

Theory of operation
-------------------
One thread owns all state here. It polls, takes finished jobs, decides what is due and starts jobs;
it never waits for one. A job is a function of the values that it is given.

    poll ─▶ Pipeline (decode, encode, put: many jobs side by side, order kept) ─▶ commit
                                                                   (one at a time, in order)

Each assigned partition (`Part`) is *live* or not. A live part has two offsets: `committed`, what
its `txn` in the log is known to be, and `offset_next`, where the next piece continues. Everything
between them is in the pipeline, in order, each piece continuing the one before. A part that is not
live delivers nothing and has nothing in the pipeline.

The *log lane* holds at most one job that has the `LogState`: a settle (where do parts start), a
commit, or a patrol (is anything new in the log). The state moves only with its result.

After every such result the log is compared with the parts. If a live part's `txn` is not its
`committed`, somebody else moved it: the pipeline is dropped and every part settled anew. The same
happens when partitions with work in the pipeline are taken away, when Kafka loses an offset and
when a job fails: dropping is always right, because nothing that was not committed counts, and the
log says where to go on. A commit that is under way when the pipeline is dropped may still land;
its compare-and-set decides.

Who may change what: `_parts` and the pipeline change in the state thread only; `txn`s change only
through `delta.commit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct, field

from delta_sink import __version__
from delta_sink.append import DeadLetterTarget, plan_append
from delta_sink.buffer import Piece
from delta_sink.claim import Settled, Source, settle
from delta_sink.company import Company
from delta_sink.delta.commit import commit, follow
from delta_sink.delta.plan import SameTable, rival_sentence
from delta_sink.delta.receipt import RETIRED
from delta_sink.delta.state import LogState
from delta_sink.delta.table import Author
from delta_sink.errors import (
    BrokerUnavailable,
    CommitConflict,
    FatalError,
    FencedError,
    RetriableError,
    SourceRefused,
)
from delta_sink.memory import MemoryBudget, PollPace
from delta_sink.model import AppId, OffsetRange, Records, TopicPartition
from delta_sink.part import Part
from delta_sink.pipeline import BadRecords, Pipeline, Sealed
from delta_sink.ports import (
    Assigned,
    Consumer,
    ConsumerEvent,
    Job,
    Jobs,
    OffsetGone,
    Revoked,
    Waiting,
)
from delta_sink.report import Reporter
from delta_sink.status import State, WorkerStatus
from delta_sink.trouble import Trouble
from delta_sink.view import TableView, view_of

POLL_IDLE_MS = 200
POLL_FULL_MS = 10
POLL_BUSY_MS = 2
"""While jobs are out, polls are short, so that a finished job waits little."""

PATROL_MS = 60_000
PATROL_UNTIL_END_MS = 1_000
FENCES_BEFORE_REJOIN = 2
SILENCE_MAX_MS = 600_000
"""A worker that could neither settle nor commit for so long stops, to be started elsewhere."""


class Lane(Struct):
    """The one job that has the log state, and what to do with its result."""

    name: str
    job: Job[object]
    sealed: Sealed | None = None
    parts: dict[TopicPartition, Part] = field(default_factory=dict)


class Patrolled(Struct, frozen=True):
    """What a patrol saw: the log's head, and what partitions are called now."""

    state: LogState
    app_ids: dict[TopicPartition, AppId]


class Writer:
    """One writer worker. `run` returns after `request_stop` or, with `until_end`, at the end."""

    def __init__(
        self,
        source: Source,
        consumer: Consumer,
        jobs: Jobs,
        *,
        budget: MemoryBudget,
        dead_letters: DeadLetterTarget | None = None,
        until_end: bool = False,
        company: Company | None = None,
    ) -> None:
        self._company = company
        self._source = source
        self._settings = source.settings
        self._consumer = consumer
        self._jobs = jobs
        self._until_end = until_end
        self._log = source.log
        self._clock = source.log.clock
        self._telemetry = source.log.telemetry
        self._pipeline = Pipeline(
            source.settings, source.log, jobs, budget, dead_letters, self._confirming
        )
        fresh_id = source.log.entropy.unique_id()[:12]
        self._worker_id = fresh_id if company is None else company.worker
        uri = source.settings.table.uri
        self._reporter = Reporter(source.log, worker=self._worker_id, table=uri)
        self._generation = 0
        self._parts: dict[TopicPartition, Part] = {}
        self._state: LogState | None = None
        self._view: TableView | None = None
        self._ends: dict[AppId, int] | None = None
        self._lane: Lane | None = None
        self._fences = 0
        # A settling that works says nothing of data files that do not get through, nor of
        # commits: each has a count of its own, and only a commit ends both.
        self._settling = Trouble()
        self._committing = Trouble()
        self._patrolled_ms = 0
        self._is_held = False
        self._pace = PollPace(source.settings.value.record_bytes_max)
        self._stop_asked = False
        self._stop_deadline_ms: int | None = None
        self._failure: FatalError | None = None

    # --- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Return once the worker has stopped cleanly.

        Raises:
            FatalError: a person must act; the sentence says what to do.
        """
        self._telemetry.event(
            "worker_started",
            role="writer",
            worker=self._worker_id,
            build=__version__,
            table=self._settings.table.uri,
            topics=list(self._settings.source.topics or ()) or self._settings.source.topics_regex,
            group=self._settings.name,
        )
        try:
            while not self._is_finished():
                self.step()
        finally:
            self._consumer.close()
            if self._company is not None:
                self._company.leave()
        halted = [part.halted for _, part in sorted(self._parts.items()) if part.halted]
        if self._failure is not None:
            raise self._failure
        if halted:
            raise SourceRefused("; ".join(halted))
        self._telemetry.event(
            "worker_stopped",
            role="writer",
            worker=self._worker_id,
            reason="end reached" if self._until_end and self._has_all() else "asked to stop",
        )

    def request_stop(self) -> None:
        """Finish what is in flight within the grace period; asked again, drop it at once.

        May be called from a signal handler: it only sets a flag.
        """
        if self._stop_asked:
            self._stop_deadline_ms = 0
        self._stop_asked = True

    def step(self) -> None:
        """Poll once and do all that can be done now."""
        if self._company is not None:
            self._company.advance(self._jobs, self._state, self._pipeline.oldest_produced_ms)
        self._hold_or_go_on()
        arguments = self._poll_arguments()
        begun_ms = self._clock.elapsed_ms()
        polled = self._consumer.poll(*arguments)
        now_ms = self._clock.elapsed_ms()
        self._reporter.polled(polled.records, now_ms - begun_ms)
        for event in polled.events:
            self._on_event(event)
        self._pace.note(polled.records)
        for records in polled.records:
            self._admit(records, now_ms)
        self._take_lane()
        self._stop_if_asked()
        self._advance()
        self._reporter.renew(
            self._standing(),
            self._parts,
            held_bytes=self._pipeline.held_bytes,
            table_version=None if self._state is None else self._state.version,
        )

    @property
    def status(self) -> WorkerStatus:
        """How the worker stands, at most a second or one step old. Any thread may ask."""
        return self._reporter.status

    def _standing(self) -> State:
        if self._stop_asked:
            return "stopping"
        return "working" if self._parts else "standing_by"

    def _poll_arguments(self) -> tuple[int, int]:
        """Return how many records to take and how long to wait for them."""
        if self._pipeline.is_full:
            # One record a poll keeps the membership and grows little; a pause would throw away
            # what librdkafka has fetched already.
            self._jobs.wait_ms(POLL_FULL_MS)
            return 1, 0
        records_max = self._pace.records_max(self._pipeline.room_bytes)
        if self._lane is not None or self._pipeline.has_jobs:
            return records_max, POLL_BUSY_MS
        now_ms = self._clock.elapsed_ms()
        wait_ms = POLL_IDLE_MS
        due_in_ms = self._pipeline.due_in_ms(now_ms)
        if due_in_ms is not None:
            wait_ms = min(wait_ms, due_in_ms)
        if self._retry_at_ms() > now_ms:
            wait_ms = min(wait_ms, self._retry_at_ms() - now_ms)
        return records_max, wait_ms

    @property
    def _is_paused(self) -> bool:
        return self._company is not None and self._company.is_paused

    def _hold_or_go_on(self) -> None:
        """Stop reading where even one record a poll has become too much: the store is away.

        The same while the table's writers are paused; what was read until then is committed.
        """
        if self._is_paused:
            if not self._is_held:
                self._is_held = True
                self._consumer.stop(list(self._parts))
            return
        if self._is_held and not self._stop_asked and self._pipeline.has_room:
            self._is_held = False
            live = {tp: part.reads_at for tp, part in self._parts.items() if part.is_live}
            self._consumer.start(live)
        elif not self._is_held and self._pipeline.is_overfull:
            self._is_held = True
            self._consumer.stop(list(self._parts))

    # --- what the group says -------------------------------------------------------------------

    def _on_event(self, event: ConsumerEvent) -> None:
        match event:
            case Assigned():
                self._generation += 1
                self._fences = 0
                if any(tp in self._parts for tp in event.partitions):
                    self._drop("partitions were assigned again")
                self._parts.update({tp: Part() for tp in event.partitions})
                self._rebalanced("partitions_assigned", event.partitions)
            case Revoked():
                self._fences = 0
                lost = [self._parts.pop(tp) for tp in event.partitions if tp in self._parts]
                reason = "lost" if event.lost else "revoked"
                self._rebalanced("partitions_revoked", event.partitions, reason=reason)
                if any(part.is_live and part.committed != part.offset_next for part in lost):
                    self._drop("partitions were taken away")
            case OffsetGone():
                self._telemetry.event(
                    "offset_gone",
                    "warning",
                    topic=event.tp.topic,
                    partition=event.tp.partition,
                    offset_expected=event.offset,
                )
                self._drop("an offset is no longer in Kafka")
            case Waiting():
                self._telemetry.event("waiting", "warning", reason=event.reason)

    def _rebalanced(
        self, name: str, partitions: Iterable[TopicPartition], **fields: object
    ) -> None:
        self._telemetry.count("delta_sink_rebalances_total")
        named = [str(tp) for tp in sorted(partitions)]
        self._telemetry.event(name, "info", partitions=named, **fields)

    def _admit(self, records: Records, now_ms: int) -> None:
        """Put polled records behind what the pipeline has of their partition."""
        part = self._parts.get(records.tp)
        if part is None or not part.is_live or records.offset_next == part.offset_next:
            return
        if self._stop_asked:
            # What this would continue may be gone: bad records take along what is behind them.
            return
        first = records.offsets[0] if len(records) else records.offset_next
        assert first >= part.offset_next, f"{records.tp}@{first}: read back of {part.offset_next}"
        self._pipeline.add(Piece(part.offset_next, records, part.gone), now_ms)
        part.offset_next = records.offset_next
        part.gone = ()
        self._reporter.read(records)

    def _drop(self, reason: str) -> None:
        """Let go of everything that is not committed; every part is settled anew.

        A commit under way goes on: it stays in the lane, and its outcome is taken as it comes.
        """
        self._pipeline.clear()
        self._reporter.dropped()
        self._is_held = False
        for part in self._parts.values():
            part.is_live = False
        self._consumer.stop(list(self._parts))
        self._telemetry.event("resynced", reason=reason)

    # --- the log lane --------------------------------------------------------------------------

    def _take_lane(self) -> None:
        """Take the result of the job that has the log state, if it is done."""
        lane = self._lane
        if lane is None or not lane.job.is_done():
            return
        self._lane = None
        try:
            result = lane.job.result()
        except FencedError as error:
            self._reporter.not_committed(lane.sealed, error)
            self._on_fenced(error)
            return
        except RetriableError as error:
            # Nothing is known now: drop the batch, wait a little, do as the log says. A settling
            # or a patrol is only asked again.
            if lane.sealed is None:
                self._back_off(self._settling, error)
            else:
                self._reporter.not_committed(lane.sealed, error)
                self._back_off(self._committing, error)
                self._drop("a commit was not answered")
            return
        self._settling.is_over()
        match result:
            case Settled():
                self._on_settled(result, lane.parts)
            case Patrolled():
                self._on_patrolled(result)
            case LogState():
                assert lane.sealed is not None
                self._on_committed(result, lane.sealed)
        self._compare_with_log()

    def _on_fenced(self, error: FencedError) -> None:
        self._fences += not isinstance(error, CommitConflict)
        self._telemetry.count("delta_sink_commit_attempts_total", outcome="fenced")
        self._telemetry.event("fenced", "warning", reason=str(error))
        self._drop("fenced")
        if self._fences >= FENCES_BEFORE_REJOIN and not self._stop_asked:
            # Somebody else reads our partitions and the group has not told us: a fenced member of
            # the new protocol keeps fetching for ever (KIP-848). A conflict shows no such rival.
            self._telemetry.event("rejoined", "warning", reason=str(error))
            self._consumer.rejoin()
            self._parts.clear()
            self._fences = 0

    def _back_off(self, trouble: Trouble, error: RetriableError) -> None:
        """Wait longer with each failure in a row; say why once; stop after too long."""
        now_ms = self._clock.elapsed_ms()
        if trouble.failed(str(error), now_ms):
            self._telemetry.event("waiting", "warning", reason=str(error))
        # Brokers are waited for without end; a store that is gone may look better elsewhere.
        lasted_ms = trouble.lasted_ms(now_ms)
        if lasted_ms >= SILENCE_MAX_MS and not isinstance(error, BrokerUnavailable):
            raise FatalError(f"no progress for {lasted_ms // 1000} s, the last reason: {error}")

    def _retry_at_ms(self) -> int:
        return max(self._settling.retry_at_ms, self._committing.retry_at_ms)

    def _on_settled(self, settled: Settled, asked: dict[TopicPartition, Part]) -> None:
        if self._state is None:
            self._telemetry.event(
                "table_opened", table=self._settings.table.uri, version=settled.state.version
            )
        self._state = settled.state
        self._patrolled_ms = self._clock.elapsed_ms()
        if self._view is None or self._view.same != SameTable.of(settled.state):
            self._view = view_of(self._settings, settled.state)
        if settled.ends is not None:
            self._ends = dict(settled.ends)
        offsets: dict[TopicPartition, int] = {}
        for tp, part in asked.items():
            if self._parts.get(tp) is not part or part.is_live:
                continue
            sentence = settled.halted.get(tp)
            if sentence is not None:
                self._halt(tp, part, sentence)
                continue
            start = settled.starts[tp]
            part.start = start
            part.is_live = True
            part.committed = part.offset_next = start.offset_next
            part.gone = start.gone
            offsets[tp] = start.read_from
            if start.gone:
                # There may be no record behind the gap that could take it along.
                self._admit(Records(tp, start.read_from, (), ()), self._clock.elapsed_ms())
        if offsets and not self._stop_asked:
            if not self._is_held:
                self._consumer.start(offsets)
            self._consumer.commit({tp: self._parts[tp].committed for tp in offsets})

    def _halt(self, tp: TopicPartition, part: Part, sentence: str) -> None:
        part.halted = sentence
        self._telemetry.event(
            "partition_halted", "error", topic=tp.topic, partition=tp.partition, error=sentence
        )
        if all(part.halted for part in self._parts.values()) and not self._until_end:
            self._stop_asked = True

    def _on_patrolled(self, patrolled: Patrolled) -> None:
        self._state = patrolled.state
        self._patrolled_ms = self._clock.elapsed_ms()
        for tp, part in self._parts.items():
            found = patrolled.app_ids.get(tp)
            if found is None or part.start is None or found == part.app_id:
                continue
            # A `txn` that was retired has an heir: settling finds it. Any other change of name is
            # a topic that was created again.
            if self._state.txns.get(str(part.app_id)) != RETIRED:
                raise SourceRefused(rival_sentence(found, part.app_id))

    def _on_committed(self, state: LogState, sealed: Sealed) -> None:
        self._state = state
        self._committing.is_over()
        self._pipeline.committed(sealed)
        encoded = sealed.encoded
        assert encoded is not None
        offsets: dict[TopicPartition, int] = {}
        for covered in encoded.ranges:
            part = self._parts.get(covered.tp)
            if part is None:
                continue
            offsets[covered.tp] = covered.offset_next
            if part.is_live and part.committed == covered.offset_first:
                part.committed = covered.offset_next
        self._consumer.commit(offsets)
        self._reporter.committed(state, sealed, encoded)

    def _compare_with_log(self) -> None:
        """Drop everything if the log says something else than the pipeline continues from."""
        assert self._state is not None
        for tp, part in self._parts.items():
            if part.is_live and self._state.txns.get(str(part.app_id)) != part.committed:
                found = self._state.txns.get(str(part.app_id))
                self._telemetry.event(
                    "fenced",
                    "warning",
                    topic=tp.topic,
                    partition=tp.partition,
                    offset_expected=part.committed,
                    offset_next=found,
                    version=self._state.version,
                )
                self._drop("the log says another offset")
                return

    # --- what is due ---------------------------------------------------------------------------

    def _advance(self) -> None:
        """Let the pipeline take what is done and start what is due; give the lane its next job."""
        if self._view is not None and self._state is not None:
            try:
                self._pipeline.advance(
                    self._view, tag=self._state.version, flush=self._must_flush()
                )
            except BadRecords as error:
                self._failure = error
                self._stop_asked = True
            except FencedError as error:
                self._on_fenced(error)
            except RetriableError as error:
                self._back_off(self._committing, error)
                self._drop("dead letters or files did not get through")
        if self._lane is None:
            self._lane = self._next_for_lane()

    def _confirming(self, ranges: Sequence[OffsetRange]) -> Callable[[], None]:
        """Return what tells in a job whether these were read from the topics they are named for."""
        read_as = {covered.tp: self._parts[covered.tp].app_id for covered in ranges}
        return lambda: self._source.confirm(read_as)

    def _must_flush(self) -> bool:
        """Whether waiting for more makes no sense: stopping, or everything up to the end is read."""
        if self._stop_asked or self._is_paused:
            return True
        if self._ends is None:
            return False
        return all(
            part.halted or (part.is_live and part.offset_next >= self._ends.get(part.app_id, 0))
            for part in self._parts.values()
        )

    def _next_for_lane(self) -> Lane | None:
        """Start the job that may have the log state next, if there is one."""
        now_ms = self._clock.elapsed_ms()
        head = self._pipeline.head()
        if head is not None:
            return self._start_commit(head)
        if self._stop_asked or now_ms < self._retry_at_ms():
            return None
        unsettled = self._unsettled()
        if unsettled or self._state is None:
            return self._start_settle(unsettled)
        patrol_ms = PATROL_UNTIL_END_MS if self._until_end else PATROL_MS
        if now_ms - self._patrolled_ms >= patrol_ms:
            return self._start_patrol(self._state)
        return None

    def _unsettled(self) -> dict[TopicPartition, Part]:
        return {tp: p for tp, p in self._parts.items() if not p.is_live and not p.halted}

    def _start_commit(self, sealed: Sealed) -> Lane:
        assert sealed.encoded is not None
        assert self._state is not None
        assert self._view is not None
        app_ids = {covered.tp: self._parts[covered.tp].app_id for covered in sealed.encoded.ranges}
        plan = plan_append(
            self._log, sealed.encoded, author=self._author(), app_ids=app_ids, table=self._view.same
        )
        log, state = self._log, self._state
        step = sealed.spans.timed("commit", lambda: commit(log, state, plan))
        job = self._jobs.submit("commit", step)
        return Lane("commit", job, sealed=sealed)

    def _start_settle(self, parts: dict[TopicPartition, Part]) -> Lane:
        source, state, author = self._source, self._state, self._author()
        partitions = sorted(parts)
        ends = self._until_end and self._ends is None
        job = self._jobs.submit(
            "settle", lambda: settle(source, state, partitions, author, ends=ends)
        )
        return Lane("settle", job, parts=parts)

    def _start_patrol(self, state: LogState) -> Lane:
        source = self._source

        def patrol() -> Patrolled:
            found = source.app_ids(source.topics().values())
            return Patrolled(follow(source.log, state), found)

        return Lane("patrol", self._jobs.submit("patrol", patrol))

    def _author(self) -> Author:
        return Author(self._settings.name, self._worker_id, self._generation)

    # --- the end -------------------------------------------------------------------------------

    def _has_all(self) -> bool:
        """Whether the log has everything up to the ends seen at the start."""
        if self._ends is None or self._state is None:
            return False
        halted = {tp for tp, part in self._parts.items() if part.halted}
        return all(
            app_id.tp in halted or self._state.txns.get(str(app_id), -1) >= end
            for app_id, end in self._ends.items()
        )

    def _stop_if_asked(self) -> None:
        if self._until_end and not self._stop_asked and self._has_all():
            self._stop_asked = True
        if self._stop_asked and self._stop_deadline_ms is None:
            grace_ms = self._settings.shutdown.grace_ms
            self._stop_deadline_ms = self._clock.elapsed_ms() + grace_ms
            self._consumer.stop(list(self._parts))

    def _is_finished(self) -> bool:
        if self._stop_deadline_ms is None:
            return False
        if self._clock.elapsed_ms() >= self._stop_deadline_ms:
            return True
        is_committing = self._lane is not None and self._lane.sealed is not None
        return not is_committing and self._pipeline.is_empty
