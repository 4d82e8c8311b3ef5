"""The Kafka adapters on Apache Kafka, under each way to be a member of a group."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient

from delta_sink.adapters import kafka_way_back
from delta_sink.adapters.kafka_admin import KafkaBroker
from delta_sink.adapters.kafka_topics import TopicWatch
from delta_sink.adapters.kafka_way_back import WayBack
from delta_sink.errors import BrokerUnavailable
from delta_sink.ports import Assigned, Revoked
from tests.contract.consumer_contract import (
    T0,
    T1,
    KafkaContract,
    joined,
    numbered,
    poll_quietly,
)
from tests.real.kafka_proxy import CONSUMER_GROUP_HEARTBEAT, kafka_proxying
from tests.real.kafka_world import RealKafka
from tests.services.processes import free_port

WAYS = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range"},
    "kip848": {"group.protocol": "consumer"},
}


def _world(kafka, way):
    world = RealKafka(kafka, **WAYS[way])
    yield world
    world.close()


class TestCooperative(KafkaContract):
    @pytest.fixture
    def kafka(self, kafka):
        yield from _world(kafka, "cooperative")


@pytest.mark.long  # the kills and the partitions that are added run under this protocol always
class TestEager(KafkaContract):
    @pytest.fixture
    def kafka(self, kafka):
        yield from _world(kafka, "eager")


class TestKip848(KafkaContract):
    @pytest.fixture
    def kafka(self, kafka):
        yield from _world(kafka, "kip848")


@pytest.mark.parametrize("way", WAYS)
def test_records_come_soon_after_a_start(kafka, way):
    # With the order of resume and seek turned round, librdkafka takes a second to look again.
    world = RealKafka(kafka, **WAYS[way])
    world.produce(T0, numbered(0, 10))
    took_s = []
    for member in range(3):
        consumer = world.consumer(
            f"quick-{member}", **{"topic.metadata.refresh.interval.ms": "60000"}
        )
        joined(consumer, T0, T1)
        poll_quietly(consumer)
        began_s = time.monotonic()
        consumer.start({T0: 0, T1: 0})
        while not (polled := consumer.poll(10, 5)).records:
            assert not polled.events
        took_s.append(time.monotonic() - began_s)
        consumer.close()
    world.close()
    assert min(took_s) < 0.5, took_s


def _assert_reads(consumer):
    records = []
    while not records:
        records = consumer.poll(10, 500).records
    assert records[0].offsets[0] == 0


def _nowhere(consumer):
    """Return a client like that of `consumer`, but for the address: nobody is there."""
    servers = f"127.0.0.1:{free_port()}"
    return Client({**consumer._settings, "bootstrap.servers": servers, "log_level": "0"})


def test_a_client_that_is_cut_off_is_replaced(kafka, monkeypatch):
    """Cut off here is a client that knows one address, at which nobody is.

    librdkafka gets there by itself, now and then, while its only broker shuts down.
    """
    monkeypatch.setattr(kafka_way_back, "LOST_S_MAX", 0.5)
    monkeypatch.setattr(kafka_way_back, "ANSWER_S_MAX", 1.0)
    kept: list[object] = []  # never freed, since to free a client is to close it
    monkeypatch.setattr("delta_sink.adapters.kafka.keep_for_ever", kept.append)
    world = RealKafka(kafka)
    world.produce(T0, numbered(0, 10))
    consumer = world.consumer("cut-off")
    joined(consumer, T0, T1)
    consumer.start({T0: 0, T1: 0})
    whole = consumer._client
    consumer._on_lost(whole, [Place(tp.topic, tp.partition) for tp in (T0, T1)])
    assert [event.lost for event in consumer.poll(1, 0).events] == [True]
    consumer._client = cut_off = _nowhere(consumer)
    consumer._subscribe()
    whole.close()
    joined(consumer, T0, T1)
    assert [f for _, _, f in world.telemetry.events if f.get("category") == "replaced"]
    assert kept == [cut_off]
    consumer.start({T0: 0, T1: 0})
    _assert_reads(consumer)
    world.close()


def test_a_silent_member_that_is_cut_off_is_replaced(kafka, monkeypatch):
    """In a KIP-848 group such a member is told nothing, and keeps what it has."""
    monkeypatch.setattr(kafka_way_back, "SILENCE_S_MAX", 0.5)
    monkeypatch.setattr(kafka_way_back, "ANSWER_S_MAX", 1.0)
    kept: list[object] = []  # never freed, since to free a client is to close it
    monkeypatch.setattr("delta_sink.adapters.kafka.keep_for_ever", kept.append)
    world = RealKafka(kafka, **WAYS["kip848"])
    world.produce(T0, numbered(0, 10))
    consumer = world.consumer("cut-off")
    joined(consumer, T0, T1)
    whole = consumer._client
    consumer._client = cut_off = _nowhere(consumer)
    consumer._subscribe()
    whole.close()  # it calls back what a client that is cut off does not hear of
    consumer._owned.update((T0, T1))
    consumer._events.clear()
    events = []
    end_s = time.monotonic() + 30
    while not any(isinstance(event, Assigned) for event in events):
        assert time.monotonic() < end_s, events
        events += [e for e in consumer.poll(10, 100).events if isinstance(e, Assigned | Revoked)]
    assert events[0] == Revoked((T0, T1), lost=True)
    assert [f for _, _, f in world.telemetry.events if f.get("category") == "replaced"]
    assert kept == [cut_off]
    assert sorted(tp for event in events[1:] for tp in event.partitions) == [T0, T1]
    consumer.start({T0: 0, T1: 0})
    _assert_reads(consumer)
    world.close()


def test_a_silent_member_that_has_nothing_to_read_is_left_alone(kafka, monkeypatch):
    monkeypatch.setattr(kafka_way_back, "SILENCE_S_MAX", 0.1)
    world = RealKafka(kafka, **WAYS["kip848"])
    consumer = world.consumer("silent")
    joined(consumer, T0, T1)
    consumer.start({T0: 0, T1: 0})
    asked = []
    answers = WayBack._answers

    def counted(self, client, s_max):
        asked.append(answers(self, client, s_max))
        return asked[-1]

    monkeypatch.setattr(WayBack, "_answers", counted)
    for _ in range(40):
        polled = consumer.poll(10, 100)
        assert not polled.events
        assert not polled.records
    assert len(asked) > 10
    assert all(asked)
    world.produce(T0, numbered(0, 10))
    _assert_reads(consumer)
    assert not [f for _, _, f in world.telemetry.events if f.get("category") == "replaced"]
    world.close()


def test_questions_are_asked_through_a_new_client_after_one_without_an_answer(kafka):
    broker = KafkaBroker({"bootstrap.servers": kafka.bootstrap_servers}, False, answer_ms_max=3_000)
    broker._client = AdminClient({"bootstrap.servers": f"127.0.0.1:{free_port()}", "log_level": 0})
    with pytest.raises(BrokerUnavailable):
        broker.topics([], ".*")
    assert broker.topics(["nothing-of-this-name"], None) == []


def test_a_watch_asks_through_a_new_client_after_one_without_an_answer(kafka, monkeypatch):
    nowhere = AdminClient({"bootstrap.servers": f"127.0.0.1:{free_port()}", "log_level": 0})
    made = TopicWatch._made
    clients = [nowhere]
    monkeypatch.setattr(TopicWatch, "_made", lambda self: clients.pop() if clients else made(self))
    with closing(TopicWatch({"bootstrap.servers": kafka.bootstrap_servers}, sorted)) as watch:
        end_s = time.monotonic() + 20
        while watch.names() is None:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_a_client_is_left_alone_while_it_or_nobody_reaches_the_brokers(kafka, monkeypatch):
    monkeypatch.setattr(kafka_way_back, "LOST_S_MAX", 0.0)
    monkeypatch.setattr(kafka_way_back, "ANSWER_S_MAX", 1.0)
    nowhere = {"bootstrap.servers": f"127.0.0.1:{free_port()}", "log_level": "0"}
    here = {"bootstrap.servers": kafka.bootstrap_servers}
    with_group = {"group.id": "left-alone"}
    for reached_by_others, reached_by_itself, expected in (
        (here, here, False),
        (nowhere, nowhere, False),
        (here, nowhere, True),
    ):
        client = Client({**reached_by_itself, **with_group})
        way_back = WayBack(reached_by_others)
        assert not way_back.is_blocked(client), "its group was not lost"
        way_back.is_sought()
        found = False
        end_s = time.monotonic() + 3
        while not found and time.monotonic() < end_s:
            found = way_back.is_blocked(client)
            time.sleep(0.05)
        assert found == expected, (reached_by_others, reached_by_itself)
        way_back.is_found()
        assert not way_back.is_blocked(client)
        way_back.close()
        client.close()


def _rejoined(world):
    return [fields["reason"] for name, _, fields in world.telemetry.events if name == "rejoined"]


def test_an_assignment_whose_answer_was_lost_is_asked_for_again(kafka):
    """What a member should give up is told in one answer alone; librdkafka does not ask again."""
    sizes: list[int] = []
    lost: list[bytes] = []

    def is_lost(api_key, answer):
        # Of a member in peace all answers are alike; the one with partitions is longer.
        if api_key != CONSUMER_GROUP_HEARTBEAT:
            return False
        sizes.append(len(answer))
        if lost or len(answer) == sizes[0]:
            return False
        lost.append(answer)
        return True

    with (
        kafka_proxying(kafka.bootstrap_servers) as proxy,
        closing(RealKafka(kafka, **WAYS["kip848"])) as world,
    ):
        at_proxy = {"bootstrap.servers": proxy.bootstrap_servers, "log_level": "3"}
        first = world.consumer("misled", **at_proxy)
        joined(first, T0, T1)
        proxy.is_lost = is_lost
        until_s = time.monotonic() + 10
        while len(sizes) < 2 and time.monotonic() < until_s:
            first.poll(1, 50)
        second = world.consumer("misled")
        theirs = {first: {T0, T1}, second: set()}
        while not (theirs[first] and theirs[second]) and time.monotonic() < until_s:
            for consumer, own in theirs.items():
                for event in consumer.poll(1, 50).events:
                    changed = set(event.partitions)
                    own |= changed if isinstance(event, Assigned) else set()
                    own -= changed if isinstance(event, Revoked) else set()
        assert len(lost) == 1
        assert [len(own) for own in theirs.values()] == [1, 1], theirs
        assert _rejoined(world) == [kafka_way_back.ANSWER_LOST]


def test_a_member_keeps_its_partitions_while_no_heartbeat_is_answered(kafka):
    lost: list[bytes] = []

    def is_lost(api_key, answer):
        if api_key == CONSUMER_GROUP_HEARTBEAT:
            lost.append(answer)
        return api_key == CONSUMER_GROUP_HEARTBEAT

    with (
        kafka_proxying(kafka.bootstrap_servers) as proxy,
        closing(RealKafka(kafka, **WAYS["kip848"])) as world,
    ):
        consumer = world.consumer("unanswered", **{"bootstrap.servers": proxy.bootstrap_servers})
        joined(consumer, T0, T1)
        proxy.is_lost = is_lost
        until_s = time.monotonic() + 20
        while len(lost) < 4 and time.monotonic() < until_s:
            assert not consumer.poll(1, 50).events
        assert len(lost) == 4
        assert not _rejoined(world)
        proxy.is_lost = lambda api_key, answer: False
        joined(consumer, T0, T1)
        assert _rejoined(world) == [kafka_way_back.ANSWER_LOST]
