"""What an audit found, as values: for machines (`to_json`) and for a person (`sentences`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import asdict

from delta_sink.model import TopicPartition

Offsets = npt.NDArray[np.int64]

SENTENCES_MAX = 100
"""How many violations are spelt out; a broken log could have one for every entry."""


class Findings:
    """Sentences in the order in which they were found; past the limit they are only counted."""

    def __init__(self, before: tuple[str, ...] = ()) -> None:
        self._sentences = list(before)
        self._left_off = 0

    def add(self, sentence: str) -> None:
        """Take one more."""
        if len(self._sentences) < SENTENCES_MAX:
            self._sentences.append(sentence)
        else:
            self._left_off += 1

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, with a last sentence that counts what was left off."""
        if not self._left_off:
            return tuple(self._sentences)
        return (*self._sentences, f"and {self._left_off} more, which are not spelt out")


class Seek(Struct, frozen=True):
    """An operator moved a partition from one offset to another, on purpose.

    `replaces` is the app id in whose place the partition goes on. For the sink whose partition
    was taken over `heir` is the app id that has it now, or empty where nobody has.
    """

    version: int
    tp: TopicPartition
    offset_from: int
    offset_to: int
    reason: str | None
    operator: str = ""
    replaces: str | None = None
    heir: str | None = None

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        if self.replaces is not None:
            return (
                f"{self.tp}: version {self.version} goes on at {self.offset_to} in place of "
                f"'{self.replaces}'{why}"
            )
        if self.heir is not None:
            by = f"'{self.heir}' takes it over" if self.heir else "nobody goes on"
            return f"{self.tp}: version {self.version} ends it at {self.offset_from}: {by}{why}"
        if self.offset_to < self.offset_from:
            what = f"offsets {self.offset_to} to {self.offset_from - 1} may be read twice"
        elif self.offset_to > self.offset_from:
            what = f"offsets {self.offset_from} to {self.offset_to - 1} are left out"
        else:
            what = "nothing is read twice or left out"
        return f"{self.tp}: version {self.version} is a seek to {self.offset_to}: {what}{why}"


class Cover(Struct, frozen=True, eq=False):
    """The ranges of one partition in the order of their commits, as columns.

    The first four have one element for each range; the lists of runs have two columns: the first
    offset, and the one after the last.
    """

    offset_first: Offsets
    offset_next: Offsets
    rows: Offsets
    versions: Offsets
    dead_letters: Offsets
    skipped: Offsets
    gone: Offsets


@dataclass(frozen=True, slots=True)
class PartitionAudit:
    """What the log says of one partition under one app id.

    `offset_first` is where it was claimed, or the first offset of which the log still knows;
    `offset_next` is its `txn`. `dead_letters`, `skipped` and `gone` count offsets.
    `proven_from` is the version from which on its ranges were followed; 0 is all of them.
    """

    app_id: str
    sink: str
    tp: TopicPartition
    offset_first: int
    offset_next: int
    records: int
    rows: int
    dead_letters: int
    skipped: int
    gone: int
    commits: int
    proven_from: int
    cover: Cover = field(repr=False, compare=False)

    def to_json(self) -> dict[str, object]:
        """Return the object that `audit --json` has for this partition."""
        return {
            "topic": self.tp.topic,
            "partition": self.tp.partition,
            "offset_first": self.offset_first,
            "offset_next": self.offset_next,
            "records": self.records,
            "rows": self.rows,
            "dead_letters": self.dead_letters,
            "skipped": self.skipped,
            "gone": self.gone,
            "commits": self.commits,
            "app_id": self.app_id,
            "proven_from": self.proven_from,
        }


class Commits(Struct, frozen=True):
    """How many entries the audit walked, by who wrote them and what for."""

    append: int = 0
    claim: int = 0
    seek: int = 0
    table: int = 0
    compaction: int = 0
    vacuum: int = 0
    other_sinks: int = 0
    other_engines: int = 0
    version_first: int = 0

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


