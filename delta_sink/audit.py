"""The proof, from the log alone: every offset went into the table once, or which did not.

Theory of operation. Each commit of a sink carries a receipt: per partition the range of offsets
that it covers and what became of them. The audit walks all entries that there are, oldest first,
and holds each one against what it knows of the entries before it:

* a partition begins with a claim, and each range begins where the one before ended;
* the entry's `txn` is the end of its range; no `txn` of the sink moves without a receipt, and
  none falls but in a seek;
* records are rows, dead letters and skipped ones, nothing else, and the rows are as many as the
  files of the entry say;
* no file comes into the table twice, no commit is there twice;
* what other engines do may not change rows: appending is theirs to do, compaction must keep the
  number of rows, and where they delete, nobody can tell any more: that is *unproven*.

Where old entries were cleaned up by this sink, the audit goes on from the anchor that the clean-up
left (`audit_anchor.py`). Where another engine did it, a partition is followed from the first range
that is still there. The checkpoints on the way must hold the same `txn`s as the entries.

`audit_rows` (`audit_rows.py`) goes on from here to the rows themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from delta_sink.audit_anchor import (
    ANCHOR_FORMAT,
    Anchor,
    AnchoredSeek,
    anchor_path,
    anchor_versions,
    chosen_anchor,
    decode_anchor,
    encode_anchor,
)
from delta_sink.audit_chain import Chain
from delta_sink.audit_report import Audit, Commits, Findings, PartitionAudit, Seek
from delta_sink.audit_rows import RowReader, ServedOffsets, ServedSource, audit_rows
from delta_sink.delta.actions import Add, CommitInfo, Entry, Metadata
from delta_sink.delta.checkpoint import read_checkpoint
from delta_sink.delta.checkpoint_files import checkpoint_batches
from delta_sink.delta.commit import OPEN_TRIES_MAX, Log
from delta_sink.delta.logstore import Checkpoint, Listing
from delta_sink.delta.receipt import RETIRED, PartitionReceipt, Receipt, receipt_of
from delta_sink.delta.repeat import put_once
from delta_sink.errors import CommitConflict, ObjectMissing, TableRefused
from delta_sink.model import AppId, runs_of

__all__ = [
    "Audit",
    "PartitionAudit",
    "RowReader",
    "Seek",
    "ServedOffsets",
    "ServedSource",
    "audit_log",
    "audit_rows",
    "write_anchor",
]


def audit_log(log: Log, sink: str) -> Audit:
    """Return what the log of a table says about `sink`.

    Every entry is read once; memory holds the ranges as numbers and the names of all files.

    Raises:
        TableRefused: there is no table, an entry cannot be read, or a newer delta-sink wrote it.
        StoreUnavailable, StoreRefused: as the store says.
    """
    for _ in range(OPEN_TRIES_MAX):
        listing = log.entries.list()
        if not listing.entries and not listing.checkpoints:
            raise TableRefused("there is no table to audit: its log is empty")
        try:
            return _Walk(log, sink, listing).run()
        except ObjectMissing:
            continue  # Cleaned up between LIST and GET: a later listing shows what is left.
    raise _unsteady()


def write_anchor(log: Log, version: int) -> None:
    """Return once there is an anchor of `version`: entries up to it may be cleaned up then.

    Raises:
        CommitConflict: the version lacks its entry or its checkpoint: somebody else cleaned up
            meanwhile. Nothing was written; plan again.
        TableRefused: an entry cannot be read, or the anchor that is there is of no use.
        RetriableError, StoreRefused: as the store says.
    """
    path = anchor_path(version)
    for _ in range(OPEN_TRIES_MAX):
        try:
            anchor = _Walk(log, "", log.entries.list()).anchor(version)
        except ObjectMissing:
            continue
        if not put_once(log.store, path, encode_anchor(anchor), log.clock, log.entropy):
            # One that was written while more entries were there proves as much or more.
            decode_anchor(version, log.store.get(path).data)
        return
    raise _unsteady()


def _unsteady() -> TableRefused:
    return TableRefused(
        f"the log changed {OPEN_TRIES_MAX} times while it was audited: something removes entries "
        f"faster than they can be read"
    )


class _Walk:
    """One walk through the log. It lives for one call of `audit_log`."""

    def __init__(self, log: Log, sink: str, listing: Listing) -> None:
        self._log = log
        self._sink = sink  # "" is every sink: for an anchor
        self._version_first = min(listing.entries, default=0)
        self._others: dict[str, Findings] = {}  # violations of other sinks than this one
        self._commits: dict[str, Counter[str]] = {}
        self._kept_seeks: list[AnchoredSeek] = []
        self._entries = listing.entries
        self._checkpoints = {found.version: found for found in listing.checkpoints}
        self._violations = Findings()
        self._unproven = Findings()
        self._chains: dict[str, Chain] = {}
        self._unknown_before = 0  # a partition that is new from here on began here
        self._commit_ids: dict[str, int] = {}
        self._seeks: list[Seek] = []
        self._columns: tuple[str, ...] = ()
        self._removals: list[int] = []
        self._files = _Files(self._violations, self._unproven, self._removals)

    def run(self) -> Audit:
        version_next = self._walk(max(self._entries, default=-1))
        newest = max(self._checkpoints, default=-1)
        if newest >= version_next:
            self._pass_gap(version_next, newest + 1)
        return self._audit(version_next=max(version_next, newest + 1))

    def anchor(self, version: int) -> Anchor:
        """Return what the entries up to `version`, and the anchor below them, prove."""
        if version not in self._entries or version not in self._checkpoints:
            lacks = "checkpoint" if version in self._entries else "log entry"
            raise CommitConflict(
                f"version {version} has no {lacks}, so that nothing below it may be cleaned up: "
                f"did somebody else clean up meanwhile?"
            )
        version_next = self._walk(version)
        assert version_next == version + 1, (version_next, version)
        self._files.finish()
        found = {"": self._violations, **self._others}
        return Anchor(
            format=ANCHOR_FORMAT,
            version=version,
            version_first=self._version_first,
            unknown_before=self._unknown_before,
            chains=tuple(self._chains[text].anchored() for text in sorted(self._chains)),
            seeks=tuple(self._kept_seeks),
            violations={sink: f.sentences for sink, f in found.items() if f.sentences},
            unproven=self._unproven.sentences,
            commits={sink: dict(counts) for sink, counts in sorted(self._commits.items())},
            removals=tuple(self._removals),
            columns=self._columns,
        )

    def _walk(self, last: int) -> int:
        """Take the entries up to `last`, from an anchor on if need be; return the version after."""
        version_next = self._start_at_anchor(last)
        for version in sorted(v for v in self._entries if version_next <= v <= last):
            if version != version_next:
                self._pass_gap(version_next, version)
            entry = self._log.entries.read(version)
            if entry is None:
                raise ObjectMissing(f"log entry {version}")
            self._take(entry)
            self._compare_checkpoint(version)
            version_next = version + 1
        return version_next

    def _start_at_anchor(self, last: int) -> int:
        """Take over what an anchor keeps, if entries are gone; return the version after it."""
        anchors = [v for v in anchor_versions(self._log.store) if v <= last]
        version = chosen_anchor(anchors, min(self._entries, default=last + 1))
        if version is None:
            return 0
        anchor = decode_anchor(version, self._log.store.get(anchor_path(version)).data)
        self._version_first = anchor.version_first
        self._unknown_before = anchor.unknown_before
        self._removals += anchor.removals
        self._columns = anchor.columns
        for sink, sentences in anchor.violations.items():
            for sentence in sentences:
                (self._report(sink) if sink else self._violations.add)(sentence)
        for sentence in anchor.unproven:
            self._unproven.add(sentence)
        self._commits = {sink: Counter(counts) for sink, counts in anchor.commits.items()}
        for kept in anchor.chains:
            app_id = AppId.parse(kept.app_id)
            if app_id is not None:
                self._chains[kept.app_id] = Chain.from_anchor(kept, app_id)
        for seek in anchor.seeks:
            self._take_seeks(seek.version, seek.receipt)
        if version in self._checkpoints:
            self._compare_checkpoint(version)
            checkpoint = self._checkpoints[version]
            for batch in checkpoint_batches(self._log.store, checkpoint, "add"):
                for row in batch.to_pylist():
                    self._files.start_with(version, row)
        return version + 1

    def _audit(self, *, version_next: int) -> Audit:
        self._files.finish()
        partitions = [chain.audited() for chain in self._chains.values()]
        partitions.sort(key=lambda partition: (partition.tp, partition.app_id))
        return Audit(
            sink=self._sink,
            table_version=version_next - 1,
            partitions=tuple(p for p in partitions if p.sink == self._sink),
            violations=self._violations.sentences,
            unproven=self._unproven.sentences,
            seeks=tuple(self._seeks),
            commits=self._counted(),
            columns=self._columns,
            other_partitions=tuple(p for p in partitions if p.sink != self._sink),
            foreign_removals=tuple(self._removals),
        )

    def _counted(self) -> Commits:
        counts = Counter(self._commits.get(self._sink, {}))
        for sink, others in self._commits.items():
            if sink not in ("", self._sink):
                counts["other_sinks"] += others.total()
        counts["other_engines"] = self._commits.get("", Counter()).total()
        return Commits(**counts, version_first=self._version_first)

    # --- what is missing ------------------------------------------------------------------------

    def _pass_gap(self, first: int, after: int) -> None:
        """Go on at entry `after`, although `[first, after)` are gone."""
        which = f"entry {first} is" if after == first + 1 else f"entries {first} to {after - 1} are"
        if max(self._checkpoints, default=-1) >= after - 1:
            self._unproven.add(f"before version {after}: log {which} gone (cleaned up)")
        else:
            self._violations.add(
                f"log {which} missing and no checkpoint stands in: the table cannot be read there"
            )
        self._unknown_before = after
        for chain in self._chains.values():
            chain.forget(proven_from=after)
        self._compare_checkpoint(after - 1)

    def _compare_checkpoint(self, version: int) -> None:
        """Hold the `txn`s of a checkpoint against those of the entries up to it."""
        checkpoint = self._checkpoints.get(version)
        found = self._read(checkpoint) if checkpoint is not None else None
        if found is None:
            return
        metadata, txns = found
        if not self._columns:
            self._columns = _column_names(metadata)
        for text, txn in txns.items():
            app_id = AppId.parse(text)
            if app_id is not None:
                self._chain(text, app_id).meet_checkpoint(txn, version, self._report(app_id.sink))
        self._unknown_before = 0
        for text, chain in self._chains.items():
            if text not in txns and chain.txn is not None:
                self._report(chain.app_id.sink)(
                    f"checkpoint {version} has lost the txn of {chain.app_id.tp} ({chain.txn})"
                )

    def _read(self, checkpoint: Checkpoint) -> tuple[Metadata, dict[str, int]] | None:
        try:
            _, metadata, txns = read_checkpoint(self._log.store, checkpoint)
        except ObjectMissing:
            return None  # An old one that was cleaned up meanwhile proves nothing either way.
        except TableRefused as error:
            self._violations.add(str(error))
            return None
        return metadata, txns

    # --- entries --------------------------------------------------------------------------------

    def _take(self, entry: Entry) -> None:
        if entry.metadata is not None:
            self._columns = _column_names(entry.metadata)
        receipt = receipt_of(entry)
        who, what = ("", "other_engines") if receipt is None else (receipt.sink, receipt.kind)
        self._commits.setdefault(who, Counter())[what] += 1
        if receipt is None:
            self._files.take_foreign(entry)
        else:
            self._take_receipt(entry, receipt)
        explained = {part.app_id for part in receipt.partitions} if receipt is not None else set()
        for text, txn in (entry.txns or {}).items():
            app_id = AppId.parse(text)
            if app_id is not None and text not in explained:
                chain = self._chain(text, app_id)
                chain.move_unexplained(txn, entry.version, self._report(app_id.sink))

    def _take_receipt(self, entry: Entry, receipt: Receipt) -> None:
        report = self._report(receipt.sink)
        before = self._commit_ids.setdefault(receipt.commit_id, entry.version)
        if before != entry.version:
            report(f"versions {before} and {entry.version} carry the same commit id: landed twice")
        self._files.take_own(entry, receipt, report)
        seen: dict[str, PartitionReceipt] = {}
        for part in receipt.partitions:
            app_id = AppId.parse(part.app_id)
            is_taken = receipt.kind == "seek" and part.offset_next == RETIRED
            is_theirs = app_id is not None and (is_taken or app_id.sink == receipt.sink)
            if app_id is None or not is_theirs or app_id.tp != part.tp:
                report(
                    f"version {entry.version}: the receipt of sink '{receipt.sink}' says "
                    f"'{part.app_id}' of {part.tp}"
                )
            elif part.app_id in seen:
                report(f"version {entry.version}: the receipt has {part.tp} twice")
            else:
                seen[part.app_id] = part
                chain = self._chain(part.app_id, app_id)
                txn = (entry.txns or {}).get(part.app_id)
                chain.take(part, receipt.kind, entry.version, txn, report)
        if receipt.kind == "seek":
            valid = msgspec.structs.replace(receipt, partitions=tuple(seen.values()))
            self._take_seeks(entry.version, valid)

    def _take_seeks(self, version: int, receipt: Receipt) -> None:
        self._kept_seeks.append(AnchoredSeek(version, receipt))
        retired = {p.tp: p.app_id for p in receipt.partitions if p.offset_next == RETIRED}
        for part in receipt.partitions:
            app_id = AppId.parse(part.app_id)
            if app_id is not None and self._sink in (receipt.sink, app_id.sink):
                self._take_seek(version, receipt, part, retired.get(part.tp))

    def _take_seek(
        self, version: int, receipt: Receipt, part: PartitionReceipt, replaced: str | None
    ) -> None:
        """List a seek of this sink; one that takes over is listed once, as the new app id's."""
        heir = None
        if part.offset_next == RETIRED:
            heirs = [
                other.app_id
                for other in receipt.partitions
                if other.tp == part.tp and other.offset_next != RETIRED
            ]
            if heirs and receipt.sink == self._sink:
                return
            heir = heirs[0] if heirs else ""
        self._seeks.append(
            Seek(
                version,
                part.tp,
                part.offset_first,
                part.offset_next,
                receipt.reason,
                operator=receipt.worker,
                replaces=replaced if heir is None else None,
                heir=heir,
            )
        )

    def _chain(self, text: str, app_id: AppId) -> Chain:
        if text not in self._chains:
            self._chains[text] = Chain(text, app_id, proven_from=self._unknown_before)
        return self._chains[text]

    def _report(self, sink: str) -> Callable[[str], None]:
        """Return where violations go: those of other sinks are for their own audits."""
        if sink == self._sink:
            return self._violations.add
        return self._others.setdefault(sink, Findings()).add


