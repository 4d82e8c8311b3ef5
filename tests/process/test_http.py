"""A writer's metrics, probes and status over HTTP, compared with its log and with the table."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.error
import urllib.request
from concurrent import futures

import grpc
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as messages
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as service
from prometheus_client.parser import text_string_to_metric_families

from delta_sink import telemetry as declared
from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import SCHEMA, Sink, produce, values, wait_until, write_config
from tests.process.stores import BUCKET, REGION, Proxy, s3_server

pytestmark = pytest.mark.process

HTTP = {"host": "127.0.0.1", "port": 0}
QUICK = {"socket.connection.setup.timeout.ms": "1000", "reconnect.backoff.max.ms": "500"}


@pytest.fixture
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


def sink_on(folder, broker, topic, partitions=1, **overrides):
    broker.create_topic(topic, partitions)
    config = write_config(
        folder,
        broker.bootstrap_servers,
        name=f"on-{topic}",
        source={"topics": [topic]},
        **{"http": HTTP, **overrides},
    )
    return Sink(folder, config)


def address(writer):
    wait_until(lambda: writer.events("http_listening"), 20, "the writer listens")
    return writer.events("http_listening")[0]["address"]


def ask(writer, path):
    """Return the status code and the text of a path."""
    try:
        with urllib.request.urlopen(f"http://{address(writer)}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def figures(writer):
    """Return every sample of /metrics by its name and labels, without the label of the sink."""
    code, text = ask(writer, "/metrics")
    assert code == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "sink"}
            found[(sample.name, *sorted(labels.items()))] = sample.value
    return found


def status(writer):
    code, text = ask(writer, "/status")
    assert code == 200
    return json.loads(text)


def asked(writer):
    """Return for each dependency whether it answers, None where it was not asked yet."""
    return {name: said["up"] for name, said in status(writer)["dependencies"].items()}


def is_ready(writer):
    return ask(writer, "/readyz")[0] == 200


def test_metrics_status_log_and_table_agree(tmp_path, broker):
    """Records, a tombstone and bad ones: four places count the same."""
    broker.create_topic("letters", 1)
    errors = {"tolerance": "all", "dead_letter_topic": "letters"}
    with sink_on(tmp_path, broker, "agree", 2, errors=errors) as sink:
        produce(broker.bootstrap_servers, "agree", values(range(500)), partitions=2)
        produce(broker.bootstrap_servers, "agree", [None, b"{", b"[]", b"{}"], partitions=2)
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 504, 40, "all is committed")

        def has_caught_up():
            return [p["lag_records"] for p in status(writer)["partitions"]] == [0, 0]

        wait_until(has_caught_up, 30, "the lag is seen to be 0")

        def rows_told():
            return sum(event["rows"] for event in writer.events("table_committed"))

        wait_until(lambda: rows_told() == 500, 10, "the log tells of the last commit")
        found, said = figures(writer), status(writer)
        commits = writer.events("table_committed")
        table = DeltaTable(str(tmp_path / "table"))
        topic = ("topic", "agree")
        assert found[("delta_sink_consumed_records_total", topic)] == 504
        assert found[("delta_sink_committed_records_total", topic)] == 504
        assert found[("delta_sink_skipped_records_total", ("reason", "tombstone"))] == 1
        bad = {k: v for k, v in found.items() if k[0] == "delta_sink_dead_letters_total"}
        assert sum(bad.values()) == 3 == sum(event["dead_letters"] for event in commits)
        assert table.to_pyarrow_table().num_rows == 500 == sum(event["rows"] for event in commits)
        assert table.version() == said["table"]["version"]
        assert ("delta_sink_table_version",) not in found, "it is the scheduler's to say"
        attempts = found[("delta_sink_commit_attempts_total", ("outcome", "committed"))]
        assert attempts >= len(commits)  # the claim is one too
        assert found[("delta_sink_freshness_seconds_count", topic)] == len(commits)
        for stage in ("poll", "decode", "encode", "upload", "commit"):
            assert found[("delta_sink_stage_duration_seconds_count", ("stage", stage))] > 0, stage
        assert abs(found[("delta_sink_last_commit_timestamp_seconds",)] - time.time()) < 60
        ends = {p["partition"]: p["offset_committed"] for p in said["partitions"]}
        assert ends == {0: 252, 1: 252}
        for partition in ("0", "1"):
            at = (("partition", partition), topic)
            assert found[("delta_sink_lag_records", *at)] == 0
            assert found[("delta_sink_lag_seconds", *at)] == 0
        assert found[("delta_sink_assigned_partitions",)] == 2
        assert found[("delta_sink_buffered_bytes",)] == 0
        assert found[("delta_sink_memory_limit_bytes",)] > 0
        assert found[("delta_sink_worker_state", ("state", "working"))] == 1
        assert found[("delta_sink_build_info", ("version", said["version"]))] == 1
        assert said["worker"] == writer.worker_id()
        assert said["state"] == "working"
        assert writer.stop() == 0


def test_only_what_is_declared_is_served(tmp_path, broker):
    with sink_on(tmp_path, broker, "declared") as sink:
        produce(broker.bootstrap_servers, "declared", values(range(10)))
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 10, 40, "all is committed")
        _, text = ask(writer, "/metrics")
        for family in text_string_to_metric_families(text):
            if family.name.startswith("process_"):
                continue
            name = f"{family.name}_total" if family.type == "counter" else family.name
            metric = declared.METRICS[name]
            assert (family.type, family.documentation) == (metric.kind, metric.sentence)
            tags = {*metric.tags, "sink"} | ({"le"} if metric.kind == "histogram" else set())
            for sample in family.samples:
                assert set(sample.labels) == tags - (
                    set() if sample.name.endswith("_bucket") else {"le"}
                )
                assert sample.labels["sink"] == "on-declared"
        assert ask(writer, "/nothing")[0] == 404
        assert ask(writer, "/livez") == (200, "the loop moves\n")
        assert writer.stop() == 0


def test_lag_says_what_the_table_does_not_hold(tmp_path, broker):
    """A writer that waits long with its commit shows what it holds back, and since when."""
    flush = {"interval_ms": 600_000}
    with sink_on(tmp_path, broker, "behind", flush=flush) as sink:
        writer = sink.start()
        wait_until(lambda: writer.events("offsets_claimed"), 20, "it has begun")
        produce(broker.bootstrap_servers, "behind", values(range(70)))
        at = (("partition", "0"), ("topic", "behind"))
        wait_until(
            lambda: figures(writer).get(("delta_sink_lag_records", *at)) == 70, 30, "it is behind"
        )
        time.sleep(1.5)
        found = figures(writer)
        assert found[("delta_sink_lag_seconds", *at)] > 1
        assert found[("delta_sink_buffer_age_seconds",)] > 0.4
        assert found[("delta_sink_buffered_bytes",)] > 0
        assert status(writer)["partitions"][0]["offset_next"] == 70
        assert writer.stop() == 0


def test_a_broker_that_is_down_is_named_and_found_again(tmp_path, broker):
    kafka = {"bootstrap.servers": broker.bootstrap_servers, **QUICK}
    with sink_on(tmp_path, broker, "down", kafka=kafka) as sink:
        produce(broker.bootstrap_servers, "down", values(range(10)))
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 10, 40, "all is committed")
        wait_until(lambda: is_ready(writer), 20, "it is ready")
        assert ask(writer, "/readyz")[1] == "ready, working on 1 partition\n"
        assert figures(writer)[("delta_sink_dependency_up", ("dependency", "broker"))] == 1
        broker.set_down()
        wait_until(lambda: not is_ready(writer), 40, "the broker is missed")
        code, sentence = ask(writer, "/readyz")
        assert code == 503
        assert sentence.startswith("the broker cannot be reached: kafka: "), sentence
        assert "store" not in sentence
        found = figures(writer)
        assert found[("delta_sink_dependency_up", ("dependency", "broker"))] == 0
        assert found[("delta_sink_dependency_up", ("dependency", "store"))] == 1
        assert ask(writer, "/livez")[0] == 200, "restarting would not bring the broker back"
        broker.set_up()
        wait_until(lambda: is_ready(writer), 40, "the broker is found again")
        assert writer.events("dependency_lost")
        assert writer.events("dependency_found")
        assert writer.stop() == 0


def test_a_store_that_is_down_is_named_and_found_again(tmp_path, broker):
    with s3_server() as endpoint:
        proxy = Proxy(endpoint)
        try:
            storage = {
                "endpoint_url": proxy.url,
                "region": REGION,
                "access_key_id": "key",
                "secret_access_key": "a-planted-secret",
                "request_timeout_ms": 2000,
            }
            table = {"uri": f"s3://{BUCKET}/health", "schema": SCHEMA, "storage": storage}
            with sink_on(tmp_path, broker, "health", table=table) as sink:
                produce(broker.bootstrap_servers, "health", values(range(10)))
                writer = sink.start()
                wait_until(lambda: writer.events("table_committed"), 40, "it has committed")
                wait_until(lambda: is_ready(writer), 20, "it is ready")
                proxy.is_down = True
                wait_until(lambda: not is_ready(writer), 40, "the store is missed")
                sentence = ask(writer, "/readyz")[1]
                assert sentence.startswith("the store cannot be reached: "), sentence
                assert status(writer)["dependencies"]["broker"]["up"] is True
                proxy.is_down = False
                wait_until(lambda: is_ready(writer), 40, "the store is found again")
                served = "".join(ask(writer, path)[1] for path in ("/metrics", "/status"))
                assert "a-planted-secret" not in served
                assert writer.stop() == 0
        finally:
            proxy.close()


def test_without_locks_it_is_ready_and_degraded(tmp_path, broker):
    locks = tmp_path / "locks"
    with sink_on(tmp_path, broker, "nolocks", locks={"path": str(locks / "locks.db")}) as sink:
        writer = sink.start()
        wait_until(lambda: is_ready(writer), 20, "it is ready")
        (locks / "locks.db").write_bytes(b"this is no database of anything" * 400)
        wait_until(lambda: "degraded" in ask(writer, "/readyz")[1], 30, "the locks are missed")
        code, sentence = ask(writer, "/readyz")
        assert code == 200
        assert "working without locks: " in sentence
        produce(broker.bootstrap_servers, "nolocks", values(range(10)))
        wait_until(lambda: sink.committed_records() == 10, 40, "it works all the same")
        assert writer.stop() == 0


def test_a_second_member_of_one_partition_stands_by(tmp_path, broker):
    with sink_on(tmp_path, broker, "spare") as sink:
        writers = [sink.start(), sink.start()]
        wait_until(
            lambda: sorted(status(w)["state"] for w in writers) == ["standing_by", "working"],
            40,
            "one works and one stands by",
        )
        for writer in writers:
            wait_until(lambda writer=writer: is_ready(writer), 20, "both are ready")
        assert {writer.stop() for writer in writers} == {0}


def test_before_it_can_begin_it_says_why(tmp_path, broker):
    """The store is not there when the writer starts: alive, not ready, and it says so."""
    storage = {"endpoint_url": "http://127.0.0.1:9", "region": REGION, "allow_http": True}
    table = {
        "uri": f"s3://{BUCKET}/never",
        "schema": SCHEMA,
        "storage": {**storage, "access_key_id": "a", "secret_access_key": "b"},
    }
    with sink_on(tmp_path, broker, "waiting", table=table) as sink:
        writer = sink.start()
        reaches = {"broker": True, "store": False}
        wait_until(lambda: reaches.items() <= asked(writer).items(), 30, "both are asked")
        code, sentence = ask(writer, "/readyz")
        assert code == 503
        assert sentence.startswith("the worker is starting; the store cannot be reached: ")
        assert ask(writer, "/livez") == (200, "starting\n")


def test_a_port_that_is_taken_is_a_configuration_error(tmp_path, broker):
    with sink_on(tmp_path, broker, "taken") as sink:
        writer = sink.start()
        port = address(writer).rsplit(":", 1)[1]
        done = sink.run("run", "writer", "--set", f"http.port={port}")
        assert done.returncode == 2
        assert f"http: 127.0.0.1:{port} cannot be listened on" in done.stderr
        assert writer.stop() == 0


def test_a_compactor_is_probed_and_counts_its_commands(tmp_path, broker):
    for topic, partitions in (("ops.control", 2), ("ops.status", 1)):
        broker.create_topic(topic, partitions)
    control = {"topic": "ops.control", "status_topic": "ops.status"}
    compaction = {"quiet_ms": 0, "small_files_max": 100_000}
    with sink_on(tmp_path, broker, "kept", control=control, compaction=compaction) as sink:
        for number in range(3):
            produce(broker.bootstrap_servers, "kept", values([number]))
            sink.drain("--set", "http.port=0")
        compactor = sink.start(role="compactor")
        wait_until(lambda: status(compactor)["state"] == "working", 40, "it has partitions")
        wait_until(lambda: is_ready(compactor), 20, "it is ready")
        said = status(compactor)
        assert said["role"] == "compactor"
        assert {p["topic"] for p in said["partitions"]} == {"ops.control"}
        done = sink.run("control", "compact", "--wait", "--timeout", "60", "--json")
        result = json.loads(done.stdout.splitlines()[-1])["result"]
        assert result["files_removed"] == 3, done
        found = figures(compactor)
        key = (("command", "compact"), ("state", "succeeded"))
        assert found[("delta_sink_control_commands_total", *key)] == 1
        read = found[("delta_sink_compaction_bytes_total", ("direction", "read"))]
        assert read == result["bytes_removed"]
        assert compactor.stop() == 0


TABLE_FIGURES = (
    ("delta_sink_table_version",),
    ("delta_sink_table_bytes",),
    ("delta_sink_table_files", ("size", "small")),
    ("delta_sink_table_files", ("size", "large")),
    ("delta_sink_commits_since_checkpoint",),
)


def kept_sink(folder, broker, topic, commits=3):
    """Return a sink with control topics whose table has so many commits of records."""
    for name, partitions in (("ops.control", 2), ("ops.status", 1)):
        broker.create_topic(name, partitions)
    control = {"topic": "ops.control", "status_topic": "ops.status"}
    compaction = {"quiet_ms": 0, "small_files_max": 100_000}
    sink = sink_on(folder, broker, topic, control=control, compaction=compaction)
    for number in range(commits):
        produce(broker.bootstrap_servers, topic, values([number]))
        sink.drain("--set", "http.port=0")
    return sink


def log_entry(folder, version):
    return folder / f"table/_delta_log/{version:020d}.json"


def test_one_compactor_says_how_the_table_is(tmp_path, broker):
    """Two compactors: sums over both are the table's figures, before and after one ends."""
    with kept_sink(tmp_path, broker, "summed") as sink:
        pair = [sink.start(role="compactor"), sink.start(role="compactor")]

        def those_who_say(workers):
            return [w for w in workers if TABLE_FIGURES[0] in figures(w)]

        wait_until(lambda: those_who_say(pair), 40, "one says how the table is")
        found = [figures(worker) for worker in pair]
        table = DeltaTable(str(tmp_path / "table"))
        sizes = pa.table(table.get_add_actions(flatten=True))["size_bytes"].to_pylist()
        wanted = (table.version(), sum(sizes), 3, 0, table.version() + 1)
        for figure, value in zip(TABLE_FIGURES, wanted, strict=True):
            assert [each[figure] for each in found if figure in each] == [value], figure
        for lease in ("scheduler", "audit"):
            key = ("delta_sink_lease_held", ("lease", lease))
            wait_until(lambda k=key: sum(figures(w)[k] for w in pair) == 1, 20, f"one has {lease}")
        wait_until(lambda: any(("delta_sink_audit_ok",) in figures(w) for w in pair), 20, "audit")
        found = [figures(worker) for worker in pair]
        proven = ("delta_sink_audit_ok",)
        assert [each[proven] for each in found if proven in each] == [1]
        ran = ("delta_sink_audit_last_run_timestamp_seconds",)
        assert abs(sum(each.get(ran, 0) for each in found) - time.time()) < 60

        (holder,) = those_who_say(pair)
        (other,) = [worker for worker in pair if worker is not holder]
        assert holder.stop() == 0
        wait_until(lambda: those_who_say([other]), 20, "the other takes over")
        sink.run("control", "checkpoint", "--wait", "--timeout", "60")
        left = ("delta_sink_commits_since_checkpoint",)
        wait_until(lambda: figures(other)[left] == 0, 30, "the checkpoint is seen")
        assert other.stop() == 0


