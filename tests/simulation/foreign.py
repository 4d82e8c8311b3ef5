"""What others do to the table: another engine, an operator's seek, and stand-ins for maintenance.

Everything here happens at once and at the head of the log: those who do it are never slow and
never fail. What they do keeps Delta's rules and this project's; the oracle judges it as it judges
everything. The stand-ins (`compact`, `fence`, `checkpoint`, `clean_up`) are where the production
maintenance enters the simulation: spawned on hosts of their own as tasks, beside or instead of
them (`chaos.py`, "maintenance").
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tests.simulation.oracle import COLUMNS, FENCE, FOREIGN_RETENTION_MS

if TYPE_CHECKING:
    from tests.simulation.harness import Simulation

DAY_MS = 24 * 3_600_000
LOG_RETENTION_MS = 30 * DAY_MS
LAST_CHECKPOINT = "_delta_log/_last_checkpoint"

ROWS = pa.schema(
    {
        "seq": pa.int64(),
        "text": pa.string(),
        "_kafka_topic": pa.string(),
        "_kafka_partition": pa.int32(),
        "_kafka_offset": pa.int64(),
        "_kafka_timestamp": pa.timestamp("us", "UTC"),
    }
)


# --- commits ------------------------------------------------------------------------------------


def commit(sim: Simulation, *actions: dict) -> int:
    """Let another engine's commit land now at the head; return its version."""
    info = {"operation": "OTHER", "engineInfo": "another engine"}
    return _land(sim, {"commitInfo": info}, *actions)


def seek(sim: Simulation, receipt: dict, *actions: dict) -> int:
    """Let an operator's SEEK land now at the head; return its version."""
    info = {"operation": "SEEK", "userMetadata": json.dumps(receipt)}
    return _land(sim, {"commitInfo": info}, *actions)


def seek_back(sim: Simulation, version: int) -> int:
    """Let a SEEK take back what the commit of `version` moved, as far as nobody moved it on."""
    moved = []
    for part in sim.oracle.receipts[version]["partitions"]:
        if sim.oracle.txns[part["app_id"]] == part["offset_next"]:
            first, after = part["offset_next"], part["offset_first"]
            nothing = {"offset_first": first, "offset_next": after, "records": 0, "rows": 0}
            moved.append({key: part[key] for key in ("app_id", "topic", "partition")} | nothing)
    receipt = {
        "format": 1,
        "kind": "seek",
        "sink": "sink",
        "worker": "ops",
        "generation": 0,
        "commit_id": f"seek-{sim.oracle.entries}",
        "partitions": moved,
    }
    txns = [{"txn": {"appId": p["app_id"], "version": p["offset_next"]}} for p in moved]
    return seek(sim, receipt, *txns)


def _land(sim: Simulation, *actions: dict) -> int:
    version = sim.oracle.version + 1
    body = "\n".join(json.dumps(action) for action in actions).encode()
    sim.store.write(f"_delta_log/{version:020d}.json", body)
    return version


def append(sim: Simulation, number: int) -> int:
    """Let another engine append two rows of its own, which have nothing of Kafka."""
    rows = [(None, None, None, number, "theirs", None), (None, None, None, None, None, None)]
    add = write_rows(sim, f"theirs-{number}-{sim.oracle.entries}.parquet", rows)
    return commit(sim, {"add": add | {"dataChange": True}})


def write_rows(
    sim: Simulation, path: str, rows: list[tuple], values: dict[str, str | None] | None = None
) -> dict:
    """Store a data file with these rows (tuples of `COLUMNS`); return its `add`.

    `values` are those of its table partition, null ones if none are given.
    """
    if values is None:
        values = dict.fromkeys(sim.oracle.metadata.get("partitionColumns", ()))
    pieces = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(pieces, schema=ROWS), buffer)
    data = buffer.getvalue().to_pybytes()
    sim.store.write(path, data)
    return {"path": path, "partitionValues": values, "size": len(data), "modificationTime": 0}


# --- stand-ins for maintenance ------------------------------------------------------------------


def compact(sim: Simulation, files_max: int | None = None) -> int:
    """Replace the oldest live files by one: `dataChange` is false, no offset moves."""
    chosen = list(sim.oracle.files)[:files_max]
    rows = [row for path in chosen for row in sim.oracle.files[path]]
    add = write_rows(sim, f"compacted-{sim.oracle.entries}.parquet", rows)
    stamp = {"dataChange": False, "deletionTimestamp": sim.world.wall_ms}
    removes = [{"remove": {"path": path, **stamp}} for path in chosen]
    return commit(sim, {"add": add | {"dataChange": False}}, *removes)


