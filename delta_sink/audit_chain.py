"""One partition's ranges, each held against the one before as the audit walks the log."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from delta_sink.audit_anchor import AnchoredChain
from delta_sink.audit_report import Cover, Offsets, PartitionAudit
from delta_sink.delta.receipt import RETIRED, Kind, PartitionReceipt
from delta_sink.model import AppId, Run, runs_count

Report = Callable[[str], None]


class Chain:
    """The ranges that receipts name for one app id.

    `txn` is what the log holds after the last entry, None before the first (or where it is not
    known because the entries are gone), RETIRED after another app id took the partition over. While `_is_known` is False, the next range is believed
    where it begins: nothing is left that could contradict it.
    """

    def __init__(self, text: str, app_id: AppId, *, proven_from: int) -> None:
        self.app_id = app_id
        self.txn: int | None = None
        self._text = text
        self._offset_next: int | None = None  # where the last range ended
        self._offset_first: int | None = None
        self._offset_last = 0  # the txn before entries that are gone
        self._is_known = proven_from == 0
        self._proven_from = proven_from
        self._records = 0
        self._commits = 0
        self._ranges = array("q")  # first, next, rows, version of each
        self._runs: dict[str, array[int]] = {
            "dead_letters": array("q"),
            "skipped": array("q"),
            "gone": array("q"),
        }

    def take(
        self,
        part: PartitionReceipt,
        kind: Kind,
        version: int,
        txn: int | None,
        report: Report,
    ) -> None:
        """Check what a receipt of `kind` says, and that the entry's `txn` agrees with it."""
        where = f"version {version}: {part.tp}"
        if self._is_known or self._offset_next is not None:
            self._check_start(part, kind, where, report)
        elif kind == "claim":
            self._proven_from = 0  # the claim is here: nothing of this partition came before
        if txn is None:
            report(
                f"{where}: its range ends at {part.offset_next}, but the entry has no txn for it"
            )
        elif txn != part.offset_next:
            report(f"{where}: its range ends at {part.offset_next}, but its txn says {txn}")
        if txn is not None and self.txn is not None and txn < self.txn and kind != "seek":
            report(f"{where}: the txn falls from {self.txn} to {txn}, which only a seek may do")
        _check_counts(part, kind, where, report)
        if kind == "append" and part.offset_first < part.offset_next:
            self._keep(part, version)
        if part.offset_next == RETIRED:
            self._offset_last = part.offset_first  # where it ended, whoever went on from there
        elif self._offset_first is None:
            self._offset_first = part.offset_next if kind == "seek" else part.offset_first
        self._records += part.records
        self._commits += 1
        self._offset_next = part.offset_next
        self._is_known = True
        self.txn = txn if txn is not None else self.txn

    def move_unexplained(self, txn: int, version: int, report: Report) -> None:
        """Take note that an entry set the `txn` although no receipt in it says why."""
        if txn == self.txn:
            return
        before = "none" if self.txn is None else str(self.txn)
        how = "falls" if self.txn is not None and txn < self.txn else "moves"
        report(
            f"version {version}: {self.app_id.tp}: the txn {how} from {before} to {txn}, and no "
            f"receipt in the entry says why"
        )
        self.txn = txn
        if self._offset_first is None:
            self._offset_first = txn

    def meet_checkpoint(self, txn: int, version: int, report: Report) -> None:
        """Compare with the `txn` of a checkpoint, or begin there if nothing is known yet."""
        if self._is_known and self.txn != txn:
            found = "none" if self.txn is None else str(self.txn)
            report(
                f"checkpoint {version}: {self.app_id.tp} has txn {txn}, the entries up to it say "
                f"{found}"
            )
        elif not self._is_known:
            self.txn = self._offset_next = txn
            self._is_known = True
            if self._offset_first is None and txn != RETIRED:
                self._offset_first = txn

    def forget(self, *, proven_from: int) -> None:
        """Entries are gone: what comes next need not chain with what came before."""
        if self.txn is not None and self.txn != RETIRED:
            self._offset_last = self.txn
        self.txn = self._offset_next = None
        self._is_known = False
        self._proven_from = proven_from

    def audited(self) -> PartitionAudit:
        """Return what was seen."""
        ranges = _columns(self._ranges, 4)
        runs = {name: _columns(numbers, 2) for name, numbers in self._runs.items()}
        cover = Cover(ranges[:, 0], ranges[:, 1], ranges[:, 2], ranges[:, 3], **runs)
        counts = {name: int((both[:, 1] - both[:, 0]).sum()) for name, both in runs.items()}
        offset_first = self._offset_first or 0
        offset_last = max(self._offset_last, offset_first)
        return PartitionAudit(
            app_id=self._text,
            sink=self.app_id.sink,
            tp=self.app_id.tp,
            offset_first=offset_first,
            offset_next=offset_last if self.txn in (None, RETIRED) else self.txn,
            records=self._records,
            rows=int(cover.rows.sum()),
            commits=self._commits,
            proven_from=self._proven_from,
            cover=cover,
            **counts,
        )

    def anchored(self) -> AnchoredChain:
        """Return what an anchor keeps of this chain: ranges that follow each other are one."""
        merged: list[tuple[int, int, int, int]] = []
        for first, after, rows, version in _columns(self._ranges, 4).tolist():
            if merged and merged[-1][1] == first:
                start, _, before, _ = merged.pop()
                merged.append((start, after, before + rows, version))
            else:
                merged.append((first, after, rows, version))
        runs = {
            name: tuple((first, after) for first, after in _columns(numbers, 2).tolist())
            for name, numbers in self._runs.items()
        }
        return AnchoredChain(
            app_id=self._text,
            txn=self.txn,
            offset_first=self._offset_first,
            offset_next=self._offset_next,
            offset_last=self._offset_last,
            is_known=self._is_known,
            proven_from=self._proven_from,
            records=self._records,
            commits=self._commits,
            ranges=tuple(merged),
            **runs,
        )

    @classmethod
    def from_anchor(cls, kept: AnchoredChain, app_id: AppId) -> Chain:
        """Return the chain as it stood when it was anchored."""
        chain = cls(kept.app_id, app_id, proven_from=kept.proven_from)
        chain.txn = kept.txn
        chain._offset_first, chain._offset_next = kept.offset_first, kept.offset_next
        chain._offset_last, chain._is_known = kept.offset_last, kept.is_known
        chain._records, chain._commits = kept.records, kept.commits
        for numbers in kept.ranges:
            chain._ranges.extend(numbers)
        for name, runs in chain._runs.items():
            for run in getattr(kept, name):
                runs.extend(run)
        return chain

    def _keep(self, part: PartitionReceipt, version: int) -> None:
        self._ranges.extend((part.offset_first, part.offset_next, part.rows, version))
        for name, numbers in self._runs.items():
            for run in getattr(part, name):
                numbers.extend(run)

    def _check_start(self, part: PartitionReceipt, kind: Kind, where: str, report: Report) -> None:
        if kind == "claim":
            if self.txn is not None:
                report(f"{where}: claimed at {part.offset_first} although its txn is {self.txn}")
        elif kind == "seek":
            if self._offset_next is not None and part.offset_first != self._offset_next:
                report(
                    f"{where}: the seek starts at {part.offset_first}, the range before ends at "
                    f"{self._offset_next}"
                )
        elif self._offset_next == RETIRED:
            report(f"{where}: a range from {part.offset_first} after another app id took over")
        elif self._offset_next is None:
            report(f"{where}: its first range begins at {part.offset_first} without a claim")
        elif part.offset_first > self._offset_next:
            report(
                f"{where}: offsets {self._offset_next} to {part.offset_first - 1} are in no range: "
                f"the one before ends at {self._offset_next}, this one begins at {part.offset_first}"
            )
        elif part.offset_first < self._offset_next:
            report(
                f"{where}: offsets {part.offset_first} to {self._offset_next - 1} are covered "
                f"twice: the range before ends at {self._offset_next}, this one begins at "
                f"{part.offset_first}"
            )


