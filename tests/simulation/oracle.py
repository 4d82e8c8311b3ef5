"""What must hold after every log version, judged from raw bytes with none of the product's code.

`Oracle` hears of every object that lands in the store. It reads log entries with `json`, data
files with pyarrow, and compares them with `Ledger`, which knows every record that was produced.
The names I1 … I17 are those of the project's list of invariants.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from urllib.parse import unquote

import pyarrow.parquet as pq

from delta_sink.errors import ObjectMissing

ENTRY = re.compile(r"_delta_log/(\d{20})\.json")
TAG = re.compile(r"(?:.*/)?part-(\d{20})-[0-9a-f]{32}\.zstd\.parquet")
FENCE = "delta-sink/vacuum"


class Violation(AssertionError):
    """An invariant does not hold."""


def require(holds: object, invariant: str, *what: object) -> None:
    if not holds:
        raise Violation(f"{invariant}: {' '.join(map(str, what))}")


@dataclass
class Produced:
    """A record as it was produced. `kind` is good, bad or tombstone.

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
    before or not.
    """

    records: dict[tuple[str, int], dict[int, Produced]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    optional: dict[tuple[str, int], set[int]] = field(default_factory=lambda: defaultdict(set))

    def count(self) -> int:
        return sum(len(records) for records in self.records.values())


@dataclass
class Place:
    """What the log says of one partition so far."""

    claimed: int
    offset_next: int
    rows: set[int] = field(default_factory=set)
    letters: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    gone: list[tuple[int, int]] = field(default_factory=list)


class Oracle:
    """Follows the log of one table as it grows and raises `Violation` at the first wrong entry."""

    def __init__(self, store, kafka, ledger: Ledger, *, dead_letter_topic: str) -> None:
        self.store = store
        self.kafka = kafka
        self.ledger = ledger
        self.version = -1
        self.places: dict[str, Place] = {}
        self.txns: dict[str, int] = {}
        self.txn_highest: dict[str, int] = {}
        self.receipts: dict[int, dict] = {}
        self.commits = 0
        self.protocol: dict = {}
        self.metadata: dict = {}
        self.live: set[str] = set()
        self.row_kinds = {"good"}
        self.checkpoint = -1
        self.ghosts: dict[int, str] = {}
        self._cleaned_up: set[int] = set()
        self._added: set[str] = set()
        self._dead_letter_topic = dead_letter_topic
        store.on_created = self._created
        store.on_overwritten = self._overwritten
        store.on_deleted = self._deleted

    # --- what the store tells -------------------------------------------------------------------

    def _overwritten(self, path: str, before: bytes, after: bytes) -> None:
        require(not path.startswith("_delta_log/") or before == after, "I17", "overwritten", path)

    def _created(self, path: str, data: bytes) -> None:
        if path.endswith(".checkpoint.parquet"):
            self.checkpoint = max(self.checkpoint, int(path[11:31]))
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

    def _deleted(self, path: str, data: bytes) -> None:
        match = ENTRY.fullmatch(path)
        if match is not None:
            self._cleaned_up.add(int(match[1]))
        require(path not in self.live, "I10", f"{path} is deleted and the table needs it")

    def _entry(self, version: int, data: bytes) -> None:
        require(
            version == self.version + 1, "I17", f"version {version} landed after {self.version}"
        )
        self.version = version
        lines = [json.loads(line) for line in data.splitlines() if line.strip()]
        actions: dict[str, list[dict]] = defaultdict(list)
        for line in lines:
            [(kind, action)] = line.items()
            actions[kind].append(action)
        self.protocol = (actions["protocol"] or [self.protocol])[-1]
        self.metadata = (actions["metaData"] or [self.metadata])[-1]
        info = (actions["commitInfo"] or [{}])[0]
        receipt = json.loads(info["userMetadata"]) if "userMetadata" in info else None
        fence = self.txns.get(FENCE, -1)
        rows = self._rows(actions["add"], fence)
        self._removes(actions["remove"])
        self._txns(actions["txn"], info.get("operation"))
        if receipt is not None:
            self.receipts[version] = receipt
            self.commits += receipt["kind"] == "append"
            self._receipt(receipt, actions, rows)
        else:
            require(not rows, "I4", f"version {version} adds rows without a receipt")

    # --- files ----------------------------------------------------------------------------------

    def _rows(self, adds: list[dict], fence: int) -> dict[tuple[str, int], list[int]]:
        """Return the offsets of the rows that are added, by partition, each compared."""
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for add in adds:
            path = add["path"]
            require(path not in self._added, "I7", f"{path} added again at {self.version}")
            self._added.add(path)
            self.live.add(path)
            try:
                data = self.store.peek(unquote(path))
            except ObjectMissing:
                raise Violation(f"I8: {path} is not in the store") from None
            require(len(data) == add["size"], "I8", f"{path} has {len(data)} bytes")
            if not add["dataChange"]:
                continue
            tag = TAG.fullmatch(unquote(path))
            require(tag and int(tag[1]) > fence, "I10", f"{path} is behind the fence {fence}")
            table = pq.ParquetFile(io.BytesIO(data)).read(use_threads=False).to_pylist()
            stats = json.loads(add["stats"])
            require(stats["numRecords"] == len(table), "I8", f"{path} has {len(table)} rows")
            for row in table:
                self._row(row | add["partitionValues"])
                found[row["_kafka_topic"], row["_kafka_partition"]].append(row["_kafka_offset"])
        return found

    def _row(self, row: dict) -> None:
        tp, offset = (row["_kafka_topic"], row["_kafka_partition"]), row["_kafka_offset"]
        produced = self.ledger.records[tp].get(offset)
        require(produced is not None, "I3", f"{tp}@{offset} was never produced")
        require(produced.kind in self.row_kinds, "I3", f"{tp}@{offset} is {produced.kind}, a row")
        stamp_ms = round(row["_kafka_timestamp"].timestamp() * 1000)
        same = (row["seq"], row["text"], stamp_ms) == (
            produced.seq,
            produced.text,
            produced.timestamp_ms,
        )
        require(same, "I3", f"{tp}@{offset}: row {row['seq']} is not record {produced.seq}")

    def _removes(self, removes: list[dict]) -> None:
        for remove in removes:
            require(remove["path"] in self.live, "I7", f"{remove['path']} removed, is not live")
            self.live.discard(remove["path"])

    # --- offsets --------------------------------------------------------------------------------

    def _txns(self, txns: list[dict], operation: str | None) -> None:
        for txn in txns:
            app_id, version = txn["appId"], txn["version"]
            require("lastUpdated" not in txn, "I4", f"{app_id} has lastUpdated")
            if operation != "SEEK":
                before = self.txns.get(app_id, -1)
                require(version >= before, "I5", f"{app_id} falls from {before} to {version}")
            self.txns[app_id] = version
            self.txn_highest[app_id] = max(version, self.txn_highest.get(app_id, -1))

    def _receipt(self, receipt: dict, actions: dict[str, list[dict]], rows: dict) -> None:
        moved = {txn["appId"]: txn["version"] for txn in actions["txn"]}
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
        tp = (part["topic"], part["partition"])
        for name, offsets in (("rows", rows), ("letters", letters), ("skipped", skipped)):
            seen: set[int] = getattr(place, name)
            require(len(set(offsets)) == len(offsets), "I2", f"{tp} {name} doubled in one commit")
            again = (place.rows | place.letters | place.skipped) & set(offsets)
            require(not again, "I2", f"{tp} offsets {sorted(again)[:5]} came before")
            seen |= set(offsets)
        self._complete(tp, first, after, {*rows, *letters, *skipped}, set(gone))
        self._kinds(tp, letters, skipped)
        self._letters_are_durable(tp, letters, receipt["commit_id"])

    def _complete(self, tp, first: int, after: int, covered: set[int], gone: set[int]) -> None:
        """I1: every record that Kafka had in the range is accounted for, and nothing else is."""
        require(all(first <= offset < after for offset in covered | gone), "I4", tp, first, after)
        wanted = {offset for offset in self.ledger.records[tp] if first <= offset < after}
        lost = wanted - covered - self.ledger.optional[tp]
        require(not lost, "I1", f"{tp} lost {sorted(lost)[:5]} of {first}..{after}")
        require(covered <= wanted, "I1", f"{tp} invented {sorted(covered - wanted)[:5]}")
        false = gone & wanted - self.ledger.optional[tp]
        require(not false, "I1", f"{tp} calls {sorted(false)[:5]} gone, Kafka has them")

    def _kinds(self, tp, letters: list[int], skipped: list[int]) -> None:
        records = self.ledger.records[tp]
        wrong = [offset for offset in letters if records[offset].kind == "good"]
        wrong += [offset for offset in skipped if records[offset].kind != "tombstone"]
        require(not wrong, "I1", f"{tp}@{wrong[:5]} are no rows although they could be")

    def _letters_are_durable(self, tp, letters: list[int], commit_id: str) -> None:
        """Whatever a commit lists as a dead letter stands in the dead-letter topic by then."""
        if not letters:
            return
        durable = set()
        for record in self.kafka.records(self._dead_letter_topic, 0):
            headers = dict(record.headers)
            if headers["delta_sink.commit_id"].decode() == commit_id:
                topic = headers["__connect.errors.topic"].decode()
                partition = int(headers["__connect.errors.partition"])
                durable.add((topic, partition, int(headers["__connect.errors.offset"])))
        missing = [offset for offset in letters if (*tp, offset) not in durable]
        require(not missing, "I1", f"{tp}@{missing[:5]} are listed and in no dead letter")

    # --- the end --------------------------------------------------------------------------------

    def check_group(self, offsets) -> None:
        """I6: what the group is told was in the log before."""
        for tp, offset in offsets.items():
            highest = [
                version
                for app_id, version in self.txn_highest.items()
                if re.fullmatch(rf".*/{re.escape(tp.topic)}(@.*)?/{tp.partition}", app_id)
            ]
            require(
                highest and offset <= max(highest), "I6", f"{tp}: group {offset}, txn {highest}"
            )

    def check_acknowledged(self, worker: str, version: int, rows: int) -> None:
        """I17: what a worker was told landed is what the log has."""
        receipt = self.receipts.get(version)
        require(receipt is not None, "I17", f"{worker} committed {version}: it has no receipt")
        require(receipt["worker"] == worker, "I17", f"{worker}: version {version} is another's")
        told = sum(part["rows"] for part in receipt["partitions"])
        require(told == rows, "I17", f"{worker}: version {version} has {told} rows, not {rows}")


def spread(runs: list[list[int]]) -> list[int]:
    return [offset for first, after in runs for offset in range(first, after)]
