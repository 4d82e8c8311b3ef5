"""A backlog in Apache Kafka, drained: by this sink, by bare `consume()`, and by the plain loop.

The plain loop is what one writes first: consume, `orjson.loads`, and a `write_deltalake` a second.
Each contender is a process of its own; they take turns, and medians are compared. Seconds count
from the first poll to the last commit; CPU is all that the process used from its start to its end,
the interpreter's start and librdkafka's threads included; the peak is that of resident memory.

The brokers are those of `KAFKA_BOOTSTRAP_SERVERS`, or one is started as the tests start it. It
runs on the same machine: what it takes is missing to all contenders alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import sleep
from types import MappingProxyType
from typing import Final

import yaml
from deltalake import DeltaTable

from benchmarks.appender import SEED
from benchmarks.drain_data import COLUMNS, Backlog, Kind, fill
from benchmarks.lanes import turns
from benchmarks.usage import installed
from tests.services.install import CannotInstall
from tests.services.servers import Servers

BARE: Final = "bare consume"
SINK: Final = "delta-sink"
LOOP: Final = "plain loop"
CONTENDERS: Final = (BARE, SINK, LOOP)

EXPECTED: Final[dict[Kind, tuple[float, float, float]]] = {
    "flat": (2.0, 20.0, 0.40),
    "nested": (4.5, 6.5, 0.13),
}
"""At least so many times as fast as the loop, at most so many CPU seconds a GB, and at least this
share of what bare `consume()` reaches."""

SERVERS_VARIABLE: Final = "KAFKA_BOOTSTRAP_SERVERS"
_RUN_S_MAX: Final = 600
_SAMPLE_S: Final = 0.02
_CHECKOUT: Final = Path(__file__).parent.parent
_MODULES: Final = "delta_sink.cli, delta_sink.cli_writer, benchmarks.drain_data, benchmarks.drain_stages, deltalake, orjson"


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a run is: records of each kind, and how often each contender has its turn."""

    records: tuple[tuple[Kind, int], ...] = (("flat", 2_000_000), ("nested", 500_000))
    runs: int = 4

    @classmethod
    def quick(cls) -> Shape:
        """Return a run of half a minute, which shows that it works and not much more."""
        return cls(records=(("flat", 200_000), ("nested", 40_000)), runs=2)


