"""A Kafka cluster that all hosts of a world share: topics, their logs, and what tests do to them.

What may fail: everything that `wire.py` lists (a produce may land without an answer, or late);
`kafka.partial_produce` (only the first records of a request landed, no answer); groups as
`fake_group.py` says. On demand: outages, retention, compaction, truncation (an unclean leader),
transactions that commit or abort, deletion and re-creation of a topic under a new id, added
partitions, refused clients (`refused`).

What may not, so that the system can recover: an acknowledged record keeps its offset until
retention, compaction or a truncation takes it away; offsets of one partition only rise; one
produce request lands once.
"""

from __future__ import annotations

import re
import zlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

from msgspec import Struct, field

from delta_sink.errors import BrokerUnavailable, FatalError
from delta_sink.model import Header, OutgoingRecord, TopicPartition
from delta_sink.ports import At, Topic
from delta_sink.testing.fake_group import FAULTS as GROUP_FAULTS
from delta_sink.testing.fake_group import FakeConsumer, FakeGroup
from delta_sink.testing.host import Host
from delta_sink.testing.wire import Wire
from delta_sink.testing.world import World


class KafkaRecord(Struct, frozen=True):
    """A record as it stands in a partition."""

    offset: int
    value: bytes | None
    key: bytes | None
    headers: tuple[Header, ...]
    timestamp_ms: int

    @property
    def size_bytes(self) -> int:
        """What key, value and headers occupy."""
        headers = sum(len(name) + len(value or b"") for name, value in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers


class PartitionLog(Struct):
    """One partition. `end` is the offset of the next record; gaps have no entry in `records`."""

    earliest: int = 0
    end: int = 0
    offsets: list[int] = field(default_factory=list)
    records: list[KafkaRecord] = field(default_factory=list)
    open_transactions: list[int] = field(default_factory=list)

    @property
    def last_stable(self) -> int:
        """Where a reader of committed records stops: the first open transaction, or the end."""
        return min(self.open_transactions, default=self.end)

    def append(
        self,
        value: bytes | None,
        key: bytes | None,
        headers: Sequence[Header],
        timestamp_ms: int,
    ) -> int:
        """Add a record; return its offset."""
        offset = self.end
        self.offsets.append(offset)
        self.records.append(KafkaRecord(offset, value, key, tuple(headers), timestamp_ms))
        self.end += 1
        return offset

    def read(self, offset: int, records_max: int) -> list[KafkaRecord]:
        """Return up to `records_max` committed records from `offset` on."""
        first = bisect_left(self.offsets, offset)
        after = bisect_left(self.offsets, self.last_stable, first)
        return self.records[first : min(after, first + records_max)]

    def keep(self, wanted: Callable[[KafkaRecord], bool]) -> None:
        """Drop the records that are not wanted. Their offsets stay gaps."""
        self.records = [record for record in self.records if wanted(record)]
        self.offsets = [record.offset for record in self.records]


class FakeTransaction:
    """A producer's transaction: its records are invisible until `commit`, and for ever if it aborts.

    While it is open, readers stop before its first record.
    """

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self._offsets: dict[TopicPartition, list[int]] = {}

    def produce(self, topic: str, partition: int, value: bytes | None) -> int:
        """Add a record; return its offset."""
        tp = TopicPartition(topic, partition)
        log = self._kafka.log(tp)
        if tp not in self._offsets:
            log.open_transactions.append(log.end)
        offset = log.append(value, None, (), self._kafka.world.wall_ms)
        self._offsets.setdefault(tp, []).append(offset)
        return offset

    def commit(self) -> None:
        """Make the records visible. The marker takes one offset in each partition."""
        self._finish()

    def abort(self) -> None:
        """Make the records never visible. They and the marker keep their offsets."""
        for tp, offsets in self._offsets.items():
            gone = frozenset(offsets)
            self._kafka.log(tp).keep(lambda record, gone=gone: record.offset not in gone)  # type: ignore[misc]  # a default binds the loop's value
        self._finish()

    def _finish(self) -> None:
        for tp, offsets in self._offsets.items():
            log = self._kafka.log(tp)
            log.open_transactions.remove(offsets[0])
            log.end += 1
        self._offsets = {}
        self._kafka.wake_readers()


class _FakeTopic(Struct):
    name: str
    topic_id: str
    logs: list[PartitionLog]


class FakeKafka:
    """The cluster: what is in it and what it does wrong. Hosts talk to it by the three ports.

    Attributes:
        wire: latency, time-outs and outages of all requests but fetches.
        topic_ids: whether the brokers know topic ids (not so before 2.8).
        message_bytes_max: a record above it is refused.
        metadata_ms_max: how long at most until groups notice new, grown or deleted topics.
        refused: if set, every client gets a FatalError with this sentence.
        readers: the consumers that may wait in a poll.
        version: counts the changes that a reader may have to notice.
    """

    def __init__(self, world: World, *, topic_ids: bool = True) -> None:
        self.world = world
        self.wire = Wire(world, "kafka", BrokerUnavailable)
        self.topic_ids = topic_ids
        self.message_bytes_max = 1_048_588
        self.metadata_ms_max = 5_000
        self.refused: str | None = None
        self.readers: list[FakeConsumer] = []
        self.version = 0
        self._random = world.random("kafka")
        self._topics: dict[str, _FakeTopic] = {}
        self._groups: dict[str, FakeGroup] = {}
        world.declare({"kafka.partial_produce": "only the first records of a produce landed"})
        world.declare(GROUP_FAULTS)

    # --- the ports ------------------------------------------------------------------------------

    def consumer(
        self,
        host: Host,
        group: str,
        topics: Sequence[str] = (),
        *,
        pattern: str | None = None,
        with_timestamps: bool = True,
        with_keys: bool = True,
        with_headers: bool = True,
    ) -> FakeConsumer:
        """Return a new member of `group` on `host`: its `Consumer`. It joins at its first poll."""
        columns = (with_timestamps, with_keys, with_headers)
        return FakeConsumer(self, self.group(group), host, tuple(topics), pattern, columns)

    def producer(self, host: Host) -> FakeProducer:
        """Return a `Producer` on `host`."""
        return FakeProducer(self, host)

    def broker(self, host: Host) -> FakeBroker:
        """Return a `Broker` for `host`."""
        return FakeBroker(self, host)

    def reader(self, host: Host) -> FakeReader:
        """Return the reader of offset ranges of `host`, as the control client uses it."""
        return FakeReader(self, host)

    def group(self, name: str) -> FakeGroup:
        """Return the consumer group of this name: its settings, its committed offsets."""
        if name not in self._groups:
            self._groups[name] = FakeGroup(self, name)
        return self._groups[name]

    # --- for tests: no switch points, no faults -------------------------------------------------

    def create_topic(self, name: str, partitions: int = 1) -> str:
        """Make a topic; return its id, which is another one each time."""
        assert name not in self._topics, f"topic {name} exists"
        topic_id = f"{self._random.getrandbits(128):032x}"[:22]
        logs = [PartitionLog() for _ in range(partitions)]
        self._topics[name] = _FakeTopic(name, topic_id, logs)
        self._noticed_later()
        return topic_id

    def delete_topic(self, name: str) -> None:
        """Delete a topic with all its records and the offsets that groups committed for it."""
        del self._topics[name]
        for group in self._groups.values():
            group.forget(name)
        self._noticed_later()

    def add_partitions(self, name: str, total: int) -> None:
        """Let the topic have `total` partitions."""
        logs = self._topics[name].logs
        logs.extend(PartitionLog() for _ in range(total - len(logs)))
        self._noticed_later()

    def produce(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: Sequence[Header] = (),
        timestamp_ms: int | None = None,
    ) -> int:
        """Append a record; return its offset."""
        time_ms = self.world.wall_ms if timestamp_ms is None else timestamp_ms
        tp = TopicPartition(topic, partition)
        offset = self.log(tp).append(value, key, headers, time_ms)
        self.wake_readers(tp)
        return offset

    def transaction(self) -> FakeTransaction:
        """Begin a producer's transaction."""
        return FakeTransaction(self)

    def compact(self, topic: str, partition: int, keep: Callable[[KafkaRecord], bool]) -> None:
        """Drop the records for which `keep` is false; their offsets become gaps."""
        self.log(TopicPartition(topic, partition)).keep(keep)

    def retain_from(self, topic: str, partition: int, offset: int) -> None:
        """Drop everything below `offset`, as retention does."""
        log = self.log(TopicPartition(topic, partition))
        assert offset <= log.end, f"retention reaches {log.end} at most, not {offset}"
        log.earliest = max(log.earliest, offset)
        log.keep(lambda record: record.offset >= offset)
        self.wake_readers()

    def truncate(self, topic: str, partition: int, end: int) -> None:
        """Let the partition end at `end` again: acknowledged records are lost."""
        log = self.log(TopicPartition(topic, partition))
        log.end = end
        log.keep(lambda record: record.offset < end)
        self.wake_readers()

    def records(self, topic: str, partition: int) -> list[KafkaRecord]:
        """Return every record that a reader of committed records can see, by offset."""
        log = self.log(TopicPartition(topic, partition))
        return log.read(log.earliest, len(log.records))

    def topic_id(self, name: str) -> str:
        """Return the id that the topic has now."""
        return self._topics[name].topic_id

    # --- what the clients see -------------------------------------------------------------------

    def find_log(self, tp: TopicPartition) -> PartitionLog | None:
        """Return the partition's log, or None if there is no such partition now."""
        topic = self._topics.get(tp.topic)
        if topic is None or tp.partition >= len(topic.logs):
            return None
        return topic.logs[tp.partition]

    def log(self, tp: TopicPartition) -> PartitionLog:
        """Return the partition's log, which must exist."""
        log = self.find_log(tp)
        assert log is not None, f"partition {tp} does not exist"
        return log

    def matching(self, names: Sequence[str], pattern: str | None) -> list[Topic]:
        """Return the topics of these names or whose whole name matches, by name.

        A pattern does not match the brokers' own topics, which begin with two underscores.
        """
        return [
            Topic(name, len(topic.logs), topic.topic_id if self.topic_ids else None)
            for name, topic in sorted(self._topics.items())
            if name in names or _matches(pattern, name)
        ]

    def wake_readers(self, of: TopicPartition | None = None) -> None:
        """Let waiting polls look again, all of them or those that read one partition."""
        self.version += 1
        for reader in self.readers:
            if of is None or reader.reads(of):
                reader.wake()

    def check_allowed(self) -> None:
        """Raise FatalError if clients are refused now."""
        if self.refused is not None:
            raise FatalError(self.refused)

    def _noticed_later(self) -> None:
        delay_ms = self._random.randrange(self.metadata_ms_max + 1)
        self.world.later(delay_ms, self.refresh_metadata)

    def refresh_metadata(self) -> None:
        """Let every group notice now which topics and partitions there are."""
        for group in self._groups.values():
            group.notice_topics()
        self.wake_readers()


class FakeProducer:
    """`Producer` of one host."""

    def __init__(self, kafka: FakeKafka, host: Host) -> None:
        self._kafka = kafka
        self._host = host
        self._random = kafka.world.random(f"producer/{host}")

    def send(self, topic: str, records: Sequence[OutgoingRecord]) -> None:
        """Append the records, by key to a partition; return when all are there."""
        sent = tuple(records)
        spread = [self._random.randrange(1 << 30) for _ in sent]
        self._kafka.wire.write(
            self._host, "producer.send", topic, lambda: self._land(topic, sent, spread)
        )

    def _land(self, topic: str, records: Sequence[OutgoingRecord], spread: list[int]) -> None:
        kafka = self._kafka
        kafka.check_allowed()
        found = kafka.matching((topic,), None)
        if not found:
            raise FatalError(f"cannot write to topic {topic}: it does not exist")
        largest = max((_size(record) for record in records), default=0)
        if largest > kafka.message_bytes_max:
            raise FatalError(
                f"cannot write to topic {topic}: a record has {largest} bytes, the broker takes "
                f"{kafka.message_bytes_max}"
            )
        is_partial = len(records) > 1 and kafka.world.chance("kafka.partial_produce")
        landing = spread[0] % len(records) if is_partial else len(records)
        for record, number in islice(zip(records, spread, strict=True), landing):
            chosen = number if record.key is None else zlib.crc32(record.key)
            partition = chosen % found[0].partitions
            kafka.produce(topic, partition, record.value, key=record.key, headers=record.headers)
        if is_partial:
            kafka.world.meet("kafka.partial_produce", topic)
            raise BrokerUnavailable(f"{landing} of {len(records)} records landed in {topic}")


def _matches(pattern: str | None, name: str) -> bool:
    if pattern is None or name.startswith("__"):
        return False
    return re.fullmatch(pattern, name) is not None


def _size(record: OutgoingRecord) -> int:
    return len(record.key or b"") + len(record.value or b"")


class FakeServed(Struct, frozen=True):
    """Consecutive records of one partition, with their values."""

    tp: TopicPartition
    offsets: list[int]
    values: list[bytes | None]


class FakeReader:
    """Reads ranges of offsets for one host: what `adapters.kafka_reader` does on real brokers."""

    def __init__(self, kafka: FakeKafka, host: Host) -> None:
        self._kafka = kafka
        self._host = host

    def __call__(self, ranges: Mapping[TopicPartition, tuple[int, int]]) -> list[FakeServed]:
        """Return the committed records of each `[first, next)`."""

        def answer() -> list[FakeServed]:
            self._kafka.check_allowed()
            return [self._served(tp, *span) for tp, span in sorted(ranges.items())]

        return self._kafka.wire.read("reader.read", len(ranges), answer)

    def _served(self, tp: TopicPartition, first: int, after: int) -> FakeServed:
        log = self._kafka.find_log(tp)
        if log is None:
            raise BrokerUnavailable(f"no records of {tp}: it has no leader")
        found = [r for r in log.read(first, len(log.records)) if r.offset < after]
        return FakeServed(tp, [r.offset for r in found], [r.value for r in found])


class FakeBroker:
    """`Broker` of one host."""

    def __init__(self, kafka: FakeKafka, host: Host) -> None:
        self._kafka = kafka
        self._host = host

    def topics(self, names: Sequence[str], pattern: str | None) -> list[Topic]:
        """Return the topics of these names or of this pattern that exist, by name."""

        def answer() -> list[Topic]:
            self._kafka.check_allowed()
            return self._kafka.matching(names, pattern)

        return self._kafka.wire.read("broker.topics", pattern or tuple(names), answer)

    def offsets(self, partitions: Sequence[TopicPartition], at: At) -> dict[TopicPartition, int]:
        """Return where each partition begins, ends, or is at a time."""

        def answer() -> dict[TopicPartition, int]:
            self._kafka.check_allowed()
            return {tp: self._offset(tp, at) for tp in partitions}

        return self._kafka.wire.read("broker.offsets", at, answer)

    def group_offsets(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return what the group committed."""

        def answer() -> dict[TopicPartition, int]:
            self._kafka.check_allowed()
            committed = self._kafka.group(group).committed
            return {tp: committed[tp] for tp in partitions if tp in committed}

        return self._kafka.wire.read("broker.group_offsets", group, answer)

    def _offset(self, tp: TopicPartition, at: At) -> int:
        log = self._kafka.find_log(tp)
        if log is None:
            raise BrokerUnavailable(f"no offsets for {tp}: it has no leader")
        if at == "earliest":
            return log.earliest
        if at == "latest":
            return log.last_stable
        for record in log.read(log.earliest, len(log.records)):
            if record.timestamp_ms >= at:
                return record.offset
        return log.last_stable
