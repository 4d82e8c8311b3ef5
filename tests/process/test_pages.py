"""docs/operations.md and docs/migrating.md: every command in them is run, every file is used."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Place
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import Sink, produce, values, wait_until, write_config

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CONTROL = {"topic": "ops.control", "status_topic": "ops.status"}


def blocks(page, language, after=""):
    """Return the fenced blocks of a page in a language, from the first heading `after` on."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = FENCE.findall(text[text.index(after) :])
    return [textwrap.dedent(block) for name, block in found if name == language]


def commands(page, after=""):
    lines = [line for block in blocks(page, "sh", after) for line in block.splitlines()]
    assert all(line.startswith("delta-sink ") for line in lines), lines
    return [shlex.split(line)[1:] for line in lines]


def done_in(sink, words, timeout_s=90):
    """Run a command line of a page in the sink's folder, with the sink's file for `sink.yaml`."""
    words = [str(sink.config) if word.endswith("sink.yaml") else word for word in words]
    at = words.index("-c")
    return sink.run(*words[:at], *words[at + 2 :], timeout_s=timeout_s)


@pytest.fixture
def broker():
    with EmbeddedBroker({}) as broker:
        for topic, partitions in (("ops.control", 2), ("ops.status", 1)):
            broker.create_topic(topic, partitions)
        yield broker


def test_every_command_of_the_page_on_operations_works(tmp_path, broker):
    """One after the other, as they stand there, beside the three workers."""
    broker.create_topic("orders", 2)
    config = write_config(
        tmp_path,
        broker.bootstrap_servers,
        source={"topics": ["orders"]},
        control=CONTROL,
        compaction={"quiet_ms": 0},
    )
    lines = commands("operations.md")
    assert len(lines) > 15
    with Sink(tmp_path, config) as sink:
        for number in range(3):
            produce(broker.bootstrap_servers, "orders", values(range(9 * number, 9 * number + 9)))
            sink.drain()
        workers = [sink.start(role=role) for role in ("writer", "compactor", "vacuum")]
        for worker in workers:
            wait_until(lambda w=worker: w.events("partitions_assigned"), 60, "it has partitions")
        for words in lines:
            done = done_in(sink, words)
            assert done.returncode == 0, (words, done.stdout[-1500:], done.stderr[-1500:])
        assert [worker.stop() for worker in workers] == [0, 0, 0]
        assert json.loads(sink.run("audit", "--json").stdout)["ok"]


def test_a_topic_is_taken_over_from_connect_as_the_page_says(tmp_path, broker):
    broker.create_topic("orders", 1)
    produce(broker.bootstrap_servers, "orders", [b'{"order_id": %d}' % n for n in range(30)])
    connector = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "connect-orders"}
    )
    connector.commit(offsets=[Place("orders", 0, 10)], asynchronous=False)
    connector.close()
    example = ROOT / "examples" / "connect-cutover" / "sink.yaml"
    sink = on(broker, Sink(tmp_path, example))
    for words in commands("migrating.md")[:4]:
        done = done_in(sink, words)
        assert done.returncode == 0, (words, done.stdout[-1500:], done.stderr[-1500:])
    table = DeltaTable(str(tmp_path / "orders-table")).to_pyarrow_table()
    assert sorted(table["order_id"].to_pylist()) == list(range(10, 30))


def test_a_table_of_kafka_delta_ingest_is_taken_over_as_the_page_says(
    tmp_path, broker, monkeypatch
):
    """Its table as deltalake writes it: offsets under its names, and only the last ones."""
    broker.create_topic("orders", 2)
    for partition, (before, after) in enumerate(((60, 75), (40, 60))):
        records = [
            b'{"order_id": %d, "customer": "c"}' % (100 * partition + n) for n in range(after)
        ]
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
        for record in records:
            producer.produce("orders", record, partition=partition)
        assert producer.flush(30) == 0
        old = [100 * partition + n for n in range(before)]
        rows = pa.table({"order_id": pa.array(old, pa.int64()), "customer": ["c"] * before})
        txn = CommitProperties(app_transactions=[Transaction(f"my-app-{partition}", before - 1)])
        write_deltalake(str(tmp_path / "orders-table"), rows, mode="append", commit_properties=txn)
    after = "## From kafka-delta-ingest"
    (printing,) = blocks("migrating.md", "python", after)
    (file,) = blocks("migrating.md", "yaml", after)
    monkeypatch.chdir(tmp_path)
    said = []
    exec(printing, {"print": said.append})
    start = yaml.safe_load(file)["source"]["start"]
    assert said == [start["offsets"]["orders"]], "the page's file has the offsets that it prints"
    config = tmp_path / "sink.yaml"
    config.write_text(file)
    sink = on(broker, Sink(tmp_path, config))
    for words in commands("migrating.md", after):
        done = done_in(sink, words)
        assert done.returncode == 0, (words, done.stdout[-1500:], done.stderr[-1500:])
        if words[0] == "audit":
            assert ids(tmp_path) == [*range(75), *range(100, 160)]
            assert "exactly once" in done.stdout
    assert "is a seek to 50" in sink.run("audit").stdout


def ids(folder):
    table = DeltaTable(str(folder / "orders-table")).to_pyarrow_table()
    return sorted(table["order_id"].to_pylist())


def on(broker, sink):
    """Return the sink with the environment that its file asks for."""
    sink.env = {"KAFKA": broker.bootstrap_servers, "TOPIC_IDS": "none"}
    return sink
