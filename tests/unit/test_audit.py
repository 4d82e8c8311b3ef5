"""The audit on real tables on disk: right ones are proven, and each way to break one is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from delta_sink.adapters.deltareader import DeltaRows, storage_options
from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.adapters.logs import LogTelemetry
from delta_sink.adapters.system import SystemClock, SystemEntropy
from delta_sink.append import EncodedBatch, plan_append, store_files
from delta_sink.audit import Audit, audit_log, audit_rows
from delta_sink.delta.actions import Txn
from delta_sink.delta.commit import Log, commit, follow
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.delta.parquet import FileLayout, encode_files
from delta_sink.delta.plan import Plan, SameTable
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt, partition_receipt
from delta_sink.delta.schema import METADATA_FIELDS, Field, TableSchema
from delta_sink.delta.state import LogState
from delta_sink.delta.table import Author, TableSpec, commit_info, create_table
from delta_sink.errors import ObjectMissing, StoreUnavailable, TableRefused
from delta_sink.model import AppId, OffsetRange, TopicPartition, runs_count
from delta_sink.settings import StorageSettings

SINK = "orders-sink"
AUTHOR = Author(SINK, "w1", 1)
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
COLUMNS = tuple(METADATA_FIELDS[name] for name in ("topic", "partition", "offset"))


def rows_of(schema: TableSchema, offsets: dict[TopicPartition, list[int]]) -> pa.Table:
    """Return a row for each offset, in the columns of `schema`."""
    lines = [
        {"amount": offset, "_kafka_topic": tp.topic, "_kafka_partition": tp.partition,
         "_kafka_offset": offset}
        for tp, some in offsets.items()
        for offset in some
    ]  # fmt: skip
    return pa.Table.from_pylist(
        [{name: line[name] for name in schema.names} for line in lines], schema=schema.arrow
    )


@dataclass
class Table:
    """A table on disk that is filled through the product's own committer."""

    root: Path
    log: Log
    state: LogState
    schema: TableSchema
    author: Author = AUTHOR

    @classmethod
    def create(cls, root: Path, columns=COLUMNS) -> Table:
        store = LocalDisk(str(root), fsync=False)
        telemetry = LogTelemetry(StringIO(), clock=SystemClock())
        log = Log(store, ConditionalPutLog(store), SystemClock(), SystemEntropy(), telemetry)
        schema = TableSchema((Field("amount", "long"), *columns))
        state = create_table(log, TableSpec(schema, (), {}), AUTHOR)
        return cls(root, log, state, schema)

    def app_id(self, tp: TopicPartition) -> AppId:
        return AppId(self.author.sink, tp, None)

    def move(self, kind: str, moves: dict[TopicPartition, tuple[int, int]], reason=None) -> None:
        """Commit a claim or a seek."""
        commit_id = self.log.entropy.unique_id()
        parts = tuple(
            msgspec.structs.replace(
                partition_receipt(str(self.app_id(tp)), OffsetRange(tp, 0, 0, 0, 0)),
                offset_first=first,
                offset_next=after,
            )
            for tp, (first, after) in moves.items()
        )
        receipt = Receipt(RECEIPT_FORMAT, kind, self.author.sink, "w1", 1, commit_id, parts, reason)
        info = commit_info(self.log, receipt, kind.upper(), {})
        txns = [Txn(str(self.app_id(tp)), after) for tp, (_, after) in moves.items()]
        self.state = commit(self.log, self.state, Plan.of(commit_id, [info, *txns], []))

    def claim(self, *tps: TopicPartition, at: int = 0) -> None:
        self.move("claim", dict.fromkeys(tps or (P0, P1), (at, at)))

    def append(self, *ranges: OffsetRange, offsets: dict | None = None) -> int:
        """Commit ranges; the rows are `offsets` or all that the ranges do not list otherwise."""
        if offsets is None:
            offsets = {}
            for r in ranges:
                lists = (*r.dead_letters, *r.skipped, *r.gone)
                listed = {o for run in lists for o in range(*run)}
                every = range(r.offset_first, r.offset_next)
                offsets[r.tp] = [o for o in every if o not in listed][: r.rows]
        files = encode_files(
            [rows_of(self.schema, offsets)],
            FileLayout(self.schema),
            tag=self.state.version,
            unique_id=self.log.entropy.unique_id,
        )
        store_files(files, self.log.store, self.log.clock, self.log.entropy)
        encoded = EncodedBatch(
            self.log.entropy.unique_id(),
            self.state.version,
            tuple(files),
            tuple(ranges),
            sum(len(some) for some in offsets.values()),
        )
        plan = plan_append(
            self.log,
            encoded,
            author=self.author,
            app_ids={r.tp: self.app_id(r.tp) for r in ranges},
            table=SameTable.of(self.state),
        )
        self.state = commit(self.log, self.state, plan)
        return self.state.version

    # --- breaking it ----------------------------------------------------------------------------

    def entry(self, version: int) -> Path:
        return self.root / "_delta_log" / f"{version:020d}.json"

    def rewrite(self, version: int, change) -> None:
        """Change the actions of an entry: `change` takes one and gives a list."""
        lines = [json.loads(line) for line in self.entry(version).read_text().splitlines()]
        changed = [new for line in lines for new in change(line)]
        self.entry(version).write_text("".join(json.dumps(line) + "\n" for line in changed))

    def rewrite_receipt(self, version: int, tp: TopicPartition | None, **fields) -> None:
        """Change fields of the receipt, or of what it says of `tp`."""

        def change(line):
            if "commitInfo" in line:
                receipt = json.loads(line["commitInfo"]["userMetadata"])
                if tp is None:
                    receipt.update(fields)
                for part in receipt.get("partitions", []):
                    if tp == TopicPartition(part["topic"], part["partition"]):
                        part.update(fields)
                line["commitInfo"]["userMetadata"] = json.dumps(receipt)
            return [line]

        self.rewrite(version, change)

    def set_txn(self, version: int, tp: TopicPartition, txn: int | None) -> None:
        """Change the `txn` of an entry; None takes it out."""

        def change(line):
            if line.get("txn", {}).get("appId") == str(self.app_id(tp)):
                return [] if txn is None else [{"txn": {**line["txn"], "version": txn}}]
            return [line]

        self.rewrite(version, change)

    def commit_lines(self, *lines: dict) -> int:
        """Land an entry that another engine wrote."""
        self.state = follow(self.log, self.state)
        version = self.state.version + 1
        self.entry(version).write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.state = follow(self.log, self.state)
        return version

    def adds(self, version: int) -> list[dict]:
        lines = map(json.loads, self.entry(version).read_text().splitlines())
        return [line["add"] for line in lines if "add" in line]

    def delta(self) -> DeltaTable:
        return DeltaTable(str(self.root))

    def write(self, offsets: dict, **options) -> None:
        """Append rows through deltalake, as another engine or a person would."""
        write_deltalake(str(self.root), rows_of(self.schema, offsets), mode="append", **options)

    # --- the audit ------------------------------------------------------------------------------

    def audit(self) -> Audit:
        return audit_log(self.log, SINK)

    def deep(self, served: dict[TopicPartition, list[int]] | None = None) -> Audit:
        reader = DeltaRows(str(self.root), StorageSettings())
        return audit_rows(self.audit(), reader, None if served is None else Kafka(served))


