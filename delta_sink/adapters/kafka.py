"""The source: a member of a Kafka consumer group, through librdkafka.

Theory of operation. One thread owns a `KafkaConsumer`; librdkafka fetches ahead in its own
threads and calls back only inside `poll`. A partition is in one of three states here:

* *not ours*: whatever arrives of it is dropped;
* *ours, not read* (`_owned`): assigned to us, paused, and whatever arrives is dropped;
* *read* (`_reading`): `start` named an offset; what arrives from there on is returned.

`Assigned`, `Revoked`, `start`, `stop` and `OffsetGone` are the only transitions. A rebalance
callback does no more than tell librdkafka yes, note the change and pause what is new. Where
reading begins is decided outside, by `start`, which seeks: librdkafka numbers every seek and
pause, and drops what it fetched under an older number, so that no older record follows. Where it
cannot seek (after an offset that is gone it has given the partition up; right after an assignment
it may not have begun with it) the partition is assigned anew at the end of the next `poll`, when
no callback is waiting.

`offset_next` of a batch is the last record's offset + 1, or, where that is higher, the offset that
came with the end-of-partition event of the same poll: it lies behind transaction markers and
aborted records, which are never returned.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Place
from msgspec import Struct

from delta_sink.adapters.kafka_client import is_refusal, keep_for_ever, make_client, refusal, said
from delta_sink.adapters.kafka_columns import ConsumerColumns, records_of
from delta_sink.adapters.kafka_settings import consumer_settings, is_incremental, is_kip_848
from delta_sink.adapters.kafka_topics import TopicWatch, matching
from delta_sink.adapters.kafka_way_back import ANSWER_LOST, WayBack
from delta_sink.errors import FatalError
from delta_sink.model import Records, TopicPartition
from delta_sink.ports import (
    Assigned,
    ConsumerEvent,
    OffsetGone,
    Polled,
    Revoked,
    Telemetry,
    Waiting,
)
from delta_sink.telemetry import GROUP_COMMIT_FAILED, GROUP_COMMIT_FAILURES, LIBRARY_LOGGED

CLOSE_MS_MAX: Final = 10_000
"""How long `close` waits for the group's coordinator before it lets the session time out."""

UNREADABLE_TRIES_MAX: Final = 5
"""How often the same offset is fetched again after an answer that cannot be read."""

_UNKNOWN: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)

_REBALANCING: Final = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
    }
)
"""What every group answers to a commit while it rebalances; the next commit makes up for it."""


class _Reading(Struct):
    """How far a partition was returned since its last `start`."""

    offset_next: int
    is_fresh: bool = True
    tries: int = 0