def test_a_scheduled_audit_says_what_is_wrong(tmp_path, broker):
    with kept_sink(tmp_path, broker, "doubled") as sink:
        version = DeltaTable(str(tmp_path / "table")).version()
        again = [
            line
            for line in log_entry(tmp_path, version).read_text().splitlines()
            if line.startswith('{"add"')
        ]
        log_entry(tmp_path, version + 1).write_text("\n".join([*again, '{"commitInfo":{}}']))
        compactor = sink.start(role="compactor")
        wait_until(lambda: ("delta_sink_audit_ok",) in figures(compactor), 40, "it has audited")
        assert figures(compactor)[("delta_sink_audit_ok",)] == 0
        (event,) = compactor.events("audit_failed")
        assert event["level"] == "error"
        assert "twice" in event["error"] or "already" in event["error"], event
        assert compactor.stop() == 0


def test_status_shows_the_whole_sink(tmp_path, broker):
    for topic, partitions in (("ops.control", 1), ("ops.status", 1)):
        broker.create_topic(topic, partitions)
    control = {"topic": "ops.control", "status_topic": "ops.status"}
    with sink_on(tmp_path, broker, "seen", 2, control=control) as sink:
        before = json.loads(sink.run("status", "--json").stdout)
        assert before["table"]["version"] is None
        writer = sink.start()
        produce(broker.bootstrap_servers, "seen", values(range(40)), partitions=2)
        wait_until(lambda: sink.committed_records() == 40, 40, "all is committed")
        sink.run("control", "compact", "--dry-run")

        def shown():
            return json.loads(sink.run("status", "--json").stdout)

        wait_until(lambda: shown()["workers"], 40, "the writer has said that it is there")
        found = shown()
        assert found["ok"], found["problems"]
        (worker,) = found["workers"]
        assert (worker["worker"], worker["role"]) == (writer.worker_id(), "writer")
        table = DeltaTable(str(tmp_path / "table"))
        assert found["table"]["version"] == table.version()
        assert found["table"]["files"] == len(table.file_uris()) == found["table"]["small_files"]
        assert [p["offset_committed"] for p in found["partitions"]] == [20, 20]
        assert [p["lag_records"] for p in found["partitions"]] == [0, 0]
        assert [c["command"]["command"] for c in found["commands"]] == ["compact"]
        text = sink.run("status").stdout
        assert f"version {table.version()}" in text
        assert "seen/0: 20, 0 behind" in text
        assert writer.stop() == 0
        assert shown()["workers"][0]["life"] == "ended"
        produce(broker.bootstrap_servers, "seen", values(range(6)), partitions=2)
        assert [p["lag_records"] for p in shown()["partitions"]] == [3, 3]
        broker.set_down()
        done = sink.run("status", "--json", timeout_s=60)
        assert done.returncode == 1
        assert "brokers: " in json.loads(done.stdout)["problems"][0]
        broker.set_up()


