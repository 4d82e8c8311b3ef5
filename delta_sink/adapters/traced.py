"""Jobs that say when they begin and end: what a killed worker was at can be read in its log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from delta_sink.ports import Clock, Job, Jobs, Telemetry
from delta_sink.telemetry import JOB_ENDED, JOB_STARTED

T = TypeVar("T")


class TracedJobs:
    """`Jobs` over other jobs, with a debug event at the beginning and the end of each."""

    def __init__(self, jobs: Jobs, clock: Clock, telemetry: Telemetry) -> None:
        self._jobs = jobs
        self._clock = clock
        self._telemetry = telemetry

    def submit(self, name: str, function: Callable[[], T]) -> Job[T]:
        """Start `function` and return at once."""

        def traced() -> T:
            began_ms = self._clock.elapsed_ms()
            self._telemetry.event(JOB_STARTED, "debug", job=name)
            try:
                return function()
            finally:
                duration_ms = self._clock.elapsed_ms() - began_ms
                self._telemetry.event(JOB_ENDED, "debug", job=name, duration_ms=duration_ms)

        return self._jobs.submit(name, traced)

    def wait_ms(self, duration_ms: int) -> None:
        """Return when a job ends, or after `duration_ms`, whichever comes first."""
        self._jobs.wait_ms(duration_ms)
