"""The commit path against `deltalake.write_deltalake`, on tables with 10², 10³ and 10⁴ commits.

One table is grown by our own appender; at each size a copy is checkpointed by deltalake, and each
contender commits to a copy of that. What is timed for one commit of ours is all that a worker
does with a decoded batch: encode one Parquet file, put it, plan, commit. What is timed for
deltalake is one `write_deltalake` of the same rows in append mode through a handle opened before,
with the offset as an application transaction and with our codec. Both open the table once, just
before, which is timed apart.

deltalake flushes nothing to the disk. So there are two pairs that flush alike: ours without fsync
against `write_deltalake` as it is, which is the headline since both programs run as they were
written; and ours with fsync, as users run it, against `write_deltalake` and then an fsync of both
files and both folders that it wrote. The second pair adds the disk's time to both sides, and a
little less of it to deltalake's: its flushes come together at the end, so that the first does most
of the work of all, and its entry is visible before the data is safe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake

from benchmarks.appender import (
    APP_ID,
    COMPRESSION,
    COMPRESSION_LEVEL,
    SEED,
    VERSION_CLAIMED,
    Appender,
    grow,
    link_table,
    make_batches,
    table_log,
)
from benchmarks.lanes import Lane, Timings, flush, measure
from delta_sink.delta.commit import open_log
from delta_sink.delta.logstore import entry_path

SIZES: Final = (100, 1_000, 10_000)
EXPECTED_RATIOS: Final = {100: 3.0, 1_000: 8.0, 10_000: 50.0}
"""How many times faster than deltalake our p50 should be, by the commits of the table."""
EXPECTED_GROWTH_MAX: Final = 1.3
"""How much slower our p50 at the largest size may be than at the smallest."""

HEADLINE_FSYNC: Final = False
"""Which of the two pairs is the headline."""

OURS: Final = "delta-sink"
THEIRS: Final = "write_deltalake"
CONTENDERS: Final = ((OURS, False), (THEIRS, False), (OURS, True), (THEIRS, True))


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a run is. `opens` and `commits` are for each contender at each size."""

    sizes: tuple[int, ...] = SIZES
    commits: int = 50
    block: int = 5
    rows: int = 1_000
    opens: int = 6

    @classmethod
    def quick(cls) -> Shape:
        """Return a run of a few seconds, which shows that it works and not much more."""
        return cls(sizes=(10, 100), commits=20, opens=2)


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one size of the table."""

    size: int
    commits: dict[tuple[str, bool], Timings]
    opens: dict[str, Timings]

    def ratio(self, *, fsync: bool) -> float:
        """How many times as long deltalake's median commit takes as ours."""
        return self.commits[THEIRS, fsync].p50_ms / self.commits[OURS, fsync].p50_ms

    @property
    def open_ratio(self) -> float:
        """How many times as long deltalake takes to open the table as we do."""
        return self.opens[THEIRS].p50_ms / self.opens[OURS].p50_ms


@dataclass(frozen=True, slots=True)
class CommitPath:
    """The whole result. `requests` is what all our timed commits together asked of the store."""

    shape: Shape
    points: tuple[Point, ...]
    requests: dict[str, int]

    def growth(self, *, fsync: bool) -> float:
        """Our median at the largest size over our median at the smallest."""
        first, last = self.points[0].commits[OURS, fsync], self.points[-1].commits[OURS, fsync]
        return last.p50_ms / first.p50_ms

    @property
    def requests_per_commit(self) -> float:
        """How many requests one commit of ours makes on average."""
        ours = len(self.points) * self.shape.commits * sum(name == OURS for name, _ in CONTENDERS)
        return sum(self.requests.values()) / ours

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        return {
            "benchmark": "commit_path",
            "seed": SEED,
            "rows_per_commit": self.shape.rows,
            "headline": _flushed(HEADLINE_FSYNC),
            "points": [_point_json(point) for point in self.points],
            "growth": {_flushed(f): round(self.growth(fsync=f), 3) for f in (True, False)},
            "growth_expected_max": EXPECTED_GROWTH_MAX,
            "requests_per_commit": round(self.requests_per_commit, 3),
            "requests": self.requests,
        }


def _flushed(fsync: bool) -> str:
    return "fsync" if fsync else "no_fsync"


def _point_json(point: Point) -> dict[str, object]:
    return {
        "table_commits": point.size,
        "commit": {
            f"{name}/{_flushed(fsync)}": timings.as_json()
            for (name, fsync), timings in point.commits.items()
        },
        "ratio": {_flushed(f): round(point.ratio(fsync=f), 3) for f in (True, False)},
        "ratio_expected_min": EXPECTED_RATIOS.get(point.size),
        "open": {name: timings.as_json() for name, timings in point.opens.items()},
        "open_ratio": round(point.open_ratio, 3),
    }


# --- the contenders -----------------------------------------------------------------------------


class OursLane:
    """Commits of ours to the table in `folder`, from a log that was opened a moment ago."""

    def __init__(self, folder: str, batches: Sequence[pa.Table], *, fsync: bool) -> None:
        self._folder = folder
        self._batches = batches
        self.appender = Appender(folder, fsync=fsync)

    def settle(self) -> None:
        """Flush what others left in the file system's journal."""
        flush(f"{self._folder}/_delta_log")

    def run(self, number: int) -> float:
        """Commit one batch; return the seconds that it took."""
        rows = self._batches[number % len(self._batches)]
        begun = perf_counter()
        self.appender.append(rows)
        return perf_counter() - begun