def test_status_by_table_partition_counts_small_files(tmp_path, broker):
    table = {
        "uri": str(tmp_path / "table"),
        "schema": [*SCHEMA, {"name": "region", "type": "string"}],
        "partition_by": ["region"],
    }
    compaction = {"target_file_bytes": "1MiB"}
    with sink_on(tmp_path, broker, "parted", table=table, compaction=compaction) as sink:
        for _ in range(2):
            records = [
                json.dumps({"id": n, "payload": "p", "region": "eu" if n % 2 else "us"}).encode()
                for n in range(10)
            ]
            produce(broker.bootstrap_servers, "parted", records)
            sink.drain()
        noise = [random.Random(n).randbytes(350_000).hex() for n in range(4)]
        large = [json.dumps({"id": 1, "payload": p, "region": "ap"}).encode() for p in noise]
        produce(broker.bootstrap_servers, "parted", large)
        sink.drain()
        found = json.loads(sink.run("status", "--json").stdout)
        by_region = {p["values"]["region"]: p for p in found["table_partitions"]}
        assert set(by_region) == {"ap", "eu", "us"}
        assert by_region.pop("ap")["small_files"] == 0, "it is as large as compaction makes files"
        for part in by_region.values():
            assert part["files"] == part["small_files"] == 2
            assert part["bytes"] == part["small_bytes"] > 0
        assert "region=eu: 2 files" in sink.run("status").stdout


