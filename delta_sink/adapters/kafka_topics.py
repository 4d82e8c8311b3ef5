"""Which topics match a pattern, now and later.

librdkafka can subscribe to a pattern, but by the regular expressions of the C library (which has
no `\\d`), or, with KIP-848, by those of the broker. The start of every partition is claimed for
the topics that `re` finds, so the consumer must find the same ones.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from delta_sink.adapters.kafka_client import GROUP_KEYS, make_client

LOOK_EVERY_MS: Final = 5_000
"""How long a new topic that matches may stay unseen."""

_LOOK_AGAIN_MS: Final = 500
_ANSWER_MS_MAX: Final = 3_000


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """Return the names that match `pattern` as a whole, sorted; Kafka's own topics never do."""
    matches = re.compile(pattern).fullmatch
    return sorted(name for name in names if not name.startswith("__") and matches(name))


class TopicWatch:
    """Asks the brokers again and again which of the topics there are that somebody wants."""

    def __init__(
        self, config: Mapping[str, str], wanted: Callable[[Collection[str]], list[str]]
    ) -> None:
        """Begin to ask, in a thread of its own, with the user's keys for librdkafka.

        Through a client of its own, too: asked through the consumer that another thread polls,
        confluent-kafka 2.16 does not return from the second question.

        Args:
            config: librdkafka's keys as the user wrote them.
            wanted: picks from the names of all topics those to report.
        """
        self._wanted = wanted
        self._settings = {"client.id": "delta-sink", **config}
        for key in GROUP_KEYS:
            self._settings.pop(key, None)
        self._client = self._made()
        self._names: list[str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kafka-topics", daemon=True)
        self._thread.start()

    def _made(self) -> AdminClient:
        return make_client(AdminClient, self._settings, None)

    def names(self) -> list[str] | None:
        """Return the wanted topics that exist by the last answer; None before the first."""
        return self._names

    def close(self) -> None:
        """Ask no more. Returns at once; the thread ends when its request is answered."""
        self._ended.set()

    def _run(self) -> None:
        wait_ms = 0
        while not self._ended.wait(wait_ms / 1000):
            wait_ms = _LOOK_AGAIN_MS
            try:
                answer = self._client.list_topics(timeout=_ANSWER_MS_MAX / 1000)
            except KafkaException:
                # The consumer itself says when no broker answers. The client may be cut off for
                # good: see `kafka_way_back`.
                self._client = self._made()
                continue
            finally:
                self._client.poll(0)  # librdkafka's log lines, which would pile up
            known = {name for name, topic in answer.topics.items() if topic.error is None}
            self._names = self._wanted(known)
            if self._names:
                wait_ms = LOOK_EVERY_MS