class KafkaConsumer:
    """`ports.Consumer` on librdkafka. Only the thread that made it may call it."""

    def __init__(
        self,
        config: Mapping[str, str],
        *,
        group: str,
        topics: Sequence[str],
        pattern: str | None,
        columns: ConsumerColumns,
        queue_bytes_max: int,
        telemetry: Telemetry,
    ) -> None:
        """Join `group` for `topics`, or for the topics whose whole name matches `pattern`.

        Args:
            config: librdkafka's keys as the user wrote them; they win over our defaults, but
                not over the keys that exactly-once rests on.
            group: the consumer group.
            topics: names; they may not exist yet.
            pattern: a Python regular expression, instead of `topics`. Topics that appear later
                and match are read too, within seconds.
            columns: what `Records` should carry.
            queue_bytes_max: what librdkafka may hold fetched, for all partitions together. One
                fetch may overshoot it by half.
            telemetry: for librdkafka's log lines and failed commits.

        Raises:
            ConfigError: librdkafka refuses a key or a value.
        """
        assert bool(topics) != bool(pattern), "either topics or a pattern"
        servers = config.get("bootstrap.servers", "")
        self._unreachable = f"waiting for the brokers at {servers}: not reachable"
        self._topics = list(topics)
        self._columns = columns
        self._telemetry = telemetry
        self._is_incremental = is_incremental(config)
        self._owned: set[TopicPartition] = set()
        self._reading: dict[TopicPartition, _Reading] = {}
        self._unstarted: set[TopicPartition] = set()
        self._events: list[ConsumerEvent] = []
        self._refused: FatalError | None = None
        self._told: set[str] = set()
        settings = consumer_settings(config, group=group, queue_bytes_max=queue_bytes_max)
        settings |= {"error_cb": self._on_error, "on_commit": self._on_commit}
        self._settings = settings
        self._way_back = WayBack(config)
        self._client: Any = self._new_client()
        self._rebalances = 0
        self._pattern = pattern
        self._watch = self._watched(config)
        if self._topics:
            self._subscribe()

    def poll(self, records_max: int, timeout_ms: int) -> Polled:
        """Return what has arrived within `timeout_ms`: at most `records_max` records.

        It returns when there are `records_max`, else after `timeout_ms`, which therefore bounds
        the age of what it returns.

        Raises:
            FatalError: the group, a topic or the credentials are refused for good, or the same
                offset could not be read `UNREADABLE_TRIES_MAX` times.
        """
        if self._watch is not None and (names := self._watch.names()) is not None:
            self._found(names)
        if self._way_back.is_blocked(self._client):
            self._replace_client()
        if self._way_back.is_misled():
            self._telemetry.event("rejoined", "warning", reason=ANSWER_LOST)
            self._join_anew()  # what is ours is given up in the next polls
        timeout_s = 0.0 if self._unstarted else timeout_ms / 1000
        messages = self._client.consume(records_max, timeout_s)
        if messages:
            self._way_back.is_heard()
        records = self._taken(messages)
        if records:
            self._told.discard(self._unreachable)
        if self._unstarted:
            self._assign_anew()
        if self._refused is not None:
            raise self._refused
        events = tuple(self._events)
        self._events.clear()
        return Polled(events, records)

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read each of these assigned partitions from its offset on; no older record follows."""
        ours = {tp: offset for tp, offset in offsets.items() if tp in self._owned}
        if ours:
            # Before the seeks: see `_seek`. What may be fetched in between is older than the seek
            # and is dropped.
            self._client.resume([Place(tp.topic, tp.partition) for tp in ours])
        for tp, offset in ours.items():
            assert offset >= 0, f"{tp}: offset {offset}"
            self._reading[tp] = _Reading(offset)
            if tp in self._unstarted or not self._seek(tp, offset):
                self._unstarted.add(tp)

    def stop(self, partitions: Sequence[TopicPartition]) -> None:
        """Deliver nothing more of these assigned partitions until `start`; keep them."""
        ours = [tp for tp in partitions if tp in self._owned]
        for tp in ours:
            self._reading.pop(tp, None)
        self._pause(ours)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the group these next offsets. Asynchronous; a failure is counted and logged."""
        if not offsets:
            return
        places = [Place(tp.topic, tp.partition, offset) for tp, offset in offsets.items()]
        try:
            self._client.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            self._count_failed_commit(error.args[0])

    def rejoin(self) -> None:
        """Leave the group and join again. The partitions are gone; `Revoked` is not returned."""
        self._forget(self._owned.copy())
        self._join_anew()

    def close(self) -> None:
        """Leave the group and free everything, within `CLOSE_MS_MAX` even if no broker answers.

        The partitions are given back first, by polls. librdkafka's own close would call back for
        what its queue still holds of a rebalance, and an answer after the group was left waits for
        ever, with the interpreter's lock held (seen with 2.16; librdkafka's issues 4041 and 4884).
        Where giving back does not end in time, the client is left as it is: its session ends.
        """
        self._way_back.close()
        if self._watch is not None:
            self._watch.close()
        self._forget(self._owned.copy())
        deadline_s = time.monotonic() + CLOSE_MS_MAX / 1000
        if not self._give_back(deadline_s):
            keep_for_ever(self._client)
            return
        closer = threading.Thread(target=self._client.close, name="kafka-close", daemon=True)
        closer.start()
        closer.join(max(0.0, deadline_s - time.monotonic()))

    def _give_back(self, deadline_s: float) -> bool:
        """Leave the group; return whether that came to its end, with no callback left waiting.

        A rebalance may still wait in the client's queue, and the one of leaving follow it. It is
        there before a question for the assignment is answered: a poll after that meets all.
        """
        with contextlib.suppress(KafkaException, RuntimeError):  # it is in no group any more
            self._client.unsubscribe()
            while time.monotonic() < deadline_s:
                rebalances = self._rebalances
                is_assigned = bool(self._client.assignment())
                message = self._client.poll(0.02 if is_assigned else 0.0)
                if message is None and not is_assigned and self._rebalances == rebalances:
                    return True
        return False

    # --- the group ---

    def _subscribe(self) -> None:
        if self._topics:
            self._client.subscribe(
                self._topics,
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )

    def _join_anew(self) -> None:
        self._way_back.is_told_all()
        self._client.unsubscribe()
        self._subscribe()

    def _new_client(self) -> Client:
        return make_client(Client, self._settings, self._telemetry, self._way_back.hear)

    def _replace_client(self) -> None:
        """Join the group with a new client, the old one being cut off: see `kafka_way_back`."""
        self._log("replaced", "the client is cut off from the brokers: a new one joins the group")
        if gone := self._forget(self._owned.copy()):
            self._events.append(Revoked(tuple(sorted(gone)), lost=True))
        self._way_back.is_found()
        keep_for_ever(self._client)
        try:
            self._client.unsubscribe()  # should it come back after all, it must not join
        except KafkaException as error:
            self._log("replaced", said(error.args[0]))
        self._client = self._new_client()
        self._subscribe()

    def _watched(self, config: Mapping[str, str]) -> TopicWatch | None:
        """Watch for topics where the group's protocol does not tell: see `_found`."""
        pattern, topics = self._pattern, self._topics
        if pattern is not None:
            return TopicWatch(config, lambda names: matching(names, pattern))
        if is_kip_848(config):
            return TopicWatch(config, lambda names: [name for name in topics if name in names])
        return None

    def _found(self, names: list[str]) -> None:
        """Go by what the watch found: subscribe to what matches, or say which topics lack."""
        if self._pattern is None:
            for name in self._topics:
                if name not in names:
                    self._wait_for(_absence(TopicPartition(name, 0), was_ours=False))
            if len(names) == len(self._topics) and self._watch is not None:
                self._watch.close()
                self._watch = None
        elif not names:
            pattern = self._pattern
            self._wait_for(f"waiting for a topic that matches {pattern!r}: there is none yet")
            # Topics that are gone stay subscribed: librdkafka reports them, and gives them up.
        elif names != self._topics:
            self._topics = names
            self._subscribe()

    def _on_assign(self, _client: object, places: list[Place]) -> None:
        """Accept the partitions and pause them. Must not raise: see `_answered`."""
        self._rebalances += 1
        self._way_back.is_found()
        tps = [TopicPartition(place.topic, place.partition) for place in places]
        # Any offset will do, since nothing is read before `start`; without one librdkafka would
        # ask for the group's committed offset and read from there.
        begin = [Place(tp.topic, tp.partition, 0) for tp in tps]
        self._owned.update(tps)
        assign = self._client.incremental_assign if self._is_incremental else self._client.assign
        if self._answered(assign, begin):
            self._pause(tps)
        if tps:
            self._events.append(Assigned(tuple(sorted(tps))))
            self._told.clear()

    def _on_revoke(self, _client: object, places: list[Place]) -> None:
        self._give_up(places, lost=False)

    def _on_lost(self, _client: object, places: list[Place]) -> None:
        self._way_back.is_sought()
        self._give_up(places, lost=True)

    def _give_up(self, places: list[Place], *, lost: bool) -> None:
        self._rebalances += 1
        gone = self._forget({TopicPartition(place.topic, place.partition) for place in places})
        if gone:
            self._events.append(Revoked(tuple(sorted(gone)), lost))
        if self._is_incremental:
            self._answered(self._client.incremental_unassign, places)
        else:
            self._answered(lambda _places: self._client.unassign(), places)

    def _forget(self, tps: set[TopicPartition]) -> set[TopicPartition]:
        """Make these partitions not ours; return those that were."""
        gone = tps & self._owned
        self._owned -= gone
        self._unstarted -= gone
        for tp in gone:
            self._reading.pop(tp, None)
        return gone

    def _answered(self, answer: Callable[[list[Place]], object], places: list[Place]) -> bool:
        """Give librdkafka its answer in a rebalance callback; return whether it took it.

        An exception that leaves a callback would make librdkafka go on at default offsets. Here
        nothing is read then: the partitions are ours but never started, and what arrives of them
        is dropped.
        """
        try:
            answer(places)
        except KafkaException as error:
            self._log("rebalance", said(error.args[0]))
            return False
        return True

    # --- where reading begins ---

    def _seek(self, tp: TopicPartition, offset: int) -> bool:
        """Go on at `offset`, at once; return False if librdkafka has given the partition up.

        librdkafka looks at what it should fetch once a second, and at once where a partition that
        is not paused goes elsewhere (measured with 2.16; tests/real/test_kafka_contract.py holds
        it). It may stand at `offset` already, so it is sent elsewhere first.
        """
        try:
            for step in (offset + 1, offset):
                self._client.seek(Place(tp.topic, tp.partition, step))
        except KafkaException:
            return False  # given up, or not begun: it is assigned anew
        return True

    def _pause(self, tps: Sequence[TopicPartition]) -> None:
        if tps:
            self._client.pause([Place(tp.topic, tp.partition) for tp in tps])

    def _assign_anew(self) -> None:
        """Begin the partitions where a seek failed once more, with their offsets."""
        places = [
            Place(tp.topic, tp.partition, self._reading[tp].offset_next)
            for tp in sorted(self._unstarted)
            if tp in self._reading
        ]
        self._unstarted.clear()
        if not places:
            return
        if self._is_incremental:
            self._answered(self._client.incremental_unassign, places)
            if self._answered(self._client.incremental_assign, places):
                self._client.resume(places)
            return
        # The eager protocol knows only the whole assignment: the others go on where they were.
        at = {tp: reading.offset_next for tp, reading in self._reading.items()}
        everything = [Place(tp.topic, tp.partition, at.get(tp, 0)) for tp in sorted(self._owned)]
        if self._answered(self._client.assign, everything):
            self._pause([tp for tp in self._owned if tp not in at])
            self._client.resume([Place(tp.topic, tp.partition) for tp in at])

    # --- records ---

    def _taken(self, messages: list[Message]) -> tuple[Records, ...]:
        """Return the records among `messages`, by partition; note what else they say."""
        ends: dict[TopicPartition, int] = {}
        unreadable: set[TopicPartition] = set()
        if any(map(Message.error, messages)):
            errors = [message.error() for message in messages]
            for message, error in zip(messages, errors, strict=True):
                if error is not None:
                    self._heard(message, error, ends, unreadable)
            messages = [m for m, error in zip(messages, errors, strict=True) if error is None]
        parts = self._parts(messages)
        taken: list[Records] = []
        for tp in parts.keys() | ends.keys():
            reading = self._reading.get(tp)
            if reading is None or tp in unreadable:
                continue
            records = self._columned(tp, reading, parts.get(tp, []), ends.get(tp, -1))
            if records is not None:
                taken.append(records)
        return tuple(taken)

    def _parts(self, messages: list[Message]) -> dict[TopicPartition, list[Message]]:
        """Return `messages` by partition, in order. Runs of one partition are moved as a whole.

        Without NumPy: it lets go of the interpreter's lock for a comparison of so many numbers, and
        to get it back from a job takes longer than all of this.
        """
        places: Iterable[object] = map(Message.partition, messages)
        if len(self._topics) != 1:
            places = zip(map(Message.topic, messages), places, strict=True)
        parts: dict[TopicPartition, list[Message]] = {}
        first = 0
        for _, run in groupby(places):
            after = first + len(list(run))
            tp = TopicPartition(messages[first].topic(), messages[first].partition())
            parts.setdefault(tp, []).extend(messages[first:after])
            first = after
        return parts

    def _columned(
        self, tp: TopicPartition, reading: _Reading, messages: list[Message], end: int
    ) -> Records | None:
        """Return the columns of `messages`, or None if nothing of `tp` moved."""
        if messages and messages[0].offset() < reading.offset_next:
            # Records from before the last `start` may be dropped. Later on it would mean that
            # newer records came first and a gap was taken for granted: stop before a commit.
            assert reading.is_fresh, (
                f"{tp}: offset {messages[0].offset()} after {reading.offset_next}"
            )
            messages = [m for m in messages if m.offset() >= reading.offset_next]
        offset_next = max(end, messages[-1].offset() + 1 if messages else -1)
        if offset_next <= reading.offset_next:
            return None
        reading.offset_next = offset_next
        reading.is_fresh = False
        reading.tries = 0
        return records_of(tp, messages, offset_next, self._columns)

    # --- what goes wrong ---

    def _heard(
        self,
        message: Message,
        error: KafkaError,
        ends: dict[TopicPartition, int],
        unreadable: set[TopicPartition],
    ) -> None:
        """Note one event that came among the records."""
        code = error.code()
        topic, partition = message.topic(), message.partition()
        if is_refusal(error):
            doing = "reading as a group member" if topic is None else f"reading topic {topic!r}"
            self._refused = self._refused or refusal(doing, error)
            return
        if topic is None or partition is None:
            self._on_error(error)
            return
        tp = TopicPartition(topic, partition)
        reading = self._reading.get(tp)
        if code in _UNKNOWN:
            self._wait_for(_absence(tp, was_ours=tp in self._owned))
        elif reading is None:
            return
        elif code == KafkaError._PARTITION_EOF:
            ends[tp] = message.offset()
        elif code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._offset_is_gone(tp, reading, message.offset())
            unreadable.add(tp)
        else:
            self._read_again(tp, reading, error)
            unreadable.add(tp)

    def _offset_is_gone(self, tp: TopicPartition, reading: _Reading, offset: int) -> None:
        """Report it if it is about where reading goes on; else it is an old answer: ask again.

        librdkafka does not number these errors as it does records, so that one may still come
        after `start` has named another offset.
        """
        if offset in (reading.offset_next, -1):
            del self._reading[tp]
            self._events.append(OffsetGone(tp, reading.offset_next))
        else:
            self._unstarted.add(tp)

    def _read_again(self, tp: TopicPartition, reading: _Reading, error: KafkaError) -> None:
        """Fetch again from where records were returned last: librdkafka would go on behind it."""
        reading.tries += 1
        place = f"{tp}@{reading.offset_next}"
        if reading.tries > UNREADABLE_TRIES_MAX:
            self._refused = self._refused or FatalError(
                f"{place}: cannot be read, tried {reading.tries} times: {said(error)}"
            )
            return
        self._log("read_again", f"{place}: {said(error)}")
        self._unstarted.add(tp)

    def _on_error(self, error: KafkaError) -> None:
        """Note an error that belongs to no partition. Also librdkafka's callback: never raises."""
        code = error.code()
        if is_refusal(error):
            self._refused = self._refused or refusal("reading as a group member", error)
        elif code in (KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE):
            self._wait_for(self._unreachable)

    def _wait_for(self, reason: str) -> None:
        """Tell the reason once, until an assignment (or, of an outage, a record) ends it."""
        if reason not in self._told:
            self._told.add(reason)
            self._events.append(Waiting(reason))

    def _on_commit(self, error: KafkaError | None, _places: list[Place]) -> None:
        if error is not None:
            self._count_failed_commit(error)

    def _count_failed_commit(self, error: KafkaError) -> None:
        self._telemetry.count(GROUP_COMMIT_FAILURES)
        if error.code() not in _REBALANCING:
            self._telemetry.event(GROUP_COMMIT_FAILED, "warning", error=said(error))

    def _log(self, category: str, text: str) -> None:
        self._telemetry.event(
            LIBRARY_LOGGED, "warning", logger="kafka", category=category, error=text
        )


def _absence(tp: TopicPartition, *, was_ours: bool) -> str:
    if was_ours:
        return f"waiting for partition {tp}: it does not exist any more"
    return f"waiting for topic {tp.topic!r}: it does not exist yet"