def fence(sim: Simulation) -> int:
    """Let vacuum commit its fence at the head and delete what no commit lists behind it."""
    version = raise_fence(sim)
    sweep(sim, version - 1)
    return version


def raise_fence(sim: Simulation) -> int:
    """Let vacuum commit its fence at the head; what it deletes, it deletes later."""
    return commit(sim, {"txn": {"appId": FENCE, "version": sim.oracle.version}})


def sweep(sim: Simulation, fenced: int) -> None:
    """Let vacuum delete what lies behind its fence: uncommitted, or removed by then."""
    for path in sim.store.paths():
        if not path.startswith("part-") or path in sim.oracle.files:
            continue
        removed = sim.oracle.removed_at(path)
        is_behind = int(path[5:25]) <= fenced if removed is None else removed <= fenced
        if is_behind:
            sim.store.remove(path)


def checkpoint(sim: Simulation, *, hint: bool = True) -> None:
    """Write a checkpoint of the head; without `hint` its writer dies before `_last_checkpoint`."""
    oracle = sim.oracle
    txns = [{"appId": a, "version": v, "lastUpdated": None} for a, v in oracle.txns.items()]
    version = oracle.version
    path = f"_delta_log/{version:020d}.checkpoint.parquet"
    if sim.store.holds(path):
        return
    table = {**oracle.metadata, "format": {"provider": "parquet", "options": []}}
    table["configuration"] = list(oracle.metadata.get("configuration", {}).items())
    adds = [{"add": {"path": path}} for path in oracle.files]
    rows = [{"protocol": oracle.protocol}, {"metaData": table}, *({"txn": txn} for txn in txns)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([*rows, *adds], schema=CHECKPOINT_SCHEMA), buffer)
    data = buffer.getvalue().to_pybytes()
    sim.store.write(path, data)
    if hint:
        sim.store.write(LAST_CHECKPOINT, json.dumps({"version": version, "size": 1}).encode())


def clean_up(sim: Simulation, *, age_ms: int = DAY_MS, entries_max: int | None = None) -> list[int]:
    """Remove entries below the newest checkpoint that are old, oldest first; return them.

    With `entries_max` whoever does it dies after so many.
    """
    listed = sim.store.infos("_delta_log", None)
    newest = max((int(i.path[11:31]) for i in listed if "checkpoint.p" in i.path), default=-1)
    old = [
        info.path
        for info in listed
        if info.path.endswith(".json")
        and int(info.path[11:31]) < newest
        and sim.world.wall_ms - info.modified_ms > age_ms
    ]
    old = old[:entries_max]
    for path in old:
        sim.store.remove(path)
    return [int(path[11:31]) for path in old]


# --- another engine's own housekeeping ----------------------------------------------------------


def vacuum(sim: Simulation) -> int:
    """Delete what is not live and older than a week, as other engines do: by age alone.

    It knows nothing of tags; an upload that takes a week to be committed is beyond its promise.
    """
    deleted = 0
    for info in sim.store.infos("", None):
        removed = sim.oracle.removed_ms(info.path)
        since_ms = info.modified_ms if removed is None else removed
        is_old = sim.world.wall_ms - since_ms >= FOREIGN_RETENTION_MS
        is_data = info.path.endswith(".parquet") and "/" not in info.path
        if is_data and is_old and info.path not in sim.oracle.files:
            sim.store.remove(info.path)
            deleted += 1
    return deleted


CHECKPOINT_SCHEMA = pa.schema(
    {
        "txn": pa.struct({"appId": pa.string(), "version": pa.int64(), "lastUpdated": pa.int64()}),
        "protocol": pa.struct({"minReaderVersion": pa.int32(), "minWriterVersion": pa.int32()}),
        "metaData": pa.struct(
            {
                "id": pa.string(),
                "schemaString": pa.string(),
                "partitionColumns": pa.list_(pa.string()),
                "configuration": pa.map_(pa.string(), pa.string()),
                "format": pa.struct(
                    {"provider": pa.string(), "options": pa.map_(pa.string(), pa.string())}
                ),
            }
        ),
        "add": pa.struct({"path": pa.string()}),
    }
)
