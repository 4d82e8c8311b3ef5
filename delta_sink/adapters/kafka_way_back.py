"""The way back into its group for a client of librdkafka that will not find it by itself.

**Cut off.** While its only broker shuts down, librdkafka (seen with 2.16) may let go of it, and of
those of `bootstrap.servers` as well: the answer to a question for the cluster's brokers names none.
Such a client never connects again, and waits for ever for the commit that it had under way. A new
one finds the brokers at once.

A member that waits for others to come along in a rebalance looks the same from outside, and must
be left alone. So the client itself is asked, once brokers are known to answer somebody else.

A member of a KIP-848 group that is cut off is not told that it lost its group, and neither says a
word nor gives up its partitions (seen with 2.16). So such a member is asked whenever nothing has come
through it for a while, which is one question a minute where there is nothing to read.

**Misled.** In a KIP-848 group the coordinator tells a member what to give up or to take in the
answer to one heartbeat. A member to which such an answer did not come must send a full request,
upon which it is told once more (KIP-848, "Heartbeat process"); librdkafka does so where the
connection broke, but not (2.16) where the answer was waited for in vain. What it should give up it
keeps then until `max.poll.interval.ms` is over, and what it should take nobody reads: its later
heartbeats are answered as if nothing were wrong. Only its log says so. Whoever joins is told all.
It must not join anew before heartbeats are answered again: until then it may read what it has.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Final

from confluent_kafka import Consumer, KafkaException

from delta_sink.adapters.kafka_settings import is_kip_848
from delta_sink.adapters.kafka_topics import TopicWatch

LOST_S_MAX: Final = 10.0
"""How long a member that lost its group is left to itself before it is looked at."""

SILENCE_S_MAX: Final = 60.0
"""How long nothing may come through a member of a KIP-848 group before it is looked at."""

ANSWER_LOST: Final = "a heartbeat was not answered in time: what the answer told is unknown"

_LOST_HEARTBEAT: Final = re.compile(r"Timed out ConsumerGroupHeartbeatRequest .*after (\d+)ms")

ANSWER_S_MAX: Final = 5.0
"""How long the client may take to answer, once brokers answer others."""

GLANCE_S_MAX: Final = 0.2
"""How long it may take at first, when all may be well or no broker there."""


class WayBack:
    """What is known of a client's way back. Only the thread that polls the client may call it."""

    def __init__(self, config: Mapping[str, str]) -> None:
        """Take the user's keys for librdkafka; nothing is asked yet."""
        self._config = config
        self._look_at_s: float | None = None
        self._watch: TopicWatch | None = None
        self._answered_s: float | None = None
        self.is_heard()

    def hear(self, line: str) -> None:
        """Note what a line of the client's log says of its heartbeats."""
        if lost := _LOST_HEARTBEAT.search(line):
            # The next one would be missed by then, were it lost as well.
            self._answered_s = time.monotonic() + 2 * int(lost[1]) / 1000

    def is_misled(self) -> bool:
        """Return whether the answer to a heartbeat was lost, once later ones are answered."""
        return self._answered_s is not None and time.monotonic() >= self._answered_s

    def is_told_all(self) -> None:
        """Note that the client joins anew: what was lost is told again."""
        self._answered_s = None

    def is_sought(self) -> None:
        """Note that the group was lost; the client joins anew by itself."""
        self.is_told_all()
        look_at_s = time.monotonic() + LOST_S_MAX
        self._look_at_s = min(look_at_s, self._look_at_s or look_at_s)

    def is_found(self) -> None:
        """Note that the client has joined a group."""
        self._look_at_s = None
        self._end_watch()
        self.is_heard()

    def is_heard(self) -> None:
        """Note that something came through the client, which is therefore not cut off."""
        if is_kip_848(self._config):
            self._look_at_s = time.monotonic() + SILENCE_S_MAX
            self._end_watch()

    def is_blocked(self, client: Consumer) -> bool:
        """Return whether brokers answer others, but not `client`: it will never join again.

        Returns at once, but for `GLANCE_S_MAX` when it begins to look, and `ANSWER_S_MAX` when
        brokers have begun to answer others.
        """
        if self._look_at_s is None or time.monotonic() < self._look_at_s:
            return False
        if self._watch is None:
            if self._answers(client, GLANCE_S_MAX):
                return False
            self._watch = TopicWatch(self._config, sorted)
        if self._watch.names() is None:
            return False
        self._end_watch()
        return not self._answers(client, ANSWER_S_MAX)

    def _answers(self, client: Consumer, s_max: float) -> bool:
        """Return whether `client` reaches a broker; it is looked at again if all stays as it is."""
        try:
            client.list_topics(timeout=s_max)
        except KafkaException:
            return False
        self._look_at_s = time.monotonic() + LOST_S_MAX
        self.is_heard()
        return True

    def close(self) -> None:
        """Ask no more."""
        self._end_watch()

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None
