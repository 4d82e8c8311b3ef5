"""Everything that may happen to writers and their table, at random and from the seed.

A run is a *day* of traffic, sometimes a *night* in which the workers stand still for days while
the log goes on and is cleaned up, and then a shorter day. Each seed draws which faults it has
("swarm"): of the transport's faults (`SWITCHED`) a few at a time, in phases with quiet ones
between; of the `EVENTS` each by itself. A new event is one function with `@event` above it
(docs/testing.md). Every event and fault has random numbers of its own, so that a run without one
of them has the others as before: that is what `minimise.py` lives on.

In the end all faults stop, and `Simulation.finish` asks that everything is committed in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from delta_sink.errors import FatalError
from delta_sink.model import TopicPartition
from tests.simulation import foreign
from tests.simulation.foreign import DAY_MS
from tests.simulation.harness import (
    NARROW,
    NO_PROGRESS,
    ROOMY,
    TOPIC,
    Simulation,
    settings_of,
)
from tests.simulation.operators import Operator
from tests.simulation.points import points_of

SESSION_MS = 45_000
HOUR_MS = 3_600_000
WORKERS = ("w0", "w1", "w2")
PROBABILITIES = (0.03, 0.1, 0.3)

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

FATES = (
    "value: {unknown_fields: fail}",
    "value: {nesting_max: 3}",
    "value: {tombstones: dead_letter}",
    "value: {tombstones: null_row}",
)
"""What another configuration, after a restart, makes of the same records."""

STRIKE_LABELS = (
    "consumer.poll ends",
    "jobs.submit begins",
    "producer.send begins",
    "producer.send sent",
    "producer.send ends",
    "store.put begins",
    "store.put sent",
    "store.put ends",
    "store.put_if_absent begins",
    "store.put_if_absent sent",
    "store.put_if_absent ends",
    "consumer.commit begins",
    "consumer.commit ends",
    "clock.sleep",
)


@dataclass(frozen=True)
class Cuts:
    """What a run leaves out, for `minimise.py`: faults and events by name, records, time."""

    without: frozenset[str] = frozenset()
    bursts: int = 68
    day_ms: int = 120_000


@dataclass(frozen=True)
class Event:
    """Something that happens now and then: in a share of the runs, up to so many times a day."""

    name: str
    happen: Callable[[Chaos, Random], bool | None]
    share: float
    times_max: int


EVENTS: dict[str, Event] = {}


def event(name: str, *, share: float = 0.4, times_max: int = 2):
    """Let the function happen at random times; it returns False where it could not happen."""

    def register(happen: Callable[[Chaos, Random], bool | None]):
        EVENTS[name] = Event(name, happen, share, times_max)
        return happen

    return register


class Chaos:
    """Breaks a simulation, lets it heal, and requires that everything is committed then (I14).

    Attributes:
        done: how often each event happened, by name.
        struck: how often a worker was killed or paused at each crash point, by point and how.
    """

    def __init__(self, sim: Simulation, cuts: Cuts | None = None) -> None:
        self.sim = sim
        self.world = sim.world
        self.cuts = cuts or Cuts()
        self.random = self.world.random("chaos")
        self.done: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self.is_over = False
        self._watches = 0
        self.is_dusk = False  # whoever commits now falls asleep
        self.is_night = False
        self.is_quiet = False  # nobody is started: somebody works on topic or table
        self.stands_still: set[int] = set()  # partitions that get no records for now
        self.operator = Operator(self)
        self._started = 0
        self._looked_after: set[int] = set()
        on_gap = self.random.choice(("skip", "skip", "fail"))
        interval_ms = self.random.choice((150, 300, 600))
        self._config = f"source: {{on_offset_gap: {on_gap}}}\nflush: {{interval_ms: {interval_ms}}}"
        if self.random.random() < 0.3 and "eager" not in self.cuts.without:
            sim.group.protocol = "eager"
            self.done["eager"] += 1
        sim.oracle.row_kinds.add("tombstone")
        sim.store.on_refused = self._entry_refused

    def run(self) -> None:
        """Let all of it happen; what is left is `Simulation.finish`."""
        for name in WORKERS:
            self.start(name)
        self._watch(self._watches)
        self._day(1.0)
        if self.random.random() < 0.35 and "night" not in self.cuts.without:
            self._night()
            self._day(0.3)
        self.is_over = True
        self.world.heal()
        self.is_quiet = False
        self._restore_wires()
        for name in WORKERS:
            self.start(name)
        self.sim.run(lambda: self.sim.is_complete and self._is_settled())
        self._watches += 1

    def _is_settled(self) -> bool:
        """Whether every worker and every operator has come to rest after the last fault."""
        return not self.operator.is_busy and all(
            worker.is_up and not any(part.halted for part in worker.writer._parts.values())
            for worker in self.sim.workers.values()
        )

    def _day(self, share: float) -> None:
        """Let traffic and faults go on for a share of a whole day."""
        day_ms = round(self.cuts.day_ms * share)
        traffic = self.world.random(f"traffic/{self.world.now_ms}")
        for _ in range(round(self.cuts.bursts * share)):
            self.world.later(traffic.randrange(day_ms), self._burst)
        for one in EVENTS.values():
            random = self.world.random(f"event/{one.name}/{self.world.now_ms}")
            if random.random() < one.share and one.name not in self.cuts.without:
                for _ in range(random.randint(1, one.times_max)):
                    self.world.later(random.randrange(day_ms), self._happening(one, random))
        end_ms = self.world.now_ms + day_ms
        self._next_phase(end_ms)
        self._pass(day_ms)

    def _happening(self, one: Event, random: Random) -> Callable[[], None]:
        def happen() -> None:
            if not self.is_over and one.happen(self, random) is not False:
                self.done[one.name] += 1
                self.world.note(f"event: {one.name}")

        return happen

    # --- workers --------------------------------------------------------------------------------

    def is_up(self, name: str) -> bool:
        """Whether a worker of this name lives."""
        worker = self.sim.workers.get(name)
        return worker is not None and worker.is_up

    def start(self, name: str) -> None:
        """Start a worker of this name if there is none, with one configuration or another."""
        if self.is_up(name) or self.is_quiet or self.is_night:
            return
        self._started += 1
        random = self.world.random(f"start/{self._started}")
        config = self._config
        if random.random() < 0.25 and "another configuration" not in self.cuts.without:
            config += "\n" + random.choice(FATES)
            self.done["another configuration"] += 1
        skew_ms = drift_ppm = 0
        if random.random() < 0.3 and "clock skew" not in self.cuts.without:
            skew_ms = random.choice((-8 * DAY_MS, -HOUR_MS, HOUR_MS, 8 * DAY_MS))
            drift_ppm = random.randint(-500, 500)
            self.done["clock skew"] += 1
        self.sim.start(
            name,
            settings=settings_of(config),
            budget=NARROW if random.random() < 0.3 else ROOMY,
            skew_ms=skew_ms,
            drift_ppm=drift_ppm,
        )

    def start_later(self, name: str, delay_ms: int) -> None:
        """Start the worker after a while, as whoever watches over it would."""
        self.world.later(delay_ms, lambda: self.start(name))

    def _look_after(self) -> None:
        """Start again who stopped; an end that nothing here has caused is an error."""
        for name, worker in list(self.sim.workers.items()):
            task = worker.task
            if not task.done or id(task) in self._looked_after:
                continue
            self._looked_after.add(id(task))
            error = task.error
            if error is not None and self.operator.knows(error):
                self.done["refused with a sentence"] += 1
                self.operator.hear(str(error))
            elif isinstance(error, FatalError):
                if not str(error).startswith(NO_PROGRESS):
                    raise error
                self.done["gave up"] += 1
            if not worker.host.dead:
                self.start_later(name, 3_000)
        self.operator.look()

    def _watch(self, watch: int) -> None:
        """Look after everybody once a second, until `_watches` says that another round began."""
        if watch == self._watches:
            self._look_after()
            self.world.later(1_000, lambda: self._watch(watch), background=True)

    def strike(self, host_name: str, how: str, random: Random) -> None:
        """Kill or pause the worker on this host, and note at which crash points it was."""
        worker = self.sim.workers.get(host_name)
        if self.is_over or worker is None or not worker.is_up:
            return
        for point in points_of(self.sim, worker):
            self.struck[f"{point} {how}"] += 1
        if how == "kill":
            self.start_later(host_name, random.randint(0, 60_000))
            worker.host.kill()
        elif how == "pause":
            worker.host.pause(random.randint(100, 70_000))
        else:
            worker.host.pause(random.randint(2 * SESSION_MS, 400_000))

    # --- what goes on by itself -----------------------------------------------------------------

    def _burst(self) -> None:
        sim, random = self.sim, sim_random(self)
        partition = random.randrange(sim.partitions)
        if partition in self.stands_still or self.is_over:
            return
        dice = random.random()
        kind = "good"
        for bound, other in ((0.07, "bad"), (0.14, "tombstone"), (0.2, "extra"), (0.26, "deep")):
            if dice < bound:
                kind = other
                break
        for _ in range(random.choice((1, 1, 2, 5))):
            sim.produce(partition, kind)

    def _next_phase(self, end_ms: int) -> None:
        """Switch a few faults on for a while; every third time none."""
        self.world.heal()
        if self.world.now_ms >= end_ms or self.is_over:
            return
        random = self.world.random(f"phase/{self.world.now_ms}")
        if random.random() < 0.66:
            for fault in random.sample(SWITCHED, random.randint(2, 8)):
                probability = random.choice(PROBABILITIES)
                if fault not in self.cuts.without:
                    self.world.enable(fault, probability)
        self.world.later(random.randint(5_000, 30_000), lambda: self._next_phase(end_ms))

    def _entry_refused(self, path: str, found: bytes, sent: bytes) -> None:
        """Note that a commit whose answer was lost finds itself in the log (CP7, CP8)."""
        if path.startswith("_delta_log/") and found == sent:
            self.struck["CP7 lost answer"] += 1
            if self.sim.oracle.version > int(path[11:31]):
                self.struck["CP8 lost answer"] += 1

    # --- nights ---------------------------------------------------------------------------------

    def _night(self) -> None:
        """Let workers stand still for days while the log goes on, and have it cleaned up.

        Sometimes a commit is on the wire when it begins, and lands days later; sometimes the
        worker has just sent it again.
        """
        sim, world, random = self.sim, self.world, self.world.random("night")
        if self.is_quiet or sim.oracle.version < 2:
            return
        self.done["night"] += 1
        kind = random.choice(("sleep", "sleep", "late", "absence"))
        self.done[f"night: {kind}"] += 1
        world.heal()
        if kind == "late":
            sim.store.wire.slow_ms_min, sim.store.wire.slow_ms_max = 26 * HOUR_MS, 70 * HOUR_MS
        self.is_dusk = True
        self._fall_asleep(kind, random)
        self._pass(60_000)
        self.is_dusk = False
        self.is_night = True
        self._watches += 1
        world.heal()
        self._restore_wires()
        for worker in sim.workers.values():
            if worker.is_up and kind == "absence":
                worker.host.kill()
            elif worker.is_up:
                worker.host.pause(3 * DAY_MS)
        self._while_they_sleep(random)
        if kind == "absence":
            self._absence(random)
        self.is_night = False
        self._watch(self._watches)
        for name in WORKERS:
            self.start_later(name, random.randint(0, 10_000))

    def _fall_asleep(self, kind: str, random: Random) -> None:
        """Let the next commits of some workers be on their way when they fall asleep."""
        asleep: set[str] = set()
        nth = random.randint(1, 3)
        label = random.choice(
            ("store.put_if_absent begins", "store.put_if_absent begins", "store.put_if_absent sent")
        )
        sent: Counter[tuple[str, str]] = Counter()

        def fall(task) -> None:
            if not self.is_dusk:
                return
            self.world.at(label, fall)
            if task.name != "commit":
                return
            sent[task.host.name, str(task.detail)] += 1
            if kind == "late":
                # The first PUT is on the wire for days; it stops when it is sent again.
                self.world.enable("store.slow", 1 if random.random() < 0.9 else 0)
                is_time = sent[task.host.name, str(task.detail)] == 2
            else:
                is_time = sum(sent.values()) >= nth
            if is_time and task.host.name not in asleep:
                asleep.add(task.host.name)
                self.world.heal()
                task.host.pause(3 * DAY_MS + 60_000)

        if kind != "absence":
            self.world.at(label, fall)
        if kind == "late" and label.endswith("begins"):
            self.world.later(0, lambda: self.world.enable("store.slow", 1))
        for _ in range(6):
            self.world.later(random.randrange(20_000), self._burst)

    def _while_they_sleep(self, random: Random) -> None:
        """The log goes on by other hands, gets a checkpoint, and is cleaned up after a day."""
        sim, world = self.sim, self.world
        self._pass(random.randint(1, 12) * HOUR_MS)
        for _ in range(random.randint(1, 4)):
            foreign.commit(sim, {"txn": {"appId": "at night", "version": 1}})
        if random.random() < 0.75:
            foreign.checkpoint(sim, hint=random.random() < 0.7)
        else:
            self._keep_house_in_the_morning(random)
        self._pass(DAY_MS + random.randint(1, 20) * HOUR_MS)
        entries_max = None if random.random() < 0.8 else random.randint(1, 20)
        cleaned = foreign.clean_up(sim, entries_max=entries_max)
        self.done["entries cleaned up"] += len(cleaned)
        if random.random() < 0.3 and sim.oracle.files:
            foreign.compact(sim)
        hosts = [worker.host for worker in sim.workers.values() if worker.is_up]
        # Not a minute longer: a worker that is awake for a day with nothing to do costs most of a run.
        if hosts:
            world.run(lambda: not all(host.paused for host in hosts), limit_ms=3 * DAY_MS)

    def _keep_house_in_the_morning(self, random: Random) -> None:
        """A checkpoint and a clean-up come just after a worker looked, and saw the old entries."""

        def keep() -> None:
            is_there = self.sim.oracle.version >= 0  # it may have been dropped since
            if is_there and not self.is_over and not self.is_quiet:
                foreign.checkpoint(self.sim)
                self.done["entries cleaned up"] += len(foreign.clean_up(self.sim))
                self.world.enable("store.read_failed", 0)

        def looked(task) -> None:
            if self.is_over:
                return
            if task.name != "commit":
                self.world.at("store.list ends", looked)
                return
            if "store.read_failed" not in self.cuts.without:
                self.world.enable("store.read_failed", 0.5)
            self.world.after_steps(random.randrange(40), keep)

        self.world.at("store.list ends", looked)

    def _absence(self, random: Random) -> None:
        """Nobody is there for a month; another engine keeps house by Delta's own rules."""
        foreign.checkpoint(self.sim)
        self._pass(31 * DAY_MS)
        foreign.commit(self.sim, {"txn": {"appId": "a month later", "version": 1}})
        foreign.checkpoint(self.sim)
        if foreign.vacuum(self.sim):
            self.done["foreign vacuum"] += 1
        if foreign.clean_up(self.sim, age_ms=foreign.LOG_RETENTION_MS):
            self.done["foreign clean-up"] += 1

    def _pass(self, duration_ms: int) -> None:
        """Let time pass, also where nobody is there to whom anything could happen."""
        self.world.later(duration_ms, lambda: None)
        self.world.run(limit_ms=duration_ms)

    def _restore_wires(self) -> None:
        self.sim.store.wire.slow_ms_min, self.sim.store.wire.slow_ms_max = 1, 600_000

    def when_quiet(self, action: Callable[[], None]) -> None:
        """Stop every worker, wait until nothing is on the wire, act, and start them again."""
        self.is_quiet = True
        for worker in self.sim.workers.values():
            if worker.is_up:
                worker.host.kill()
        waits_until_ms = self.world.now_ms + 700_000

        def look() -> None:
            flying = self.sim.store.wire.in_flight + self.sim.kafka.wire.in_flight
            if (flying or self.operator.is_busy) and self.world.now_ms < waits_until_ms:
                self.world.later(2_000, look)
                return
            if not flying and not self.operator.is_busy:
                action()
            self.is_quiet = False
            for number, name in enumerate(WORKERS):
                self.start_later(name, number * 500)

        self.world.later(1_000, look)


