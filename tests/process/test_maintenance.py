"""Compactors and vacuums as processes, beside writers, on an embedded broker and local disk."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from confluent_kafka import Producer
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.delta.receipt import receipt_of
from tests.process.sinks import (
    TOPIC,
    Ledger,
    LedgerProducer,
    Sink,
    WriterProcess,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.process

CONTROL, STATUS = "ops.control", "ops.status"
PARTITIONS = 4


@pytest.fixture
def broker():
    with EmbeddedBroker({TOPIC: PARTITIONS, CONTROL: 4, STATUS: 1}) as broker:
        yield broker


@pytest.fixture
def sink(tmp_path, broker):
    config = write_config(
        tmp_path,
        broker.bootstrap_servers,
        control={"topic": CONTROL, "status_topic": STATUS},
        # Policies ask for nothing by themselves within a test's time.
        compaction={
            "target_file_bytes": "8MiB",
            "quiet_ms": 0,
            "small_files_max": 100_000,
            "age_max_ms": 3_600_000,
        },
        checkpoint={"commits_max": 100_000, "age_max_ms": 3_600_000},
        vacuum={"retention_hours": 0, "retention_hours_min": 0},
        flush={"interval_ms": 20},
    )
    with Sink(tmp_path, config) as sink:
        yield sink


def exact(ledger: Ledger) -> dict[str, int]:
    """Return what the comparison says of a table that has each record once."""
    return {"rows": len(ledger), "lost": 0, "doubled": 0, "altered": 0}


def control(sink: Sink, *arguments: str) -> dict:
    """Send a command, wait for its outcome, and return what `--json` prints."""
    done = sink.run("control", *arguments, "--wait", "--timeout", "60", "--json")
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def files_of(sink: Sink) -> int:
    return len(DeltaTable(str(sink.folder / "table")).file_uris())


def kinds_of(sink: Sink) -> Counter[str]:
    """Return how many commits of each kind the log has."""
    receipts = (receipt_of(entry) for entry in sink.entries())
    return Counter(receipt.kind for receipt in receipts if receipt is not None)


def data_files(sink: Sink) -> int:
    return len(list((sink.folder / "table").glob("*.parquet")))


def test_a_table_is_compacted_and_vacuumed_while_writers_write(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 400)
    writer = sink.start()
    compactor, vacuum = sink.start(role="compactor"), sink.start(role="vacuum")
    producer.start()
    wait_until(lambda: kinds_of(sink)["append"] >= 60, 60, "there are many small files")
    before = files_of(sink)
    compacted = control(sink, "compact")
    assert compacted["state"] == "succeeded", compacted
    assert compacted["result"]["files_removed"] >= 50
    assert compacted["result"]["files_added"] <= 2
    assert files_of(sink) < before
    assert kinds_of(sink)["compaction"] == compacted["result"]["commits"]

    dry = control(sink, "vacuum")
    assert dry["state"] == "succeeded", dry
    assert dry["result"]["dry_run"] is True
    assert dry["result"]["files_deleted"] >= 50
    there = data_files(sink)
    real = control(sink, "vacuum", "--execute")
    assert real["state"] == "succeeded", real
    assert real["result"]["files_deleted"] >= 50
    assert data_files(sink) < there

    assert control(sink, "checkpoint")["state"] == "succeeded"
    assert list((sink.folder / "table" / "_delta_log").glob("*.checkpoint.parquet"))
    assert control(sink, "cleanup-log", "--dry-run")["state"] == "succeeded"

    ledger = producer.stop()
    wait_until(lambda: sink.committed_records() >= len(ledger), 60, "everything is committed")
    assert [worker.stop() for worker in (writer, compactor, vacuum)] == [0, 0, 0]
    assert sink.compare(ledger) == exact(ledger)
    audit = sink.audit()
    assert audit["ok"], audit


def test_bad_messages_do_not_stop_the_topic(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 0)
    producer.produce(range(100))
    producer.flush()
    sink.drain()
    compactor = sink.start(role="compactor")
    raw = Producer({"bootstrap.servers": broker.bootstrap_servers})
    table = str(sink.folder / "table")
    bad = [
        None,
        b"",
        b"\xff\xfe",
        b"[1]",
        b"x" * 70_000,
        json.dumps({"v": 2, "id": "later", "command": "compact", "table": table}).encode(),
        json.dumps({"v": 1, "id": "odd", "command": "optimise", "table": table}).encode(),
        json.dumps({"v": 1, "id": "other", "command": "compact", "table": "s3://b/t"}).encode(),
        json.dumps({"v": 1, "id": "old", "command": "compact", "table": table,
                    "expires_at": "2020-01-01T00:00:00Z"}).encode(),
        json.dumps({"v": 1, "id": "where", "command": "compact", "table": table,
                    "args": {"where": "nothing = 1"}}).encode(),
    ]  # fmt: skip
    for partition in range(4):
        for value in bad:
            raw.produce(CONTROL, value=value, partition=partition)
    raw.flush()
    assert control(sink, "compact")["state"] == "succeeded"
    wait_until(lambda: len(compactor.events("command_refused")) >= 4 * 8, 30, "all are refused")
    outcomes = json.loads(sink.run("control", "log", "--json").stdout.splitlines()[-1])
    states = {each["id"]: each["state"] for each in outcomes["commands"]}
    assert states["later"] == states["odd"] == states["old"] == states["where"] == "refused"
    assert compactor.stop() == 0
    assert len(compactor.events("command_refused")) == 4 * 8


def test_once_needs_no_topic(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 0)
    for number in range(6):
        producer.produce(range(100 * number, 100 * number + 100))
        producer.flush()
        sink.drain()
    assert files_of(sink) >= 6
    done = sink.run("run", "compactor", "--once", "--json")
    assert done.returncode == 0, done.stderr
    assert files_of(sink) == 1
    done = sink.run("run", "vacuum", "--once", "--json")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])["outcomes"]
    assert outcomes[0]["result"]["files_deleted"] >= 5
    assert sink.compare(producer.ledger) == exact(producer.ledger)
    assert sink.audit()["ok"]


def test_a_command_acts_once_and_two_compactors_share_it(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 0)
    for number in range(6):
        producer.produce(range(100 * number, 100 * number + 100))
        producer.flush()
        sink.drain()
    compactors = [sink.start(role="compactor") for _ in range(2)]
    raw = Producer({"bootstrap.servers": broker.bootstrap_servers})
    message = {"v": 1, "id": "nightly", "command": "compact", "table": str(sink.folder / "table")}
    for partition in (0, 1, 2, 3, 0, 3):
        raw.produce(CONTROL, value=json.dumps(message).encode(), partition=partition)
    raw.flush()

    def answers() -> list[dict]:
        found = [event for each in compactors for event in each.events("command_outcome")]
        return [event for event in found if event["state"] == "succeeded"]

    wait_until(lambda: len(answers()) >= 6, 60, "each delivery is answered")
    started = [
        event
        for each in compactors
        for event in each.events("command_outcome")
        if event["state"] == "started"
    ]
    assert len(started) == 1, started
    assert kinds_of(sink)["compaction"] == 1
    assert [each.stop() for each in compactors] == [0, 0]


@pytest.mark.long
def test_small_files_and_old_checkpoints_are_seen_to_without_a_command(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 300)
    asking = ("--set", "compaction.small_files_max=20", "--set", "checkpoint.commits_max=20")
    writer, compactor = sink.start(), sink.start(*asking, role="compactor")
    producer.start()
    log = sink.folder / "table" / "_delta_log"
    wait_until(lambda: kinds_of(sink)["compaction"] >= 1, 90, "it is compacted")
    wait_until(lambda: any(log.glob("*.checkpoint.parquet")), 60, "there is a checkpoint")
    ledger = producer.stop()
    wait_until(lambda: sink.committed_records() >= len(ledger), 60, "everything is committed")
    assert [writer.stop(), compactor.stop()] == [0, 0]
    sent = {event["command"] for event in compactor.events("command_sent")}
    assert sent == {"compact", "checkpoint"}
    assert sink.compare(ledger) == exact(ledger)
    assert sink.audit()["ok"]


@pytest.mark.long
def test_a_killed_compactor_costs_a_lease(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 0)
    for number in range(6):
        producer.produce(range(100 * number, 100 * number + 100))
        producer.flush()
        sink.drain()
    slow = ("--set", "locks.lease_ms=3000", "--set", "compaction.bytes_per_s_max=100")
    first = sink.start(*slow, role="compactor")
    message = {"v": 1, "id": "nightly", "command": "compact", "table": str(sink.folder / "table")}
    raw = Producer({"bootstrap.servers": broker.bootstrap_servers})
    raw.produce(CONTROL, value=json.dumps(message).encode(), partition=0)
    raw.flush()

    def states(worker: WriterProcess) -> list[str]:
        return [event["state"] for event in worker.events("command_outcome")]

    wait_until(lambda: "started" in states(first), 30, "the first one is at it")
    first.kill()
    second = sink.start("--set", "locks.lease_ms=3000", role="compactor")
    wait_until(lambda: "succeeded" in states(second), 60, "the second one has done it")
    assert second.stop() == 0
    assert files_of(sink) == 1
    assert sink.compare(producer.ledger) == exact(producer.ledger)
    assert sink.audit()["ok"]


def test_writers_and_maintenance_stand_still_by_command(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 200)
    writer, compactor = sink.start(), sink.start(role="compactor")
    producer.start()
    wait_until(lambda: kinds_of(sink)["append"] >= 5, 60, "it writes")
    assert control(sink, "pause", "--role", "writer")["result"]["paused"] is True
    wait_until(lambda: bool(writer.events("paused")), 30, "the writer stands still")
    wait_until(
        lambda: not writer.steps_out() or writer.steps_out() == ["poll"], 10, "nothing is out"
    )
    before = kinds_of(sink)["append"]
    wait_until(lambda: len(producer.ledger) > sink.committed_records() + 300, 30, "records wait")
    assert kinds_of(sink)["append"] <= before + 1
    assert control(sink, "resume", "--role", "writer")["result"]["paused"] is False
    ledger = producer.stop()
    wait_until(lambda: sink.committed_records() >= len(ledger), 60, "everything is committed")
    assert [writer.stop(), compactor.stop()] == [0, 0]
    assert sink.compare(ledger) == exact(ledger)


def test_a_writer_asks_for_the_small_files_that_it_sees(sink, broker):
    producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, 300)
    writer = sink.start("--set", "compaction.small_files_max=20")
    producer.start()
    wait_until(lambda: bool(writer.events("command_sent")), 60, "it asks")
    # Nobody was there to hear it; whoever comes finds the command in the topic.
    compactor = sink.start(role="compactor")
    wait_until(lambda: kinds_of(sink)["compaction"] >= 1, 60, "it is compacted")
    ledger = producer.stop()
    wait_until(lambda: sink.committed_records() >= len(ledger), 60, "everything is committed")
    assert [writer.stop(), compactor.stop()] == [0, 0]
    assert sink.compare(ledger) == exact(ledger)
