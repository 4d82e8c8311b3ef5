"""A small world in which production code runs unchanged, and one seed decides everything.

Every worker and every job of a worker is a *task*. Exactly one runs at a time; it runs until it
calls a port, and every port call is a switch point before and after its effect: there the
scheduler picks the next task at random, from the seed. Time is virtual. It moves a little with
each step and jumps to the next deadline when nothing can run, so that hours cost nothing.

What may happen here: a host is killed at any switch point (its tasks see `Killed` and never run
again; requests that it sent may still land), a host is paused for any time (its tasks stand
still, its elapsed clock counts on), wall clocks are wrong and jump, one task is stalled. What may
not, so that workers can recover: an elapsed clock never goes back and is off by at most its
drift; a task that can run is run in the end; a host that is not paused is not starved for ever.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING, Literal, Self

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:  # Host needs World; the other way round only types are needed at import
    from delta_sink.testing.host import Host

Ended = Literal["until", "limit", "done"]

STEP_US = 10
"""What one step costs in virtual time: a loop that never blocks still sees its deadlines pass."""
TRACE_LINES_MAX = 500_000
KILLED_RAISED_MAX = 1_000
STALE_WAITERS_MAX = 64
WALL_START_MS = 1_767_225_600_000
"""Where the wall clocks begin: 2026-01-01T00:00:00Z."""


class Killed(BaseException):
    """The task's host is dead. No production code may catch it; a task that does is an error."""


class WorldError(AssertionError):
    """The run itself is wrong: a deadlock, a livelock, a misspelt fault. Lists all tasks."""


class Task:
    """One thread of control on a host: a worker's state thread or one of its jobs."""

    __slots__ = (
        "_blocked",
        "_greenlet",
        "_killed_raised",
        "_may_fail",
        "_owned",
        "_started",
        "_token",
        "at",
        "detail",
        "done",
        "error",
        "host",
        "name",
        "result",
        "title",
    )

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name
        self.title = f"{host.name}:{name}"
        self.done = False
        self.error: BaseException | None = None
        self.result: object = None
        self.at = "created"
        self.detail: object = ""
        self._greenlet: greenlet
        self._started = False
        self._blocked = False
        self._token = 0
        self._killed_raised = 0
        self._owned = False
        self._may_fail: tuple[type[BaseException], ...] = ()

    def __str__(self) -> str:
        return self.title

    def state(self) -> str:
        """Return one readable line: who, in which state, at which switch point."""
        if self.done:
            state = (
                "killed" if isinstance(self.error, Killed) else "failed" if self.error else "ended"
            )
        elif self.host.paused:
            state = "paused"
        else:
            state = "blocked" if self._blocked else "runnable"
        error = f" {type(self.error).__name__}: {self.error}" if self.error else ""
        return f"{self} {state} at {self.at} {self.detail}{error}".rstrip()


class Signal:
    """Something that tasks wait for. `notify` wakes all that wait at that moment."""

    __slots__ = ("_waiting", "_world")

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[tuple[Task, int]] = []

    def wait(self, timeout_ms: int | None, label: str, detail: object = "") -> None:
        """Block the calling task until `notify`, or for `timeout_ms` (None: without limit)."""
        self._world.wait_any((self,), timeout_ms, label, detail)

    def notify(self) -> None:
        """Make every waiting task runnable. Those whose time ran out meanwhile are passed over."""
        waiting, self._waiting = self._waiting, []
        for task, token in waiting:
            self._world._wake(task, token)

    def _add(self, task: Task) -> None:
        if len(self._waiting) > STALE_WAITERS_MAX:
            self._waiting = [entry for entry in self._waiting if entry[0]._token == entry[1]]
        self._waiting.append((task, task._token + 1))


