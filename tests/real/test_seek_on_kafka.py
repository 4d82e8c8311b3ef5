"""`delta-sink seek` on Apache Kafka: every place to go, adoptions, and writers that run meanwhile."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from datetime import UTC, datetime

from confluent_kafka import Producer

from delta_sink.delta.receipt import RETIRED, receipt_of
from tests.process.sinks import LedgerProducer, produce, sentences_of, values, wait_until
from tests.real.lake import LakeSink, new_topic

HOUR_MS = 3_600_000
NOON_MS = 1_790_000_000_000


def seek(sink, *arguments):
    """Return what `seek --json` prints of a seek that must be possible."""
    done = sink.run("seek", *arguments, "--reason", "a test", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def shown(sink, *arguments):
    """Return the moves that a seek would make, (partition, from, to, twice, never)."""
    before = len(sink.entries())
    answer = seek(sink, *arguments)
    assert (answer["executed"], answer["version"]) == (False, None)
    assert len(sink.entries()) == before, "to show is not to do"
    return moves_of(answer)


def done(sink, *arguments):
    """Return the moves that a seek has made."""
    before = len(sink.entries())
    answer = seek(sink, *arguments, "--execute")
    assert (answer["executed"], answer["version"]) == (True, before)
    return moves_of(answer)


def moves_of(answer):
    names = ("partition", "offset_from", "offset_to", "twice", "never")
    return [tuple(move[name] for name in names) for move in answer["moves"]]


def covered(sink):
    """Return how often the appends of the log cover each (partition, offset)."""
    return Counter(
        (part.partition, offset)
        for entry in sink.entries()
        if (receipt := receipt_of(entry)) is not None and receipt.kind == "append"
        for part in receipt.partitions
        for offset in range(part.offset_first, part.offset_next)
    )


def in_the_table(sink):
    """Return how often the table has each (partition, offset)."""
    rows = sink.table().to_pyarrow_table(columns=["_kafka_partition", "_kafka_offset"])
    columns = [rows.column(name).to_pylist() for name in rows.column_names]
    return Counter(zip(*columns, strict=True))


def txns_of(sink):
    """Return the newest `txn` of each app id."""
    txns = {}
    for entry in sink.entries():
        txns |= entry.txns or {}
    return txns


def seeks_of(audit):
    """Return what an audit says of every seek's partition and offsets."""
    return [(seek["partition"], seek["offset_from"], seek["offset_to"]) for seek in audit["seeks"]]


