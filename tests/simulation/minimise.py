"""Make a failing run smaller: fewer faults, fewer records, a shorter day, and the same failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.simulation.chaos import EVENTS, SWITCHED, Cuts
from tests.simulation.run import kind_of, run, same_failure

BY_CUT = ("night", "eager", "another configuration", "clock skew")
"""What else than events and switched faults a run can leave out."""


def minimise(seed: int, tell: Callable[[str], None]) -> Cuts | None:
    """Return the smallest cuts found under which the seed fails as it does whole; None: it holds."""
    first, sim = run(seed)
    if not first.failures:
        return None
    kind = kind_of(first.failures[0][1])
    tell(f"seed {seed} fails with {kind} after {sim.world.steps} steps")
    best = Cuts()
    steps = sim.world.steps
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for cuts, what in _smaller(best):
            outcome, sim = run(seed, cuts)
            if same_failure(outcome, kind) and sim.world.steps <= steps:
                best, steps, is_smaller = cuts, sim.world.steps, True
                tell(f"  {what}: still {kind}, {steps} steps")
                break  # what is smaller now is tried from here on
    return best


def _smaller(cuts: Cuts) -> Iterator[tuple[Cuts, str]]:
    """Yield cuts that leave out one thing more."""
    if cuts.bursts > 1:
        yield replace(cuts, bursts=cuts.bursts // 2), f"{cuts.bursts // 2} bursts"
    if cuts.day_ms > 2_000:
        yield replace(cuts, day_ms=cuts.day_ms // 2), f"a day of {cuts.day_ms // 2} ms"
    for name in (*EVENTS, *SWITCHED, *BY_CUT):
        if name not in cuts.without:
            yield replace(cuts, without=cuts.without | {name}), f"without {name}"


def command(seed: int, cuts: Cuts) -> str:
    """Return the command that runs the seed with these cuts and shows the trace."""
    left = [n for n in (*EVENTS, *SWITCHED, *BY_CUT) if n not in cuts.without]
    return (
        f"python -m tests.simulation --replay {seed} --trace --bursts {cuts.bursts} "
        f"--day-ms {cuts.day_ms} --only '{','.join(left)}'"
    )
