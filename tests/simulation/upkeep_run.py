"""Many seeds of the maintenance world: `python -m tests.simulation --world upkeep`."""

from __future__ import annotations

import argparse
from collections import Counter

from delta_sink.testing import Killed, World
from tests.simulation.run import Outcome, commit, last_line, prepare, run_many, tell_many
from tests.simulation.upkeep_judge import UpkeepOracle
from tests.simulation.upkeep_swarm import (
    ALSO_MET,
    EFFECTS,
    EVENTS,
    STEPS,
    VACUUM_EVENTS,
    Swarm,
    swarm,
)

VACUUMS_EVERY = 16
"""One seed of so many lets vacuums race with every lock broken."""
VACUUM_STEPS = 6
"""Fewer than a test of them has: each step is a hundred appends."""


SIDE_BY_SIDE = "bins rewritten side by side"
PARTIAL = "kafka.partial_produce"
"""Needs several records in one send: here nobody sends so, as no record is bad."""


def run(seed: int) -> tuple[Outcome, Swarm]:
    """Break everything, heal, and require an end; a violation is in the outcome."""
    outcome = Outcome()
    vacuums = seed % VACUUMS_EVERY == VACUUMS_EVERY - 1
    with World(seed) as world:
        found = swarm(world, seed, vacuums=vacuums)
        try:
            found.run(VACUUM_STEPS if vacuums else STEPS)
        except (Exception, Killed) as error:  # whatever it is, the seed shows it again
            outcome.failures.append((seed, f"{type(error).__name__}: {error}"))
        oracle = found.sim.oracle
        assert isinstance(oracle, UpkeepOracle)
        outcome.versions.append(oracle.entries)
        outcome.faults += world.met
        outcome.events += found.done
        outcome.events += oracle.seen
        outcome.events[SIDE_BY_SIDE] += _most_rewritten(world) > 1
        return outcome, found


def _most_rewritten(world: World) -> int:
    """Return how many bins at most one compactor rewrote at the same time."""
    running: Counter[str] = Counter()
    most = 0
    for _, title, label, detail in world.recorded:
        host, _, task = title.partition(":")
        if label == "jobs.submit ends" and detail == "rewrite":
            running[host] += 1
            most = max(most, running[host])
        elif task == "rewrite" and label.startswith("ends"):
            running[host] -= 1
    return most


def run_one(seed: int) -> Outcome:
    """Return what one seed told, for `run.run_many`."""
    return run(seed)[0]


def declared_faults() -> list[str]:
    """Return the names of all faults that the parts of this world may have."""
    with World(0) as world:
        swarm(world, 0)
        return sorted(world.declared)


def missing(outcome: Outcome) -> list[str]:
    """Return every fault, event and effect that was never met."""
    never = [n for n in declared_faults() if not outcome.faults[n] and n != PARTIAL]
    wanted = (*EVENTS, *VACUUM_EVENTS, *ALSO_MET, *EFFECTS, SIDE_BY_SIDE)
    return never + [name for name in wanted if not outcome.events[name]]


def table(outcome: Outcome) -> str:
    """Return how often each fault, event and effect was really met."""
    parts = {
        "faults of transport, brokers and locks": (declared_faults(), outcome.faults),
        "what happened": ((*EVENTS, *VACUUM_EVENTS, *ALSO_MET), outcome.events),
        "what maintenance did": ((*EFFECTS, SIDE_BY_SIDE), outcome.events),
    }
    lines: list[str] = []
    for title, (names, counts) in parts.items():
        lines += ["", title, *[f"{counts[name]:>10}  {name}" for name in names]]
    return "\n".join(lines)


def failure_text(seed: int, sentence: str) -> str:
    """Return what is printed of a failure: the seed, the commit, the command that shows it again."""
    head = "\n".join(sentence.splitlines()[:3])
    again = f"python -m tests.simulation --world upkeep --replay {seed} --trace"
    return f"FAILED seed {seed} at commit {commit()}: {head}\n    again:   {again}"


def main(options: argparse.Namespace) -> int:
    """Return 0 if every seed held and, over enough seeds, everything was met."""
    if options.replay is not None:
        return _replay(options.replay, with_trace=options.trace)
    return tell_many(
        run_many(options.seed0, options.seeds, options.jobs, run_one),
        options.seeds,
        failure_text=failure_text,
        table=table,
        missing=missing,
    )


def _replay(seed: int, *, with_trace: bool) -> int:
    prepare()
    outcome, found = run(seed)
    if with_trace:
        print("\n".join(found.sim.world.trace))
    print(table(outcome))
    for each, sentence in outcome.failures:
        print(f"\n{sentence}\n\n{failure_text(each, sentence)}")
    print(last_line(outcome, 0))
    return 1 if outcome.failures else 0
