"""`delta-sink seek` beside writers that run: they notice, and the rows are what the audit says."""

from __future__ import annotations

import json
import time

import pytest
import yaml
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.delta.receipt import RETIRED, receipt_of
from tests.process.sinks import (
    TOPIC,
    LedgerProducer,
    Sink,
    produce,
    sentences_of,
    values,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.process

RECORDS = 500


@pytest.fixture
def broker():
    with EmbeddedBroker({TOPIC: 1}) as broker:
        yield broker


def seek(sink: Sink, *arguments: str) -> dict:
    """Return what `seek --json` prints; it must leave with 0."""
    done = sink.run("seek", *arguments, "--reason", "a test", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def txn(sink: Sink, app_id: str = f"events-sink/{TOPIC}/0") -> int:
    """Return the newest `txn` of an app id, -1 if there is none."""
    return next((e.txns[app_id] for e in reversed(sink.entries()) if app_id in (e.txns or {})), -1)


def offsets_in(sink: Sink) -> list[int]:
    rows = DeltaTable(str(sink.folder / "table")).to_pyarrow_table(columns=["_kafka_offset"])
    return sorted(rows.column("_kafka_offset").to_pylist())


def by_receipts(sink: Sink) -> list[int]:
    """Return every offset as often as the appends of the log cover it."""
    receipts = [receipt_of(entry) for entry in sink.entries()]
    return sorted(
        offset
        for receipt in receipts
        if receipt is not None and receipt.kind == "append"
        for part in receipt.partitions
        for offset in range(part.offset_first, part.offset_next)
    )


def test_a_running_writer_is_sought_back_and_forth(tmp_path, broker):
    config = write_config(tmp_path, broker.bootstrap_servers)
    producer = LedgerProducer(broker.bootstrap_servers, 1, rate_per_s=300)
    with Sink(tmp_path, config) as sink:
        writer = sink.start()
        producer.start()
        wait_until(lambda: txn(sink) > RECORDS, 60, "the writer commits")
        shown = seek(sink, "--to-offset", "100")
        assert (shown["executed"], shown["version"]) == (False, None)
        assert shown["moves"][0]["twice"] >= RECORDS - 100
        back = seek(sink, "--to-offset", "100", "--execute")
        assert back["moves"][0]["offset_from"] >= shown["moves"][0]["offset_from"]
        wait_until(lambda: writer.events("resynced"), 60, "the writer notices the seek")
        wait_until(lambda: txn(sink) > back["moves"][0]["offset_from"], 60, "it goes on")
        ledger = producer.stop()
        wait_until(lambda: txn(sink) == len(ledger), 60, "everything is committed")
        # Nobody commits now: the writer is idle, and only its look at the log tells it.
        produce(broker.bootstrap_servers, TOPIC, values(range(200)))
        wait_until(lambda: txn(sink) == len(ledger) + 200, 60, "the rest is committed")
        again = seek(sink, "--to-offset", str(len(ledger) + 150), "--execute")
        wait_until(lambda: txn(sink) == len(ledger) + 200, 90, "an idle writer notices a seek")
        wait_until(lambda: len(writer.events("resynced")) >= 2, 30, "it says so")
        assert writer.stop() == 0
        audit = sink.audit()
        found, covered = offsets_in(sink), by_receipts(sink)
    overlap = range(100, back["moves"][0]["offset_from"])
    wanted = sorted(
        [*range(len(ledger) + 200), *overlap, *range(len(ledger) + 150, len(ledger) + 200)]
    )
    assert found == covered == wanted
    assert audit["ok"], audit["violations"]
    assert audit["proven"], audit["unproven"]
    told = [(s["version"], s["offset_from"], s["offset_to"], s["reason"]) for s in audit["seeks"]]
    assert told == [
        (back["version"], overlap.stop, 100, "a test"),
        (again["version"], len(ledger) + 200, len(ledger) + 150, "a test"),
    ]
    assert all("@" in s["operator"] for s in audit["seeks"])


def test_forward_leaves_a_gap_that_the_audit_names(tmp_path, broker):
    with Sink(tmp_path, write_config(tmp_path, broker.bootstrap_servers)) as sink:
        produce(broker.bootstrap_servers, TOPIC, values(range(50)))
        sink.drain()
        produce(broker.bootstrap_servers, TOPIC, values(range(50, 100)))
        dry = sink.run("seek", "--to-offset", "80", "--reason", "bad records")
        assert dry.stdout.splitlines() == [
            f"{TOPIC}/0: 50 to 80: offsets 50 to 79 are never read (Kafka still has 30)",
            "nothing was changed; --execute does it",
        ]
        assert txn(sink) == 50
        seek(sink, "--to-offset", "80", "--execute")
        sink.drain()
        audit = sink.audit()
        human = sink.run("audit", "--deep")
        found = offsets_in(sink)
    assert found == [*range(50), *range(80, 100)]
    assert audit["ok"], audit["violations"]
    assert "offsets 50 to 79 are left out (a test)" in human.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--to-offset", "11"], 3, "asked to go on at offset 11, but Kafka has 0 up to 10"),
        (["--to-offset", "3", "--partition", "7"], 3, "/7 does not exist"),
        (["--to-time", "2999-01-01T00:00:00Z"], 3, "the time lies in the future"),
        (["--adopt-topic"], 3, "seek to its earliest offset instead"),
        (["--adopt-sink", "nobody"], 3, "no offsets of a sink 'nobody'"),
        (["--to-time", "noon"], 2, "expected a time like"),
        (["--to-latest", "--to-earliest"], 2, "say once where to go"),
        ([], 2, "say once where to go"),
        (["--to-offset", "-1"], 2, "-1"),
    ],
)
def test_a_bad_seek_is_refused_in_a_sentence(drained_sink, arguments, code, sentence):
    before = len(drained_sink.entries())
    done = drained_sink.run("seek", *arguments, "--reason", "a test", "--execute")
    assert done.returncode == code, done
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(drained_sink.entries()) == before


