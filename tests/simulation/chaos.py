"""Everything that may happen to writers, at random and from the seed, with quiet times between."""

from __future__ import annotations

from collections import Counter

from delta_sink.errors import FatalError
from tests.simulation.harness import DAY_MS, NARROW, ROOMY, TOPIC, Simulation

PROBABILITIES = (0.03, 0.1, 0.3)
TRAFFIC_MS = 240_000
SESSION_MS = 45_000
WORKERS = ("w0", "w1", "w2")
NO_PROGRESS = "no progress for"
"""A worker that says so stops to be started again elsewhere, and that is what happens to it."""

# Outages and late requests happen by themselves or on demand; these are switched on.
SWITCHED = (
    "store.lost_request",
    "store.lost_answer",
    "store.error_after",
    "store.slow",
    "store.read_failed",
    "store.conflict",
    "kafka.lost_request",
    "kafka.lost_answer",
    "kafka.error_after",
    "kafka.slow",
    "kafka.read_failed",
    "kafka.partial_produce",
    "kafka.untold",
    "kafka.zombie",
    "kafka.commit_lost",
    "kafka.short_read",
    "world.stall",
)


class Chaos:
    """Breaks a simulation for `TRAFFIC_MS`, then lets it heal.

    Attributes:
        done: how often each thing was done, by name.
    """

    def __init__(self, sim: Simulation, *, records: int = 250) -> None:
        self.sim = sim
        self.world = sim.world
        self.random = sim.world.random("chaos")
        self.records = records
        self.done: Counter[str] = Counter()
        self._is_over = False
        if self.random.random() < 0.3:
            sim.group.protocol = "eager"

    def run(self) -> None:
        """Let all of it happen; what is left is `Simulation.finish`."""
        for name in WORKERS[: self.random.randint(1, 3)]:
            self._start(name)
        for _ in range(self.records):
            self.world.later(self.random.randrange(TRAFFIC_MS), self._produce)
        for _ in range(8):
            self.world.later(self.random.randrange(TRAFFIC_MS), self._foreign)
        if self.random.random() < 0.3:
            self.world.later(self.random.randrange(TRAFFIC_MS), self._grow)
        self._next_phase()
        self._next_blow()
        self.world.run(until=self._look_after, limit_ms=TRAFFIC_MS)
        self._is_over = True
        if self.random.random() < 0.2:
            self._long_night()
        self.world.heal()
        for name in WORKERS:
            if not self._is_up(name):
                self._start(name)
        self.world.run(until=self._look_after, limit_ms=60_000)

    def _is_up(self, name: str) -> bool:
        worker = self.sim.workers.get(name)
        return worker is not None and worker.is_up

    def _start(self, name: str) -> None:
        if not self._is_up(name):
            budget = NARROW if self.random.random() < 0.3 else ROOMY
            self.sim.start(name, budget=budget)
            self.done["start"] += 1

    # --- what goes on by itself -----------------------------------------------------------------

    def _produce(self) -> None:
        sim, random = self.sim, self.random
        partition = random.randrange(sim.partitions)
        dice = random.random()
        if dice < 0.03:
            sim.transaction(partition, random.randint(1, 4), aborts=random.random() < 0.5)
        elif dice < 0.05:
            sim.compact(partition)
        else:
            kind = "bad" if dice < 0.12 else "tombstone" if dice < 0.2 else "good"
            for _ in range(random.choice((1, 1, 1, 5))):
                sim.produce(partition, kind)

    def _foreign(self) -> None:
        """Let somebody else write to the table: compactor, vacuum, or a commit of no interest."""
        sim = self.sim
        if sim.oracle.version < 0 or self._is_over:
            return
        dice = self.random.random()
        if dice < 0.3 and sim.oracle.live:
            sim.foreign_compaction()
            self.done["foreign compaction"] += 1
        elif dice < 0.6:
            sim.foreign_fence()
            self.done["foreign fence"] += 1
        elif dice < 0.8:
            sim.checkpoint()
            self.done["checkpoint"] += 1
        else:
            sim.foreign_commit({"txn": {"appId": "somebody else", "version": sim.oracle.version}})
            self.done["foreign commit"] += 1

    def _grow(self) -> None:
        """Give the topic more partitions."""
        self.sim.partitions += self.random.randint(1, 3)
        self.sim.kafka.add_partitions(TOPIC, self.sim.partitions)
        self.done["partitions added"] += 1

    def _look_after(self) -> bool:
        """Start again who stopped for want of progress; any other end is an error."""
        for name, worker in list(self.sim.workers.items()):
            error = worker.task.error
            if isinstance(error, FatalError):
                if not str(error).startswith(NO_PROGRESS):
                    raise error
                self.done["gave up"] += 1
                self._start(name)
        return False

    # --- what breaks ----------------------------------------------------------------------------

    def _next_phase(self) -> None:
        """Switch a few faults on for a while; every third time none."""
        if self._is_over:
            return
        self.world.heal()
        if self.random.random() < 0.66:
            for fault in self.random.sample(SWITCHED, self.random.randint(2, 8)):
                self.world.enable(fault, self.random.choice(PROBABILITIES))
        self.world.later(self.random.randint(5_000, 40_000), self._next_phase)

    def _next_blow(self) -> None:
        self.world.after_steps(self.random.randint(30, 900), self._blow)

    def _blow(self) -> None:
        if self._is_over:
            return
        self._next_blow()
        name = self.random.choice(WORKERS)
        if not self._is_up(name):
            self._start(name)
            return
        worker = self.sim.workers[name]
        blow = self.random.choice(("kill", "kill", "pause", "long pause", "stop", "outage"))
        self.done[blow] += 1
        match blow:
            case "kill":
                worker.host.kill()
                self.world.later(self.random.randint(0, 60_000), lambda: self._revive(name))
            case "pause":
                worker.host.pause(self.random.randint(100, 70_000))
            case "long pause":
                worker.host.pause(self.random.randint(2 * SESSION_MS, 400_000))
            case "stop":
                worker.stop()
            case "outage":
                wire = self.random.choice((self.sim.store.wire, self.sim.kafka.wire))
                wire.outage(self.random.randint(100, 90_000))

    def _revive(self, name: str) -> None:
        if not self._is_over:
            self._start(name)

    def _long_night(self) -> None:
        """All stand still for more than a day; meanwhile the log goes on and is cleaned up."""
        if self.sim.oracle.version < 0:
            return
        self.done["long night"] += 1
        self.world.run(limit_ms=1)
        for worker in self.sim.workers.values():
            if worker.is_up:
                worker.host.pause(2 * DAY_MS)
        self.world.run(limit_ms=DAY_MS // 2)
        for _ in range(self.random.randint(1, 4)):
            self.sim.foreign_commit({"txn": {"appId": "at night", "version": 1}})
        if self.random.random() < 0.8:
            self.sim.checkpoint()
        self.world.run(limit_ms=DAY_MS + DAY_MS // 4)
        self.done["entries cleaned up"] += len(self.sim.clean_up())
        self.world.run(limit_ms=DAY_MS // 4 + 1)
