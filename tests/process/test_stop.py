"""How a writer stops: in time, with exit code 0, and nothing is lost or doubled by it."""

from __future__ import annotations

import signal
import time

import pytest
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import SCHEMA, Sink, produce, values, wait_until, write_config
from tests.process.stores import BUCKET, REGION, Proxy, s3_server

pytestmark = pytest.mark.process

WAITS_LONG = {"interval_ms": 60_000}


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


@pytest.fixture(scope="module")
def server():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(server):
    proxy = Proxy(server)
    yield proxy
    proxy.close()


def sink_on(folder, broker, topic, partitions=1, **overrides):
    if topic is not None:
        broker.create_topic(topic, partitions)
    config = write_config(
        folder,
        broker.bootstrap_servers,
        name=f"on-{topic}",
        source={"topics": [topic]},
        **overrides,
    )
    return Sink(folder, config)


def on_s3(folder, broker, topic, proxy, **overrides):
    storage = {
        "endpoint_url": proxy.url,
        "region": REGION,
        "access_key_id": "key",
        "secret_access_key": "secret",
    }
    table = {"uri": f"s3://{BUCKET}/{topic}", "schema": SCHEMA, "storage": storage}
    return sink_on(folder, broker, topic, 2, table=table, **overrides)


def ids_in(folder):
    return sorted(DeltaTable(str(folder / "table")).to_pyarrow_table().column("id").to_pylist())


def ids_at(proxy, topic):
    options = {
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "reader",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ALLOW_HTTP": "true",
    }
    table = DeltaTable(f"s3://{BUCKET}/{topic}", storage_options=options)
    return sorted(table.to_pyarrow_table().column("id").to_pylist())


def is_reading(writer):
    """Whether the writer has started to read, and has had time to take what is there."""
    return bool(writer.events("partitions_assigned")) and bool(writer.events("table_opened"))


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_what_is_buffered_is_committed(tmp_path, broker, signal_):
    topic = f"buffered-{signal_.name}"
    with sink_on(tmp_path, broker, topic, flush=WAITS_LONG) as sink:
        produce(broker.bootstrap_servers, topic, values(range(500)))
        writer = sink.start()
        wait_until(lambda: is_reading(writer), 30, "it reads")
        time.sleep(1.5)
        assert sink.committed_records() == 0
        started_s = time.monotonic()
        writer.process.send_signal(signal_)
        assert writer.process.wait(30) == 0, writer.words()
        assert time.monotonic() - started_s < 10
        assert writer.words() == []
        assert writer.events("signal_received")[0]["reason"] == signal_.name
        assert writer.events("worker_stopped")[0]["reason"] == "asked to stop"
        assert ids_in(tmp_path) == [*range(500)]
        sink.drain()
        assert ids_in(tmp_path) == [*range(500)]
        assert sink.audit()["ok"]


def test_a_signal_before_anything_is_read(tmp_path, broker):
    with sink_on(tmp_path, broker, "early") as sink:
        writer = sink.start()
        wait_until(lambda: writer.events("worker_started"), 30, "it starts")
        assert writer.stop(20) == 0
        assert writer.words() == []


def test_a_broker_that_is_down_keeps_nobody(tmp_path):
    with EmbeddedBroker({}) as broker, sink_on(tmp_path, broker, "gone", flush=WAITS_LONG) as sink:
        produce(broker.bootstrap_servers, "gone", values(range(100)))
        writer = sink.start()
        wait_until(lambda: is_reading(writer), 30, "it reads")
        time.sleep(1.5)
        broker.set_down()
        time.sleep(0.5)
        started_s = time.monotonic()
        assert writer.stop(40) == 0
        assert time.monotonic() - started_s < 25
        # What it had goes into the table: that needs no broker.
        assert ids_in(tmp_path) == [*range(100)]
        broker.set_up()
        produce(broker.bootstrap_servers, "gone", values(range(100, 110)))
        sink.drain()
        assert ids_in(tmp_path) == [*range(110)]
        assert sink.audit()["ok"]


def test_a_second_signal_does_not_wait(tmp_path, broker, proxy):
    with on_s3(tmp_path, broker, "hasty", proxy) as sink:
        writer = sink.start()
        produce(broker.bootstrap_servers, "hasty", values(range(10)), partitions=2)
        wait_until(lambda: writer.events("table_committed"), 30, "the first commit")
        proxy.put_delay_s = 5
        produce(broker.bootstrap_servers, "hasty", values(range(10, 20)), partitions=2)
        time.sleep(1)
        writer.process.terminate()
        time.sleep(1)
        assert writer.process.poll() is None, "it waits for what is in flight"
        writer.process.terminate()
        started_s = time.monotonic()
        assert writer.process.wait(20) == 0
        assert time.monotonic() - started_s < 2.5
        assert writer.words() == []
        proxy.put_delay_s = 0
        time.sleep(5)  # what was sent may still land: the log decides
        sink.drain()
        assert ids_at(proxy, "hasty") == [*range(20)]
        assert sink.audit()["ok"]


def test_the_grace_period_is_kept(tmp_path, broker, proxy):
    with on_s3(tmp_path, broker, "graceful", proxy, shutdown={"grace_ms": 1000}) as sink:
        writer = sink.start()
        produce(broker.bootstrap_servers, "graceful", values(range(10)), partitions=2)
        wait_until(lambda: writer.events("table_committed"), 30, "the first commit")
        proxy.is_down = True
        produce(broker.bootstrap_servers, "graceful", values(range(10, 20)), partitions=2)
        time.sleep(1)
        started_s = time.monotonic()
        assert writer.stop(20) == 0
        assert 0.8 < time.monotonic() - started_s < 5
        proxy.is_down = False
        sink.drain()
        assert ids_at(proxy, "graceful") == [*range(20)]
        assert sink.audit()["ok"]


def test_a_slow_store_costs_no_membership(tmp_path, broker, proxy):
    """Each PUT takes longer than the session and than the longest time between two polls."""
    kafka = {"session.timeout.ms": 2000, "max.poll.interval.ms": 2000}
    with on_s3(tmp_path, broker, "slow", proxy, kafka=kafka) as sink:
        writer = sink.start()
        produce(broker.bootstrap_servers, "slow", values(range(10)), partitions=2)
        wait_until(lambda: writer.events("table_committed"), 30, "the first commit")
        proxy.put_delay_s = 3
        produce(broker.bootstrap_servers, "slow", values(range(10, 20)), partitions=2)
        wait_until(lambda: len(ids_at(proxy, "slow")) == 20, 30, "the slow commit")
        produce(broker.bootstrap_servers, "slow", values(range(20, 30)), partitions=2)
        wait_until(lambda: len(ids_at(proxy, "slow")) == 30, 30, "another one")
        assert writer.events("partitions_revoked") == []
        assert len(writer.events("partitions_assigned")) == 1
        proxy.put_delay_s = 0
        assert writer.stop() == 0
        assert sink.audit()["ok"]
