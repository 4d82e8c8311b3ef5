"""A table in memory whose store has a time of its own, may be killed, and can be saved to disk."""

from __future__ import annotations

import datetime as dt
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from delta_sink.adapters.logs import LogTelemetry
from delta_sink.append import EncodedBatch, plan_append, store_files
from delta_sink.delta.actions import Add, CommitInfo, Remove, Txn, encode_entry
from delta_sink.delta.commit import Log, commit, follow, open_log
from delta_sink.delta.logstore import ConditionalPutLog, entry_path
from delta_sink.delta.parquet import FileLayout, encode_files
from delta_sink.delta.plan import Plan, SameTable
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt, partition_receipt
from delta_sink.delta.schema import METADATA_FIELDS, Field, TableSchema
from delta_sink.delta.table import Author, TableSpec, commit_info, create_table
from delta_sink.errors import ObjectMissing
from delta_sink.model import AppId, OffsetRange, TopicPartition
from delta_sink.ports import ObjectInfo
from tests.unit.delta_tables import multiset
from tests.unit.scripted import CountingEntropy, ScriptedClock, ScriptedStore

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
METADATA = tuple(METADATA_FIELDS[name] for name in ("topic", "partition", "offset"))
SCHEMA = TableSchema(
    (Field("id", "long"), Field("day", "date"), Field("name", "string"), *METADATA)
)
AUTHOR = Author("orders-sink", "w1", 1)
WRITES = ("put", "put_if_absent", "delete")


class Killed(BaseException):
    """The process dies here: nothing that catches errors may go on."""


class TimedStore(ScriptedStore):
    """Objects have the time of the store's own clock, which is `skew_ms` off the worker's.

    `kill_at` counts writes: (3, "before") dies before the third lands, (3, "after") after it.
    """

    def __init__(self, clock: ScriptedClock) -> None:
        super().__init__()
        self.clock = clock
        self.skew_ms = 0
        self.modified: dict[str, int] = {}
        self.writes = 0
        self.kill_at: tuple[int, str] | None = None

    def _serve(self, kind, path, honest):
        if kind not in WRITES:
            return super()._serve(kind, path, honest)
        self.writes += 1
        if self.kill_at == (self.writes, "before"):
            raise Killed
        answer = super()._serve(kind, path, honest)
        if self.kill_at == (self.writes, "after"):
            raise Killed
        return answer

    def store(self, path, data):
        self.modified[path] = self.clock.wall_ms() + self.skew_ms
        return super().store(path, data)

    def delete(self, path):
        self._serve("delete", path, lambda: self.objects.pop(path, None))

    def list(self, prefix, start_after=None):
        return [
            ObjectInfo(i.path, i.size_bytes, self.modified[i.path], i.e_tag)
            for i in super().list(prefix, start_after)
        ]

    def save(self, folder: Path) -> None:
        for path, (data, _) in self.objects.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


