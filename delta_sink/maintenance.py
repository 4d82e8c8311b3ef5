"""The maintenance workers, compactor and vacuum: commands in, a healthy table and outcomes out.

Theory of operation. One thread owns all state here. It polls the control topic, begins an errand
for each command of its role, runs what errands wish for, renews their leases, and tells the group
which offsets are done. A message that is no command becomes a refusal and never stops the topic.

An errand, from begin to end (`_carry_out`):

    begun in the lock store ─▶ accepted ─▶ a turn to work ─▶ started … ─▶ kept ─▶ its outcome told

Its offset is done when its outcome is in the status topic, or when another worker has answered it.
A worker that dies anywhere leaves a command that is delivered again; what it then comes to is
planned from the table. A worker that is asked to stop finishes the steps under way, gives its
leases back and leaves what is open to the others.

Both roles read the same topic, each as a group of its own. `pause` and `resume` are for whoever is
there: the note of what was begun lets one of them answer. They are begun one after the other, in
the order of their partition, so that a late pause never undoes a resume.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct, field

from delta_sink import __version__
from delta_sink.append import DeadLetterTarget
from delta_sink.attendance import Attendance
from delta_sink.begin_end import begun, keep_outcome, pause_or_resume, refused, release_work
from delta_sink.compacting import checkpoint, compact
from delta_sink.control import COMMANDS, Command, CommandName, Outcome, parse_command
from delta_sink.control_message import Refusal
from delta_sink.errand import (
    Begin,
    Ended,
    Errand,
    FirstOf,
    Interrupted,
    Kept,
    Rest,
    Steps,
    Task,
    Turn,
    Upkeep,
    Wish,
    publish,
)
from delta_sink.errors import (
    BrokerUnavailable,
    CommitConflict,
    DeltaSinkError,
    FatalError,
    RetriableError,
)
from delta_sink.inbox import Inbox, Received
from delta_sink.lease import Held, lease_key
from delta_sink.model import Records, TopicPartition
from delta_sink.ports import (
    Assigned,
    Broker,
    Consumer,
    ConsumerEvent,
    Job,
    Jobs,
    OffsetGone,
    Revoked,
    Waiting,
)
from delta_sink.seen import Done
from delta_sink.telemetry import COMMAND_TRACE, LEASE_HELD
from delta_sink.traces import Spans, Trace
from delta_sink.trouble import Trouble, bug_sentence
from delta_sink.vacuuming import cleanup_log, vacuum

MaintenanceRole = Literal["compactor", "vacuum"]

WORK: Final[Mapping[CommandName, Callable[[Errand], Steps[Ended]]]] = {
    "compact": compact,
    "checkpoint": checkpoint,
    "vacuum": vacuum,
    "cleanup-log": cleanup_log,
}
SHARED: Final[frozenset[CommandName]] = frozenset({"pause", "resume"})
DUTIES: Final[Mapping[MaintenanceRole, frozenset[CommandName]]] = {
    "compactor": frozenset({"compact", "checkpoint", *SHARED}),
    "vacuum": frozenset({"vacuum", "cleanup-log", *SHARED}),
}

LEASES: Final[Mapping[MaintenanceRole, tuple[str, ...]]] = {
    "compactor": ("compaction", "checkpoint", "scheduler", "audit"),
    "vacuum": ("vacuum", "cleanup"),
}
"""The kinds of leases that a worker of the role may hold."""

POLL_IDLE_MS: Final = 200
POLL_BUSY_MS: Final = 5
RECORDS_MAX: Final = 100
WAITING_MAX: Final = 1_000
"""With so many commands waiting the topic is read no further for a while."""

ERRANDS_MAX: Final = 64
"""How many commands are begun at a time; all but `TURNS` of them wait."""
TURNS: Final = 1
"""How many errands work at a time; within one, bins are rewritten side by side."""

STOPPING_REST_MS: Final = 100
"""Once the worker is to stop nobody rests for longer."""

RETRY_MS: Final = 2_000
RETRIES_MAX: Final = 5
"""How often a command is tried again whose store or brokers did not answer."""


class _Open(Struct, eq=False):
    """An errand under way: where it came from, and what it waits for."""

    errand: Errand
    steps: Steps[None]
    received: Received | None
    job: Job[Any] | None = None
    """What it is resumed with: the job's result, once it has ended."""
    first_of: tuple[Job[Any], ...] = ()
    begun: Job[Any] | None = None
    rests_until_ms: int = 0
    wants_turn: bool = False
    has_turn: bool = False
    spans: Spans = field(default_factory=Spans)
    begun_ms: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether no job is waited for any more."""
        if self.first_of:
            return any(job.is_done() for job in self.first_of)
        return self.job is None or self.job.is_done()


class Maintainer:
    """One maintenance worker. `run` returns after `request_stop`."""

    def __init__(
        self,
        role: MaintenanceRole,
        upkeep: Upkeep,
        jobs: Jobs,
        *,
        consumer: Consumer | None,
        group: str,
        attendance: Attendance,
        dead_letters: DeadLetterTarget | None = None,
        standing: Sequence[Callable[[Errand], Steps[None]]] = (),
    ) -> None:
        self._role = role
        self._upkeep = upkeep
        self._jobs = jobs
        self._consumer = consumer
        self._group = group
        self._attendance = attendance
        self._dead_letters = dead_letters
        self._standing = standing
        self._leases_held: Counter[str] = Counter()
        self._clock = upkeep.log.clock
        self._telemetry = upkeep.log.telemetry
        self._inbox = Inbox()
        self._open: list[_Open] = []
        self._starting: Job[dict[TopicPartition, int]] | None = None
        self._start_trouble = Trouble()
        self._is_held = False
        self._stop_asked = False
        self._stop_deadline_ms: int | None = None
        self._outcomes: list[Ended] = []

    # --- the loop ------------------------------------------------------------------------------

    def run(self) -> None:
        """Return once the worker has stopped cleanly.

        Raises:
            FatalError: a person must act; the sentence says what to do.
        """
        self._say_started()
        for begin in self._standing:
            errand = Errand(self._upkeep)
            self._open.append(_Open(errand, begin(errand), None))
        for kind in LEASES[self._role]:
            self._telemetry.gauge(LEASE_HELD, 0, lease=kind)
        try:
            while not self._is_finished():
                self.step()
        finally:
            if self._consumer is not None:
                self._consumer.close()
        self._attendance.leave()
        self._telemetry.event(
            "worker_stopped", role=self._role, worker=self._upkeep.worker, reason="asked to stop"
        )

    def run_once(self, commands: Sequence[Command]) -> list[Ended]:
        """Carry out these commands without any topic, and return what became of each.

        Raises: as `run`.
        """
        self._say_started()
        for command in commands:
            # One after the other, so that each outcome stands where its command does.
            self._begin(command, None)
            self._advance()
            while self._open and not self._is_finished():
                self._jobs.wait_ms(POLL_IDLE_MS)
                self._advance()
        return self._outcomes

    def request_stop(self) -> None:
        """Finish the steps under way within the grace period; asked again, drop them at once.

        May be called from a signal handler: it only sets a flag.
        """
        if self._stop_asked:
            self._stop_deadline_ms = 0
        self._stop_asked = True

    def step(self) -> None:
        """Poll once and do all that can be done now."""
        assert self._consumer is not None
        is_busy = (
            any(each.job or each.first_of for each in self._open) or self._starting is not None
        )
        if is_busy:
            self._jobs.wait_ms(POLL_IDLE_MS)
        polled = self._consumer.poll(RECORDS_MAX, POLL_BUSY_MS if is_busy else POLL_IDLE_MS)
        for event in polled.events:
            self._on_event(event)
        for records in polled.records:
            self._on_records(records)
        self._start_partitions()
        self._hold_or_go_on()
        self._advance()

    def _advance(self) -> None:
        now_ms = self._clock.elapsed_ms()
        self._attendance.advance(self._jobs)
        if self._stop_asked and self._stop_deadline_ms is None:
            self._stop_deadline_ms = now_ms + self._upkeep.settings.shutdown.grace_ms
        self._begin_waiting()
        for each in list(self._open):
            if self._stop_asked:
                each.rests_until_ms = min(each.rests_until_ms, now_ms + STOPPING_REST_MS)
            each.errand.is_stopping = self._stop_asked
            each.errand.is_paused = self._attendance.is_paused
            self._keep_leases(each.errand, now_ms)
            self._resume(each, now_ms)
        self._count_leases()
        if self._consumer is not None and (offsets := self._inbox.to_commit()):
            self._consumer.commit(offsets)

    def _is_finished(self) -> bool:
        if self._stop_deadline_ms is None:
            return False
        return not self._open or self._clock.elapsed_ms() >= self._stop_deadline_ms

    def _say_started(self) -> None:
        self._telemetry.event(
            "worker_started",
            role=self._role,
            worker=self._upkeep.worker,
            build=__version__,
            table=self._upkeep.table_uri,
            group=self._group,
        )

    # --- the topic -----------------------------------------------------------------------------

    def _on_event(self, event: ConsumerEvent) -> None:
        match event:
            case Assigned():
                self._inbox.assign(event.partitions)
                self._say_partitions("partitions_assigned", event.partitions)
            case Revoked():
                self._inbox.revoke(event.partitions)
                self._say_partitions("partitions_revoked", event.partitions)
            case OffsetGone():
                # Retention went past it: what is left of the topic is what there is to do.
                self._inbox.restart(event.tp)
            case Waiting():
                self._telemetry.event("waiting", "warning", reason=event.reason)

    def _say_partitions(self, name: str, partitions: Sequence[TopicPartition]) -> None:
        self._telemetry.count("delta_sink_rebalances_total")
        self._telemetry.gauge("delta_sink_assigned_partitions", len(self._inbox.partitions))
        self._telemetry.event(name, partitions=[str(tp) for tp in sorted(partitions)])

    def _start_partitions(self) -> None:
        """Find out where new partitions begin: at the group's offset, else at their first record."""
        now_ms = self._clock.elapsed_ms()
        job = self._starting
        if job is not None and job.is_done():
            self._starting = None
            try:
                found = job.result()
            except BrokerUnavailable as error:
                if self._start_trouble.failed(str(error), now_ms):
                    self._telemetry.event("waiting", "warning", reason=str(error))
                return
            self._start_trouble.is_over()
            ours = {tp: offset for tp, offset in found.items() if self._inbox.start(tp, offset)}
            if ours and not self._is_held:
                assert self._consumer is not None
                self._consumer.start(ours)
        unread = self._inbox.unread()
        is_time = now_ms >= self._start_trouble.retry_at_ms
        if unread and self._starting is None and is_time and not self._stop_asked:
            client, group = self._upkeep.client, self._group
            assert client is not None, "whoever has a consumer has a control topic"
            broker = client.broker
            self._starting = self._jobs.submit("start", lambda: _starts(broker, group, unread))

    def _hold_or_go_on(self) -> None:
        """Read no further while very many commands wait."""
        assert self._consumer is not None
        if not self._is_held and len(self._inbox) >= WAITING_MAX:
            self._is_held = True
            self._consumer.stop(self._inbox.partitions)
        elif self._is_held and len(self._inbox) <= WAITING_MAX // 2:
            self._is_held = False
            self._consumer.start(self._inbox.reads_at())

    def _on_records(self, records: Records) -> None:
        for offset, value in zip(records.offsets, records.values, strict=True):
            try:
                command = parse_command(value, self._upkeep.rules, now_ms=self._clock.wall_ms())
            except Refusal as refusal:
                self._on_refusal(refusal, records.tp, offset, value)
                continue
            if command is not None and command.command in DUTIES[self._role]:
                self._inbox.add(records.tp, offset, command)
        self._inbox.passed(records.tp, records.offset_next)

    def _on_refusal(
        self, refusal: Refusal, tp: TopicPartition, offset: int, value: bytes | None
    ) -> None:
        """Answer what may not be obeyed; of what is no known command, the compactor takes care."""
        is_known = refusal.command in COMMANDS
        theirs = is_known and refusal.command not in DUTIES[self._role]
        if theirs or (self._role != "compactor" and (not is_known or refusal.command in SHARED)):
            return
        self._telemetry.count("delta_sink_control_refused_total", reason=refusal.reason)
        self._telemetry.event(
            "command_refused",
            "warning",
            topic=tp.topic,
            partition=tp.partition,
            offset=offset,
            reason=refusal.redacted,
        )
        errand = Errand(self._upkeep)
        steps = refused(self._upkeep, refusal, self._dead_letters, tp, offset, value)
        self._open.append(_Open(errand, steps, None))

    # --- errands -------------------------------------------------------------------------------

    def _begin_waiting(self) -> None:
        while len(self._open) < ERRANDS_MAX and not self._stop_asked:
            received = self._inbox.take()
            if received is None:
                return
            self._begin(received.command, received)

    def _begin(self, command: Command, received: Received | None) -> None:
        errand = Errand(self._upkeep, command)
        opened = _Open(errand, self._carry_out(errand, received), received)
        self._open.append(opened)
        if self._telemetry.is_tracing:
            opened.begun_ms = self._clock.elapsed_ms()
            opened.spans = Spans(self._clock.elapsed_ms)
            if command.issued_at_ms is not None:
                # Another host's clock said so: it may be ahead of ours.
                age_ms = max(0, self._clock.wall_ms() - command.issued_at_ms)
                opened.begun_ms -= age_ms
                opened.spans.add("topic", opened.begun_ms)

    def _trace(self, each: _Open, error: str | None = None) -> None:
        """Hand over what was done for a command of which this worker has told something."""
        command, state = each.errand.asked, each.errand.state
        if command is None or state is None or not self._telemetry.is_tracing:
            return
        fields = {"command": command.command, "id": command.id, "state": state}
        spans = tuple(each.spans.found)
        now_ms = self._clock.elapsed_ms()
        self._telemetry.trace(Trace(COMMAND_TRACE, each.begun_ms, now_ms, spans, fields, error))

    def _carry_out(self, errand: Errand, received: Received | None) -> Steps[None]:
        """Carry out a command, whatever comes; its offset is done in the end, or another's."""
        beginning = yield from begun(errand)
        if isinstance(beginning, Done):
            kept = beginning.outcome  # whoever did it may not have told it
            if kept is None or (yield from self._told(errand, kept)):
                _mark_done(received)
            return
        yield from errand.tell("accepted")
        if errand.command.command not in SHARED:
            yield Turn()
        yield from errand.tell("started")
        ended = yield from self._worked(errand)
        yield from release_work(errand)
        self._outcomes.append(ended)
        outcome = errand.outcome(ended.state, ended.message, ended.result)
        yield from keep_outcome(errand, beginning, outcome)
        if not (yield from self._told(errand, outcome)):
            return
        if ended.state == "succeeded":
            self._telemetry.gauge(
                "delta_sink_maintenance_last_success_timestamp_seconds",
                self._clock.wall_ms() / 1000,
                command=errand.command.command,
            )
        _mark_done(received)

    def _told(self, errand: Errand, outcome: Outcome) -> Steps[bool]:
        """Return True once the status topic has it, or False where the worker is to stop first."""
        while not (yield from publish(self._upkeep, outcome)):
            if errand.is_stopping:
                return False
            yield Rest(RETRY_MS)
        return True

    def _worked(self, errand: Errand) -> Steps[Ended]:
        """Return what became of the command's work; what fails for the moment is tried again."""
        last = ""
        for attempt in range(RETRIES_MAX):
            try:
                if errand.command.command in SHARED:
                    ended = yield from pause_or_resume(errand)
                    self._attendance.refresh()
                else:
                    yield from errand.go_on()
                    ended = yield from WORK[errand.command.command](errand)
                return ended
            except (RetriableError, CommitConflict) as error:
                last = str(error)
                self._telemetry.event("waiting", "warning", reason=last)
            except Interrupted:
                raise
            except FatalError as error:
                return Ended("failed", str(error))
            except Exception as error:  # noqa: BLE001  # one command's bug must not stop the others
                return Ended("failed", bug_sentence(error))
            yield from release_work(errand)
            yield Rest(RETRY_MS << attempt)
        return Ended("failed", last)

    def _resume(self, each: _Open, now_ms: int) -> None:
        """Let an errand go on as far as it can without waiting."""
        while each in self._open:
            if not each.is_ready or now_ms < each.rests_until_ms:
                return
            if each.wants_turn:
                taken = sum(other.has_turn for other in self._open)
                if self._stop_asked or (taken < TURNS and not self._attendance.is_paused):
                    each.wants_turn, each.has_turn = False, True
                else:
                    return
            self._feed(each, now_ms)

    def _feed(self, each: _Open, now_ms: int) -> None:
        job, begun = each.job, each.begun
        each.job, each.begun, each.first_of = None, None, ()
        try:
            try:
                answer = job.result() if job is not None else begun
            except Exception as error:  # noqa: BLE001  # the errand decides what it means
                wish = each.steps.throw(error)
            else:
                wish = each.steps.send(answer)
        except StopIteration:
            self._open.remove(each)
            self._trace(each)
            return
        except Interrupted as error:
            self._open.remove(each)
            self._trace(each, str(error))
            self._give_up(each, error)
            return
        self._wish(each, wish, now_ms)

    def _wish(self, each: _Open, wish: Wish, now_ms: int) -> None:
        match wish:
            case Task():
                each.job = self._submit(each, wish)
            case Begin():
                each.begun = self._submit(each, wish.task)
            case FirstOf():
                each.first_of = wish.jobs
            case Rest():
                each.rests_until_ms = now_ms + wish.duration_ms
            case Turn():
                each.has_turn = each.has_turn and not wish.give_back
                each.wants_turn = not wish.give_back

    def _submit(self, each: _Open, task: Task[Any]) -> Job[Any]:
        return self._jobs.submit(task.name, each.spans.timed(task.name, task.function))

    def _give_up(self, each: _Open, error: Interrupted) -> None:
        """Leave a command to others: its leases are given back, its offset stays."""
        self._telemetry.event(
            "command_left",
            id=each.errand.asked.id if each.errand.asked else None,
            reason=str(error),
        )
        steps = release_work(each.errand)
        self._open.append(_Open(each.errand, steps, None))
        if not self._stop_asked and each.errand.asked is not None:
            # A lease was lost: somebody else is at it, or the lock store was away. Look again.
            self._begin(each.errand.command, each.received)

    def _keep_leases(self, errand: Errand, now_ms: int) -> None:
        """Renew what is due, in jobs of its own; note what is lost."""
        for kept in errand.leases.values():
            job = kept.job
            if job is not None and job.is_done():
                kept.job = None
                try:
                    found = job.result()
                except DeltaSinkError:
                    found = None
                if found is None:
                    kept.is_lost = True
                else:
                    kept.held = found
            if kept.job is None and not kept.is_lost and now_ms >= kept.held.renew_at_ms:
                kept.job = self._jobs.submit("renew", _renewal(kept))

    def _count_leases(self) -> None:
        """Say how many leases of each kind are held, where that is another number than before."""
        prefix = lease_key(self._upkeep.table_uri, "")
        held = Counter(
            key.removeprefix(prefix).partition("/")[0]
            for each in self._open
            for key, kept in each.errand.leases.items()
            if key.startswith(prefix) and not kept.is_lost
        )
        if held == self._leases_held:
            return
        for kind in LEASES[self._role]:
            self._telemetry.gauge(LEASE_HELD, held[kind], lease=kind)
        self._leases_held = held


def _renewal(kept: Kept) -> Callable[[], Held | None]:
    held, renewal = kept.held, kept.renewal
    return lambda: renewal(held)


# --- pieces of errands ----------------------------------------------------------------------------


def _starts(
    broker: Broker, group: str, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, int]:
    """Return where each partition begins: where the group is, if Kafka still has that offset."""
    earliest = broker.offsets(partitions, "earliest")
    latest = broker.offsets(partitions, "latest")
    committed = broker.group_offsets(group, partitions)
    return {
        tp: committed[tp] if first <= committed.get(tp, -1) <= latest[tp] else first
        for tp, first in earliest.items()
    }


def _mark_done(received: Received | None) -> None:
    if received is not None:
        received.is_done = True