def test_a_seek_needs_a_reason(drained_sink):
    done = drained_sink.run("seek", "--to-earliest", "--execute")
    assert done.returncode == 2
    assert "--reason" in done.stderr


@pytest.fixture(scope="module")
def drained_sink(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drained")
    with (
        EmbeddedBroker({TOPIC: 1}) as broker,
        Sink(folder, write_config(folder, broker.bootstrap_servers)) as sink,
    ):
        produce(broker.bootstrap_servers, TOPIC, values(range(10)))
        sink.drain()
        yield sink


def test_a_renamed_sink_goes_on_while_the_old_writer_runs(tmp_path, broker):
    """Nobody stopped the old writer: the log fences it, and not one record is doubled."""
    config = write_config(tmp_path, broker.bootstrap_servers)
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) | {"name": "events-heir"}
    heir_config = renamed / "sink.yaml"
    heir_config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    producer = LedgerProducer(broker.bootstrap_servers, 1, rate_per_s=300)
    with Sink(tmp_path, config) as sink, Sink(renamed, heir_config) as heir:
        old = sink.start()
        producer.start()
        wait_until(lambda: txn(sink) > RECORDS, 60, "the old writer commits")
        refused = heir.run("run", "writer")
        assert refused.returncode == 3
        assert "seek --adopt-sink events-sink" in " ".join(sentences_of(refused.stderr))
        moved = seek(heir, "--adopt-sink", "events-sink", "--execute")
        assert moved["moves"][0]["replaces"] == f"events-sink/{TOPIC}/0"
        assert any("stop the writers of 'events-sink'" in line for line in moved["advice"])
        new = heir.start()
        assert old.process.wait(timeout=60) == 3
        assert "sink 'events-heir' took over the offsets" in old.events("worker_failed")[0]["error"]
        time.sleep(1)
        ledger = producer.stop()
        new_id = f"events-heir/{TOPIC}/0"
        wait_until(lambda: txn(sink, new_id) == len(ledger), 60, "the new writer has everything")
        assert new.stop() == 0
        assert txn(sink) == RETIRED
        found = offsets_in(sink)
        audit = heir.audit()
        again = sink.run("run", "writer")
    assert found == list(range(len(ledger)))
    assert audit["ok"], audit["violations"]
    assert audit["seeks"][0]["replaces"] == f"events-sink/{TOPIC}/0"
    assert again.returncode == 3
