"""Where a sink begins to read a topic that its table knows nothing of yet: `source.start`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from msgspec import Struct

from delta_sink.forms import Form, Whole, Wrong
from delta_sink.model import TopicPartition
from delta_sink.references import kind


class StartEarliest(Struct, frozen=True):
    """Begin at the first record that Kafka still has."""


class StartLatest(Struct, frozen=True):
    """Begin at the end, as it was when the start was claimed."""


class StartTimestamp(Struct, frozen=True):
    """Begin at the first record at or after this time, in milliseconds since 1970, UTC."""

    timestamp_ms: int


class StartOffsets(Struct, frozen=True):
    """Begin at these offsets; each partition that is not named begins at its first record."""

    offsets: Mapping[TopicPartition, int]


class StartGroup(Struct, frozen=True):
    """Begin at the offsets that this other consumer group committed."""

    group: str


StartAt = StartEarliest | StartLatest | StartTimestamp | StartOffsets | StartGroup
_START_FORMS = (
    "earliest, latest, {timestamp: 2026-11-01T00:00:00Z}, {offsets: {topic: {partition: offset}}} "
    "or {group: name}"
)


class StartForm(Form):
    """Reads `source.start`."""

    def read(self, value: object) -> StartAt:
        """Return where to start. Raises Wrong at the key that is not right."""
        if value in ("earliest", "latest"):
            return StartEarliest() if value == "earliest" else StartLatest()
        if not isinstance(value, Mapping) or len(value) != 1:
            raise Wrong(f"expected {_START_FORMS}", quiet=not isinstance(value, str))
        [(key, below)] = value.items()
        if key == "timestamp":
            return StartTimestamp(_timestamp_ms(below))
        if key == "offsets":
            return StartOffsets(_start_offsets(below))
        if key == "group":
            if not isinstance(below, str) or not below:
                raise Wrong("expected the name of a consumer group", "group", quiet=True)
            return StartGroup(str(below))
        raise Wrong(f"unknown key; expected {_START_FORMS}", str(key), quiet=True)

    def describe(self) -> dict[str, object]:
        """Return one alternative for each way to start."""
        whole = {"type": "integer", "minimum": 0}
        offsets = {"type": "object", "additionalProperties": whole}
        alternatives: dict[str, dict[str, object]] = {
            "timestamp": {"type": "string", "format": "date-time"},
            "offsets": {"type": "object", "additionalProperties": offsets},
            "group": {"type": "string", "minLength": 1},
        }
        return {
            "anyOf": [
                {"enum": ["earliest", "latest"]},
                *(
                    {
                        "type": "object",
                        "properties": {key: schema},
                        "required": [key],
                        "additionalProperties": False,
                    }
                    for key, schema in alternatives.items()
                ),
            ]
        }


def _timestamp_ms(value: object) -> int:
    """Return the time in milliseconds since 1970; a time without a zone is UTC."""
    wanted = "expected a time like 2026-11-01T00:00:00Z"
    if not isinstance(value, str):
        raise Wrong(f"{wanted}, got {kind(value)}", "timestamp", quiet=True)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise Wrong(f"{wanted}, got {value!r}", "timestamp", quiet=True) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    milliseconds = since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000
    if milliseconds < 0:
        raise Wrong(f"{wanted}, not before 1970, got {value!r}", "timestamp", quiet=True)
    return milliseconds


def _start_offsets(value: object) -> dict[TopicPartition, int]:
    """Return the offsets by partition. Raises Wrong with every entry that is not one."""
    if not isinstance(value, Mapping) or not value:
        raise Wrong("expected {topic: {partition: offset}}", "offsets", quiet=True)
    found: list[tuple[tuple[str, ...], str]] = []
    offsets: dict[TopicPartition, int] = {}
    for topic, partitions in value.items():
        if not isinstance(partitions, Mapping) or not partitions:
            found.append((("offsets", str(topic)), "expected {partition: offset}"))
            continue
        for partition, offset in partitions.items():
            try:
                number = Whole(0, 2**31 - 1).read(partition)
                start = Whole().read(offset)
            except Wrong as wrong:
                below = ("offsets", str(topic), str(partition))
                found.append((below, f"{wrong} for partition and offset"))
                continue
            assert isinstance(number, int), number
            assert isinstance(start, int), start
            offsets[TopicPartition(str(topic), number)] = start
    if found:
        raise Wrong.together(found)
    return offsets
