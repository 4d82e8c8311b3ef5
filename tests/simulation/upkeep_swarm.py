"""Breaks writers, maintenance and the table's surroundings at random, from the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from delta_sink.testing import Host, Task, World
from tests.simulation.neighbour import Neighbour
from tests.simulation.oracle import Violation
from tests.simulation.upkeep import CONTROL_PARTITIONS, Upkeeping
from tests.simulation.upkeep_judge import UpkeepOracle

HOUR_MS = 3_600_000
NIGHTS_MAX = 2
"""So that nobody sleeps for a week, after which another engine's vacuum knows no mercy."""
STEPS, STEPS_OF_VACUUMS = 30, 10


class Swarm:
    """Breaks writers and maintenance at random, from the seed."""

    def __init__(self, upkeeping: Upkeeping, *, vacuums: bool = False) -> None:
        """Break everything; with `vacuums` let these race each other with every lock broken."""
        self.vacuums = vacuums
        self.it = upkeeping
        self.sim = upkeeping.sim
        self.random: Random = self.sim.world.random("upkeep swarm")
        self.is_over = False
        self.outage_until_ms = 0
        self.is_answered = False
        self.sent: list[tuple[str, str, dict]] = []
        self.done: Counter[str] = Counter()
        self.neighbour = Neighbour(self.sim, self.sim.world.random("neighbour"))
        self.nights = 0
        self.naps_left = 0

    def run(self, steps: int) -> None:
        """Start everything, break it for `steps` events, then heal and require an end."""
        for name in ("w0", "w1"):
            self.sim.start(name)
        for name in ("c0", "c1", "v0", "v1"):
            self.it.start(name, skew_ms=self.random.choice([0, 0, -90_000, 40_000]))
        self.it.leases.is_broken = self.vacuums or self.random.random() < 0.2
        self.done["every lock broken"] += self.it.leases.is_broken
        drawn = sorted(self.sim.world.declared)
        for name in self.random.sample(drawn, self.random.randrange(len(drawn) // 2)):
            self.sim.world.enable(name, self.random.choice([0.01, 0.05, 0.15]))
        for _ in range(steps):
            self._event()
            self.it.judge()
            self.sim.run_for(self.random.choice([50, 300, 2_000, 10_000]))
        self._end()

    def _event(self) -> None:
        if self.vacuums:
            self._pause_writer()
        events = VACUUM_EVENTS if self.vacuums else EVENTS
        shares = [share for share, _ in events.values()]
        [(name, (_, happen))] = self.random.choices(list(events.items()), shares)
        if happen(self) is not False:
            self.done[name] += 1
            self.sim.world.note(f"event: {name}")

    def _produce(self) -> None:
        for _ in range(self.random.randrange(1, 12)):
            self.sim.produce(self.random.randrange(self.sim.partitions))

    def _compact(self) -> None:
        """Sometimes another engine takes files away while they are rewritten."""
        self._send("compact", **self.random.choice([{}, {}, {"sort_by": ["seq"]}]))
        if self.random.random() < 0.4:
            for _ in range(3):
                self.sim.world.after_steps(self.random.randrange(5, 250), self._interfere)

    def _interfere(self) -> None:
        if not self.is_over and self.neighbour.compact():
            self.done["another engine compacts at any step"] += 1

    def _vacuum(self) -> None:
        self._send("vacuum", dry_run=self.random.random() < 0.2)

    def _vacuum_twice(self) -> None:
        """Let vacuums race each other, and appends that land all the time.

        One of them stands still just before its fence, so that another's is higher by then.
        """
        self.naps_left = 1
        self._arm_nap()
        for delay_ms in range(0, 3_000, 30):
            self.sim.world.later(delay_ms, self._produce_one)
        for partition in range(CONTROL_PARTITIONS):
            name = self.it.send("vacuum", partition=partition, dry_run=False)
            self.sent.append(("vacuum", name, {"dry_run": False}))
            self.sim.run_for(self.random.choice([10, 200, 1_500]))

    def _arm_nap(self) -> None:
        self.sim.world.at("store.put_if_absent begins", self._nap_before_fence)

    def _nap_before_fence(self, task: Task) -> None:
        if self.is_over or not self.naps_left:
            return
        if task.name == "plan" and task.host.name.startswith("v"):
            self.naps_left -= 1
            task.host.pause(self.random.choice([1_000, 3_000]))
            return
        self._arm_nap()

    def _produce_one(self) -> None:
        self.sim.produce(self.random.randrange(self.sim.partitions))

    def _pause_vacuum(self) -> None:
        host = self.it.keepers[self.random.choice(["v0", "v1"])].host
        host.pause(self.random.choice([300, 2_000, 8_000]))

    def _pause_writer(self) -> None:
        """Stop one again and again, so that it often sleeps between an upload and its commit."""
        host = self.sim.workers[self.random.choice(["w0", "w1"])].host
        for delay_ms in range(0, 4_000, 400):
            nap_ms = self.random.choice([60, 150, 300])
            self.sim.world.later(delay_ms + self.random.randrange(90), self._napping(host, nap_ms))

    def _napping(self, host: Host, duration_ms: int) -> Callable[[], None]:
        return lambda: None if host.dead else host.pause(duration_ms)

    def _look_after_the_log(self) -> None:
        self._send(self.random.choice(["checkpoint", "cleanup-log"]))

    def _deliver_again(self) -> None:
        """Perhaps in another partition."""
        if self.sent:
            command, name, args = self.random.choice(self.sent)
            partition = 0 if "role" in args else self.random.randrange(4)
            self.it.send(command, name=name, partition=partition, **args)

    def _restart(self) -> None:
        name = self.random.choice([*sorted(self.it.keepers), "w0", "w1"])
        (self.it if name in self.it.keepers else self.sim).start(name)

    def _anybody(self) -> Host:
        return self.random.choice([*self.it.keepers.values(), *self.sim.workers.values()]).host

    def _pause_worker(self) -> None:
        host = self._anybody()
        if not host.dead:
            host.pause(self.random.choice([500, 5_000, 45_000, 200_000]))

    def _lose_the_locks(self) -> None:
        self.it.leases.wire.outage(self.random.choice([500, 5_000, 60_000]))

    def _lose_the_store(self) -> None:
        wire = self.random.choice([self.sim.store, self.sim.kafka]).wire
        outage_ms = self.random.choice([500, 5_000, 60_000])
        wire.outage(outage_ms)
        self.outage_until_ms = max(self.outage_until_ms, self.sim.world.now_ms + outage_ms)

    def _pause_by_command(self) -> None:
        role = self.random.choice(["writer", "maintenance"])
        self._send("pause", role=role)
        self._send("resume", role=role)

    def _kill_at_any_step(self) -> None:
        host = self._anybody()
        self.sim.world.after_steps(self.random.randrange(1, 300), self._killer(host))

    def _foreign_commit(self) -> None:
        if self.sim.oracle.version >= 0:
            self.sim.foreign_commit()

    # --- nights ---------------------------------------------------------------------------------

    def _night(self) -> bool | None:
        """Let everybody stand still, or be away, past leases, retentions and clean-ups."""
        if self.nights >= NIGHTS_MAX or self.sim.oracle.version < 0:
            return False
        self.nights += 1
        kind = self.random.choice(("nap", "sleep", "sleep", "absence"))
        hours = {
            "nap": self.random.randint(1, 3),
            "sleep": self.random.randint(25, 70),
            "absence": 24 * self.random.randint(8, 31),
        }[kind]
        self.done[f"night: {kind}"] += 1
        night_ms = hours * HOUR_MS
        for each in (*self.it.keepers.values(), *self.sim.workers.values()):
            if kind == "absence":
                each.host.kill()
            elif not each.host.dead:
                # Some wake a little later, when others have kept house.
                each.host.pause(night_ms + self.random.choice([0, 0, 0, 30_000, 90_000]))
        self._pass(night_ms // 2)
        self._neighbour_works()
        self._pass(night_ms - night_ms // 2)
        self._neighbour_keeps_house(may_vacuum=kind == "absence")
        if kind == "absence":
            for name in ("w0", "w1"):
                self.sim.start(name)
            for name in ("c0", "c1", "v0", "v1"):
                self.it.start(name)
        for command in self.random.choice(MORNINGS):
            self._send(command, **({"dry_run": False} if command == "vacuum" else {}))
            self.sim.run_for(self.random.choice([300, 5_000]))
        return None

    def _pass(self, duration_ms: int) -> None:
        """Let time pass, also where nobody is awake."""
        self.sim.world.later(duration_ms, lambda: None)
        self.sim.run_for(duration_ms)

    def _neighbour_works(self) -> None:
        for _ in range(self.random.randrange(3)):
            name = self.random.choice(NEIGHBOURLY)
            if getattr(self.neighbour, name)():
                self.done[f"another engine: {name}"] += 1

    def _neighbour_keeps_house(self, *, may_vacuum: bool) -> None:
        if self.random.random() < 0.4:
            self.done["another engine: clean_up"] += bool(self.neighbour.clean_up())
        if may_vacuum and self.random.random() < 0.5:
            self.done["another engine: vacuum"] += bool(self.neighbour.vacuum())

    # --- the end --------------------------------------------------------------------------------

    def _killer(self, host: Host) -> Callable[[], None]:
        return lambda: None if self.is_over else host.kill()

    def _send(self, command: str, **args) -> None:
        # People's commands for a table stay in order: they have one key.
        partition = 0 if "role" in args else self.random.randrange(4)
        name = self.it.send(command, partition=partition, **args)
        self.sent.append((command, name, args))

    def _are_answered(self, waiting: list[str]) -> bool:
        """Take from the list who is answered: asked after every step, it must cost little."""
        while waiting and self.it.is_answered(waiting[-1]):
            waiting.pop()
        return not waiting

    def _resume_all(self) -> None:
        if self.is_answered:
            return
        for role in ("writer", "maintenance"):
            self.it.send("resume", role=role)

    def _end(self) -> None:
        """After the faults every command is answered and every record is in the table."""
        sim = self.sim
        self.is_over = True
        sim.world.heal()
        self.it.leases.is_broken = False
        for name, keeper in sorted(self.it.keepers.items()):
            if not keeper.is_up:
                self.it.start(name)
        for name, worker in sorted(sim.workers.items()):
            if not worker.is_up:
                sim.start(name)
        self._resume_all()
        if self.done["every lock broken"]:
            # Notes of what was done are lost with the locks: a role that reads on from far behind
            # may apply a pause again whose resume the other role has long answered.
            for minute in range(1, 15):
                self.sim.world.later(60_000 * minute, self._resume_all)
        waiting = [name for _, name, _ in self.sent]
        try:
            self.it.run(lambda: self._are_answered(waiting))
        except Violation:
            raise
        except AssertionError as error:
            open_ids = [sent for sent in self.sent if not self.it.is_answered(sent[1])]
            said = {name: self.it.states(name) for _, name, _ in open_ids}
            raise AssertionError(f"{open_ids} have no outcome: {said}; {error}") from None
        # A command may fail in an outage, or while there is no table yet; of this one we ask that it
        # succeeds.
        self._pass(max(0, self.outage_until_ms - self.sim.world.now_ms))
        self.it.run(lambda: sim.oracle.version >= 0)
        last = self.it.send("compact")
        self.it.run(lambda: self.it.is_answered(last))
        assert self.it.states(last)[-1] == "succeeded", self.it.outcomes(last)
        sim.finish()
        self.is_answered = True
        self.it.stop()
        self.it.check()


def _by_neighbour(name: str) -> Callable[[Swarm], bool | None]:
    return lambda swarm: getattr(swarm.neighbour, name)()


MORNINGS = ((), ("checkpoint", "cleanup-log"), ("cleanup-log",), ("vacuum", "cleanup-log"))
NEIGHBOURLY = ("append", "delete", "compact", "checkpoint")
EVENTS: dict[str, tuple[float, Callable[[Swarm], bool | None]]] = {
    "records": (4, Swarm._produce),
    "compact": (3, Swarm._compact),
    "vacuum": (1.5, Swarm._vacuum),
    "checkpoint or clean-up": (1, Swarm._look_after_the_log),
    "a command delivered again": (1, Swarm._deliver_again),
    "a worker starts anew": (2, Swarm._restart),
    "a worker is paused": (1, Swarm._pause_worker),
    "the locks do not answer": (1, Swarm._lose_the_locks),
    "store or brokers do not answer": (0.6, Swarm._lose_the_store),
    "paused by command": (1, Swarm._pause_by_command),
    "a worker is killed at any step": (2, Swarm._kill_at_any_step),
    "another engine: commit": (0.5, Swarm._foreign_commit),
    "night": (1.2, Swarm._night),
    **{f"another engine: {name}": (0.8, _by_neighbour(name)) for name in NEIGHBOURLY},
}
"""What may happen, how often, and what does it; False says that it could not."""
VACUUM_EVENTS: dict[str, tuple[float, Callable[[Swarm], bool | None]]] = {
    "vacuums race": (2, Swarm._vacuum_twice),
    "a vacuum is paused": (1, Swarm._pause_vacuum),
}
ALSO_MET = (
    "another engine compacts at any step",
    "another engine: clean_up",
    "another engine: vacuum",
    "night: absence",
    "night: nap",
    "night: sleep",
    "retention of an hour",
    "every lock broken",
)
"""What happens besides, and is counted as well."""
EFFECTS = (
    "checkpoint written",
    "deletion vector applied",
    "entry cleaned up",
    "file compacted",
    "file vacuumed",
    "lease taken over",
)
"""What maintenance must really have done."""


def swarm(world: World, seed: int, *, vacuums: bool = False, judges_leases: bool = True) -> Swarm:
    """Return the world of a seed, with nothing in it yet that moves."""
    random = world.random("configuration")
    hours = 0 if vacuums else random.choice([0, 0, 1])
    keep = random.choice(["1 minutes", "1 hours", "7 days"])
    upkeeping = Upkeeping.of(
        world,
        "flush.interval_ms=20" if vacuums else "",
        f"vacuum.retention_hours={hours}",
        f"vacuum.retention_hours_min={hours}",
        f"table.properties={{delta.deletedFileRetentionDuration: interval {keep}, "
        "delta.logRetentionDuration: interval 1 days}",
        "table.partition_by=[_kafka_partition]" if seed % 4 == 1 else "",
        partitions=1 + seed % 3,
        judges_leases=judges_leases,
    )
    oracle = upkeeping.sim.oracle
    assert isinstance(oracle, UpkeepOracle)
    oracle.retention_ms = hours * HOUR_MS
    upkeeping.cores = 1 + seed % 3
    found = Swarm(upkeeping, vacuums=vacuums)
    found.done["retention of an hour"] += hours == 1
    return found


def run_seed(seed: int, *, vacuums: bool = False, judges_leases: bool = True) -> Upkeeping:
    """Run one seed; raise at the first thing that is wrong."""
    with World(seed) as world:
        found = swarm(world, seed, vacuums=vacuums, judges_leases=judges_leases)
        found.run(STEPS_OF_VACUUMS if vacuums else STEPS)
        return found.it
