"""Apache Kafka as the world of the consumer contract: emptied before each test."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

from confluent_kafka import KafkaException, Producer

from delta_sink.adapters.kafka import KafkaConsumer
from delta_sink.adapters.kafka_admin import KafkaBroker, KafkaProducer
from delta_sink.adapters.kafka_columns import ConsumerColumns
from tests.services.kafka import Kafka

FAST_SESSION = {"session.timeout.ms": "2000", "heartbeat.interval.ms": "200"}


class Recorder:
    """Telemetry that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.counts: dict[str, float] = {}

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        self.events.append((name, level, fields))

    def count(self, metric: str, amount: float = 1, **tags: object) -> None:
        self.counts[metric] = self.counts.get(metric, 0) + amount

    def gauge(self, metric: str, value: float | None, **tags: object) -> None:
        pass

    def observe(self, metric: str, value: float, **tags: object) -> None:
        pass


class RealKafka:
    """`KafkaWorld` on the shared broker. Groups get a suffix, so that no test meets another's."""

    def __init__(self, kafka: Kafka, **settings: str) -> None:
        """Empty the broker and make the topic `orders`; `settings` are those of every consumer."""
        self.kafka = kafka
        self.config = {
            "bootstrap.servers": kafka.bootstrap_servers,
            "topic.metadata.refresh.interval.ms": "500",
        }
        self.settings = settings
        self.telemetry = Recorder()
        self._suffix = uuid.uuid4().hex[:8]
        self._ids = itertools.count()
        self._opened: list[KafkaConsumer] = []
        self._producer = self._raw()
        kafka.delete_all_topics()
        kafka.create_topic("orders", 2)

    def _raw(self, **settings: str) -> Producer:
        servers = self.kafka.bootstrap_servers
        return Producer({"bootstrap.servers": servers, "log_level": 0, "linger.ms": 0} | settings)

    def create_topic(self, name: str, partitions: int) -> None:
        self.kafka.create_topic(name, partitions)

    def produce(self, tp, records) -> None:
        self._produce(self._producer, tp, records)
        assert self._producer.flush(10) == 0

    def _produce(self, producer: Producer, tp, records) -> None:
        failed: list[object] = []
        for record in records:
            at: dict[str, Any] = {}
            if record.timestamp_ms is not None:
                at["timestamp"] = record.timestamp_ms
            producer.produce(
                tp.topic,
                record.value,
                record.key,
                tp.partition,
                headers=list(record.headers) or None,
                on_delivery=lambda error, _: error is None or failed.append(error),
                **at,
            )
        assert producer.flush(10) == 0
        assert not failed, failed[0]

    def transact(self, tp, records, *, abort: bool = False) -> None:
        producer = self._raw(**{"transactional.id": f"mover-{self._suffix}"})
        producer.init_transactions(10)
        producer.begin_transaction()
        self._produce(producer, tp, records)  # an abort without this would purge them unsent
        if abort:
            producer.abort_transaction(10)
        else:
            producer.commit_transaction(10)

    def drop_first_records(self, tp) -> int:
        for _ in range(7):
            self._producer.produce(tp.topic, b"v", None, tp.partition)
        assert self._producer.flush(10) == 0
        first = self.kafka.end_offset(tp.topic, tp.partition) - 3
        self.kafka.delete_records(tp.topic, {tp.partition: first})
        return first

    def consumer(self, group, topics=("orders",), pattern=None, *, columns=True, **settings):
        session = {} if self.settings.get("group.protocol") == "consumer" else FAST_SESSION
        consumer = KafkaConsumer(
            self.config | session | self.settings | settings,
            group=self.group(group),
            topics=topics,
            pattern=pattern,
            columns=ConsumerColumns(timestamps=columns, keys=columns, headers=columns),
            queue_bytes_max=4 << 20,
            telemetry=self.telemetry,
        )
        self._opened.append(consumer)
        return consumer

    def group(self, name: str) -> str:
        """Return the group that a test means by `name`."""
        return f"{name}-{self._suffix}"

    def producer(self, **settings: str) -> KafkaProducer:
        return KafkaProducer(self.config | settings)

    def broker(self, answer_ms_max: int = 5_000):
        return _Broker(self, KafkaBroker(self.config, True, answer_ms_max=answer_ms_max))

    def close(self) -> None:
        """Leave all groups, those too that a failed test did not leave."""
        for consumer in self._opened:
            try:
                consumer.close()
            except (KafkaException, RuntimeError):
                continue  # closed before


class _Broker:
    """A `KafkaBroker` that means the groups of this world."""

    def __init__(self, world: RealKafka, broker: KafkaBroker) -> None:
        self._world = world
        self._broker = broker

    def group_offsets(self, group, partitions):
        return self._broker.group_offsets(self._world.group(group), partitions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)
