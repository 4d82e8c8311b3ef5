"""librdkafka's messages as columns.

One call for a column, not one for a record: `list(map(Message.value, messages))` runs in C. What a
sink does not write is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import numpy as np
from confluent_kafka import Message
from msgspec import Struct

from delta_sink.decode.packed import PackedValues
from delta_sink.model import Header, Records, TopicPartition


class ConsumerColumns(Struct, frozen=True):
    """Which columns of `Records` are filled beside offsets and values: each costs time."""

    timestamps: bool = False
    keys: bool = False
    headers: bool = False


def records_of(
    tp: TopicPartition, messages: Sequence[Message], offset_next: int, columns: ConsumerColumns
) -> Records:
    """Return the columns of messages of one partition, whose offsets rise.

    Args:
        tp: the partition.
        messages: without errors; none where only `offset_next` moved.
        offset_next: where reading goes on, behind all of them.
        columns: what is filled; what is not stays empty.
    """
    offsets = _offsets(messages)
    assert not offsets or offsets[-1] - offsets[0] >= len(offsets) - 1, f"{tp}: out of order"
    keys = [m.key() for m in messages] if columns.keys else []
    headers = [m.headers() or () for m in messages] if columns.headers else []
    values = PackedValues.of(list(map(Message.value, messages)))
    return Records(
        tp=tp,
        offset_next=offset_next,
        offsets=offsets,
        values=values,
        timestamps_ms=_timestamps(messages) if columns.timestamps else (),
        keys=keys,
        headers=headers,
        size_bytes=values.size_bytes + _size_bytes(keys, headers),
        produced_first_ms=_produced_ms(messages[0]) if messages else None,
    )


def _offsets(messages: Sequence[Message]) -> Sequence[int]:
    """Return the offsets of `messages`, which rise.

    Without gaps, as almost always, the first and the last say it all: between them there are as
    many numbers as records.
    """
    if not messages:
        return ()
    first, last = messages[0].offset(), messages[-1].offset()
    if last - first == len(messages) - 1:
        return range(first, last + 1)
    return list(map(Message.offset, messages))


def _timestamps(messages: Sequence[Message]) -> Sequence[int]:
    """Return the timestamps of `messages`; a view of numbers, where a list would hold objects."""
    pairs = map(Message.timestamp, messages)
    return np.fromiter(map(itemgetter(1), pairs), np.int64, len(messages)).data


def _produced_ms(message: Message) -> int | None:
    """Return the timestamp of `message`, or None where Kafka has none."""
    _, at_ms = message.timestamp()
    return at_ms if at_ms >= 0 else None


def _size_bytes(keys: Sequence[bytes | None], headers: Sequence[Sequence[Header]]) -> int:
    size_bytes = sum([len(key) for key in keys if key])
    for names in headers:
        for name, value in names:
            size_bytes += len(name) + len(value or b"")
    return size_bytes
