"""Fair measuring on a machine that is not ours alone: contenders take turns, medians are compared.

Each contender is a lane. Lanes run in short blocks, in their order and then in the reverse order
(A B C, C B A, …): whatever slows the machine for a while, or gets slower with every commit, falls
on all of them alike. Times of different runs are never compared.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Lane(Protocol):
    """One contender at one point: something that is done again and again, and takes time."""

    def settle(self) -> None:
        """Leave nothing that others wrote to be flushed in our time. Not timed."""
        ...

    def run(self, number: int) -> float:
        """Do it once, for the `number`-th time from 0 on; return the seconds that it took."""
        ...


@dataclass(frozen=True, slots=True)
class Timings:
    """What a lane took, in seconds, in the order of its runs."""

    seconds: tuple[float, ...]

    @property
    def p50_ms(self) -> float:
        """The median."""
        return statistics.median(self.seconds) * 1000

    @property
    def p99_ms(self) -> float:
        """The smallest time that 99% of the runs did not exceed; of under 100 runs, the worst."""
        rank = math.ceil(0.99 * len(self.seconds))
        return sorted(self.seconds)[rank - 1] * 1000

    def as_json(self) -> dict[str, float | int]:
        """Return the figures under the names that `--json` gives them."""
        return {
            "runs": len(self.seconds),
            "p50_ms": round(self.p50_ms, 4),
            "p99_ms": round(self.p99_ms, 4),
        }


def turns(lanes: int, *, runs: int, block: int) -> Iterator[tuple[int, range]]:
    """Yield which lane has its turn, and the numbers of the runs that it does in it.

    Every lane gets `runs` runs, in blocks. `runs` is a multiple of `2 * block`, so that each lane
    has as many turns on the way there as on the way back.
    """
    assert block > 0, block
    assert runs % (2 * block) == 0, (runs, block)
    for turn in range(runs // block):
        forth = range(lanes)
        for lane in forth if turn % 2 == 0 else reversed(forth):
            yield lane, range(turn * block, (turn + 1) * block)


def measure(lanes: Mapping[str, Lane], *, runs: int, block: int) -> dict[str, Timings]:
    """Return the times of each lane, taken in turns."""
    names: Sequence[str] = list(lanes)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for index, numbers in turns(len(names), runs=runs, block=block):
        lane = lanes[names[index]]
        lane.settle()
        taken[names[index]] += [lane.run(number) for number in numbers]
    return {name: Timings(tuple(seconds)) for name, seconds in taken.items()}


def flush(path: str) -> None:
    """Return once the file or folder `path` is durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