class _Schema(msgspec.Struct):
    class Column(msgspec.Struct):
        name: str

    fields: list[Column]


def _column_names(metadata: Metadata) -> tuple[str, ...]:
    """Return the names of the table's columns, whatever their types are."""
    try:
        schema = msgspec.json.decode(metadata.schema_string, type=_Schema)
    except msgspec.DecodeError as error:
        raise TableRefused("the table's schemaString is not readable JSON") from error
    return tuple(column.name for column in schema.fields)


# --- files --------------------------------------------------------------------------------------


class _Stats(msgspec.Struct, rename="camel"):
    num_records: int | None = None


_stats_decoder = msgspec.json.Decoder(_Stats)


class _Files:
    """Which files came and went, and with how many rows."""

    def __init__(self, violations: Findings, unproven: Findings, removals: list[int]) -> None:
        self._violations = violations
        self._unproven = unproven
        self._removals = removals
        self._added: dict[str, tuple[int, int | None]] = {}  # name: version, rows
        self._removed: set[str] = set()
        self._uncompared: list[int] = []

    def take_own(self, entry: Entry, receipt: Receipt, report: Callable[[str], None]) -> None:
        """Check the files of a commit that carries `receipt`."""
        version = entry.version
        if receipt.kind == "append":
            counts = [_rows_of(add) for add in entry.adds]
            wanted = sum(part.rows for part in receipt.partitions)
            known = [count for count in counts if count is not None]
            if len(known) < len(counts):
                self._unproven.add(
                    f"version {version}: a file says nothing of its number of rows (statistics)"
                )
            elif sum(known) != wanted:
                names = ", ".join(str(part.tp) for part in receipt.partitions[:3])
                report(
                    f"version {version}: its files hold {sum(known)} rows, its receipt says "
                    f"{wanted} ({names})"
                )
        elif receipt.kind == "compaction":
            changes = [a.data_change for a in entry.adds] + [r.data_change for r in entry.removes]
            if any(changes):
                report(f"version {version} is a compaction and yet says that it changes data")
            self._compare_compaction(entry, f"the compaction by {receipt.worker}")
        elif entry.adds:
            report(
                f"version {version} is of kind {receipt.kind} and yet adds {len(entry.adds)} files"
            )
        if entry.removes and receipt.kind != "compaction":
            report(f"version {version} is of kind {receipt.kind} and yet removes files")
        self._apply(entry, is_restore=False)

    def start_with(self, version: int, row: Mapping[str, object]) -> None:
        """Take a live file from the checkpoint at which the walk begins."""
        vector = row["deletionVector"]
        add = Add(
            path=str(row["path"]),
            partition_values={},
            size=0,
            modification_time=0,
            data_change=False,
            stats=row["stats"],  # type: ignore[arg-type]  # a column of text
            deletion_vector=vector,  # type: ignore[arg-type]  # a column of structs
        )
        self._added[_name(add.path, add.deletion_vector)] = (version, _rows_of(add))

    def take_foreign(self, entry: Entry) -> None:
        """Check the files of an entry that another engine wrote."""
        info = entry.commit_info
        who = _author(info)
        changes = [a.data_change for a in entry.adds] + [r.data_change for r in entry.removes]
        is_restore = info is not None and (info.operation or "").upper() == "RESTORE"
        if is_restore or any(remove.data_change for remove in entry.removes):
            self._removals.append(entry.version)
            self._unproven.add(
                f"from version {entry.version} on: {who} removed or rewrote rows, so that the "
                f"table is no longer what the receipts before it say"
            )
        elif changes and not any(changes):
            self._compare_compaction(entry, who)
        self._apply(entry, is_restore=is_restore)

    def finish(self) -> None:
        """Name what could not be compared."""
        if self._uncompared:
            runs = [
                f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in runs_of(self._uncompared)
            ]
            shown = ", ".join(runs[:5]) + (" and others" if len(runs) > 5 else "")
            self._unproven.add(
                f"compactions at versions {shown}: the numbers of rows before and after are not "
                f"in the log, so that they cannot be compared"
            )

    def _compare_compaction(self, entry: Entry, who: str) -> None:
        fresh = [
            add for add in entry.adds if not self._is_live(_name(add.path, add.deletion_vector))
        ]
        added = [_rows_of(add) for add in fresh]
        removed: list[int | None] = []
        for remove in entry.removes:
            _, rows = self._added.get(_name(remove.path, remove.deletion_vector), (0, None))
            removed.append(rows)
        if None in added or None in removed:
            self._uncompared.append(entry.version)
            return
        before = sum(rows or 0 for rows in removed)
        after = sum(rows or 0 for rows in added)
        if before != after:
            self._violations.add(
                f"version {entry.version}: {who} rearranged {before} rows into {after} "
                f"(dataChange is false: their number must stay)"
            )

    def _is_live(self, name: str) -> bool:
        return name in self._added and name not in self._removed

    def _apply(self, entry: Entry, *, is_restore: bool) -> None:
        for add in entry.adds:
            name = _name(add.path, add.deletion_vector)
            # A file may be named again to change what the log says of it, not its rows.
            is_note = not add.data_change and self._is_live(name)
            if name in self._added and not is_restore and not is_note:
                self._report_twice(add, name, entry.version)
            self._added[name] = (entry.version, _rows_of(add))
            self._removed.discard(name)
        for remove in entry.removes:
            self._removed.add(_name(remove.path, remove.deletion_vector))

    def _report_twice(self, add: Add, name: str, version: int) -> None:
        before = self._added[name][0]
        how = "again after it was removed" if name in self._removed else "a second time"
        self._violations.add(
            f"version {version} adds {add.path} {how} (version {before} added it): a reader of "
            f"changes sees its rows twice"
        )


def _name(path: str, vector: dict[str, object] | None) -> str:
    """Return what identifies a file as the log counts them: its path and its deletion vector."""
    if vector is None:
        return path
    parts = (vector.get(key) for key in ("storageType", "pathOrInlineDv", "offset"))
    return "\n".join([path, *map(str, parts)])


def _rows_of(add: Add) -> int | None:
    """Return how many rows of the file count, or None where its statistics do not say."""
    if add.stats is None:
        return None
    try:
        rows = _stats_decoder.decode(add.stats).num_records
    except msgspec.DecodeError:
        return None
    deleted = (add.deletion_vector or {}).get("cardinality", 0)
    return rows - deleted if rows is not None and isinstance(deleted, int) else None


def _author(info: CommitInfo | None) -> str:
    engine = info.engine_info if info is not None and info.engine_info else "another engine"
    operation = info.operation if info is not None and info.operation else "an operation"
    return f"{operation} by {engine}"
