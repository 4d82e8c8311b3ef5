"""Compactors, vacuums and schedulers in the world, beside writers, judged at every log version."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from delta_sink.errors import FatalError
from delta_sink.maintenance import Maintainer
from delta_sink.model import TopicPartition
from delta_sink.testing import FakeLeases, Host, Task, World, make_maintainer
from tests.simulation.harness import Simulation, check_telemetry
from tests.simulation.oracle import Violation

CONTROL, STATUS = "ops.control", "ops.status"
CONTROL_PARTITIONS = 4
TABLE = "/simulated/table"
CONFIG = f"""
control: {{topic: {CONTROL}, status_topic: {STATUS}}}
compaction: {{target_file_bytes: 4MiB, quiet_ms: 0, small_files_max: 8, age_max_ms: 60000}}
checkpoint: {{commits_max: 12, age_max_ms: 300000}}
vacuum: {{retention_hours: 0, retention_hours_min: 0}}
"""
ROLES = {"c": "compactor", "v": "vacuum"}


@dataclass
class Keeper:
    """A maintenance worker on its host."""

    host: Host
    maintainer: Maintainer
    task: Task

    @property
    def is_up(self) -> bool:
        return not self.host.dead and not self.task.done


@dataclass
class Upkeeping:
    """A simulation whose table has maintenance workers, and who asks them for things."""

    sim: Simulation
    leases: FakeLeases
    keepers: dict[str, Keeper] = field(default_factory=dict)
    past: list[Keeper] = field(default_factory=list)
    commands: int = 0
    violations: list[Violation] = field(default_factory=list)
    _outcomes: dict[str, list[dict]] = field(default_factory=dict)
    _read_next: int = 0

    @classmethod
    def of(cls, world: World, more: str = "", **options) -> Upkeeping:
        """Return a simulation with topics for commands and outcomes, and no worker yet.

        `more` is laid over the configuration.
        """
        sim = Simulation(world, config=CONFIG + more, **options)
        sim.kafka.create_topic(CONTROL, CONTROL_PARTITIONS)
        sim.kafka.create_topic(STATUS, 1)
        found = cls(sim, FakeLeases(world))
        store = sim.store
        store.on_created = found.noting(store.on_created)
        store.on_deleted = found.noting(store.on_deleted)
        return found

    def noting(self, check: Callable[..., None]) -> Callable[..., None]:
        """Return a check of the judge whose verdict no worker can keep to itself.

        A maintenance worker lives through a bug of one command, and so would through a verdict.
        """

        def noted(*what: object) -> None:
            try:
                check(*what)
            except Violation as violation:
                self.violations.append(violation)
                raise

        return noted

    def run(self, until: Callable[[], bool]) -> None:
        """Run until it holds; raise what the judge found meanwhile."""
        self.sim.run(lambda: bool(self.violations) or until())
        self.judge()

    def judge(self) -> None:
        """Raise the first violation, if there is one."""
        if self.violations:
            raise self.violations[0]

    def start(self, name: str, *, skew_ms: int = 0) -> Keeper:
        """Start a worker, or start it again; its name's first letter says which kind."""
        before = self.keepers.get(name)
        if before is not None:
            self.past.append(before)
            if not before.host.dead:
                before.host.kill()
        sim = self.sim
        host = sim.world.host(name, skew_ms=skew_ms)
        maintainer = make_maintainer(
            host, ROLES[name[0]], sim.settings, sim.kafka, sim.store, self.leases
        )
        task = sim.world.spawn(host, maintainer.run, may_fail=(FatalError,))
        self.keepers[name] = Keeper(host, maintainer, task)
        return self.keepers[name]

    def send(self, command: str, *, name: str | None = None, partition: int = 0, **args) -> str:
        """Put a command into the control topic; return its id."""
        self.commands += 1
        name = name or f"cmd-{self.commands}"
        message = {"v": 1, "id": name, "command": command, "table": TABLE, "args": args}
        self.sim.kafka.produce(CONTROL, partition, json.dumps(message).encode())
        return name

    def outcomes(self, command_id: str) -> list[dict]:
        """Return what the status topic says of a command, in order."""
        end = self.sim.kafka.log(TopicPartition(STATUS, 0)).end
        if end != self._read_next:  # asked after every step, it must cost nothing when nothing came
            for record in self.sim.kafka.records(STATUS, 0):
                if record.offset >= self._read_next:
                    outcome = json.loads(record.value)
                    self._outcomes.setdefault(outcome["id"], []).append(outcome)
            self._read_next = end
        return self._outcomes.get(command_id, [])

    def parts_of(self, command_id: str) -> dict[str, list[str]]:
        """Return the states of each part of a command, by the part's id."""
        self.outcomes(command_id)
        return {
            name: [outcome["state"] for outcome in outcomes]
            for name, outcomes in self._outcomes.items()
            if outcomes[0].get("part", {}).get("parent") == command_id
        }

    def states(self, command_id: str) -> list[str]:
        return [outcome["state"] for outcome in self.outcomes(command_id)]

    def is_answered(self, command_id: str) -> bool:
        return any(s in ("succeeded", "refused", "failed") for s in self.states(command_id))

    def stop(self) -> None:
        """Stop every maintenance worker and wait for it."""
        alive = [keeper for keeper in self.keepers.values() if keeper.is_up]
        for keeper in alive:
            keeper.maintainer.request_stop()
            keeper.host.jobs.wake()
        self.run(lambda: not any(keeper.is_up for keeper in alive))
        for keeper in alive:
            if keeper.task.error is not None:
                raise keeper.task.error

    def check(self) -> None:
        """No command met a bug; and all that was said is declared."""
        for record in self.sim.kafka.records(STATUS, 0):
            outcome = json.loads(record.value)
            assert "bug" not in outcome["message"], outcome
        for keeper in [*self.past, *self.keepers.values()]:
            check_telemetry(keeper.host.telemetry)