@dataclass(frozen=True, slots=True)
class Drained:
    """What one process did: seconds from the first poll to the last commit, CPU, peak memory."""

    seconds: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured on one topic. `stages` is CPU seconds of the sink by stage."""

    kind: Kind
    records: int
    size_bytes: int
    runs: dict[str, tuple[Drained, ...]]
    stages: dict[str, float]

    def records_per_s(self, name: str) -> float:
        """The median."""
        return self.records / self._median(name, lambda run: run.seconds)

    def mb_per_s(self, name: str) -> float:
        """The median, in millions of bytes of record values."""
        return self.size_bytes / self._median(name, lambda run: run.seconds) / 1e6

    def cpu_s_per_gb(self, name: str) -> float:
        """The median of CPU seconds for 10⁹ bytes of record values."""
        return self._median(name, lambda run: run.cpu_s) / self.size_bytes * 1e9

    def peak_mib(self, name: str) -> float:
        """The median of the peaks."""
        return self._median(name, lambda run: float(run.peak_bytes)) / (1 << 20)

    def times_as_fast(self, name: str) -> float:
        """How many times as many records a second the sink reaches as the contender `name`."""
        return self.records_per_s(SINK) / self.records_per_s(name)

    def _median(self, name: str, of: Callable[[Drained], float]) -> float:
        return statistics.median(map(of, self.runs[name]))


@dataclass(frozen=True, slots=True)
class Drain:
    """The whole result; `skipped` says why nothing was measured."""

    shape: Shape
    points: tuple[Point, ...] = ()
    skipped: str | None = None

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        return {
            "benchmark": "drain",
            "seed": SEED,
            "skipped": self.skipped,
            "points": [_point_json(point) for point in self.points],
        }


def _point_json(point: Point) -> dict[str, object]:
    return {
        "kind": point.kind,
        "records": point.records,
        "bytes": point.size_bytes,
        "contenders": {
            name: {
                "records_per_s": round(point.records_per_s(name)),
                "mb_per_s": round(point.mb_per_s(name), 1),
                "cpu_s_per_gb": round(point.cpu_s_per_gb(name), 2),
                "peak_mib": round(point.peak_mib(name)),
            }
            for name in CONTENDERS
        },
        "times_as_fast": {name: round(point.times_as_fast(name), 3) for name in (LOOP, BARE)},
        "expected": list(EXPECTED[point.kind]),
        "stages_cpu_s": {name: round(seconds, 3) for name, seconds in point.stages.items()},
    }


# --- the contenders -----------------------------------------------------------------------------


def _measured(command: Sequence[str], folder: str) -> tuple[int, float, int, str, str]:
    """Run a process to its end; return exit code, CPU seconds, peak bytes, stdout and stderr.

    The peak is asked of the process while it runs: what the system tells at its end would include
    this process, of which it began as a copy.
    """
    out, log = Path(folder, "stdout"), Path(folder, "stderr")
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdout=stdout,
            stderr=stderr,
            cwd=_CHECKOUT,
            env=installed(Path(folder).parent / "compiled"),
        )
        peak_bytes = 0
        for _ in range(int(_RUN_S_MAX / _SAMPLE_S)):
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak_bytes = max(peak_bytes, _peak_bytes(process.pid))
            sleep(_SAMPLE_S)
        else:
            process.kill()
            pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in (out, log))
    return process.returncode, cpu_s, peak_bytes, *texts


def compile_modules(folder: str) -> None:
    """Leave the modules of all contenders compiled, beside the runs' folders, until they are gone."""
    code, _, _, _, log = _measured([sys.executable, "-c", f"import {_MODULES}"], folder)
    assert code == 0, f"the contenders cannot be loaded: {log[-2_000:]}"


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _run_baseline(name: str, backlog: Backlog, folder: str) -> Drained:
    module = {BARE: "bare", LOOP: "loop"}[name]
    table = f"{folder}/table"
    command = [sys.executable, "-m", "benchmarks.drain_contender", module, backlog.servers]
    command += [backlog.topic, backlog.kind, str(backlog.records), table]
    code, cpu_s, peak_bytes, out, log = _measured(command, folder)
    assert code == 0, f"{name} ended with {code}: {log[-2_000:]}"
    said = json.loads(out.splitlines()[-1])
    if name == LOOP:
        _check_rows(table, backlog)
    return Drained(said["seconds"], cpu_s, peak_bytes)


def drained_by_sink(
    backlog: Backlog,
    folder: str,
    *,
    module: str = "delta_sink.cli",
    more: Mapping[str, object] | None = None,
) -> Drained:
    """Return what one drain took; `more` is added to the configuration, `module` is what runs it.

    Raises:
        AssertionError: it failed, or its table lacks rows.
    """
    arguments = _arguments(backlog, folder, more or {})
    command = [sys.executable, "-m", module, *arguments]
    code, cpu_s, peak_bytes, _, log = _measured(command, folder)
    assert code == 0, f"{SINK} ended with {code}: {log[-2_000:]}"
    events = [json.loads(line) for line in log.splitlines()]
    begun = [_at(event) for event in events if event["event"] == "partitions_assigned"]
    committed = [_at(event) for event in events if event["event"] == "table_committed"]
    _check_rows(f"{folder}/table", backlog)
    return Drained((committed[-1] - begun[0]).total_seconds(), cpu_s, peak_bytes)


def _at(event: dict[str, str]) -> datetime:
    return datetime.fromisoformat(event["ts"])


