"""Mutants of maintenance: one rule taken out, and where that must show.

As those of `mutants.py`. `python -m tests.simulation.upkeep_mutants` hunts each anew.
"""

from __future__ import annotations

import sys

from delta_sink import errand, vacuuming
from delta_sink.delta import checkpoint_write, cleanup, compaction
from delta_sink.delta.conditions import FenceBelow, InputsLive
from delta_sink.delta.course import Course
from delta_sink.delta.plan import TagAboveFence
from delta_sink.maintenance import Maintainer
from delta_sink.testing import World
from tests.simulation.mutants import Change, Mutant, hunt
from tests.simulation.neighbour import Neighbour
from tests.simulation.run import prepare
from tests.simulation.upkeep import Upkeeping
from tests.simulation.upkeep_swarm import run_seed


def scenario(seed: int) -> None:
    """Everything at once."""
    run_seed(seed)


def racing_vacuums(seed: int) -> None:
    """Vacuums that race each other with every lock broken."""
    run_seed(seed, vacuums=True)


def delivered_again(seed: int) -> None:
    """A command that was answered comes again, with work for it: nothing is done a second time.

    What can be seen of a second time is that it was started, and that files were rewritten.
    """
    with World(seed) as world:
        it = Upkeeping.of(
            world, "compaction.small_files_max=1000", "compaction.age_max_ms=86400000"
        )
        sim = it.sim
        sim.start("w0")
        for name in ("c0", "c1", "v0"):
            it.start(name)
        sent = {"compact": {}, "vacuum": {"dry_run": False}}
        ids: dict[str, str] = {}
        versions: list[int] = []
        for _ in range(2):
            for _ in range(5):
                sim.fill(3)
                sim.run(lambda: sim.is_complete)
            for command, args in sent.items():
                before = len(it.states(ids[command])) if command in ids else 0
                ids[command] = it.send(
                    command, name=ids.get(command), partition=sim.random.randrange(4), **args
                )
                name = ids[command]
                it.run(lambda n=name, b=before: it.is_answered(n) and len(it.states(n)) > b)
            versions.append(sim.oracle.version)
        sim.run_for(5_000)
        assert sim.oracle.version == versions[-1], "something was done after the answer"
        for command, name in ids.items():
            started = it.states(name).count("started")
            assert started == 1, f"I11: {command} was started {started} times: {it.states(name)}"
        sim.finish()
        it.stop()
        it.check()


def log_keeping(seed: int) -> None:
    """Checkpoints, vacuums, clean-ups and nights in any order, and nothing that fails."""
    with World(seed) as world:
        it = Upkeeping.of(
            world,
            "checkpoint.commits_max=100000",
            "checkpoint.age_max_ms=2678400000",
            "table.properties={delta.deletedFileRetentionDuration: interval 1 minutes, "
            "delta.logRetentionDuration: interval 1 days}",
        )
        sim, random = it.sim, world.random("log keeping")
        sim.start("w0")
        for name in ("c0", "v0"):
            it.start(name)
        commands = {"checkpoint": {}, "vacuum": {"dry_run": False}, "cleanup-log": {}}
        for _ in range(25):
            what = random.choice([*commands, "cleanup-log", "records", "records", "night"])
            if what == "records":
                sim.fill(2)
                it.run(lambda: sim.is_complete)
            elif what == "night":
                night_ms = random.choice([2, 25, 60]) * 3_600_000
                for each in (*it.keepers.values(), *sim.workers.values()):
                    each.host.pause(night_ms)
                world.later(night_ms, lambda: None)
                sim.run_for(night_ms)
            else:
                name = it.send(what, **commands[what])
                it.run(lambda n=name: it.is_answered(n))
        sim.finish()
        it.stop()
        it.check()


def others_compact(seed: int) -> None:
    """Another engine compacts a table partition while ours is at work on all of them."""
    with World(seed) as world:
        alone = "compaction.age_max_ms=86400000"  # nothing but the command
        it = Upkeeping.of(world, "table.partition_by=[_kafka_partition]", alone, partitions=4)
        sim, random = it.sim, world.random("others compact")
        sim.start("w0")
        for _ in range(4):
            sim.fill(8)
            sim.run(lambda: sim.is_complete)
        it.cores = 1 + seed % 3
        it.start("c0")
        name = it.send("compact")
        it.run(lambda: "started" in it.states(name))
        neighbour = Neighbour(sim, world.random("neighbour"))
        world.after_steps(random.randrange(200), neighbour.compact)
        it.run(lambda: it.is_answered(name))
        sim.finish()
        it.stop()
        it.check()


