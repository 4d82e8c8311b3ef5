"""The small file problem: a table that is committed ten times a second, with maintenance and without.

Two sinks read one topic, which is fed evenly, and commit every 100 ms. One of them has a compactor
and a vacuum beside its writer. Every so often each table is scanned as a whole by deltalake and by
DuckDB, each time in a process of its own that has loaded the engine before and knows nothing of the
table. Scans run beside the sinks, on the same cores, and take turns.

At the end both tables must hold every record exactly once, by both engines and by the audit.
"""

from __future__ import annotations

import contextlib
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from deltalake import DeltaTable

from benchmarks.plot import Line, Panel, line_charts
from benchmarks.scan import DELTALAKE, DUCKDB
from benchmarks.small_files_sinks import COMMIT_MS, RECORDS_PER_S, TOPICS, Feed, Sink
from delta_sink.adapters.embedded import EmbeddedBroker
from tests.services.install import CannotInstall, InstallFailed, python_readers

WITH: Final = "with maintenance"
WITHOUT: Final = "without"
SINKS: Final = (WITH, WITHOUT)
ENGINES: Final = (DELTALAKE, DUCKDB)
_START_S_MAX: Final = 60
_REST_S_MAX: Final = 60
_SCAN_S_MAX: Final = 300
_SCAN_TRIES: Final = 5
_CHECKOUT: Final = Path(__file__).parent.parent
_COLOURS: Final = {WITH: "#0b7a75", WITHOUT: "#c8553d"}
_DASHES: Final = {DELTALAKE: "", DUCKDB: "7 4"}


@dataclass(frozen=True, slots=True)
class Shape:
    """How long records come, and how often the tables are looked at."""

    minutes: float = 10.0
    samples: int = 30

    @classmethod
    def quick(cls) -> Shape:
        """Return a run of half a minute, which shows that it works and not much more."""
        return cls(minutes=0.5, samples=4)

    @classmethod
    def of(cls, minutes: float) -> Shape:
        """Return a run that takes so long, with a look every twenty seconds, four at the least."""
        return cls(minutes, max(4, round(minutes * 3)))


@dataclass(frozen=True, slots=True)
class Sample:
    """What one table was like at a moment, `at_s` after the first record."""

    at_s: float
    version: int
    files_live: int
    files_stored: int
    """Data files in the table's folder, those that no version of interest needs included."""
    since_checkpoint: int
    """Log entries that a reader has to read, on top of the newest checkpoint if there is one."""
    scan_s: Mapping[str, float]
    """Seconds by engine."""


