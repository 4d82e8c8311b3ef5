"""The receipt: what a commit of this sink says about the offsets in it.

It travels in `commitInfo.userMetadata`, so that `DESCRIBE HISTORY` shows it and the log alone can
be audited: for each partition the range `[offset_first, offset_next)`, how many records it held
and what became of them. Offsets that did not become rows are listed as runs.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from delta_sink.delta.actions import CommitInfo, Entry
from delta_sink.errors import TableRefused
from delta_sink.model import OffsetRange, Run, TopicPartition

RECEIPT_FORMAT = 1
Kind = Literal["append", "claim", "seek", "table", "compaction", "vacuum"]

RETIRED = 2**53 - 1
"""The `txn` of a partition that goes on under another app id: nobody may continue from it.

A `txn` cannot be taken out of a log. One that was left where it was would let a writer that still
runs under the old name go on; this value fences it, as it stands for no offset that Kafka will
reach. It is the largest number that every reader of JSON keeps exact.
"""


class PartitionReceipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the offsets of one partition. `app_id` is the `txn` that they moved."""

    app_id: str
    topic: str
    partition: int
    offset_first: int
    offset_next: int
    records: int
    rows: int
    dead_letters: tuple[Run, ...] = ()
    skipped: tuple[Run, ...] = ()
    gone: tuple[Run, ...] = ()

    @property
    def tp(self) -> TopicPartition:
        """The partition that this is about."""
        return TopicPartition(self.topic, self.partition)


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one commit of a sink says about itself.

    `commit_id` is fresh for each plan; dead letters carry it. A `claim` fixes where partitions
    start (`offset_first == offset_next`); in a `seek` `offset_first` is the offset before and
    `offset_next` the one after, which may be lower, or RETIRED for an app id that another one of
    the same receipt replaces; a `table` commit makes the table or changes its properties, a
    `compaction` replaces files by others with the same rows, a `vacuum` raises its fence or records
    that it ran: these three move no offset.
    """

    format: int
    kind: Kind
    sink: str
    worker: str
    generation: int
    commit_id: str
    partitions: tuple[PartitionReceipt, ...] = ()
    reason: str | None = None


class _Format(msgspec.Struct):
    format: int | None = None
    commit_id: str | None = None


_encoder = msgspec.json.Encoder()


def encode_receipt(receipt: Receipt) -> str:
    """Return the text for `commitInfo.userMetadata`."""
    return _encoder.encode(receipt).decode()


def partition_receipt(app_id: str, covered: OffsetRange) -> PartitionReceipt:
    """Return what a commit says of `covered`."""
    return PartitionReceipt(
        app_id=app_id,
        topic=covered.tp.topic,
        partition=covered.tp.partition,
        offset_first=covered.offset_first,
        offset_next=covered.offset_next,
        records=covered.records,
        rows=covered.rows,
        dead_letters=covered.dead_letters,
        skipped=covered.skipped,
        gone=covered.gone,
    )


def receipt_of(entry: Entry) -> Receipt | None:
    """Return the receipt of an entry, or None where another engine wrote it.

    Raises:
        TableRefused: a newer delta-sink wrote the entry; this one may misread it.
    """
    info: CommitInfo | None = entry.commit_info
    text = info.user_metadata if info is not None else None
    if not isinstance(text, str):
        return None
    try:
        head = msgspec.json.decode(text, type=_Format)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    if head.format is None or head.commit_id is None:
        return None
    if head.format > RECEIPT_FORMAT:
        raise TableRefused(
            f"version {entry.version} of the table was written by a newer delta-sink (receipt "
            f"format {head.format}, this one reads up to {RECEIPT_FORMAT}): upgrade this worker"
        )
    try:
        return msgspec.json.decode(text, type=Receipt)
    except msgspec.DecodeError as error:
        raise TableRefused(
            f"version {entry.version} of the table carries a damaged receipt ({error})"
        ) from error
