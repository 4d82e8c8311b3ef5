"""Metrics, probes and status of one worker, over HTTP and, where configured, to a collector.

A `Station` is opened before the worker begins, so that a worker that waits for its store can be
asked why; the worker is attached once it is there. It only looks: nothing here changes what the
worker does, and a question never makes a request to a dependency of its own. The dependencies are
asked in threads of their own, every `PERIOD_MS`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from delta_sink import __version__
from delta_sink import telemetry as declared
from delta_sink.adapters.exposition import CONTENT_TYPE, Exposition, with_gauges
from delta_sink.adapters.health import HealthCheck
from delta_sink.adapters.http_server import Answer, HttpServer
from delta_sink.adapters.logs import Snapshot
from delta_sink.adapters.watched import WatchedConsumer
from delta_sink.claim import Source
from delta_sink.errors import ObjectMissing
from delta_sink.ports import Consumer, LeaseStore
from delta_sink.presence import WorkerRole
from delta_sink.status import (
    Ends,
    Reach,
    Verdict,
    WorkerStatus,
    gauges,
    liveness,
    readiness,
    status_json,
)
from delta_sink.view import table_spec
from delta_sink.wiring import Parts, make_leases, memory_bytes_max

if TYPE_CHECKING:
    from delta_sink.adapters.otlp import OtlpExport

BROKER_ANSWER_MS_MAX = 5_000
STORE_PROBE_PATH = "_delta_log/_last_checkpoint"
"""Whether it is there or not, the store has answered."""

_TEXT = "text/plain; charset=utf-8"


class Station:
    """Says how one worker is, from `__enter__` to `__exit__`; without `http` it listens nowhere."""

    def __init__(self, parts: Parts, role: WorkerRole) -> None:
        self._parts = parts
        self._role = role
        self._clock = parts.log.clock
        self._worker: Callable[[], WorkerStatus] | None = None
        self._ends = Ends()
        self._memory_bytes_max = memory_bytes_max(parts.settings)
        self._exposition = Exposition(parts.settings.name)
        self._checks: tuple[HealthCheck, ...] = ()
        self._server: HttpServer | None = None
        self._otlp: OtlpExport | None = None
        self._leases: LeaseStore | None = None

    def __enter__(self) -> Self:
        """Listen, and begin to ask the dependencies, if the configuration says so.

        Raises:
            ConfigError: the address cannot be had.
        """
        settings = self._parts.settings
        if settings.http is not None:
            self._server = HttpServer(settings.http.host, settings.http.port, self._routes())
            self._parts.telemetry.event(declared.HTTP_LISTENING, address=self._server.address)
        if settings.http is None and settings.telemetry.otlp_endpoint is None:
            return self
        asked = {"broker": self._ask_broker(), "store": self._ask_store, "locks": self._ask_locks}
        self._checks = tuple(
            HealthCheck(name, ask, clock=self._clock, telemetry=self._parts.telemetry)
            for name, ask in asked.items()
        )
        for check in self._checks:
            check.start()
        if settings.telemetry.otlp_endpoint is not None:
            from delta_sink.adapters.otlp import OtlpExport  # its library is an extra

            self._otlp = OtlpExport(
                settings.telemetry.otlp_endpoint,
                settings.name,
                self.figures,
                self._parts.telemetry,
                clock=self._clock,
                with_traces=settings.telemetry.traces,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listen no more."""
        for check in self._checks:
            check.close()
        if self._otlp is not None:
            self._otlp.close()
        if self._server is not None:
            self._server.close()

    def attach(self, worker: Callable[[], WorkerStatus]) -> None:
        """Say from now on how this worker is."""
        self._worker = worker

    def watch(self, consumer: Consumer, worker: str) -> Consumer:
        """Return the consumer to hand to a worker that does not say how it stands by itself."""
        watched = WatchedConsumer(
            consumer, self._clock, worker=worker, role=self._role, table=self._parts.table_uri
        )
        self.attach(lambda: watched.status)
        return watched

    # --- what is served --------------------------------------------------------------------------

    def _routes(self) -> dict[str, Callable[[], Answer]]:
        return {
            "/metrics": lambda: Answer(200, CONTENT_TYPE, self._exposition.text(self.figures())),
            "/livez": lambda: _verdict(
                liveness(self._status(), now_ms=self._clock.elapsed_ms()),
            ),
            "/readyz": lambda: _verdict(readiness(self._status(), self._reaches())),
            "/status": self._status_answer,
        }

    def figures(self) -> Snapshot:
        """Return all figures as they stand now."""
        found = gauges(self._status(), self._reaches(), self._ends, wall_ms=self._clock.wall_ms())
        own = [
            (declared.BUILD_INFO, 1.0, {"version": __version__}),
            (declared.MEMORY_LIMIT_BYTES, float(self._memory_bytes_max), {}),
        ]
        return with_gauges(self._parts.telemetry.snapshot(), [*own, *found])

    def _status_answer(self) -> Answer:
        wall_ms = self._clock.wall_ms()
        head = {"sink": self._parts.settings.name, "version": __version__, "at_ms": wall_ms}
        found = head | status_json(self._status(), self._reaches(), self._ends, wall_ms=wall_ms)
        return Answer(200, "application/json", json.dumps(found).encode() + b"\n")

    def _status(self) -> WorkerStatus | None:
        return None if self._worker is None else self._worker()

    def _reaches(self) -> dict[str, Reach]:
        return {check.name: check.reach for check in self._checks}

    # --- what is asked ---------------------------------------------------------------------------

    def _ask_broker(self) -> Callable[[], None]:
        """Return the question to the brokers; its client is its own, used by one thread."""
        from delta_sink.adapters.kafka_admin import KafkaBroker  # see `wiring`

        settings = self._parts.settings
        broker = KafkaBroker(
            settings.kafka,
            settings.source.topic_ids == "required",
            telemetry=self._parts.telemetry,
            answer_ms_max=BROKER_ANSWER_MS_MAX,
        )
        source = Source(settings, self._parts.log, broker, table_spec(settings))

        def ask() -> None:
            status = self._status()
            tps = [] if status is None else [part.tp for part in status.partitions]
            if status is None or not tps:
                source.topics()
                return
            ends = broker.offsets(tps, "latest")
            # The worker may have gone on meanwhile: what it has now goes with these ends.
            self._ends.seen(ends, self._status() or status, wall_ms=self._clock.wall_ms())

        return ask

    def _ask_store(self) -> None:
        with contextlib.suppress(ObjectMissing):
            self._parts.log.store.get(STORE_PROBE_PATH)

    def _ask_locks(self) -> None:
        """Read something; the worker itself says in the lock store that it is there."""
        if self._leases is None:
            self._leases = make_leases(self._parts.settings)
        self._leases.get(f"sink/{self._parts.settings.name}")


def _verdict(verdict: Verdict) -> Answer:
    return Answer(200 if verdict.ok else 503, _TEXT, f"{verdict.sentence}\n".encode())
