"""Questions to the brokers, and records to them: `ports.Broker` and `ports.Producer`.

Both may be used from several threads. Neither retries: every call has one bounded time, after
which the caller hears BrokerUnavailable and decides.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
)
from confluent_kafka import Producer as Client
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient, OffsetSpec

from delta_sink.adapters.kafka_client import GROUP_KEYS, is_refusal, make_client, refusal, said
from delta_sink.adapters.kafka_topics import matching
from delta_sink.errors import BrokerUnavailable, FatalError
from delta_sink.model import OutgoingRecord, TopicPartition
from delta_sink.ports import At, Telemetry, Topic

T = TypeVar("T")

ANSWER_MS_MAX: Final = 10_000
"""How long one question waits for its answer."""

SEND_MS_MAX: Final = 10_000
"""How long a record may take to be acknowledged, unless the user says `message.timeout.ms`."""

_VERDICT_MS: Final = 2_000
"""librdkafka looks for records that are out of time once a second; their verdict may be later."""

_NO_SUCH_TOPIC: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
_NEVER_ACCEPTED: Final = _NO_SUCH_TOPIC | {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.POLICY_VIOLATION,
    KafkaError.INVALID_RECORD,
}


class KafkaBroker:
    """`ports.Broker`: what topics and offsets there are, as the brokers say it now."""

    def __init__(
        self,
        config: Mapping[str, str],
        topic_ids: bool,
        *,
        telemetry: Telemetry | None = None,
        answer_ms_max: int = ANSWER_MS_MAX,
    ) -> None:
        """Make a client; the brokers are first asked by a method.

        Args:
            config: librdkafka's keys as the user wrote them.
            topic_ids: whether `topics` asks for ids. The embedded broker and Kafka before 2.8
                have none.
            telemetry: for librdkafka's log lines.
            answer_ms_max: how long each method waits.

        Raises:
            ConfigError: librdkafka refuses a key or a value.
        """
        self._topic_ids = topic_ids
        self._answer_s = answer_ms_max / 1000
        self._errors: list[KafkaError] = []
        self._telemetry = telemetry
        self._settings: dict[str, Any] = {
            "client.id": "delta-sink",
            **{key: value for key, value in config.items() if key not in GROUP_KEYS},
            "error_cb": self._errors.append,
        }
        self._client: Any = self._made()

    def _made(self) -> AdminClient:
        return make_client(AdminClient, self._settings, self._telemetry)

    def topics(self, names: Sequence[str], pattern: str | None) -> list[Topic]:
        """Return the topics of these names, or whose whole name matches, that exist; by name.

        `pattern` is a Python regular expression; Kafka's internal topics never match.
        """
        if self._topic_ids and pattern is None:
            return self._described(sorted(set(names)))
        answer = self._asked(
            "listing topics", lambda: self._client.list_topics(timeout=self._answer_s)
        )
        known = {name: topic for name, topic in answer.topics.items() if self._exists(topic.error)}
        found = sorted(set(names) & known.keys()) if pattern is None else matching(known, pattern)
        if self._topic_ids:
            return self._described(found)
        return [Topic(name, len(known[name].partitions), None) for name in found]

    def offsets(self, partitions: Sequence[TopicPartition], at: At) -> dict[TopicPartition, int]:
        """Return an offset for each partition. A time after the last record gives the end."""
        if not partitions:
            return {}
        found = self._offsets(partitions, _spec(at))
        after_all = [tp for tp, offset in found.items() if offset < 0]
        if after_all:
            found |= self._offsets(after_all, OffsetSpec.latest())
        return found

    def group_offsets(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return the offsets that another group committed; a partition without one is absent."""
        if not partitions:
            return {}
        # The admin client's own question (`list_consumer_group_offsets`, librdkafka 2.16) ends the
        # process with a failed assertion when brokers come back after it went unanswered. A
        # consumer that never joins asks the same.
        doing = f"offsets of group {group!r}"
        settings = self._settings | {"group.id": group, "enable.auto.commit": False}
        client: Any = make_client(Consumer, settings, self._telemetry)
        try:
            places = self._asked(
                doing,
                lambda: client.committed([_place(tp) for tp in partitions], timeout=self._answer_s),
            )
        finally:
            client.close()
        for place in places:
            if place.error is not None and place.error.code() not in _NO_SUCH_TOPIC:
                raise self._unanswered(doing, place.error)
        return {
            TopicPartition(place.topic, place.partition): place.offset
            for place in places
            if place.error is None and place.offset >= 0
        }

    def _offsets(
        self, partitions: Sequence[TopicPartition], spec: OffsetSpec
    ) -> dict[TopicPartition, int]:
        doing = f"offsets of {partitions[0]} and {len(partitions) - 1} more"
        futures = self._asked(
            doing,
            lambda: self._client.list_offsets(
                {_place(tp): spec for tp in partitions},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=self._answer_s,
            ),
        )
        found: dict[TopicPartition, int] = {}
        for place, future in futures.items():
            tp = TopicPartition(place.topic, place.partition)
            found[tp] = self._asked(f"offsets of {tp}", future.result).offset
        return found

    def _described(self, names: list[str]) -> list[Topic]:
        if not names:
            return []
        futures = self._asked(
            "describing topics",
            lambda: self._client.describe_topics(
                TopicCollection(names), request_timeout=self._answer_s
            ),
        )
        topics: list[Topic] = []
        for name in names:
            try:
                answer = futures[name].result()
            except KafkaException as error:
                if error.args[0].code() in _NO_SUCH_TOPIC:
                    continue
                raise self._unanswered(f"describing topic {name!r}", error.args[0]) from error
            topic_id = _url_safe(str(answer.topic_id))
            topics.append(Topic(name, len(answer.partitions), topic_id))
        return topics

    def _exists(self, error: KafkaError | None) -> bool:
        if error is None:
            return True
        if error.code() in _NO_SUCH_TOPIC:
            return False
        raise self._unanswered("listing topics", error)

    def _asked(self, doing: str, ask: Callable[[], T]) -> T:
        self._errors.clear()
        try:
            return ask()
        except KafkaException as error:
            raise self._unanswered(doing, error.args[0]) from error
        finally:
            self._client.poll(0)  # hands out librdkafka's log lines, which would pile up

    def _unanswered(self, doing: str, error: KafkaError) -> Exception:
        """Return the error to raise. A wrong password shows as a time-out and an event beside."""
        self._client.poll(0)
        for told in (error, *self._errors):
            if is_refusal(told):
                return refusal(doing, told)
        self._client = self._made()  # it may be cut off for good: see `kafka_way_back`
        return BrokerUnavailable(f"kafka: {doing}: no answer: {said(error)}")


