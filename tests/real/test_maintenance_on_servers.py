"""Compactors and vacuums on Apache Kafka, MinIO and DynamoDB Local, stopped where it hurts."""

from __future__ import annotations

import json
import signal
import time
import uuid

import pytest
from confluent_kafka import Producer

from delta_sink.delta.receipt import receipt_of
from tests.process.sinks import LedgerProducer, WriterProcess, wait_until
from tests.process.test_kills import assert_exactly_once
from tests.process.test_maintenance import exact, kinds_of
from tests.real.lake import LakeSink, new_topic

PARTITIONS = 4
LEASE_MS = 4_000


class Lake(LakeSink):
    """A sink with control topics and locks in DynamoDB, and nothing that asks by itself."""

    def __init__(self, folder, kafka, minio, dynamodb, topic):
        super().__init__(
            folder,
            kafka,
            minio,
            topic,
            control={"topic": f"{topic}.control", "status_topic": f"{topic}.status"},
            locks={
                "store": "dynamodb",
                "table_name": f"locks-{uuid.uuid4().hex}",
                "region": dynamodb.region,
                "endpoint_url": dynamodb.endpoint,
                "lease_ms": LEASE_MS,
                "path": "locks.db",
            },
            compaction={
                "target_file_bytes": "8MiB",
                "quiet_ms": 0,
                "small_files_max": 1_000_000,
                "age_max_ms": 3_600_000,
            },
            checkpoint={"commits_max": 1_000_000, "age_max_ms": 3_600_000},
            vacuum={"retention_hours_min": 0},
            flush={"interval_ms": 30},
            http={"port": 0},
        )
        self.kafka, self.topic = kafka, topic
        self.env |= dynamodb.environment
        done = self.run("init")
        assert done.returncode == 0, done.stderr

    def ask(self, command: str, *, partitions: tuple[int, ...] = (0,), **args) -> str:
        """Put a command into partitions of the control topic; return its id."""
        name = uuid.uuid4().hex
        message = {"v": 1, "id": name, "command": command, "table": self.uri, "args": args}
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers})
        for partition in partitions:
            producer.produce(
                f"{self.topic}.control", json.dumps(message).encode(), partition=partition
            )
        producer.flush()
        return name

    def said(self, worker: WriterProcess, name: str) -> list[str]:
        """Return the states that a worker told of a command."""
        outcomes = worker.events("command_outcome")
        return [each["state"] for each in outcomes if each["id"] == name]

    def data_files(self) -> set[str]:
        """Return every data file in the bucket, in the table or not."""
        return {info.path for info in self._store.list("") if info.path.endswith(".parquet")}

    def committed_files(self) -> set[str]:
        """Return every data file that any version of the table has had."""
        return {add.path for entry in self.entries() for add in entry.adds}


@pytest.fixture
def lake(tmp_path, kafka, minio, dynamodb):
    with Lake(tmp_path, kafka, minio, dynamodb, new_topic(kafka, PARTITIONS)) as lake:
        yield lake


@pytest.fixture
def producer(lake):
    return LedgerProducer(lake.kafka.bootstrap_servers, PARTITIONS, 600, lake.topic)


@pytest.mark.long
def test_two_compactors_on_one_command_beside_many_appends(lake, producer):
    writer = lake.start()
    compactors = [lake.start(role="compactor") for _ in range(2)]
    producer.start()
    wait_until(lambda: kinds_of(lake)["append"] >= 100, 90, "there are many small files")
    began_s, before = time.monotonic(), kinds_of(lake)["append"]
    name = lake.ask("compact", partitions=tuple(range(16)))
    wait_until(
        lambda: sum("succeeded" in lake.said(each, name) for each in compactors) >= 1,
        90,
        "one of them has done it",
    )
    per_s = (kinds_of(lake)["append"] - before) / (time.monotonic() - began_s)
    assert per_s >= 3, f"{per_s:.1f} appends a second: the writer was held up"
    ledger = producer.stop()
    wait_until(lambda: lake.committed_records() >= len(ledger), 60, "everything is committed")
    assert [each.stop() for each in (writer, *compactors)] == [0, 0, 0]
    begun = [state for each in compactors for state in lake.said(each, name) if state == "started"]
    assert begun == ["started"], "a command that is delivered many times acts once"
    removed = [remove for entry in lake.entries() for remove in entry.removes]
    assert len(removed) >= 90
    assert_exactly_once(lake, ledger)


