"""What durability costs: our commit with fsync against our commit without, in turns.

With fsync a commit waits for the disk four times: data file, its folder, log entry, its folder.
Without, a power cut may take commits that were acknowledged; a killed process still takes none.
The figures are those of the disk below the folder, and of whatever else keeps it busy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.appender import SEED, make_batches
from benchmarks.commit_path import OursLane
from benchmarks.lanes import Timings, measure

ON = "fsync"
OFF = "no_fsync"


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a run is."""

    commits: int = 300
    block: int = 10
    rows: int = 1_000

    @classmethod
    def quick(cls) -> Shape:
        """Return a run of a second."""
        return cls(commits=40)


@dataclass(frozen=True, slots=True)
class Fsync:
    """The whole result."""

    shape: Shape
    timings: dict[str, Timings]

    @property
    def ratio(self) -> float:
        """How many times as long the median commit takes with fsync."""
        return self.timings[ON].p50_ms / self.timings[OFF].p50_ms

    def as_json(self) -> dict[str, object]:
        """Return everything that was measured, with names that `--json` promises."""
        return {
            "benchmark": "fsync",
            "seed": SEED,
            "rows_per_commit": self.shape.rows,
            "commit": {name: timings.as_json() for name, timings in self.timings.items()},
            "ratio": round(self.ratio, 3),
        }


def run(shape: Shape, folder: str, say: Callable[[str], None]) -> Fsync:
    """Return what was measured on two new tables in `folder`."""
    batches = make_batches(shape.rows)
    lanes = {
        ON: OursLane(f"{folder}/durable", batches, fsync=True),
        OFF: OursLane(f"{folder}/volatile", batches, fsync=False),
    }
    say(f"{shape.commits} commits with fsync and without, in turns")
    return Fsync(shape, measure(lanes, runs=shape.commits, block=shape.block))
