"""The simulated world itself: schedules from the seed, virtual time, kills, pauses, deadlocks."""

import gc
import hashlib
import io
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_sink.ports import Assigned, OutgoingRecord
from delta_sink.testing import (
    FakeKafka,
    FakeLeases,
    FakeRegistry,
    FakeStore,
    Killed,
    World,
    WorldError,
)
from tests.simulation.chaos import EVENTS


@pytest.fixture
def world():
    with World(7) as made:
        yield made


# --- determinism ------------------------------------------------------------------------------


class BusyWorker:
    """Uses every fake and survives every error."""

    def __init__(self, host, kafka, store, leases):
        self.host, self.kafka, self.store, self.leases = host, kafka, store, leases

    def run(self):
        consumer = self.kafka.consumer(self.host, "g", ["orders"])
        while True:
            polled = consumer.poll(3, 500)
            for event in polled.events:
                if isinstance(event, Assigned):
                    consumer.start(dict.fromkeys(event.partitions, 0))
            for records in polled.records:
                objects = self.store.client(self.host)
                self.attempt(objects.put, f"data/{self.host.entropy.unique_id()}", b"x")
                self.attempt(objects.put_if_absent, f"log/{records.offset_next}", b"x")
                consumer.commit({records.tp: records.offset_next})
            job = self.host.jobs.submit("letter", self.letter)
            while not job.is_done():
                self.host.jobs.wait_ms(50)
            self.attempt(self.store.client(self.host).list, "")

    def letter(self):
        letters = [OutgoingRecord(b"k", b"v"), OutgoingRecord(None, b"v")]
        self.attempt(self.kafka.producer(self.host).send, "letters", letters)
        self.attempt(self.leases.client(self.host).get, "lock")

    def attempt(self, method, *args):
        try:
            method(*args)
        except Exception as error:
            self.host.world.note("failed", error)


def busy_trace(seed: int) -> list[str]:
    """Return the trace of a run that uses every fake, with every fault, kills and pauses."""
    with World(seed) as world:
        store, kafka, leases = FakeStore(world), FakeKafka(world), FakeLeases(world)
        for topic in ("orders", "letters"):
            kafka.create_topic(topic, partitions=4)
        for name in world.declared:
            world.enable(name, 0.05)
        for number in range(3):
            host = world.host(f"w{number}", skew_ms=number * 1000)
            world.spawn(host, BusyWorker(host, kafka, store, leases).run)
        for number in range(40):
            kafka.produce("orders", number % 4, b"value")
        world.after_steps(200, lambda: world.hosts["w0"].kill())
        world.after_steps(300, lambda: world.hosts["w1"].pause(60_000))
        world.run(limit_ms=120_000)
        return world.trace


def digest(trace: list[str]) -> str:
    return hashlib.sha256("\n".join(trace).encode()).hexdigest()


def test_the_same_seed_gives_the_same_trace_and_another_seed_another():
    first = busy_trace(1)
    assert len(first) > 500
    assert busy_trace(1) == first
    assert len({digest(busy_trace(seed)) for seed in range(10)}) == 10


def test_the_trace_does_not_depend_on_the_hash_seed():
    script = (
        "import importlib.util as u, sys;"
        "s = u.spec_from_file_location('worldtest', sys.argv[1]);"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "print(m.digest(m.busy_trace(3)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script, __file__],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("0", "1", "4242")
    }
    assert found == {digest(busy_trace(3))}


def test_the_scheduler_finds_a_lost_update_in_some_seeds_and_not_in_others():
    def total(seed: int) -> int:
        with World(seed) as world:
            box = [0]

            def add():
                seen = box[0]
                world.switch("between")
                box[0] = seen + 1

            for name in ("a", "b"):
                world.spawn(world.host(name), add)
            world.run()
            return box[0]

    assert {total(seed) for seed in range(30)} == {1, 2}


# --- time -------------------------------------------------------------------------------------


def test_time_jumps_to_the_next_deadline(world):
    host = world.host("a")
    seen = []

    def sleeper():
        start_ms = host.clock.elapsed_ms()
        host.clock.sleep_ms(86_400_000)
        seen.append(host.clock.elapsed_ms() - start_ms)

    world.spawn(host, sleeper)
    assert world.run() == "done"
    assert 86_400_000 <= seen[0] <= 86_400_001
    assert world.steps < 5