def test_a_compactor_that_sleeps_past_its_lease(lake, producer):
    writer = lake.start()
    producer.start()
    wait_until(lambda: kinds_of(lake)["append"] >= 40, 90, "there are small files")
    ledger = producer.stop()
    wait_until(lambda: lake.committed_records() >= len(ledger), 60, "everything is committed")
    assert writer.stop() == 0
    # One small file a step and a budget that lets it wait after each.
    slow = ("--set", "compaction.bytes_per_s_max=2000")
    sleeper = lake.start(*slow, role="compactor")
    name = lake.ask("compact", target_file_bytes=4_096)
    wait_until(lambda: kinds_of(lake)["compaction"] >= 1, 60, "the first one is at it")
    sleeper.process.send_signal(signal.SIGSTOP)
    other = lake.start(role="compactor")
    wait_until(lambda: "succeeded" in lake.said(other, name), 90, "the other one has done it")
    after = len(lake.table().file_uris())
    sleeper.process.send_signal(signal.SIGCONT)
    wait_until(
        lambda: bool(sleeper.events("command_left") or sleeper.events("compaction_dropped")),
        60,
        "the sleeper notices",
    )
    assert [sleeper.stop(), other.stop()] == [0, 0]
    assert len(lake.table().file_uris()) <= after
    assert lake.compare(ledger) == exact(ledger)
    assert_exactly_once(lake, ledger)


def test_a_writer_that_sleeps_with_an_uploaded_file_while_vacuum_keeps_nothing(lake, producer):
    writer = lake.start()
    vacuum = lake.start(role="vacuum")
    producer.start()
    wait_until(lambda: kinds_of(lake)["append"] >= 5, 60, "it writes")
    orphans = _stop_between_upload_and_commit(lake, writer)
    name = lake.ask("vacuum", retention_hours=0, dry_run=False)
    wait_until(lambda: "succeeded" in lake.said(vacuum, name), 60, "the vacuum is done")
    assert not orphans & lake.data_files(), "what the sleeper had uploaded is deleted"
    writer.process.send_signal(signal.SIGCONT)
    before = lake.committed_records()
    wait_until(lambda: lake.committed_records() > before + 500, 60, "the writer goes on")
    ledger = producer.stop()
    wait_until(lambda: lake.committed_records() >= len(ledger), 60, "everything is committed")
    assert [writer.stop(), vacuum.stop()] == [0, 0]
    assert not orphans & lake.committed_files(), "a deleted file is never committed"
    assert_exactly_once(lake, ledger)


def _stop_between_upload_and_commit(lake: Lake, writer: WriterProcess) -> set[str]:
    """Return the files that a stopped writer has uploaded and not committed."""
    deadline_s = time.monotonic() + 90
    while time.monotonic() < deadline_s:
        writer.process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)  # what is on the wire lands
        orphans = lake.data_files() - lake.committed_files()
        if orphans:
            return orphans
        writer.process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("the writer was never caught between upload and commit")


@pytest.mark.long
def test_versions_within_the_retention_stay_readable(lake, producer):
    writer = lake.start()
    compactor, vacuum = lake.start(role="compactor"), lake.start(role="vacuum")
    producer.start()
    wait_until(lambda: kinds_of(lake)["append"] >= 30, 90, "there are small files")
    compacting = lake.ask("compact")
    wait_until(lambda: "succeeded" in lake.said(compactor, compacting), 60, "it is compacted")
    vacuuming = lake.ask("vacuum", retention_hours=1, dry_run=False)
    wait_until(lambda: "succeeded" in lake.said(vacuum, vacuuming), 60, "the vacuum is done")
    ledger = producer.stop()
    wait_until(lambda: lake.committed_records() >= len(ledger), 60, "everything is committed")
    assert [each.stop() for each in (writer, compactor, vacuum)] == [0, 0, 0]
    table, rows = lake.table(), 0
    for entry in lake.entries():
        receipt = receipt_of(entry)
        if receipt is not None and receipt.kind == "append":
            rows += sum(part.rows for part in receipt.partitions)
        if entry.version % 5 == 0:
            table.load_as_version(entry.version)
            assert table.to_pyarrow_table(columns=["id"]).num_rows == rows, entry.version
    assert rows == len(ledger)
