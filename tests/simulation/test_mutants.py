"""The suite turns red when the protocol is broken: each rule taken out, one at a time.

What the mutants are, and how the seeds here were found, is told in `mutants.py`. Each scenario is
green on the unchanged source, here too.
"""

import pytest

from tests.simulation.mutants import MUTANTS, chaos

AGAIN = range(6)
"""Every change of the product gives every seed another schedule: these are tried, too."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_caught(mutant):
    """By the seed that caught it first; a directed scenario may take a few."""
    assert mutant.seed < mutant.seeds
    seeds = [mutant.seed, *AGAIN] if mutant.scenario is chaos else range(mutant.seeds)
    for seed in seeds:
        sentence = mutant.caught_by(seed)
        if sentence is not None:
            print(f"{mutant.name}: seed {seed} of {mutant.seeds}: {sentence[:160]}")
            return
    pytest.fail(
        f"'{mutant.name}' lived through the seed that once caught it: hunt for a new one with "
        f"`python -m tests.simulation.mutants '{mutant.name}'`"
    )


SCENARIOS = {id(mutant.scenario): mutant for mutant in MUTANTS if mutant.scenario is not chaos}
SEEDS = sorted({mutant.seed for mutant in MUTANTS if mutant.scenario is chaos})


@pytest.mark.parametrize("mutant", SCENARIOS.values(), ids=str)
def test_its_scenario_is_green_without_it(mutant):
    mutant.scenario(0)


@pytest.mark.parametrize("seed", SEEDS)
def test_its_seed_is_green_without_it(seed):
    chaos(seed)
