"""Which files of a table to rewrite together: pure, and the same for the same files.

A *bin* is some files of one table partition, oldest first, that become as few files of the target
size as their rows need. Bins of one table partition are independent of each other, and so are
those of different ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from delta_sink.delta.actions import Metadata
from delta_sink.delta.file_columns import file_key
from delta_sink.delta.ordering import Order

TARGET_PROPERTY = "delta.targetFileSize"

Where = Callable[[Mapping[str, str | None]], bool]
"""Whether a table partition, given by its values as the log spells them, is meant."""


class CompactionPolicy(Struct, frozen=True):
    """What makes files worth rewriting.

    A file is small if its live rows take less than `small_share` of the target. Files that were
    modified less than `quiet_ms` ago are left alone. A bin must save at least one file, and for
    each file that it saves rewrite at most `bytes_per_saved_file_max` (None: half the target), or
    else a fifth of its bytes must be rows that are deleted already.

    With an `order` all files of up to twice the target are taken, whether small or not, and a bin
    is what is sorted together: it is read into memory whole.
    """

    target_file_bytes: int
    quiet_ms: int = 0
    small_share: float = 0.8
    bytes_per_saved_file_max: int | None = None
    deleted_share_min: float = 0.2
    bin_bytes_max: int | None = None
    bin_files_max: int = 10_000
    files_max: int = 100_000
    order: Order | None = None

    @property
    def bin_bytes(self) -> int:
        """How many bytes of input one bin may have."""
        if self.bin_bytes_max is not None:
            return self.bin_bytes_max
        return self.target_file_bytes * (1 if self.order is not None else 16)


class InputFile(Struct, frozen=True):
    """A live file that is to be rewritten. `rows` counts deleted ones too; None: not known."""

    path: str
    partition_values: Mapping[str, str | None]
    size_bytes: int
    rows: int | None
    vector: Mapping[str, object] | None

    @property
    def key(self) -> str:
        """What identifies the file in the log."""
        return file_key(self.path, self.vector)


class Bin(Struct, frozen=True):
    """Files of one table partition that are rewritten together.

    `values` are the partition's, in the order of the table's partition columns. `has_more` says
    that further bins of the same table partition follow, so that a remainder too small for a file
    is left to a later plan.
    """

    values: tuple[str | None, ...]
    files: tuple[InputFile, ...]
    has_more: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


_DELTA_SIZE = re.compile(r"(\d{1,15}) ?([kmgt]?)b?")
_DELTA_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def target_file_bytes(metadata: Metadata, default_bytes: int) -> int:
    """Return how large files should be: as the table's own property says, else the default.

    Source: Delta's table property `delta.targetFileSize`, a number of bytes or `100mb`.
    """
    text = metadata.configuration.get(TARGET_PROPERTY) or ""
    match = _DELTA_SIZE.fullmatch(text.strip().lower())
    found = 0 if match is None else int(match[1]) << _DELTA_UNITS[match[2]]
    return found or default_bytes


def plan_bins(
    files: pa.Table,
    partition_columns: Sequence[str],
    policy: CompactionPolicy,
    *,
    now_ms: int,
    where: Where | None = None,
) -> list[Bin]:
    """Return the bins of a table whose live files are `files` (`FACT_SCHEMA`).

    Table partitions come in order of their values. At most `policy.files_max` files are taken:
    a plan is bounded, and what it leaves is for the next one. `now_ms` is the time on the clock
    that gave the files their `modificationTime`.
    """
    candidates = files.filter(_is_candidate(files, policy, now_ms))
    order = [(f"p{index}", "ascending") for index in range(len(partition_columns))]
    keyed = with_values(candidates, partition_columns)
    keyed = keyed.sort_by([*order, ("modificationTime", "ascending"), ("path", "ascending")])
    bins: list[Bin] = []
    files_left = policy.files_max
    for values, part in _partitions(keyed, len(partition_columns)):
        if where is not None and not where(dict(zip(partition_columns, values, strict=True))):
            continue
        for planned in _bins_of(part, values, policy):
            if len(planned.files) > files_left:
                return bins
            files_left -= len(planned.files)
            bins.append(planned)
    return bins


def _is_candidate(files: pa.Table, policy: CompactionPolicy, now_ms: int) -> pa.ChunkedArray:
    if policy.order is not None:
        fits = pc.less_equal(files["size"], 2 * policy.target_file_bytes)
    else:
        fits = pc.less(_live_bytes(files), policy.small_share * policy.target_file_bytes)
    quiet = pc.less_equal(files["modificationTime"], now_ms - policy.quiet_ms)
    return pc.and_(fits, quiet)


def _live_bytes(files: pa.Table) -> pa.ChunkedArray:
    """Return of each file how many bytes its rows that still count take, about."""
    deleted = pc.coalesce(pc.struct_field(files["deletionVector"], "cardinality"), 0)
    rows = pc.if_else(pc.greater(files["numRecords"], 0), files["numRecords"], None)
    share = pc.coalesce(pc.divide(deleted.cast(pa.float64()), rows.cast(pa.float64())), 0.0)
    return pc.multiply(files["size"].cast(pa.float64()), pc.subtract(1.0, share))


def with_values(files: pa.Table, partition_columns: Sequence[str]) -> pa.Table:
    """Return the files (`FACT_SCHEMA`) with a column for each table partition column: p0, p1, …

    And with `liveBytes`: how many bytes the rows that still count take, about.
    """
    for index, name in enumerate(partition_columns):
        found = pc.map_lookup(files["partitionValues"], pa.scalar(name), "first")
        # To Delta's protocol the empty string is null.
        found = pc.if_else(pc.equal(found, ""), pa.scalar(None, pa.string()), found)
        files = files.append_column(f"p{index}", found)
    return files.append_column("liveBytes", _live_bytes(files))


def _partitions(keyed: pa.Table, columns: int) -> Iterator[tuple[tuple[str | None, ...], pa.Table]]:
    """Yield each table partition's values and its files; `keyed` is sorted by them."""
    if not keyed.num_rows:
        return
    starts = np.zeros(keyed.num_rows, bool)
    starts[0] = True
    for index in range(columns):
        codes = keyed[f"p{index}"].combine_chunks().dictionary_encode("encode").indices
        numbers = codes.to_numpy(zero_copy_only=False)
        starts[1:] |= numbers[1:] != numbers[:-1]
    edges = [*np.flatnonzero(starts).tolist(), keyed.num_rows]
    for first, after in pairwise(edges):
        part = keyed.slice(first, after - first)
        values = tuple(part[f"p{index}"][0].as_py() for index in range(columns))
        yield values, part


