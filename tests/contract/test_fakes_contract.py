"""The contract suites on the fakes, each test as a task of a world, so that every wait is real.

Tests of a suite that race threads are left out: a world has no threads. In their place tasks race
here, under many schedules.
"""

from __future__ import annotations

import functools
import inspect

import pytest

from delta_sink.ports import Created, Item
from delta_sink.testing import FakeKafka, FakeLeases, FakeStore, World
from tests.contract.consumer_contract import KafkaContract
from tests.contract.lease_contract import LeaseContract
from tests.contract.store_contract import StoreContract
from tests.contract.system_contract import (
    ClockContract,
    EntropyContract,
    JobsContract,
    TelemetryContract,
)

SEEDS = range(40)


def in_world(suite, *, without_threads):
    """Let every test of `suite` run as a task; leave out those that start threads themselves."""

    def decorate(cls):
        for name, test in inspect.getmembers(suite, inspect.isfunction):
            if name in without_threads:
                setattr(cls, name, None)
            elif name.startswith("test_"):
                setattr(cls, name, as_task(test))
        return cls

    return decorate


def as_task(test):
    @functools.wraps(test)
    def run(self, *args, **kwargs):
        self.world.spawn(self.host, lambda: test(self, *args, **kwargs))
        assert self.world.run() == "done"

    return run


class InWorld:
    @pytest.fixture(autouse=True)
    def _world(self):
        with World(1) as self.world:
            self.host = self.world.host("a")
            yield


@in_world(
    StoreContract,
    without_threads={
        "test_list_of_more_than_a_page",
        "test_list_shows_what_was_acknowledged",
        "test_threads_race_and_one_wins",
        "test_readers_never_see_half",
    },
)
class TestFakeStore(InWorld, StoreContract):
    @pytest.fixture
    def store(self, _world):
        return FakeStore(self.world).client(self.host)


@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_race_for_names_in_the_store_and_one_wins(seed):
    with World(seed) as world:
        shared = FakeStore(world)
        won = {}

        def race(host):
            store = shared.client(host)
            for number in range(10):
                path = f"log/{number:04d}"
                if isinstance(store.put_if_absent(path, host.name.encode()), Created):
                    won.setdefault(path, []).append(host.name)
                assert path in {info.path for info in store.list("log")}

        for name in ("a", "b", "c"):
            host = world.host(name)
            world.spawn(host, lambda host=host: race(host))
        world.run()
        assert {path: [shared.peek(path).decode()] for path in shared.paths()} == won
        assert len(won) == 10


@in_world(
    LeaseContract,
    without_threads={
        "test_threads_race_for_new_keys",
        "test_threads_race_to_replace",
        "test_threads_count_together",
    },
)
class TestFakeLeases(InWorld, LeaseContract):
    @pytest.fixture
    def leases(self, _world):
        return FakeLeases(self.world).client(self.host)


@pytest.mark.parametrize("seed", SEEDS)
def test_tasks_count_together_in_the_lease_store(seed):
    with World(seed) as world:
        shared = FakeLeases(world)

        def count(host):
            leases, done = shared.client(host), 0
            while done < 5:
                before = leases.get("counter")
                number = 0 if before is None else before.attributes["n"]
                done += leases.put(Item("counter", {"n": number + 1}), before)

        for name in ("a", "b", "c"):
            host = world.host(name)
            world.spawn(host, lambda host=host: count(host))
        world.run()
        assert shared.items()["counter"] == Item("counter", {"n": 15})


class SimulatedKafka:
    """`KafkaWorld` on the fake cluster. Each client has a host of its own."""

    def __init__(self, world, protocol):
        self.world = world
        self.fake = FakeKafka(world)
        self.protocol = protocol
        self.hosts = 0
        self.create_topic("orders", 2)

    def create_topic(self, name, partitions):
        self.fake.create_topic(name, partitions)

    def produce(self, tp, records):
        for record in records:
            self.fake.produce(
                tp.topic,
                tp.partition,
                record.value,
                key=record.key,
                headers=record.headers,
                timestamp_ms=record.timestamp_ms,
            )

    def transact(self, tp, records):
        transaction = self.fake.transaction()
        for record in records:
            transaction.produce(tp.topic, tp.partition, record.value)
        transaction.commit()

    def drop_first_records(self, tp):
        for _ in range(10):
            self.fake.produce(tp.topic, tp.partition, b"later")
        self.fake.retain_from(tp.topic, tp.partition, 5)
        return 5

    def consumer(self, group, topics=("orders",), pattern=None, *, columns=True):
        self.fake.group(group).protocol = self.protocol
        return self.fake.consumer(
            self.host(),
            group,
            topics,
            pattern=pattern,
            with_timestamps=columns,
            with_keys=columns,
            with_headers=columns,
        )

    def producer(self):
        return self.fake.producer(self.host())

    def broker(self):
        return self.fake.broker(self.host())

    def host(self):
        self.hosts += 1
        return self.world.host(f"client{self.hosts}")


@in_world(KafkaContract, without_threads=())
class TestFakeKafka(InWorld, KafkaContract):
    @pytest.fixture
    def kafka(self, _world):
        return SimulatedKafka(self.world, "cooperative")


@in_world(KafkaContract, without_threads=())
class TestFakeKafkaWithEagerRebalances(InWorld, KafkaContract):
    @pytest.fixture
    def kafka(self, _world):
        return SimulatedKafka(self.world, "eager")


@in_world(KafkaContract, without_threads=())
class TestFakeKafkaWithShortReads(InWorld, KafkaContract):
    @pytest.fixture
    def kafka(self, _world):
        kafka = SimulatedKafka(self.world, "cooperative")
        self.world.enable("kafka.short_read", 0.3)
        return kafka


# --- the machine --------------------------------------------------------------------------------


@in_world(ClockContract, without_threads=())
class TestFakeClock(InWorld, ClockContract):
    @pytest.fixture
    def clock(self, _world):
        return self.host.clock


class TestFakeClockThatIsWrong(TestFakeClock):
    """Wrong by days and fast by half a thousandth, as in the simulation."""

    @pytest.fixture
    def clock(self, _world):
        self.host = self.world.host("wrong", skew_ms=8 * 86_400_000, drift_ppm=500)
        return self.host.clock


@in_world(EntropyContract, without_threads=())
class TestFakeEntropy(InWorld, EntropyContract):
    @pytest.fixture
    def entropy(self, _world):
        return self.host.entropy


@in_world(JobsContract, without_threads=())
class TestFakeJobs(InWorld, JobsContract):
    @pytest.fixture
    def jobs(self, _world):
        return self.host.jobs

    @pytest.fixture
    def clock(self, _world):
        return self.host.clock


@in_world(TelemetryContract, without_threads=())
class TestFakeTelemetry(InWorld, TelemetryContract):
    @pytest.fixture
    def telemetry(self, _world):
        return self.host.telemetry

    def events(self, telemetry):
        return [(name, level, fields) for _, name, level, fields in telemetry.events]

    def counted(self, telemetry, metric, **tags):
        key = (metric, *tags.items())
        return telemetry.counts[key] if key in telemetry.counts else telemetry.gauges[key]

    def observed(self, telemetry, metric, **tags):
        found = telemetry.observations[metric, *tags.items()]
        return len(found), sum(found)
