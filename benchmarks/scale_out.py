"""One compactor of one thread against two of them, on copies of one table of many small files.

The compactors are processes that wait as members of their group; the time is that from the command
to its outcome, as `delta-sink control compact --wait` sees them: what one compactor divides, all do.
The broker is the embedded one of this process, the locks are in SQLite. Nobody flushes to the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import Final

import yaml

from benchmarks.appender import SEED
from benchmarks.compaction import Shape, grow, left
from delta_sink.adapters.embedded import EmbeddedBroker

EXPECTED_RATIO_MAX: Final = 0.65
CONTROL: Final = "bench.control"
STATUS: Final = "bench.status"
CONTROL_PARTITIONS: Final = 16
_READY_S_MAX: Final = 60
_STOP_S_MAX: Final = 30
_OUTCOME_S_MAX: Final = 600


@dataclass(frozen=True, slots=True)
class ScaleOut:
    """Seconds from command to outcome of each run, by how many compactors there were."""

    shape: Shape
    seconds: dict[int, list[float]]

    @property
    def ratio(self) -> float:
        """The time of two by the time of one."""
        return median(self.seconds[2]) / median(self.seconds[1])

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        return {
            "benchmark": "scale_out",
            "seed": SEED,
            "files": self.shape.files,
            "rows_per_file": self.shape.rows,
            "table_partitions": self.shape.table_partitions,
            "target_bytes": self.shape.target_bytes,
            "seconds": {
                str(count): [round(each, 3) for each in found]
                for count, found in self.seconds.items()
            },
            "ratio": round(self.ratio, 3),
        }


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> ScaleOut:
    """Return what was measured on copies of one new table in `folder`."""
    original = Path(folder) / "original"
    say(f"a table of {shape.files:,} files of {shape.rows:,} rows")
    grow(str(original), shape)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    order = [count for turn in range(shape.runs) for count in ((1, 2) if turn % 2 == 0 else (2, 1))]
    for number, count in enumerate(order):
        say(f"run {number + 1} of {len(order)}: compactors: {count}")
        place = Path(folder) / f"run-{number}"
        shutil.copytree(original, place / "table", copy_function=os.link)
        seconds[count].append(_timed(place, shape, count))
        files, off_target = left(place / "table", shape)
        assert off_target == 0, f"{off_target} of {files} files miss the target"
        shutil.rmtree(place)
    return ScaleOut(shape, seconds)


def _timed(place: Path, shape: Shape, count: int) -> float:
    topics = {"bench": 1, CONTROL: CONTROL_PARTITIONS, STATUS: 1}
    with EmbeddedBroker(topics) as broker:
        config = _config(place, shape, broker.bootstrap_servers)
        with _compactors(place, config, count):
            begun_s = perf_counter()
            subprocess.run(
                [*_command("control", "compact", config), "--wait"],
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=_OUTCOME_S_MAX,
            )
            return perf_counter() - begun_s


def _command(verb: str, what: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "delta_sink.cli", verb, what, "-c", str(config)]


def _config(place: Path, shape: Shape, bootstrap_servers: str) -> Path:
    config = {
        "name": "bench",
        "kafka": {
            "bootstrap.servers": bootstrap_servers,
            "session.timeout.ms": 3_000,
            "heartbeat.interval.ms": 500,
        },
        "source": {"topics": ["bench"], "topic_ids": "none"},
        "value": {"format": "json"},
        "table": {"uri": str(place / "table"), "storage": {"fsync": False}},
        "control": {"topic": CONTROL, "status_topic": STATUS},
        "compaction": {
            "target_file_bytes": shape.target_bytes,
            "quiet_ms": 0,
            "threads_max": 1,
            # Nothing but the command is to start a compaction.
            "small_files_max": 10**9,
            "small_bytes_max": 10**15,
            "age_max_ms": 10**9,
        },
        "checkpoint": {"commits_max": 10**9},
        "locks": {"path": str(place / "locks.db")},
        "logs": {"format": "json"},
    }
    path = place / "sink.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@contextmanager
def _compactors(place: Path, config: Path, count: int) -> Iterator[None]:
    """Run so many compactors, each with its share of the control topic."""
    logs = [place / f"compactor-{number}.log" for number in range(count)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for path in logs:
            with path.open("wb") as log:
                processes.append(
                    subprocess.Popen(_command("run", "compactor", config), stdout=log, stderr=log)
                )
        _await_shares(logs, CONTROL_PARTITIONS // count)
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(_STOP_S_MAX)


def _await_shares(logs: list[Path], partitions: int) -> None:
    deadline_s = monotonic() + _READY_S_MAX
    while not all(_share(path) == partitions for path in logs):
        assert monotonic() < deadline_s, f"not every compactor has {partitions} partitions"
        sleep(0.1)


def _share(log: Path) -> int:
    """Return how many partitions a compactor has, by what it logged of its group."""
    owned = 0
    text = log.read_text(encoding="utf-8")
    assert not text or text.startswith("{"), text  # it ended with a sentence
    for line in text.splitlines(keepends=True):
        event = json.loads(line) if line.endswith("\n") else {"event": "half of a line"}
        if event["event"] == "partitions_assigned":
            owned += len(event["partitions"])
        elif event["event"] == "partitions_revoked":
            owned -= len(event["partitions"])
    return owned