def _columns(numbers: array[int], width: int) -> Offsets:
    return np.array(numbers, dtype=np.int64).reshape(-1, width)


def _check_counts(part: PartitionReceipt, kind: Kind, where: str, report: Report) -> None:
    width = part.offset_next - part.offset_first
    if kind != "append":
        if part.records or part.rows or part.dead_letters or part.skipped:
            report(f"{where}: a {kind} with {part.records} records, wanted none")
        if kind == "claim" and width:
            report(
                f"{where}: a claim of {part.offset_first} to {part.offset_next}, wanted no range"
            )
        return
    if width < 0:
        report(f"{where}: the range {part.offset_first} to {part.offset_next} runs backwards")
        return
    dead, skipped = runs_count(part.dead_letters), runs_count(part.skipped)
    if part.records != part.rows + dead + skipped or part.rows < 0:
        report(
            f"{where}: {part.records} records, but {part.rows} rows, {dead} dead letters and "
            f"{skipped} skipped"
        )
    if part.records > width - runs_count(part.gone):
        report(
            f"{where}: {part.records} records in offsets {part.offset_first} to "
            f"{part.offset_next - 1}, which have no room for so many"
        )
    _check_runs(part, where, report)


def _check_runs(part: PartitionReceipt, where: str, report: Report) -> None:
    lists: dict[str, Sequence[Run]] = {
        "dead letters": part.dead_letters,
        "skipped offsets": part.skipped,
        "gone offsets": part.gone,
    }
    for name, runs in lists.items():
        end = part.offset_first
        for first, after in runs:
            if not end <= first < after <= part.offset_next:
                report(
                    f"{where}: the list of {name} has {first} to {after - 1}, which is out of "
                    f"order or outside {part.offset_first} to {part.offset_next - 1}"
                )
                return
            end = after
    merged = sorted(run for runs in lists.values() for run in runs)
    for (_, after), (first, _) in pairwise(merged):
        if first < after:
            report(f"{where}: offset {first} is in two of its lists")
            return