class KafkaProducer:
    """`ports.Producer`: returns when all replicas in sync have every record, or says that not."""

    def __init__(self, config: Mapping[str, str], *, telemetry: Telemetry | None = None) -> None:
        """Make a client; the brokers are first asked by `send`.

        Args:
            config: librdkafka's keys as the user wrote them; `acks` and idempotence are ours.
            telemetry: for librdkafka's log lines.

        Raises:
            ConfigError: librdkafka refuses a key or a value.
        """
        self._errors: list[KafkaError] = []
        self._telemetry = telemetry
        self._settings: dict[str, Any] = {
            "client.id": "delta-sink",
            "linger.ms": 5,
            "message.timeout.ms": SEND_MS_MAX,
            # What a topic takes is the topic's to say; here nothing is refused before it.
            "message.max.bytes": 64 << 20,
            **config,
            "acks": "all",
            "enable.idempotence": True,
            "error_cb": self._errors.append,
        }
        self._send_ms_max = int(self._settings["message.timeout.ms"])
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._client = self._made()

    def send(self, topic: str, records: Sequence[OutgoingRecord]) -> None:
        """Return once every record is acknowledged by all replicas in sync.

        One call at a time: a second one waits for the first.

        Raises:
            BrokerUnavailable: not all were acknowledged in time. Some may have landed.
            FatalError: the topic does not exist, is not ours to write, or a record is too large.
        """
        with self._lock:
            self._errors.clear()
            self._require(topic)
            failures: Counter[int] = Counter()
            examples: dict[int, KafkaError] = {}

            def delivered(error: KafkaError | None, _message: Message) -> None:
                if error is not None:
                    failures[error.code()] += 1
                    examples[error.code()] = error

            deadline = time.monotonic() + (self._send_ms_max + _VERDICT_MS) / 1000
            self._produce(topic, records, delivered, deadline)
            if self._client.flush(max(0.0, deadline - time.monotonic())):
                self._client.purge()
                self._client.flush(_VERDICT_MS / 1000)
                failures[KafkaError._TIMED_OUT] += 1
                examples.setdefault(KafkaError._TIMED_OUT, KafkaError(KafkaError._TIMED_OUT))
            if failures:
                raise self._failed(topic, len(records), failures, examples)

    def close(self) -> None:
        """Forget what is not sent and free the client's threads."""
        with self._lock:
            self._client.purge()
            self._client.flush(_VERDICT_MS / 1000)

    def _made(self) -> Client:
        return make_client(Client, self._settings, self._telemetry)

    def _require(self, topic: str) -> None:
        """Raise unless the topic exists: produced to, it might come to be with defaults."""
        if topic in self._known:
            return
        doing = f"looking for topic {topic!r}"
        try:
            answer = self._client.list_topics(timeout=self._send_ms_max / 1000)
        except KafkaException as error:
            unavailable = self._unavailable(doing, error.args[0])
            self._client = self._made()  # it may be cut off for good: see `kafka_way_back`
            raise unavailable from error
        found = answer.topics.get(topic)
        if found is None or (found.error is not None and found.error.code() in _NO_SUCH_TOPIC):
            raise FatalError(f"kafka: topic {topic!r} does not exist: create it, then start again")
        if found.error is not None:
            raise self._unavailable(doing, found.error)
        self._known.add(topic)

    def _produce(
        self,
        topic: str,
        records: Sequence[OutgoingRecord],
        delivered: Callable[[KafkaError | None, Message], None],
        deadline: float,
    ) -> None:
        """Hand all records to librdkafka, or report those that do not fit any more as failed."""
        for record in records:
            while True:
                try:
                    self._client.produce(
                        topic,
                        record.value,
                        record.key,
                        headers=list(record.headers) or None,
                        on_delivery=delivered,
                    )
                    break
                except BufferError:
                    if time.monotonic() >= deadline:
                        error = KafkaError(KafkaError._QUEUE_FULL)
                        delivered(error, None)
                        return
                    self._client.poll(0.1)
                except KafkaException as error:
                    delivered(error.args[0], None)
                    break

    def _failed(
        self, topic: str, total: int, failures: Counter[int], examples: dict[int, KafkaError]
    ) -> Exception:
        count = min(total, failures.total())
        doing = f"{count} of {total} records for topic {topic!r}"
        self._known.discard(topic)
        for code, error in examples.items():
            if code in _NEVER_ACCEPTED:
                return FatalError(f"kafka: {doing} were refused: {said(error)}")
            if error.fatal():
                # An idempotent client that lost count is good for nothing; the next send has
                # a new one, and what landed may land again.
                self._client = self._made()
                return BrokerUnavailable(f"kafka: {doing} were not acknowledged: {said(error)}")
        worst = max(failures, key=lambda code: failures[code])
        return self._unavailable(doing, examples[worst])

    def _unavailable(self, doing: str, error: KafkaError) -> Exception:
        self._client.poll(0)
        for told in (error, *self._errors):
            if is_refusal(told):
                return refusal(doing, told)
        return BrokerUnavailable(f"kafka: {doing}: not acknowledged in time: {said(error)}")


def _spec(at: At) -> OffsetSpec:
    if at == "earliest":
        return OffsetSpec.earliest()
    if at == "latest":
        return OffsetSpec.latest()
    return OffsetSpec.for_timestamp(at)


def _place(tp: TopicPartition) -> Place:
    return Place(tp.topic, tp.partition)


def _url_safe(topic_id: str) -> str:
    """Return the id as Kafka's own tools write it; librdkafka writes plain base64."""
    return topic_id.replace("+", "-").replace("/", "_").rstrip("=")
