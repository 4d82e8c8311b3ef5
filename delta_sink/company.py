"""What a writer has to do with the other workers of its table, beside the log.

It says that it is there, hears whether it is paused, and asks for compactions of what it sees. All
of it is a courtesy: without it records are written as well.
"""

from __future__ import annotations

from delta_sink.asking import Asking
from delta_sink.attendance import Attendance
from delta_sink.delta.state import LogState
from delta_sink.ports import Jobs


class Company:
    """One writer's. Only its state thread touches it."""

    def __init__(self, attendance: Attendance, asking: Asking | None) -> None:
        self._attendance = attendance
        self._asking = asking

    @property
    def worker(self) -> str:
        """The worker's id."""
        return self._attendance.worker

    @property
    def is_paused(self) -> bool:
        """Whether the table's writers are to stand still."""
        return self._attendance.is_paused

    def advance(self, jobs: Jobs, state: LogState | None, oldest_ms: int | None) -> None:
        """Do what is due. `oldest_ms` is the timestamp of the oldest uncommitted record."""
        self._attendance.advance(jobs, oldest_uncommitted_ms=oldest_ms)
        if self._asking is not None and state is not None:
            self._asking.advance(jobs, state)

    def leave(self) -> None:
        """Say that the worker has ended."""
        self._attendance.leave()