FOREIGN_CLOCK = Mutant(
    "a lease that trusts a foreign clock",
    scenario,
    (
        Change(
            errand,
            "acquire",
            "if not may_acquire(lease, watch, now_ms=clock.elapsed_ms()):",
            "if lease and not lease.released"
            " and clock.wall_ms() < lease.token + lease.duration_ms:",
        ),
    ),
    seeds=40,
)
"""A first token is its taker's wall clock: whoever compares it with his own takes leases early."""

MUTANTS = [
    Mutant(
        "compact without looking whether inputs are live",
        scenario,
        (Change(InputsLive, "check", "in self.keys:", "in ():"),),
        seeds=80,
        seed=35,
    ),
    Mutant(
        "a bin goes on from where the others are, whatever became of its inputs",
        others_compact,
        (Change(Course, "live_at", "if version is not None:", "if False:"),),
        seeds=200,
    ),
    Mutant(
        "compaction ignores the deletion vector of an input",
        scenario,
        (Change(compaction, "_without", "if low == high:", "if True:"),),
        seeds=60,
        seed=1,
    ),
    Mutant(
        "a writer and a compactor that ignore the fence",
        scenario,
        (Change(TagAboveFence, "check", "if self.tag <=", "if False and self.tag <="),),
        seeds=200,
        seed=1,
    ),
    Mutant(
        "a fence that falls",
        racing_vacuums,
        (Change(FenceBelow, "check", "if state.vacuum_fence >= self.fence:", "if False:"),),
        seeds=200,
        seed=1,
    ),
    Mutant(
        "vacuum reads the log before its fence",
        racing_vacuums,
        (
            Change(
                vacuuming,
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
        (Change(vacuuming, "plan_vacuum", "if not dry_run:", "if False:"),),
        seeds=200,
    ),
    Mutant(
        "vacuum deletes what was removed within its retention",
        scenario,
        (
            Change(
                vacuuming,
                "plan_vacuum",
                "cutoff_ms = now_ms - retention.retention_ms",
                "cutoff_ms = now_ms",
            ),
        ),
        seeds=60,
    ),
    Mutant(
        "a checkpoint that forgets txns",
        scenario,
        (Change(checkpoint_write, "_head_batches", "if state.txns:", "if False:"),),
        seeds=20,
    ),
    Mutant(
        "clean-up without a checkpoint at what it keeps",
        log_keeping,
        (
            Change(
                cleanup,
                "_keep_from",
                "[found.version for found in listing.checkpoints if found.version <= limit]",
                "[limit]",
            ),
            # Whoever folds the audit's anchor would refuse it as well.
            Change(vacuuming, "_cleaned", "write_anchor(log, version)", "None"),
        ),
        seeds=40,
    ),
    Mutant(
        "clean-up goes above the fence of vacuum",
        log_keeping,
        (Change(vacuuming, "plan_cleanup", "if needed is not None and fence >= 0:", "if False:"),),
        seeds=40,
        seed=1,
    ),
    Mutant(
        "clean-up of young entries",
        scenario,
        (
            Change(cleanup, "_keep_from", "if info.modified_ms >= cutoff_ms]", "if False]"),
            Change(vacuuming, "plan_cleanup", " if info.modified_ms < cutoff_ms", ""),
        ),
        seeds=200,
        seed=3,
    ),
    Mutant(
        "clean-up not oldest first",
        scenario,
        (Change(vacuuming, "plan_cleanup", "going.sort(key=", "going.sort(reverse=True, key="),),
        seeds=200,
        seed=3,
    ),
    Mutant(
        "a command is acted on again when it is delivered again",
        delivered_again,
        (Change(Maintainer, "_carry_out", "if isinstance(beginning, Done):", "if False:"),),
        seeds=4,
    ),
    FOREIGN_CLOCK,
]


def main() -> int:
    """Hunt every mutant, or those whose name has a word of the arguments, from seed 0 on."""
    prepare()
    alive = 0
    for mutant in MUTANTS:
        if sys.argv[1:] and not any(word in mutant.name for word in sys.argv[1:]):
            continue
        found = hunt(mutant)
        alive += found is None
        said = "LIVES" if found is None else f"seed {found[0]} of {mutant.seeds}: {found[1][:110]}"
        print(f"{mutant.name}: {said}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