def sim_random(chaos: Chaos) -> Random:
    return chaos.sim.random


# --- what breaks: workers and brokers -----------------------------------------------------------


def _somebody(chaos: Chaos, random: Random):
    name = random.choice(WORKERS)
    return chaos.sim.workers[name] if chaos.is_up(name) else None


@event("kill or pause anywhere", share=0.9, times_max=6)
def _strike_anywhere(chaos: Chaos, random: Random) -> None:
    name = random.choice(WORKERS)
    how = random.choice(("kill", "kill", "pause", "long pause"))
    steps = random.randint(1, 60)
    chaos.world.after_steps(steps, lambda: chaos.strike(name, how, random))


@event("kill or pause at a point", share=0.8, times_max=5)
def _strike_at_point(chaos: Chaos, random: Random) -> None:
    label, how = random.choice(STRIKE_LABELS), random.choice(("kill", "pause", "long pause"))

    def hit(task) -> None:
        if task.host.name in chaos.sim.workers:
            chaos.strike(task.host.name, how, random)

    chaos.world.at(label, hit, nth=random.randint(1, 3))


@event("SIGTERM", times_max=3)
def _stop(chaos: Chaos, random: Random) -> bool | None:
    worker = _somebody(chaos, random)
    if worker is None:
        return False
    worker.stop()
    return None