@dataclass(frozen=True)
class Piece:
    tp: TopicPartition
    offsets: list[int]


@dataclass
class Kafka:
    """What the brokers serve, handed out in small pieces as the real reader does."""

    offsets: dict[TopicPartition, list[int]]

    def __call__(self, ranges) -> Iterator[Piece]:
        for tp, (first, after) in ranges.items():
            some = [o for o in self.offsets.get(tp, []) if first <= o < after]
            for start in range(0, len(some), 3):
                yield Piece(tp, some[start : start + 3])


def covered(tp: TopicPartition, first: int, after: int, **lists) -> OffsetRange:
    """Return a range without offset gaps, but for `gone` ones and `missing` of them."""
    missing = lists.pop("missing", 0)
    records = after - first - runs_count(lists.get("gone", ())) - missing
    listed = runs_count(lists.get("dead_letters", ())) + runs_count(lists.get("skipped", ()))
    return OffsetRange(tp, first, after, records, records - listed, **lists)


@pytest.fixture
def table(tmp_path) -> Table:
    """Versions: 0 table, 1 claim, 2 and 3 appends to both partitions, 4 to P0 with all lists."""
    made = Table.create(tmp_path / "t")
    made.claim()
    made.append(covered(P0, 0, 10), covered(P1, 0, 5))
    made.append(covered(P0, 10, 20), covered(P1, 5, 12))
    lists = {"dead_letters": ((22, 24),), "skipped": ((25, 26),), "gone": ((26, 28),)}
    made.append(covered(P0, 20, 30, **lists))
    return made