def test_a_loop_that_never_blocks_still_sees_deadlines_pass(world):
    host = world.host("a")
    job_done = []

    def impatient():
        while not job_done:
            world.switch("spin")

    world.spawn(host, impatient)
    world.later(20, lambda: job_done.append(1))
    assert world.run(steps_max=5_000) == "done"


def test_clocks_differ_as_told_and_never_go_back(world):
    wrong = world.host("wrong", skew_ms=-3_600_000, drift_ppm=500)
    right = world.host("right")
    assert wrong.clock.wall_ms() - right.clock.wall_ms() == -3_600_000
    before = wrong.clock.elapsed_ms(), right.clock.elapsed_ms()
    world.spawn(right, lambda: right.clock.sleep_ms(1_000_000))
    world.run()
    passed = wrong.clock.elapsed_ms() - before[0], right.clock.elapsed_ms() - before[1]
    assert passed == (1_000_500, 1_000_000)
    wrong.clock.jump_ms(7_200_000)
    assert wrong.clock.wall_ms() - right.clock.wall_ms() == 3_600_000
    assert wrong.clock.elapsed_ms() - before[0] == 1_000_500


def test_run_ends_at_its_limit_or_when_its_condition_holds(world):
    host = world.host("a")

    def tick():
        while True:
            host.clock.sleep_ms(100)

    world.spawn(host, tick)
    assert world.run(limit_ms=1_000) == "limit"
    assert world.now_ms == 1_000
    assert world.run(until=lambda: world.now_ms >= 1_550, limit_ms=10_000) == "until"
    assert world.now_ms < 1_700


# --- hosts that suffer ------------------------------------------------------------------------


def test_a_killed_host_never_acts_again_not_even_in_finally(world):
    host, store = world.host("a"), FakeStore(world)
    seen = []

    def worker():
        try:
            while True:
                host.clock.sleep_ms(10)
        except Exception:
            seen.append("caught")
        finally:
            seen.append("unwound")
            store.client(host).put("late", b"")
            seen.append("acted")

    task = world.spawn(host, worker)
    world.run(limit_ms=100)
    host.kill()
    world.run(limit_ms=100)
    assert seen == ["unwound"]
    assert store.paths() == []
    assert isinstance(task.error, Killed)
    assert task.done


def test_a_task_can_kill_its_own_host_and_tasks_that_never_began_end_too(world):
    host = world.host("a")
    seen = []

    def first():
        host.kill()
        seen.append("alive")

    tasks = [world.spawn(host, first)]
    tasks += [world.spawn(host, first) for _ in range(3)]
    assert world.run() == "done"
    assert seen == []
    assert all(isinstance(task.error, Killed) for task in tasks)


def test_a_task_of_another_host_kills_and_goes_on(world):
    victim, killer = world.host("victim"), world.host("killer")
    seen = []
    world.spawn(victim, lambda: victim.clock.sleep_ms(1_000_000))

    def kill():
        killer.clock.sleep_ms(5)
        victim.kill()
        seen.append(world.now_ms)
        killer.clock.sleep_ms(5)
        seen.append(world.now_ms)

    world.spawn(killer, kill)
    assert world.run(limit_ms=1_000) == "done"
    assert seen == [5, 10]


def test_a_task_that_swallows_the_kill_is_an_error(world):
    host = world.host("a")

    def stubborn():
        while True:
            try:
                host.clock.sleep_ms(10)
            except BaseException:  # the mistake under test
                world.note("not me")

    world.spawn(host, stubborn)
    world.after_steps(3, host.kill)
    with pytest.raises(WorldError, match="catches Killed"):
        world.run(limit_ms=1_000)


def test_a_host_of_the_same_name_comes_back_with_other_ids_and_only_when_dead(world):
    host = world.host("a")
    with pytest.raises(WorldError, match="is alive"):
        world.host("a")
    first = [host.entropy.unique_id() for _ in range(3)]
    host.kill()
    with pytest.raises(WorldError, match="is dead"):
        world.spawn(host, lambda: None)
    again = world.host("a")
    assert (str(host), str(again)) == ("a", "a#2")
    second = [again.entropy.unique_id() for _ in range(3)]
    assert len({*first, *second}) == 6
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in second)
    with World(7) as same:
        assert [same.host("a").entropy.unique_id() for _ in range(1)] == first[:1]


