"""The machine's own clock, chance and threads, as the ports name them."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from delta_sink.ports import Job

T = TypeVar("T")

JOBS_MAX = 10_000
"""How many jobs may wait for a thread; a worker that has more out has lost count of them."""

_NS_PER_MS: Final = 1_000_000


def _counting_suspended() -> int | None:
    """Return the id of the clock that goes on while the machine sleeps, or None."""
    # Linux calls it BOOTTIME. On macOS it is MONOTONIC_RAW: there Python's own monotonic clock
    # stands still during sleep. Elsewhere Python's own is the nearest.
    return getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC_RAW", None)


class SystemClock:
    """The machine's `Clock`."""

    def __init__(self) -> None:
        self._clock_id = _counting_suspended()

    def wall_ms(self) -> int:
        """Return milliseconds since 1970 in UTC. It may jump."""
        return time.time_ns() // _NS_PER_MS

    def elapsed_ms(self) -> int:
        """Return milliseconds on a clock that never goes back and counts suspended time."""
        if self._clock_id is None:
            return time.monotonic_ns() // _NS_PER_MS
        return time.clock_gettime_ns(self._clock_id) // _NS_PER_MS

    def sleep_ms(self, duration_ms: int) -> None:
        """Return after at least `duration_ms`; at once if it is not above 0."""
        if duration_ms > 0:
            time.sleep(duration_ms / 1000)


class SystemEntropy:
    """The operating system's `Entropy`: processes started together still differ."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def unique_id(self) -> str:
        """Return 122 random bits as 32 lower-case hexadecimal digits."""
        return uuid.uuid4().hex

    def fraction(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()


class _ThreadJob(Generic[T]):
    """A job that a thread of `ThreadJobs` runs once. `Job` is what others see of it."""

    __slots__ = ("_error", "_function", "_is_done", "_result", "name")

    def __init__(self, name: str, function: Callable[[], T]) -> None:
        self.name = name
        self._function: Callable[[], T] | None = function
        self._result: T | None = None
        self._error: BaseException | None = None
        self._is_done = False

    def run(self) -> None:
        """Run the function, keep its value or its error, and let go of what it refers to."""
        assert self._function is not None, "a job runs once"
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001  # `result` raises it in the state thread
            self._error = error
        self._function = None
        self._is_done = True

    def is_done(self) -> bool:
        """Return whether the function has returned or raised."""
        return self._is_done

    def result(self) -> T:
        """Return what the function returned, or raise what it raised. Only when `is_done`."""
        assert self._is_done, f"job {self.name} is not done"
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value] # None only where T is None


class ThreadJobs:
    """`Jobs` on `workers` threads of this process.

    The threads are daemons: a job that hangs in a system call keeps no process alive. Jobs start
    in the order of `submit`.
    """

    def __init__(self, workers: int) -> None:
        assert workers >= 1, workers
        self._jobs: queue.SimpleQueue[_ThreadJob[object] | None] = queue.SimpleQueue()
        # A SimpleQueue, not an Event: a signal handler may put into it while the same thread is
        # inside `get`; `Event.set` there could wait for a lock that its own thread holds.
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"delta-sink-job-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, name: str, function: Callable[[], T]) -> Job[T]:
        """Start `function` as soon as a thread is free, and return at once."""
        assert not self._is_closed, f"job {name} submitted after close"
        assert self._jobs.qsize() < JOBS_MAX, f"more than {JOBS_MAX} jobs wait"
        job = _ThreadJob(name, function)
        self._jobs.put(job)  # type: ignore[arg-type] # the queue holds jobs of every type
        return job

    def wait_ms(self, duration_ms: int) -> None:
        """Return when a job ends, at `wake`, or after `duration_ms`, whichever comes first.

        A job that ended since the last return counts. Look at every job's `is_done` afterwards:
        several may have ended.
        """
        with contextlib.suppress(queue.Empty):
            if duration_ms > 0:
                self._ended.get(timeout=duration_ms / 1000)
            while True:
                self._ended.get_nowait()

    def wake(self) -> None:
        """End the present or the next `wait_ms` at once. Any thread, and signal handlers, may."""
        self._ended.put(None)

    def close(self, timeout_ms: int) -> bool:
        """Start no more jobs, wait up to `timeout_ms` for running ones; say whether all ended.

        Jobs that no thread has begun are never run. One that is still running is left behind.
        """
        self._is_closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        deadline_ns = time.monotonic_ns() + timeout_ms * _NS_PER_MS
        for thread in self._threads:
            thread.join(max(0, deadline_ns - time.monotonic_ns()) / 1e9)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # its result may be large, and this thread may wait long for the next one
            self._ended.put(None)