def served_of(table: Table) -> dict[TopicPartition, list[int]]:
    return {P0: [o for o in range(40) if o not in (26, 27)], P1: list(range(12))}


def only(sentences: tuple[str, ...], *patterns: str) -> None:
    """Check that there is one sentence for each pattern and no other."""
    assert len(sentences) == len(patterns), sentences
    for sentence, pattern in zip(sentences, patterns, strict=True):
        assert re.search(pattern, sentence), (pattern, sentence)


# --- what is right ------------------------------------------------------------------------------


def test_a_right_table_is_proven(table):
    audit = table.deep(served_of(table))
    assert audit.violations == ()
    assert audit.unproven == ()
    assert audit.ok
    assert audit.proven
    assert audit.table_version == 4
    p0, p1 = audit.partitions
    assert (p0.tp, p0.offset_first, p0.offset_next, p0.records) == (P0, 0, 30, 28)
    assert (p0.rows, p0.dead_letters, p0.skipped, p0.gone) == (25, 2, 1, 2)
    assert (p1.tp, p1.offset_first, p1.offset_next, p1.rows) == (P1, 0, 12, 12)
    assert (audit.deep.rows, audit.deep.served, audit.deep.not_served) == (37, 40, 0)
    assert (audit.commits.append, audit.commits.claim, audit.commits.table) == (3, 1, 1)
    assert audit.sentences()[0].startswith("exactly once: 37 rows, 2 dead letters and 1 skipped")


def test_json_has_the_keys_that_bind(table):
    told = json.loads(json.dumps(table.deep().to_json()))
    assert {"ok", "table_version", "partitions", "violations", "unproven", "deep"} <= set(told)
    assert (told["ok"], told["table_version"], told["violations"]) == (True, 4, [])
    wanted = {"topic": "orders", "partition": 0, "offset_first": 0, "offset_next": 30,
              "records": 28, "rows": 25, "dead_letters": 2, "skipped": 1}  # fmt: skip
    assert wanted.items() <= told["partitions"][0].items()


def test_offset_gaps_are_no_loss(tmp_path):
    table = Table.create(tmp_path / "t")
    table.claim(P0, at=100)
    table.append(covered(P0, 100, 120, missing=10), offsets={P0: list(range(100, 120, 2))})
    table.append(covered(P0, 120, 140, missing=20), offsets={})
    audit = table.deep({P0: list(range(100, 120, 2))})
    assert audit.ok
    assert audit.proven
    assert audit.partitions[0].offset_first == 100


def test_there_is_no_table(tmp_path):
    store = LocalDisk(str(tmp_path), fsync=False)
    telemetry = LogTelemetry(StringIO(), clock=SystemClock())
    log = Log(store, ConditionalPutLog(store), SystemClock(), SystemEntropy(), telemetry)
    with pytest.raises(TableRefused, match="no table"):
        audit_log(log, SINK)


def test_a_sink_that_committed_nothing_is_told_so(table):
    audit = audit_log(table.log, "other")
    assert audit.partitions == ()
    assert audit.commits.other_sinks == 5
    assert audit.sentences()[0].startswith("nothing to prove")


# --- the log, broken ----------------------------------------------------------------------------


def test_an_entry_without_its_txn(table):
    table.set_txn(3, P1, None)
    only(table.audit().violations, r"version 3: orders/1: its range ends at 12, but .* no txn")


