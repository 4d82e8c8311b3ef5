"""The Kafka adapters on Apache Kafka, under each way to be a member of a group."""

from __future__ import annotations

import pytest

from tests.contract.consumer_contract import (
    KafkaContract,
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


class TestEager(KafkaContract):
    @pytest.fixture
    def kafka(self, kafka):
        yield from _world(kafka, "eager")


class TestKip848(KafkaContract):
    @pytest.fixture
    def kafka(self, kafka):
        yield from _world(kafka, "kip848")
