"""Rewriting small files into large ones, and putting that into the log: rows stay as they are.

Theory of operation. A bin is read file by file, deletion vectors applied, and written as a stream
into files near the target size. Whenever a file is finished where an input ends, that is a *step*:
all inputs read so far, and the files that hold exactly their rows. A step is committed on its own,
so a crash loses at most one, and memory holds one file and one row group whatever the bin's size.

A step's commit removes the inputs and adds the files, with `dataChange` false, on the condition
that every input is live with the deletion vector that was applied. Appends that land meanwhile do
not matter. The files are named before they are uploaded, under the tag of the version from which
the plan was made: where vacuum's fence has passed it, the step is dropped and made again later.

Nothing here is exclusive: two workers on the same bin both rewrite it, and one of the commits
finds its inputs gone. Locks only save the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct
from msgspec.structs import replace

from delta_sink.delta.actions import Action, Add, Remove
from delta_sink.delta.checkpoint import FetchedFile
from delta_sink.delta.commit import Log, commit
from delta_sink.delta.compaction_plan import Bin, InputFile
from delta_sink.delta.conditions import InputsLive, InputsUnseen, StillRewritable, refuse_rewriting
from delta_sink.delta.conform import Columns
from delta_sink.delta.deletion_vector import (
    Positions,
    inline_positions,
    stored_positions,
    vector_place,
)
from delta_sink.delta.file_columns import file_keys
from delta_sink.delta.file_stream import FileStream, Weight
from delta_sink.delta.hive import add_path, object_path
from delta_sink.delta.ordering import Order, check_order, ordered
from delta_sink.delta.parquet import DataFile, FileLayout
from delta_sink.delta.plan import Plan, SameTable, TagAboveFence
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt
from delta_sink.delta.repeat import repeat
from delta_sink.delta.schema import TableSchema
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.delta.state import LogState
from delta_sink.delta.statistics import COLUMNS_MAX
from delta_sink.delta.table import Author, commit_info
from delta_sink.errors import CommitConflict, ConfigError, ObjectMissing, TableRefused
from delta_sink.ports import ObjectInfo, ObjectStore

FULL_SHARE = 0.95
"""A file ends where an input ends if it has this share of the target …"""
OVERFULL_SHARE = 1.08
"""… and within an input where it has this share."""
PIECE_SHARE = 1 / 8
"""Rows are taken in pieces whose Arrow columns are at most this share of the target."""

WHOLE_BYTES_MAX = 8 * 1024 * 1024
"""Inputs up to this size are fetched in one request."""

READ_ROWS = 65_536
COMMIT_ROUNDS_MAX = 5
"""How often a step's inputs are looked at anew because the log jumped behind a checkpoint."""

INDEXED_COLUMNS_PROPERTY = "delta.dataSkippingNumIndexedCols"


class StoredFile(Struct, frozen=True):
    """A data file that is uploaded and stands in no log yet. `path` is the object's."""

    path: str
    partition_values: dict[str, str | None]
    size_bytes: int
    rows: int
    stats: str


class Rewritten(Struct, frozen=True):
    """A step: `outputs` hold exactly the `rows` that count of `inputs`."""

    inputs: tuple[InputFile, ...]
    outputs: tuple[StoredFile, ...]
    rows: int
    tag: int
    table: SameTable
    order: Order | None


class Compacted(Struct, frozen=True):
    """A step that is in the log, and the state of the log after it."""

    state: LogState
    files_removed: int
    files_added: int
    bytes_removed: int
    bytes_added: int
    rows: int


def compaction_layout(state: LogState, like: FileLayout | None = None) -> FileLayout:
    """Return how files of the table are written: codec and the like as `like` has them.

    Raises:
        TableRefused: its files may not be replaced by this sink, or it cannot write such a table.
    """
    refuse_rewriting(state.protocol, state.metadata)
    schema = TableSchema.from_json(state.metadata.schema_string)
    indexed = state.metadata.configuration.get(INDEXED_COLUMNS_PROPERTY)
    columns = COLUMNS_MAX if indexed is None else int(indexed)
    partition_by = state.metadata.partition_columns
    try:
        if like is None:
            return FileLayout(schema, partition_by, statistics_columns=columns)
        return replace(like, schema=schema, partition_by=partition_by, statistics_columns=columns)
    except ConfigError as error:
        raise TableRefused(f"files of this table cannot be written: {error}") from error


