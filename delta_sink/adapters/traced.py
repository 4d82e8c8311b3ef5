"""Jobs that are timed, and that say when they begin and end.

The events are for debugging: what a killed worker was at can be read in its log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from delta_sink.ports import Clock, Job, Jobs, Telemetry
from delta_sink.telemetry import JOB_ENDED, JOB_STARTED, STAGE_DURATION

T = TypeVar("T")

_STAGES: Final[Mapping[str, str]] = {
    "decode": "decode",
    "encode": "encode",
    "put": "upload",
    "commit": "commit",
}
"""Jobs that are a stage of the pipeline, by the name that the metric has for them."""


class TracedJobs:
    """`Jobs` over other jobs: stages are measured; with `says_so` each job has two debug events."""

    def __init__(self, jobs: Jobs, clock: Clock, telemetry: Telemetry, *, says_so: bool) -> None:
        self._jobs = jobs
        self._clock = clock
        self._telemetry = telemetry
        self._says_so = says_so

    def submit(self, name: str, function: Callable[[], T]) -> Job[T]:
        """Start `function` and return at once."""

        def traced() -> T:
            began_ms = self._clock.elapsed_ms()
            if self._says_so:
                self._telemetry.event(JOB_STARTED, "debug", job=name)
            try:
                return function()
            finally:
                self._end(name, self._clock.elapsed_ms() - began_ms)

        return self._jobs.submit(name, traced)

    def _end(self, name: str, duration_ms: int) -> None:
        stage = _STAGES.get(name)
        if stage is not None:
            self._telemetry.observe(STAGE_DURATION, duration_ms / 1000, stage=stage)
        if self._says_so:
            self._telemetry.event(JOB_ENDED, "debug", job=name, duration_ms=duration_ms)

    def wait_ms(self, duration_ms: int) -> None:
        """Return when a job ends, or after `duration_ms`, whichever comes first."""
        self._jobs.wait_ms(duration_ms)
