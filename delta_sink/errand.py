"""An errand: one command while a maintenance worker carries it out.

Theory of operation. An errand is a generator that runs in the worker's state thread and does
nothing slow itself: it yields what it waits for, and is resumed with the result.

* `Task`: a job, beside the state thread; resumed with what it returned, or with its error.
* `Begin`: a job, too; resumed at once with the job itself, and `FirstOf` several such: resumed
  when one of them has ended.
* `Rest`: nothing, for so many milliseconds.
* `Turn`: the right to work: the worker lets only so many errands work at a time.

So a command reads from top to bottom, and between any two of its lines the worker may renew its
leases, notice that it is asked to stop, or be killed.

Leases that an errand holds are renewed by the worker, in jobs of their own. Where one is lost, or
the worker is to stop, the next `go_on` raises: nothing more is begun, and what was committed stays.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from msgspec import Struct, field

from delta_sink.control import Command, Outcome, Rules, State, encode_outcome, outcome_of
from delta_sink.control_client import ControlClient
from delta_sink.delta.commit import Log
from delta_sink.delta.table import Author
from delta_sink.errors import DeltaSinkError, RetriableError
from delta_sink.lease import Held, Lessee, Watch, acquire, release, renew
from delta_sink.model import OutgoingRecord
from delta_sink.ports import Job
from delta_sink.settings import Settings

T = TypeVar("T")

WATCH_MS: Final = 3_000
"""How often somebody else's lease is looked at while it is waited for."""

PAUSED_MS: Final = 1_000
SEND_TRIES_MAX: Final = 5


class Task(Struct, Generic[T], frozen=True):
    """A job. `name` is for traces."""

    name: str
    function: Callable[[], T]


class Begin(Struct, frozen=True):
    """A job that runs beside what comes next."""

    task: Task[Any]


class FirstOf(Struct, frozen=True):
    """Jobs that were begun, one of which is waited for."""

    jobs: tuple[Job[Any], ...]


class Rest(Struct, frozen=True):
    """So long nothing is done."""

    duration_ms: int


class Turn(Struct, frozen=True):
    """The right to work; with `give_back` an errand that only waits from here on returns it."""

    give_back: bool = False


Wish: TypeAlias = Task[Any] | Begin | FirstOf | Rest | Turn
Steps: TypeAlias = Generator[Wish, Any, T]
"""Part of an errand that ends with a value."""


class Interrupted(DeltaSinkError):
    """The worker is to stop, or the errand's lease is lost: what is left is another's to do."""


class Ended(Struct, frozen=True):
    """What became of a command, as its outcome says it."""

    state: Literal["succeeded", "refused", "failed"]
    message: str = ""
    result: Mapping[str, object] = field(default_factory=dict)


class Upkeep(Struct, frozen=True):
    """What maintenance is done with: the same for every errand of a worker.

    `client` is None for a worker that was started without a control topic (`--once`). `plans` is
    the one thing that changes.
    """

    settings: Settings
    log: Log
    lessee: Lessee
    table_uri: str
    worker: str
    memory_bytes_max: int
    cores: int
    client: ControlClient | None = None
    plans: dict[str, object] = field(default_factory=dict)
    """What was planned for a command whose parts are being done, by the command's id."""

    @property
    def rules(self) -> Rules:
        """What commands are taken by."""
        control = self.settings.control
        keys = {} if control is None else control.signing_keys
        return Rules(
            self.table_uri,
            self.settings.vacuum.retention_hours_min,
            {name: key.get_secret_value().encode() for name, key in keys.items()},
        )


def do(name: str, function: Callable[[], T]) -> Steps[T]:
    """Return what the function returns, run as a job."""
    result: T = yield Task(name, function)
    return result


def begin(name: str, function: Callable[[], T]) -> Steps[Job[T]]:
    """Return a job that runs the function. Whoever begins one waits for its end, too."""
    job: Job[T] = yield Begin(Task(name, function))
    return job


def first_of(jobs: Sequence[Job[Any]]) -> Steps[None]:
    """Return when at least one of the jobs has ended."""
    yield FirstOf(tuple(jobs))


class Kept(Struct):
    """A lease that the worker renews as long as the errand needs it."""

    held: Held
    renewal: Callable[[Held], Held | None]
    job: Job[Held | None] | None = None
    is_lost: bool = False