class Deep(Struct, frozen=True):
    """What reading the rows counted.

    `rows` are all rows of the table; `rows_without_offset` those of other writers, which carry
    none. `served` is how many records Kafka still had of the ranges, None when it was not asked;
    `not_served` how many offsets of the table it no longer had, so that nothing compares them.
    """

    rows: int
    rows_without_offset: int
    served: int | None
    not_served: int | None

    def to_json(self) -> dict[str, int | None]:
        """Return the counts by name."""
        return asdict(self)


class Audit(Struct, frozen=True):
    """The verdict on one table at `table_version`.

    `violations` are what contradicts exactly-once, `unproven` what nobody can tell any more; each
    is a sentence. `other_partitions` are those that other sinks fill in the same table, and
    `foreign_removals` the versions at which another engine took rows out.
    """

    sink: str
    table_version: int
    partitions: tuple[PartitionAudit, ...]
    violations: tuple[str, ...]
    unproven: tuple[str, ...]
    seeks: tuple[Seek, ...]
    commits: Commits
    columns: tuple[str, ...]
    other_partitions: tuple[PartitionAudit, ...] = ()
    foreign_removals: tuple[int, ...] = ()
    deep: Deep | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts exactly-once."""
        return not self.violations

    @property
    def proven(self) -> bool:
        """Whether there is also nothing that could not be looked at."""
        return not self.unproven

    def to_json(self) -> dict[str, object]:
        """Return what `audit --json` prints."""
        seeks: list[Mapping[str, object]] = [
            {
                "version": seek.version,
                "topic": seek.tp.topic,
                "partition": seek.tp.partition,
                "offset_from": seek.offset_from,
                "offset_to": seek.offset_to,
                "reason": seek.reason,
                "operator": seek.operator,
                "replaces": seek.replaces,
                "heir": seek.heir,
            }
            for seek in self.seeks
        ]
        return {
            "ok": self.ok,
            "table_version": self.table_version,
            "partitions": [partition.to_json() for partition in self.partitions],
            "violations": list(self.violations),
            "proven": self.proven,
            "unproven": list(self.unproven),
            "seeks": seeks,
            "commits": self.commits.to_json(),
            "deep": self.deep.to_json() if self.deep is not None else None,
        }

    def sentences(self) -> list[str]:
        """Return what a person should read, the verdict first."""
        lines = [self._verdict()]
        lines += [f"violation: {sentence}" for sentence in self.violations]
        lines += [f"unproven: {sentence}" for sentence in self.unproven]
        lines += [f"seek: {seek}" for seek in self.seeks]
        if self.deep is not None:
            lines.append(_deep_sentence(self.deep))
        return lines

    def _verdict(self) -> str:
        rows = sum(partition.rows for partition in self.partitions)
        bad = sum(partition.dead_letters for partition in self.partitions)
        skipped = sum(partition.skipped for partition in self.partitions)
        what = (
            f"{rows:,} rows, {bad:,} dead letters and {skipped:,} skipped records of "
            f"{_plural(len(self.partitions), 'partition')}, at version {self.table_version}"
        )
        gone = sum(partition.gone for partition in self.partitions)
        if gone:
            what += f"; Kafka had lost {_plural(gone, 'offset')} before they were read"
        if not self.ok:
            return f"not exactly once ({_plural(len(self.violations), 'violation')}): {what}"
        if not self.partitions:
            return f"nothing to prove: sink '{self.sink}' has committed nothing: {what}"
        if not self.proven:
            return f"exactly once as far as it can be proven: {what}"
        return f"exactly once: {what}"


def _deep_sentence(deep: Deep) -> str:
    text = f"{deep.rows:,} rows were read"
    if deep.rows_without_offset:
        text += f", {deep.rows_without_offset:,} of them without an offset (other writers')"
    if deep.served is None:
        return text + "; they were not compared with Kafka"
    return (
        f"{text} and compared with {deep.served:,} records that Kafka serves; it no longer has "
        f"{deep.not_served or 0:,} of the offsets in the table, which nothing can be compared with"
    )


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
