"""One seed, and many: what a run is, what it tells, and what thousands of runs must have met."""

from __future__ import annotations

import gc
import multiprocessing
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa

from delta_sink.testing import Killed
from tests.simulation.chaos import EVENTS, Chaos, Cuts
from tests.simulation.harness import Simulation, simulation
from tests.simulation.points import POINTS

MET_SEEDS = 2_000
"""In so many seeds everything that can happen must have happened."""
PROGRESS_S = 5
FAILURES_MAX = 20
"""After so many failures no more seeds are begun: something simple is wrong."""
CHUNK = 5
"""So many seeds a process runs before it tells of them, and collects garbage."""

PARTITIONS = (3, 4, 2, 5, 3, 4, 2, 5, 3, 1)
"""How many partitions the topic has, seed after seed: with one of them two workers are idle."""

ALSO_MET = (
    "a commit in doubt was taken back",
    "another configuration",
    "clock skew",
    "eager",
    "entries cleaned up",
    "foreign clean-up",
    "foreign vacuum",
    "gave up",
    "night",
    "night: absence",
    "night: late",
    "night: sleep",
    "partition halted",
    "refused with a sentence",
    "seek landed",
    "table was dropped",
)
"""What happens as a consequence, or by other means than an event, and is counted too."""


@dataclass
class Outcome:
    """What one run told, or many together.

    `versions` has the count of log versions of each run. `failures` are (seed, sentence).
    """

    versions: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def seeds(self) -> int:
        return len(self.versions)

    def add(self, other: Outcome) -> None:
        """Add what another one told."""
        self.versions += other.versions
        self.faults += other.faults
        self.events += other.events
        self.points += other.points
        self.failures += other.failures

    def missing(self) -> list[str]:
        """Return every fault, event and crash point that was never met."""
        wanted = [(name, self.faults) for name in declared_faults()]
        wanted += [(name, self.events) for name in (*EVENTS, *ALSO_MET)]
        met = {point.split()[0]: 1 for point in self.points}
        wanted += [(point, Counter(met)) for point in POINTS]
        return [name for name, counts in wanted if not counts[name]]


def declared_faults() -> list[str]:
    """Return the names of all faults that the parts of the simulation may have."""
    with simulation(0) as sim:
        return sorted(sim.world.declared)


def prepare() -> None:
    """Make this process one for seeds: no native threads, and old objects are no garbage.

    Threads cost turns and decide nothing; and what was imported need not be looked at each time.
    """
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    gc.freeze()


def run(seed: int, cuts: Cuts | None = None) -> tuple[Outcome, Simulation]:
    """Break everything, heal, and require that all is committed; a violation is in the outcome."""
    outcome = Outcome()
    with simulation(seed, partitions=PARTITIONS[seed % len(PARTITIONS)]) as sim:
        chaos = Chaos(sim, cuts)
        try:
            chaos.run()
            sim.finish(knows=chaos.operator.knows)
        except (Exception, Killed) as error:  # whatever it is, the seed shows it again
            outcome.failures.append((seed, f"{type(error).__name__}: {error}"))
        outcome.versions.append(sim.oracle.entries)
        outcome.faults += sim.world.met
        outcome.events += chaos.done
        outcome.points += chaos.struck
        return outcome, sim


def run_one(seed: int) -> Outcome:
    """Return what one seed told."""
    return run(seed)[0]


def run_chunk(one: Callable[[int], Outcome], seeds: range) -> Outcome:
    """Run these seeds in this process."""
    total = Outcome()
    gc.disable()
    try:
        for seed in seeds:
            total.add(one(seed))
    finally:
        gc.enable()
        gc.collect()
    return total


def run_many(
    first: int, count: int, jobs: int, one: Callable[[int], Outcome] = run_one
) -> Iterator[Outcome]:
    """Yield what each chunk of `count` seeds told, from `jobs` processes, in any order.

    `one` runs one seed; it is a function of a module, so that other processes find it.
    """
    end = first + count
    chunks = [range(at, min(at + CHUNK, end)) for at in range(first, end, CHUNK)]
    if jobs == 1:
        prepare()
        yield from map(partial(run_chunk, one), chunks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, prepare) as pool:
        yield from pool.imap_unordered(partial(run_chunk, one), chunks)