def test_a_txn_that_is_not_the_end_of_the_range(table):
    table.set_txn(4, P0, 31)
    only(table.audit().violations, r"version 4: orders/0: .* ends at 30, but its txn says 31")


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (11, r"version 3: orders/0: offset.* 10 to 10 are in no range: .*ends at 10.*begins at 11"),
        (8, r"version 3: orders/0: offsets 8 to 9 are covered twice"),
    ],
)
def test_a_range_that_does_not_chain(table, first, sentence):
    table.rewrite_receipt(3, P0, offset_first=first, records=20 - first, rows=20 - first)
    only(table.audit().violations, r"version 3: its files hold 17 rows, its receipt says", sentence)


def test_a_first_range_without_a_claim(tmp_path):
    table = Table.create(tmp_path / "t")
    table.claim(P0)
    table.append(covered(P0, 0, 5))
    table.rewrite_receipt(1, None, partitions=[])
    only(
        table.audit().violations,
        r"version 1: orders/0: the txn moves from none to 0, and no receipt",
        r"version 2: orders/0: its first range begins at 0 without a claim",
    )


def test_a_second_claim(table):
    table.move("claim", {P0: (30, 30)})
    only(table.audit().violations, r"version 5: orders/0: claimed at 30 although its txn is 30")


def test_a_txn_that_falls_without_a_seek(table):
    table.commit_lines({"txn": {"appId": str(table.app_id(P0)), "version": 12}})
    only(table.audit().violations, r"version 5: orders/0: the txn falls from 30 to 12, and no rec")


def test_an_append_that_makes_a_txn_fall(table):
    table.rewrite_receipt(4, P0, offset_first=5, offset_next=15, dead_letters=[], skipped=[],
                          gone=[], records=5, rows=5)  # fmt: skip
    table.set_txn(4, P0, 15)
    table.rewrite(4, lambda line: [line])
    told = table.audit().violations
    assert any("falls from 20 to 15, which only a seek may do" in s for s in told)
    assert any("offsets 5 to 19 are covered twice" in s for s in told)


def test_a_txn_moved_forward_by_somebody(table):
    table.commit_lines({"txn": {"appId": str(table.app_id(P1)), "version": 40}})
    only(table.audit().violations, r"version 5: orders/1: the txn moves from 12 to 40, and no rec")


def test_a_txn_of_another_application_is_nobodys_business(table):
    table.commit_lines({"txn": {"appId": "spark-query-1", "version": 7}})
    assert table.audit().ok


def test_counts_that_do_not_add_up(table):
    table.rewrite_receipt(4, P0, records=9)
    told = table.audit().violations
    assert any("9 records, but 5 rows, 2 dead letters and 1 skipped" in s for s in told)
    assert any("9 records in offsets 20 to 29" in s for s in told)


def test_rows_that_the_files_do_not_have(table):
    table.rewrite_receipt(2, P1, records=4, rows=4)
    only(table.audit().violations, r"version 2: its files hold 15 rows, its receipt says 14")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"dead_letters": [[28, 32]], "records": 30}, "list of dead letters has 28 to 31"),
        ({"skipped": [[28, 29], [21, 22]]}, "list of skipped offsets has 21 to 21"),
        ({"gone": [[23, 25]]}, "offset 23 is in two of its lists"),
    ],
)
def test_lists_out_of_order(table, fields, sentence):
    table.rewrite_receipt(4, P0, **fields)
    assert any(sentence in told for told in table.audit().violations)


def test_a_file_added_twice(table):
    table.commit_lines({"add": table.adds(2)[0]})
    only(table.audit().violations, r"version 5 adds .*parquet a second time \(version 2 added it")


def test_a_file_added_again_after_its_removal(table):
    add = table.adds(2)[0]
    merged = {**add, "path": "merged.parquet", "dataChange": False}
    table.commit_lines({"remove": {"path": add["path"], "dataChange": False}}, {"add": merged})
    assert table.audit().ok
    table.commit_lines({"add": add})
    only(table.audit().violations, r"version 6 adds .* again after it was removed")


