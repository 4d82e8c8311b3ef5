"""The fakes of every port, in one place. Each file's first lines say what may fail in it."""

from __future__ import annotations

from delta_sink.testing.fake_group import FakeConsumer, FakeGroup
from delta_sink.testing.fake_kafka import (
    FakeBroker,
    FakeKafka,
    FakeProducer,
    FakeTransaction,
    KafkaRecord,
    PartitionLog,
)
from delta_sink.testing.fake_leases import FakeLeaseClient, FakeLeases
from delta_sink.testing.fake_registry import FakeRegistry, FakeRegistryClient
from delta_sink.testing.fake_store import FakeStore, FakeStoreClient
from delta_sink.testing.host import (
    FakeClock,
    FakeEntropy,
    FakeJob,
    FakeJobs,
    FakeTelemetry,
    Host,
)
from delta_sink.testing.wire import Wire

__all__ = [
    "FakeBroker",
    "FakeClock",
    "FakeConsumer",
    "FakeEntropy",
    "FakeGroup",
    "FakeJob",
    "FakeJobs",
    "FakeKafka",
    "FakeLeaseClient",
    "FakeLeases",
    "FakeProducer",
    "FakeRegistry",
    "FakeRegistryClient",
    "FakeStore",
    "FakeStoreClient",
    "FakeTelemetry",
    "FakeTransaction",
    "Host",
    "KafkaRecord",
    "PartitionLog",
    "Wire",
]
