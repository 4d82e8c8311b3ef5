"""Records that cannot become rows: stop, or a dead letter with everything that it had."""

from __future__ import annotations

import pytest
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.delta.receipt import receipt_of
from tests.process.sinks import (
    Sink,
    produce,
    records_in,
    sentences_of,
    values,
    write_config,
)

pytestmark = pytest.mark.process

SECRET = "the-value-of-a-customer"
BAD_TYPE = b'{"id": "' + SECRET.encode() + b'", "payload": "x"}'


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


def sink_on(folder, broker, topic, **overrides):
    source = {"topics": [topic]}
    config = write_config(
        folder, broker.bootstrap_servers, source=source, name=f"on-{topic}", **overrides
    )
    return Sink(folder, config)


def tolerant(topic, **more):
    return {"tolerance": "all", "dead_letter_topic": f"{topic}.dlq", **more}


def ids_in(folder):
    return sorted(DeltaTable(str(folder / "table")).to_pyarrow_table().column("id").to_pylist())


def receipts(sink):
    return [r for e in sink.entries() if (r := receipt_of(e)) is not None and r.kind == "append"]


def runs(sink, name):
    """Return every offset that commits list under `name`, one topic partition assumed."""
    return [
        offset
        for receipt in receipts(sink)
        for part in receipt.partitions
        for first, after in getattr(part, name)
        for offset in range(first, after)
    ]


# --- policies ---------------------------------------------------------------------------------


def test_without_tolerance_the_worker_stops_at_the_record(tmp_path, broker):
    broker.create_topic("strict", 1)
    produce(broker.bootstrap_servers, "strict", [*values(range(5)), BAD_TYPE, *values([6, 7])])
    with sink_on(tmp_path, broker, "strict") as sink:
        for _ in range(2):  # a restart does not walk past it
            done = sink.run("run", "writer")
            assert done.returncode == 3
            [sentence] = sentences_of(done.stderr)
            assert "strict/0@5" in sentence
            assert "id" in sentence
            assert "errors.tolerance: all" in sentence
            assert SECRET not in done.stderr + done.stdout
        committed = sink.committed_records()
        assert committed <= 5
        # The records before it may be in the table, it and those after it may not.
        assert all(p.offset_next <= 5 for r in receipts(sink) for p in r.partitions)
        assert sink.run("audit").returncode == 0


def test_a_dead_letter_has_everything_that_the_record_had(tmp_path, broker):
    broker.create_topic("lenient", 1)
    servers = broker.bootstrap_servers
    headers = [("trace", b"t-1"), ("trace", b"t-2"), ("empty", b"")]
    with sink_on(tmp_path, broker, "lenient", errors=tolerant("lenient", ratio_max=1.0)) as sink:
        broker.create_topic("lenient.dlq", 1)
        produce(servers, "lenient", values(range(10)))
        produce(servers, "lenient", [BAD_TYPE, b"not json", b""], key=b"k\xff", headers=headers)
        produce(servers, "lenient", values(range(13, 15)))
        done = sink.drain()
        assert SECRET not in done.stderr
        assert ids_in(tmp_path) == [*range(10), 13, 14]
        assert runs(sink, "dead_letters") == [10, 11, 12]
        letters = records_in(servers, "lenient.dlq")
        assert [letter.value() or b"" for letter in letters] == [BAD_TYPE, b"not json", b""]
        listing = {r.commit_id for r in receipts(sink) if any(p.dead_letters for p in r.partitions)}
        for number, letter in enumerate(letters):
            assert letter.key() == b"k\xff"
            assert letter.headers()[:3] == headers
            said = dict(letter.headers()[3:])
            connect = "__connect.errors."
            assert said[connect + "topic"] == b"lenient"
            assert said[connect + "partition"] == b"0"
            assert said[connect + "offset"] == str(10 + number).encode()
            assert said[connect + "connector.name"] == b"on-lenient"
            assert said[connect + "task.id"] == b"0"
            assert said[connect + "stage"] == b"VALUE_CONVERTER"
            assert said[connect + "class.name"]
            assert said[connect + "exception.class.name"]
            assert said[connect + "exception.message"]
            assert said["delta_sink.commit_id"].decode() in listing
        assert b"id" in dict(letters[0].headers())["__connect.errors.exception.message"]
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
        assert audit["partitions"][0]["dead_letters"] == 3


def test_a_dead_letter_topic_that_is_not_there_stops_the_worker(tmp_path, broker):
    broker.create_topic("no-target", 1)
    produce(broker.bootstrap_servers, "no-target", [*values(range(3)), BAD_TYPE])
    with sink_on(tmp_path, broker, "no-target", errors=tolerant("no-target")) as sink:
        done = sink.run("run", "writer", "--until-end", timeout_s=60)
        assert done.returncode == 3, done.stderr[-2000:]
        [sentence] = sentences_of(done.stderr)
        assert "no-target.dlq" in sentence
        assert runs(sink, "dead_letters") == []


