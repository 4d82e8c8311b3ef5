"""`python -m benchmarks [NAME …]`: run benchmarks and print what they found, as ratios.

Tables go to a folder of their own below the system's temporary folder, or below `--dir`, and are
removed at the end. Whoever wants to know about fsync names a folder on the disk in question.
`--plots` names a folder for the figures that a benchmark draws, each with what it was drawn from.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import deltalake
import pyarrow as pa
from rich.console import Console

from benchmarks import commit_path, compaction, drain, fsync, scale_out, small_files, telemetry
from benchmarks.report import WIDTH, show

Result = (
    commit_path.CommitPath
    | fsync.Fsync
    | drain.Drain
    | compaction.Compaction
    | scale_out.ScaleOut
    | small_files.SmallFiles
    | telemetry.Cost
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Length:
    """How long a run is wanted to be; `minutes` is for benchmarks that take time by design."""

    is_quick: bool
    minutes: float | None


def _commit_path(length: Length, folder: str, say: Say) -> Result:
    shape = commit_path.Shape.quick() if length.is_quick else commit_path.Shape()
    return commit_path.run(shape, folder, say)


def _fsync(length: Length, folder: str, say: Say) -> Result:
    shape = fsync.Shape.quick() if length.is_quick else fsync.Shape()
    return fsync.run(shape, folder, say)


def _drain(length: Length, folder: str, say: Say) -> Result:
    shape = drain.Shape.quick() if length.is_quick else drain.Shape()
    return drain.run(shape, folder, say)


def _compaction(length: Length, folder: str, say: Say) -> Result:
    shape = compaction.Shape.quick() if length.is_quick else compaction.Shape()
    return compaction.run(shape, folder, say)


def _scale_out(length: Length, folder: str, say: Say) -> Result:
    shape = compaction.Shape.quick() if length.is_quick else compaction.Shape()
    return scale_out.run(shape, folder, say)


def _small_files(length: Length, folder: str, say: Say) -> Result:
    shape = small_files.Shape.quick() if length.is_quick else small_files.Shape()
    if length.minutes is not None:
        shape = small_files.Shape.of(length.minutes)
    return small_files.run(shape, folder, say)


def _telemetry(length: Length, folder: str, say: Say) -> Result:
    shape = telemetry.Shape.quick() if length.is_quick else telemetry.Shape()
    return telemetry.run(shape, folder, say)


BENCHMARKS: dict[str, Callable[[Length, str, Say], Result]] = {
    "commit_path": _commit_path,
    "fsync": _fsync,
    "drain": _drain,
    "compaction": _compaction,
    "scale_out": _scale_out,
    "small_files": _small_files,
    "telemetry": _telemetry,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print it; return the exit code.

    An expectation that was missed is printed and is no failure: on a busy machine it proves
    nothing. A benchmark whose tables came out wrong raises.
    """
    options = _parser().parse_args(arguments)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        print(
            f"unknown benchmark '{unknown[0]}', wanted one of {', '.join(BENCHMARKS)}",
            file=sys.stderr,
        )
        return 2
    begun_s = monotonic()
    before = _load()
    length = Length(options.quick, options.minutes)
    results = [
        _run(name, length, options.dir) for name in dict.fromkeys(options.names or BENCHMARKS)
    ]
    environment = {**_environment(), "load_before": before, "load_after": _load()}
    environment["duration_s"] = round(monotonic() - begun_s, 1)
    if options.plots:
        _draw(results, environment, Path(options.plots))
    if options.json:
        document = {"environment": environment, "results": [r.as_json() for r in results]}
        print(json.dumps(document, indent=2))
        return 0
    console = Console(width=WIDTH, highlight=False)
    for result in results:
        show(result, console)
    console.print(", ".join(f"{name} {value}" for name, value in environment.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--dir", help="make the tables below this folder")
    parser.add_argument("--minutes", type=float, help="how long small_files runs, by default 10")
    parser.add_argument("--plots", help="draw figures into this folder")
    return parser


def _run(name: str, length: Length, below: str | None) -> Result:
    with tempfile.TemporaryDirectory(prefix="delta-sink-bench-", dir=below) as folder:
        return BENCHMARKS[name](length, folder, lambda text: _say(f"{name}: {text}"))


def _draw(results: Sequence[Result], environment: dict[str, object], folder: Path) -> None:
    """Write the figure of each benchmark that has one, and what it was drawn from beside it."""
    for result in results:
        if isinstance(result, small_files.SmallFiles):
            document = {"environment": environment, **result.as_json()}
            path = folder / "small-files.svg"
            path.write_text(result.plot(), encoding="utf-8")
            path.with_suffix(".json").write_text(_compact(document), encoding="utf-8")


def _compact(document: dict[str, object]) -> str:
    """Return JSON with one line for each sample, as people compare them."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\{[^{}]*(?:\{[^{}]*\})[^{}]*\}", _joined, text) + "\n"


def _joined(match: re.Match[str]) -> str:
    return re.sub(r"\s*\n\s*", " ", match[0])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _load() -> float:
    """Return how many processes wanted to run in the last minute, on average."""
    return round(os.getloadavg()[0], 1)


def _environment() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "deltalake": deltalake.__version__,
        "pyarrow": pa.__version__,
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
