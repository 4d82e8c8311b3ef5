"""One machine of the world: its clocks, its chance, its jobs, its telemetry, and its end.

A host is what a process runs on. Killing it is SIGKILL; making a host of the same name again is
the restart, with new ids and new randomness, and nothing in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from delta_sink.ports import Tag
from delta_sink.testing.world import Signal, Task, World
from delta_sink.traces import Trace

T = TypeVar("T")


class Host:
    """The ports of one process, and the ways in which it can suffer.

    Attributes:
        clock: `Clock`; wall time with this host's skew, elapsed time since some start of its own.
        entropy: `Entropy` from the seed.
        jobs: `Jobs`: each job is a task of this host.
        telemetry: `Telemetry`: what was logged and counted, for tests to look at.
    """

    def __init__(
        self, world: World, name: str, incarnation: int, skew_ms: int, drift_ppm: int
    ) -> None:
        self.world = world
        self.name = name
        self.incarnation = incarnation
        self.dead = False
        self.paused_until_us = 0
        self.tasks: list[Task] = []
        self.parked: list[Task] = []
        self.on_kill: list[Callable[[], None]] = []
        self.on_pause: list[Callable[[int], None]] = []
        self.clock = FakeClock(world, skew_ms, drift_ppm, world.random(f"clock/{name}").random())
        self.entropy = FakeEntropy(world, f"{name}/{incarnation}")
        self.jobs = FakeJobs(world, self)
        self.telemetry = FakeTelemetry(self)

    def __str__(self) -> str:
        return self.name if self.incarnation == 1 else f"{self.name}#{self.incarnation}"

    @property
    def paused(self) -> bool:
        """Whether its tasks stand still now."""
        return self.paused_until_us > self.world.now_us

    def kill(self) -> None:
        """End the host now. A request of its that is on the wire may still land.

        Called from one of its own tasks it does not return.
        """
        if self.dead:
            return
        self.dead = True
        self.world.note("killed", str(self))
        for action in self.on_kill:
            action()
        self.world.kill(self)

    def pause(self, duration_ms: int) -> None:
        """Let its tasks stand still for `duration_ms`: SIGSTOP, a long collection, a suspended VM.

        Its clocks count on, and what it has sent is served meanwhile.
        """
        self.world.note("paused", f"{self} for {duration_ms} ms")
        self.paused_until_us = max(self.paused_until_us, self.world.now_us + duration_ms * 1000)
        self.world.later(duration_ms, self._resume)
        for action in self.on_pause:
            action(duration_ms)

    def _resume(self) -> None:
        if not self.paused:
            parked, self.parked = self.parked, []
            self.world.make_runnable(parked)


class FakeClock:
    """`Clock` of one host. Reading it is no switch point: time passes between port calls."""

    def __init__(self, world: World, skew_ms: int, drift_ppm: int, start: float) -> None:
        self._world = world
        self._skew_ms = skew_ms
        self._drift_ppm = drift_ppm
        self._start_ms = int(start * 10_000_000)

    def wall_ms(self) -> int:
        """Return the true time plus this host's error."""
        return self._world.wall_ms + self._skew_ms

    def elapsed_ms(self) -> int:
        """Return milliseconds since a start of its own; it counts pauses and never goes back."""
        now_us = self._world.now_us
        return self._start_ms + (now_us + now_us * self._drift_ppm // 1_000_000) // 1000

    def sleep_ms(self, duration_ms: int) -> None:
        """Return after `duration_ms` of virtual time."""
        self._world.sleep_ms(duration_ms, "clock.sleep", duration_ms)

    def jump_ms(self, by_ms: int) -> None:
        """Set the wall clock forward or back. The elapsed clock does not notice."""
        self._world.note("wall clock jumps", by_ms)
        self._skew_ms += by_ms


class FakeEntropy:
    """`Entropy` from the seed: each host and each restart has a sequence of its own."""

    def __init__(self, world: World, name: str) -> None:
        self._random = world.random(f"entropy/{name}")

    def unique_id(self) -> str:
        """Return the next id: 32 hexadecimal digits."""
        return f"{self._random.getrandbits(128):032x}"

    def fraction(self) -> float:
        """Return the next number in [0, 1)."""
        return self._random.random()


class FakeJob(Generic[T]):
    """`Job`: a task of the host. Its error is the caller's to see, never the world's."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def is_done(self) -> bool:
        """Return whether the task has ended."""
        return self._task.done

    def result(self) -> T:
        """Return the task's value or raise its error."""
        if not self._task.done:
            raise AssertionError(f"result() of {self._task} before it is done")
        if self._task.error is not None:
            raise self._task.error
        return cast("T", self._task.result)


class FakeJobs:
    """`Jobs` of one host: every job runs beside the others, in whatever order the seed gives.

    Attributes:
        ended: notified when a job of this host ends.
        ended_count: how often that happened.
    """

    def __init__(self, world: World, host: Host) -> None:
        self._world = world
        self._host = host
        self.ended = Signal(world)
        self.ended_count = 0
        self._has_ended = False

    def submit(self, name: str, function: Callable[[], T]) -> FakeJob[T]:
        """Start `function` as a task. The caller may lose its turn here."""
        self._world.switch("jobs.submit begins", name)

        def run() -> T:
            try:
                return function()
            finally:
                self.wake()

        job = FakeJob[T](self._world.add_owned(self._host, run, name))
        self._world.switch("jobs.submit ends", name)
        return job

    def wait_ms(self, duration_ms: int) -> None:
        """Return when a job has ended since the last call, or after `duration_ms`."""
        if self._has_ended:
            self._world.switch("jobs.wait")
        else:
            self.ended.wait(duration_ms, "jobs.wait", duration_ms)
        self._has_ended = False

    def wake(self) -> None:
        """End the present or the next `wait_ms` at once, as a signal handler does."""
        self._has_ended = True
        self.ended_count += 1
        self.ended.notify()


class FakeTelemetry:
    """`Telemetry` that remembers everything its host says while it lives. No switch point.

    Attributes:
        events: (virtual ms, name, level, fields), in order.
        counts: by metric and tags, as `counts["commits", ("table", "orders")]`.
        gauges: the last value, by the same key.
        observations: every value, by the same key.
        traces: what was handed over; set `is_tracing` to have any.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.events: list[tuple[int, str, str, dict[str, object]]] = []
        self.counts: Counter[tuple[object, ...]] = Counter()
        self.gauges: dict[tuple[object, ...], float] = {}
        self.observations: dict[tuple[object, ...], list[float]] = {}
        self.is_tracing = False
        self.traces: list[Trace] = []

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        """Remember one event; it shows in the trace too."""
        if not self._host.dead:
            self.events.append((self._host.world.now_ms, name, level, fields))
            self._host.world.note(f"event {name}", fields)

    def count(self, metric: str, amount: float = 1, **tags: Tag) -> None:
        """Add to a counter."""
        if not self._host.dead:
            self.counts[_key(metric, tags)] += amount  # type: ignore[assignment]  # Counter is typed for int alone

    def gauge(self, metric: str, value: float | None, **tags: Tag) -> None:
        """Keep the newest value; with None let go of it."""
        if self._host.dead:
            return
        if value is None:
            self.gauges.pop(_key(metric, tags), None)
        else:
            self.gauges[_key(metric, tags)] = value

    def observe(self, metric: str, value: float, **tags: Tag) -> None:
        """Keep every value."""
        if not self._host.dead:
            self.observations.setdefault(_key(metric, tags), []).append(value)

    def trace(self, trace: Trace) -> None:
        """Remember one trace."""
        if not self._host.dead:
            self.traces.append(trace)

    def named(self, name: str) -> list[dict[str, object]]:
        """Return the fields of every event of this name, in order."""
        return [fields for _, event, _, fields in self.events if event == name]


def _key(metric: str, tags: dict[str, Tag]) -> tuple[object, ...]:
    return (metric, *sorted(tags.items()))