@dataclass(frozen=True, slots=True)
class SmallFiles:
    """The whole result. What the runs ended with: `rows` is what every table and engine has."""

    shape: Shape
    rows: int
    samples: dict[str, tuple[Sample, ...]]
    operations: dict[str, dict[str, int]]
    """How many commits of each kind stand in the log."""
    scans_repeated: int
    """Scans that failed because a file went between the opening of the table and its reading."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Those that were there."""
        first = self.samples[WITH][0].scan_s
        return tuple(engine for engine in ENGINES if engine in first)

    def appends_per_s(self, sink: str) -> float:
        """Return how often the writer committed rows while records came."""
        return self.operations[sink].get("WRITE", 0) * RECORDS_PER_S / self.rows

    def scan_ratio(self, engine: str) -> float:
        """Return the time of a scan without maintenance by that with it, late in the run."""
        without, with_it = (
            statistics.median(
                sample.scan_s[engine] for sample in samples[-max(1, len(samples) // 4) :]
            )
            for samples in (self.samples[WITHOUT], self.samples[WITH])
        )
        return without / with_it

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        return {
            "benchmark": "small_files",
            "minutes": self.shape.minutes,
            "commit_ms": COMMIT_MS,
            "records_per_s": RECORDS_PER_S,
            "rows": self.rows,
            "scan_ratio": {engine: round(self.scan_ratio(engine), 2) for engine in self.engines},
            "scans_repeated": self.scans_repeated,
            "operations": self.operations,
            "samples": {
                sink: [_sample_json(sample) for sample in samples]
                for sink, samples in self.samples.items()
            },
        }

    def plot(self) -> str:
        """Return the figure, as an SVG document."""
        files = [_line(self, sink, "in the table", lambda s: s.files_live) for sink in SINKS]
        stored = _line(self, WITH, "in its folder", lambda s: s.files_stored, dash="2 4")
        scans = [
            _line(self, sink, engine, lambda s, e=engine: s.scan_s[e], dash=_DASHES[engine])
            for sink in SINKS
            for engine in self.engines
        ]
        return line_charts(
            "Small files, with maintenance and without",
            f"Two sinks of one topic, {self.appends_per_s(WITHOUT):.1f} commits a second each, "
            f"{self.rows:,} rows at the end; a scan reads a column of all rows",
            "minutes",
            [
                Panel("Data files", "files", (files[0], stored, files[1])),
                Panel("Scan of the whole table", "seconds", tuple(scans)),
            ],
        )


def _sample_json(sample: Sample) -> dict[str, object]:
    return {
        "at_s": round(sample.at_s, 1),
        "version": sample.version,
        "files_live": sample.files_live,
        "files_stored": sample.files_stored,
        "since_checkpoint": sample.since_checkpoint,
        "scan_s": {engine: round(seconds, 4) for engine, seconds in sample.scan_s.items()},
    }


def _line(
    result: SmallFiles, sink: str, what: str, of: Callable[[Sample], float], dash: str = ""
) -> Line:
    points = tuple((sample.at_s / 60, float(of(sample))) for sample in result.samples[sink])
    return Line(f"{sink}, {what}", points, _COLOURS[sink], dash)


# --- the run --------------------------------------------------------------------------------------


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> SmallFiles:
    """Return what was measured, tables below `folder`; `say` tells a person how far it is.

    Raises:
        AssertionError: a worker ended, or a table does not hold every record exactly once.
    """
    scans = _Scans(_readers(say))
    with EmbeddedBroker(TOPICS) as broker, contextlib.ExitStack() as running:
        sinks = {
            name: Sink.made(Path(folder, place), broker.bootstrap_servers, is_maintained=kept)
            for name, place, kept in ((WITH, "maintained", True), (WITHOUT, "left-alone", False))
        }
        for sink in sinks.values():
            running.enter_context(sink)
        _await_tables(sinks)
        for sink in sinks.values():
            sink.maintain()
        feed = Feed(broker.bootstrap_servers)
        try:
            samples = _watch(shape, sinks, scans, say)
        finally:
            feed.close()
        _await_rows(sinks, feed.records)
    for name, sink in sinks.items():
        for warning in sink.warnings():
            say(f"{name}: {warning}")
        say(f"{name}: counting and auditing {feed.records:,} rows")
        _check(sink, scans, feed.records)
    operations = {name: _operations(sink.table) for name, sink in sinks.items()}
    return SmallFiles(shape, feed.records, samples, operations, scans.repeated)


def _readers(say: Callable[[str], None]) -> Path | None:
    try:
        return python_readers()
    except (CannotInstall, InstallFailed) as error:
        say(f"DuckDB is not measured: {error}")
        return None


def _await_tables(sinks: Mapping[str, Sink]) -> None:
    deadline_s = monotonic() + _START_S_MAX
    while not all(DeltaTable.is_deltatable(str(sink.table)) for sink in sinks.values()):
        assert monotonic() < deadline_s, "the writers made no tables"
        _check_workers(sinks)
        sleep(0.2)


def _check_workers(sinks: Mapping[str, Sink]) -> None:
    for sink in sinks.values():
        sink.check()


def _watch(
    shape: Shape, sinks: Mapping[str, Sink], scans: _Scans, say: Callable[[str], None]
) -> dict[str, tuple[Sample, ...]]:
    samples: dict[str, list[Sample]] = {name: [] for name in sinks}
    begun_s = monotonic()
    for number in range(1, shape.samples + 1):
        due_s = begun_s + number * shape.minutes * 60 / shape.samples
        sleep(max(0.0, due_s - monotonic()))
        _check_workers(sinks)
        order = list(sinks) if number % 2 else list(reversed(sinks))
        for name in order:
            sample = _sample(sinks[name].table, scans, monotonic() - begun_s)
            samples[name].append(sample)
            say(f"{sample.at_s:,.0f} s, {name}: {sample.files_live:,} files, {_said(sample)}")
    return {name: tuple(found) for name, found in samples.items()}


def _said(sample: Sample) -> str:
    return ", ".join(f"{engine} {seconds:.3f} s" for engine, seconds in sample.scan_s.items())


def _sample(table: Path, scans: _Scans, at_s: float) -> Sample:
    found = {engine: scans.run(engine, table) for engine in scans.engines}
    checkpoints = [
        int(path.name[:20]) for path in (table / "_delta_log").glob("*.checkpoint.parquet")
    ]
    version = int(found[DELTALAKE]["version"])
    return Sample(
        at_s=at_s,
        version=version,
        files_live=int(found[DELTALAKE]["files"]),
        files_stored=sum(1 for _ in table.rglob("*.parquet")) - len(checkpoints),
        since_checkpoint=version - max((v for v in checkpoints if v <= version), default=-1),
        scan_s={engine: each["seconds"] for engine, each in found.items()},
    )


@dataclass(slots=True)
class _Scans:
    """Scans in processes of their own."""

    duckdb: Path | None
    repeated: int = field(default=0, init=False)

    @property
    def engines(self) -> Sequence[str]:
        return ENGINES if self.duckdb is not None else (DELTALAKE,)

    def run(self, engine: str, table: Path) -> dict[str, float]:
        """Return seconds and rows of one scan; one that lost a file under it is repeated."""
        command = [sys.executable, "-m", "benchmarks.scan", engine, str(table)]
        if engine == DUCKDB:
            command.append(str(self.duckdb))
        for _ in range(_SCAN_TRIES):
            done = subprocess.run(
                command, capture_output=True, timeout=_SCAN_S_MAX, check=False, cwd=_CHECKOUT
            )
            if done.returncode == 0:
                found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
                return found
            self.repeated += 1
        raise AssertionError(f"{engine} cannot read {table}: {done.stderr.decode()[-2_000:]}")


# --- what it ended with ---------------------------------------------------------------------------


def _await_rows(sinks: Mapping[str, Sink], wanted: int) -> None:
    for name, sink in sinks.items():
        deadline_s = monotonic() + _REST_S_MAX
        while (found := DeltaTable(str(sink.table)).count()) < wanted:
            rest = f"{name}: {found} rows came, wanted {wanted}; {sink.warnings()[-5:]}"
            assert monotonic() < deadline_s, rest
            _check_workers(sinks)
            sleep(1)


def _check(sink: Sink, scans: _Scans, wanted: int) -> None:
    for engine in scans.engines:
        found = scans.run(engine, sink.table)
        assert found["rows"] == wanted, f"{engine} counts {found['rows']} rows, wanted {wanted}"
        total = wanted * (wanted - 1) // 2
        assert found["sum"] == total, f"{engine} adds up to {found['sum']}, wanted {total}"
    audit = sink.audited()
    assert audit["ok"], f"the audit of {sink.table}: {audit}"


def _operations(table: Path) -> dict[str, int]:
    """Return how many commits of each operation stand in the log."""
    counts: Counter[str] = Counter()
    for path in (table / "_delta_log").glob("*.json"):
        if not re.fullmatch(r"\d{20}", path.stem):
            continue
        actions = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        counts.update(info["commitInfo"]["operation"] for info in actions if "commitInfo" in info)
    return dict(sorted(counts.items()))
