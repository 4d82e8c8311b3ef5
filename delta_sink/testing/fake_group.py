"""Consumer groups of the fake cluster: who reads what, who believes to, and who does so still.

What may fail:

* `kafka.untold`: at a rebalance a living member is put out and not told; its partitions go to
  others while it goes on reading them.
* `kafka.zombie`: a member that was put out (paused past its session, or silent past
  `max_poll_interval_ms`) goes on reading its old partitions for up to `zombie_ms_max`.
* `kafka.commit_lost`: a commit of group offsets never arrives. One of a member that was put out
  is refused by the group, always.
* `kafka.short_read`: a poll returns fewer records than there are, and stops short of a gap.

Protocols: `cooperative` (a partition is revoked only where it moves; its new owner gets it after
the old one let go, or was put out) and `eager` (at every rebalance all give up everything).

What may not, so that the system can recover: a member that polls in time, is not isolated and is
not put out by a fault stays a member; every partition is assigned to somebody within
`rebalance_timeout_ms` after the last change; a zombie's time ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from delta_sink.model import Records, TopicPartition
from delta_sink.ports import Assigned, ConsumerEvent, OffsetGone, Polled, Revoked, Waiting
from delta_sink.testing.host import Host
from delta_sink.testing.world import Signal

if TYPE_CHECKING:  # the cluster makes its groups and consumers; they only name its type
    from delta_sink.testing.fake_kafka import FakeKafka, KafkaRecord

FAULTS = {
    "kafka.untold": "a living member is put out of its group and not told",
    "kafka.zombie": "a member that was put out goes on reading its old partitions",
    "kafka.commit_lost": "a commit of group offsets never arrives",
    "kafka.short_read": "a poll returns only a part of what there is",
}


POLL_STRETCHED_MS = 512
BUSY_MS = 10
"""A poll that waits no longer than this is one of a worker that has jobs out."""
BUSY_STRETCHED_MS = 64
"""So long it waits at first: the end of a job ends it, and nothing else could be done before."""
IDLE_MS = 200
"""A poll that may wait so long is one of a worker for which nothing is due soon."""
IDLE_STRETCHED_MS = 5_000
NOTHING = Polled()


class FakeGroup:
    """One consumer group, with its coordinator.

    Attributes:
        protocol: `cooperative` or `eager`. Change it before the first member joins.
        committed: the offsets that were committed; tests may change them.
        generation: counts rebalances.
    """

    def __init__(self, kafka: FakeKafka, name: str) -> None:
        self.name = name
        self.protocol: Literal["cooperative", "eager"] = "cooperative"
        self.session_timeout_ms = 45_000
        self.max_poll_interval_ms = 300_000
        self.rebalance_timeout_ms = 60_000
        self.rebalance_ms_max = 3_000
        self.zombie_ms_max = 120_000
        self.committed: dict[TopicPartition, int] = {}
        self.generation = 0
        self._kafka = kafka
        self._world = kafka.world
        self._random = kafka.world.random(f"group/{name}")
        self._members: dict[int, FakeConsumer] = {}
        self._next_member = 0
        self._target: dict[TopicPartition, int] = {}
        self._holder: dict[TopicPartition, int] = {}
        self._is_pending = False

    @property
    def owners(self) -> dict[TopicPartition, str]:
        """Which host the group believes to own each partition now."""
        return {tp: self._members[member].host.name for tp, member in self._holder.items()}

    # --- what members do ------------------------------------------------------------------------

    def join(self, consumer: FakeConsumer) -> None:
        """Make the consumer a member; a rebalance follows."""
        self._next_member += 1
        consumer.member = self._next_member
        consumer.generation = self.generation
        self._members[self._next_member] = consumer
        self._rebalance_soon()

    def leave(self, consumer: FakeConsumer) -> None:
        """Take the member out; what it held is free."""
        if self._members.get(consumer.member) is not consumer:
            return
        del self._members[consumer.member]
        self._holder = {
            tp: holder for tp, holder in self._holder.items() if holder != consumer.member
        }
        self._kafka.wake_readers()
        self._rebalance_soon()

    def has(self, consumer: FakeConsumer) -> bool:
        """Whether the group counts this consumer as a member."""
        return self._members.get(consumer.member) is consumer

    def put_out(self, consumer: FakeConsumer) -> None:
        """Take a member out without telling it. It may go on reading for a while."""
        if not self.has(consumer):
            return
        if self._world.chance("kafka.zombie"):
            consumer.isolate(int(self.zombie_ms_max ** self._random.random()))
        self._world.note(f"group {self.name} puts out", consumer.host)
        self.leave(consumer)

    def sync(self, consumer: FakeConsumer) -> list[ConsumerEvent]:
        """Tell a member what it lost and what it got since its last poll."""
        if self.protocol == "eager":
            return self._sync_eager(consumer)
        lost = [tp for tp in consumer.owned if self._target.get(tp) != consumer.member]
        return [*self._revoke(consumer, lost), *self._assign(consumer)]

    def _sync_eager(self, consumer: FakeConsumer) -> list[ConsumerEvent]:
        events: list[ConsumerEvent] = []
        if consumer.generation != self.generation:
            consumer.generation = self.generation
            self._kafka.wake_readers()
            events += self._revoke(consumer, list(consumer.owned))
        if all(member.generation == self.generation for member in self._members.values()):
            events += self._assign(consumer)
        return events

    def _revoke(
        self, consumer: FakeConsumer, partitions: list[TopicPartition]
    ) -> list[ConsumerEvent]:
        if not partitions:
            return []
        for tp in partitions:
            del consumer.owned[tp]
            if self._holder.get(tp) == consumer.member:
                del self._holder[tp]
        self._kafka.wake_readers()
        return [Revoked(tuple(partitions))]

    def _assign(self, consumer: FakeConsumer) -> list[ConsumerEvent]:
        mine = [
            tp
            for tp, member in self._target.items()
            if member == consumer.member and tp not in consumer.owned and tp not in self._holder
        ]
        for tp in mine:
            consumer.owned[tp] = Reading()
            self._holder[tp] = consumer.member
        return [Assigned(tuple(mine))] if mine else []

    # --- the coordinator ------------------------------------------------------------------------

    def notice_topics(self) -> None:
        """Look at the topics again; rebalance if the partitions are others."""
        if set(self._partitions()) != set(self._target):
            self._rebalance_soon()

    def forget(self, topic: str) -> None:
        """Drop the committed offsets of a deleted topic."""
        for tp in [tp for tp in self.committed if tp.topic == topic]:
            del self.committed[tp]

    def _partitions(self) -> list[TopicPartition]:
        found: dict[TopicPartition, None] = {}
        for member in self._members.values():
            for topic in self._kafka.matching(member.topics, member.pattern):
                found.update({TopicPartition(topic.name, p): None for p in range(topic.partitions)})
        return sorted(found)

    def _rebalance_soon(self) -> None:
        if not self._is_pending:
            self._is_pending = True
            delay_ms = self._random.randrange(self.rebalance_ms_max + 1)
            self._world.later(delay_ms, self._rebalance)

    def _rebalance(self) -> None:
        self._is_pending = False
        self.generation += 1
        if len(self._members) > 1 and self._world.chance("kafka.untold"):
            victim = self._random.choice(list(self._members.values()))
            self._world.meet("kafka.untold", victim.host)
            victim.isolate(int(self.zombie_ms_max ** self._random.random()))
            self.leave(victim)
        self._target = self._balance()
        self._world.note(
            f"group {self.name} rebalances",
            {str(tp): str(self._members[member].host) for tp, member in self._target.items()},
        )
        generation = self.generation
        self._world.later(self.rebalance_timeout_ms, lambda: self._time_out(generation))
        self._kafka.wake_readers()

    def _balance(self) -> dict[TopicPartition, int]:
        """Spread the partitions evenly; where it can be, they stay where they are."""
        partitions = self._partitions()
        members = list(self._members)
        if not members:
            return {}
        self._random.shuffle(members)
        least, more = divmod(len(partitions), len(members))  # `more` members get one above `least`
        counts = dict.fromkeys(members, 0)
        target: dict[TopicPartition, int] = {}
        for tp in partitions:
            holder = self._target.get(tp)
            if self.protocol == "eager" or holder not in counts or counts[holder] > least:
                continue
            if counts[holder] == least:
                if not more:
                    continue
                more -= 1
            target[tp] = holder
            counts[holder] += 1
        for tp in partitions:
            if tp not in target:
                target[tp] = min(members, key=counts.__getitem__)
                counts[target[tp]] += 1
        return dict(sorted(target.items()))

    def _time_out(self, generation: int) -> None:
        """Put out who did not come to the rebalance in time."""
        if generation != self.generation:
            return
        for consumer in list(self._members.values()):
            is_holding = any(self._target.get(tp) != consumer.member for tp in consumer.owned)
            is_absent = self.protocol == "eager" and consumer.generation != generation
            if is_holding or is_absent:
                self.put_out(consumer)


class Reading(Struct):
    """Where a consumer is in one of its partitions."""

    position: int = 0
    is_started: bool = False


class FakeConsumer:
    """`Consumer` of one host. What it owns changes only inside `poll` and `rejoin`.

    Attributes:
        owned: the partitions that it believes to own. The group may think otherwise.
        member, generation: what the group knows it by.
    """

    def __init__(
        self,
        kafka: FakeKafka,
        group: FakeGroup,
        host: Host,
        topics: tuple[str, ...],
        pattern: str | None,
        columns: tuple[bool, bool, bool],
    ) -> None:
        self.host = host
        self.topics = topics
        self.pattern = pattern
        self.owned: dict[TopicPartition, Reading] = {}
        self.member = 0
        self.generation = 0
        self._kafka = kafka
        self._world = kafka.world
        self._group = group
        self._with_timestamps, self._with_keys, self._with_headers = columns
        self._random = kafka.world.random(f"consumer/{host}")
        self._isolated_until_ms = 0
        self._changed = Signal(kafka.world)
        self._changes = 0
        self._seen: tuple[int, bool, bool] | None = None
        self._empty_polls = 0
        self._ended_count = 0
        self._waiting_for: str | None = None
        self._polled_ms = self._world.now_ms
        self._commit_lands_ms = 0
        self._is_closed = False
        kafka.readers.append(self)
        host.on_kill.append(self._end)
        host.on_pause.append(self._silent)

    # --- the port -------------------------------------------------------------------------------

    def poll(self, records_max: int, timeout_ms: int) -> Polled:
        """Return events and records that are there now or come within `timeout_ms`.

        It may return earlier with nothing when a job of its host has ended since the last one,
        and later when many polls in a row found nothing (short ones up to `POLL_STRETCHED_MS`,
        those of an idle worker up to `IDLE_STRETCHED_MS`), as a busy machine is late: a worker
        that polls every 2 ms while it waits, or five times a second while nothing comes, would
        cost most of a run otherwise.
        """
        assert records_max >= 1, "records_max is below 1"
        world = self._world
        self._kafka.check_allowed()
        if not self.member:
            self._join()
        if not self._is_quiet():
            world.switch("consumer.poll begins", records_max)
        deadline_ms = world.now_ms + self._patience_ms(timeout_ms)
        jobs = self.host.jobs
        while True:
            self._polled_ms = world.now_ms
            polled = self._poll_once(records_max)
            if polled is not NOTHING:
                self._empty_polls = 0
                world.switch("consumer.poll ends", _summary(polled))
                return polled
            left_ms = deadline_ms - world.now_ms
            if left_ms <= 0 or not world.in_task:
                return polled
            if jobs.ended_count != self._ended_count:
                self._ended_count = jobs.ended_count
                self._empty_polls = 0
                return polled
            signals = (self._changed, jobs.ended)
            world.wait_any(signals, left_ms, "consumer.poll waits", left_ms)

    def _patience_ms(self, timeout_ms: int) -> int:
        self._empty_polls += 1
        least_ms = max(timeout_ms, BUSY_STRETCHED_MS if timeout_ms <= BUSY_MS else 1)
        most_ms = IDLE_STRETCHED_MS if timeout_ms >= IDLE_MS else POLL_STRETCHED_MS
        return max(least_ms, min(most_ms, least_ms << min(2 * self._empty_polls - 2, 10)))

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these partitions from these offsets on; those not owned are passed over."""
        self._world.switch("consumer.start begins", _offsets_text(offsets))
        self._seen = None
        for tp, offset in offsets.items():
            if tp in self.owned:
                self.owned[tp] = Reading(offset, is_started=True)
        self._world.switch("consumer.start ends")

    def stop(self, partitions: Sequence[TopicPartition]) -> None:
        """Deliver nothing more of these partitions until `start`."""
        self._world.switch("consumer.stop begins", tuple(map(str, partitions)))
        for tp in partitions:
            if tp in self.owned:
                self.owned[tp].is_started = False
        self._world.switch("consumer.stop ends")

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Send the offsets to the group; they land later, in order, or not at all."""
        world = self._world
        world.switch("consumer.commit begins", _offsets_text(offsets))
        if world.chance("kafka.commit_lost"):
            world.meet("kafka.commit_lost", self.host)
        else:
            lands_ms = world.now_ms + self._random.randint(*self._kafka.wire.latency_ms)
            self._commit_lands_ms = max(self._commit_lands_ms, lands_ms)
            sent, member = dict(offsets), self.member
            world.later(
                self._commit_lands_ms - world.now_ms, lambda: self._commit_lands(member, sent)
            )
        world.switch("consumer.commit ends")

    def rejoin(self) -> None:
        """Leave the group and join it as somebody new, with no partitions."""
        self._world.switch("consumer.rejoin begins")
        self._group.leave(self)
        self._join()
        self._world.switch("consumer.rejoin ends")

    def close(self) -> None:
        """Leave the group."""
        self._world.switch("consumer.close begins")
        self._is_closed = True
        self._kafka.readers.remove(self)
        self._group.leave(self)
        self.owned.clear()
        self._world.switch("consumer.close ends")

    # --- what the cluster does ------------------------------------------------------------------

    def reads(self, tp: TopicPartition) -> bool:
        """Whether it fetches records of this partition."""
        reading = self.owned.get(tp)
        return reading is not None and reading.is_started

    def wake(self) -> None:
        """Let a poll that waits look again: there may be something to read or to know."""
        self._changes += 1
        self._changed.notify()

    # --- for tests ------------------------------------------------------------------------------

    def isolate(self, duration_ms: int) -> None:
        """Cut this consumer off its coordinator, not off its fetches: the classic zombie.

        For `duration_ms` it hears of no rebalance and its commits are lost; its group puts it out
        when its session times out.
        """
        self._isolated_until_ms = max(self._isolated_until_ms, self._world.now_ms + duration_ms)
        self._world.note("isolated from its group", f"{self.host} for {duration_ms} ms")
        self._silent(duration_ms)

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _is_isolated(self) -> bool:
        return self._world.now_ms < self._isolated_until_ms

    def _join(self) -> None:
        is_first = not self.member
        self._seen = None
        self.owned.clear()
        self._group.join(self)
        if is_first:
            self._watch_interval()

    def _silent(self, duration_ms: int) -> None:
        """No heartbeat arrives for that long; the session may time out."""
        timeout_ms = self._group.session_timeout_ms
        if duration_ms > timeout_ms and self._group.has(self):
            member = self.member
            self._world.later(timeout_ms, lambda: self._session_ends(member))

    def _end(self) -> None:
        """Its process is killed: nobody hears of it any more."""
        if not self._is_closed:
            self._kafka.readers.remove(self)
            self._silent(self._group.session_timeout_ms + 1)

    def _session_ends(self, member: int) -> None:
        if self.member == member:
            self._group.put_out(self)

    def _watch_interval(self) -> None:
        """Leave the group when nobody polled for too long, as the real client does."""
        if self._is_closed or self.host.dead:
            return
        interval_ms = self._group.max_poll_interval_ms
        silent_ms = self._world.now_ms - self._polled_ms
        if silent_ms >= interval_ms:
            self._group.put_out(self)
            self._polled_ms = self._world.now_ms
        wait_ms = self._polled_ms + interval_ms - self._world.now_ms
        self._world.later(wait_ms, self._watch_interval, background=True)

    def _is_quiet(self) -> bool:
        """Whether nothing that a poll looks at has changed since one found nothing."""
        return self._seen == self._now_seen()

    def _now_seen(self) -> tuple[int, bool, bool]:
        # Asked several times a poll, and polls are most of what a run costs.
        now_ms = self._world.now_us // 1000
        is_down = now_ms < self._kafka.wire.down_until_ms
        return self._changes, now_ms < self._isolated_until_ms, is_down

    def _poll_once(self, records_max: int) -> Polled:
        if self._is_quiet():
            return NOTHING
        events, records = self._look(records_max)
        if events or records:
            self._seen = None
            return Polled(events, records)
        self._seen = self._now_seen()
        return NOTHING

    def _look(self, records_max: int) -> tuple[tuple[ConsumerEvent, ...], tuple[Records, ...]]:
        if self._kafka.wire.is_down:
            return self._waiting("no broker answers"), ()
        events: list[ConsumerEvent] = []
        if not self._is_isolated:
            events += self._meet_group()
        events += self._look_for_topics()
        events += self._find_gone()
        records = self._read(records_max)
        if records and self._is_isolated and not self._group.has(self):
            self._world.meet("kafka.zombie", self.host)
        return tuple(events), records

    def _meet_group(self) -> list[ConsumerEvent]:
        if self._group.has(self):
            return self._group.sync(self)
        lost = tuple(self.owned)
        self._join()
        return [Revoked(lost, lost=True)] if lost else []

    def _look_for_topics(self) -> tuple[ConsumerEvent, ...]:
        there = {topic.name for topic in self._kafka.matching(self.topics, self.pattern)}
        missing = [name for name in self.topics if name not in there]
        if missing:
            return self._waiting(f"topic {missing[0]} does not exist")
        if not there:
            return self._waiting(f"no topic matches {self.pattern}")
        self._waiting_for = None
        return ()

    def _waiting(self, reason: str) -> tuple[ConsumerEvent, ...]:
        if self._waiting_for == reason:
            return ()
        self._waiting_for = reason
        return (Waiting(reason),)

    def _find_gone(self) -> list[ConsumerEvent]:
        gone: list[ConsumerEvent] = []
        for tp, reading in self.owned.items():
            log = self._kafka.find_log(tp)
            if not reading.is_started or log is None:
                continue
            if not log.earliest <= reading.position <= log.end:
                reading.is_started = False
                gone.append(OffsetGone(tp, reading.position))
        return gone

    def _read(self, records_max: int) -> tuple[Records, ...]:
        started = [tp for tp, reading in self.owned.items() if reading.is_started]
        self._random.shuffle(started)
        polled: list[Records] = []
        for tp in started:
            if records_max <= 0:
                break
            records = self._read_partition(tp, records_max)
            if records is not None:
                polled.append(records)
                records_max -= len(records)
        return tuple(polled)

    def _read_partition(self, tp: TopicPartition, records_max: int) -> Records | None:
        log = self._kafka.find_log(tp)
        if log is None:
            return None
        reading = self.owned[tp]
        found = log.read(reading.position, records_max)
        if found and self._world.chance("kafka.short_read"):
            found = found[: self._random.randint(1, len(found))]
            offset_next = found[-1].offset + 1
            if offset_next < log.last_stable:
                self._world.meet("kafka.short_read", tp)
        elif len(found) == records_max:
            offset_next = found[-1].offset + 1
        else:  # past gaps and markers at the tail
            offset_next = max(reading.position, log.last_stable)
        if offset_next == reading.position:
            return None
        reading.position = offset_next
        return self._columns(tp, offset_next, found)

    def _columns(
        self, tp: TopicPartition, offset_next: int, found: Sequence[KafkaRecord]
    ) -> Records:
        return Records(
            tp=tp,
            offset_next=offset_next,
            offsets=[r.offset for r in found],
            values=[r.value for r in found],
            timestamps_ms=[r.timestamp_ms for r in found] if self._with_timestamps else (),
            keys=[r.key for r in found] if self._with_keys else (),
            headers=[r.headers for r in found] if self._with_headers else (),
            size_bytes=sum(r.size_bytes for r in found),
            produced_first_ms=_produced_ms(found[0]) if found else None,
        )

    def _commit_lands(self, member: int, offsets: Mapping[TopicPartition, int]) -> None:
        is_member = self.member == member and self._group.has(self)
        if not is_member or self._is_isolated or self._kafka.wire.is_down:
            self._world.note("group commit refused", f"{self.host} {_offsets_text(offsets)}")
            self.host.telemetry.count("fake_group_commit_failures")
            return
        self._world.note("group commit lands", _offsets_text(offsets))
        self._group.committed.update(offsets)


def _produced_ms(record: KafkaRecord) -> int | None:
    return record.timestamp_ms if record.timestamp_ms >= 0 else None


def _offsets_text(offsets: Mapping[TopicPartition, int]) -> str:
    return " ".join(f"{tp}:{offset}" for tp, offset in offsets.items())


def _summary(polled: Polled) -> str:
    events = [type(event).__name__ for event in polled.events]
    records = [f"{r.tp}+{len(r)}→{r.offset_next}" for r in polled.records]
    return " ".join([*events, *records])