def rewrite_bin(
    log: Log,
    planned: Bin,
    layout: FileLayout,
    *,
    state: LogState,
    target_file_bytes: int,
    order: Order | None = None,
    weight: Weight | None = None,
) -> Iterator[Rewritten]:
    """Yield the steps of a bin; the files of each are durable when it is yielded.

    `state` is that of the snapshot from which the bin was planned. `weight` carries over from bin
    to bin how well the table's rows compress. Only this generator's consumer decides whether a
    step is committed: one that is not leaves orphans, which vacuum removes.

    Raises:
        TableRefused: an input is damaged, has another number of rows than the log says, or has
            columns that are not the table's.
        ObjectMissing: an input is gone, so it is no longer live: drop the bin.
        RetriableError, StoreRefused: as the store says; drop the bin.
    """
    if order is not None:
        check_order(order, layout.schema, layout.partition_by)
    weight = weight if weight is not None else Weight()
    yield from _Rewrite(log, planned, layout, state, target_file_bytes, weight).run(order)


class _Rewrite:
    """One bin while it is rewritten."""

    def __init__(
        self,
        log: Log,
        planned: Bin,
        layout: FileLayout,
        state: LogState,
        target_file_bytes: int,
        weight: Weight,
    ) -> None:
        self._log = log
        self._bin = planned
        self._layout = layout
        self._columns = Columns(layout.file_fields)
        self._tag = state.version
        self._table = SameTable.of(state)
        self._target = target_file_bytes
        self._weight = weight
        self._stream: FileStream | None = None
        self._inputs: list[InputFile] = []
        self._outputs: list[StoredFile] = []
        self._rows = 0
        self._has_yielded = False

    def run(self, order: Order | None) -> Iterator[Rewritten]:
        if order is not None:
            yield self._sorted(order)
            return
        for file in self._bin.files:
            for table in read_input(self._log.store, file, self._columns):
                self._take(table)
            self._inputs.append(file)
            if self._stream is None or self._is_full(FULL_SHARE):
                if self._stream is not None:
                    self._end_file()
                if self._outputs:
                    yield self._step()
        if self._inputs and not self._is_left():
            self._end_file()
            yield self._step()

    def _is_left(self) -> bool:
        """Return whether the remainder is better left as it is, until more files can join it."""
        if not self._has_yielded:
            return False
        return self._bin.has_more or (len(self._inputs) == 1 and self._inputs[0].vector is None)

    def _sorted(self, order: Order) -> Rewritten:
        tables = [
            table
            for file in self._bin.files
            for table in read_input(self._log.store, file, self._columns)
        ]
        self._inputs = list(self._bin.files)
        if tables:
            self._take(ordered(pa.concat_tables(tables), order))
            self._end_file()
        return replace(self._step(), order=order)

    def _take(self, table: pa.Table) -> None:
        """Write rows, in pieces, and end each file that gets too large for what is left."""
        self._rows += table.num_rows
        for piece, size_bytes in _pieces(table, round(self._target * PIECE_SHARE)):
            if self._stream is None:
                self._stream = FileStream(
                    self._layout, self._bin.values, self._weight, self._target
                )
            self._stream.write(piece, size_bytes)
            if self._is_full(OVERFULL_SHARE):
                self._end_file()

    def _is_full(self, share: float) -> bool:
        """Return whether the file has this share of the target: by its real bytes."""
        assert self._stream is not None
        if self._stream.estimated_bytes < share * self._target:
            return False
        # Encoding what waits shows what it really takes.
        self._stream.flush()
        return self._stream.written_bytes >= (share - 0.05) * self._target

    def _end_file(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None or not stream.rows:
            return
        log = self._log
        file = stream.finish(tag=self._tag, unique_id=log.entropy.unique_id())
        repeat(lambda: log.store.put(file.path, file.data), log.clock, log.entropy)
        self._outputs.append(_stored(file))

    def _step(self) -> Rewritten:
        written = sum(file.rows for file in self._outputs)
        assert written == self._rows, f"read {self._rows} rows, wrote {written}"
        step = Rewritten(
            tuple(self._inputs), tuple(self._outputs), written, self._tag, self._table, None
        )
        self._inputs, self._outputs, self._rows = [], [], 0
        self._has_yielded = True
        return step


def _stored(file: DataFile) -> StoredFile:
    return StoredFile(file.path, file.partition_values, file.size_bytes, file.rows, file.stats)


def _pieces(table: pa.Table, bytes_max: int) -> Iterator[tuple[pa.Table, int]]:
    """Yield the rows in pieces of at most about `bytes_max`, each with its size."""
    if not table.num_rows:
        return
    total = table.nbytes
    count = min(table.num_rows, -(-total // max(1, bytes_max)))
    if count <= 1:
        yield table, total
        return
    rows = -(-table.num_rows // count)
    for first in range(0, table.num_rows, rows):
        piece = table.slice(first, rows)
        yield piece, piece.nbytes


# --- reading --------------------------------------------------------------------------------------


def read_input(store: ObjectStore, file: InputFile, columns: Columns) -> Iterator[pa.Table]:
    """Yield the rows of a data file that count, in order, with these columns.

    Raises: as `rewrite_bin`.
    """
    path = object_path(file.path)
    deleted = _deleted(store, file)
    rows_seen = 0
    try:
        for table in _tables(store, path, file.size_bytes):
            kept = _without(table, deleted, rows_seen)
            rows_seen += table.num_rows
            if kept.num_rows:
                yield columns.conform(kept, path)
    except (pa.ArrowException, OSError) as error:
        raise TableRefused(f"{path} is no readable Parquet file ({error})") from error
    if file.rows is not None and rows_seen != file.rows:
        raise TableRefused(f"{path} has {rows_seen} rows, the log says {file.rows}")
    if len(deleted) and deleted[-1] >= rows_seen:
        raise TableRefused(f"the deletion vector of {path} names row {deleted[-1]} of {rows_seen}")


def _tables(store: ObjectStore, path: str, size_bytes: int) -> Iterator[pa.Table]:
    """Yield the rows of a Parquet file, a small one whole, a large one in parts."""
    if size_bytes <= WHOLE_BYTES_MAX:
        data = pa.BufferReader(store.get(path).data)
        yield pq.ParquetFile(data, coerce_int96_timestamp_unit="us").read(use_threads=False)
        return
    # Arrow reads in this thread only what was fetched before.
    fetched = FetchedFile(store, ObjectInfo(path, size_bytes, 0, ""))
    fetched.fetch_footer()
    parquet = pq.ParquetFile(fetched, coerce_int96_timestamp_unit="us")
    for index in range(parquet.num_row_groups):
        fetched.fetch([_extent(parquet.metadata.row_group(index))])
        for batch in parquet.iter_batches(READ_ROWS, row_groups=[index], use_threads=False):
            yield pa.Table.from_batches([batch])


def _extent(group: pq.RowGroupMetaData) -> tuple[int, int]:
    first, end = 2**63, 0
    for index in range(group.num_columns):
        chunk = group.column(index)
        start = min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)
        first, end = min(first, start), max(end, start + chunk.total_compressed_size)
    return first, end


def _deleted(store: ObjectStore, file: InputFile) -> Positions:
    if file.vector is None:
        return np.zeros(0, np.int64)
    place = vector_place(file.vector)
    if place is None:
        return inline_positions(file.vector)
    return stored_positions(file.vector, store.get_range(place.path, place.offset, place.length))


def _without(table: pa.Table, deleted: Positions, first: int) -> pa.Table:
    """Return the rows of `table`, which begins at row `first` of its file, that are not deleted."""
    if not len(deleted):
        return table
    low, high = np.searchsorted(deleted, (first, first + table.num_rows))
    if low == high:
        return table
    keep = np.ones(table.num_rows, bool)
    keep[deleted[low:high] - first] = False
    return table.filter(pa.array(keep))


# --- the commit -----------------------------------------------------------------------------------


def commit_rewritten(log: Log, state: LogState, rewritten: Rewritten, author: Author) -> Compacted:
    """Return once a step is in the log: its inputs removed, its files added, no row changed.

    `state` is where the inputs are known to be live: that of the snapshot from which the bin was
    planned, or of the step before it. Where the log went on behind a checkpoint meanwhile, the
    inputs are looked up in a new snapshot.

    Raises:
        CommitConflict: an input is no longer live, the schema changed, or vacuum's fence passed
            the files. Nothing landed; drop the bin, plan again.
        CommitUnknown: it may have landed. Drop the bin; the next plan sees what is true.
        TableRefused: the table is no longer one whose files this sink may replace.
        StoreRefused: a definite no; nothing landed.
    """
    for _ in range(COMMIT_ROUNDS_MAX):
        plan = plan_compaction(log, state, rewritten, author)
        try:
            found = commit(log, state, plan)
        except InputsUnseen:
            state = _state_with_inputs(log, rewritten.inputs)
            continue
        return Compacted(
            state=found,
            files_removed=len(rewritten.inputs),
            files_added=len(rewritten.outputs),
            bytes_removed=sum(file.size_bytes for file in rewritten.inputs),
            bytes_added=sum(file.size_bytes for file in rewritten.outputs),
            rows=rewritten.rows,
        )
    raise CommitConflict(
        f"the log went on behind checkpoints {COMMIT_ROUNDS_MAX} times while a compaction was "
        f"being committed: plan again"
    )


def _state_with_inputs(log: Log, inputs: Sequence[InputFile]) -> LogState:
    """Return the state at the head, at which every input is live; else raise CommitConflict."""
    wanted = pa.array([file.key for file in inputs], pa.string())
    for _ in range(COMMIT_ROUNDS_MAX):
        snapshot = read_snapshot(log)
        if snapshot is None:
            raise TableRefused("the table's log is gone: was the table dropped while in use?")
        try:
            live = 0
            for batch in snapshot.live_batches():
                found = pc.is_in(file_keys(batch), value_set=wanted)
                live += pc.sum(found).as_py() or 0
        except ObjectMissing:
            continue
        if live != len(inputs):
            raise CommitConflict(
                f"{len(inputs) - live} of {len(inputs)} files were removed while they were being "
                f"compacted"
            )
        return snapshot.state
    raise CommitConflict("checkpoints came and went faster than they could be read: plan again")


def plan_compaction(log: Log, state: LogState, rewritten: Rewritten, author: Author) -> Plan:
    """Return the plan of a step whose inputs are live at `state`."""
    commit_id = log.entropy.unique_id()
    now_ms = log.clock.wall_ms()
    receipt = Receipt(
        RECEIPT_FORMAT, "compaction", author.sink, author.worker, author.generation, commit_id
    )
    order = rewritten.order
    sorts = msgspec.json.encode(order.columns if order is not None else ()).decode()
    is_zorder = order is not None and order.kind == "zorder"
    info = commit_info(
        log,
        receipt,
        "OPTIMIZE",
        {
            "predicate": "[]",
            "zOrderBy": sorts if is_zorder else "[]",
            "clusterBy": "[]",
            "sortBy": sorts if order is not None and not is_zorder else "[]",
            "auto": "false",
        },
        is_blind_append=False,
        operation_metrics=_metrics(rewritten),
    )
    actions: list[Action] = [info]
    actions += [_remove(file, now_ms) for file in rewritten.inputs]
    actions += [_add(file, now_ms) for file in rewritten.outputs]
    live = InputsLive(
        state.version,
        frozenset(file.key for file in rewritten.inputs),
        frozenset(file.path for file in rewritten.inputs),
    )
    conditions: list[SameTable | StillRewritable | InputsLive | TagAboveFence] = [
        rewritten.table,
        StillRewritable(log.entries.kind),
        live,
    ]
    if rewritten.outputs:
        conditions.append(TagAboveFence(rewritten.tag))
    return Plan.of(commit_id, actions, conditions)


def _remove(file: InputFile, now_ms: int) -> Remove:
    return Remove(
        path=file.path,
        data_change=False,
        deletion_timestamp=now_ms,
        extended_file_metadata=True,
        partition_values=dict(file.partition_values),
        size=file.size_bytes,
        deletion_vector=None if file.vector is None else dict(file.vector),
    )


def _add(file: StoredFile, now_ms: int) -> Add:
    return Add(
        path=add_path(file.path),
        partition_values=dict(file.partition_values),
        size=file.size_bytes,
        modification_time=now_ms,
        data_change=False,
        stats=file.stats,
    )


def _metrics(rewritten: Rewritten) -> dict[str, str]:
    """Return the metrics of an OPTIMIZE, named and spelled as Delta does."""
    removed = [file.size_bytes for file in rewritten.inputs]
    added = sorted(file.size_bytes for file in rewritten.outputs)
    numbers = {
        "numRemovedFiles": len(removed),
        "numAddedFiles": len(added),
        "numRemovedBytes": sum(removed),
        "numAddedBytes": sum(added),
        "numDeletionVectorsRemoved": sum(f.vector is not None for f in rewritten.inputs),
        "minFileSize": min(added, default=0),
        "maxFileSize": max(added, default=0),
    }
    for percent in (25, 50, 75):
        place = min(len(added) - 1, percent * len(added) // 100)
        numbers[f"p{percent}FileSize"] = added[place] if added else 0
    return {name: str(value) for name, value in numbers.items()}