@event("second SIGTERM", share=0.2)
def _stop_twice(chaos: Chaos, random: Random) -> bool | None:
    worker = _somebody(chaos, random)
    if worker is None:
        return False
    worker.stop()
    chaos.world.later(random.randint(1, 300), worker.stop)
    return None


@event("store outage")
def _store_outage(chaos: Chaos, random: Random) -> None:
    chaos.sim.store.wire.outage(random.randint(100, 90_000))


@event("Kafka outage")
def _kafka_outage(chaos: Chaos, random: Random) -> None:
    chaos.sim.kafka.wire.outage(random.randint(100, 90_000))


@event("clock jump")
def _clock_jump(chaos: Chaos, random: Random) -> bool | None:
    worker = _somebody(chaos, random)
    if worker is None:
        return False
    worker.host.clock.jump_ms(random.choice((-8 * DAY_MS, -HOUR_MS, HOUR_MS, 8 * DAY_MS)))
    return None


@event("zombie", share=0.3)
def _zombie(chaos: Chaos, random: Random) -> bool | None:
    worker = _somebody(chaos, random)
    if worker is None:
        return False
    worker.writer._consumer.isolate(random.randint(1_000, 120_000))
    return None


@event("group offsets changed", share=0.3)
def _group_offsets(chaos: Chaos, random: Random) -> bool | None:
    """By hand: deleted, behind, or far ahead. Nothing may read them."""
    committed = chaos.sim.group.committed
    if not committed:
        return False
    tp = random.choice(sorted(committed))
    if random.random() < 0.4:
        dict.clear(committed)
    else:
        dict.update(committed, {tp: random.choice((0, committed[tp] + 1_000))})
    return None


