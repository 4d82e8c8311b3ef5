"""The Kafka adapters on the embedded broker: the contract, and the faults that need a socket."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time

import pytest
from confluent_kafka import Producer as RawProducer

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.adapters.kafka import ConsumerColumns, KafkaConsumer, consumer_settings
from delta_sink.adapters.kafka_admin import KafkaBroker, KafkaProducer
from delta_sink.adapters.kafka_reader import read_offsets
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
CORRUPT, TOPIC_DENIED, GROUP_DENIED, UNKNOWN_MEMBER, FENCED_INSTANCE = 2, 29, 30, 25, 82
MESSAGE_TOO_LARGE, NOT_ENOUGH_REPLICAS, UNSUPPORTED_VERSION = 10, 19, 35

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
    SESSION = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "200"}

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

    def abort(self, tp, records):
        producer = self._raw(**{"transactional.id": "aborter"})
        producer.init_transactions(5)
        producer.begin_transaction()
        self._produce(producer, tp, records)
        assert producer.flush(5) == 0
        producer.abort_transaction(5)

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
