"""Run seeds of the simulation: `python -m tests.simulation --seeds 2000 --jobs 2`."""

from __future__ import annotations

import argparse
import sys

from tests.simulation import upkeep_run
from tests.simulation.chaos import EVENTS, SWITCHED, Cuts
from tests.simulation.minimise import BY_CUT, command, minimise
from tests.simulation.run import (
    Outcome,
    failure_text,
    last_line,
    names,
    prepare,
    run,
    run_many,
    table,
    tell_many,
)


def main() -> int:
    """Return 0 if every seed held and, over enough seeds, everything was met."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--world", choices=("writers", "upkeep"), default="writers")
    parser.add_argument("--seeds", type=int, default=2_000, help="how many (2000)")
    parser.add_argument("--seed0", type=int, default=0, help="the first one (0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed and tell of it")
    parser.add_argument("--trace", action="store_true", help="with --replay: everything in order")
    parser.add_argument("--minimise", type=int, metavar="SEED", help="make a failure smaller")
    parser.add_argument("--bursts", type=int, default=Cuts.bursts, help="bursts of records a day")
    parser.add_argument("--day-ms", type=int, default=Cuts.day_ms, help="length of a day")
    parser.add_argument("--only", help="with --replay: only these faults and events")
    options = parser.parse_args()
    if options.world == "upkeep":
        if options.minimise is not None:
            parser.error("--minimise: only failures of the world of writers can be made smaller")
        return upkeep_run.main(options)
    if options.minimise is not None:
        return _minimise(options.minimise)
    if options.replay is not None:
        return _replay(options)
    return tell_many(
        run_many(options.seed0, options.seeds, options.jobs),
        options.seeds,
        failure_text=failure_text,
        table=table,
        missing=Outcome.missing,
    )


def _replay(options: argparse.Namespace) -> int:
    prepare()
    without: frozenset[str] = frozenset()
    if options.only is not None:
        without = frozenset((*EVENTS, *SWITCHED, *BY_CUT)) - names(options.only)
    outcome, sim = run(options.replay, Cuts(without, options.bursts, options.day_ms))
    if options.trace:
        print("\n".join(sim.world.trace))
    print(table(outcome))
    for seed, sentence in outcome.failures:
        print(f"\n{sentence}\n\n{failure_text(seed, sentence)}")
    print(last_line(outcome, 0))
    return 1 if outcome.failures else 0


def _minimise(seed: int) -> int:
    prepare()
    cuts = minimise(seed, print)
    if cuts is None:
        print(f"seed {seed} holds: there is nothing to make smaller")
        return 0
    print(command(seed, cuts))
    return 1


if __name__ == "__main__":
    sys.exit(main())