# --- what happens to the topic ------------------------------------------------------------------


@event("transaction", share=0.5, times_max=3)
def _transaction(chaos: Chaos, random: Random) -> bool | None:
    partition = random.randrange(chaos.sim.partitions)
    if partition in chaos.stands_still:
        return False
    chaos.sim.transaction(partition, random.randint(1, 4), aborts=random.random() < 0.5)
    return None


@event("topic compaction")
def _topic_compaction(chaos: Chaos, random: Random) -> None:
    chaos.sim.compact(random.randrange(chaos.sim.partitions))


@event("partitions added", share=0.25, times_max=1)
def _grow(chaos: Chaos, random: Random) -> bool | None:
    if chaos.stands_still:
        return False
    chaos.sim.partitions += random.randint(1, 2)
    chaos.sim.kafka.add_partitions(TOPIC, chaos.sim.partitions)
    return None


@event("retention", share=0.35)
def _retention(chaos: Chaos, random: Random) -> bool | None:
    """Delete what is old, also what nobody has read yet."""
    partition = random.randrange(chaos.sim.partitions)
    log = chaos.sim.kafka.log(TopicPartition(TOPIC, partition))
    if log.last_stable <= log.earliest:
        return False
    chaos.sim.retain(partition, random.randint(log.earliest + 1, log.last_stable))
    chaos.operator.expect("gap")
    return None