def test_the_same_commit_in_two_versions(table):
    table.entry(5).write_bytes(table.entry(4).read_bytes())
    told = table.audit().violations
    assert any("versions 4 and 5 carry the same commit id" in s for s in told)
    assert any("offsets 20 to 29 are covered twice" in s for s in told)
    assert any("a second time" in s for s in told)


def test_a_claim_that_brings_rows(table):
    add = table.adds(4)[0]
    table.rewrite(1, lambda line: [line, {"add": add}] if "commitInfo" in line else [line])
    assert any(
        "version 1 is of kind claim and yet adds 1 files" in s for s in table.audit().violations
    )


def test_an_append_that_removes(table):
    gone = {"remove": {"path": table.adds(2)[0]["path"], "dataChange": True}}
    table.rewrite(4, lambda line: [line, gone] if "commitInfo" in line else [line])
    only(table.audit().violations, "version 4 is of kind append and yet removes files")


def test_a_receipt_of_another_partition(table):
    table.rewrite_receipt(3, P1, app_id=str(table.app_id(P0)))
    assert any(
        "says 'orders-sink/orders/0' of orders/1" in told for told in table.audit().violations
    )


def test_an_entry_lost_in_the_middle(table):
    table.entry(3).unlink()
    assert any(
        "log entry 3 is missing and no checkpoint stands in" in told
        for told in table.audit().violations
    )


def test_an_entry_of_a_newer_sink_is_refused(table):
    table.rewrite_receipt(3, None, format=RECEIPT_FORMAT + 1)
    with pytest.raises(TableRefused, match="newer delta-sink"):
        table.audit()


# --- seeks --------------------------------------------------------------------------------------


def test_a_seek_back_reads_twice_on_purpose(table):
    table.move("seek", {P1: (12, 5)}, "decode again")
    table.append(covered(P1, 5, 12, dead_letters=((6, 7),)))
    table.append(covered(P1, 12, 15))
    audit = table.deep({P0: served_of(table)[P0], P1: list(range(15))})
    assert audit.violations == ()
    assert audit.proven
    assert [str(seek) for seek in audit.seeks] == [
        "orders/1: version 5 is a seek to 5: offsets 5 to 11 may be read twice (decode again)"
    ]
    assert audit.partitions[1].offset_next == 15


def test_a_seek_forward_leaves_out_on_purpose(table):
    table.move("seek", {P1: (12, 100)})
    table.append(covered(P1, 100, 105))
    audit = table.deep({**served_of(table), P1: list(range(200))})
    assert audit.violations == ()
    assert "offsets 12 to 99 are left out" in str(audit.seeks[0])


def test_a_seek_excuses_its_overlap_and_nothing_else(table):
    table.move("seek", {P1: (12, 5)})
    table.append(covered(P1, 5, 12))
    table.write({P1: [4, 7]})
    only(table.deep().violations, r"orders/1: offsets 4, 7 are in the table up to 3 times",
         r"orders/1: offsets 0 to 4: .* 6 rows, the receipts say 5",
         r"orders/1: offsets 5 to 11: .* 15 rows, the receipts say 14")  # fmt: skip


def test_a_seek_from_where_the_partition_is_not(table):
    table.move("seek", {P1: (11, 5)})
    only(table.audit().violations, r"orders/1: the seek starts at 11, the range before ends at 12")


# --- other engines ------------------------------------------------------------------------------


def test_appends_of_others_are_theirs(table):
    write_deltalake(
        str(table.root),
        pa.table({"amount": pa.array([1, 2, 3], pa.int64())}),
        mode="append",
        schema_mode="merge",
    )
    audit = table.deep(served_of(table))
    assert audit.ok
    assert audit.proven
    assert audit.commits.other_engines == 1
    assert (audit.deep.rows, audit.deep.rows_without_offset) == (40, 3)


def test_a_compaction_keeps_the_proof(table):
    table.delta().optimize.compact()
    audit = table.deep(served_of(table))
    assert audit.ok
    assert audit.proven
    assert audit.commits.other_engines == 1