def _run_stages(backlog: Backlog, folder: str) -> dict[str, float]:
    counts = f"{folder}/counts.json"
    command = [sys.executable, "-m", "benchmarks.drain_stages", counts]
    code, _, _, _, log = _measured([*command, *_arguments(backlog, folder)], folder)
    assert code == 0, f"{SINK} ended with {code}: {log[-2_000:]}"
    stages: dict[str, float] = json.loads(Path(counts).read_text(encoding="utf-8"))
    return stages


def _arguments(
    backlog: Backlog, folder: str, more: Mapping[str, object] = MappingProxyType({})
) -> list[str]:
    """Return the sink's arguments: a configuration with nothing in it but what it must have."""
    configuration = {
        "name": f"bench-{uuid.uuid4().hex[:12]}",
        "kafka": {"bootstrap.servers": backlog.servers},
        "source": {"topics": [backlog.topic]},
        "value": {"format": "json"},
        "table": {"uri": f"{folder}/table", "schema": COLUMNS[backlog.kind]},
        "locks": {"path": f"{folder}/locks.db"},
        "logs": {"format": "json"},
        **more,
    }
    path = Path(folder, "sink.yaml")
    path.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    return ["run", "writer", "--until-end", "-c", str(path)]


def _check_rows(table: str, backlog: Backlog) -> None:
    found = DeltaTable(table).count()
    assert found == backlog.records, f"{table}: got {found} rows, wanted {backlog.records}"


# --- the run ------------------------------------------------------------------------------------


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> Drain:
    """Return what was measured, tables below `folder`; `say` tells a person how far it is.

    Raises:
        AssertionError: a contender failed, or its table lacks rows: the figures are void.
    """
    with brokers(say) as servers:
        if servers is None:
            return Drain(
                shape,
                skipped=f"the drain was not measured: no Kafka can be started here, "
                f"and {SERVERS_VARIABLE} names none",
            )
        with emptied(folder) as place:
            compile_modules(place)
        points = [
            _point(kind, records, shape, servers, folder, say) for kind, records in shape.records
        ]
    return Drain(shape, tuple(points))


@contextlib.contextmanager
def brokers(say: Callable[[str], None]) -> Iterator[str | None]:
    """Yield the addresses of brokers, or None if there are none and none can be started."""
    named = os.environ.get(SERVERS_VARIABLE)
    if named:
        yield named
        return
    with Servers() as servers:
        try:
            service = servers.get("kafka")
        except CannotInstall as error:
            say(str(error))
            service = None
        yield None if service is None else str(service.bootstrap_servers)


def _point(
    kind: Kind, records: int, shape: Shape, servers: str, folder: str, say: Callable[[str], None]
) -> Point:
    say(f"filling a topic with {records:,} records, {kind}")
    backlog = fill(servers, kind, records)
    runs: dict[str, list[Drained]] = {name: [] for name in CONTENDERS}
    for index, numbers in turns(len(CONTENDERS), runs=shape.runs, block=1):
        name = CONTENDERS[index]
        say(f"{kind}: {name}, run {numbers.start + 1} of {shape.runs}")
        with emptied(folder) as place:
            drained = (
                drained_by_sink(backlog, place)
                if name == SINK
                else _run_baseline(name, backlog, place)
            )
        runs[name].append(drained)
    say(f"{kind}: {SINK}, where the CPU goes")
    with emptied(folder) as place:
        stages = _run_stages(backlog, place)
    taken = {name: tuple(drained) for name, drained in runs.items()}
    return Point(kind, backlog.records, backlog.size_bytes, taken, stages)


@contextlib.contextmanager
def emptied(below: str) -> Iterator[str]:
    """Yield a new folder; what is in it is gone afterwards, so that no disk fills up."""
    folder = Path(below, uuid.uuid4().hex)
    folder.mkdir(parents=True)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder)
