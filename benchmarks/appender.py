"""Our commit path on one table of the local disk, as a writer's jobs go it, and tables made by it.

The rows are the same in every run: orders as a shop would have them, eight batches of them that
come round again. What a batch holds does not matter to the log; it must only be neither empty nor
all alike, so that encoding it is real work.
"""

from __future__ import annotations

import decimal
import os
import shutil
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.adapters.metered import MeteredStore
from delta_sink.adapters.system import SystemClock, SystemEntropy
from delta_sink.append import EncodedBatch, plan_append, store_files
from delta_sink.delta.actions import Txn
from delta_sink.delta.commit import Log, commit, open_log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.delta.parquet import FileLayout, encode_files
from delta_sink.delta.plan import Plan, SameTable, TxnIs
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt, partition_receipt
from delta_sink.delta.schema import Decimal, Field, TableSchema
from delta_sink.delta.state import LogState
from delta_sink.delta.table import Author, TableSpec, commit_info, create_table
from delta_sink.model import AppId, OffsetRange, TopicPartition
from delta_sink.telemetry import STORE_REQUESTS
from delta_sink.traces import Trace

SEED = 20_240_229
BATCHES = 8
VERSION_CLAIMED = 1
"""Version 0 makes the table, version 1 claims the partition; each later one appends a batch."""
PARTITION = TopicPartition("orders", 0)
APP_ID = AppId("bench", PARTITION, None)
AUTHOR = Author("bench", "bench-0")
COMPRESSION = "zstd"
COMPRESSION_LEVEL = 1

SCHEMA = TableSchema(
    (
        Field("order_id", "long"),
        Field("placed_at", "timestamp"),
        Field("customer", "string"),
        Field("country", "string"),
        Field("quantity", "integer"),
        Field("amount", Decimal(12, 2)),
        Field("weight_kg", "double"),
        Field("note", "string"),
    )
)
LAYOUT = FileLayout(SCHEMA, compression=COMPRESSION, compression_level=COMPRESSION_LEVEL)


def make_batches(rows: int) -> list[pa.Table]:
    """Return the batches, `rows` rows each, with the columns of `SCHEMA`."""
    return [_batch(number, rows) for number in range(BATCHES)]


def _batch(number: int, rows: int) -> pa.Table:
    chance = np.random.default_rng((SEED, number))
    cents = chance.integers(99, 250_000, rows)
    notes = [f"leave at door {n}" if n % 5 == 0 else None for n in chance.integers(0, 400, rows)]
    columns = {
        "order_id": np.arange(rows, dtype=np.int64) + number * rows,
        "placed_at": 1_709_164_800_000_000 + np.cumsum(chance.integers(1, 90_000, rows)),
        "customer": [f"customer-{n:05d}" for n in chance.integers(0, 20_000, rows)],
        "country": chance.choice(["AT", "CH", "DE", "DK", "FR", "NL", "PL", "SE"], rows).tolist(),
        "quantity": chance.integers(1, 12, rows).astype(np.int32),
        "amount": [decimal.Decimal(int(n)).scaleb(-2) for n in cents],
        "weight_kg": np.round(chance.gamma(2.0, 0.8, rows), 3),
        "note": notes,
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in SCHEMA.arrow]
    return pa.Table.from_arrays(arrays, schema=SCHEMA.arrow)


class RequestCounts:
    """A `Telemetry` that keeps one thing: how many requests of each kind the store got."""

    def __init__(self) -> None:
        self.by_verb: Counter[str] = Counter()

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        """Drop the event."""

    def count(self, metric: str, amount: float = 1, **tags: str | int) -> None:
        """Count requests to the store."""
        if metric == STORE_REQUESTS:
            self.by_verb[str(tags["verb"])] += int(amount)

    def gauge(self, metric: str, value: float | None, **tags: str | int) -> None:
        """Drop the value."""

    def observe(self, metric: str, value: float, **tags: str | int) -> None:
        """Drop the observation."""

    is_tracing = False

    def trace(self, trace: Trace) -> None:
        """Drop the trace."""


def table_log(folder: str, *, fsync: bool, telemetry: RequestCounts | None = None) -> Log:
    """Return the log of the table in `folder`, with its requests counted."""
    clock, counts = SystemClock(), telemetry or RequestCounts()
    store = MeteredStore(LocalDisk(folder, fsync=fsync), counts, clock)
    return Log(store, ConditionalPutLog(store), clock, SystemEntropy(), counts)


class Appender:
    """Commits batches of one Kafka partition to the table in `folder`, which it makes if needed.

    `requests` counts what the appends, and nothing else, asked of the store.
    """

    def __init__(self, folder: str, *, fsync: bool) -> None:
        self.requests = RequestCounts()
        self._log = table_log(folder, fsync=fsync, telemetry=self.requests)
        self._state = self._opened()
        self.requests.by_verb.clear()

    def _opened(self) -> LogState:
        state = open_log(self._log)
        if state is not None:
            return state
        state = create_table(self._log, TableSpec(SCHEMA, (), {}), AUTHOR)
        return commit(self._log, state, _claim_plan(self._log))

    @property
    def version(self) -> int:
        """The version of the last commit."""
        return self._state.version

    def append(self, rows: pa.Table) -> None:
        """Commit `rows` as the next records of the partition: encode, put, plan, commit."""
        log, state = self._log, self._state
        first, count = state.txns[str(APP_ID)], rows.num_rows
        covered = OffsetRange(PARTITION, first, first + count, records=count, rows=count)
        commit_id = log.entropy.unique_id()
        files = encode_files([rows], LAYOUT, tag=state.version, unique_id=log.entropy.unique_id)
        store_files(files, log.store, log.clock, log.entropy)
        encoded = EncodedBatch(commit_id, state.version, tuple(files), (covered,), rows.num_rows)
        plan = plan_append(
            log, encoded, author=AUTHOR, app_ids={PARTITION: APP_ID}, table=SameTable.of(state)
        )
        self._state = commit(log, state, plan)


def _claim_plan(log: Log) -> Plan:
    """Return the plan that says, as every first start does, from where the partition is read."""
    commit_id = log.entropy.unique_id()
    nothing = partition_receipt(str(APP_ID), OffsetRange(PARTITION, 0, 0, records=0, rows=0))
    receipt = Receipt(
        RECEIPT_FORMAT,
        "claim",
        AUTHOR.sink,
        AUTHOR.worker,
        AUTHOR.generation,
        commit_id,
        (nothing,),
    )
    info = commit_info(log, receipt, "CLAIM", {}, is_blind_append=True)
    return Plan.of(commit_id, [info, Txn(str(APP_ID), 0)], [TxnIs(str(APP_ID), None)])


def grow(appender: Appender, batches: Sequence[pa.Table], *, version: int) -> None:
    """Return once the table is at `version`; all above `VERSION_CLAIMED` are appends of a batch."""
    while appender.version < version:
        appender.append(batches[appender.version % len(batches)])


def link_table(source: str, target: str) -> None:
    """Return once `target` is a table of its own with the same files.

    Files of a Delta table are written once, so that both may share them by hard links: ten
    thousand commits are copied in a second and take no room. What names a file anew (a pointer to
    a checkpoint) replaces the link and leaves the other table's alone.
    """
    ignore = shutil.ignore_patterns("_delta_sink")
    shutil.copytree(source, target, copy_function=os.link, ignore=ignore)
