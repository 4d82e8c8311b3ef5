"""Figures to an OTLP collector, in a thread of its own. Its library is the extra `otlp`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from delta_sink import __version__
from delta_sink import telemetry as declared
from delta_sink.adapters.logs import Histogram, LogTelemetry, Series, Snapshot
from delta_sink.errors import ConfigError
from delta_sink.ports import Clock

try:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        HistogramDataPoint,
        Metric,
        MetricExportResult,
        MetricsData,
        NumberDataPoint,
        ResourceMetrics,
        ScopeMetrics,
        Sum,
    )
    from opentelemetry.sdk.metrics.export import Histogram as HistogramData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from delta_sink.adapters.otlp_traces import TraceExport
except ImportError as error:
    raise ConfigError(
        ["telemetry.otlp_endpoint: needs the extra 'otlp': pip install 'delta-sink[otlp]'"]
    ) from error

PERIOD_S: Final = 15.0
SEND_S_MAX: Final = 5.0

_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE


class OtlpExport:
    """Sends figures, and traces if wanted, every `period_s`, and once more at `close`.

    A collector that does not answer costs nothing but what it is told: one event says so.
    """

    def __init__(
        self,
        endpoint: str,
        sink: str,
        figures: Callable[[], Snapshot],
        telemetry: LogTelemetry,
        *,
        clock: Clock,
        with_traces: bool,
        period_s: float = PERIOD_S,
    ) -> None:
        self._exporter = OTLPMetricExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=SEND_S_MAX
        )
        self._resource = Resource.create(
            {"service.name": "delta-sink", "service.version": __version__}
        )
        self._traces: TraceExport | None = None
        if with_traces:
            self._traces = TraceExport(
                endpoint, sink, self._resource, telemetry, clock, send_s_max=SEND_S_MAX
            )
        self._sink = sink
        self._figures = figures
        self._telemetry = telemetry
        self._period_s = period_s
        self._begun_ns = time.time_ns()
        self._is_failing = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the last figures and traces, each within `SEND_S_MAX`."""
        self._ended.set()
        self._thread.join(2 * SEND_S_MAX + 1)
        if self._traces is not None:
            self._traces.close()
        self._exporter.shutdown(timeout_millis=SEND_S_MAX * 1000)

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            self._send()
        self._send()

    def _send(self) -> None:
        result = self._exporter.export(self._data(), timeout_millis=SEND_S_MAX * 1000)
        is_failing = result is not MetricExportResult.SUCCESS
        if self._traces is not None and not self._traces.send():
            is_failing = True
        if is_failing and not self._is_failing:
            self._telemetry.event(
                declared.EXPORT_FAILED, error="the OTLP collector did not take everything"
            )
        self._is_failing = is_failing

    def _data(self) -> MetricsData:
        figures, now_ns = self._figures(), time.time_ns()
        metrics = [
            metric
            for declaration in declared.METRICS.values()
            if (metric := self._metric(declaration, figures, now_ns)) is not None
        ]
        scope = ScopeMetrics(InstrumentationScope("delta_sink", __version__), metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _metric(self, metric: declared.Metric, figures: Snapshot, now_ns: int) -> Metric | None:
        data: Sum | Gauge | HistogramData
        if metric.kind == "histogram":
            points = [
                self._histogram(tags, found, now_ns)
                for (name, tags), found in figures.histograms.items()
                if name == metric.name
            ]
            data = HistogramData(points, _CUMULATIVE)
            return Metric(metric.name, metric.sentence, "s", data) if points else None
        values = figures.counters if metric.kind == "counter" else figures.gauges
        numbers = list(self._numbers(metric.name, values, now_ns))
        if not numbers:
            return None
        data = Sum(numbers, _CUMULATIVE, True) if metric.kind == "counter" else Gauge(numbers)
        return Metric(metric.name, metric.sentence, _UNITS.get(metric.unit, "1"), data)

    def _numbers(
        self, metric: str, values: Mapping[Series, float], now_ns: int
    ) -> Iterator[NumberDataPoint]:
        for (name, tags), value in values.items():
            if name == metric:
                yield NumberDataPoint(self._attributes(tags), self._begun_ns, now_ns, float(value))

    def _histogram(
        self, tags: tuple[tuple[str, str | int], ...], found: Histogram, now_ns: int
    ) -> HistogramDataPoint:
        return HistogramDataPoint(
            attributes=self._attributes(tags),
            start_time_unix_nano=self._begun_ns,
            time_unix_nano=now_ns,
            count=found.count,
            sum=found.sum,
            bucket_counts=list(found.counts),
            explicit_bounds=list(found.buckets),
            min=None,  # type: ignore[arg-type]  # the message has it as optional; it is not kept
            max=None,  # type: ignore[arg-type]  # as above
        )

    def _attributes(self, tags: tuple[tuple[str, str | int], ...]) -> dict[str, str]:
        return {"sink": self._sink, **{name: str(value) for name, value in tags}}


_UNITS: Final[Mapping[str, str]] = {"seconds": "s", "bytes": "By"}
