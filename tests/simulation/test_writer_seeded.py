"""Writers under everything at once, from seeds; every log version is judged as it lands.

`SIMULATION_SEEDS=1000 SIMULATION_FIRST=5000` runs other seeds and more of them.
"""

import hashlib
import os
from collections import Counter

import pytest

from tests.simulation.chaos import Chaos
from tests.simulation.harness import HEALING_MAX_MS, simulation

SEEDS = range(int(os.environ.get("SIMULATION_SEEDS", "40")))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))


def run(seed: int, **options):
    """Break everything, heal, finish; return what was met and what was done."""
    with simulation(seed, partitions=1 + seed % 5, **options) as sim:
        chaos = Chaos(sim)
        chaos.run()
        took_ms = sim.finish()
        assert took_ms <= HEALING_MAX_MS
        assert sim.oracle.commits > 0
        return Counter(sim.world.met) + chaos.done, sim.world.trace


@pytest.mark.parametrize("seed", [FIRST + seed for seed in SEEDS])
def test_writers_survive_everything(seed):
    run(seed)


def test_the_same_seed_gives_the_same_trace():
    def digest(seed):
        return hashlib.sha256("\n".join(run(seed)[1]).encode()).hexdigest()

    assert digest(7) == digest(7)
    assert digest(7) != digest(8)
