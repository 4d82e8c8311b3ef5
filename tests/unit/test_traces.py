"""Spans of work under way, and what becomes of traces that nobody takes."""

from __future__ import annotations

import io
import itertools

import pytest
from opentelemetry.sdk.resources import Resource

from delta_sink import telemetry as declared
from delta_sink.adapters.logs import LogTelemetry
from delta_sink.adapters.otlp_traces import WAITING_MAX, TraceExport
from delta_sink.telemetry import TRACES_LOST
from delta_sink.testing import World
from delta_sink.traces import SPANS_MAX, Span, Spans, Trace
from tests.simulation.harness import Simulation
from tests.unit.scripted import ScriptedClock


def clock_of(*times_ms):
    times = iter(times_ms)
    return lambda: next(times)


def test_a_function_is_timed_whatever_becomes_of_it():
    spans = Spans(clock_of(10, 15, 20, 21))
    assert spans.timed("decode", lambda: 7)() == 7
    with pytest.raises(ZeroDivisionError):
        spans.timed("encode", lambda: 1 / 0)()
    assert spans.found == [Span("decode", 10, 15), Span("encode", 20, 21, is_failed=True)]


def test_where_nobody_wants_traces_a_function_is_left_as_it_is():
    spans = Spans()
    function = object()
    assert spans.timed("decode", function) is function
    spans.add("poll", 3)
    assert spans.found == []


def test_steps_without_an_end_are_not_kept_without_an_end():
    spans = Spans(lambda: 1)
    for _ in range(SPANS_MAX + 5):
        spans.add("poll", 0)
    other = Spans(lambda: 1)
    other.add("poll", 0)
    spans.join(other)
    assert len(spans.found) == SPANS_MAX


def traced_run(seed, *, is_tracing):
    """Return the traces of a simulated writer, and its commits."""
    with World(seed) as world:
        sim = Simulation(world)
        sim.start("w0")
        telemetry = sim.workers["w0"].host.telemetry
        telemetry.is_tracing = is_tracing
        for _ in range(3):
            sim.fill(8)
            sim.run(lambda: sim.is_complete)
        sim.finish()
        return telemetry.traces, telemetry.named("table_committed")


@pytest.mark.parametrize("seed", range(3))
def test_each_commit_has_a_trace_whose_steps_are_in_order(seed):
    traces, commits = traced_run(seed, is_tracing=True)
    committed = [trace for trace in traces if trace.error is None]
    assert [t.fields["version"] for t in committed] == [c["version"] for c in commits]
    for trace in committed[1:]:  # the first batch had begun before anybody wanted traces
        ends = {span.name: span.ended_ms for span in trace.spans}
        begins = {span.name: span.begun_ms for span in reversed(trace.spans)}
        assert set(ends) >= {"poll", "decode", "encode", "commit"}
        order = ["decode", "encode", "upload", "commit"]
        present = [name for name in order if name in ends]
        for before, after in itertools.pairwise(present):
            assert ends[before] <= begins[after], (before, after, trace.spans)
        assert trace.begun_ms <= min(begins.values())
        assert max(ends.values()) <= trace.ended_ms


def test_without_a_taker_nothing_is_gathered():
    assert traced_run(1, is_tracing=False)[0] == []


def make_export():
    clock = ScriptedClock()
    telemetry = LogTelemetry(io.StringIO(), clock=clock, secrets=["hunter22"])
    # Nothing listens on port 1: what is sent is refused.
    export = TraceExport("http://127.0.0.1:1", "s", Resource({}), telemetry, clock, send_s_max=0.2)
    return telemetry, export


def trace_of(error=None):
    return Trace(declared.COMMAND_TRACE, 1, 2, (Span("begin", 1, 2),), {"id": "hunter22"}, error)


def test_traces_that_nobody_takes_are_bounded_and_counted():
    telemetry, export = make_export()
    assert telemetry.is_tracing
    for _ in range(WAITING_MAX + 3):
        telemetry.trace(trace_of())
    assert telemetry.snapshot().value(TRACES_LOST) == 3
    export.close()
    assert not telemetry.is_tracing


def test_what_was_not_taken_is_lost_and_not_sent_again():
    telemetry, export = make_export()
    telemetry.trace(trace_of())
    assert not export.send()
    assert telemetry.snapshot().value(TRACES_LOST) == 1
    assert export.send(), "nothing waits"
    export.close()


def test_no_trace_holds_a_secret_or_what_is_not_declared():
    telemetry = LogTelemetry(io.StringIO(), clock=ScriptedClock(), secrets=["hunter22"])
    taken = []
    telemetry.hand_traces_to(taken.append)
    telemetry.trace(trace_of("no hunter22 here"))
    assert (taken[0].fields["id"], taken[0].error) == ("***", "no *** here")
    with pytest.raises(AssertionError):
        telemetry.trace(Trace("batches", 1, 2, ()))
    with pytest.raises(AssertionError):
        telemetry.trace(Trace(declared.BATCH_TRACE, 1, 2, (), {"value": 1}))
