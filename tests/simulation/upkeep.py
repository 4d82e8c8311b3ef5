"""Compactors, vacuums and schedulers in the world, beside writers, judged at every log version."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from delta_sink.errors import FatalError
from delta_sink.maintenance import Maintainer
from delta_sink.model import TopicPartition
from delta_sink.testing import FakeLeases, Host, Task, World, make_maintainer
from tests.simulation.harness import Simulation, check_telemetry
from tests.simulation.oracle import Violation
from tests.simulation.upkeep_judge import LeaseJudge, UpkeepOracle

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
    cores: int = 1
    """So many bins a compactor started from now on rewrites side by side."""
    violations: list[Violation] = field(default_factory=list)
    _outcomes: dict[str, list[dict]] = field(default_factory=dict)
    _read_next: int = 0

    @classmethod
    def of(cls, world: World, *more: str, judges_leases: bool = True, **options) -> Upkeeping:
        """Return a simulation with topics for commands and outcomes, and no worker yet.

        `more` is laid over the configuration.
        """
        sets = tuple(each for each in more if each)
        sim = Simulation(world, config=CONFIG, sets=sets, judge=UpkeepOracle, **options)
        sim.kafka.create_topic(CONTROL, CONTROL_PARTITIONS)
        sim.kafka.create_topic(STATUS, 1)
        found = cls(sim, FakeLeases(world))
        store = sim.store
        store.on_created = found.noting(store.on_created)
        store.on_deleted = found.noting(store.on_deleted)
        assert isinstance(sim.oracle, UpkeepOracle)
        if judges_leases:
            lease_judge = LeaseJudge(found.leases, sim.oracle.seen)
            found.leases.on_written = found.noting(lease_judge.written)
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
            host,
            ROLES[name[0]],
            sim.settings,
            sim.kafka,
            sim.store,
            self.leases,
            cores=self.cores,
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