class DeltalakeLane:
    """Commits of deltalake's to the table in `folder`, through one handle opened a moment ago."""

    def __init__(self, folder: str, batches: Sequence[pa.Table], *, fsync: bool) -> None:
        self._folder = folder
        self._batches = batches
        self._fsync = fsync
        self._table = DeltaTable(folder)
        self._offset_next = self._table.transaction_version(str(APP_ID)) or 0
        self._properties = WriterProperties(
            compression=COMPRESSION.upper(), compression_level=COMPRESSION_LEVEL
        )

    def settle(self) -> None:
        """Flush what others left in the file system's journal."""
        flush(f"{self._folder}/_delta_log")

    def run(self, number: int) -> float:
        """Commit one batch; return the seconds that it took, flushes included if asked for."""
        rows = self._batches[number % len(self._batches)]
        self._offset_next += rows.num_rows
        begun = perf_counter()
        write_deltalake(
            self._table,
            rows,
            mode="append",
            writer_properties=self._properties,
            commit_properties=CommitProperties(
                app_transactions=[Transaction(str(APP_ID), self._offset_next)]
            ),
        )
        taken = perf_counter() - begun
        return taken + self._flush() if self._fsync else taken

    def _flush(self) -> float:
        """Flush what the last commit wrote; return the seconds, without those to find it."""
        entry = Path(self._folder, entry_path(self._table.version()))
        actions = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines()]
        [data] = [Path(self._folder, a["add"]["path"]) for a in actions if "add" in a]
        begun = perf_counter()
        for path in (data, data.parent, entry, entry.parent):
            flush(str(path))
        return perf_counter() - begun


class OpenLane:
    """Openings of a table, each from nothing."""

    def __init__(self, open_table: Callable[[], object]) -> None:
        self._open_table = open_table

    def settle(self) -> None:
        """Nothing is written, so nothing has to be flushed."""

    def run(self, number: int) -> float:
        """Open the table; return the seconds that it took."""
        begun = perf_counter()
        opened = self._open_table()
        taken = perf_counter() - begun
        assert opened is not None, "there is no table"
        return taken


def _open_lanes(folder: str) -> dict[str, Lane]:
    log = table_log(folder, fsync=False)
    return {
        OURS: OpenLane(lambda: open_log(log)),
        THEIRS: OpenLane(lambda: DeltaTable(folder)),
    }


# --- the run ------------------------------------------------------------------------------------

LaneKey = tuple[int, str, bool]
"""The table's size, the contender, and whether it flushes."""


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> CommitPath:
    """Return what was measured on tables made in `folder`; `say` tells a person how far it is.

    Raises:
        AssertionError: a contender's table does not hold what it should: the figures are void.
    """
    batches = make_batches(shape.rows)
    tables = _grown_tables(shape, folder, batches, say)
    opens = {}
    for size, table in tables.items():
        say(f"opening the table of {size:,} commits")
        opens[size] = measure(_open_lanes(table), runs=shape.opens, block=1)
    copies = {
        (size, name, fsync): f"{tables[size]}-{name}-{_flushed(fsync)}"
        for name, fsync in CONTENDERS
        for size in shape.sizes
    }
    for (size, _, _), copy in copies.items():
        link_table(tables[size], copy)
    os.sync()  # what growing left behind is not flushed in a contender's time
    say(f"{shape.commits} commits each of {len(copies)} contenders, in turns")
    lanes = {key: _lane(key, copy, batches) for key, copy in copies.items()}
    timings = measure(
        {str(key): lane for key, lane in lanes.items()}, runs=shape.commits, block=shape.block
    )
    for key, copy in copies.items():
        check_table(copy, version=key[0] + shape.commits, shape=shape)
    points = [
        Point(size, {(n, f): timings[str((size, n, f))] for n, f in CONTENDERS}, opens[size])
        for size in shape.sizes
    ]
    return CommitPath(shape, tuple(points), _requests(list(lanes.values())))


def _grown_tables(
    shape: Shape, folder: str, batches: Sequence[pa.Table], say: Callable[[str], None]
) -> dict[int, str]:
    """Return a table for each size: grown by our appender, with a checkpoint at its head."""
    appender = Appender(f"{folder}/grown", fsync=False)
    tables: dict[int, str] = {}
    for size in shape.sizes:
        say(f"growing a table to {size:,} commits")
        grow(appender, batches, version=size)
        tables[size] = f"{folder}/{size}"
        link_table(f"{folder}/grown", tables[size])
        DeltaTable(tables[size]).create_checkpoint()
    return tables


def _lane(key: LaneKey, folder: str, batches: Sequence[pa.Table]) -> OursLane | DeltalakeLane:
    _, name, fsync = key
    kind = OursLane if name == OURS else DeltalakeLane
    return kind(folder, batches, fsync=fsync)


def _requests(lanes: Sequence[OursLane | DeltalakeLane]) -> dict[str, int]:
    found: dict[str, int] = {}
    for lane in lanes:
        if isinstance(lane, OursLane):
            for verb, count in lane.appender.requests.by_verb.items():
                found[verb] = found.get(verb, 0) + count
    return found


def check_table(folder: str, *, version: int, shape: Shape) -> None:
    """Assert that every commit landed whole, as deltalake reads the table."""
    table = DeltaTable(folder)
    rows = (version - VERSION_CLAIMED) * shape.rows
    found = (table.version(), table.transaction_version(str(APP_ID)), table.count())
    assert found == (version, rows, rows), f"{folder}: got {found}, wanted {(version, rows, rows)}"
