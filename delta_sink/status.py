"""How a worker stands: what it says of itself, what it can reach, and whether that is well.

The state thread makes a `WorkerStatus` about once a second and hands it out whole; nobody changes
one. Whoever answers probes and scrapes reads the newest, so that a question never waits for the
worker and the worker never for a question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct

from delta_sink import telemetry as declared
from delta_sink.model import TopicPartition

State = Literal["starting", "standing_by", "working", "stopping"]
STATES: Final[tuple[State, ...]] = ("starting", "standing_by", "working", "stopping")

SILENCE_MAX_MS: Final = 60_000
"""A loop that said nothing for so long does not move: no step of it takes a tenth of that."""

NEEDED: Final = ("broker", "store")
"""A worker is not ready without these; without locks it works on."""

Gauge = tuple[str, float, dict[str, str]]
"""A metric's name, its value, its labels."""


class PartitionStatus(Struct, frozen=True):
    """One assigned partition. `offset_committed` is None until the log was asked.

    `oldest_ms` is the Kafka timestamp of the oldest record that is held and not committed.
    """

    tp: TopicPartition
    offset_committed: int | None
    offset_next: int
    oldest_ms: int | None
    halted: str | None


class WorkerStatus(Struct, frozen=True):
    """What a worker says of itself. `at_ms` is on the elapsed clock, the others are wall clocks."""

    worker: str
    role: str
    state: State
    at_ms: int
    since_ms: int
    table: str
    table_version: int | None = None
    partitions: tuple[PartitionStatus, ...] = ()
    buffered_bytes: int = 0
    buffer_age_ms: int = 0
    last_commit_ms: int | None = None


class Reach(Struct, frozen=True):
    """Whether a dependency answers; `is_up` is None until it was asked for the first time."""

    is_up: bool | None = None
    sentence: str = "not asked yet"
    since_ms: int | None = None


class Lag(Struct, frozen=True):
    """How far a partition's table is behind its topic; None where that is not known."""

    records: int | None
    ms: int | None


class Verdict(Struct, frozen=True):
    """The answer to a probe: yes or no, and why in words."""

    ok: bool
    sentence: str


class Ends:
    """Where partitions ended when the brokers were last asked, and when each was last caught up.

    Only the thread that asks the brokers changes it; what others read is replaced whole.
    """

    def __init__(self) -> None:
        self._ends: Mapping[TopicPartition, int] = {}
        self._caught_up_ms: Mapping[TopicPartition, int] = {}

    def seen(
        self, ends: Mapping[TopicPartition, int], status: WorkerStatus, *, wall_ms: int
    ) -> None:
        """Take what the brokers said just now."""
        caught_up = {
            p.tp: wall_ms
            for p in status.partitions
            if p.offset_committed is not None and p.offset_committed >= ends.get(p.tp, 1 << 62)
        }
        kept = {tp: at_ms for tp, at_ms in self._caught_up_ms.items() if tp in ends}
        self._caught_up_ms = {**kept, **caught_up}
        self._ends = dict(ends)

    def lag(self, part: PartitionStatus, *, wall_ms: int) -> Lag:
        """Return how far the table is behind `part`.

        In time it is the age of the oldest record held; where none is held and something is
        missing, the time since nothing was missing.
        """
        end = self._ends.get(part.tp)
        if end is None or part.offset_committed is None:
            return Lag(None, None)
        if part.offset_committed >= end:
            return Lag(0, 0)
        since_ms = self._caught_up_ms.get(part.tp) if part.oldest_ms is None else part.oldest_ms
        age_ms = None if since_ms is None else max(0, wall_ms - since_ms)
        return Lag(end - part.offset_committed, age_ms)


def liveness(status: WorkerStatus | None, *, now_ms: int) -> Verdict:
    """Return whether the worker's loop moves; before it runs, that the process answers is enough."""
    if status is None:
        return Verdict(ok=True, sentence="starting")
    silent_ms = now_ms - status.at_ms
    if silent_ms > SILENCE_MAX_MS and status.state != "stopping":
        return Verdict(ok=False, sentence=f"the loop has not moved for {silent_ms // 1000} s")
    return Verdict(ok=True, sentence="the loop moves")


