"""The production writers in a world of fakes: one topic of JSON, one table, and whoever breaks it.

`Simulation` builds the parts and judges every log version with `oracle.Oracle`; `Chaos` breaks
things at random, from the seed. Directed tests use `Simulation` alone and break one thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from delta_sink.append import DeadLetterTarget
from delta_sink.claim import Source
from delta_sink.config import Source as ConfigText
from delta_sink.config import load
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.errors import FatalError
from delta_sink.memory import MemoryBudget
from delta_sink.model import TopicPartition
from delta_sink.settings import Settings
from delta_sink.telemetry import check_event, check_metric, check_trace
from delta_sink.testing import FakeKafka, FakeStore, FakeTelemetry, Host, Task, World
from delta_sink.view import table_spec
from delta_sink.writer import Writer
from tests.simulation import foreign
from tests.simulation.oracle import Ledger, Oracle, Produced

TOPIC = "orders"
LETTERS = "orders.dlq"
BASE = f"""
name: sink
kafka: {{bootstrap.servers: 'fake:9092'}}
source: {{topics: [{TOPIC}]}}
value: {{format: json}}
table:
  uri: /simulated/table
  parquet: {{compression: none, dictionary: false}}
  schema:
    - {{name: seq, type: long}}
    - {{name: text, type: string}}
