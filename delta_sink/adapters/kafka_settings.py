"""librdkafka's settings for a consumer: what is ours, what is the user's, what is default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MIB: Final = 1 << 20
_TOO_QUIET: Final = frozenset("01234")


def consumer_settings(
    user: Mapping[str, str], *, group: str, queue_bytes_max: int
) -> dict[str, Any]:
    """Return librdkafka's settings: our defaults, the user's over them, and over those our own.

    The last are what exactly-once rests on: nobody but `start` decides where reading begins,
    aborted records are never read, and the end of a partition is told.
    """
    defaults: dict[str, Any] = {
        "client.id": "delta-sink",
        # A full queue stops fetching for this long; the default of a second costs most of the
        # throughput of small records.
        "fetch.queue.backoff.ms": 10,
        "queued.max.messages.kbytes": max(1024, queue_bytes_max // 1024),
        # Each queued record costs some 300 bytes beside its own, which the limit above does not
        # count.
        "queued.min.messages": min(100_000, max(1_000, queue_bytes_max // 512)),
        "fetch.max.bytes": min(50 * _MIB, max(_MIB, queue_bytes_max // 2)),
        # A new start waits until the fetch before it is answered.
        "fetch.wait.max.ms": 100,
        "topic.metadata.refresh.interval.ms": 5_000,
        "reconnect.backoff.max.ms": 2_000,
        "socket.keepalive.enable": True,
        "check.crcs": True,
        "statistics.interval.ms": 0,
    }
    ours: dict[str, Any] = {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "allow.auto.create.topics": False,
    }
    if not is_kip_848(user):
        defaults["partition.assignment.strategy"] = "cooperative-sticky"
    elif user.get("log_level") in _TOO_QUIET:
        ours["log_level"] = "5"  # its log alone tells of an answer that was lost: `kafka_way_back`
    return {**defaults, **user, **ours}


def is_kip_848(user: Mapping[str, str]) -> bool:
    """Return whether the brokers, not the members, share the partitions out (KIP-848)."""
    return user.get("group.protocol", "classic").lower() == "consumer"


def is_incremental(user: Mapping[str, str]) -> bool:
    """Return whether the group's rebalances are told as differences."""
    if is_kip_848(user):
        return True
    return "cooperative" in user.get("partition.assignment.strategy", "cooperative-sticky")
