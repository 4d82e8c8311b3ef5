"""Which files a table has at a version: read as a stream, kept as Arrow columns.

Theory of operation. The log is read from the newest entry down to the checkpoint below it. For
each file, identified by path and deletion vector, the first action met is the one in force;
everything older about the same file is passed over. What the checkpoint says comes last, a batch
at a time, without the files of which the entries spoke. So memory holds the entries above the
checkpoint as columns, and of the checkpoint one batch and the compressed bytes of one row group.

Columns are named as Delta names the fields of `add` and `remove`.

Source: Delta protocol, "Action Reconciliation", "Checkpoints".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import pyarrow as pa
import pyarrow.ipc
from msgspec import Struct

from delta_sink.delta.actions import Add, Entry, Metadata, Protocol, Remove
from delta_sink.delta.checkpoint import read_checkpoint
from delta_sink.delta.checkpoint_files import checkpoint_batches
from delta_sink.delta.commit import OPEN_TRIES_MAX, Log
from delta_sink.delta.file_columns import (
    FACT_SCHEMA,
    FILE_SCHEMA,
    TOMBSTONE_SCHEMA,
    batch_of,
    file_key,
    with_facts,
    without_keys,
)
from delta_sink.delta.logstore import LAST_CHECKPOINT_PATH, Checkpoint, Listing
from delta_sink.delta.state import LogState
from delta_sink.errors import ObjectMissing, TableRefused
from delta_sink.ports import ObjectStore

TAIL_BATCH_ROWS = 1_024
"""So many actions of log entries are gathered before they become columns."""


class Snapshot(Struct, frozen=True, eq=False):
    """A table at `state.version`. Its files are streamed by the methods, as often as wanted.

    `modified_ms` is when the entry of that version was stored, by the store's own time; None
    where the entry was cleaned up. A method raises ObjectMissing if the checkpoint is cleaned up
    while it is read: read the snapshot again.
    """

    state: LogState
    modified_ms: int | None
    store: ObjectStore
    checkpoint: Checkpoint | None
    tail: Tail

    def live_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the live files in batches of `FILE_SCHEMA`, in no particular order."""
        yield from map(unpacked, self.tail.adds)
        if self.checkpoint is not None:
            for batch in checkpoint_batches(self.store, self.checkpoint, "add"):
                yield without_keys(batch, self.tail.keys)

    def tombstone_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the removed files in batches of `TOMBSTONE_SCHEMA`, however old they are."""
        yield from map(unpacked, self.tail.removes)
        if self.checkpoint is not None:
            for batch in checkpoint_batches(self.store, self.checkpoint, "remove"):
                yield without_keys(batch, self.tail.keys)

    def files(self) -> pa.Table:
        """Return the live files as a table of `FACT_SCHEMA`: without statistics, with rows and tags.

        About 150 bytes a file, and what its path takes.
        """
        batches = (with_facts(batch) for batch in self.live_batches() if batch.num_rows)
        return pa.Table.from_batches(batches, FACT_SCHEMA)


class Tail(Struct, frozen=True, eq=False):
    """What the entries above a checkpoint say of files, as packed batches.

    `keys` are the files that they spoke of; empty where there is no checkpoint to compare with.
    """

    adds: Sequence[pa.Buffer]
    removes: Sequence[pa.Buffer]
    keys: pa.Array


def packed(batch: pa.RecordBatch) -> pa.Buffer:
    """Return a batch compressed: statistics of many files resemble each other (10 to 1 and more)."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def unpacked(buffer: pa.Buffer) -> pa.RecordBatch:
    """Return the batch that was `packed`."""
    return pa.ipc.open_stream(buffer).read_next_batch()


def read_snapshot(log: Log, version: int | None = None) -> Snapshot | None:
    """Return the table at `version` (None: at the head), or None if there is no table.

    Raises:
        TableRefused: the log cannot show that version: entries are missing, it does not exist
            yet, or something is damaged.
        StoreUnavailable, StoreRefused: as the store says.
    """
    for _ in range(OPEN_TRIES_MAX):
        started_ms = log.clock.elapsed_ms()
        listing = list_for(log, version)
        if not listing.entries and not listing.checkpoints:
            return None
        try:
            return _read_listed(log, listing, version, started_ms)
        except ObjectMissing:
            continue  # Cleaned up between LIST and GET: a later listing shows what is left.
    raise TableRefused(
        f"the log changed {OPEN_TRIES_MAX} times while version "
        f"{'at its head' if version is None else version} was read: something removes entries "
        f"faster than they can be read"
    )