def test_too_many_bad_records_stop_the_worker(tmp_path, broker):
    broker.create_topic("flooded", 1)
    broker.create_topic("flooded.dlq", 1)
    records = [
        b"junk" if number % 10 == 0 else value for number, value in enumerate(values(range(3000)))
    ]
    produce(broker.bootstrap_servers, "flooded", records)
    with sink_on(tmp_path, broker, "flooded", errors=tolerant("flooded")) as sink:
        done = sink.run("run", "writer")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "errors.ratio_max" in sentence
        assert "flooded/0@" in sentence
        assert "junk" not in done.stderr
        assert len(runs(sink, "dead_letters")) < 300
        assert sink.run("audit").returncode == 0
        sink.drain("--set", "errors.ratio_max=0.2")
        assert len(runs(sink, "dead_letters")) == 300
        assert len(ids_in(tmp_path)) == 2700
        assert sink.audit()["ok"]


@pytest.mark.parametrize("policy", ["skip", "dead_letter", "null_row"])
def test_tombstones_by_policy(tmp_path, broker, policy):
    topic = f"tombs-{policy}"
    broker.create_topic(topic, 1)
    broker.create_topic(f"{topic}.dlq", 1)
    produce(
        broker.bootstrap_servers, topic, [*values(range(3)), None, None, *values([5])], key=b"k"
    )
    nullable = [{"name": "id", "type": "long"}, {"name": "payload", "type": "string"}]
    with sink_on(
        tmp_path,
        broker,
        topic,
        value={"tombstones": policy},
        table={"schema": nullable},
        errors={"dead_letter_topic": f"{topic}.dlq"},
    ) as sink:
        sink.drain()
        rows = DeltaTable(str(tmp_path / "table")).to_pyarrow_table().sort_by("_kafka_offset")
        ids = rows.column("id").to_pylist()
        letters = records_in(broker.bootstrap_servers, f"{topic}.dlq")
        assert ids == ([0, 1, 2, None, None, 5] if policy == "null_row" else [0, 1, 2, 5])
        assert runs(sink, "skipped") == ([3, 4] if policy == "skip" else [])
        assert runs(sink, "dead_letters") == ([3, 4] if policy == "dead_letter" else [])
        assert len(letters) == (2 if policy == "dead_letter" else 0)
        assert all(letter.value() is None and letter.key() == b"k" for letter in letters)
        audit = sink.audit()
        assert audit["ok"], audit["violations"]


# --- poison -----------------------------------------------------------------------------------

POISON = {
    "null-first": [b"null"],
    "brackets": [b"[" * 1_000_000],
    "brackets-in-an-ignored-field": [
        b'{"id": 1, "other": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"
    ],
    "brackets-in-a-column": [
        b'{"id": 1, "payload": ' + b'{"a":' * 300_000 + b"1" + b"}" * 300_000 + b"}"
    ],
    "two-documents": [b'{"id":1,"payload":"a"}{"id":2,"payload":"b"}'],
    "split-document": [b'{"id":1,"payload":"a"', b"}"],
    "invalid-utf8": [b'{"id":1,"payload":"\xff"}'],
    "binary": [bytes(range(256))],
    "duplicate-keys": [b'{"id":1,"id":2,"payload":"a"}'],
    "infinity": [b'{"id":1e400,"payload":"a"}'],
}


def test_poison_kills_nobody(tmp_path, broker):
    """All of it in one topic, in the first batch and between good records."""
    broker.create_topic("poisoned", 4)
    broker.create_topic("poisoned.dlq", 1)
    poison = [value for group in POISON.values() for value in group]
    mixed = [*poison[:1], *values(range(1000, 1010))]
    for number, value in enumerate(poison[1:]):
        mixed += [value, *values([number])]
    produce(broker.bootstrap_servers, "poisoned", mixed, partitions=4)
    with sink_on(tmp_path, broker, "poisoned", errors=tolerant("poisoned", ratio_max=1.0)) as sink:
        sink.drain()
        assert ids_in(tmp_path) == sorted([*range(len(poison) - 1), *range(1000, 1010)])
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
        assert sum(part["dead_letters"] for part in audit["partitions"]) == len(poison)


def test_a_record_that_is_too_large_is_a_dead_letter(tmp_path, broker):
    """The embedded broker keeps one record of more than 5 MiB, and nothing beside it."""
    broker.create_topic("large", 2)
    broker.create_topic("large.dlq", 1)
    large = b'{"id": 1, "payload": "' + b"x" * (8 << 20) + b'"}'
    produce(broker.bootstrap_servers, "large", [large, *values([7])], partitions=2)
    with sink_on(tmp_path, broker, "large", errors=tolerant("large", ratio_max=1.0)) as sink:
        sink.drain()
        assert ids_in(tmp_path) == [7]
        [letter] = records_in(broker.bootstrap_servers, "large.dlq")
        assert letter.value() == large
        assert len(dict(letter.headers())["__connect.errors.exception.message"]) < 10_000
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