class Maintained:
    """A table that is filled through the product's own committer."""

    def __init__(self, *, partition_by=("day",), properties=None, schema=SCHEMA) -> None:
        self.clock = ScriptedClock()
        self.store = TimedStore(self.clock)
        self.log = self.worker()
        self.schema = schema
        self.layout = FileLayout(schema, partition_by=partition_by)
        spec = TableSpec(schema, partition_by, properties or {})
        self.state = create_table(self.log, spec, AUTHOR)
        self.offsets: Counter[TopicPartition] = Counter()
        self.claimed: set[TopicPartition] = set()

    def worker(self) -> Log:
        """Return what another process has: the same store, its own everything else."""
        telemetry = LogTelemetry(io.StringIO(), clock=self.clock)
        entropy = getattr(self, "log", None)
        ids = entropy.entropy if entropy is not None else CountingEntropy()
        return Log(self.store, ConditionalPutLog(self.store), self.clock, ids, telemetry)

    def app_id(self, tp: TopicPartition) -> AppId:
        return AppId(AUTHOR.sink, tp, None)

    def _claim(self, tp: TopicPartition) -> None:
        commit_id = self.log.entropy.unique_id()
        part = partition_receipt(str(self.app_id(tp)), OffsetRange(tp, 0, 0, 0, 0))
        receipt = Receipt(RECEIPT_FORMAT, "claim", AUTHOR.sink, "w1", 1, commit_id, (part,))
        info = commit_info(self.log, receipt, "CLAIM", {})
        self.commit(Plan.of(commit_id, [info, Txn(str(self.app_id(tp)), 0)], []))
        self.claimed.add(tp)

    def commit(self, plan: Plan) -> int:
        self.state = commit(self.log, follow(self.log, self.state), plan)
        return self.state.version

    def rows(self, tp: TopicPartition, count: int, days: int = 2) -> pa.Table:
        first = self.offsets[tp]
        rows = [
            {
                "id": offset * 7 % 1_000,
                "day": dt.date(2026, 11, 1 + offset % days),
                "name": None if offset % 5 == 0 else f"name {offset % 13}",
                "_kafka_topic": tp.topic,
                "_kafka_partition": tp.partition,
                "_kafka_offset": offset,
            }
            for offset in range(first, first + count)
        ]
        return pa.Table.from_pylist(
            [{name: row[name] for name in self.schema.names} for row in rows],
            schema=self.schema.arrow,
        )

    def encode(self, count=10, tp=P0, *, days=2, tag=None) -> EncodedBatch:
        """Upload the files of an append that is not committed yet."""
        first = self.offsets[tp]
        tag = self.state.version if tag is None else tag
        files = encode_files(
            [self.rows(tp, count, days)],
            self.layout,
            tag=tag,
            unique_id=self.log.entropy.unique_id,
        )
        store_files(files, self.store, self.clock, self.log.entropy)
        covered = OffsetRange(tp, first, first + count, count, count)
        return EncodedBatch(self.log.entropy.unique_id(), tag, tuple(files), (covered,), count)

    def plan(self, encoded: EncodedBatch) -> Plan:
        [covered] = encoded.ranges
        return plan_append(
            self.log,
            encoded,
            author=AUTHOR,
            app_ids={covered.tp: self.app_id(covered.tp)},
            table=SameTable.of(self.state),
        )

    def append(self, count=10, tp=P0, *, days=2, apart_ms=1_000) -> int:
        """Commit `count` rows of `tp`, spread over `days` table partitions; return the version."""
        if tp not in self.claimed:
            self._claim(tp)
        self.clock.now_ms += apart_ms
        encoded = self.encode(count, tp, days=days)
        self.offsets[tp] += count
        return self.commit(self.plan(encoded))

    def foreign(self, *actions: Add | Remove | CommitInfo) -> int:
        """Land an entry of another engine at the head."""
        self.state = follow(self.log, self.state)
        version = self.state.version + 1
        lines = [json.loads(line) for line in encode_entry(actions).splitlines()]
        for line in lines:
            if "remove" in line:
                line["remove"].setdefault("dataChange", True)  # left out by us where it is true
        body = "".join(json.dumps(line) + "\n" for line in lines)
        self.store.store(entry_path(version), body.encode())
        self.state = follow(self.log, self.state)
        return version

    def reopen(self) -> None:
        self.state = open_log(self.log)

    def delta(self, folder: Path, version: int | None = None) -> DeltaTable:
        """Return the table as deltalake opens it, saved to `folder`."""
        self.store.save(folder)
        return DeltaTable(str(folder), version=version)

    def read(self, folder: Path, version: int | None = None) -> Counter:
        """Return the multiset of rows that deltalake reads at a version."""
        return multiset(rows_in(self.delta(folder, version)))

    def exists(self, path: str) -> bool:
        try:
            self.store.get(path)
        except ObjectMissing:
            return False
        return True


def rows_in(table: DeltaTable) -> pa.Table:
    return pa.table(QueryBuilder().register("t", table).execute("select * from t").read_all())