class Collector(service.MetricsServiceServicer):
    """What a collector gets, by the name of the metric: its newest form."""

    def __init__(self):
        self.metrics = {}
        self.got = threading.Event()

    def Export(self, request, context):  # noqa: N802  # the name of the protocol's method
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics.update({metric.name: metric for metric in scope.metrics})
        self.got.set()
        return messages.ExportMetricsServiceResponse()


def test_a_collector_gets_the_same_figures(tmp_path, broker):
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        telemetry = {"otlp_endpoint": f"http://127.0.0.1:{port}"}
        with sink_on(tmp_path, broker, "otlp", http=None, telemetry=telemetry) as sink:
            produce(broker.bootstrap_servers, "otlp", values(range(30)))
            sink.drain()
        assert collector.got.is_set(), "the last figures are sent when a worker ends"
        consumed = collector.metrics["delta_sink_consumed_records_total"].sum
        assert consumed.is_monotonic
        (point,) = consumed.data_points
        assert point.as_double == 30
        labels = {item.key: item.value.string_value for item in point.attributes}
        assert labels == {"sink": "on-otlp", "topic": "otlp"}
        (fresh,) = collector.metrics["delta_sink_freshness_seconds"].histogram.data_points
        assert fresh.count >= 1
        assert sum(fresh.bucket_counts) == fresh.count
        assert list(fresh.explicit_bounds) == list(declared.FRESHNESS_BUCKETS_S)
        assert collector.metrics["delta_sink_build_info"].gauge.data_points
    finally:
        server.stop(None)
