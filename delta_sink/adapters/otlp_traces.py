"""Traces to an OTLP collector. Its library is the extra `otlp`; `otlp.py` says so where it lacks."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator
from typing import Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from delta_sink import __version__
from delta_sink.adapters.logs import LogTelemetry
from delta_sink.ports import Clock
from delta_sink.telemetry import TRACES_LOST
from delta_sink.traces import Trace

WAITING_MAX: Final = 1_000
"""So many traces wait to be sent; when more come, the oldest are lost."""

SEND_SPANS_MAX: Final = 512

_SCOPE: Final = InstrumentationScope("delta_sink", __version__)
_NS_PER_MS: Final = 1_000_000


class TraceExport:
    """Takes traces from any thread, and sends them when the thread of the figures asks for it."""

    def __init__(
        self,
        endpoint: str,
        sink: str,
        resource: Resource,
        telemetry: LogTelemetry,
        clock: Clock,
        *,
        send_s_max: float,
    ) -> None:
        self._exporter = OTLPSpanExporter(
            endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=send_s_max
        )
        self._sink = sink
        self._resource = resource
        self._telemetry = telemetry
        self._clock = clock
        self._waiting: deque[Trace] = deque()
        telemetry.hand_traces_to(self.take)

    def take(self, trace: Trace) -> None:
        """Keep a trace until the next sending."""
        self._waiting.append(trace)
        if len(self._waiting) > WAITING_MAX:
            self._waiting.popleft()
            self._telemetry.count(TRACES_LOST)

    def send(self) -> bool:
        """Send what waits; return whether the collector took it. What it did not take is lost."""
        spans: list[ReadableSpan] = []
        traces, is_taken = 0, True
        # A worker that commits all the time must not keep this thread: what waits now is sent.
        for _ in range(len(self._waiting)):
            spans += self._spans(self._waiting.popleft())
            traces += 1
            if len(spans) >= SEND_SPANS_MAX:
                is_taken = self._sent(spans, traces) and is_taken
                spans, traces = [], 0
        return (self._sent(spans, traces) if spans else True) and is_taken

    def close(self) -> None:
        """Take no more traces."""
        self._telemetry.hand_traces_to(None)
        self._exporter.shutdown()

    def _sent(self, spans: list[ReadableSpan], traces: int) -> bool:
        is_taken = self._exporter.export(spans) is SpanExportResult.SUCCESS
        if not is_taken:
            self._telemetry.count(TRACES_LOST, traces)
        return is_taken

    def _spans(self, trace: Trace) -> Iterator[ReadableSpan]:
        """Yield the trace's root, then its steps."""
        since_1970_ms = self._clock.wall_ms() - self._clock.elapsed_ms()
        trace_id = secrets.randbits(128)
        fields = {f"delta_sink.{name}": _value(value) for name, value in trace.fields.items()}
        root = self._span(
            trace_id,
            None,
            f"delta_sink {trace.name}",
            (since_1970_ms + trace.begun_ms, since_1970_ms + trace.ended_ms),
            {"delta_sink.sink": self._sink, **fields},
            trace.error,
        )
        yield root
        for span in trace.spans:
            times_ms = (since_1970_ms + span.begun_ms, since_1970_ms + span.ended_ms)
            error = "it failed" if span.is_failed else None
            yield self._span(trace_id, root.context, span.name, times_ms, {}, error)

    def _span(
        self,
        trace_id: int,
        parent: SpanContext | None,
        name: str,
        times_ms: tuple[int, int],
        attributes: dict[str, str | int],
        error: str | None,
    ) -> ReadableSpan:
        sampled = TraceFlags(TraceFlags.SAMPLED)
        return ReadableSpan(
            name=name,
            context=SpanContext(
                trace_id, secrets.randbits(64), is_remote=False, trace_flags=sampled
            ),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.OK) if error is None else Status(StatusCode.ERROR, error),
            start_time=times_ms[0] * _NS_PER_MS,
            end_time=times_ms[1] * _NS_PER_MS,
            instrumentation_scope=_SCOPE,
        )


def _value(value: object) -> str | int:
    return value if isinstance(value, int) else str(value)
