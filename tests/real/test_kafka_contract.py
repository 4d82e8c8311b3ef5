"""The Kafka adapters on Apache Kafka, under each way to be a member of a group."""

from __future__ import annotations

import time

import pytest

from tests.contract.consumer_contract import (
    T0,
    T1,
    KafkaContract,
    joined,
    numbered,
    poll_quietly,
)
from tests.real.kafka_world import RealKafka

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