class Swarm:
    """Breaks writers and maintenance at random, from the seed."""

    def __init__(self, upkeeping: Upkeeping, *, vacuums: bool = False) -> None:
        """Break everything; with `vacuums` let these race each other with every lock broken."""
        self.vacuums = vacuums
        self.it = upkeeping
        self.sim = upkeeping.sim
        self.random: Random = self.sim.world.random("upkeep swarm")
        self.is_over = False
        self.sent: list[tuple[str, str, dict]] = []

    def run(self, steps: int = 40) -> None:
        """Start everything, break it for `steps` events, then heal and require an end."""
        for name in ("w0", "w1"):
            self.sim.start(name)
        for name in ("c0", "c1", "v0", "v1"):
            self.it.start(name, skew_ms=self.random.choice([0, 0, -90_000, 40_000]))
        self.it.leases.is_broken = self.vacuums or self.random.random() < 0.2
        drawn = sorted(self.sim.world.declared)
        for name in self.random.sample(drawn, self.random.randrange(len(drawn) // 2)):
            self.sim.world.enable(name, self.random.choice([0.01, 0.05, 0.15]))
        for _ in range(steps):
            self._event()
            self.it.judge()
            self.sim.run_for(self.random.choice([50, 300, 2_000, 10_000]))
        self._end()

    def _event(self) -> None:
        events = [
            *[self._produce] * 4,
            *[self._compact] * 3,
            self._vacuum,
            self._look_after_the_log,
            self._deliver_again,
            *[self._restart] * 2,
            self._pause_worker,
            self._lose_the_locks,
            self._pause_by_command,
            *[self._kill_at_any_step] * 2,
            self._foreign_commit,
        ]
        if self.vacuums:
            self._pause_writer()
            events = [self._vacuum_twice, self._vacuum_twice, self._pause_vacuum]
        self.random.choice(events)()

    def _produce(self) -> None:
        for _ in range(self.random.randrange(1, 12)):
            self.sim.produce(self.random.randrange(self.sim.partitions))

    def _compact(self) -> None:
        self._send("compact", **self.random.choice([{}, {}, {"sort_by": ["seq"]}]))

    def _vacuum(self) -> None:
        self._send("vacuum", dry_run=self.random.random() < 0.2)

    def _vacuum_twice(self) -> None:
        """Let vacuums race each other, and appends that land all the time."""
        for delay_ms in range(0, 3_000, 30):
            self.sim.world.later(delay_ms, self._produce_one)
        for partition in range(CONTROL_PARTITIONS):
            name = self.it.send("vacuum", partition=partition, dry_run=False)
            self.sent.append(("vacuum", name, {"dry_run": False}))
            self.sim.run_for(self.random.choice([10, 200, 1_500]))

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

    def _killer(self, host: Host) -> Callable[[], None]:
        return lambda: None if self.is_over else host.kill()

    def _send(self, command: str, **args) -> None:
        # People's commands for a table stay in order: they have one key.
        partition = 0 if "role" in args else self.random.randrange(4)
        name = self.it.send(command, partition=partition, **args)
        self.sent.append((command, name, args))

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
        for role in ("writer", "maintenance"):
            # A broken lock may have let an old pause be applied again.
            self._send("resume", role=role)
        ids = [name for _, name, _ in self.sent]
        try:
            self.it.run(lambda: all(self.it.is_answered(name) for name in ids))
        except Violation:
            raise
        except AssertionError as error:
            open_ids = [sent for sent in self.sent if not self.it.is_answered(sent[1])]
            said = {name: self.it.states(name) for _, name, _ in open_ids}
            raise AssertionError(f"{open_ids} have no outcome: {said}; {error}") from None
        last = self.it.send("compact")
        self.it.run(lambda: self.it.is_answered(last))
        assert self.it.states(last)[-1] == "succeeded", self.it.outcomes(last)
        sim.finish()
        self.it.stop()
        self.it.check()


def run_seed(seed: int, *, vacuums: bool = False) -> Upkeeping:
    """Run one seed; raise at the first thing that is wrong."""
    with World(seed) as world:
        more = "flush: {interval_ms: 20}\n" if vacuums else ""
        upkeeping = Upkeeping.of(world, more, partitions=1 + seed % 3)
        Swarm(upkeeping, vacuums=vacuums).run(10 if vacuums else 40)
        return upkeeping
