"""What metrics, traces and health checks cost: a drain with all of them against one with none.

*On*: figures are counted, served and scraped every second, figures and traces go to an OTLP
collector on this machine, and the dependencies are asked. *Off*: nothing is served or sent, and
counting does nothing (`telemetry_off.py`). Everything else is the same, the log above all.

Both drain the same topic in pairs, on and off, then off and on (ABBA). The ratio is the geometric
mean of the pairs' ratios; pairs are made until the half-width of its 95% confidence interval is small
enough. The first pair warms the broker's cache and does not count.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_service

from benchmarks.drain import (
    SERVERS_VARIABLE,
    brokers,
    compile_modules,
    drained_by_sink,
    emptied,
)
from benchmarks.drain_data import Backlog, fill
from tests.services.processes import free_port

EXPECTED_COST_MAX: Final = 0.03
HALF_WIDTH_MAX: Final = 0.015
SCRAPE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a run is: records of the topic, and between how many pairs it may end."""

    records: int = 500_000
    pairs_min: int = 8
    pairs_max: int = 200

    @classmethod
    def quick(cls) -> Shape:
        """Return a run of half a minute, which shows that it works and not much more."""
        return cls(records=40_000, pairs_min=2, pairs_max=2)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two drains, one after the other: seconds from the first poll to the last commit, and CPU."""

    on_s: float
    off_s: float
    on_cpu_s: float
    off_cpu_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """The whole result; `skipped` says why nothing was measured."""

    shape: Shape
    pairs: tuple[Pair, ...] = ()
    scrapes: int = 0
    spans: int = 0
    skipped: str | None = None

    @property
    def throughput(self) -> float:
        """The share of the throughput without telemetry that is left with it."""
        return math.exp(statistics.mean(self._logs))

    @property
    def half_width(self) -> float:
        """Half of the 95% confidence interval of `throughput`, as a share of it."""
        return half_width(self._logs)

    @property
    def cpu(self) -> float:
        """How many times as much CPU the whole process uses with telemetry."""
        ratios = [math.log(pair.on_cpu_s / pair.off_cpu_s) for pair in self.pairs]
        return math.exp(statistics.mean(ratios))

    @property
    def _logs(self) -> list[float]:
        return [math.log(pair.off_s / pair.on_s) for pair in self.pairs]

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        found: dict[str, object] = {"benchmark": "telemetry", "skipped": self.skipped}
        if not self.pairs:
            return found
        return found | {
            "records": self.shape.records,
            "pairs": len(self.pairs),
            "throughput_ratio": round(self.throughput, 4),
            "half_width": round(self.half_width, 4),
            "cpu_ratio": round(self.cpu, 4),
            "scrapes": self.scrapes,
            "spans": self.spans,
            "expected_min": 1 - EXPECTED_COST_MAX,
        }


def half_width(logs: Sequence[float]) -> float:
    """Return half of the 95% confidence interval of the mean of `logs`, as a share."""
    count = len(logs)
    if count < 2:
        return math.inf
    error = statistics.stdev(logs) / math.sqrt(count)
    return math.expm1(student_t(count - 1) * error)


def student_t(degrees: int) -> float:
    """Return the 97.5% quantile of Student's distribution: exact for 1 and 2, else to 1%.

    Source: the expansion of Cornish and Fisher around the normal quantile.
    """
    if degrees <= 2:
        return {1: 12.706, 2: 4.303}[degrees]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


# --- who takes what telemetry gives ---------------------------------------------------------------


class _Traces(trace_service.TraceServiceServicer):
    def __init__(self, seen: _Seen) -> None:
        self._seen = seen

    def Export(self, request: Any, context: object) -> Any:  # noqa: N802  # the protocol's name
        """Count the spans."""
        for resource in request.resource_spans:
            self._seen.spans += sum(len(scope.spans) for scope in resource.scope_spans)
        return traces.ExportTraceServiceResponse()


class _Figures(metrics_service.MetricsServiceServicer):
    def Export(self, request: Any, context: object) -> Any:  # noqa: N802  # the protocol's name
        """Take them."""
        return metrics.ExportMetricsServiceResponse()


@dataclass(slots=True)
class _Seen:
    """What was scraped and received; void figures would show here as nothing."""

    scrapes: int = 0
    spans: int = 0


@contextlib.contextmanager
def _collector(seen: _Seen) -> Iterator[str]:
    """Yield the address of a collector."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service.add_TraceServiceServicer_to_server(_Traces(seen), server)
    metrics_service.add_MetricsServiceServicer_to_server(_Figures(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


@contextlib.contextmanager
def _scraping(port: int, seen: _Seen) -> Iterator[None]:
    """Read the metrics of whoever listens at `port`, every second."""
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(SCRAPE_S if seen.scrapes else 0.1):
            with contextlib.suppress(OSError):  # it has not begun yet, or has ended
                url = f"http://127.0.0.1:{port}/metrics"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    seen.scrapes += len(answer.read()) > 0

    thread = threading.Thread(target=scrape, name="scrape")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# --- the run --------------------------------------------------------------------------------------


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> Cost:
    """Return what was measured, tables below `folder`; `say` tells a person how far it is.

    Raises:
        AssertionError: a drain failed, or nobody scraped or traced what was on: void figures.
    """
    with brokers(say) as servers:
        if servers is None:
            return Cost(
                shape,
                skipped="the cost of telemetry was not measured: no Kafka can be started here, "
                f"and {SERVERS_VARIABLE} names none",
            )
        with emptied(folder) as place:
            compile_modules(place)
        say(f"filling a topic with {shape.records:,} records")
        backlog = fill(servers, "nested", shape.records)
        seen = _Seen()
        with _collector(seen) as endpoint:
            found = _pairs(shape, backlog, endpoint, seen, folder, say)
    assert seen.scrapes, "telemetry was on and nobody scraped it"
    assert seen.spans, "telemetry was on and no trace came"
    return Cost(shape, tuple(found), seen.scrapes, seen.spans)


def _pairs(
    shape: Shape,
    backlog: Backlog,
    endpoint: str,
    seen: _Seen,
    folder: str,
    say: Callable[[str], None],
) -> list[Pair]:
    def drain(is_on: bool) -> tuple[float, float]:
        with emptied(folder) as place:
            return _drained(backlog, place, endpoint if is_on else None, seen)

    say("a pair to warm up")
    for is_on in (True, False):
        drain(is_on)
    pairs: list[Pair] = []
    while len(pairs) < shape.pairs_max:
        order = (True, False) if len(pairs) % 2 == 0 else (False, True)
        taken = {is_on: drain(is_on) for is_on in order}
        (on_s, on_cpu_s), (off_s, off_cpu_s) = taken[True], taken[False]
        pairs.append(Pair(on_s, off_s, on_cpu_s, off_cpu_s))
        cost = Cost(shape, tuple(pairs))
        say(f"pair {len(pairs)}: {cost.throughput:.4f} ± {cost.half_width:.4f}")
        if len(pairs) >= shape.pairs_min and cost.half_width <= HALF_WIDTH_MAX:
            break
    return pairs


def _drained(
    backlog: Backlog, folder: str, endpoint: str | None, seen: _Seen
) -> tuple[float, float]:
    """Return the seconds and the CPU seconds of one drain; with an endpoint telemetry is on."""
    if endpoint is None:
        found = drained_by_sink(backlog, folder, module="benchmarks.telemetry_off")
        return found.seconds, found.cpu_s
    port = free_port()
    more: Mapping[str, object] = {
        "http": {"host": "127.0.0.1", "port": port},
        "telemetry": {"otlp_endpoint": endpoint},
    }
    with _scraping(port, seen):
        found = drained_by_sink(backlog, folder, more=more)
    assert "export_failed" not in Path(folder, "stderr").read_text(encoding="utf-8")
    return found.seconds, found.cpu_s