def test_a_compaction_that_loses_rows(table):
    table.delta().optimize.compact()

    def fewer(line):
        if "add" in line:
            stats = json.loads(line["add"]["stats"])
            line["add"]["stats"] = json.dumps({**stats, "numRecords": stats["numRecords"] - 1})
        return [line]

    table.rewrite(5, fewer)
    only(table.audit().violations, r"version 5: OPTIMIZE by delta-rs.* rearranged 37 rows into 36")


def test_a_compaction_without_counts_is_unproven(table):
    table.delta().optimize.compact()
    table.rewrite(
        5,
        lambda line: [{"add": {**line["add"], "stats": None}}] if "add" in line else [line],
    )
    audit = table.audit()
    assert audit.ok
    only(audit.unproven, r"compactions at versions 5: .* cannot be compared")


def test_rows_deleted_by_others_are_unproven(table):
    table.delta().delete("_kafka_partition = 1 AND _kafka_offset < 3")
    audit = table.deep(served_of(table))
    assert audit.ok
    only(
        audit.unproven,
        r"from version 5 on: DELETE by delta-rs.* removed or rewrote rows",
        r"orders/1: 3 rows of the receipts are not in the table; .* removed rows at version 5",
        r"orders/1: Kafka serves offsets 0 to 2, which are not in the table",
    )
    assert audit.sentences()[0].startswith("exactly once as far as it can be proven")


def test_a_restore_is_unproven(table):
    table.delta().restore(2)
    audit = table.audit()
    assert audit.ok
    assert any("from version 5 on: RESTORE" in told for told in audit.unproven)


# --- clean-up -----------------------------------------------------------------------------------


def test_entries_gone_behind_a_checkpoint_are_unproven(table):
    table.delta().create_checkpoint()
    table.append(covered(P0, 30, 35))
    for version in range(4):
        table.entry(version).unlink()
    audit = table.deep({**served_of(table)})
    assert audit.violations == ()
    assert audit.unproven[0] == "before version 4: log entries 0 to 3 are gone (cleaned up)"
    assert [p.proven_from for p in audit.partitions] == [4, 4]
    assert [(p.offset_first, p.offset_next) for p in audit.partitions] == [(20, 35), (12, 12)]
    assert any("20 rows (offsets 0 to 19) came with commits" in told for told in audit.unproven)


def test_after_a_clean_up_the_chain_goes_on_from_the_checkpoint(table):
    table.delta().create_checkpoint()
    table.append(covered(P0, 30, 35), covered(P1, 12, 13))
    for version in range(5):
        table.entry(version).unlink()
    assert table.audit().violations == ()
    table.rewrite_receipt(5, P1, offset_first=11, records=2, rows=2)
    told = table.audit().violations
    assert any("orders/1: offsets 11 to 11 are covered twice" in s for s in told)


def test_a_checkpoint_that_disagrees(table):
    table.delta().create_checkpoint()
    table.set_txn(4, P0, 29)
    told = table.audit().violations
    assert any("checkpoint 4: orders/0 has txn 30, the entries up to it say 29" in s for s in told)


def test_a_doubled_row_of_a_cleaned_up_commit_is_still_named(table):
    table.delta().create_checkpoint()
    table.write({P0: [3]})
    for version in range(4):
        table.entry(version).unlink()
    table.state = follow(table.log, table.state)
    only(
        table.deep().violations,
        r"orders/0: offset 3 is in the table, and no commit covers them \(unless a seek before ve",
    )


# --- rows ---------------------------------------------------------------------------------------


def test_a_row_doubled_by_hand(table):
    table.write({P0: [12, 13]})
    only(
        table.deep().violations,
        r"orders/0: offsets 12 to 13 are in the table twice \(version 3\)",
        r"orders/0: offsets 10 to 19: the table has 12 rows, the receipts say 10",
    )


def test_a_lost_row_behind_a_lying_receipt(table):
    table.append(covered(P1, 12, 20), offsets={P1: [12, 13, 14, 16, 17, 18, 19]})
    assert any("its files hold 7 rows, its receipt says 8" in s for s in table.audit().violations)
    told = table.deep({**served_of(table), P1: list(range(20))}).violations
    assert any(
        "orders/1: offsets 12 to 19: the table has 7 rows, the receipts say 8, missing are among "
        "offset 15 (version 5)" in s
        for s in told
    )
    assert any("orders/1: offset 15 is lost: Kafka serves them" in s for s in told)


