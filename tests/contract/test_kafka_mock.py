"""The Kafka adapters on the embedded broker: the contract, and the faults that need a socket."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest
from confluent_kafka import Producer as RawProducer

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.adapters.kafka import KafkaConsumer
from delta_sink.adapters.kafka_admin import KafkaBroker, KafkaProducer
from delta_sink.adapters.kafka_columns import ConsumerColumns
from delta_sink.adapters.kafka_reader import read_offsets
from delta_sink.adapters.kafka_settings import consumer_settings
from delta_sink.errors import BrokerUnavailable, ConfigError, FatalError
from delta_sink.model import OutgoingRecord, TopicPartition
from delta_sink.ports import Assigned, OffsetGone, Revoked, Waiting
from delta_sink.telemetry import GROUP_COMMIT_FAILURES
from tests.contract.consumer_contract import (
    T0,
    T1,
    KafkaContract,
    Seen,
    joined,
    numbered,
    poll_quietly,
    poll_until,
)

PRODUCE, FETCH, OFFSET_COMMIT, JOIN_GROUP, HEARTBEAT = 0, 1, 8, 11, 12
CORRUPT, MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS, UNKNOWN_MEMBER = 2, 10, 19, 25
TOPIC_DENIED, GROUP_DENIED, FENCED_INSTANCE = 29, 30, 82

NO_CHECKSUMS = {"check.crcs": "false"}  # the mock cluster's transaction markers have none


class Recorder:
    """Telemetry that keeps what it is told."""

    def __init__(self):
        self.events, self.counts = [], {}

    def event(self, name, level="info", **fields):
        self.events.append((name, level, fields))

    def count(self, metric, amount=1, **tags):
        self.counts[metric] = self.counts.get(metric, 0) + amount

    def gauge(self, metric, value, **tags):
        pass

    def observe(self, metric, value, **tags):
        pass


class MockKafka:
    """`KafkaWorld` on the embedded broker."""

    # The mock cluster waits for the session time-out less a second before it rebalances.
    SESSION: ClassVar = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "200"}

    def __init__(self, **settings):
        self.server = EmbeddedBroker({"orders": 2})
        self.config = {
            "bootstrap.servers": self.server.bootstrap_servers,
            "topic.metadata.refresh.interval.ms": "500",
        }
        self.settings = settings
        self.telemetry = Recorder()
        self.raw = self._raw()

    def _raw(self, **settings):
        base = {"bootstrap.servers": self.server.bootstrap_servers, "log_level": 0}
        return RawProducer(base | settings)

    def create_topic(self, name, partitions):
        self.server.create_topic(name, partitions)

    def produce(self, tp, records):
        self._produce(self.raw, tp, records)
        assert self.raw.flush(5) == 0

    def _produce(self, producer, tp, records):
        for record in records:
            at = {} if record.timestamp_ms is None else {"timestamp": record.timestamp_ms}
            producer.produce(
                tp.topic,
                record.value,
                record.key,
                tp.partition,
                headers=list(record.headers) or None,
                **at,
            )

    def transact(self, tp, records):
        producer = self._raw(**{"transactional.id": "mover"})
        producer.init_transactions(5)
        producer.begin_transaction()
        self._produce(producer, tp, records)
        assert producer.flush(5) == 0
        producer.commit_transaction(5)

    def drop_first_records(self, tp):
        for _ in range(7):  # the mock cluster keeps 5 MiB
            self.raw.produce(tp.topic, bytes(1 << 20)[:900_000], None, tp.partition)
            self.raw.flush(5)
        return self.broker().offsets([tp], "earliest")[tp]

    def consumer(self, group, topics=("orders",), pattern=None, *, columns=True, **settings):
        session = {} if self.settings.get("group.protocol") == "consumer" else self.SESSION
        return KafkaConsumer(
            self.config | session | self.settings | settings,
            group=group,
            topics=topics,
            pattern=pattern,
            columns=ConsumerColumns(timestamps=columns, keys=columns, headers=columns),
            queue_bytes_max=4 << 20,
            telemetry=self.telemetry,
        )

    def producer(self, **settings):
        return KafkaProducer(self.config | settings)

    def broker(self, answer_ms_max=5_000):
        return KafkaBroker(self.config, False, answer_ms_max=answer_ms_max)

    def close(self):
        self.server.close()


@pytest.fixture
def kafka():
    world = MockKafka()
    yield world
    world.close()


class TestCooperative(KafkaContract):
    @pytest.fixture
    def kafka(self):
        world = MockKafka(**NO_CHECKSUMS)
        yield world
        world.close()


class TestEager(KafkaContract):
    @pytest.fixture
    def kafka(self):
        world = MockKafka(**NO_CHECKSUMS, **{"partition.assignment.strategy": "range"})
        yield world
        world.close()


class TestKip848(KafkaContract):
    @pytest.fixture
    def kafka(self):
        world = MockKafka(**NO_CHECKSUMS, **{"group.protocol": "consumer"})
        yield world
        world.close()

    def test_a_topic_that_does_not_exist_yet(self, kafka):
        # This protocol tells a member nothing about a topic that is missing, so the consumer
        # asks. That the topic is assigned once it exists is the broker's part, and the mock
        # cluster only looks at topics when a member subscribes.
        consumer = kafka.consumer("early", topics=["orders", "later"])
        seen = poll_until(consumer, lambda s: bool(s.of(Waiting)) and bool(s.of(Assigned)))
        poll_quietly(consumer, seen)
        # Once; and once more if it was said before the assignment came, which may take long.
        assert len(seen.of(Waiting)) <= 2
        assert {waiting.reason for waiting in seen.of(Waiting)} == {
            "waiting for topic 'later': it does not exist yet"
        }
        assert seen.assigned() == {T0, T1}
        consumer.close()


# --- starting again, many times -----------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"partition.assignment.strategy": "range"}, {"group.protocol": "consumer"}],
    ids=["cooperative", "eager", "kip848"],
)
def test_no_stale_record_after_any_of_many_starts(settings):
    world, rng = MockKafka(**settings), random.Random(11)
    for tp in (T0, T1):
        world.produce(tp, numbered(0, 20_000))
    consumer = world.consumer("g", columns=False)
    joined(consumer, T0, T1)
    for _ in range(80):
        at = {tp: rng.randrange(19_000) for tp in (T0, T1)}
        if rng.random() < 0.1:  # the start after an offset that is gone assigns anew
            consumer.start({T0: 10**9})
            poll_until(consumer, lambda s: bool(s.of(OffsetGone)))
        if rng.random() < 0.2:
            consumer.stop([T1])
        consumer.start(at)
        records_max = rng.choice([1, 20, 300, 5_000])
        seen = Seen()
        for _ in range(rng.randrange(1, 4)):
            seen.add(consumer.poll(records_max, rng.choice([0, 1, 5])))
        for tp, first in at.items():
            got = seen.offsets(tp)
            assert got == list(range(first, first + len(got))), (tp, first)
    poll_until(consumer, lambda s: len(s.offsets(T0)) > 0)
    consumer.close()
    world.close()


# --- brokers that are not there -----------------------------------------------------------------


def test_brokers_that_are_down_at_start_are_waited_for(kafka):
    kafka.server.set_down()
    consumer = kafka.consumer("g")
    seen = poll_until(consumer, lambda s: bool(s.of(Waiting)))
    poll_quietly(consumer, seen)
    (waiting,) = seen.of(Waiting)
    servers = kafka.server.bootstrap_servers
    assert waiting.reason == f"waiting for the brokers at {servers}: not reachable"
    kafka.server.set_up()
    kafka.produce(T0, numbered(0, 3))
    poll_until(consumer, lambda s: s.assigned() == {T0, T1}, seen=seen)
    consumer.start({T0: 0})
    assert poll_until(consumer, lambda s: s.offset_next(T0) == 3).offsets(T0) == [0, 1, 2]
    consumer.close()


def test_an_outage_loses_nothing(kafka):
    kafka.produce(T0, numbered(0, 5_000))
    consumer = kafka.consumer("g")
    joined(consumer, T0, T1)
    consumer.start({T0: 0})
    seen = poll_until(consumer, lambda s: len(s.offsets(T0)) > 0, records_max=100)
    kafka.server.set_down()
    poll_until(consumer, lambda s: bool(s.of(Waiting)), seen=seen)
    kafka.server.set_up()
    kafka.produce(T0, numbered(5_000, 5_010))
    poll_until(consumer, lambda s: s.offset_next(T0) == 5_010, seen=seen)
    assert seen.offsets(T0) == list(range(5_010))
    assert len(seen.of(Waiting)) == 1
    kafka.server.set_down()
    poll_until(consumer, lambda s: len(s.of(Waiting)) == 2, seen=seen)
    consumer.close()


def test_close_is_quick_without_brokers(kafka):
    consumer = kafka.consumer("g")
    joined(consumer, T0, T1)
    consumer.start({T0: 0})
    kafka.server.set_down()
    began = time.monotonic()
    consumer.close()
    assert time.monotonic() - began < 5
    never_joined = kafka.consumer("other")
    never_joined.poll(1, 100)
    never_joined.close()
    assert time.monotonic() - began < 10


def test_questions_without_brokers(kafka):
    broker = kafka.broker(answer_ms_max=500)
    kafka.server.set_down()
    for ask in (
        lambda: broker.topics(["orders"], None),
        lambda: broker.offsets([T0], "latest"),
        lambda: broker.group_offsets("g", [T0]),
    ):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            ask()
        assert time.monotonic() - began < 3
    kafka.server.set_up()
    time.sleep(1.5)  # what was asked before and is answered now must do no harm
    broker = kafka.broker()
    assert broker.offsets([T0], "latest") == {T0: 0}
    assert broker.group_offsets("g", [T0]) == {}


def test_a_partition_that_is_not_there_has_no_offset(kafka):
    with pytest.raises(BrokerUnavailable, match="missing/0"):
        kafka.broker(answer_ms_max=500).offsets([TopicPartition("missing", 0)], "latest")


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api_key", "error", "match"),
    [
        (JOIN_GROUP, GROUP_DENIED, "GROUP_AUTHORIZATION_FAILED"),
        (JOIN_GROUP, FENCED_INSTANCE, "same group.instance.id"),
        (FETCH, TOPIC_DENIED, "TOPIC_AUTHORIZATION_FAILED"),
    ],
)
def test_a_refusal_is_fatal(kafka, api_key, error, match):
    consumer = kafka.consumer("g", **{"group.instance.id": "one", "sasl.password": "hunter2"})
    kafka.server.push_errors(api_key, [error] * 20)

    def work():
        for _ in range(100):
            for event in consumer.poll(100, 50).events:
                if isinstance(event, Assigned):
                    consumer.start(dict.fromkeys(event.partitions, 0))

    with pytest.raises(FatalError, match=match) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    consumer.close()


def test_configuration_that_librdkafka_refuses(kafka):
    for settings, match in (
        ({"nonsense.key": "1"}, "nonsense.key"),
        ({"security.protocol": "carrier-pigeon"}, "carrier-pigeon"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            kafka.consumer("g", **settings)
        assert caught.value.problems[0].startswith("kafka: ")
        with pytest.raises(ConfigError):
            kafka.producer(**settings)


def test_settings_that_exactly_once_rests_on_are_not_the_users():
    user = {
        "auto.offset.reset": "latest",
        "enable.auto.commit": "true",
        "isolation.level": "read_uncommitted",
        "fetch.wait.max.ms": "7",
    }
    settings = consumer_settings(user, group="g", queue_bytes_max=16 << 20)
    assert settings["auto.offset.reset"] == "error"
    assert settings["enable.auto.commit"] is False
    assert settings["isolation.level"] == "read_committed"
    assert settings["fetch.wait.max.ms"] == "7"
    assert settings["queued.max.messages.kbytes"] == 16 << 10


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({"group.protocol": "consumer", "log_level": "3"}, "5"),
        ({"group.protocol": "consumer", "log_level": "7"}, "7"),
        ({"group.protocol": "consumer"}, None),
        ({"log_level": "3"}, "3"),
    ],
)
def test_a_log_that_tells_of_lost_answers_is_not_silenced(user, expected):
    assert consumer_settings(user, group="g", queue_bytes_max=1 << 20).get("log_level") == expected


# --- answers that cannot be read ----------------------------------------------------------------


def test_a_damaged_answer_is_fetched_again(kafka):
    kafka.produce(T0, numbered(0, 100))
    consumer = kafka.consumer("g")
    joined(consumer, T0, T1)
    kafka.server.push_errors(FETCH, [CORRUPT, CORRUPT])
    consumer.start({T0: 0})
    seen = poll_until(consumer, lambda s: s.offset_next(T0) == 100)
    assert seen.offsets(T0) == list(range(100))
    consumer.close()


def test_damage_that_stays_stops_before_it_is_passed_over():
    world = MockKafka()  # it checks checksums, which the marker at offset 3 does not have
    world.transact(T0, numbered(0, 3))
    world.produce(T0, numbered(4, 10))
    consumer = world.consumer("g")
    joined(consumer, T0, T1)
    consumer.start({T0: 0})
    seen = Seen()
    with pytest.raises(FatalError, match="cannot be read, tried 6 times"):
        poll_until(consumer, lambda _: False, seen=seen)
    assert not [offset for offset in seen.offsets(T0) if offset > 3]
    consumer.close()
    world.close()


# --- out of the group ---------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_polling_too_late_loses_the_partitions_and_joins_again(kafka, strategy):
    kafka.produce(T0, numbered(0, 10))
    consumer = kafka.consumer(
        "g", **{"max.poll.interval.ms": "2000", "partition.assignment.strategy": strategy}
    )
    joined(consumer, T0, T1)
    consumer.start({T0: 0})
    poll_until(consumer, lambda s: s.offset_next(T0) == 10)
    time.sleep(3)
    seen = poll_until(consumer, lambda s: bool(s.of(Revoked)))
    assert seen.of(Revoked)[0] == Revoked((T0, T1), lost=True)
    poll_until(consumer, lambda s: s.assigned() == {T0, T1}, seen=seen)
    assert not seen.batches
    consumer.start({T0: 8})
    assert poll_until(consumer, lambda s: s.offset_next(T0) == 10).offsets(T0) == [8, 9]
    consumer.close()


def test_a_forgotten_member_loses_the_partitions_and_joins_again(kafka):
    consumer = kafka.consumer("g")
    joined(consumer, T0, T1)
    kafka.server.push_errors(HEARTBEAT, [UNKNOWN_MEMBER])
    seen = poll_until(consumer, lambda s: bool(s.of(Revoked)))
    assert seen.of(Revoked)[0].lost
    poll_until(consumer, lambda s: bool(s.of(Assigned)), seen=seen)
    consumer.close()


def test_a_failed_commit_is_counted_and_nothing_more(kafka):
    consumer = kafka.consumer("g")
    joined(consumer, T0, T1)
    kafka.server.push_errors(OFFSET_COMMIT, [GROUP_DENIED])
    consumer.commit({T0: 1})
    poll_until(consumer, lambda _: kafka.telemetry.counts.get(GROUP_COMMIT_FAILURES, 0) == 1)
    consumer.commit({})
    consumer.commit({T0: 2})
    broker = kafka.broker()
    poll_until(consumer, lambda _: broker.group_offsets("g", [T0]) == {T0: 2})
    consumer.close()


# --- the producer -------------------------------------------------------------------------------


def test_send_without_brokers_is_bounded(kafka):
    # Long enough for a busy machine to connect, and to connect again, and still well below the bound.
    producer = kafka.producer(**{"message.timeout.ms": "3000"})
    producer.send("orders", [OutgoingRecord(None, b"v")])
    kafka.server.set_down()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="3 of 3 records for topic 'orders'"):
        producer.send("orders", [OutgoingRecord(None, b"v")] * 3)
    assert time.monotonic() - began < 5
    kafka.server.set_up()
    producer.send("orders", [OutgoingRecord(None, b"v")])


@pytest.mark.parametrize("error", [MESSAGE_TOO_LARGE, TOPIC_DENIED])
def test_send_what_the_topic_refuses(kafka, error):
    producer = kafka.producer()
    kafka.server.push_errors(PRODUCE, [error])
    with pytest.raises(FatalError, match="'orders'"):
        producer.send("orders", [OutgoingRecord(None, b"v")])


def test_send_a_record_that_is_too_large(kafka):
    producer = kafka.producer(**{"message.max.bytes": "2000"})
    with pytest.raises(FatalError, match="1 of 2 records for topic 'orders' were refused"):
        producer.send("orders", [OutgoingRecord(None, bytes(5_000)), OutgoingRecord(None, b"v")])
    producer.send("orders", [OutgoingRecord(None, b"v")])


def test_send_is_repeated_below_until_the_replicas_are_there(kafka):
    kafka.server.push_errors(PRODUCE, [NOT_ENOUGH_REPLICAS])
    kafka.producer().send("orders", [OutgoingRecord(b"k", b"v")])
    ends = kafka.broker().offsets([T0, T1], "latest")
    assert sum(ends.values()) == 1


def test_send_from_many_threads(kafka):
    producer = kafka.producer()
    failures = []

    def work():
        try:
            for _ in range(10):
                producer.send("orders", [OutgoingRecord(None, b"v")] * 5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert sum(kafka.broker().offsets([T0, T1], "latest").values()) == 200


# --- reading back -------------------------------------------------------------------------------


def read_all(kafka, ranges, **options):
    offsets, values = {}, {}
    for served in read_offsets(kafka.config, ranges, **options):
        offsets.setdefault(served.tp, []).extend(served.offsets)
        values.setdefault(served.tp, []).extend(served.values)
    return offsets, values


def test_reading_back_gives_what_is_there(kafka):
    kafka.produce(T0, numbered(0, 5_000))
    kafka.produce(T1, numbered(0, 10))
    offsets, values = read_all(kafka, {T0: (3, 4_998), T1: (5, 10)}, with_values=True)
    assert offsets == {T0: list(range(3, 4_998)), T1: list(range(5, 10))}
    assert values[T1] == [b"5", b"6", b"7", b"8", b"9"]
    offsets, values = read_all(kafka, {T0: (3, 4), T1: (7, 7)})
    assert offsets == {T0: [3]}
    assert values == {T0: []}


def test_reading_back_ends_behind_markers_and_at_the_end(kafka):
    kafka.config |= NO_CHECKSUMS
    kafka.transact(T0, numbered(0, 3))
    offsets, _ = read_all(kafka, {T0: (0, 4), T1: (0, 100)})
    assert offsets == {T0: [0, 1, 2]}


def test_reading_back_what_is_gone_gives_the_rest(kafka):
    kafka.produce(T0, numbered(0, 3))
    earliest = kafka.drop_first_records(T0)
    offsets, _ = read_all(kafka, {T0: (0, earliest + 2)})
    assert offsets == {T0: [earliest, earliest + 1]}


def test_reading_back_without_brokers(kafka):
    kafka.server.set_down()
    with pytest.raises(BrokerUnavailable, match="orders/0"):
        read_all(kafka, {T0: (0, 4)}, silence_ms_max=1_000)


# --- the embedded broker ------------------------------------------------------------------------


@pytest.mark.process
def test_another_process_reaches_the_embedded_broker(kafka):
    program = (
        "import sys; from delta_sink.adapters.kafka_admin import KafkaProducer;"
        "from delta_sink.model import OutgoingRecord;"
        "KafkaProducer({'bootstrap.servers': sys.argv[1]})"
        ".send('orders', [OutgoingRecord(None, b'from afar')])"
    )
    subprocess.run(
        [sys.executable, "-c", program, kafka.server.bootstrap_servers],
        check=True,
        timeout=30,
        capture_output=True,
    )
    _, values = read_all(kafka, {T0: (0, 1), T1: (0, 1)}, with_values=True)
    assert [value for part in values.values() for value in part] == [b"from afar"]


def test_members_that_are_joining_close():
    """A close that meets its group's answer must end. Where it did not, the process stood still."""
    program = """if True:
        import time
        from tests.contract.test_kafka_mock import MockKafka
        for _ in range(12):
            world = MockKafka(**{"partition.assignment.strategy": "range"})
            members = [world.consumer(f"g{number}") for number in range(8)]
            time.sleep(0.22)
            for member in members:  # one after the other, while their groups come to be
                time.sleep(0.02)
                member.close()
            world.close()
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)


def test_the_embedded_broker_closes_twice_and_refuses_doubles():
    with EmbeddedBroker({"a": 1}) as server:
        with pytest.raises(ValueError, match="'a'"):
            server.create_topic("a", 3)
        with pytest.raises(ValueError, match="'b'"):
            server.delete_topic("b")
        server.delete_topic("a")
        server.create_topic("a", 64)
        broker = KafkaBroker({"bootstrap.servers": server.bootstrap_servers}, False)
        assert [topic.partitions for topic in broker.topics(["a"], None)] == [64]
    server.close()
