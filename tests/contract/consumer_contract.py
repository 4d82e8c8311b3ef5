"""What every Consumer, Producer and Broker must do, the fakes included.

Subclass `KafkaContract` and give the fixture `kafka`, a `KafkaWorld`: a Kafka of its own with the
three ports on it. Time passes only in `poll`, so that a world with a clock of its own works too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from delta_sink.errors import FatalError
from delta_sink.model import OutgoingRecord, Records, TopicPartition
from delta_sink.ports import Assigned, Broker, Consumer, OffsetGone, Producer, Revoked, Waiting

POLL_MS = 50
POLLS_MAX = 1_200
"""Enough for a coordinator whose group has a leader that is gone: the mock cluster lets such a group
wait for a session, several times over where the machine is busy (17 s were seen)."""

QUIET_POLLS = 6


@dataclass(frozen=True)
class Sent:
    """A record to produce in a test."""

    value: bytes | None
    key: bytes | None = None
    headers: tuple = ()
    timestamp_ms: int | None = None


class KafkaWorld(Protocol):
    """A Kafka and the ports on it."""

    def create_topic(self, name: str, partitions: int) -> None: ...

    def produce(self, tp: TopicPartition, records: Sequence[Sent]) -> None: ...

    def transact(self, tp: TopicPartition, records: Sequence[Sent]) -> None:
        """Produce in a transaction and commit it: a marker takes the offset after the last."""

    def drop_first_records(self, tp: TopicPartition) -> int:
        """Let Kafka forget the partition's first records; return the first offset it has."""

    def consumer(
        self,
        group: str,
        topics: Sequence[str] = ("orders",),
        pattern: str | None = None,
        *,
        columns: bool = True,
    ) -> Consumer: ...

    def producer(self) -> Producer: ...

    def broker(self) -> Broker: ...


@dataclass
class Seen:
    """Everything that a consumer returned, in order."""

    events: list = field(default_factory=list)
    batches: dict[TopicPartition, list[Records]] = field(default_factory=lambda: defaultdict(list))

    def add(self, polled) -> None:
        self.events += polled.events
        tps = [records.tp for records in polled.records]
        assert len(tps) == len(set(tps)), "more than one entry for a partition"
        for records in polled.records:
            self.batches[records.tp].append(records)

    def offsets(self, tp: TopicPartition) -> list[int]:
        return [offset for batch in self.batches[tp] for offset in batch.offsets]

    def values(self, tp: TopicPartition) -> list[bytes | None]:
        return [value for batch in self.batches[tp] for value in batch.values]

    def offset_next(self, tp: TopicPartition) -> int | None:
        return self.batches[tp][-1].offset_next if self.batches[tp] else None

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def assigned(self) -> set[TopicPartition]:
        owned: set[TopicPartition] = set()
        for event in self.events:
            if isinstance(event, Assigned):
                owned |= set(event.partitions)
            elif isinstance(event, Revoked):
                owned -= set(event.partitions)
        return owned


def poll_until(
    consumer: Consumer,
    done: Callable[[Seen], bool],
    *,
    seen: Seen | None = None,
    records_max: int = 500,
    others: Sequence[tuple[Consumer, Seen]] = (),
) -> Seen:
    """Poll until `done`, the other members of the group too; return what `consumer` returned."""
    seen = Seen() if seen is None else seen
    for _ in range(POLLS_MAX):
        seen.add(consumer.poll(records_max, POLL_MS))
        for other, others_seen in others:
            others_seen.add(other.poll(records_max, POLL_MS))
        if done(seen):
            return seen
    raise AssertionError(f"not within {POLLS_MAX} polls: {seen.events}")


def poll_quietly(consumer: Consumer, seen: Seen | None = None) -> Seen:
    """Poll a while and return everything that came."""
    seen = Seen() if seen is None else seen
    for _ in range(QUIET_POLLS):
        seen.add(consumer.poll(500, POLL_MS))
    return seen


def joined(consumer: Consumer, *tps: TopicPartition) -> Seen:
    """Poll until the consumer owns these partitions and no others."""
    return poll_until(consumer, lambda seen: seen.assigned() == set(tps))


def numbered(first: int, after: int) -> list[Sent]:
    return [Sent(b"%d" % number) for number in range(first, after)]


