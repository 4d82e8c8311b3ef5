"""Bytes to Arrow, one module a format: pure, and the whole batch at once.

A fast decoder may refuse anything but must never change a value; what it refuses, an exact
one-record path decides. A decoder is made once for a table's schema and then called with records
of one or more partitions; it returns the rows and what became of every record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa
from msgspec import Struct

from delta_sink.model import Records, Run, TopicPartition


class BadRecord(Struct, frozen=True):
    """A record that cannot become a row.

    `index` is its place in the `Records` it came in. `message` may show the value and stands in
    the dead letter only; `redacted` never shows it. Both begin with `topic/partition@offset: `.
    """

    offset: int
    index: int
    reason: str
    message: str
    redacted: str


class PartOutcome(Struct, frozen=True):
    """What became of one `Records`: `rows + len(bad) + skipped offsets == len(records)`."""

    tp: TopicPartition
    rows: int
    bad: tuple[BadRecord, ...] = ()
    skipped: tuple[Run, ...] = ()


class Decoded(Struct, frozen=True):
    """The rows of a chunk, in the order of its records, and the outcome of each of its parts.

    `rows` has exactly the table's columns (derived, metadata and table partition columns too) in
    the table's order, with the Arrow types of `TableSchema.arrow`.
    """

    rows: pa.Table
    parts: tuple[PartOutcome, ...]
    unknown_fields: int = 0


class Decoder(Protocol):
    """Decodes chunks for one table schema. Safe to call from several jobs at once."""

    def decode(self, chunk: Sequence[Records]) -> Decoded:
        """Return the rows and outcomes of `chunk`; `parts` matches it one to one."""
        ...