def test_a_paused_host_stands_still_while_its_clock_and_the_others_go_on(world):
    paused, other = world.host("paused"), world.host("other")
    ticks = {"paused": [], "other": []}

    def tick(host):
        for _ in range(100):
            host.clock.sleep_ms(100)
            ticks[host.name].append(world.now_ms)

    start_ms = paused.clock.elapsed_ms()
    for host in (paused, other):
        world.spawn(host, lambda host=host: tick(host))
    world.later(1_050, lambda: paused.pause(5_000))
    world.run()
    assert [at for at in ticks["paused"] if 1_050 < at < 6_050] == []
    assert len([at for at in ticks["other"] if 1_050 < at < 6_050]) > 45
    assert len(ticks["paused"]) == 100
    assert paused.clock.elapsed_ms() - start_ms >= 15_000 - 100


def test_two_overlapping_pauses_end_with_the_later_one(world):
    host = world.host("a")
    seen = []
    world.spawn(host, lambda: (host.clock.sleep_ms(10), seen.append(world.now_ms)))
    host.pause(1_000)
    host.pause(200)
    world.run()
    assert seen[0] >= 1_000


def test_killing_a_paused_host_leaves_nothing_behind(world):
    host = world.host("a")
    world.spawn(host, lambda: host.clock.sleep_ms(10))
    world.later(5, lambda: host.pause(1_000))
    world.later(500, host.kill)
    assert world.run() == "done"
    assert host.tasks == []


def test_a_stalled_task_is_late_but_others_are_not(world):
    host = world.host("a")
    world.enable("world.stall", 0.2)

    def work():
        for _ in range(50):
            world.switch("step")

    for _ in range(3):
        world.spawn(host, work)
    assert world.run() == "done"
    assert world.met["world.stall"] > 5
    assert world.now_ms > 0


# --- what goes wrong in a run -----------------------------------------------------------------


def test_a_deadlock_names_every_task_and_where_it_is(world):
    host = world.host("a")
    world.spawn(host, lambda: world.block(None, "waits for nobody", 42), name="state")
    with pytest.raises(WorldError, match=r"deadlock(.|\n)*a:state blocked at waits for nobody 42"):
        world.run()


def test_a_livelock_is_an_error(world):
    host = world.host("a")

    def spin():
        while True:
            world.switch("spin")

    world.spawn(host, spin)
    with pytest.raises(WorldError, match="no end after"):
        world.run(steps_max=1_000)


def test_an_error_of_a_task_ends_the_run_unless_it_was_expected(world):
    host = world.host("a")

    def fail():
        world.switch("x")
        raise ValueError("broken")

    task = world.spawn(host, fail, may_fail=(ValueError,))
    assert world.run() == "done"
    assert str(task.error) == "broken"
    world.spawn(host, fail)
    with pytest.raises(ValueError, match="broken"):
        world.run()


def test_an_error_of_something_that_lands_ends_the_run(world):
    def violated():
        raise AssertionError("version 3: an offset twice")

    world.later(5, violated)
    with pytest.raises(AssertionError, match="version 3"):
        world.run()


def test_misuse_is_refused(world):
    host = world.host("a")
    with pytest.raises(WorldError, match=r"no fault is named store\.lost"):
        world.enable("store.lost", 1)
    with pytest.raises(WorldError, match="declare it first"):
        world.meet("store.lost")
    with pytest.raises(WorldError, match="only a task can wait"):
        world.block(1, "x")
    world.spawn(host, world.run)
    with pytest.raises(WorldError, match="called from a task"):
        world.run()


def test_closing_ends_every_task():
    with World(1) as world:
        host = world.host("a")
        tasks = [world.spawn(host, lambda: host.clock.sleep_ms(1_000)) for _ in range(3)]
        world.run(limit_ms=10)
    assert all(task.done for task in tasks)


# --- jobs -------------------------------------------------------------------------------------


def test_a_job_runs_beside_its_worker_and_wakes_it(world):
    host = world.host("a")
    seen = []

    def worker():
        slow = host.jobs.submit("slow", lambda: (host.clock.sleep_ms(50), "slow")[1])
        quick = host.jobs.submit("quick", lambda: (host.clock.sleep_ms(10), "quick")[1])
        assert not slow.is_done()
        with pytest.raises(AssertionError, match="before it is done"):
            slow.result()
        host.jobs.wait_ms(1_000)
        seen.append((world.now_ms, quick.result(), slow.is_done()))
        host.jobs.wait_ms(5)
        seen.append((world.now_ms, slow.is_done()))
        while not slow.is_done():
            host.jobs.wait_ms(1_000)
        seen.append((world.now_ms, slow.result()))

    world.spawn(host, worker)
    world.run()
    assert seen == [(10, "quick", False), (15, False), (50, "slow")]


