"""A plain reader of offset ranges, for the audit: what does Kafka serve between two offsets?

It joins no group and commits nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, Final

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, Message
from confluent_kafka import TopicPartition as Place
from msgspec import Struct

from delta_sink.adapters.kafka_client import GROUP_KEYS, is_refusal, make_client, refusal
from delta_sink.errors import BrokerUnavailable
from delta_sink.model import TopicPartition
from delta_sink.ports import Telemetry

SILENCE_MS_MAX: Final = 30_000
"""How long the brokers may send nothing, neither a record nor an end, before reading fails."""

_BATCH_RECORDS_MAX: Final = 2_000
_POLL_S: Final = 0.25


class Served(Struct, frozen=True):
    """Consecutive records that Kafka serves: rising offsets, and their values if asked for."""

    tp: TopicPartition
    offsets: list[int]
    values: list[bytes | None]


def read_offsets(
    config: Mapping[str, str],
    ranges: Mapping[TopicPartition, tuple[int, int]],
    *,
    with_values: bool = False,
    queue_bytes_max: int = 16 << 20,
    silence_ms_max: int = SILENCE_MS_MAX,
    telemetry: Telemetry | None = None,
) -> Iterator[Served]:
    """Yield what a reader of committed records gets of each `[first, next)`, in offset order.

    The batches of different partitions are mixed. A partition ends at its `next`, or where it
    has no more records. Where its first records are gone, what is left of the range is yielded:
    compare with `Broker.offsets(…, "earliest")`. At most `queue_bytes_max` and one fetch are
    held at a time.

    Raises:
        BrokerUnavailable: nothing came for `silence_ms_max`; what was yielded so far is right.
        FatalError: the credentials or a topic are refused.
    """
    wanted = {tp: span for tp, span in ranges.items() if span[0] < span[1]}
    if not wanted:
        return
    refused: list[KafkaError] = []
    settings = _settings(config, queue_bytes_max) | {
        "error_cb": lambda error: refused.append(error) if is_refusal(error) else None
    }
    client: Any = make_client(Client, settings, telemetry)
    try:
        client.assign([Place(tp.topic, tp.partition, span[0]) for tp, span in wanted.items()])
        yield from _read(client, wanted, refused, with_values, silence_ms_max)
    finally:
        client.close()


def _read(
    client: Client,
    wanted: dict[TopicPartition, tuple[int, int]],
    refused: list[KafkaError],
    with_values: bool,
    silence_ms_max: int,
) -> Iterator[Served]:
    silent_since = time.monotonic()
    while wanted:
        # Asked for many, librdkafka waits for as many or for the whole time.
        messages: list[Message] = client.consume(1, _POLL_S)
        messages += client.consume(_BATCH_RECORDS_MAX, 0.0)
        if refused:
            raise refusal("reading back", refused[0])
        heard = False
        for (topic, partition), run in groupby(messages, lambda m: (m.topic(), m.partition())):
            heard = True
            tp = TopicPartition(topic, partition)
            records, is_over = _within(tp, list(run), wanted)
            if records:
                values = [m.value() for m in records] if with_values else []
                yield Served(tp, [m.offset() for m in records], values)
            if is_over:
                del wanted[tp]
                client.pause([Place(topic, partition)])
        now = time.monotonic()
        if heard:
            silent_since = now
        elif (now - silent_since) * 1000 > silence_ms_max:
            waiting = ", ".join(str(tp) for tp in sorted(wanted)[:3])
            raise BrokerUnavailable(f"kafka: reading back {waiting}: no answer")


def _within(
    tp: TopicPartition, run: list[Message], wanted: dict[TopicPartition, tuple[int, int]]
) -> tuple[list[Message], bool]:
    """Return the records of `run` that are in the range, and whether the range is over."""
    if tp not in wanted:
        return [], False
    first, after = wanted[tp]
    errors = [m.error() for m in run if m.error() is not None]
    for error in errors:
        if error.code() == KafkaError._PARTITION_EOF:
            continue
        if is_refusal(error):
            raise refusal(f"reading back {tp}", error)
        raise BrokerUnavailable(f"kafka: reading back {tp}: {error.str()}")
    records = [m for m in run if m.error() is None]
    is_over = bool(errors) or bool(records and records[-1].offset() >= after - 1)
    return [m for m in records if first <= m.offset() < after], is_over


def _settings(user: Mapping[str, str], queue_bytes_max: int) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "client.id": "delta-sink-audit",
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": max(1024, queue_bytes_max // 1024),
        "fetch.wait.max.ms": 100,
    }
    theirs = {key: value for key, value in user.items() if key not in GROUP_KEYS}
    ours: dict[str, Any] = {
        "group.id": "delta-sink-audit",  # librdkafka insists on one; it is never joined
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
    }
    return {**defaults, **theirs, **ours}