def test_a_loss_that_only_kafka_shows(tmp_path):
    table = Table.create(tmp_path / "t")
    table.claim(P0)
    table.append(covered(P0, 0, 10, missing=2), offsets={P0: [0, 1, 2, 3, 4, 5, 6, 9]})
    assert table.deep().ok
    only(table.deep({P0: list(range(10))}).violations, r"offsets 7 to 8 are lost: .*\(version 2\)")


def test_a_row_that_is_also_a_dead_letter(table):
    table.write({P0: [23]})
    assert any(
        "orders/0: offset 23 is in the table, and a commit lists them as a dead letter "
        "(version 4)" in told
        for told in table.deep().violations
    )


def test_gone_offsets_that_kafka_serves_are_lost(table):
    told = table.deep({**served_of(table), P0: list(range(30))}).violations
    only(told, r"orders/0: offsets 26 to 27 are lost")


def test_rows_beyond_the_txn(table):
    table.write({P1: [12, 50]})
    only(table.deep().violations, r"orders/1: offsets 12, 50 are in the table, and no commit cov")


def test_rows_of_a_partition_that_nobody_claimed(table):
    table.write({TopicPartition("orders", 9): [0]})
    only(table.deep().violations, r"orders/9: the table has rows of this partition, and no commit")


def test_what_kafka_no_longer_has_is_counted(table):
    audit = table.deep({P0: list(range(8, 26)), P1: []})
    assert audit.ok
    assert audit.deep.not_served == 8 + 2 + 12
    assert "no longer has 22 of the offsets" in audit.sentences()[-1]


def test_a_data_file_that_is_gone(table):
    (table.root / table.adds(3)[0]["path"]).unlink()
    only(
        table.deep().violations, r"version 4 cannot be read: the log lists the file part-.*parquet"
    )


def test_without_metadata_columns_the_rows_are_unproven(tmp_path):
    table = Table.create(tmp_path / "t", columns=())
    table.claim(P0)
    table.append(covered(P0, 0, 4))
    audit = table.deep()
    assert audit.ok
    assert audit.deep is None
    only(audit.unproven, r"the rows: the table has no column _kafka_topic|no column _kafka_part")


def test_one_topic_needs_no_column_of_its_own(tmp_path):
    table = Table.create(tmp_path / "t", columns=COLUMNS[1:])
    table.claim(P0)
    table.append(covered(P0, 0, 4))
    assert table.deep().deep.rows == 4
    table.write({P0: [2]})
    assert any("offset 2 is in the table twice" in told for told in table.deep().violations)


def test_another_sink_in_the_same_table(table):
    other = TopicPartition("returns", 0)
    table.author = Author("returns-sink", "w2", 1)
    table.claim(other)
    table.append(covered(other, 0, 6))
    audit = table.deep(served_of(table))
    assert audit.ok
    assert [p.tp for p in audit.other_partitions] == [other]
    assert {p.sink for p in audit.partitions} == {SINK}
    table.set_txn(6, other, None)
    assert table.audit().ok
    assert not audit_log(table.log, "returns-sink").ok


# --- the reader and the arithmetic --------------------------------------------------------------


def test_the_reader_is_pinned_to_the_version(table):
    reader = DeltaRows(str(table.root), StorageSettings())
    assert sum(batch.num_rows for batch in reader.offsets(2)) == 15
    assert sum(batch.num_rows for batch in reader.offsets(4)) == 37
    with pytest.raises(TableRefused, match="deltalake cannot read version 9"):
        list(reader.offsets(9))


def test_the_reader_names_a_missing_file(table):
    (table.root / table.adds(2)[0]["path"]).unlink()
    with pytest.raises(ObjectMissing, match=r"the file part-.*\.parquet"):
        list(DeltaRows(str(table.root), StorageSettings()).offsets(4))


