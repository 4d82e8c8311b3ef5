"""How a whole sink stands, seen from outside: `delta-sink status`.

Everything is read, nothing is written: the table's log, the ends of the topics, the lock store and
the control topics. What does not answer becomes a sentence among `problems`; the rest is said all
the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from delta_sink.claim import Source
from delta_sink.control_client import ControlClient, Exchange, recent
from delta_sink.delta.compaction_plan import CompactionPolicy, target_file_bytes, with_values
from delta_sink.delta.snapshot import Snapshot, read_snapshot
from delta_sink.errors import DeltaSinkError
from delta_sink.forms import normal_table_uri
from delta_sink.lease import Lease, lease_key, lease_of
from delta_sink.model import AppId, TopicPartition
from delta_sink.ports import LeaseStore
from delta_sink.presence import PausedState, Sighting, look, paused_state

COMMANDS_LAST: Final = 5

T = TypeVar("T")


class FileCounts(Struct, frozen=True):
    """The files of one table partition, and those that compaction would take for small."""

    values: Mapping[str, str | None]
    files: int
    size_bytes: int
    small_files: int
    small_bytes: int


class Progress(Struct, frozen=True):
    """One Kafka partition: what the table has, and where the topic ends. None: not known."""

    tp: TopicPartition
    offset_committed: int | None
    offset_end: int | None

    @property
    def lag_records(self) -> int | None:
        """How many offsets the table is behind."""
        if self.offset_committed is None or self.offset_end is None:
            return None
        return max(0, self.offset_end - self.offset_committed)


class Overview(Struct, frozen=True):
    """What one look has found. `table_version` is None where there is no table yet."""

    table_uri: str
    table_version: int | None
    debts: tuple[FileCounts, ...]
    progress: tuple[Progress, ...]
    sightings: Mapping[str, Sighting]
    paused: Mapping[str, PausedState]
    leases: tuple[Lease, ...]
    commands: tuple[Exchange, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "ok": not self.problems,
            "table": {
                "uri": self.table_uri,
                "version": self.table_version,
                "files": sum(debt.files for debt in self.debts),
                "bytes": sum(debt.size_bytes for debt in self.debts),
                "small_files": sum(debt.small_files for debt in self.debts),
            },
            "table_partitions": [
                {
                    "values": dict(debt.values),
                    "files": debt.files,
                    "bytes": debt.size_bytes,
                    "small_files": debt.small_files,
                    "small_bytes": debt.small_bytes,
                }
                for debt in self.debts
            ],
            "partitions": [
                {
                    "topic": each.tp.topic,
                    "partition": each.tp.partition,
                    "offset_committed": each.offset_committed,
                    "offset_end": each.offset_end,
                    "lag_records": each.lag_records,
                }
                for each in self.progress
            ],
            "workers": [_worker_json(sighting) for sighting in self.sightings.values()],
            "paused": [role for role, state in self.paused.items() if state.is_paused],
            "leases": [
                {"key": lease.key, "owner": lease.owner, "token": lease.token}
                for lease in self.leases
            ],
            "commands": [exchange.to_json() for exchange in self.commands],
            "problems": list(self.problems),
        }


def _worker_json(sighting: Sighting) -> dict[str, object]:
    presence = sighting.presence
    return {
        "worker": presence.worker,
        "role": presence.role,
        "host": presence.host,
        "since_ms": presence.since_ms,
        "life": sighting.life,
        "said_at_ms": sighting.said_at_ms,
        "oldest_uncommitted_ms": presence.oldest_uncommitted_ms,
    }


def overlook(
    source: Source,
    table_uri: str,
    leases: Callable[[], LeaseStore],
    client: Callable[[], ControlClient] | None,
    before: Mapping[str, Sighting],
) -> Overview:
    """Return how the sink stands. `before` are the sightings of the last look, or empty.

    `leases` and `client` are called once; `client` is None where there are no control topics.
    """
    problems: list[str] = []

    def tried(what: str, attempt: Callable[[], T], otherwise: T) -> T:
        try:
            return attempt()
        except DeltaSinkError as error:
            problems.append(f"{what}: {error}")
            return otherwise

    clock = source.log.clock
    snapshot = tried("table", lambda: read_snapshot(source.log), None)
    debts: tuple[FileCounts, ...] = ()
    if snapshot is not None:
        debts = tried("table", lambda: _debts(source, snapshot), debts)
    progress: tuple[Progress, ...] = ()
    progress = tried("brokers", lambda: _progress(source, snapshot), progress)
    store = tried("locks", leases, None)
    sightings: Mapping[str, Sighting] = {}
    paused: Mapping[str, PausedState] = {}
    held: tuple[Lease, ...] = ()
    if store is not None:
        now_ms = clock.elapsed_ms()
        sightings = tried("locks", lambda: look(store, table_uri, before, now_ms=now_ms), {})
        paused = tried("locks", lambda: _paused(store, table_uri), {})
        held = tried("locks", lambda: _held(store, table_uri), ())
    commands: tuple[Exchange, ...] = ()
    if client is not None:
        commands = tried("control topics", lambda: _commands(client(), table_uri), ())
    return Overview(
        table_uri=table_uri,
        table_version=None if snapshot is None else snapshot.state.version,
        debts=debts,
        progress=progress,
        sightings=sightings,
        paused=paused,
        leases=held,
        commands=commands,
        problems=tuple(dict.fromkeys(problems)),
    )


def _debts(source: Source, snapshot: Snapshot) -> tuple[FileCounts, ...]:
    """Return each table partition's files, those with the most small ones first."""
    metadata = snapshot.state.metadata
    columns = metadata.partition_columns
    default_bytes = source.settings.compaction.target_file_bytes
    policy = CompactionPolicy(target_file_bytes(metadata, default_bytes))
    files = snapshot.files()
    if not files.num_rows:
        return ()
    files = with_values(files, columns)
    is_small = pc.less(files["liveBytes"], policy.small_share * policy.target_file_bytes)
    files = files.append_column("small", pc.cast(is_small, pa.int64()))
    small_bytes = pc.if_else(is_small, files["size"], 0)
    files = files.append_column("smallBytes", small_bytes)
    keys = [f"p{index}" for index in range(len(columns))]
    totals = [("size", "sum"), ("size", "count"), ("small", "sum"), ("smallBytes", "sum")]
    grouped = files.group_by(keys).aggregate(totals).to_pylist()
    found = [
        FileCounts(
            values={name: row[f"p{index}"] for index, name in enumerate(columns)},
            files=row["size_count"],
            size_bytes=row["size_sum"],
            small_files=row["small_sum"],
            small_bytes=row["smallBytes_sum"],
        )
        for row in grouped
    ]
    return tuple(sorted(found, key=lambda debt: (-debt.small_files, str(debt.values))))


def _progress(source: Source, snapshot: Snapshot | None) -> tuple[Progress, ...]:
    app_ids = source.app_ids(source.topics().values())
    ends = source.broker.offsets(sorted(app_ids), "latest")
    txns = {} if snapshot is None else snapshot.state.txns

    def committed(app_id: AppId) -> int | None:
        return txns.get(str(app_id))

    return tuple(
        Progress(tp, committed(app_id), ends.get(tp)) for tp, app_id in sorted(app_ids.items())
    )


def _paused(leases: LeaseStore, table_uri: str) -> dict[str, PausedState]:
    return {
        "writer": paused_state(leases, table_uri, "writer"),
        "maintenance": paused_state(leases, table_uri, "maintenance"),
    }


def _held(leases: LeaseStore, table_uri: str) -> tuple[Lease, ...]:
    """Return the leases that nobody has released; one may belong to a worker that was killed."""
    found = [lease_of(item) for item in leases.scan(lease_key(table_uri, ""))]
    return tuple(lease for lease in found if not lease.released)


def _commands(client: ControlClient, table_uri: str) -> tuple[Exchange, ...]:
    return tuple(recent(client, normal_table_uri(table_uri), last=COMMANDS_LAST))
