"""Compaction against deltalake's, on copies of one table of many small files.

Each contender is a process of its own, started anew for each run: `delta-sink run compactor --once`
with its start, its checkpoint and its fsyncs off, against `DeltaTable.optimize.compact` with the same
target and codec, which flushes nothing either. Time and peak memory are those of the process, as
the kernel counts them. Afterwards every row is counted by deltalake.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import pyarrow as pa
import yaml
from deltalake import DeltaTable

from benchmarks.appender import AUTHOR, SEED, table_log
from benchmarks.usage import usage_of
from delta_sink.append import store_files
from delta_sink.delta.actions import Add
from delta_sink.delta.commit import commit
from delta_sink.delta.hive import add_path
from delta_sink.delta.parquet import DataFile, FileLayout, encode_files
from delta_sink.delta.plan import Plan
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt
from delta_sink.delta.schema import Field, TableSchema
from delta_sink.delta.table import TableSpec, commit_info, create_table

MIB: Final = 1024 * 1024
OURS: Final = "delta-sink"
THEIRS: Final = "optimize.compact"
CONTENDERS: Final = (OURS, THEIRS)
EXPECTED_TIME_MAX: Final = 0.9
EXPECTED_MEMORY_MAX: Final = 0.7
MEMORY_BYTES_MAX: Final = 600 * MIB

COMPILED: Final = "compiled"
_MODULES: Final = "delta_sink.cli, delta_sink.cli_maintenance, deltalake"

SCHEMA: Final = TableSchema(
    (Field("id", "long"), Field("day", "string"), Field("payload", "string"), Field("n", "integer"))
)
LAYOUT: Final = FileLayout(SCHEMA, ("day",), compression="zstd", compression_level=1)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the table is, and how often each contender compacts it."""

    files: int = 10_000
    rows: int = 1_000
    table_partitions: int = 50
    target_bytes: int = 4 * MIB
    runs: int = 3

    @classmethod
    def quick(cls) -> Shape:
        """Return a shape that takes seconds."""
        return cls(files=100, rows=200, table_partitions=5, target_bytes=MIB, runs=1)


@dataclass(frozen=True, slots=True)
class Run:
    """What one process took, and what it left: the sizes of the table's files by partition."""

    duration_s: float
    cpu_s: float
    peak_bytes: int
    files: int
    off_target: int
    """Files, all but the last of their table partition, that miss the target by more than 20%."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """The runs of each contender, which took turns."""

    shape: Shape
    input_bytes: int
    runs: dict[str, list[Run]]

    def middle(self, contender: str, of: Callable[[Run], float]) -> float:
        """Return the median of a figure over the contender's runs."""
        return median(of(run) for run in self.runs[contender])

    @property
    def time_ratio(self) -> float:
        """Our time by theirs."""
        return self._ratio(lambda run: run.duration_s)

    @property
    def memory_ratio(self) -> float:
        """Our peak memory by theirs."""
        return self._ratio(lambda run: run.peak_bytes)

    def _ratio(self, of: Callable[[Run], float]) -> float:
        return self.middle(OURS, of) / self.middle(THEIRS, of)

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        return {
            "benchmark": "compaction",
            "seed": SEED,
            "files": self.shape.files,
            "rows_per_file": self.shape.rows,
            "table_partitions": self.shape.table_partitions,
            "target_bytes": self.shape.target_bytes,
            "input_bytes": self.input_bytes,
            "runs": {
                name: [
                    {
                        "duration_s": round(run.duration_s, 3),
                        "cpu_s": round(run.cpu_s, 3),
                        "peak_bytes": run.peak_bytes,
                        "files": run.files,
                        "off_target": run.off_target,
                    }
                    for run in runs
                ]
                for name, runs in self.runs.items()
            },
            "time_ratio": round(self.time_ratio, 3),
            "memory_ratio": round(self.memory_ratio, 3),
        }


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> Compaction:
    """Return what was measured on copies of one new table in `folder`."""
    original = Path(folder) / "original"
    say(f"a table of {shape.files:,} files of {shape.rows:,} rows")
    grow(str(original), shape)
    input_bytes = sum(path.stat().st_size for path in original.rglob("*.parquet"))
    usage_of([sys.executable, "-c", f"import {_MODULES}"], Path(folder) / COMPILED)
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    for turn in range(shape.runs):
        for name in CONTENDERS if turn % 2 == 0 else tuple(reversed(CONTENDERS)):
            say(f"run {turn + 1} of {shape.runs}: {name}")
            runs[name].append(_run_on_copy(name, original, Path(folder) / "copy", shape))
    return Compaction(shape, input_bytes, runs)