@event("topic truncated", share=0.15, times_max=1)
def _truncation(chaos: Chaos, random: Random) -> bool | None:
    """An unclean leader, while nobody reads: what was rewritten under a reader is beyond all help."""
    partition = random.randrange(chaos.sim.partitions)
    if chaos.is_quiet or chaos.stands_still or chaos.operator.is_busy:
        return False
    chaos.stands_still.add(partition)

    def truncate() -> None:
        log = chaos.sim.kafka.log(TopicPartition(TOPIC, partition))
        if log.last_stable == log.end and log.end > log.earliest:
            end = random.randint(max(log.earliest, log.end - 5), log.end - 1)
            chaos.sim.truncate(partition, end)
            chaos.operator.expect("truncated", partition)
        else:
            chaos.stands_still.discard(partition)

    chaos.when_quiet(truncate)
    return None


@event("topic created again", share=0.2, times_max=1)
def _recreation(chaos: Chaos, random: Random) -> bool | None:
    """The topic is deleted and created again; an operator adopts it."""
    if (
        chaos.is_quiet
        or chaos.stands_still
        or chaos.operator.is_busy
        or chaos.sim.oracle.version < 1
    ):
        return False
    chaos.stands_still.update(range(chaos.sim.partitions + 8))
    partition = random.randrange(chaos.sim.partitions)
    before = chaos.sim.kafka.log(TopicPartition(TOPIC, partition)).end
    chaos.sim.recreate_topic()
    if random.random() < 0.6:
        # Filled past where readers are: only its id tells the new topic from the old one.
        for _ in range(before + random.randint(1, 20)):
            chaos.sim.produce(partition)
    chaos.operator.expect("recreated")
    return None