def list_for(log: Log, version: int | None) -> Listing:
    """Return a listing that has all that is needed to read the table at `version`.

    `_last_checkpoint` may be stale or ahead of `version`: it only says from where to list, and
    where no checkpoint at or below `version` is found from there on, all of the log is listed.
    """
    hint = checkpoint_hint(log)
    if hint is None or (version is not None and hint > version):
        return log.entries.list()
    listing = log.entries.list(hint)
    if any(version is None or found.version <= version for found in listing.checkpoints):
        return listing
    return log.entries.list()


def checkpoint_hint(log: Log) -> int | None:
    """Return the version that `_last_checkpoint` names: it may be stale. None: it names none."""
    try:
        found = log.store.get(LAST_CHECKPOINT_PATH).data
        return msgspec.json.decode(found, type=_Hint).version
    except (ObjectMissing, msgspec.DecodeError):
        return None


class _Hint(msgspec.Struct):
    version: int


def checkpoint_below(listing: Listing, version: int) -> Checkpoint | None:
    """Return the newest complete checkpoint at or below `version`."""
    below = [found for found in listing.checkpoints if found.version <= version]
    return below[-1] if below else None


def _read_listed(log: Log, listing: Listing, version: int | None, started_ms: int) -> Snapshot:
    newest = max(
        max(listing.entries, default=-1),
        max((found.version for found in listing.checkpoints), default=-1),
    )
    wanted = newest if version is None else version
    if wanted > newest:
        raise TableRefused(f"the table has no version {wanted}, its log ends at {newest}")
    checkpoint = checkpoint_below(listing, wanted)
    first = checkpoint.version + 1 if checkpoint is not None else 0
    replay = _Replay()
    for number in range(wanted, first - 1, -1):
        entry = log.entries.read(number) if number in listing.entries else None
        if entry is None:
            if number in listing.entries:
                raise ObjectMissing(f"log entry {number}")
            raise TableRefused(
                f"version {wanted} cannot be read: log entry {number} is missing and no "
                f"checkpoint stands in for it"
            )
        replay.take(entry)
    info = listing.entries.get(wanted)
    e_tag = replay.e_tag or (info.e_tag if info is not None else "")
    state = replay.state(log, checkpoint, wanted, e_tag, started_ms)
    tail = replay.tail(has_checkpoint=checkpoint is not None)
    modified_ms = info.modified_ms if info is not None else None
    return Snapshot(state, modified_ms, log.store, checkpoint, tail)


class _Replay:
    """The entries above the checkpoint, taken from the newest to the oldest."""

    def __init__(self) -> None:
        self.e_tag: str | None = None  # of the newest entry, as it was read
        self._protocol: Protocol | None = None
        self._metadata: Metadata | None = None
        self._txns: dict[str, int] = {}
        self._keys: set[str] = set()
        self._adds: list[Add] = []
        self._removes: list[Remove] = []
        self._packed_adds: list[pa.Buffer] = []
        self._packed_removes: list[pa.Buffer] = []

    def take(self, entry: Entry) -> None:
        if self.e_tag is None:
            self.e_tag = entry.e_tag
        self._protocol = self._protocol or entry.protocol
        self._metadata = self._metadata or entry.metadata
        for app_id, txn in (entry.txns or {}).items():
            self._txns.setdefault(app_id, txn)
        for add in entry.adds:
            if self._is_first(add):
                self._adds.append(add)
        for remove in entry.removes:
            if self._is_first(remove):
                self._removes.append(remove)
        if len(self._adds) + len(self._removes) >= TAIL_BATCH_ROWS:
            self._flush()

    def _is_first(self, action: Add | Remove) -> bool:
        key = file_key(action.path, action.deletion_vector)
        if key in self._keys:
            return False
        self._keys.add(key)
        return True

    def _flush(self) -> None:
        if self._adds:
            self._packed_adds.append(packed(batch_of(self._adds, FILE_SCHEMA)))
            self._adds = []
        if self._removes:
            self._packed_removes.append(packed(batch_of(self._removes, TOMBSTONE_SCHEMA)))
            self._removes = []

    def tail(self, *, has_checkpoint: bool) -> Tail:
        self._flush()
        keys = pa.array(self._keys if has_checkpoint else (), pa.string())
        return Tail(self._packed_adds, self._packed_removes, keys)

    def state(
        self,
        log: Log,
        checkpoint: Checkpoint | None,
        version: int,
        e_tag: str,
        started_ms: int,
    ) -> LogState:
        """Return what a worker that followed the log would know at `version`."""
        txns: Mapping[str, int] = self._txns
        protocol, metadata = self._protocol, self._metadata
        if checkpoint is not None:
            old_protocol, old_metadata, old_txns = read_checkpoint(log.store, checkpoint)
            protocol, metadata = protocol or old_protocol, metadata or old_metadata
            txns = {**old_txns, **txns}
        if protocol is None or metadata is None:
            raise TableRefused("the log has no protocol or no metadata: this is no Delta table")
        return LogState(version, e_tag, protocol, metadata, txns, started_ms)