def _bins_of(
    part: pa.Table, values: tuple[str | None, ...], policy: CompactionPolicy
) -> Iterator[Bin]:
    sizes = part["size"].to_numpy()
    live = part["liveBytes"].to_numpy()
    runs = _runs(sizes, policy)
    for first, after in runs:
        rows = np.arange(first, after)
        is_last = after == len(sizes)
        if policy.order is None and (is_last or len(runs) == 1):
            rows = worthwhile(rows, sizes, live, policy)
        if len(rows):
            yield Bin(values, _inputs(part, rows), has_more=not is_last)


def _runs(sizes: npt.NDArray[np.int64], policy: CompactionPolicy) -> list[tuple[int, int]]:
    """Cut the files of a table partition into consecutive runs of bounded size."""
    runs: list[tuple[int, int]] = []
    first, total = 0, 0
    for index, size in enumerate(sizes.tolist()):
        is_full = total + size > policy.bin_bytes or index - first >= policy.bin_files_max
        if is_full and index > first:
            runs.append((first, index))
            first, total = index, 0
        total += size
    runs.append((first, len(sizes)))
    return runs


def worthwhile(
    rows: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    live: npt.NDArray[np.float64],
    policy: CompactionPolicy,
) -> npt.NDArray[np.int64]:
    """Return the rows that are worth it: without the largest files, as far as is needed."""
    limit = policy.bytes_per_saved_file_max
    per_file = policy.target_file_bytes / 2 if limit is None else limit
    while len(rows):
        total = float(live[rows].sum())
        saved = len(rows) - max(1, -(-total // policy.target_file_bytes))
        dead = float(sizes[rows].sum()) - total
        if saved >= 1 and total <= saved * per_file:
            return rows
        if dead > 0 and dead >= policy.deleted_share_min * float(sizes[rows].sum()):
            return rows
        if len(rows) == 1:
            break
        # Of files of equal size the oldest goes first.
        rows = np.delete(rows, int(np.argmax(live[rows])))
    return rows[:0]


def _inputs(part: pa.Table, rows: npt.NDArray[np.int64]) -> tuple[InputFile, ...]:
    """Return these rows of `part`, which rise; what they say of a table partition is kept once."""
    first, last = int(rows[0]), int(rows[-1])
    wanted = part.slice(first, last + 1 - first)
    names = ("path", "partitionValues", "size", "numRecords", "deletionVector")
    # Not `take`, which leaves 8 MiB behind the first time.
    paths, values, sizes, counts, vectors = (wanted[name].to_pylist() for name in names)
    shared: dict[tuple[tuple[str, str | None], ...], dict[str, str | None]] = {}
    return tuple(
        InputFile(
            paths[row],
            shared.setdefault(tuple(values[row]), dict(values[row])),
            sizes[row],
            counts[row],
            _vector(vectors[row]),
        )
        for row in (rows - first).tolist()
    )


def _vector(found: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return a deletion vector as the log has it: without members that are null."""
    if found is None:
        return None
    return {name: value for name, value in found.items() if value is not None}