# --- what others do to the table ----------------------------------------------------------------


@event("SEEK", share=0.5)
def _seek(chaos: Chaos, random: Random) -> bool | None:
    """An operator's seek, by the production code and under all faults."""
    return chaos.operator.seek_somewhere(random)


@event("SEEK under a commit in doubt", share=0.4)
def _seek_in_doubt(chaos: Chaos, random: Random) -> None:
    """A commit lands, its answer is lost, its sender stands still; a seek takes it back meanwhile."""
    sim, world = chaos.sim, chaos.world

    def lose(task) -> None:
        if chaos.is_over or task.name != "commit":
            world.at("store.put_if_absent begins", lose)
            return
        world.enable("store.lost_answer", 1)
        world.at("clock.sleep", stand_still)

    def stand_still(task) -> None:
        world.enable("store.lost_answer", 0)
        receipt = sim.oracle.receipts.get(sim.oracle.version)
        if chaos.is_over or task.name != "commit" or receipt is None or receipt["kind"] != "append":
            return
        foreign.seek_back(sim, sim.oracle.version)
        foreign.checkpoint(sim, hint=random.random() < 0.7)
        chaos.done["a commit in doubt was taken back"] += 1
        task.host.pause(random.randint(59_000, 90_000))

    world.at("store.put_if_absent begins", lose)


