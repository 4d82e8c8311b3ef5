"""Traces of batches and of commands, as a collector on this machine receives them."""

from __future__ import annotations

import json
import threading
import time
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_service

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import Sink, produce, values, wait_until, write_config

pytestmark = pytest.mark.process

OK, ERROR = 1, 2
"""Codes of a span's status."""


class Collector(trace_service.TraceServiceServicer):
    """Keeps every span that it gets, with the resource that it came from."""

    def __init__(self):
        self.spans = []
        self.got = threading.Event()

    def Export(self, request, context):  # noqa: N802  # the name of the protocol's method
        for resource in request.resource_spans:
            labels = said_of(resource.resource)
            for scope in resource.scope_spans:
                self.spans += [(labels, span) for span in scope.spans]
        self.got.set()
        return traces.ExportTraceServiceResponse()

    def roots(self, name):
        return [span for _, span in self.spans if span.name == name and not span.parent_span_id]

    def steps(self, root):
        """Return the steps of a trace by their beginning."""
        found = [s for _, s in self.spans if s.trace_id == root.trace_id and s.parent_span_id]
        assert all(step.parent_span_id == root.span_id for step in found)
        return sorted(found, key=lambda step: step.start_time_unix_nano)


class Figures(metrics_service.MetricsServiceServicer):
    """Takes all figures and keeps none."""

    def Export(self, request, context):  # noqa: N802  # the name of the protocol's method
        return metrics.ExportMetricsServiceResponse()


def said_of(holder):
    return {item.key: item.value.string_value or item.value.int_value for item in holder.attributes}


@contextmanager
def collecting():
    """Run a collector; give it and its address."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    trace_service.add_TraceServiceServicer_to_server(collector, server)
    metrics_service.add_MetricsServiceServicer_to_server(Figures(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.fixture
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


def sink_on(folder, broker, topic, **overrides):
    broker.create_topic(topic, 1)
    config = write_config(folder, broker.bootstrap_servers, source={"topics": [topic]}, **overrides)
    return Sink(folder, config)


def test_a_batch_is_traced_from_poll_to_commit(tmp_path, broker):
    with collecting() as (collector, endpoint):
        telemetry = {"otlp_endpoint": endpoint}
        with sink_on(tmp_path, broker, "traced", telemetry=telemetry) as sink:
            begun_ns = time.time_ns()
            produce(broker.bootstrap_servers, "traced", values(range(50)))
            writer = sink.start()
            wait_until(lambda: sink.committed_records() == 50, 40, "all is committed")
            assert writer.stop() == 0
        commits = writer.events("table_committed")  # the log tells of a commit after the table does
        roots = collector.roots("delta_sink batch")
        assert len(roots) == len(commits)
        said = [said_of(root) for root in roots]
        for name in ("version", "rows", "files", "bytes"):
            assert [each[f"delta_sink.{name}"] for each in said] == [c[name] for c in commits], name
        assert {each["delta_sink.sink"] for each in said} == {"events-sink"}
        assert {labels["service.name"] for labels, _ in collector.spans} == {"delta-sink"}
        root = roots[0]
        steps = collector.steps(root)
        names = [step.name for step in steps]
        assert sorted(set(names)) == ["commit", "decode", "encode", "poll", "upload"]
        order = [names.index(name) for name in ("poll", "decode", "encode", "upload", "commit")]
        assert order == sorted(order)
        for step in steps:
            assert step.status.code == OK
            assert root.start_time_unix_nano <= step.start_time_unix_nano
            assert step.start_time_unix_nano <= step.end_time_unix_nano <= root.end_time_unix_nano
        assert begun_ns - 1e9 < root.start_time_unix_nano < time.time_ns()


def test_a_command_is_traced_from_topic_to_outcome(tmp_path, broker):
    for topic, partitions in (("ops.control", 1), ("ops.status", 1)):
        broker.create_topic(topic, partitions)
    control = {"topic": "ops.control", "status_topic": "ops.status"}
    compaction = {"quiet_ms": 0, "small_files_max": 100_000}
    with collecting() as (collector, endpoint):
        overrides = {"control": control, "compaction": compaction}
        with sink_on(tmp_path, broker, "asked", **overrides) as sink:
            for number in range(2):
                produce(broker.bootstrap_servers, "asked", values([number]))
                sink.drain()
            begun_ns = time.time_ns()
            sent = sink.run("control", "compact", "--json")
            command_id = json.loads(sent.stdout.splitlines()[-1])["id"]
            args = ("--set", f"telemetry.otlp_endpoint={endpoint}")
            compactor = sink.start(*args, role="compactor")

            def is_done():
                return any(
                    event["id"] == command_id and event["state"] == "succeeded"
                    for event in compactor.events("command_outcome")
                )

            wait_until(is_done, 60, "the command is carried out")
            assert compactor.stop() == 0
        roots = {said_of(r)["delta_sink.id"]: r for r in collector.roots("delta_sink command")}
        root = roots[command_id]
        assert said_of(root)["delta_sink.command"] == "compact"
        assert said_of(root)["delta_sink.state"] == "succeeded"
        assert root.status.code == OK
        steps = collector.steps(root)
        assert steps[0].name == "topic"
        assert abs(steps[0].start_time_unix_nano - begun_ns) < 20e9
        assert steps[0].start_time_unix_nano == root.start_time_unix_nano
        names = {step.name for step in steps}
        assert {"begin", "tell", "finish"} < names, names
        assert max(step.end_time_unix_nano for step in steps) <= root.end_time_unix_nano


def test_no_traces_where_they_are_not_wanted(tmp_path, broker):
    with collecting() as (collector, endpoint):
        telemetry = {"otlp_endpoint": endpoint, "traces": False}
        with sink_on(tmp_path, broker, "untraced", telemetry=telemetry) as sink:
            produce(broker.bootstrap_servers, "untraced", values(range(5)))
            done = sink.drain()
        assert not collector.spans
        assert not collector.got.is_set()
        assert "export_failed" not in done.stderr


def test_a_collector_that_takes_no_traces_is_said_once(tmp_path, broker):
    """It serves metrics alone: the worker goes on, says it, and counts what is lost."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    metrics_service.add_MetricsServiceServicer_to_server(Figures(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        telemetry = {"otlp_endpoint": f"http://127.0.0.1:{port}"}
        with sink_on(tmp_path, broker, "half", telemetry=telemetry) as sink:
            produce(broker.bootstrap_servers, "half", values(range(5)))
            done = sink.drain()
        assert done.stderr.count("export_failed") == 1
    finally:
        server.stop(None)