# --- what a person reads ------------------------------------------------------------------------


def tell_many(
    outcomes: Iterator[Outcome],
    count: int,
    *,
    failure_text: Callable[[int, str], str],
    table: Callable[[Outcome], str],
    missing: Callable[[Outcome], list[str]],
) -> int:
    """Print how `count` seeds go; return 0 if each held and, over enough seeds, all was met."""
    began_s = told_s = time.monotonic()
    total = Outcome()
    for outcome in outcomes:
        total.add(outcome)
        for seed, sentence in outcome.failures:
            print(failure_text(seed, sentence), flush=True)
        now_s = time.monotonic()
        if now_s - told_s >= PROGRESS_S:
            told_s = now_s
            rate = total.seeds / (now_s - began_s)
            left = f"{(count - total.seeds) / rate:.0f} s left"
            print(f"{last_line(total, now_s - began_s)}, {rate:.1f} a second, {left}", flush=True)
        if len(total.failures) >= FAILURES_MAX:
            break
    print(table(total))
    never = missing(total) if total.seeds >= MET_SEEDS else []
    for name in never:
        print(f"NEVER MET in {total.seeds} seeds: {name}")
    print(last_line(total, time.monotonic() - began_s))
    return 1 if total.failures or never else 0


def table(outcome: Outcome) -> str:
    """Return how often each fault, event and crash point was really met."""
    lines = ["", "faults of transport, brokers and hosts"]
    lines += [f"{outcome.faults[name]:>10}  {name}" for name in declared_faults()]
    lines += ["", "what happened to workers, topic and table"]
    lines += [f"{outcome.events[name]:>10}  {name}" for name in (*EVENTS, *ALSO_MET)]
    lines += ["", "crash points, and how a worker was struck there"]
    for point, title in POINTS.items():
        found = {key: n for key, n in outcome.points.items() if key.split()[0] == point}
        how = ", ".join(f"{key.partition(' ')[2]} {n}" for key, n in sorted(found.items()))
        lines.append(f"{sum(found.values()):>10}  {point} {title} ({how or 'never'})")
    return "\n".join(lines)


def last_line(outcome: Outcome, duration_s: float) -> str:
    """Return the one line that says it all."""
    versions = sorted(outcome.versions)
    median = versions[len(versions) // 2] if versions else 0
    return (
        f"{outcome.seeds} seeds, {sum(versions)} versions checked (median {median} a seed), "
        f"{len(outcome.failures)} violations, {duration_s:.0f} s"
    )


def failure_text(seed: int, sentence: str) -> str:
    """Return what is printed of a failure: the seed, the commit, the command that shows it again."""
    head = "\n".join(sentence.splitlines()[:3])
    return (
        f"FAILED seed {seed} at commit {commit()}: {head}\n"
        f"    again:   python -m tests.simulation --replay {seed} --trace\n"
        f"    smaller: make sim-minimise SEED={seed}"
    )


def commit() -> str:
    """Return the commit of the checkout, with a mark if files were changed since."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(  # the tool of every checkout, by its name
                ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return ""
        return done.stdout.strip()

    changed = "+changes" if git("status", "--porcelain") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def kind_of(sentence: str) -> str:
    """Return what makes two failures the same: the invariant, or the error's type and first words."""
    found = re.match(r"Violation: (I\d+)", sentence)
    return found[1] if found else " ".join(sentence.split()[:4])


def same_failure(outcome: Outcome, kind: str) -> bool:
    """Whether the run failed in this way."""
    return any(kind_of(sentence) == kind for _, sentence in outcome.failures)


def names(text: str) -> frozenset[str]:
    """Return the names in a comma-separated option, each of which must exist."""
    found = frozenset(filter(None, (name.strip() for name in text.split(","))))
    unknown = sorted(found - {*EVENTS, *ALSO_MET, *declared_faults()})
    if unknown:
        raise ValueError(f"no fault or event is named '{unknown[0]}'")
    return found