def grow(folder: str, shape: Shape) -> None:
    """Make the table: a hundred commits, each with its share of the files."""
    log = table_log(folder, fsync=False)
    state = create_table(log, TableSpec(SCHEMA, ("day",), {}), AUTHOR)
    chance = np.random.default_rng(SEED)
    per_commit = max(1, shape.files // 100)
    for first in range(0, shape.files, per_commit):
        files: list[DataFile] = []
        for number in range(first, min(shape.files, first + per_commit)):
            rows = _rows(chance, number, shape)
            files += encode_files(
                [rows], LAYOUT, tag=state.version, unique_id=log.entropy.unique_id
            )
        store_files(files, log.store, log.clock, log.entropy)
        commit_id = log.entropy.unique_id()
        receipt = Receipt(RECEIPT_FORMAT, "table", AUTHOR.sink, AUTHOR.worker, 0, commit_id)
        info = commit_info(log, receipt, "WRITE", {"mode": "Append"}, is_blind_append=True)
        adds = [
            Add(
                path=add_path(file.path),
                partition_values=dict(file.partition_values),
                size=file.size_bytes,
                modification_time=log.clock.wall_ms(),
                data_change=True,
                stats=file.stats,
            )
            for file in files
        ]
        state = commit(log, state, Plan.of(commit_id, [info, *adds], []))


def _rows(chance: np.random.Generator, number: int, shape: Shape) -> pa.Table:
    """Return a file's rows: text that compresses by half, as text does."""
    day = f"day-{number % shape.table_partitions:03d}"
    payload = [chance.bytes(32).hex() for _ in range(shape.rows)]
    columns = [
        pa.array(np.arange(shape.rows, dtype=np.int64) + number * shape.rows),
        pa.array([day] * shape.rows),
        pa.array(payload),
        pa.array(chance.integers(0, 100, shape.rows).astype(np.int32)),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA.arrow)


def _run_on_copy(name: str, original: Path, copy: Path, shape: Shape) -> Run:
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy, copy_function=os.link)
    command = _ours(copy, shape) if name == OURS else _theirs(copy, shape)
    usage = usage_of(command, copy.parent / COMPILED)
    files, off_target = left(copy, shape)
    return Run(usage.duration_s, usage.cpu_s, usage.peak_bytes, files, off_target)


def _ours(table: Path, shape: Shape) -> list[str]:
    config = {
        "name": "bench",
        "kafka": {"bootstrap.servers": "localhost:1"},  # it is not reached
        "source": {"topics": ["bench"], "topic_ids": "none"},
        "value": {"format": "json"},
        "table": {"uri": str(table), "storage": {"fsync": False}},
        "compaction": {"target_file_bytes": shape.target_bytes, "quiet_ms": 0},
        "locks": {"path": f"{table}.locks.db"},
        "logs": {"level": "warning"},
    }
    path = Path(f"{table}.yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [sys.executable, "-m", "delta_sink.cli", "run", "compactor", "--once", "-c", str(path)]


_COMPACT = """
import sys
from deltalake import DeltaTable, WriterProperties
table = DeltaTable(sys.argv[1])
codec = WriterProperties(compression="ZSTD", compression_level=1)
table.optimize.compact(target_size=int(sys.argv[2]), writer_properties=codec)
"""


def _theirs(table: Path, shape: Shape) -> list[str]:
    return [sys.executable, "-c", _COMPACT, str(table), str(shape.target_bytes)]


def left(table: Path, shape: Shape) -> tuple[int, int]:
    """Return how many files the table has, and how many of them miss the target.

    Raises:
        AssertionError: rows are missing, or there twice.
    """
    delta = DeltaTable(str(table))
    actions = pa.table(delta.get_add_actions(flatten=True)).to_pylist()
    rows = sum(action["num_records"] for action in actions)
    assert rows == shape.files * shape.rows, f"{rows} rows are left"
    by_partition: dict[str, list[int]] = {}
    for action in actions:
        by_partition.setdefault(action["partition.day"], []).append(action["size_bytes"])
    off_target = 0
    for sizes in by_partition.values():
        off_target += sum(
            abs(size - shape.target_bytes) > 0.2 * shape.target_bytes for size in sorted(sizes)[1:]
        )
    return len(actions), off_target