@event("foreign append")
def _foreign_append(chaos: Chaos, random: Random) -> bool | None:
    if chaos.sim.oracle.version < 0:
        return False
    foreign.append(chaos.sim, random.randrange(1000))
    return None


@event("foreign commit", share=0.8, times_max=20)
def _foreign_commit(chaos: Chaos, random: Random) -> bool | None:
    if chaos.sim.oracle.version < 0:
        return False
    version = chaos.sim.oracle.version
    foreign.commit(chaos.sim, {"txn": {"appId": "somebody else", "version": version}})
    return None


@event("table created again", share=0.12, times_max=1)
def _table_again(chaos: Chaos, random: Random) -> bool | None:
    """The table is dropped while its workers are stopped, and made anew by the first to start."""
    if chaos.is_quiet or chaos.operator.is_busy or chaos.sim.oracle.version < 0:
        return False

    def drop() -> None:
        chaos.sim.check_acknowledged()
        for worker in chaos.sim.everybody:
            worker.host.kill()
        chaos.sim.past.clear()
        chaos.sim.workers.clear()
        chaos.sim.oracle.drop_table()
        chaos.done["table was dropped"] += 1

    chaos.when_quiet(drop)
    return None


# --- maintenance: the stand-ins of foreign.py; the production functions come here ---------------


@event("compaction", times_max=3)
def _compaction(chaos: Chaos, random: Random) -> bool | None:
    if not chaos.sim.oracle.files:
        return False
    foreign.compact(chaos.sim, files_max=random.choice((None, 2, 5)))
    return None


@event("vacuum's fence", times_max=3)
def _fence(chaos: Chaos, random: Random) -> bool | None:
    """What is behind the fence is deleted at once, or when a newer file waits for its commit."""
    if chaos.sim.oracle.version < 0:
        return False
    table, fenced = chaos.sim.oracle.metadata, foreign.raise_fence(chaos.sim) - 1

    def sweep(task: object = None) -> None:
        if not chaos.is_over and chaos.sim.oracle.metadata is table:
            foreign.sweep(chaos.sim, fenced)

    if random.random() < 0.5:
        sweep()
    else:
        chaos.world.later(random.randrange(10_000), lambda: chaos.world.at("store.put ends", sweep))
    return None


@event("checkpoint", share=0.6, times_max=3)
def _checkpoint(chaos: Chaos, random: Random) -> bool | None:
    if chaos.sim.oracle.version < 0:
        return False
    hint = random.random() < 0.7
    foreign.checkpoint(chaos.sim, hint=hint)
    chaos.struck["CP13 death"] += not hint
    return None


@event("clean-up", times_max=2)
def _clean_up(chaos: Chaos, random: Random) -> None:
    """By day nothing is old enough; that it is asked is what a broken clean-up is seen by.

    Sometimes a commit is just about to be sent to a place that would be cleaned up.
    """
    entries_max = random.choice((None, 3))
    if random.random() < 0.5:
        foreign.clean_up(chaos.sim, entries_max=entries_max)
        return

    def clean(task) -> None:
        if chaos.is_over or chaos.is_quiet or chaos.is_dusk or task.name != "commit":
            return
        for _ in range(2):
            version = chaos.sim.oracle.version
            foreign.commit(chaos.sim, {"txn": {"appId": "somebody else", "version": version}})
        foreign.checkpoint(chaos.sim)
        foreign.clean_up(chaos.sim)

    chaos.world.at("store.put_if_absent begins", clean)