def test_every_place_to_go(tmp_path, kafka, minio):
    """Two partitions of a hundred records, an hour between neighbours; the broker knows where."""
    topic = new_topic(kafka, 2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(200):
        at = {"partition": number % 2, "timestamp": NOON_MS + (number // 2) * HOUR_MS}
        producer.produce(topic, value=values([number])[0], **at)
    assert producer.flush(20) == 0
    kafka.delete_records(topic, {1: 20})
    fortieth = datetime.fromtimestamp((NOON_MS + 40 * HOUR_MS) / 1000, UTC).isoformat()
    between = datetime.fromtimestamp((NOON_MS + 40.5 * HOUR_MS) / 1000, UTC).isoformat()
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        sink.drain()
        to_offset = ("--to-offset", "90", "--partition", "0")
        assert shown(sink, *to_offset) == [(0, 100, 90, 10, 0)]
        assert done(sink, *to_offset) == [(0, 100, 90, 10, 0)]
        assert done(sink, "--to-time", fortieth) == [(0, 90, 40, 50, 0), (1, 100, 40, 60, 0)]
        assert done(sink, "--to-time", between) == [(0, 40, 41, 0, 1), (1, 40, 41, 0, 1)]
        assert done(sink, "--to-earliest", "--partition", "1") == [(1, 41, 20, 21, 0)]
        sink.drain()
        found = in_the_table(sink)
        assert found == covered(sink)
        once = [(0, n) for n in range(100)] + [(1, n) for n in range(20, 100)]
        again = [(0, n) for n in range(41, 100)] + [(1, n) for n in range(20, 100)]
        assert found == Counter([*once, *again])
        produce(kafka.bootstrap_servers, topic, values(range(200, 220)), partitions=2)
        assert shown(sink, "--to-latest") == [(0, 100, 110, 0, 10), (1, 100, 110, 0, 10)]
        assert done(sink, "--to-latest") == [(0, 100, 110, 0, 10), (1, 100, 110, 0, 10)]
        produce(kafka.bootstrap_servers, topic, values(range(220, 222)), partitions=2)
        sink.drain()
        assert in_the_table(sink) == Counter([*once, *again, (0, 110), (1, 110)])
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
        assert [seeks_of(audit)[0], seeks_of(audit)[-1]] == [(0, 100, 90), (1, 100, 110)]
        refused = sink.run("seek", "--to-offset", "19", "--partition", "1", "--reason", "a test")
        assert refused.returncode == 3
        assert "asked to go on at offset 19, but Kafka has 20 up to 111" in refused.stderr


def test_running_writers_notice(tmp_path, kafka, minio):
    """Two writers share the partitions; each is sent back, in the middle of what it does."""
    topic = new_topic(kafka, 2)
    producer = LedgerProducer(kafka.bootstrap_servers, 2, 400, topic)
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        writers = [sink.start(), sink.start()]
        producer.start()
        wait_until(lambda: all(sink.commits_of(w.worker_id()) > 3 for w in writers), 60, "both")
        wait_until(lambda: min(txns_of(sink).values()) > 100, 30, "both have gone on")
        moves = moves_of(seek(sink, "--to-earliest", "--execute"))
        moved = {partition: offset_from for partition, offset_from, *_ in moves}
        assert sorted(moved) == [0, 1]
        assert all(offset_to == 0 for _, _, offset_to, *_ in moves)
        wait_until(lambda: all(w.events("resynced") for w in writers), 30, "both notice")
        ledger = producer.stop()
        ends = {partition: kafka.end_offset(topic, partition) for partition in (0, 1)}
        assert sum(ends.values()) == len(ledger)
        wait_until(lambda: sorted(txns_of(sink).values()) == sorted(ends.values()), 60, "the end")
        assert [writer.process.poll() for writer in writers] == [None, None]
        assert [writer.stop() for writer in writers] == [0, 0]
        found = in_the_table(sink)
        audit = sink.audit()
    wanted = Counter((partition, offset) for partition in ends for offset in range(ends[partition]))
    wanted.update((partition, offset) for partition in moved for offset in range(moved[partition]))
    assert found == wanted
    assert audit["ok"], audit["violations"]
    assert sorted(seeks_of(audit)) == [(0, moved[0], 0), (1, moved[1], 0)]


def test_a_topic_that_was_created_again_is_adopted_under_a_running_writer(tmp_path, kafka, minio):
    """The writer stands still meanwhile, and wakes at an offset that the new topic has as well."""
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic, keys={"session.timeout.ms": 30_000}) as sink:
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
        [old] = txns_of(sink)
        nothing = sink.run("seek", "--adopt-topic", "--reason", "a test", "--execute")
        assert nothing.returncode == 3
        assert "nothing to adopt" in nothing.stderr
        writer.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # a fetch that waits at the broker is answered, empty
        kafka.delete_topic(topic)
        kafka.create_topic(topic, 1)
        produce(kafka.bootstrap_servers, topic, values(range(100, 130)))
        plain = sink.run("seek", "--to-earliest", "--reason", "a test", "--execute")
        assert plain.returncode == 3
        assert "--adopt-topic" in plain.stderr
        assert shown(sink, "--adopt-topic") == [(0, None, 0, 0, 0)]
        assert done(sink, "--adopt-topic") == [(0, None, 0, 0, 0)]
        writer.process.send_signal(signal.SIGCONT)
        wait_until(lambda: sink.committed_records() == 40, 90, "the writer goes on")
        assert writer.events("resynced"), "it held what it must not keep"
        assert writer.process.poll() is None
        assert writer.stop() == 0
        assert sink.ids() == [*range(10), *range(100, 130)]
        txns = txns_of(sink)
        assert txns.pop(old) == RETIRED
        assert [*txns.values()] == [30]
        audit = sink.audit()
        assert audit["ok"], audit["violations"]


def test_a_renamed_sink_takes_over_from_a_running_writer(tmp_path, kafka, minio):
    topic = new_topic(kafka, 2)
    producer = LedgerProducer(kafka.bootstrap_servers, 2, 300, topic)
    (tmp_path / "heir").mkdir()
    with (
        LakeSink(tmp_path, kafka, minio, topic) as sink,
        LakeSink(
            tmp_path / "heir", kafka, minio, topic, name=f"heir-of-{topic}", uri=sink.uri
        ) as heir,
    ):
        old = sink.start()
        producer.start()
        wait_until(lambda: sink.commits_of(old.worker_id()) > 3, 60, "the old writer commits")
        refused = heir.run("run", "writer")
        assert refused.returncode == 3
        assert f"seek --adopt-sink {sink.name}" in " ".join(sentences_of(refused.stderr))
        would = seek(heir, "--adopt-sink", sink.name)
        assert [move["replaces"] for move in would["moves"]] == sorted(txns_of(sink))
        seek(heir, "--adopt-sink", sink.name, "--execute")
        new = heir.start()
        assert old.process.wait(60) == 3
        [sentence] = sentences_of(old.log_path.read_text(encoding="utf-8"))
        assert f"sink '{heir.name}' took over the offsets" in sentence
        wait_until(lambda: sink.commits_of(new.worker_id()) > 3, 60, "the new writer commits")
        ledger = producer.stop()
        wait_until(lambda: sink.committed_records() >= len(ledger), 60, "everything is committed")
        assert new.stop() == 0
        assert heir.compare(ledger) == {"rows": len(ledger), "lost": 0, "doubled": 0, "altered": 0}
        audit = heir.audit()
        assert audit["ok"], audit["violations"]
        assert sorted(audit["seeks"][n]["replaces"] for n in (0, 1)) == sorted(
            text for text, txn in txns_of(sink).items() if txn == RETIRED
        )
