"""What only a real broker has: transactions, compaction, retention, topic ids, groups."""

from __future__ import annotations

import json
import signal
import time

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Place

from delta_sink.delta.receipt import receipt_of
from delta_sink.model import AppId
from tests.process.sinks import (
    events_of,
    produce,
    sentences_of,
    values,
    wait_until,
)
from tests.process.test_kills import assert_exactly_once
from tests.real.lake import LakeSink, Transactions, new_topic

EACH_WAY = [
    "cooperative",
    "kip848",
    pytest.param("eager", marks=pytest.mark.long),
    pytest.param("static", marks=pytest.mark.long),
]


def offsets_of(sink):
    """Return the newest offset of each partition in the log, and the app id it stands under."""
    found = {}
    for entry in sink.entries():
        receipt = receipt_of(entry)
        for part in receipt.partitions if receipt is not None else ():
            found[part.partition] = (part.app_id, part.offset_next)
    return found


def served(kafka, topic, partition=0):
    """Return the offsets that the broker gives a reader of everything, aborted records too."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": "a-reader-of-tests",
            "enable.auto.commit": False,
            "isolation.level": "read_uncommitted",
            "enable.partition.eof": True,
        }
    )
    offsets = []
    try:
        consumer.assign([Place(topic, partition, kafka.first_offset(topic, partition))])
        while True:
            message = consumer.poll(10)
            assert message is not None
            if message.error() is not None:
                assert message.error().name() == "_PARTITION_EOF", message.error()
                return offsets
            offsets.append(message.offset())
    finally:
        consumer.close()


# --- transactions -------------------------------------------------------------------------------


def test_of_transactions_only_what_was_committed(tmp_path, kafka, minio):
    topic = new_topic(kafka, 2)
    transactions = Transactions(kafka, topic, 2)
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        writer = sink.start()
        for round_ in range(18):
            # Every third is aborted, the last one too: what the topic ends with is no record.
            transactions.run(range(round_ * 40, round_ * 40 + 40), abort=round_ % 3 == 2)
        ledger = transactions.ledger
        wait_until(lambda: sink.committed_records() >= len(ledger), 40, "all is committed")
        assert writer.stop() == 0
        sink.drain()
        ends = [kafka.end_offset(topic, partition) for partition in (0, 1)]
        seen = [offset for partition in (0, 1) for offset in served(kafka, topic, partition)]
        assert transactions.aborted == 240
        assert len(seen) == len(ledger) + transactions.aborted, "the aborted ones reached the log"
        assert sum(ends) > len(seen), "the markers took offsets"
        # Behind aborted records and markers the position has moved to the very end.
        assert [offsets_of(sink)[partition][1] for partition in (0, 1)] == ends
        assert_exactly_once(sink, ledger)


def test_an_open_transaction_is_waited_for(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": f"open-{topic}"}
    )
    producer.init_transactions(20)
    producer.begin_transaction()
    for value in values(range(10, 20)):
        producer.produce(topic, value=value, partition=0)
    assert producer.flush(20) == 0
    produce(kafka.bootstrap_servers, topic, values(range(20, 30)))
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        sink.drain()  # its end is before the open transaction
        assert served(kafka, topic) == [*range(30)]
        assert sink.ids() == [*range(10)]
        writer = sink.start()
        wait_until(lambda: writer.events("table_opened"), 30, "it reads")
        time.sleep(1)
        assert sink.committed_records() == 10
        producer.commit_transaction(20)
        wait_until(lambda: sink.committed_records() == 30, 30, "all is committed")
        assert writer.stop() == 0
        assert sink.ids() == [*range(30)]
        assert sink.audit()["ok"]


# --- what Kafka removes -------------------------------------------------------------------------


def test_a_compacted_topic_is_read_with_its_gaps(tmp_path, kafka, minio):
    topic = new_topic(
        kafka,
        1,
        cleanup_policy="compact",
        segment_ms="200",
        min_cleanable_dirty_ratio="0.01",
        max_compaction_lag_ms="200",
    )
    keyed = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 0})

    def write(numbers):
        for number in numbers:
            value = json.dumps({"id": number, "payload": f"of {number}"}).encode()
            # Every fifth has a key of its own and stays; of the others the last of each key stays.
            key = b"%d" % (number if number % 5 == 0 else number % 5)
            keyed.produce(topic, value=value, key=key, partition=0)
        assert keyed.flush(20) == 0

    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        write(range(50))
        sink.drain()
        first = sink.ids()
        write(range(50, 250))
        time.sleep(0.3)  # the segment is full of days by now; a record opens the next one
        write(range(250, 260))
        wait_until(lambda: len(served(kafka, topic)) < 100, 30, "the broker compacts")
        left = served(kafka, topic)
        assert left != [*range(left[0], left[0] + len(left))], "there are gaps"
        sink.drain()
        rows = sink.ids()
        assert set(first) <= set(range(50))
        assert set(left) - set(first) <= set(rows)
        assert rows == sorted({*first, *(offset for offset in rows if offset >= 50)})
        assert offsets_of(sink)[0][1] == kafka.end_offset(topic, 0)
        audit = sink.audit()
        assert audit["ok"], audit["violations"]


def _forget_by_request(kafka, topic):
    kafka.delete_records(topic, {0: 40})


def _forget_by_age(kafka, topic):
    kafka.alter_topic(topic, segment_ms="100", retention_ms="100")
    time.sleep(0.2)
    produce(kafka.bootstrap_servers, topic, values([40]))  # opens the next segment
    wait_until(lambda: kafka.first_offset(topic, 0) >= 40, 30, "the broker forgets")
    kafka.alter_topic(topic, retention_ms="-1")


@pytest.mark.parametrize(
    "forget",
    [
        pytest.param(_forget_by_request, marks=pytest.mark.long, id="request"),
        pytest.param(_forget_by_age, id="age"),
    ],
)
def test_a_gap_is_refused_with_its_size_or_skipped_and_recorded(tmp_path, kafka, minio, forget):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        sink.drain()
        produce(kafka.bootstrap_servers, topic, values(range(10, 40)))
        forget(kafka, topic)
        begin = kafka.first_offset(topic, 0)
        assert begin > 10
        produce(kafka.bootstrap_servers, topic, values(range(50, 60)))
        refused = sink.run("run", "writer", "--until-end")
        assert refused.returncode == 3
        [sentence] = sentences_of(refused.stderr)
        assert f"offsets 10 to {begin - 1}" in sentence
        assert f"({begin - 10} offsets" in sentence
        assert sink.ids() == [*range(10)]
        sink.drain("--set", "source.on_offset_gap=skip")
        assert sink.ids()[:10] == [*range(10)]
        assert sink.ids()[-10:] == [*range(50, 60)]
        gone = [
            part.gone
            for entry in sink.entries()
            if (receipt := receipt_of(entry)) is not None
            for part in receipt.partitions
            if part.gone
        ]
        assert gone == [((10, begin),)]
        assert sink.audit()["ok"]


def test_retention_that_passes_a_running_writer_stops_it(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with LakeSink(tmp_path, kafka, minio, topic, keys={"session.timeout.ms": 30_000}) as sink:
        writer = sink.start()
        produce(kafka.bootstrap_servers, topic, values(range(10)))
        wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
        writer.process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # a fetch that waits at the broker is answered, empty
        produce(kafka.bootstrap_servers, topic, values(range(10, 30)))
        kafka.delete_records(topic, {0: 25})
        writer.process.send_signal(signal.SIGCONT)
        assert writer.process.wait(30) == 3
        assert [event["offset_expected"] for event in writer.events("offset_gone")] == [10]
        log = writer.log_path.read_text(encoding="utf-8")
        [sentence] = sentences_of(log)
        assert "offsets 10 to 24" in sentence
        assert "(15 offsets" in sentence
        assert sink.ids() == [*range(10)]


# --- truncation ---------------------------------------------------------------------------------


def _truncated(kafka, topic):
    """Let the broker lose every record of a topic, as after an unclean election."""
    if kafka.data is None:
        pytest.skip("the disk of a broker in a container cannot be lost from here")
    topic_id = kafka.topic_id(topic)
    kafka.kill()
    kafka.lose(topic, 0)
    kafka.start()
    assert kafka.topic_id(topic) == topic_id, "it is the same topic"
    assert (kafka.first_offset(topic, 0), kafka.end_offset(topic, 0)) == (0, 0)


def test_a_topic_that_was_truncated_is_refused(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
        _truncated(kafka, topic)
        produce(kafka.bootstrap_servers, topic, values(range(100, 105)))
        assert writer.process.wait(60) == 3, "a running writer notices"
        done = sink.run("run", "writer", "--until-end")
        assert done.returncode == 3
        sentences = [
            *sentences_of(writer.log_path.read_text(encoding="utf-8")),
            *sentences_of(done.stderr),
        ]
        assert len(sentences) == 2, sentences
        assert all(f"{topic}/0" in sentence for sentence in sentences), sentences
        assert all("but the topic ends at" in sentence for sentence in sentences), sentences
        assert sink.ids() == [*range(10)]
        moved = sink.run("seek", "--to-earliest", "--reason", "a test", "--execute")
        assert moved.returncode == 0, moved.stderr
        sink.drain()
        assert sink.ids() == [*range(10), *range(100, 105)]


# --- topics that change -------------------------------------------------------------------------


def test_the_log_names_the_topic_by_its_id(tmp_path, kafka, minio):
    topic = new_topic(kafka, 2)
    produce(kafka.bootstrap_servers, topic, values(range(20)), partitions=2)
    topic_id = kafka.topic_id(topic).replace("+", "-").replace("/", "_").rstrip("=")
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        sink.drain()
        app_ids = [app_id for app_id, _ in offsets_of(sink).values()]
        assert app_ids == [f"{sink.name}/{topic}@{topic_id}/{partition}" for partition in (0, 1)]
        assert {AppId.parse(app_id).topic_id for app_id in app_ids} == {topic_id}


def test_a_topic_that_was_created_again_is_refused(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        sink.drain()
        before = kafka.topic_id(topic)
        kafka.delete_topic(topic)
        kafka.create_topic(topic, 1)
        assert kafka.topic_id(topic) != before
        # More than the table has of the old one: by its offsets alone it would pass for the same.
        produce(kafka.bootstrap_servers, topic, values(range(100, 130)))
        done = sink.run("run", "writer", "--until-end")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert topic in sentence
        assert "--adopt-topic" in sentence
        assert sink.ids() == [*range(10)]
        assert not events_of(done.stderr, "table_committed")


@pytest.mark.parametrize("way", ["kip848", pytest.param("cooperative", marks=pytest.mark.long)])
def test_a_topic_that_is_created_again_stops_a_running_writer(tmp_path, kafka, minio, way):
    """Under KIP-848 the group hears of it at once, else within the minute of the next patrol.

    Until then the new topic is read on at the old one's offset, if it reaches that far: docs/seek.md
    says so under "Limits". Nothing else of it may be in the table.
    """
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic, way=way) as sink:
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
        kafka.delete_topic(topic)
        kafka.create_topic(topic, 1)
        produce(kafka.bootstrap_servers, topic, values(range(100, 130)))
        assert writer.process.wait(90) == 3
        [sentence] = sentences_of(writer.log_path.read_text(encoding="utf-8"))
        assert "deleted and created again" in sentence
        rows = sink.ids()
        assert rows[:10] == [*range(10)]
        assert rows[10:] in ([], [*range(110, 130)])


@pytest.mark.parametrize(
    "way", ["cooperative", "kip848", pytest.param("eager", marks=pytest.mark.long)]
)
def test_partitions_that_are_added_are_read_from_their_beginning(tmp_path, kafka, minio, way):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    refresh = {"topic.metadata.refresh.interval.ms": 500}
    with LakeSink(
        tmp_path, kafka, minio, topic, way=way, source={"start": "latest"}, keys=refresh
    ) as sink:
        writer = sink.start()
        wait_until(lambda: writer.events("offsets_claimed"), 30, "the start is claimed")
        kafka.add_partitions(topic, 3)
        produce(kafka.bootstrap_servers, topic, values(range(100, 130)), partitions=3)
        wait_until(lambda: sink.committed_records() == 30, 30, "the new partitions are read")
        assert writer.stop() == 0
        assert sink.ids() == [*range(100, 130)]
        assert {number: offset for number, (_, offset) in offsets_of(sink).items()} == {
            0: 20,
            1: 10,
            2: 10,
        }
        assert sink.audit()["ok"]


# --- groups -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", EACH_WAY)
def test_a_group_that_is_deleted_under_the_sink_costs_nothing(tmp_path, kafka, minio, way):
    topic = new_topic(kafka, 2)
    produce(kafka.bootstrap_servers, topic, values(range(20)), partitions=2)
    with LakeSink(tmp_path, kafka, minio, topic, way=way) as sink:
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 20, 30, "all is committed")
        wait_until(lambda: kafka.committed(sink.name, topic) == {0: 10, 1: 10}, 10, "the offsets")
        writer.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not kafka.members_of(sink.name), 30, "the member is forgotten")
        kafka.delete_group(sink.name)
        assert kafka.committed(sink.name, topic) == {}
        produce(kafka.bootstrap_servers, topic, values(range(20, 40)), partitions=2)
        writer.process.send_signal(signal.SIGCONT)
        if way == "kip848":
            # librdkafka 2.16 takes the lost group for a fatal error where the classic protocol
            # joins anew. The worker says so and leaves; whoever restarts it loses nothing.
            assert writer.process.wait(30) == 3
            [sentence] = sentences_of(writer.log_path.read_text(encoding="utf-8"))
            assert "The group id does not exist" in sentence
            writer = sink.start()
        wait_until(lambda: sink.committed_records() == 40, 40, "it goes on by the log")
        assert writer.process.poll() is None
        assert writer.stop() == 0
        assert sink.ids() == [*range(40)]
        assert sink.audit()["ok"]
