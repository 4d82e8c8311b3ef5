"""Maintenance under faults: seeds that pass, and mutants of its rules that must not."""

from __future__ import annotations

import pytest

from delta_sink.delta import vacuum as vacuum_module
from delta_sink.delta.conditions import FenceBelow, InputsLive
from delta_sink.delta.plan import TagAboveFence
from tests.simulation.mutants import Change, Mutant
from tests.simulation.upkeep import run_seed

SEEDS = 30


@pytest.mark.parametrize("seed", range(SEEDS))
def test_maintenance_is_right_under_faults(seed):
    run_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_vacuums_that_race_without_locks(seed):
    run_seed(seed, vacuums=True)


def scenario(seed: int) -> None:
    run_seed(seed)


def racing_vacuums(seed: int) -> None:
    run_seed(seed, vacuums=True)


MUTANTS = [
    Mutant(
        "compact without looking whether inputs are live",
        scenario,
        (Change(InputsLive, "check", "in self.keys:", "in ():"),),
        seeds=40,
    ),
    Mutant(
        "a writer and a compactor that ignore the fence",
        scenario,
        (Change(TagAboveFence, "check", "if self.tag <=", "if False and self.tag <="),),
        seeds=200,
    ),
    Mutant(
        "a fence that falls",
        racing_vacuums,
        (Change(FenceBelow, "check", "if state.vacuum_fence >= self.fence:", "if False:"),),
        seeds=200,
    ),
    Mutant(
        "vacuum reads the log before its fence",
        racing_vacuums,
        (
            Change(
                vacuum_module,
                "plan_vacuum",
                "state = raise_fence(log, state, fence, author)",
                "raise_fence(log, state, fence, author)",
            ),
        ),
        seeds=200,
    ),
    Mutant(
        "vacuum by time only, without a fence",
        racing_vacuums,
        (Change(vacuum_module, "plan_vacuum", "if not dry_run:", "if False:"),),
        seeds=200,
    ),
]
