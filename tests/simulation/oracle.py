"""What must hold after every log version, judged from raw bytes with none of the product's code.

`Oracle` hears of every object that lands in the store. It reads log entries with `json`, data
files with pyarrow, and compares them with `Ledger`, which knows every record that was produced.
What it knows it moves forward by one entry: a version costs what stands in it, however long the
log is. The names I1 … I17 are those of the project's list of invariants.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from delta_sink.errors import ObjectMissing

ENTRY = re.compile(r"_delta_log/(\d{20})\.json")
TAG = re.compile(r"(?:.*/)?part-(\d{20})-[0-9a-f]{32}\.[a-z0-9]+\.parquet")
FENCE = "delta-sink/vacuum"
RETIRED = 2**53 - 1
FOREIGN_RETENTION_MS = 7 * 24 * 3_600_000
"""Another engine's VACUUM may delete what was removed so long ago: Delta's own default."""

FATES = {
    "good": {"row"},
    "bad": {"letter"},
    "tombstone": {"letter", "skip"},
    "extra": {"row", "letter"},
    "deep": {"row", "letter"},
}
"""What may become of a record of each kind. Of some the configuration decides, which changes."""


class Violation(AssertionError):
    """An invariant does not hold."""


def require(holds: object, invariant: str, *what: object) -> None:
    if not holds:
        raise Violation(f"{invariant}: {' '.join(map(str, what))}")


@dataclass(slots=True)
class Produced:
    """A record as it was produced; `kind` is one of `FATES`.

    `seq` and `text` are what its row must hold: None for a tombstone that becomes a row of nulls.
    """

    kind: str
    seq: int | None
    text: str | None
    timestamp_ms: int


@dataclass
class Ledger:
    """Every record that a reader of committed records could ever see, by partition and offset.

    `optional` are offsets that compaction dropped or retention deleted: they may have been read
    before or not; of those in `deleted`, which retention took, a commit says that they are gone.
    `past` has what topics held that were deleted, by topic id and partition.
    """

    records: dict[tuple[str, int], dict[int, Produced]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    optional: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    deleted: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))
    past: dict[tuple[str, int], tuple[dict[int, Produced], set[int]]] = field(default_factory=dict)

    def of(self, app_id: str, tp: tuple[str, int]) -> tuple[dict[int, Produced], set[int]]:
        """Return the records, and the optional offsets, that `app_id` reads or has read."""
        _, _, topic_id = app_id.split("/")[1].partition("@")
        return self.past.get((topic_id, tp[1])) or (self.records[tp], self.optional[tp])

    def retire(self, topic: str, topic_id: str) -> None:
        """Move what the topic held to the past: it was deleted, and others may come."""
        for tp in [tp for tp in self.records if tp[0] == topic]:
            self.past[topic_id, tp[1]] = (self.records.pop(tp), self.optional.pop(tp, set()))
            self.deleted.pop(tp, None)

    def count(self) -> int:
        return sum(len(records) for records in self.records.values())


@dataclass(slots=True)
class Place:
    """What the log says of one partition so far."""

    claimed: int
    offset_next: int
    rows: set[int] = field(default_factory=set)
    letters: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)


Row = tuple[object, ...]
COLUMNS = ("_kafka_topic", "_kafka_partition", "_kafka_offset", "seq", "text", "_kafka_timestamp")


class Oracle:
    """Follows the log of one table as it grows and raises `Violation` at the first wrong entry.

    Attributes:
        entries: how many log versions were judged, also those of tables that were dropped.
        files: the rows of each live file, as tuples of `COLUMNS`.
        ghosts: entries that landed where the log had been cleaned up: nobody reads them.
    """

    def __init__(self, store, kafka, ledger: Ledger, *, dead_letter_topic: str) -> None:
        self.store = store
        self.kafka = kafka
        self.ledger = ledger
        self.entries = 0
        self.receipts: dict[int, dict] = {}
        self.row_kinds = {kind for kind, fates in FATES.items() if "row" in fates}
        self._dead_letter_topic = dead_letter_topic
        self._letters_read = 0
        self._letters: set[tuple[str, str, int, int]] = set()
        self._highest: dict[tuple[str, int], int] = {}
        self._begin()
        store.on_created = self._created
        store.on_overwritten = self._overwritten
        store.on_deleted = self._deleted

    def _begin(self) -> None:
        self.version = -1
        self.commits = 0
        self.places: dict[str, Place] = {}
        self.txns: dict[str, int] = {}
        self.protocol: dict = {}
        self.metadata: dict = {}
        self.files: dict[str, list[Row]] = {}
        self.checkpoint = -1
        self.ghosts: dict[int, str] = {}
        self._txns_at: dict[int, dict[str, int]] = {}
        self._cleaned_up: set[int] = set()
        self._added: set[str] = set()
        self._removed: dict[str, tuple[int, int]] = {}
        self._is_dropping = False

    def drop_table(self) -> None:
        """Delete everything in the store, by hand, and expect a new table."""
        self._is_dropping = True
        self.store.drop()
        self.receipts = {}
        self._begin()

    @property
    def live(self) -> set[str]:
        """The paths of the files that the table has now."""
        return set(self.files)

    def removed_ms(self, path: str) -> int | None:
        """Return when a file was removed from the table, None if it never was."""
        return self._removed[path][1] if path in self._removed else None

    def removed_at(self, path: str) -> int | None:
        """Return the version that removed a file from the table, None if none did."""
        return self._removed[path][0] if path in self._removed else None

    # --- what the store tells -------------------------------------------------------------------

    def _overwritten(self, path: str, before: bytes, after: bytes) -> None:
        is_hint = path.endswith("_last_checkpoint")  # the one object of a log that changes
        is_log = path.startswith("_delta_log/") and not is_hint
        require(not is_log or before == after, "I17", "overwritten", path)

    def _created(self, path: str, data: bytes) -> None:
        if path.endswith(".checkpoint.parquet"):
            self._checkpoint(int(path[11:31]), data)
        match = ENTRY.fullmatch(path)
        if match is None:
            return
        version = int(match[1])
        if version in self._cleaned_up and version < self.checkpoint:
            # A PUT that was on its way while the log was cleaned up. No reader looks there any
            # more; that its sender does not believe the answer is seen in `check_acknowledged`.
            self.ghosts[version] = data.decode()
            return
        self._entry(version, data)

    def _checkpoint(self, version: int, data: bytes) -> None:
        """I17: what a checkpoint stands for is what the entries said."""
        self.checkpoint = max(self.checkpoint, version)
        rows = pq.ParquetFile(pa.BufferReader(data)).read(["txn"], use_threads=False)
        found = {t["appId"]: t["version"] for t in rows.column(0).drop_null().to_pylist()}
        wanted = self._txns_at.get(version)
        require(wanted == found, "I17", f"checkpoint {version} has {found}, the log {wanted}")

    def _deleted(self, path: str, data: bytes) -> None:
        if self._is_dropping:
            return
        match = ENTRY.fullmatch(path)
        if match is not None:
            version = int(match[1])
            self._cleaned_up.add(version)
            require(version < self.checkpoint, "I10", f"entry {version} is above all checkpoints")
        require(path not in self.files, "I10", f"{path} is deleted and the table needs it")
        if path in self._removed:
            version, removed_ms = self._removed[path]
            age_ms = self.store.world.wall_ms - removed_ms
            is_due = version <= self.txns.get(FENCE, -1) or age_ms >= FOREIGN_RETENTION_MS
            require(is_due, "I10", f"{path} is deleted, it was removed at {version}")

    def _entry(self, version: int, data: bytes) -> None:
        require(
            version == self.version + 1, "I17", f"version {version} landed after {self.version}"
        )
        self.version = version
        self.entries += 1
        actions: dict[str, list[dict]] = defaultdict(list)
        for line in data.splitlines():
            if line.strip():
                [(kind, action)] = json.loads(line).items()
                actions[kind].append(action)
        self.protocol = (actions["protocol"] or [self.protocol])[-1]
        self.metadata = (actions["metaData"] or [self.metadata])[-1]
        info = (actions["commitInfo"] or [{}])[0]
        receipt = json.loads(info["userMetadata"]) if "userMetadata" in info else None
        fence = self.txns.get(FENCE, -1)
        new = self._adds(actions["add"], fence)
        self._removes(actions["remove"], new)
        self._txns(actions["txn"], info.get("operation"))
        rows = self._rows(actions["add"], receipt or {})
        if receipt is not None:
            self.receipts[version] = receipt
            self.commits += receipt["kind"] == "append"
            self._receipt(receipt, actions["txn"], rows)
        else:
            require(not rows, "I4", f"version {version} adds records without a receipt")

    # --- files ----------------------------------------------------------------------------------

    def _adds(self, adds: list[dict], fence: int) -> list[str]:
        """Take every file that is added; return those that only rewrite rows (I7, I8, I10)."""
        rewrites: list[str] = []
        for add in adds:
            path = add["path"]
            require(path not in self._added, "I7", f"{path} added again at {self.version}")
            self._added.add(path)
            try:
                data = self.store.peek(unquote(path))
            except ObjectMissing:
                raise Violation(f"I8: {path} is not in the store") from None
            require(len(data) == add["size"], "I8", f"{path} has {len(data)} bytes")
            tag = TAG.fullmatch(unquote(path))
            require(not tag or int(tag[1]) > fence, "I10", f"{path} is behind the fence {fence}")
            rows = _read(data, add["partitionValues"])
            if "stats" in add:
                told = json.loads(add["stats"])["numRecords"]
                require(told == len(rows), "I8", f"{path} has {len(rows)} rows, not {told}")
            self.files[path] = rows
            if not add["dataChange"]:
                rewrites.append(path)
        return rewrites

    def _removes(self, removes: list[dict], rewrites: list[str]) -> None:
        """Let go of what is removed; I9: rewritten, the rows are the same as often as before."""
        balance: Counter[Row] = Counter()
        for remove in removes:
            path = remove["path"]
            require(path in self.files, "I7", f"{path} removed, is not live")
            require(path not in rewrites, "I7", f"{path} comes and goes in one version")
            rows = self.files.pop(path)
            self._removed[path] = (self.version, self.store.world.wall_ms)
            if not remove.get("dataChange", True):
                balance.update(rows)
        for path in rewrites:
            balance.subtract(self.files[path])
        wrong = [row for row, count in balance.items() if count]
        require(not wrong, "I9", f"rewriting changed rows at {self.version}: {wrong[:3]}")

    def _rows(self, adds: list[dict], receipt: dict) -> dict[tuple[str, int], list[int]]:
        """Return the offsets of the records that are added, by partition, each compared (I3).

        Rows without a topic are another engine's own.
        """
        app_ids = {(p["topic"], p["partition"]): p["app_id"] for p in receipt.get("partitions", [])}
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for add in adds:
            if not add["dataChange"]:
                continue
            for row in self.files[add["path"]]:
                if row[0] is None:
                    continue
                tp = (row[0], row[1])
                require(tp in app_ids, "I4", f"{tp} is in no range of version {self.version}")
                self._row(row, self.ledger.of(app_ids[tp], tp)[0].get(row[2]))
                found[tp].append(row[2])
        return found

    def _row(self, row: Row, produced: Produced | None) -> None:
        topic, partition, offset, seq, text, stamp_us = row
        where = f"{topic}/{partition}@{offset}"
        if produced is None:
            raise Violation(f"I3: {where} was never produced")
        require(produced.kind in self.row_kinds, "I3", f"{where} is {produced.kind}, a row")
        same = (seq, text) == (produced.seq, produced.text)
        require(same, "I3", f"{where}: row {seq} is not record {produced.seq}")
        is_then = stamp_us is None or stamp_us == produced.timestamp_ms * 1000
        require(is_then, "I3", f"{where}: {stamp_us} µs is not {produced.timestamp_ms} ms")

    # --- offsets --------------------------------------------------------------------------------

    def _txns(self, txns: list[dict], operation: str | None) -> None:
        for txn in txns:
            app_id, version = txn["appId"], txn["version"]
            require("lastUpdated" not in txn, "I4", f"{app_id} has lastUpdated")
            if operation != "SEEK":
                before = self.txns.get(app_id, -1)
                require(version >= before, "I5", f"{app_id} falls from {before} to {version}")
            self.txns[app_id] = version
            parts = app_id.split("/")
            if len(parts) == 3 and version != RETIRED:
                tp = (parts[1].partition("@")[0], int(parts[2]))
                self._highest[tp] = max(version, self._highest.get(tp, -1))
        self._txns_at[self.version] = dict(self.txns)

    def _receipt(self, receipt: dict, txns: list[dict], rows: dict) -> None:
        moved = {txn["appId"]: txn["version"] for txn in txns}
        if receipt["kind"] == "vacuum":
            moved.pop(FENCE, None)  # it is no offset
        told = {part["app_id"]: part["offset_next"] for part in receipt.get("partitions", [])}
        require(moved == told, "I4", f"txns {moved}, receipt {told} at {self.version}")
        for part in receipt.get("partitions", []):
            if receipt["kind"] == "claim":
                self._claim(part)
            elif receipt["kind"] == "seek":
                self._seek(part)
            else:
                self._range(part, receipt, rows.pop((part["topic"], part["partition"]), []))
        require(not rows, "I4", f"rows of {set(rows)} are in no range of version {self.version}")

    def _claim(self, part: dict) -> None:
        app_id = part["app_id"]
        require(app_id not in self.places, "I4", f"{app_id} is claimed twice")
        require(part["offset_first"] == part["offset_next"], "I4", f"{app_id}: a claim of a range")
        self.places[app_id] = Place(part["offset_next"], part["offset_next"])

    def _seek(self, part: dict) -> None:
        """The overlap that it states may come again, and nothing else.

        An app id that takes over another's offset begins with a seek and has no claim.
        """
        first, after = part["offset_first"], part["offset_next"]
        place = self.places.setdefault(part["app_id"], Place(after, after))
        place.offset_next = after
        for seen in (place.rows, place.letters, place.skipped):
            # Not a range: a sink that is taken back jumps from the greatest offset there is.
            seen.difference_update([offset for offset in seen if after <= offset < first])

    def _range(self, part: dict, receipt: dict, rows: list[int]) -> None:
        app_id, first, after = part["app_id"], part["offset_first"], part["offset_next"]
        require(app_id in self.places, "I4", f"{app_id} was never claimed")
        place = self.places[app_id]
        require(
            first == place.offset_next,
            "I4",
            f"{app_id}: a range from {first}, the last one ended at {place.offset_next}",
        )
        place.offset_next = after
        letters = spread(part.get("dead_letters", []))
        skipped = spread(part.get("skipped", []))
        gone = spread(part.get("gone", []))
        counts = (part["records"], part["rows"])
        require(counts[1] == len(rows), "I4", f"{app_id}: {counts[1]} rows told, {len(rows)} found")
        require(counts[0] == len(rows) + len(letters) + len(skipped), "I4", f"{app_id}: {part}")
        for name, offsets in (("rows", rows), ("letters", letters), ("skipped", skipped)):
            require(len(set(offsets)) == len(offsets), "I2", f"{app_id} {name} doubled")
            again = [
                offset
                for offset in offsets
                if offset in place.rows or offset in place.letters or offset in place.skipped
            ]
            require(not again, "I2", f"{app_id} offsets {again[:5]} came before")
            getattr(place, name).update(offsets)
        records, optional = self.ledger.of(app_id, (part["topic"], part["partition"]))
        covered = {*rows, *letters, *skipped}
        require(all(first <= offset < after for offset in covered), "I4", f"{app_id}: {part}")
        wanted = {offset for offset in range(first, after) if offset in records}
        lost = wanted - covered - optional
        require(not lost, "I1", f"{app_id} lost {sorted(lost)[:5]} of {first}..{after}")
        require(covered <= wanted, "I1", f"{app_id} invented {sorted(covered - wanted)[:5]}")
        if records is self.ledger.records[part["topic"], part["partition"]]:
            unsaid = wanted & self.ledger.deleted[part["topic"], part["partition"]] - covered
            unsaid.difference_update(gone)
            require(not unsaid, "I4", f"{app_id} does not say that {sorted(unsaid)[:5]} are gone")
        false = wanted.intersection(gone) - optional
        require(not false, "I1", f"{app_id} calls {sorted(false)[:5]} gone, Kafka has them")
        for fate, offsets in (("letter", letters), ("skip", skipped)):
            wrong = [offset for offset in offsets if fate not in FATES[records[offset].kind]]
            require(
                not wrong, "I1", f"{app_id}@{wrong[:5]} are a {fate} although they could be rows"
            )
        self._letters_are_durable(part, letters, receipt["commit_id"])

    def _letters_are_durable(self, part: dict, letters: list[int], commit_id: str) -> None:
        """Whatever a commit lists as a dead letter stands in the dead-letter topic by then."""
        if not letters:
            return
        records = self.kafka.records(self._dead_letter_topic, 0)
        for record in records[self._letters_read :]:
            headers = {name: value.decode() for name, value in record.headers}
            where = (headers["__connect.errors.topic"], int(headers["__connect.errors.partition"]))
            offset = int(headers["__connect.errors.offset"])
            self._letters.add((headers["delta_sink.commit_id"], *where, offset))
        self._letters_read = len(records)
        tp = (part["topic"], part["partition"])
        missing = [offset for offset in letters if (commit_id, *tp, offset) not in self._letters]
        require(not missing, "I1", f"{tp}@{missing[:5]} are listed and in no dead letter")

    # --- what others are told -------------------------------------------------------------------

    def check_group(self, offsets) -> None:
        """I6: what the group is told was in the log before."""
        for tp, offset in offsets.items():
            highest = self._highest.get((tp.topic, tp.partition))
            holds = highest is not None and offset <= highest
            require(holds, "I6", f"{tp}: group {offset}, txn {highest}")

    def check_acknowledged(self, worker: str, version: int, rows: int) -> None:
        """I17: what a worker was told landed is what the log has."""
        receipt = self.receipts.get(version)
        require(receipt is not None, "I17", f"{worker} committed {version}: it has no receipt")
        require(receipt["worker"] == worker, "I17", f"{worker}: version {version} is another's")
        told = sum(part["rows"] for part in receipt["partitions"])
        require(told == rows, "I17", f"{worker}: version {version} has {told} rows, not {rows}")

    def check_seek(self, operator: str, version: int) -> None:
        """I11 and I17: a seek that was told to have landed is there, and no other of its name."""
        found = [v for v, receipt in self.receipts.items() if receipt["worker"] == operator]
        require(found == [version], "I17", f"seek of {operator}: told {version}, found {found}")


def _read(data: bytes, partition_values: dict[str, str | None]) -> list[Row]:
    """Return the rows of a data file, read in this thread and from its bytes alone."""
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    table = file.read(use_threads=False)
    columns: dict[str, list] = {name: [] for name in table.column_names}
    for batch in table.to_batches():
        for name, array in zip(batch.schema.names, batch.columns, strict=True):
            plain = array.view(pa.int64()) if pa.types.is_timestamp(array.type) else array
            columns[name] += plain.to_pylist()
    for name, text in partition_values.items():
        # The log has the values of table partitions as text.
        value = int(text) if name == "_kafka_partition" and text is not None else text
        columns.setdefault(name, [value] * table.num_rows)
    nothing = [None] * table.num_rows
    return list(zip(*(columns.get(name, nothing) for name in COLUMNS), strict=True))


def spread(runs: list[list[int]]) -> list[int]:
    return [offset for first, after in runs for offset in range(first, after)]
