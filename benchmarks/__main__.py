"""`python -m benchmarks [NAME …]`: run benchmarks and print what they found, as ratios.

Tables go to a folder of their own below the system's temporary folder, or below `--dir`, and are
removed at the end. Whoever wants to know about fsync names a folder on the disk in question.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from time import monotonic

import deltalake
import pyarrow as pa
from rich.console import Console

from benchmarks import commit_path, compaction, drain, fsync, scale_out, telemetry
from benchmarks.report import WIDTH, show

Result = (
    commit_path.CommitPath
    | fsync.Fsync
    | drain.Drain
    | compaction.Compaction
    | scale_out.ScaleOut
    | telemetry.Cost
)
Say = Callable[[str], None]


def _commit_path(is_quick: bool, folder: str, say: Say) -> Result:
    shape = commit_path.Shape.quick() if is_quick else commit_path.Shape()
    return commit_path.run(shape, folder, say)


def _fsync(is_quick: bool, folder: str, say: Say) -> Result:
    shape = fsync.Shape.quick() if is_quick else fsync.Shape()
    return fsync.run(shape, folder, say)


def _drain(is_quick: bool, folder: str, say: Say) -> Result:
    shape = drain.Shape.quick() if is_quick else drain.Shape()
    return drain.run(shape, folder, say)


def _compaction(is_quick: bool, folder: str, say: Say) -> Result:
    shape = compaction.Shape.quick() if is_quick else compaction.Shape()
    return compaction.run(shape, folder, say)


def _scale_out(is_quick: bool, folder: str, say: Say) -> Result:
    shape = compaction.Shape.quick() if is_quick else compaction.Shape()
    return scale_out.run(shape, folder, say)


def _telemetry(is_quick: bool, folder: str, say: Say) -> Result:
    shape = telemetry.Shape.quick() if is_quick else telemetry.Shape()
    return telemetry.run(shape, folder, say)


BENCHMARKS: dict[str, Callable[[bool, str, Say], Result]] = {
    "commit_path": _commit_path,
    "fsync": _fsync,
    "drain": _drain,
    "compaction": _compaction,
    "scale_out": _scale_out,
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
    results = [
        _run(name, options.quick, options.dir)
        for name in dict.fromkeys(options.names or BENCHMARKS)
    ]
    environment = {**_environment(), "load_before": before, "load_after": _load()}
    environment["duration_s"] = round(monotonic() - begun_s, 1)
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
    return parser


def _run(name: str, is_quick: bool, below: str | None) -> Result:
    with tempfile.TemporaryDirectory(prefix="delta-sink-bench-", dir=below) as folder:
        return BENCHMARKS[name](is_quick, folder, lambda text: _say(f"{name}: {text}"))


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
