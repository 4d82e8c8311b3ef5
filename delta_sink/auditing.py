"""The audit that is always on: one compactor a table proves the log again, every six hours.

Under the lease `audit` it reads the log as `delta-sink audit` does, without rows, and says what
came of it as two figures. Only one worker has the lease; whoever loses it, or is to stop, says
nothing any more.

It costs one GET for each entry that the log still has: at a commit a second and a day of entries
that is 86,400 every six hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from delta_sink import telemetry as declared
from delta_sink.audit import audit_log
from delta_sink.audit_report import Audit
from delta_sink.delta.actions import Entry
from delta_sink.delta.logstore import Listing, LogStore
from delta_sink.errand import Errand, Interrupted, Rest, Steps, do
from delta_sink.errors import RetriableError, TableRefused
from delta_sink.lease import lease_key
from delta_sink.ports import Created, Exists
from delta_sink.trouble import Trouble

AUDIT_PERIOD_MS: Final = 6 * 3_600_000
AGAIN_MS: Final = 60_000
"""So late it is tried again where there was no table yet, or the store did not answer."""

LOOK_MS: Final = 5_000
"""How long a lease that was lost may go unnoticed between two audits."""


class InterruptibleLog(Struct):
    """The `LogStore` `entries`, which reads no further once `may_go_on` says so.

    An audit may read for minutes, and a worker that is to stop must not wait for it.
    """

    entries: LogStore
    may_go_on: Callable[[], bool]
    kind: str

    def create(self, version: int, body: bytes) -> Created | Exists:
        """Do as `LogStore.create`."""
        return self.entries.create(version, body)

    def read(self, version: int) -> Entry | None:
        """Do as `LogStore.read`. Raises Interrupted where nothing more may be begun."""
        if not self.may_go_on():
            raise Interrupted("the audit is left to another")
        return self.entries.read(version)

    def list(self, version: int = 0) -> Listing:
        """Do as `LogStore.list`."""
        return self.entries.list(version)


def audit_again(errand: Errand) -> Steps[None]:
    """Audit every `AUDIT_PERIOD_MS` until the worker stops."""
    key = lease_key(errand.upkeep.table_uri, "audit")
    trouble = Trouble()
    while True:
        held = yield from errand.hold(key)
        try:
            # Without locks every compactor would read the whole log: rather nobody does.
            while held is not None:
                rest_ms = yield from _audit(errand, trouble)
                yield from _wait(errand, rest_ms)
        except Interrupted:
            if errand.is_stopping:
                _say(errand, None)
                yield from errand.let_go(key)
                return
        _say(errand, None)
        yield from errand.let_go(key)
        yield Rest(AGAIN_MS)


def _audit(errand: Errand, trouble: Trouble) -> Steps[int]:
    """Audit once, and return how long to wait for the next time."""
    log = errand.upkeep.log
    watched = replace(
        log, entries=InterruptibleLog(log.entries, lambda: errand.may_go_on, log.entries.kind)
    )
    try:
        found = yield from do("audit", lambda: audit_log(watched, errand.upkeep.settings.name))
    except (RetriableError, TableRefused) as error:
        if trouble.failed(str(error), log.clock.elapsed_ms()):
            log.telemetry.event("waiting", reason=f"the audit: {error}")
        return AGAIN_MS
    trouble.is_over()
    _say(errand, found)
    return AUDIT_PERIOD_MS


def _wait(errand: Errand, duration_ms: int) -> Steps[None]:
    """Return when so much time has passed. Raises Interrupted where the lease is lost meanwhile."""
    clock = errand.upkeep.log.clock
    until_ms = clock.elapsed_ms() + duration_ms
    while (left_ms := until_ms - clock.elapsed_ms()) > 0:
        yield from errand.go_on()
        yield Rest(min(LOOK_MS, left_ms))


def _say(errand: Errand, found: Audit | None) -> None:
    """Export what an audit has found, or nothing of it."""
    telemetry = errand.upkeep.log.telemetry
    at_s = None if found is None else errand.upkeep.log.clock.wall_ms() / 1000
    telemetry.gauge(declared.AUDIT_OK, None if found is None else float(found.ok))
    telemetry.gauge(declared.AUDIT_LAST_RUN, at_s)
    if found is not None and not found.ok:
        telemetry.event(
            declared.AUDIT_FAILED, version=found.table_version, error=found.violations[0]
        )
