"""The values that every layer shares: where a record is, which offsets a commit covers.

Offsets are Kafka's. A range is half-open, `[offset_first, offset_next)`; `offset_next` is always
the next offset to read, as Kafka commits it and as `txn.version` stores it. Offsets have gaps
(compaction, aborted transactions, markers): nothing here takes a range's width for a count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec import Struct

Header = tuple[str, bytes | None]
"""One Kafka header; a record's headers keep their order and may repeat a name."""

Run = tuple[int, int]
"""Offsets from the first up to, not including, the second: the run-length form of a set."""


class TopicPartition(Struct, frozen=True, order=True):
    """One Kafka partition, written `orders/3`."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Records(Struct, frozen=True):
    """Consecutive records of one partition, as columns of equal length, in offset order.

    `offset_next` is where reading goes on after them: the consumer's position, taken in the same
    step as the records. It may lie beyond the last offset + 1 (gaps at the tail), and a batch
    without any record may still move it.

    `timestamps_ms`, `keys` and `headers` are empty when the consumer was not asked for them.
    `produced_first_ms` is the first record's timestamp in any case, None where Kafka has none.
    """

    tp: TopicPartition
    offset_next: int
    offsets: Sequence[int]
    values: Sequence[bytes | None]
    timestamps_ms: Sequence[int] = ()
    keys: Sequence[bytes | None] = ()
    headers: Sequence[Sequence[Header]] = ()
    size_bytes: int = 0
    produced_first_ms: int | None = None

    def __len__(self) -> int:
        return len(self.offsets)


class OutgoingRecord(Struct, frozen=True):
    """A record to produce: a dead letter, a control message, an outcome."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()


class OffsetRange(Struct, frozen=True):
    """What became of the offsets `[offset_first, offset_next)` of one partition.

    `records == rows + len(dead letters) + len(skipped)`; `gone` holds offsets that Kafka no
    longer had and that the operator chose to skip: they are no records.
    """

    tp: TopicPartition
    offset_first: int
    offset_next: int
    records: int
    rows: int
    dead_letters: tuple[Run, ...] = ()
    skipped: tuple[Run, ...] = ()
    gone: tuple[Run, ...] = ()

    def __post_init__(self) -> None:
        assert self.offset_first <= self.offset_next, self
        assert self.records == self.rows + runs_count(self.dead_letters) + runs_count(
            self.skipped
        ), self


def runs_of(offsets: Iterable[int]) -> tuple[Run, ...]:
    """Return rising `offsets` as the fewest runs, in order."""
    runs: list[Run] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], offset + 1)
        else:
            assert not runs or offset > runs[-1][1], "offsets must rise"
            runs.append((offset, offset + 1))
    return tuple(runs)


def runs_count(runs: Iterable[Run]) -> int:
    """Return how many offsets the runs hold."""
    return sum(after - first for first, after in runs)


def runs_join(left: tuple[Run, ...], right: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return the runs of `left` followed by those of `right`, which lie wholly after it."""
    if left and right and left[-1][1] == right[0][0]:
        return (*left[:-1], (left[-1][0], right[0][1]), *right[1:])
    return left + right


NAME_PATTERN = re.compile(r"[A-Za-z0-9_.-]+")
_APP_ID = re.compile(
    r"(?P<sink>[A-Za-z0-9_.-]+)/(?P<topic>[A-Za-z0-9_.-]+)(@(?P<id>[A-Za-z0-9_-]+))?/(?P<p>\d+)"
)
VACUUM_APP_ID = "delta-sink/vacuum"
"""The `txn` that carries vacuum's fence: files with a tag at or below it may be gone."""


class AppId(Struct, frozen=True):
    """The name under which the log keeps a partition's `txn`: `sink/topic@topic_id/partition`.

    `topic_id` is None with `source.topic_ids: none`; then the `@…` is left out.
    """

    sink: str
    tp: TopicPartition
    topic_id: str | None

    def __str__(self) -> str:
        topic = self.tp.topic if self.topic_id is None else f"{self.tp.topic}@{self.topic_id}"
        return f"{self.sink}/{topic}/{self.tp.partition}"

    @classmethod
    def parse(cls, text: str) -> AppId | None:
        """Return the parts of an app id that a sink wrote, or None for any other app id."""
        match = _APP_ID.fullmatch(text)
        if match is None:
            return None
        return cls(match["sink"], TopicPartition(match["topic"], int(match["p"])), match["id"])