def test_a_job_that_ended_before_the_wait_is_not_missed(world):
    host = world.host("a")
    waited = []

    def worker():
        host.jobs.submit("quick", lambda: 1)
        host.clock.sleep_ms(100)
        before_ms = world.now_ms
        host.jobs.wait_ms(10_000)
        waited.append(world.now_ms - before_ms)
        host.jobs.wait_ms(10_000)
        waited.append(world.now_ms - before_ms)

    world.spawn(host, worker)
    world.run()
    assert waited == [0, 10_000]


def test_a_job_raises_where_its_result_is_asked_for(world):
    host = world.host("a")

    def worker():
        job = host.jobs.submit("bad", lambda: 1 // 0)
        while not job.is_done():
            host.jobs.wait_ms(10)
        with pytest.raises(ZeroDivisionError):
            job.result()
        return "went on"

    task = world.spawn(host, worker)
    world.run()
    assert task.result == "went on"


def test_wake_ends_a_wait(world):
    host = world.host("a")
    task = world.spawn(host, lambda: (host.jobs.wait_ms(60_000), world.now_ms)[1])
    world.later(30, host.jobs.wake)
    world.run()
    assert task.result == 30


# --- directed tests ---------------------------------------------------------------------------


def test_an_action_happens_at_the_nth_arrival_at_a_switch_point(world):
    host = world.host("a")
    seen = []

    def worker():
        for number in range(5):
            seen.append(number)
            world.switch("commit", number)

    world.at("commit", lambda task: task.host.kill(), nth=3)
    world.spawn(host, worker)
    world.run()
    assert seen == [0, 1, 2]


def test_an_action_happens_after_a_number_of_steps(world):
    host = world.host("a")
    seen = []

    def worker():
        for number in range(50):
            world.switch("x", number)
            seen.append(number)

    world.spawn(host, worker)
    world.after_steps(11, host.kill)
    world.run()
    assert seen == list(range(10))


def test_telemetry_remembers_what_a_living_host_says(world):
    host = world.host("a")
    host.telemetry.event("commit", level="info", version=3)
    host.telemetry.count("rows", 5, topic="orders")
    host.telemetry.count("rows", 2, topic="orders")
    host.telemetry.gauge("lag", 9)
    host.telemetry.observe("latency", 0.5)
    host.kill()
    host.telemetry.event("commit", version=4)
    host.telemetry.count("rows", 1, topic="orders")
    assert host.telemetry.named("commit") == [{"version": 3}]
    assert host.telemetry.counts["rows", ("topic", "orders")] == 7
    assert host.telemetry.gauges[("lag",)] == 9
    assert host.telemetry.observations[("latency",)] == [0.5]


# --- the docs ---------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


def examples():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
def test_the_examples_of_the_docs_run(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "\n".join(examples()[: number + 1]) if number else examples()[0]
    events = dict(EVENTS)
    try:
        exec(compile(source, f"{PAGE}, example {number + 1}", "exec"), {"__name__": "example"})
    finally:
        EVENTS.clear()  # what an example adds must not change the seeds of other tests
        EVENTS.update(events)


def test_the_docs_name_every_fault_and_every_switch_point_that_a_test_would_use():
    page = PAGE.read_text()
    with World(1) as world:
        for fake in (FakeStore, FakeKafka, FakeLeases, FakeRegistry):
            fake(world)
        missing = [name for name in world.declared if f"`{name.partition('.')[2]}`" not in page]
    assert missing == []
    labels = {line.split(maxsplit=2)[2] for line in busy_trace(1)}
    named = re.findall(r"`((?:store|consumer|producer|leases)\.[a-z_]+ [a-z]+)`", page)
    assert len(named) > 5
    assert [name for name in named if not any(label.startswith(name) for label in labels)] == []


class _File(io.BytesIO):
    """A file that knows its world, as one of a store does."""

    def __init__(self, data, world):
        super().__init__(data)
        self.world = world


def test_a_world_that_is_over_is_let_go():
    """Also where a task failed whose frame holds a reader of Arrow's: through it no cycle is seen."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), buffer)

    def read(world):
        reader = pq.ParquetFile(_File(buffer.getvalue(), world))
        raise ValueError(reader.metadata.num_rows)

    def run():
        with World(0) as world:
            task = world.spawn(world.host("a"), lambda: read(world), may_fail=(ValueError,))
            world.run()
            assert task.error.args == (1,)
        return weakref.ref(world)

    over = run()
    gc.collect()
    assert over() is None