def readiness(status: WorkerStatus | None, reaches: Mapping[str, Reach]) -> Verdict:
    """Return whether the worker can do its work, and otherwise what it lacks."""
    lacking = [
        f"the {name} cannot be reached: {reaches[name].sentence}"
        for name in NEEDED
        if name in reaches and not reaches[name].is_up
    ]
    if status is None or status.state == "starting":
        lacking.insert(0, "the worker is starting")
    elif status.state == "stopping":
        lacking.insert(0, "the worker is stopping")
    lacking += [] if status is None else [p.halted for p in status.partitions if p.halted]
    if lacking:
        return Verdict(ok=False, sentence="; ".join(lacking))
    assert status is not None
    sentence = f"ready, {_doing(status)}"
    locks = reaches.get("locks")
    if locks is not None and locks.is_up is False:
        sentence += f"; degraded, working without locks: {locks.sentence}"
    return Verdict(ok=True, sentence=sentence)


def _doing(status: WorkerStatus) -> str:
    count = len(status.partitions)
    if status.state == "standing_by":
        return "standing by without partitions"
    return f"working on {count} {'partition' if count == 1 else 'partitions'}"


def gauges(
    status: WorkerStatus | None, reaches: Mapping[str, Reach], ends: Ends, *, wall_ms: int
) -> Iterator[Gauge]:
    """Yield what is true at the moment of a scrape; what it is not known of is left out."""
    standing = "starting" if status is None else status.state
    for state in STATES:
        yield declared.WORKER_STATE, float(state == standing), {"state": state}
    for name, reach in reaches.items():
        if reach.is_up is not None:
            yield declared.DEPENDENCY_UP, float(reach.is_up), {"dependency": name}
    if status is None:
        return
    yield declared.ASSIGNED_PARTITIONS, len(status.partitions), {}
    yield declared.BUFFERED_BYTES, status.buffered_bytes, {}
    yield declared.BUFFER_AGE, status.buffer_age_ms / 1000, {}
    if status.last_commit_ms is not None:
        yield declared.LAST_COMMIT_TIMESTAMP, status.last_commit_ms / 1000, {}
    for part in status.partitions:
        lag = ends.lag(part, wall_ms=wall_ms)
        labels = {"topic": part.tp.topic, "partition": str(part.tp.partition)}
        if lag.records is not None:
            yield declared.LAG_RECORDS, lag.records, labels
        if lag.ms is not None:
            yield declared.LAG_SECONDS, lag.ms / 1000, labels


def status_json(
    status: WorkerStatus | None, reaches: Mapping[str, Reach], ends: Ends, *, wall_ms: int
) -> dict[str, object]:
    """Return the document of `/status`, without the sink's name."""
    verdict = readiness(status, reaches)
    found: dict[str, object] = {
        "state": "starting" if status is None else status.state,
        "ready": verdict.ok,
        "sentence": verdict.sentence,
        "dependencies": {
            name: {"up": reach.is_up, "sentence": reach.sentence, "since_ms": reach.since_ms}
            for name, reach in reaches.items()
        },
    }
    if status is None:
        return found
    return found | {
        "worker": status.worker,
        "role": status.role,
        "since_ms": status.since_ms,
        "table": {"uri": status.table, "version": status.table_version},
        "buffered_bytes": status.buffered_bytes,
        "buffer_age_ms": status.buffer_age_ms,
        "last_commit_ms": status.last_commit_ms,
        "partitions": _partitions_json(status.partitions, ends, wall_ms),
    }


def _partitions_json(
    partitions: Sequence[PartitionStatus], ends: Ends, wall_ms: int
) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for part in partitions:
        lag = ends.lag(part, wall_ms=wall_ms)
        found.append(
            {
                "topic": part.tp.topic,
                "partition": part.tp.partition,
                "offset_committed": part.offset_committed,
                "offset_next": part.offset_next,
                "lag_records": lag.records,
                "lag_ms": lag.ms,
                "halted": part.halted,
            }
        )
    return found