class World:
    """Tasks, hosts, virtual time and chance, all from one seed. Use it in a `with` block.

    Attributes:
        met: how often each fault really happened, by name.
        steps: how many times a task was given the turn so far.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.met: Counter[str] = Counter()
        self.steps = 0
        self.now_us = 0
        self.hosts: dict[str, Host] = {}
        self.tasks: list[Task] = []
        self._current: Task | None = None
        self._scheduler = Random(seed)  # noqa: S311 - a schedule, not a secret
        self._chances: dict[str, Random] = {}
        self._runnable: list[Task] = []
        self._timers: list[tuple[int, int, Task | Callable[[], None], int]] = []
        self._sequence = 0
        self._foreground = 0
        self._faults: dict[str, float] = {}
        self._declared: dict[str, str] = {}
        self._points: dict[str, list[tuple[int, Callable[[Task], None]]]] = {}
        self._by_step: list[tuple[int, int, Callable[[], None]]] = []
        self._trace: deque[tuple[int, str, str, object]] = deque(maxlen=TRACE_LINES_MAX)
        self._failure: BaseException | None = None
        self._closed = False
        self._hub = getcurrent()
        self.declare({"world.stall": "one task stands still for up to a minute at a switch point"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- hosts and tasks -----------------------------------------------------------------------

    def host(self, name: str, *, skew_ms: int = 0, drift_ppm: int = 0) -> Host:
        """Return a new host of this name. One of that name may exist only if it is dead.

        Args:
            name: for traces; ids and jitter derive from it, the seed and how often it was made.
            skew_ms: by how much its wall clock is wrong.
            drift_ppm: by how many millionths its elapsed clock runs fast (negative: slow).
        """
        from delta_sink.testing.host import Host

        previous = self.hosts.get(name)
        if previous is not None and not previous.dead:
            raise WorldError(f"host {name} is alive: kill it before it starts again")
        incarnation = 1 if previous is None else previous.incarnation + 1
        self.hosts[name] = Host(self, name, incarnation, skew_ms, drift_ppm)
        return self.hosts[name]

    def spawn(
        self,
        host: Host,
        function: Callable[[], object],
        *,
        name: str = "main",
        may_fail: tuple[type[BaseException], ...] = (),
    ) -> Task:
        """Make `function` a task of `host`; it runs from the next step on.

        What it raises ends `run` with that error, unless it is one of `may_fail`: then it is
        found in `Task.error`.
        """
        task = self._add(host, function, name)
        task._may_fail = may_fail
        return task

    def add_owned(self, host: Host, function: Callable[[], object], name: str) -> Task:
        """Make `function` a task whose error is looked at by whoever holds it: a job."""
        task = self._add(host, function, name)
        task._owned = True
        return task

    def make_runnable(self, tasks: Iterable[Task]) -> None:
        """Give the tasks of a host that stood still back to the scheduler."""
        self._runnable.extend(tasks)

    def _add(self, host: Host, function: Callable[[], object], name: str) -> Task:
        if host.dead or self._closed:
            if self._current is None:
                raise WorldError(f"host {host.name} is dead: make it anew with world.host()")
            raise Killed
        task = Task(host, name)
        task._greenlet = greenlet(lambda: self._body(task, function), parent=self._hub)
        self.tasks.append(task)
        host.tasks.append(task)
        self._runnable.append(task)
        return task

    def _body(self, task: Task, function: Callable[[], object]) -> None:
        try:
            task.result = function()
        except BaseException as error:  # noqa: BLE001  # the world reports it
            task.error = error
        self._end(task)

    def _end(self, task: Task) -> None:
        task.done = True
        task.host.tasks.remove(task)
        error = task.error
        self._record(task, "ends" if error is None else f"ends with {type(error).__name__}", "")
        if error is None or task._owned or isinstance(error, (Killed, *task._may_fail)):
            return
        self._failure = self._failure or error

    def task(self) -> Task:
        """Return the task that runs now. An error where none does (plain test code)."""
        if self._current is None:
            raise WorldError("only a task can wait: call this from a function given to spawn()")
        return self._current

    @property
    def in_task(self) -> bool:
        """Whether a task runs now. Plain test code may call ports too: they answer at once."""
        return self._current is not None

    def kill(self, host: Host) -> None:
        """End every task of `host` now, with `Killed`; called by `Host.kill`."""
        current = self._current
        for task in list(host.tasks):
            if task is not current:
                self._throw(task)
        if current is not None and current.host is host:
            raise Killed

    def _throw(self, task: Task) -> None:
        task._blocked = False
        task._token += 1
        if not task._started:
            task.error = Killed()
            self._end(task)
            return
        before, self._current = self._current, task
        task._greenlet.parent = getcurrent()  # its end hands the turn back to us, not to the hub
        try:
            task._greenlet.throw(Killed)
        finally:
            self._current = before

    def close(self) -> None:
        """End every task. Left alone they would end when Python collects them, at any time."""
        self._closed = True
        for host in list(self.hosts.values()):
            if not host.dead:
                host.kill()
        for task in [task for task in self.tasks if not task.done]:
            self._throw(task)
        for task in self.tasks:
            # Frames of its traceback may hold a reader of Arrow's, which holds the store and with it
            # this world, where the collector cannot see it.
            task.error = task.result = None

    # --- switch points -------------------------------------------------------------------------

    def switch(self, label: str, detail: object = "") -> None:
        """Let the scheduler choose who runs next; return when it is this task's turn again.

        Outside any task it does nothing. `detail` must be a value that does not change: it is
        turned into text only when the trace is read.
        """
        task = self._current
        if task is None:
            return
        self._arrive(task, label, detail)
        if "world.stall" in self._faults and self.chance("world.stall"):
            self.meet("world.stall", task.title)
            self._push(int(60_000 ** self._chances["world.stall"].random()), task, task._token)
            task._blocked = True
        else:
            self._runnable.append(task)
        self._hub.switch()
        self._check_alive(task)

    def block(self, timeout_ms: int | None, label: str, detail: object = "") -> None:
        """Return after `timeout_ms` of virtual time, or when somebody woke this task."""
        task = self.task()
        self._arrive(task, label, detail)
        task._token += 1
        task._blocked = True
        if timeout_ms is not None:
            self._push(max(0, timeout_ms), task, task._token)
        self._hub.switch()
        self._check_alive(task)

    def wait_any(
        self,
        signals: Iterable[Signal],
        timeout_ms: int | None,
        label: str,
        detail: object = "",
    ) -> None:
        """Block the calling task until one of `signals` is notified, or for `timeout_ms`."""
        task = self.task()
        for signal in signals:
            signal._add(task)
        self.block(timeout_ms, label, detail)

    def sleep_ms(self, duration_ms: int, label: str, detail: object = "") -> None:
        """Return after `duration_ms`; zero is a plain switch point. At once outside any task."""
        if duration_ms > 0 and self._current is not None:
            self.block(duration_ms, label, detail)
        else:
            self.switch(label, detail)

    def _arrive(self, task: Task, label: str, detail: object) -> None:
        self._check_alive(task)
        task.at = label
        task.detail = detail
        self._trace.append((self.now_us, task.title, label, detail))
        if label in self._points:
            self._hit(task, label)
            self._check_alive(task)

    def _check_alive(self, task: Task) -> None:
        if not task.host.dead and not self._closed:
            return
        task._killed_raised += 1
        if task._killed_raised > KILLED_RAISED_MAX:
            self._failure = WorldError(f"{task} catches Killed and goes on, at {task.at}")
            task._greenlet.parent.switch()
        raise Killed

    def _wake(self, task: Task, token: int) -> None:
        if task._blocked and task._token == token:
            task._blocked = False
            task._token += 1
            self._runnable.append(task)

    # --- time ----------------------------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        """Virtual milliseconds since the world began."""
        return self.now_us // 1000

    @property
    def wall_ms(self) -> int:
        """The true time in milliseconds since 1970; hosts see it with their skew."""
        return WALL_START_MS + self.now_us // 1000

    def later(
        self, delay_ms: int, function: Callable[[], None], *, background: bool = False
    ) -> None:
        """Call `function` once, `delay_ms` from now, outside any task: a request that lands.

        It must not wait. What it raises ends `run`. A world in which only `background` calls
        are left counts as one where nothing more happens.
        """
        self._foreground += not background
        self._push(delay_ms, function, int(background))

    def _push(self, delay_ms: int, what: Task | Callable[[], None], token: int) -> None:
        self._sequence += 1
        heapq.heappush(self._timers, (self.now_us + delay_ms * 1000, self._sequence, what, token))

    def _fire(self) -> None:
        """Take the first timer. Its time has come."""
        due_us, _, what, token = heapq.heappop(self._timers)
        if due_us > self.now_us:
            self.now_us = due_us
        if isinstance(what, Task):
            if what._token == token:
                self._wake(what, token)
        else:
            self._foreground -= not token
            what()

    # --- the scheduler -------------------------------------------------------------------------

    def run(
        self,
        until: Callable[[], bool] | None = None,
        *,
        limit_ms: int | None = None,
        steps_max: int = 10_000_000,
    ) -> Ended:
        """Run until `until()` holds, `limit_ms` of virtual time passed or nothing is left to do.

        Returns:
            Which of the three it was: "until", "limit" or "done". The caller looks.

        Raises:
            WorldError: nothing can run and no deadline comes (a deadlock), or more than
                `steps_max` steps were taken.
            BaseException: whatever a task or a landing request raised and nobody expected.
        """
        if self._current is not None or getcurrent() is not self._hub:
            raise WorldError("run() was called from a task")
        end_us = float("inf") if limit_ms is None else self.now_us + limit_ms * 1000
        steps_end = self.steps + steps_max
        timers, by_step = self._timers, self._by_step
        while True:
            if until is not None and until():
                return "until"
            if self._runnable:
                if self.now_us >= end_us:
                    return "limit"
                if timers and timers[0][0] <= self.now_us:
                    self._fire()
                elif by_step and by_step[0][0] <= self.steps:
                    heapq.heappop(by_step)[2]()
                else:
                    self._step(steps_end)
            elif self._is_idle():
                return "done"
            elif timers and timers[0][0] <= end_us:
                self._fire()
            elif limit_ms is not None:
                self.now_us = max(self.now_us, int(end_us))
                return "limit"
            else:
                self._fire()

    def _step(self, steps_end: int) -> None:
        runnable = self._runnable
        index = int(self._scheduler.random() * len(runnable))
        task = runnable[index]
        runnable[index] = runnable[-1]
        runnable.pop()
        if task.host.paused_until_us > self.now_us:
            task.host.parked.append(task)
            return
        if task.done:
            return
        self.steps += 1
        self.now_us += STEP_US
        if self.steps > steps_end:
            raise WorldError(f"no end after {self.steps} steps:\n{self.describe()}")
        task._started = True
        self._current = task
        task._greenlet.switch()
        self._current = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _is_idle(self) -> bool:
        if self._foreground:
            return False
        for _, _, what, token in self._timers:
            if isinstance(what, Task) and what._blocked and what._token == token:
                return False
        if any(host.tasks for host in self.hosts.values()):
            raise WorldError(f"deadlock: nothing can run, nothing will\n{self.describe()}")
        return True

    # --- chance and faults ---------------------------------------------------------------------

    def random(self, name: str) -> Random:
        """Return a generator of its own, from the seed and `name`, for fakes and tests."""
        return Random(f"{self.seed}/{name}")  # noqa: S311 - simulation, not secrets

    def declare(self, faults: Mapping[str, str]) -> None:
        """Make fault names known: name to one sentence. Fakes call it when they are made."""
        self._declared.update(faults)

    @property
    def declared(self) -> Mapping[str, str]:
        """Every fault that can be switched on in this world, with what it does."""
        return dict(self._declared)

    def enable(self, name: str, probability: float) -> None:
        """Let the fault happen with `probability` wherever it could. Zero switches it off."""
        if name not in self._declared:
            known = ", ".join(sorted(self._declared))
            raise WorldError(f"no fault is named {name}; known here: {known}")
        self._faults[name] = probability
        if name not in self._chances:
            # Each has a generator of its own: without one of them, the others draw as before.
            self._chances[name] = self.random(f"fault/{name}")

    def heal(self) -> None:
        """Switch every fault off. What is on its way already still arrives."""
        self._faults.clear()

    def chance(self, name: str) -> bool:
        """Return whether the fault is to happen now. Call `meet` once it really did."""
        probability = self._faults.get(name, 0.0)
        return probability > 0 and self._chances[name].random() < probability

    def meet(self, name: str, detail: object = "") -> None:
        """Count that a fault really happened, and say so in the trace."""
        if name not in self._declared:
            raise WorldError(f"no fault is named {name}: declare it first")
        self.met[name] += 1
        self.note(f"fault {name}", detail)

    def at(self, label: str, action: Callable[[Task], None], *, nth: int = 1) -> None:
        """Call `action(task)` when any task comes to the switch point `label` the `nth` time.

        The way to a directed test: kill or pause the task's host there.
        """
        self._points.setdefault(label, []).append((nth, action))

    def after_steps(self, steps: int, action: Callable[[], None]) -> None:
        """Call `action` once `steps` more steps were taken, outside any task.

        Random kills are best counted in steps: by time they would nearly always fall into waits.
        """
        self._sequence += 1
        heapq.heappush(self._by_step, (self.steps + steps, self._sequence, action))

    def _hit(self, task: Task, label: str) -> None:
        points = self._points.pop(label)
        due = [action for nth, action in points if nth <= 1]
        left = [(nth - 1, action) for nth, action in points if nth > 1]
        if left:
            self._points[label] = left
        for action in due:
            action(task)

    # --- what a person reads -------------------------------------------------------------------

    def note(self, label: str, detail: object = "") -> None:
        """Add a line to the trace: something happened that is not a switch point."""
        current = self._current
        self._trace.append((self.now_us, "-" if current is None else current.title, label, detail))

    def _record(self, task: Task, label: str, detail: object) -> None:
        self._trace.append((self.now_us, task.title, label, detail))

    @property
    def recorded(self) -> Iterable[tuple[int, str, str, object]]:
        """What `trace` shows, as it is kept: virtual µs, task, switch point, detail."""
        return self._trace

    @property
    def trace(self) -> list[str]:
        """The newest half a million lines of what happened: time, task, switch point, detail."""
        return [
            f"{us // 1000:>8}.{us % 1000:03} {task:<20} {label} {detail}".rstrip()
            for us, task, label, detail in self._trace
        ]

    def describe(self) -> str:
        """Return every living task and where it is, one a line, and the newest of the trace."""
        tasks = [task.state() for host in self.hosts.values() for task in host.tasks]
        return "\n".join([f"seed {self.seed}, {self.now_ms} ms", *tasks, *self.trace[-20:]])