T0 = TopicPartition("orders", 0)
T1 = TopicPartition("orders", 1)


class KafkaContract:
    """The suite."""

    @pytest.fixture
    def kafka(self) -> KafkaWorld:
        """Return a Kafka with topic `orders` of two partitions."""
        raise NotImplementedError

    @pytest.fixture
    def consumer(self, kafka):
        consumer = kafka.consumer("g")
        yield consumer
        consumer.close()

    # --- reading ---

    def test_nothing_comes_before_start(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 10))
        seen = joined(consumer, T0, T1)
        poll_quietly(consumer, seen)
        assert not seen.batches
        assert seen.of(Assigned) == [Assigned((T0, T1))]

    def test_records_come_in_order_and_ranges_chain(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 3_000))
        kafka.produce(T1, numbered(0, 2_000))
        joined(consumer, T0, T1)
        consumer.start({T0: 1_000, T1: 0})
        seen = poll_until(
            consumer, lambda s: s.offset_next(T0) == 3_000 and s.offset_next(T1) == 2_000
        )
        assert seen.offsets(T0) == list(range(1_000, 3_000))
        assert seen.values(T0) == [b"%d" % number for number in range(1_000, 3_000)]
        assert seen.offsets(T1) == list(range(2_000))
        for tp, first in ((T0, 1_000), (T1, 0)):
            for batch in seen.batches[tp]:
                assert not batch.offsets or batch.offsets[0] >= first
                assert batch.offset_next >= first
                first = batch.offset_next

    def test_one_partition_at_a_time(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 5))
        kafka.produce(T1, numbered(0, 5))
        joined(consumer, T0, T1)
        consumer.start({T1: 2})
        seen = poll_until(consumer, lambda s: s.offset_next(T1) == 5)
        poll_quietly(consumer, seen)
        assert seen.offsets(T1) == [2, 3, 4]
        assert T0 not in seen.batches
        consumer.start({T0: 4})
        assert poll_until(consumer, lambda s: s.offset_next(T0) == 5).offsets(T0) == [4]

    def test_columns(self, kafka, consumer):
        at_ms = 1_700_000_000_123
        headers = (("a", b"1"), ("b", None), ("a", b""), ("ü", b"\x00\xff"))
        sent = [
            Sent(b"v", b"k", headers, at_ms),
            Sent(None, b"tombstone", (), at_ms + 1),
            Sent(b"", None, (), at_ms + 2),
            Sent(b"v", b"", (), at_ms - 5),
        ]
        kafka.produce(T0, sent)
        joined(consumer, T0, T1)
        consumer.start({T0: 0})
        (batch,) = poll_until(consumer, lambda s: s.offset_next(T0) == 4).batches[T0]
        assert list(batch.values) == [b"v", None, b"", b"v"]
        assert list(batch.keys) == [b"k", b"tombstone", None, b""]
        assert [tuple(row) for row in batch.headers] == [headers, (), (), ()]
        assert batch.produced_first_ms == at_ms
        assert list(batch.timestamps_ms) == [at_ms, at_ms + 1, at_ms + 2, at_ms - 5]
        assert len(batch) == 4
        assert batch.size_bytes >= len(b"vv" + b"k" + b"tombstone" + b"1\x00\xff")

    def test_columns_that_nobody_asked_for_are_empty(self, kafka):
        consumer = kafka.consumer("plain", columns=False)
        at_ms = 1_795_500_000_000
        kafka.produce(T0, [Sent(b"v", b"k", (("a", b"1"),), at_ms)])
        joined(consumer, T0, T1)
        consumer.start({T0: 0})
        (batch,) = poll_until(consumer, lambda s: s.offset_next(T0) == 1).batches[T0]
        consumer.close()
        assert batch.produced_first_ms == at_ms
        assert (list(batch.offsets), list(batch.values)) == ([0], [b"v"])
        assert not batch.keys
        assert not batch.headers
        assert not batch.timestamps_ms

    def test_no_poll_returns_more_than_asked(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 50))
        kafka.produce(T1, numbered(0, 50))
        joined(consumer, T0, T1)
        consumer.start({T0: 0, T1: 0})
        seen = Seen()
        for records_max in [1] * 20 + [7] * 20:
            polled = consumer.poll(records_max, POLL_MS)
            assert sum(len(records) for records in polled.records) <= records_max
            seen.add(polled)
        poll_until(consumer, lambda s: s.offset_next(T0) == s.offset_next(T1) == 50, seen=seen)
        assert seen.offsets(T0) == seen.offsets(T1) == list(range(50))

    def test_records_that_come_later(self, kafka, consumer):
        joined(consumer, T0, T1)
        consumer.start({T0: 0, T1: 0})
        seen = poll_quietly(consumer)
        assert not seen.offsets(T0)
        kafka.produce(T0, numbered(0, 3))
        poll_until(consumer, lambda s: s.offset_next(T0) == 3, seen=seen)
        assert seen.offsets(T0) == [0, 1, 2]

    # --- starting again ---

    @pytest.mark.parametrize("again_at", [0, 40, 700, 1_500])
    def test_start_again_while_records_are_queued(self, kafka, consumer, again_at):
        kafka.produce(T0, numbered(0, 2_000))
        joined(consumer, T0, T1)
        consumer.start({T0: 500})
        first = poll_until(consumer, lambda s: len(s.offsets(T0)) > 0, records_max=100)
        assert first.offsets(T0)[0] == 500
        consumer.start({T0: again_at})
        seen = poll_until(consumer, lambda s: s.offset_next(T0) == 2_000)
        assert seen.offsets(T0) == list(range(again_at, 2_000))

    def test_the_last_start_counts(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 100))
        joined(consumer, T0, T1)
        for offset in (5, 90, 7, 60):
            consumer.start({T0: offset})
        seen = poll_until(consumer, lambda s: s.offset_next(T0) == 100)
        assert seen.offsets(T0) == list(range(60, 100))

    def test_stop_and_start(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 1_000))
        joined(consumer, T0, T1)
        consumer.start({T0: 0})
        poll_until(consumer, lambda s: len(s.offsets(T0)) > 0, records_max=10)
        consumer.stop([T0, T1])
        assert not poll_quietly(consumer).batches
        consumer.start({T0: 3})
        seen = poll_until(consumer, lambda s: s.offset_next(T0) == 1_000)
        assert seen.offsets(T0) == list(range(3, 1_000))

    def test_partitions_of_others_are_passed_over(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 2))
        joined(consumer, T0, T1)
        consumer.start({TopicPartition("elsewhere", 3): 17, T0: 0})
        consumer.stop([TopicPartition("elsewhere", 3)])
        assert poll_until(consumer, lambda s: s.offset_next(T0) == 2).offsets(T0) == [0, 1]

    # --- gaps ---

    def test_an_offset_beyond_the_end_is_gone(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 10))
        joined(consumer, T0, T1)
        consumer.start({T0: 10_000})
        seen = poll_until(consumer, lambda s: bool(s.of(OffsetGone)))
        assert seen.of(OffsetGone) == [OffsetGone(T0, 10_000)]
        seen = poll_quietly(consumer, seen)
        assert len(seen.of(OffsetGone)) == 1
        assert not seen.batches
        consumer.start({T0: 4})
        assert poll_until(consumer, lambda s: s.offset_next(T0) == 10).offsets(T0) == [
            *range(4, 10)
        ]

    def test_offsets_that_kafka_forgot_are_gone(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 3))
        earliest = kafka.drop_first_records(T0)
        assert earliest > 3
        joined(consumer, T0, T1)
        consumer.start({T0: 2})
        seen = poll_until(consumer, lambda s: bool(s.of(OffsetGone)))
        assert seen.of(OffsetGone) == [OffsetGone(T0, 2)]
        assert not seen.batches
        consumer.start({T0: earliest})
        seen = poll_until(consumer, lambda s: len(s.offsets(T0)) > 0)
        assert seen.offsets(T0)[0] == earliest
        assert kafka.broker().offsets([T0], "earliest") == {T0: earliest}

    def test_markers_move_the_position(self, kafka, consumer):
        kafka.transact(T0, numbered(0, 5))
        kafka.transact(T0, numbered(5, 7))
        assert kafka.broker().offsets([T0], "latest") == {T0: 9}
        joined(consumer, T0, T1)
        consumer.start({T0: 0})
        seen = poll_until(consumer, lambda s: s.offset_next(T0) == 9)
        assert seen.offsets(T0) == [0, 1, 2, 3, 4, 6, 7]
        kafka.produce(T0, numbered(0, 1))
        poll_until(consumer, lambda s: s.offset_next(T0) == 10, seen=seen)
        assert seen.offsets(T0) == [0, 1, 2, 3, 4, 6, 7, 9]

    def test_a_tail_of_markers_alone_moves_the_position(self, kafka, consumer):
        kafka.transact(T0, numbered(0, 5))
        joined(consumer, T0, T1)
        consumer.start({T0: 5})  # all that is left is the marker
        seen = poll_until(consumer, lambda s: s.offset_next(T0) == 6)
        assert [len(batch) for batch in seen.batches[T0]] == [0]

    def test_the_end_alone_is_no_news(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 5))
        joined(consumer, T0, T1)
        consumer.start({T0: 5, T1: 0})
        assert not poll_quietly(consumer).batches

    # --- the group ---

    def test_members_share_and_take_over(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 100))
        kafka.produce(T1, numbered(0, 100))
        seen = joined(consumer, T0, T1)
        consumer.start({T0: 0, T1: 0})
        other, others_seen = kafka.consumer("g"), Seen()
        poll_until(
            consumer,
            lambda s: len(s.assigned()) == len(others_seen.assigned()) == 1,
            seen=seen,
            others=[(other, others_seen)],
        )
        (mine,), (theirs,) = seen.assigned(), others_seen.assigned()
        assert {mine, theirs} == {T0, T1}
        before = len(seen.batches[theirs])
        other.start({theirs: 50})
        kafka.produce(theirs, numbered(100, 120))
        poll_until(other, lambda s: s.offset_next(theirs) == 120, seen=others_seen)
        assert others_seen.offsets(theirs) == list(range(50, 120))
        poll_quietly(consumer, seen)
        assert len(seen.batches[theirs]) == before, "a record of a partition that was revoked"
        other.close()
        poll_until(consumer, lambda s: s.assigned() == {T0, T1}, seen=seen)
        again = poll_quietly(consumer)
        assert theirs not in again.batches, "nothing comes before start, here neither"
        consumer.start({theirs: 119})
        again = poll_until(consumer, lambda s: s.offset_next(theirs) == 120)
        assert again.offsets(theirs) == [119]

    def test_rejoin(self, kafka, consumer):
        kafka.produce(T0, numbered(0, 100))
        joined(consumer, T0, T1)
        consumer.start({T0: 0})
        poll_until(consumer, lambda s: len(s.offsets(T0)) > 0, records_max=10)
        consumer.rejoin()
        consumer.start({T0: 0})  # not ours any more: passed over
        seen = joined(consumer, T0, T1)
        poll_quietly(consumer, seen)
        assert not seen.of(Revoked)
        assert not seen.batches
        consumer.start({T0: 97})
        assert poll_until(consumer, lambda s: s.offset_next(T0) == 100).offsets(T0) == [
            97,
            98,
            99,
        ]

    def test_a_topic_that_does_not_exist_yet(self, kafka):
        consumer = kafka.consumer("early", topics=["later"])
        seen = poll_until(consumer, lambda s: bool(s.of(Waiting)))
        poll_quietly(consumer, seen)
        (waiting,) = seen.of(Waiting)
        assert "later" in waiting.reason
        kafka.create_topic("later", 1)
        later = TopicPartition("later", 0)
        kafka.produce(later, numbered(0, 2))
        poll_until(consumer, lambda s: s.assigned() == {later}, seen=seen)
        consumer.start({later: 0})
        poll_until(consumer, lambda s: s.offset_next(later) == 2, seen=seen)
        consumer.close()

    def test_a_pattern_finds_topics_that_come_later(self, kafka):
        consumer = kafka.consumer("by-pattern", topics=[], pattern=r"shop-\d+")
        kafka.create_topic("shop-x", 1)
        kafka.create_topic("shop-1", 1)
        kafka.create_topic("shop-12-old", 1)
        one, two = TopicPartition("shop-1", 0), TopicPartition("shop-2", 0)
        seen = poll_until(consumer, lambda s: s.assigned() == {one})
        kafka.produce(one, numbered(0, 2))
        consumer.start({one: 0})
        poll_until(consumer, lambda s: s.offset_next(one) == 2, seen=seen)
        kafka.create_topic("shop-2", 1)
        poll_until(consumer, lambda s: s.assigned() == {one, two}, seen=seen)
        consumer.close()

    def test_topics_that_arrive_together_stay_apart(self, kafka):
        """Partitions of several topics have the same number."""
        tps = [TopicPartition(name, 0) for name in ("left", "right")]
        for tp in tps:
            kafka.create_topic(tp.topic, 1)
            kafka.produce(tp, [Sent(b"%s %d" % (tp.topic.encode(), n)) for n in range(300)])
        consumer = kafka.consumer("of-two", topics=["left", "right"])
        joined(consumer, *tps)
        consumer.start(dict.fromkeys(tps, 0))
        values = {tp: [] for tp in tps}
        together = 0
        for _ in range(900):  # a fake may read one record at a time
            if all(len(found) == 300 for found in values.values()):
                break
            polled = consumer.poll(600, 1_000).records
            together += len({records.tp for records in polled}) == 2
            for records in polled:
                values[records.tp] += records.values
        assert values == {tp: [b"%s %d" % (tp.topic.encode(), n) for n in range(300)] for tp in tps}
        assert together, "no poll had records of both"
        consumer.close()

    def test_committed_offsets_are_seen_by_others(self, kafka, consumer):
        broker = kafka.broker()
        assert broker.group_offsets("g", [T0, T1]) == {}
        joined(consumer, T0, T1)
        consumer.commit({T1: 42})
        poll_until(consumer, lambda _: broker.group_offsets("g", [T0, T1]) == {T1: 42})
        assert broker.group_offsets("nobody", [T0, T1]) == {}

    # --- the producer and the broker ---

    def test_send_returns_when_all_are_there(self, kafka, consumer):
        kafka.create_topic("dead", 1)
        dead = TopicPartition("dead", 0)
        sent = [
            OutgoingRecord(b"k", b"v", (("h", b"1"), ("h", b"2"), ("n", None))),
            OutgoingRecord(None, None),
        ]
        kafka.producer().send("dead", sent)
        assert kafka.broker().offsets([dead], "latest") == {dead: 2}
        reader = kafka.consumer("dead-reader", topics=["dead"])
        joined(reader, dead)
        reader.start({dead: 0})
        (batch,) = poll_until(reader, lambda s: s.offset_next(dead) == 2).batches[dead]
        reader.close()
        assert list(batch.keys) == [b"k", None]
        assert list(batch.values) == [b"v", None]
        assert [tuple(row) for row in batch.headers] == [sent[0].headers, ()]

    def test_send_nothing(self, kafka):
        kafka.producer().send("orders", [])
        assert kafka.broker().offsets([T0, T1], "latest") == {T0: 0, T1: 0}

    def test_send_to_no_topic(self, kafka):
        with pytest.raises(FatalError, match="nowhere"):
            kafka.producer().send("nowhere", [OutgoingRecord(None, b"v")])
        assert kafka.broker().topics(["nowhere"], None) == []

    def test_topics(self, kafka):
        for name in ("orders.eu", "orders-eu", "__internal"):
            kafka.create_topic(name, 3)
        broker = kafka.broker()
        found = broker.topics(["orders", "missing", "orders.eu"], None)
        assert [(topic.name, topic.partitions) for topic in found] == [
            ("orders", 2),
            ("orders.eu", 3),
        ]
        assert [topic.name for topic in broker.topics([], r"orders\.(eu|us)")] == ["orders.eu"]
        assert [topic.name for topic in broker.topics([], "orders")] == ["orders"]
        assert [topic.name for topic in broker.topics([], ".*")] == [
            "orders",
            "orders-eu",
            "orders.eu",
        ]

    def test_offsets(self, kafka):
        broker = kafka.broker()
        kafka.produce(T0, numbered(0, 7))
        assert broker.offsets([T0, T1], "earliest") == {T0: 0, T1: 0}
        assert broker.offsets([T0, T1], "latest") == {T0: 7, T1: 0}
        assert broker.offsets([T0, T1], 4_000_000_000_000) == {T0: 7, T1: 0}
        assert broker.offsets([], "latest") == {}