def test_storage_settings_reach_the_reader():
    told = storage_options(
        StorageSettings(
            endpoint_url="http://127.0.0.1:9000",
            region="eu-west-1",
            access_key_id="key",
            secret_access_key="secret",
        )
    )
    assert told["aws_endpoint_url_s3"] == "http://127.0.0.1:9000"
    assert told["aws_secret_access_key"] == "secret"
    assert told["allow_http"] == "true"
    assert "aws_session_token" not in told


def test_a_store_that_does_not_answer():
    nobody = StorageSettings(
        endpoint_url="http://127.0.0.1:9",
        region="us-east-1",
        access_key_id="key",
        secret_access_key="secret",
        request_timeout_ms=500,
    )
    with pytest.raises(StoreUnavailable, match="deltalake cannot read version 0"):
        list(DeltaRows("s3://bucket/table", nobody).offsets(0))


@pytest.mark.process
def test_rows_come_from_s3_too():
    """The server runs in a thread of this process: the reader must not hold the lock."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        storage = StorageSettings(
            endpoint_url=f"http://{host}:{port}",
            region="us-east-1",
            access_key_id="key",
            secret_access_key="secret",
        )
        client = boto3.client(
            "s3",
            endpoint_url=storage.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket="bucket")
        rows = rows_of(TableSchema((Field("amount", "long"), *COLUMNS)), {P0: list(range(7))})
        write_deltalake("s3://bucket/table", rows, storage_options=storage_options(storage))
        reader = DeltaRows("s3://bucket/table", storage)
        assert sum(batch.num_rows for batch in reader.offsets(0)) == 7
        for found in client.list_objects_v2(Bucket="bucket")["Contents"]:
            if found["Key"].endswith(".parquet"):
                client.delete_object(Bucket="bucket", Key=found["Key"])
        with pytest.raises(ObjectMissing, match="the log lists the file"):
            list(reader.offsets(0))
        client.close()
    finally:
        server.stop()


@dataclass
class Given:
    """A reader whose rows are given, in batches of any size and order."""

    batches: list[pa.RecordBatch]

    def offsets(self, version: int) -> Iterator[pa.RecordBatch]:
        yield from self.batches


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_is_found_as_counting_finds_it(tmp_path, seed):
    """Against the plain way: a dictionary that counts every offset."""
    random = np.random.default_rng(seed)
    table = Table.create(tmp_path / "t")
    table.claim(P0)
    table.append(covered(P0, 0, 40))
    table.append(covered(P0, 40, 90, dead_letters=((50, 55),)))
    audit = table.audit()
    right = [o for o in range(90) if not 50 <= o < 55]
    rows = np.array(right + random.integers(0, 100, random.integers(0, 4)).tolist())
    rows = np.delete(rows, random.choice(len(rows), random.integers(0, 4), replace=False))
    random.shuffle(rows)
    batches = [
        pa.record_batch(
            {
                "_kafka_topic": pa.array(["orders"] * len(part)),
                "_kafka_partition": pa.array([0] * len(part), pa.int32()),
                "_kafka_offset": pa.array(part, pa.int64()),
            }
        )
        for part in np.array_split(rows, 5)
    ]
    deep = audit_rows(audit, Given(batches), Kafka({P0: list(range(90))}))
    counts = {o: int((rows == o).sum()) for o in range(100)}
    assert deep.ok == all(counts[o] == (o in set(right)) for o in range(100))
    told = " ".join(deep.violations)
    for words, wrong in (
        ("lost", [o for o in right if counts[o] == 0]),
        ("no commit covers", [o for o in range(90, 100) if counts[o]]),
        ("twice|times", [o for o in range(90) if counts[o] > 1]),
    ):
        assert bool(re.search(words, told)) == bool(wrong), (words, wrong, told)


def test_violations_are_limited(tmp_path):
    table = Table.create(tmp_path / "t")
    table.claim(P0)
    for number in range(120):
        table.append(covered(P0, number, number + 1))
        table.set_txn(table.state.version, P0, None)
    told = audit_log(table.log, SINK).violations
    assert len(told) == 101
    assert told[-1] == "and 20 more, which are not spelt out"