class Errand(Struct, eq=False):
    """One command, and what the worker must know of it. Only the state thread touches it.

    `is_stopping` and `is_paused` are the worker's to set.
    """

    upkeep: Upkeep
    asked: Command | None = None
    leases: dict[str, Kept] = field(default_factory=dict)
    is_stopping: bool = False
    is_paused: bool = False
    state: State | None = None
    """How far the command has come, as far as this worker has told."""

    @property
    def command(self) -> Command:
        """The command; only the scheduler's errand has none."""
        assert self.asked is not None, "this errand is nobody's command"
        return self.asked

    def author(self, held: Held | None = None) -> Author:
        """Return who commits; the lease's token stands in the commit as its generation."""
        token = 0 if held is None else held.token
        return Author(self.upkeep.settings.name, self.upkeep.worker, token)

    @property
    def may_go_on(self) -> bool:
        """Whether neither the worker is to stop nor a lease is lost. Jobs may look at it."""
        return not self.is_stopping and not any(kept.is_lost for kept in self.leases.values())

    def go_on(self) -> Steps[None]:
        """Return when the next piece of work may begin; wait while maintenance is paused.

        Raises:
            Interrupted: it may not.
        """
        while True:
            if self.is_stopping:
                raise Interrupted("the worker was asked to stop")
            lost = [key for key, kept in self.leases.items() if kept.is_lost]
            if lost:
                raise Interrupted(f"the lease {lost[0]} was lost")
            if not self.is_paused:
                return
            yield Rest(PAUSED_MS)

    # --- leases --------------------------------------------------------------------------------

    def hold(self, key: str) -> Steps[Held | None]:
        """Return the lease once it is ours, however long another has it; None without locks.

        Locks save work: where their store does not answer, the work is done without them.
        """
        watch: Watch | None = None
        lessee = self.upkeep.lessee
        while True:
            yield from self.go_on()
            try:
                found = yield from do("lease", lambda: acquire(lessee, key, watch))  # noqa: B023  # runs before the next round
            except RetriableError:
                return None
            if isinstance(found, Held):
                self.leases[key] = Kept(found, lambda held: renew(lessee, held))
                return found
            watch = found
            yield Rest(WATCH_MS)

    def let_go(self, key: str) -> Steps[None]:
        """Return when the lease is free for the next, or will be when its time is over."""
        kept = self.leases.get(key)
        if kept is None:
            return
        while kept.job is not None:
            yield Rest(50)  # A renewal under way would make the release miss its condition.
        del self.leases[key]
        if not kept.is_lost:
            lessee = self.upkeep.lessee
            yield from do("release", lambda: release(lessee, kept.held))

    # --- outcomes ------------------------------------------------------------------------------

    def outcome(
        self, state: State, message: str = "", result: Mapping[str, object] | None = None
    ) -> Outcome:
        """Return an outcome of this command, as of now."""
        self.state = state
        return outcome_of(
            self.command,
            state,
            at_ms=self.upkeep.log.clock.wall_ms(),
            worker=self.upkeep.worker,
            message=message,
            result=result,
        )

    def tell(
        self, state: State, message: str = "", result: Mapping[str, object] | None = None
    ) -> Steps[bool]:
        """Return whether the status topic has this outcome; it is sent a bounded number of times."""
        sent = yield from publish(self.upkeep, self.outcome(state, message, result))
        return sent


def publish(upkeep: Upkeep, outcome: Outcome) -> Steps[bool]:
    """Return whether the status topic has `outcome`; it is sent a bounded number of times."""
    telemetry = upkeep.log.telemetry
    telemetry.count(
        "delta_sink_control_commands_total", command=outcome.command, state=outcome.state
    )
    telemetry.event(
        "command_outcome",
        "info" if outcome.state not in ("refused", "failed") else "warning",
        command=outcome.command,
        id=outcome.id,
        state=outcome.state,
        reason=outcome.message or None,
        **({"result": dict(outcome.result)} if outcome.result else {}),
    )
    client = upkeep.client
    if client is None:
        return True
    record = OutgoingRecord(outcome.table.encode(), encode_outcome(outcome))
    for attempt in range(SEND_TRIES_MAX):
        try:
            yield from do("tell", lambda: client.producer.send(client.status_topic, [record]))
        except RetriableError:
            yield Rest(500 << attempt)
            continue
        return True
    return False