errors: {{tolerance: all, dead_letter_topic: {LETTERS}, ratio_max: 1}}
"""
DAY_MS = foreign.DAY_MS
ROOMY = MemoryBudget(queue_bytes=1 << 20, pipeline_bytes=1 << 24, chunk_bytes=1 << 20)
NARROW = MemoryBudget(queue_bytes=1 << 20, pipeline_bytes=1_500, chunk_bytes=300)
NO_PROGRESS = "no progress for"
"""A worker that says so stops to be started again elsewhere."""
HEALING_MAX_MS = 20 * 60_000
"""After the last fault everything is in the table within this time."""


@cache
def settings_of(config: str = "", *sets: str) -> Settings:
    """Return the settings of `BASE` with `config` laid over it, and `sets` over both."""
    texts = [ConfigText("base", BASE), *([ConfigText("test", config)] if config else [])]
    return load(texts, sets, env={}, read_file=lambda path: path)


@dataclass
class Worker:
    """A writer on its host, and the task that runs it."""

    host: Host
    writer: Writer
    task: Task

    @property
    def events(self) -> list[str]:
        return [name for _, name, _, _ in self.host.telemetry.events]

    def named(self, event: str) -> list[dict[str, object]]:
        return self.host.telemetry.named(event)

    @property
    def committed(self) -> list[int]:
        """The versions that this worker knows to be its own."""
        return [fields["version"] for fields in self.named("table_committed")]

    @property
    def is_up(self) -> bool:
        return not self.host.dead and not self.task.done

    def stop(self) -> None:
        """SIGTERM."""
        self.writer.request_stop()
        self.host.jobs.wake()


class GroupOffsets(dict):
    """The group's committed offsets; each that arrives is compared with the log (I6)."""

    def __init__(self, oracle: Oracle) -> None:
        super().__init__()
        self._oracle = oracle

    def update(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._oracle.check_group(offsets)
        super().update(offsets)


@dataclass
class Simulation:
    """A world with a store, brokers, the topic `orders`, its dead letters, and no worker yet."""

    world: World
    partitions: int = 3
    config: str = ""
    budget: MemoryBudget = ROOMY
    sets: tuple[str, ...] = ()
    workers: dict[str, Worker] = field(default_factory=dict)
    past: list[Worker] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    judge: type[Oracle] = Oracle

    def __post_init__(self) -> None:
        self.settings = settings_of(self.config, *self.sets)
        self.kafka = FakeKafka(self.world, topic_ids=self.settings.source.topic_ids == "required")
        self.store = FakeStore(self.world)
        self.oracle = self.judge(self.store, self.kafka, self.ledger, dead_letter_topic=LETTERS)
        self.group = self.kafka.group(self.settings.consumer_group)
        self.group.committed = GroupOffsets(self.oracle)
        self.kafka.create_topic(TOPIC, self.partitions)
        self.kafka.create_topic(LETTERS, 1)
        self.random = self.world.random("traffic")
        self.seq = 0
        self._seen: tuple[int, ...] = ()
        self._is_complete = False

    # --- workers --------------------------------------------------------------------------------

    def start(
        self,
        name: str = "w0",
        *,
        settings: Settings | None = None,
        budget: MemoryBudget | None = None,
        until_end: bool = False,
        skew_ms: int = 0,
        drift_ppm: int = 0,
    ) -> Worker:
        """Start a writer as a process of its own; of this name at most one may live."""
        settings = settings or self.settings
        before = self.workers.get(name)
        if before is not None:
            self.past.append(before)
            if not before.host.dead:
                before.host.kill()
        host = self.world.host(name, skew_ms=skew_ms, drift_ppm=drift_ppm)
        store = self.store.client(host)
        log = Log(
            store=store,
            entries=ConditionalPutLog(store),
            clock=host.clock,
            entropy=host.entropy,
            telemetry=host.telemetry,
            readback=settings.table.storage.readback,
        )
        topic = settings.errors.dead_letter_topic
        writer = Writer(
            Source(settings, log, self.kafka.broker(host), table_spec(settings)),
            self.kafka.consumer(
                host,
                settings.consumer_group,
                settings.source.topics or (),
                pattern=settings.source.topics_regex,
            ),
            host.jobs,
            budget=budget or self.budget,
            dead_letters=DeadLetterTarget(self.kafka.producer(host), topic) if topic else None,
            until_end=until_end,
        )
        task = self.world.spawn(host, writer.run, may_fail=(FatalError,))
        self.workers[name] = Worker(host, writer, task)
        return self.workers[name]

    @property
    def everybody(self) -> list[Worker]:
        return [*self.past, *self.workers.values()]

    # --- records --------------------------------------------------------------------------------

    def produce(self, partition: int = 0, kind: str = "good", *, topic: str = TOPIC) -> int:
        """Append one record of that kind; return its offset."""
        value = self._value(kind)
        offset = self.kafka.produce(topic, partition, value, key=b"k%d" % self.seq)
        self._note(topic, partition, offset, kind)
        return offset

    def fill(self, count: int, kind: str = "good") -> None:
        """Append `count` records, spread over the partitions."""
        for number in range(count):
            self.produce(number % self.partitions, kind)

    def transaction(self, partition: int, count: int, *, aborts: bool) -> None:
        """Append records in one transaction. Aborted, they and the marker are a gap."""
        with_offsets = self.kafka.transaction()
        offsets = [
            with_offsets.produce(TOPIC, partition, self._value("good")) for _ in range(count)
        ]
        if aborts:
            with_offsets.abort()
            return
        with_offsets.commit()
        self.seq -= count
        for offset in offsets:
            self.seq += 1
            self._note(TOPIC, partition, offset, "good")

    def compact(self, partition: int) -> None:
        """Drop a third of the records, as log compaction does."""
        tp = (TOPIC, partition)
        offsets = set(self.kafka.log(TopicPartition(*tp)).offsets)
        dropped = {offset for offset in offsets if self.random.random() < 0.3}
        self.ledger.optional[tp] |= dropped
        self.kafka.compact(TOPIC, partition, lambda record: record.offset not in dropped)

    def _value(self, kind: str) -> bytes | None:
        self.seq += 1
        if kind == "tombstone":
            return None
        more = {"extra": {"more": 1}, "deep": {"more": [[[[1]]]]}}.get(kind, {})
        value = json.dumps({"seq": self.seq, "text": f"text {self.seq}", **more}).encode()
        return value[:-1] if kind == "bad" else value

    def _note(self, topic: str, partition: int, offset: int, kind: str) -> None:
        is_null = kind == "tombstone"
        self.ledger.records[topic, partition][offset] = Produced(
            kind,
            None if is_null else self.seq,
            None if is_null else f"text {self.seq}",
            self.world.wall_ms,
        )

    def app_id(self, partition: int = 0, *, topic: str = TOPIC, sink: str = "sink") -> str:
        """Return the name of the partition's `txn`."""
        if not self.kafka.topic_ids:
            return f"{sink}/{topic}/{partition}"
        return f"{sink}/{topic}@{self.kafka.topic_id(topic)}/{partition}"

    def txn(self, partition: int = 0) -> int | None:
        return self.oracle.txns.get(self.app_id(partition))

    def recreate_topic(self) -> None:
        """Delete the topic with all its records and create it anew, empty, under another id."""
        self.ledger.retire(TOPIC, self.kafka.topic_id(TOPIC))
        self.kafka.delete_topic(TOPIC)
        self.kafka.create_topic(TOPIC, self.partitions)

    def retain(self, partition: int, offset: int) -> None:
        """Let retention delete what lies below `offset`."""
        records = self.ledger.records[TOPIC, partition]
        optional = self.ledger.optional[TOPIC, partition]
        gone = {o for o in records if o < offset}
        self.ledger.deleted[TOPIC, partition] |= gone - optional
        optional |= gone
        self.kafka.retain_from(TOPIC, partition, offset)

    def truncate(self, partition: int, end: int) -> None:
        """Let the partition end at `end` again: an unclean leader lost what came after."""
        records = self.ledger.records[TOPIC, partition]
        for offset in [offset for offset in records if offset >= end]:
            del records[offset]
        self.kafka.truncate(TOPIC, partition, end)

    # --- foreign hands --------------------------------------------------------------------------

    def foreign_commit(self, *actions: dict) -> int:
        """Let another engine's commit land now at the head; return its version."""
        return foreign.commit(self, *actions)

    def seek_commit(self, receipt: dict, *actions: dict) -> int:
        """Let an operator's SEEK land now at the head; return its version."""
        return foreign.seek(self, receipt, *actions)

    def foreign_compaction(self) -> int:
        """Replace all live files by one: `dataChange` is false, no offset moves."""
        return foreign.compact(self)

    def foreign_fence(self) -> int:
        """Let vacuum commit its fence at the head and delete what no commit lists behind it."""
        return foreign.fence(self)

    def checkpoint(self) -> None:
        """Write a checkpoint of the head."""
        foreign.checkpoint(self)

    def clean_up(self, *, age_ms: int = DAY_MS) -> list[int]:
        """Remove the entries below the newest checkpoint that are older than a day; return them."""
        return foreign.clean_up(self, age_ms=age_ms)

    # --- running --------------------------------------------------------------------------------

    def run(self, until: Callable[[], bool], *, limit_ms: int = HEALING_MAX_MS) -> None:
        """Run until it holds; an error with the state of all tasks if it does not in time."""
        ended = self.world.run(until, limit_ms=limit_ms)
        if ended != "until":
            raise AssertionError(f"not within {limit_ms} ms ({ended})\n{self.world.describe()}")

    def run_for(self, duration_ms: int) -> None:
        self.world.run(limit_ms=duration_ms)

    @property
    def is_complete(self) -> bool:
        """Whether the table has everything that readers of committed records can see."""
        seen = (self.oracle.entries, self.oracle.version, self.kafka.version)
        if seen != self._seen:  # asked after every step, it must cost nothing while nothing changes
            self._seen = seen
            self._is_complete = all(
                self.txn(partition) == self.kafka.log(TopicPartition(TOPIC, partition)).last_stable
                for partition in range(self.partitions)
            )
        return self._is_complete

    def finish(
        self,
        *,
        limit_ms: int = HEALING_MAX_MS,
        knows: Callable[[BaseException], bool] = lambda _: False,
    ) -> int:
        """Heal, wait until everything is committed, stop all; return how long it took (ms).

        `knows` tells of an error whether it was to be expected: a worker that stood still since
        before all was well again may end with it only now.
        """
        self.world.heal()
        began_ms = self.world.now_ms
        while not self.is_complete:
            self.run(lambda: self.is_complete or bool(self._gave_up()), limit_ms=limit_ms)
            for name in self._gave_up():
                self.start(name)
        took_ms = self.world.now_ms - began_ms
        alive = [worker for worker in self.workers.values() if worker.is_up]
        for worker in alive:
            worker.stop()
        self.run(lambda: not any(worker.is_up for worker in alive))
        for worker in alive:
            error = worker.task.error
            if error is None or str(error).startswith(NO_PROGRESS) or knows(error):
                continue
            raise error
        self.check_acknowledged()
        return took_ms

    def _gave_up(self) -> list[str]:
        """Return who ended after too long without progress, once nobody is left who could go on.

        They slept past the last fault, and count their sleep. Who runs them starts them anew.
        """
        if any(worker.is_up for worker in self.workers.values()):
            return []
        errors = {name: worker.task.error for name, worker in self.workers.items()}
        return [name for name, error in errors.items() if str(error).startswith(NO_PROGRESS)]

    def check_acknowledged(self) -> None:
        """I17 for every worker that ever lived; and it said only what is declared."""
        for worker in self.everybody:
            check_telemetry(worker.host.telemetry)
            [started] = worker.named("worker_started") or [{}]
            for told in worker.named("table_committed"):
                self.oracle.check_acknowledged(started["worker"], told["version"], told["rows"])


def check_telemetry(telemetry: FakeTelemetry) -> None:
    """Every event, field, metric and tag that a worker used is declared."""
    for _, name, _, fields in telemetry.events:
        check_event(name, fields)
    for trace in telemetry.traces:
        check_trace(trace.name, trace.fields)
    recorded = [("counter", telemetry.counts), ("gauge", telemetry.gauges)]
    for kind, found in [*recorded, ("histogram", telemetry.observations)]:
        for name, *tags in found:
            if not name.startswith("fake_"):
                check_metric(name, kind, [tag for tag, _ in tags])


@contextmanager
def simulation(seed: int, **options) -> Iterator[Simulation]:
    """Return a simulation in a world of its own, which ends with the block."""
    with World(seed) as world:
        yield Simulation(world, **options)
