"""A worker's place among the others: it says that it is there, and hears whether it is paused.

One job every `PERIOD_MS` does both. The lock store is a courtesy: where it does not answer, a
worker goes on as it was.
"""

from __future__ import annotations

from msgspec.structs import replace

from delta_sink.control import Role
from delta_sink.errors import DeltaSinkError
from delta_sink.ports import Clock, Job, Jobs, LeaseStore, Telemetry
from delta_sink.presence import PERIOD_MS, Place, Presence, leave, paused_state, publish
from delta_sink.trouble import Trouble


class Attendance:
    """One worker's. Only its state thread touches it; `role` is which pause it obeys."""

    def __init__(
        self,
        leases: LeaseStore,
        clock: Clock,
        telemetry: Telemetry,
        presence: Presence,
        role: Role,
    ) -> None:
        self._leases = leases
        self._clock = clock
        self._telemetry = telemetry
        self._presence = presence
        self._role = role
        self._place: Place | None = None
        self._job: Job[tuple[Place, bool]] | None = None
        self._due_ms: int | None = None
        self._trouble = Trouble()
        self.is_paused = False

    @property
    def worker(self) -> str:
        """The worker's id."""
        return self._presence.worker

    def advance(self, jobs: Jobs, *, oldest_uncommitted_ms: int | None = None) -> None:
        """Take what the last look has found; look again when it is time."""
        now_ms = self._clock.elapsed_ms()
        if self._job is not None and self._job.is_done():
            self._take(self._job, now_ms)
            self._job = None
        if self._job is None and (self._due_ms is None or now_ms >= self._due_ms):
            self._due_ms = now_ms + PERIOD_MS
            presence = replace(self._presence, oldest_uncommitted_ms=oldest_uncommitted_ms)
            place = self._place
            self._job = jobs.submit("attend", lambda: self._look(presence, place))

    def refresh(self) -> None:
        """Look again at once: a pause was just begun or ended."""
        self._due_ms = None

    def leave(self) -> None:
        """Say that the worker has ended."""
        if self._place is not None:
            leave(self._leases, self._place)

    def _look(self, presence: Presence, place: Place | None) -> tuple[Place, bool]:
        found = publish(self._leases, presence, place, now_ms=self._clock.wall_ms())
        return found, paused_state(self._leases, presence.table, self._role).is_paused

    def _take(self, job: Job[tuple[Place, bool]], now_ms: int) -> None:
        try:
            self._place, is_paused = job.result()
        except DeltaSinkError as error:
            if self._trouble.failed(str(error), now_ms):
                reason = f"working without locks: {error}"
                self._telemetry.event("waiting", "warning", reason=reason)
            return
        self._trouble.is_over()
        if is_paused != self.is_paused:
            self.is_paused = is_paused
            self._telemetry.event("paused" if is_paused else "resumed", role=self._presence.role)
