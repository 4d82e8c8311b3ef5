"""The proof goes on to the rows: each offset is in the table as often as the log says, and no more.

Theory of operation. Nothing here holds an offset for each row. Sorted offsets are runs, and runs
are steps: at offset `o` the level of a set of runs is how many of them hold `o`, which is how many
begin at or before it less how many end at or before it. So there is one level for rows, one for
the ranges of the log, one for each list of a receipt and one for what Kafka serves, and all checks
are arithmetic on the intervals between the offsets at which any of them changes. Rows without
gaps take no memory; the worst case (no two offsets adjacent) is 16 bytes a row, and ten times
that for the one partition that is being compared.

    rows + dead letters + skipped + gone  >  ranges     doubled, or where no range is
    rows of a range                       ≠  receipt    lost, or too many
    served by Kafka, in a range, none of these          lost
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from msgspec.structs import replace

from delta_sink.audit_report import Audit, Deep, Findings, Offsets, PartitionAudit
from delta_sink.errors import ObjectMissing
from delta_sink.model import TopicPartition

TOPIC, PARTITION, OFFSET = "_kafka_topic", "_kafka_partition", "_kafka_offset"
SPANS_SHOWN = 3
"""How many spans of offsets a sentence names before it only counts the rest."""

Mask = npt.NDArray[np.bool_]


class RowReader(Protocol):
    """Reads the rows of the audited table, through code that did not write them."""

    def offsets(self, version: int) -> Iterator[pa.RecordBatch]:
        """Yield `_kafka_topic`, `_kafka_partition`, `_kafka_offset` of all rows at `version`.

        Of these columns those that the table has; every row once, none left out, in any order.

        Raises:
            ObjectMissing: a file that the log lists is not there.
            TableRefused: the reader cannot read this table or this version.
            StoreUnavailable: no answer; audit again.
        """
        ...


class ServedOffsets(Protocol):
    """Some of the records that Kafka serves of one partition: rising offsets."""

    @property
    def tp(self) -> TopicPartition:
        """The partition."""
        ...

    @property
    def offsets(self) -> Sequence[int]:
        """The offsets, rising."""
        ...


ServedSource = Callable[[Mapping[TopicPartition, tuple[int, int]]], Iterable[ServedOffsets]]
"""Gives what a reader of committed records gets of each `[first, next)`, mixed as it comes."""


def audit_rows(audit: Audit, rows: RowReader, served: ServedSource | None) -> Audit:
    """Return `audit` with the rows, and what Kafka serves, held against it.

    Raises:
        TableRefused: the independent reader cannot read the table.
        StoreUnavailable, BrokerUnavailable: no answer; audit again.
    """
    problem = _columns_problem(audit)
    if problem is not None:
        return replace(audit, unproven=(*audit.unproven, problem))
    found = _Found(_only_topic(audit))
    try:
        for batch in rows.offsets(audit.table_version):
            found.take(batch)
    except ObjectMissing as error:
        sentence = f"version {audit.table_version} cannot be read: {error}"
        return replace(audit, violations=(*audit.violations, sentence))
    kafka = _read_served(audit, served) if served is not None else None
    return _Comparison(audit, found, kafka).run()


def _columns_problem(audit: Audit) -> str | None:
    missing = [name for name in (PARTITION, OFFSET) if name not in audit.columns]
    if TOPIC not in audit.columns and _only_topic(audit) is None:
        missing.insert(0, TOPIC)
    if not missing:
        return None
    return (
        f"the rows: the table has no column {missing[0]}, so that nobody can tell which record a "
        f"row was (table.metadata_columns)"
    )


def _only_topic(audit: Audit) -> str | None:
    """Return the one topic that fills the table, or None if there are several."""
    topics = {part.tp.topic for part in (*audit.partitions, *audit.other_partitions)}
    return topics.pop() if len(topics) == 1 else None


class _Runs:
    """Runs of offsets of many partitions, as they come."""

    def __init__(self) -> None:
        self._first: dict[TopicPartition, list[Offsets]] = {}
        self._after: dict[TopicPartition, list[Offsets]] = {}

    def add(self, tp: TopicPartition, offsets: Offsets) -> None:
        """Take sorted `offsets`, which may repeat; a repetition begins a run of its own."""
        breaks = np.flatnonzero(np.diff(offsets) != 1)
        self._first.setdefault(tp, []).append(offsets[np.r_[0, breaks + 1]])
        self._after.setdefault(tp, []).append(offsets[np.r_[breaks, len(offsets) - 1]] + 1)

    def steps(self, tp: TopicPartition) -> _Steps:
        """Return the runs of `tp`, and forget them here."""
        nothing = [np.empty(0, dtype=np.int64)]
        return _Steps.of(
            np.concatenate(self._first.pop(tp, nothing)),
            np.concatenate(self._after.pop(tp, nothing)),
        )

    @property
    def partitions(self) -> set[TopicPartition]:
        """Those of which there are runs."""
        return set(self._first)


class _Found(_Runs):
    """The offsets of all rows."""

    def __init__(self, only_topic: str | None) -> None:
        super().__init__()
        self._only_topic = only_topic
        self.rows = 0
        self.rows_without_offset = 0

    def take(self, batch: pa.RecordBatch) -> None:
        """Take the rows of `batch`; those in which a column is null were written by others."""
        table = pa.table(dict(zip(batch.schema.names, map(_plain, batch.columns), strict=True)))
        whole = table.drop_null()
        self.rows += table.num_rows
        self.rows_without_offset += table.num_rows - whole.num_rows
        if not whole.num_rows:
            return
        partition = whole.column(PARTITION).to_numpy().astype(np.int64)
        offset = whole.column(OFFSET).to_numpy().astype(np.int64)
        topics, topic = self._topics(whole)
        order = np.lexsort((offset, partition, topic))
        topic, partition, offset = topic[order], partition[order], offset[order]
        is_new = (np.diff(topic) != 0) | (np.diff(partition) != 0)
        starts = np.r_[0, np.flatnonzero(is_new) + 1]
        for first, part in zip(starts, np.split(offset, starts[1:]), strict=True):
            self.add(TopicPartition(topics[topic[first]], int(partition[first])), part)

    def _topics(self, table: pa.Table) -> tuple[list[str], Offsets]:
        if TOPIC not in table.column_names:
            assert self._only_topic is not None
            return [self._only_topic], np.zeros(table.num_rows, dtype=np.int64)
        coded = pc.dictionary_encode(table.column(TOPIC).combine_chunks())
        return coded.dictionary.to_pylist(), coded.indices.to_numpy().astype(np.int64)


def _plain(column: pa.Array) -> pa.Array:
    """Return topics as plain strings, in whatever form the reader hands them out."""
    return column if pa.types.is_integer(column.type) else pc.cast(column, pa.string())


class _Served(_Runs):
    """The offsets that Kafka serves."""

    records = 0


def _read_served(audit: Audit, source: ServedSource) -> _Served:
    found = _Served()
    spans: dict[TopicPartition, tuple[int, int]] = {}
    for part in audit.partitions:
        if part.cover.offset_first.size:
            first, after = part.cover.offset_first.min(), part.cover.offset_next.max()
            low, high = spans.get(part.tp, (int(first), int(after)))
            spans[part.tp] = (min(low, int(first)), max(high, int(after)))
    for some in source(spans):
        if len(some.offsets):
            found.add(some.tp, np.asarray(some.offsets, dtype=np.int64))
            found.records += len(some.offsets)
    return found


class _Steps(Struct, frozen=True, eq=False):
    """A set of runs, as the sorted offsets at which they begin and end."""

    first: Offsets
    after: Offsets

    @classmethod
    def of(cls, first: Offsets, after: Offsets) -> _Steps:
        return cls(np.sort(first), np.sort(after))

    @classmethod
    def of_runs(cls, runs: Iterable[Offsets]) -> _Steps:
        both = np.concatenate([*runs, np.empty((0, 2), dtype=np.int64)])
        return cls.of(both[:, 0], both[:, 1])

    def level(self, at: Offsets) -> Offsets:
        """Return how many of the runs hold each of the offsets `at`."""
        begun = np.searchsorted(self.first, at, side="right")
        return (begun - np.searchsorted(self.after, at, side="right")).astype(np.int64)


class _Levels:
    """All that is known of one partition, on the intervals in which none of it changes."""

    def __init__(
        self,
        parts: Sequence[PartitionAudit],
        rows: _Steps,
        kafka: _Steps | None,
    ) -> None:
        covers = [part.cover for part in parts]
        spans = [np.stack((c.offset_first, c.offset_next), axis=1) for c in covers]
        sets = {
            "rows": rows,
            "ranges": _Steps.of_runs(spans),
            "dead": _Steps.of_runs(c.dead_letters for c in covers),
            "skipped": _Steps.of_runs(c.skipped for c in covers),
            "gone": _Steps.of_runs(c.gone for c in covers),
            "served": kafka if kafka is not None else _Steps.of_runs(()),
        }
        bounds = _unique([b for steps in sets.values() for b in (steps.first, steps.after)])
        self.first = bounds[:-1]
        self.after = bounds[1:]
        self.rows, self.ranges, self.dead, self.skipped, self.gone, self.served = (
            steps.level(self.first) for steps in sets.values()
        )

    @property
    def listed(self) -> Offsets:
        """How many outcomes other than a row each offset has."""
        return self.dead + self.skipped + self.gone

    def rows_between(self, first: Offsets, after: Offsets) -> Offsets:
        """Return the number of rows within each of the spans, whose ends are bounds here."""
        sums = np.r_[0, np.cumsum(self.rows * (self.after - self.first))]
        result: Offsets = (
            sums[np.searchsorted(self.first, after)] - sums[np.searchsorted(self.first, first)]
        )
        return result

    def text(self, mask: Mask) -> str:
        """Return the offsets of the marked intervals as words: `offsets 5 to 9, 12`."""
        first, after = self.first[mask], self.after[mask]
        is_new = np.r_[True, first[1:] != after[:-1]]
        starts, ends = first[is_new], after[np.r_[is_new[1:], True]]
        shown = [
            str(a) if b == a + 1 else f"{a} to {b - 1}"
            for a, b in zip(starts[:SPANS_SHOWN].tolist(), ends[:SPANS_SHOWN].tolist(), strict=True)
        ]
        rest = len(starts) - len(shown)
        noun = "offset" if len(starts) == 1 and ends[0] == starts[0] + 1 else "offsets"
        return f"{noun} {', '.join(shown)}" + (f" and {rest} more spans" if rest else "")

    def claim(self, mask: Mask) -> str:
        """Return the offsets of the marked intervals as words, with the verb."""
        return f"{self.text(mask)} {'is' if self.count(mask) == 1 else 'are'}"

    def count(self, mask: Mask) -> int:
        """Return how many offsets the marked intervals hold."""
        return int((self.after - self.first)[mask].sum())


def _unique(parts: Sequence[Offsets]) -> Offsets:
    """Return the different numbers among `parts`, rising.

    By sorting: `np.unique` of numpy 2.3 and later hashes, and took 24 of 37 s for 10⁷ gaps.
    """
    every = np.sort(np.concatenate(parts))
    return every[np.r_[True, np.diff(every) != 0]] if every.size else every


class _Comparison:
    """The comparison of all partitions. It lives for one call of `audit_rows`."""

    def __init__(self, audit: Audit, found: _Found, kafka: _Served | None) -> None:
        self._audit = audit
        self._found = found
        self._kafka = kafka
        self._violations = Findings(audit.violations)
        self._unproven = Findings(audit.unproven)
        self._not_served = 0

    def run(self) -> Audit:
        audit = self._audit
        parts: dict[TopicPartition, list[PartitionAudit]] = {}
        for part in (*audit.partitions, *audit.other_partitions):
            parts.setdefault(part.tp, []).append(part)
        ours = {part.tp for part in audit.partitions}
        for tp in sorted(self._found.partitions - set(parts)):
            self._violations.add(
                f"{tp}: the table has rows of this partition, and no commit of any sink covers it"
            )
        for tp in sorted(ours):
            self._compare(tp, parts[tp])
        deep = Deep(
            rows=self._found.rows,
            rows_without_offset=self._found.rows_without_offset,
            served=self._kafka.records if self._kafka is not None else None,
            not_served=self._not_served if self._kafka is not None else None,
        )
        return replace(
            audit,
            violations=self._violations.sentences,
            unproven=self._unproven.sentences,
            deep=deep,
        )

    def _compare(self, tp: TopicPartition, parts: Sequence[PartitionAudit]) -> None:
        kafka = self._kafka.steps(tp) if self._kafka is not None else None
        levels = _Levels(parts, self._found.steps(tp), kafka)
        if not levels.first.size:
            return
        self._compare_offsets(tp, parts, levels)
        self._compare_counts(tp, parts, levels)
        if kafka is not None:
            self._compare_served(tp, parts, levels)

    def _compare_offsets(
        self, tp: TopicPartition, parts: Sequence[PartitionAudit], levels: _Levels
    ) -> None:
        rows, ranges = levels.rows, levels.ranges
        caveat = _caveat(parts)
        is_outside = (rows > 0) & (ranges == 0)
        if caveat:
            is_early = is_outside & (rows == 1)
            is_early &= levels.after <= max(part.offset_next for part in parts)
            is_outside &= ~is_early
            if is_early.any():
                self._unproven.add(
                    f"{tp}: {levels.count(is_early)} rows ({levels.text(is_early)}) came with "
                    f"commits whose log entries are gone"
                )
        if is_outside.any():
            self._violations.add(
                f"{tp}: {levels.claim(is_outside)} in the table, and no commit covers them{caveat}"
            )
        is_double = (rows > ranges) & (ranges > 0)
        if is_double.any():
            most = int(rows[is_double].max())
            times = "twice" if most == 2 else f"up to {most} times"
            self._violations.add(
                f"{tp}: {levels.claim(is_double)} in the table {times}"
                f"{_versions(parts, levels, is_double)}{caveat}"
            )
        is_both = (rows > 0) & (rows <= ranges) & (rows + levels.listed > ranges)
        for name, listed in (
            ("a dead letter", levels.dead),
            ("skipped", levels.skipped),
            ("no longer in Kafka", levels.gone),
        ):
            mask = is_both & (listed > 0)
            if mask.any():
                self._violations.add(
                    f"{tp}: {levels.claim(mask)} in the table, and a commit lists them as "
                    f"{name}{_versions(parts, levels, mask)}"
                )

    def _compare_counts(
        self, tp: TopicPartition, parts: Sequence[PartitionAudit], levels: _Levels
    ) -> None:
        first, after, wanted = _groups(parts)
        if not first.size:
            return
        found = levels.rows_between(first, after)
        for index in np.flatnonzero(found > wanted).tolist():
            self._violations.add(
                f"{tp}: offsets {first[index]} to {after[index] - 1}: the table has {found[index]} "
                f"rows, the receipts say {wanted[index]}{_caveat(parts)}"
            )
        short = np.flatnonzero(found < wanted)
        if not short.size:
            return
        if self._audit.foreign_removals:
            self._unproven.add(
                f"{tp}: {int((wanted - found)[short].sum())} rows of the receipts are not in the "
                f"table; another engine removed rows at version {self._removed_at()}"
            )
            return
        outcomes = levels.rows + levels.listed
        for index in short.tolist():
            mask = (levels.first >= first[index]) & (levels.after <= after[index])
            mask &= outcomes < levels.ranges
            where = f", missing are among {levels.text(mask)}" if mask.any() else ""
            self._violations.add(
                f"{tp}: offsets {first[index]} to {after[index] - 1}: the table has {found[index]} "
                f"rows, the receipts say {wanted[index]}{where}"
                f"{_versions(parts, levels, mask)}"
            )

    def _compare_served(
        self, tp: TopicPartition, parts: Sequence[PartitionAudit], levels: _Levels
    ) -> None:
        # Where a topic was created again, only its newest incarnation is what Kafka serves now.
        newest = max(
            (p for p in parts if p.sink == self._audit.sink),
            key=lambda part: int(part.cover.versions.max(initial=-1)),
        )
        spans = np.stack((newest.cover.offset_first, newest.cover.offset_next), axis=1)
        wanted = _Steps.of_runs([spans]).level(levels.first)
        outcomes = levels.rows + levels.dead + levels.skipped
        is_lost = (levels.served > 0) & (outcomes < wanted)
        if is_lost.any() and self._audit.foreign_removals:
            self._unproven.add(
                f"{tp}: Kafka serves {levels.text(is_lost)}, which are not in the table; another "
                f"engine removed rows at version {self._removed_at()}"
            )
        elif is_lost.any():
            self._violations.add(
                f"{tp}: {levels.claim(is_lost)} lost: Kafka serves them, and they are neither "
                f"rows nor dead letters nor skipped{_versions(parts, levels, is_lost)}"
            )
        self._not_served += levels.count((levels.served == 0) & (outcomes > 0) & (wanted > 0))

    def _removed_at(self) -> str:
        versions = self._audit.foreign_removals
        return str(versions[0]) + (f" and {len(versions) - 1} others" if versions[1:] else "")


def _caveat(parts: Sequence[PartitionAudit]) -> str:
    """Return what else could explain an excess where the first entries are gone."""
    version = max(part.proven_from for part in parts)
    return f" (unless a seek before version {version} explains it)" if version else ""


def _groups(parts: Sequence[PartitionAudit]) -> tuple[Offsets, Offsets, Offsets]:
    """Return first, next and rows of the spans within which ranges overlap each other.

    Without a seek nothing overlaps, and each range is a span of its own.
    """
    first = np.concatenate([part.cover.offset_first for part in parts])
    after = np.concatenate([part.cover.offset_next for part in parts])
    rows = np.concatenate([part.cover.rows for part in parts])
    if not first.size:
        return first, after, rows
    order = np.argsort(first, kind="stable")
    first, rows = first[order], rows[order]
    reached = np.maximum.accumulate(after[order])
    starts = np.r_[0, np.flatnonzero(first[1:] >= reached[:-1]) + 1]
    ends = np.r_[starts[1:], len(first)] - 1
    return first[starts], reached[ends], np.add.reduceat(rows, starts)


def _versions(parts: Sequence[PartitionAudit], levels: _Levels, mask: Mask) -> str:
    """Return the versions whose ranges hold the first of the marked offsets."""
    if not mask.any():
        return ""
    offset = levels.first[mask][0]
    versions: list[int] = []
    for part in parts:
        cover = part.cover
        is_over = (cover.offset_first <= offset) & (offset < cover.offset_next)
        versions += cover.versions[is_over].tolist()
    if not versions:
        return ""
    noun = "version" if len(versions) == 1 else "versions"
    return f" ({noun} {', '.join(map(str, sorted(versions)[:5]))})"
