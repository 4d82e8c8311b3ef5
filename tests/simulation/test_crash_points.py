"""A writer dies, fails or stands still at each point of its pipeline, and nothing is lost or doubled.

Each test brings the first worker to exactly one point, proves from the outside that it was there,
breaks it, and lets a second worker and a restarted first one go on. What then must hold is judged
by the oracle at every log version, and by `finish` in the end.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from delta_sink.decode.json import JsonDecoder
from delta_sink.errors import FatalError
from delta_sink.model import Records
from delta_sink.report import Reporter
from delta_sink.testing.wire import Wire
from delta_sink.writer import Writer
from tests.simulation.harness import LETTERS, Simulation, simulation

SEEDS = range(3)
SESSION_MS = 45_000
ZOMBIE_MS = 2 * SESSION_MS
"""Past the session, and past the minute after which knowledge of the log counts for nothing."""

HOW = ["kill", "raise", "pause"]


class Crash(FatalError):
    """What an injected failure raises; the process ends with it."""


class TimedWire(Wire):
    """A wire on which the next log entry takes exactly as long as a test says, and arrives."""

    delay_ms: int | None = None

    def _write_delay(self, detail):
        if self.delay_ms is not None and str(detail).startswith("_delta_log/"):
            delay_ms, self.delay_ms = self.delay_ms, None
            return delay_ms
        return super()._write_delay(detail)

    def arrives(self, request):
        self._world.meet("store.late", request.detail) if request.given_up else None
        return True


@dataclass
class Point:
    """Where the first worker was broken, as the outside saw it then."""

    sim: Simulation
    hits: int = 0

    def when(
        self, label: str, how: str, *, where: Callable = lambda task: True, seen: Callable
    ) -> None:
        """Break w0 the first time one of its tasks comes to `label` and `where` holds."""

        def hit(task):
            if task.host.name != "w0" or not where(task):
                self.sim.world.at(label, hit)
                return
            self.hits += 1
            seen()
            self.strike(task.host, how)

        self.sim.world.at(label, hit)

    def strike(self, host, how: str) -> None:
        if how == "kill":
            host.kill()
        elif how == "raise":
            raise Crash("injected")
        else:
            host.pause(ZOMBIE_MS)

    @property
    def was_hit(self) -> bool:
        return self.hits == 1


def go_on(sim: Simulation, point: Point, how: str) -> None:
    """Wait for the blow; then others go on, and the first one is started again."""
    w0 = sim.workers["w0"]
    sim.run(lambda: point.was_hit)
    if how == "kill":
        assert w0.host.dead
    elif how == "raise":
        sim.run(lambda: w0.task.done)
        assert isinstance(w0.task.error, Crash)
    else:
        assert w0.host.paused
    sim.start("w1")
    sim.fill(6)
    sim.run_for(20_000)
    if how == "pause":
        sim.run(lambda: not w0.host.paused)
        sim.run_for(5_000)
    else:
        sim.start("w0")
    sim.fill(6)
    assert sim.finish() > 0
    assert sim.oracle.commits >= 2


def filled(seed: int):
    """Return a simulation with records of every kind that waits for its first worker."""
    context = simulation(seed, partitions=2)
    sim = context.__enter__()
    sim.store.wire = TimedWire(sim.world, "store", sim.store.wire._error)
    sim.fill(10)
    for partition in (0, 1):
        sim.produce(partition, "bad")
        sim.produce(partition, "tombstone")
    sim.fill(2)
    return context, sim


@pytest.fixture(params=SEEDS)
def sim(request):
    context, made = filled(request.param)
    yield made
    context.__exit__(None, None, None)


def files(sim: Simulation) -> list[str]:
    return [path for path in sim.store.paths() if path.startswith("part-")]


def letters(sim: Simulation) -> int:
    return len(sim.kafka.records(LETTERS, 0))


def consumed(sim: Simulation) -> float:
    counts = sim.workers["w0"].host.telemetry.counts
    return counts["delta_sink_consumed_records_total", ("topic", "orders")]


def in_job(name: str) -> Callable:
    return lambda task: task.name == name


# --- CP1 to CP5: nothing of the batch is in the log yet -------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_cp1_after_poll_before_decode(sim, how):
    point = Point(sim)

    def seen():
        assert consumed(sim) > 0
        assert (files(sim), letters(sim), sim.oracle.commits) == ([], 0, 0)

    point.when("jobs.submit begins", how, where=lambda task: task.detail == "decode", seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.mark.parametrize("how", HOW)
def test_cp2_in_the_middle_of_decoding(sim, how, monkeypatch):
    point = Point(sim)
    decode = JsonDecoder.decode

    def half(self, chunk):
        host = sim.world.task().host
        if point.hits or host.name != "w0":
            return decode(self, chunk)
        point.hits += 1
        [first, *_] = chunk
        cut = len(first) // 2
        assert cut >= 1
        begun = decode(self, [head_of(first, cut)])
        assert begun.rows.num_rows > 0
        assert (files(sim), letters(sim), sim.oracle.commits) == ([], 0, 0)
        point.strike(host, how)
        sim.world.switch("decode goes on")
        return decode(self, chunk)

    monkeypatch.setattr(JsonDecoder, "decode", half)
    sim.start("w0")
    go_on(sim, point, how)


def head_of(records: Records, count: int) -> Records:
    return Records(
        records.tp,
        records.offsets[count],
        records.offsets[:count],
        records.values[:count],
        records.timestamps_ms[:count],
        records.keys[:count],
        records.headers[:count],
        produced_first_ms=records.produced_first_ms,
    )


@pytest.mark.parametrize("how", HOW)
def test_cp3_dead_letters_written_data_not(sim, how):
    point = Point(sim)

    def seen():
        assert letters(sim) == 2
        assert (files(sim), sim.oracle.commits) == ([], 0)

    point.when("producer.send ends", how, seen=seen)
    sim.start("w0")
    go_on(sim, point, how)
    if how != "pause":
        assert letters(sim) > 2  # at least once; the ones of the dropped plan are in no commit


@pytest.mark.parametrize("how", HOW)
def test_cp3_reversed_data_is_never_written_before_the_dead_letters(sim, how):
    """The reverse cannot happen: where the letters are not out, there are no files either."""
    point = Point(sim)

    def seen():
        assert (files(sim), letters(sim), sim.oracle.commits) == ([], 0, 0)

    point.when("producer.send begins", how, seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.mark.parametrize("how", HOW)
def test_cp3_the_letters_land_only_after_the_blow(sim, how):
    point = Point(sim)
    point.when("producer.send sent", how, seen=lambda: None)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.mark.parametrize("how", HOW)
def test_cp4_while_the_data_file_is_on_its_way(sim, how):
    """A part of the object may be left on stores that have such; no commit ever names it."""
    point = Point(sim)
    torn: list[str] = []

    def path_of(task):
        torn.append(str(task.detail))
        return True

    def seen():
        assert (files(sim), sim.oracle.commits) == ([], 0)
        if how == "kill":
            sim.store.write(torn[0], b"PAR1 and no more")

    where = path_of if how == "kill" else lambda task: True
    point.when("store.put begins", how, where=where, seen=seen)
    sim.start("w0")
    go_on(sim, point, how)
    for path in torn:
        assert path not in sim.oracle.live


@pytest.mark.parametrize("how", HOW)
def test_cp4_between_two_files_of_one_batch(seed_partitioned, how):
    sim = seed_partitioned
    point = Point(sim)

    def seen():
        assert len(data_files(sim)) >= 1
        assert sim.oracle.commits == 0

    point.when("store.put begins", how, where=lambda task: bool(data_files(sim)), seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.fixture(params=SEEDS)
def seed_partitioned(request):
    config = "table: {partition_by: [text]}"
    with simulation(request.param, partitions=2, config=config) as made:
        made.fill(10)
        yield made


def data_files(sim: Simulation) -> list[str]:
    return [path for path in sim.store.paths() if "/part-" in path]


@pytest.mark.parametrize("how", HOW)
def test_cp5_data_durable_commit_not_sent(sim, how):
    point = Point(sim)

    def seen():
        assert len(files(sim)) == 1
        assert sim.oracle.commits == 0

    point.when("store.put_if_absent begins", how, where=in_job("commit"), seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


# --- CP6 to CP8: the commit itself ----------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("delay_ms", [10, 20_000, 46_500, 50_000, 70_000, 300_000])
def test_cp6_sent_and_lands_late(sim, how, delay_ms):
    """It lands before, while or after the successor commits the same offsets; one of them wins."""
    point = Point(sim)

    def slow_down(task):
        sim.store.wire.delay_ms = delay_ms
        return False

    def seen():
        assert len(files(sim)) == 1
        assert sim.oracle.commits == 0

    point.when("store.put_if_absent begins", how, where=commit_once(slow_down), seen=seen)
    point.when("store.put_if_absent sent", how, where=in_job("commit"), seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


def commit_once(action: Callable) -> Callable:
    """Call `action` at the first commit; never say that the point was reached."""
    done: list[bool] = []

    def where(task):
        if task.name == "commit" and not done:
            done.append(True)
            action(task)
        return False

    return where


def test_cp6_happens_in_both_orders():
    """Of the late PUTs above some win against the successor and some lose."""
    winners = set()
    for seed in range(6):
        for delay_ms in (20_000, 300_000):
            context, sim = filled(seed)
            point = Point(sim)

            def slow_down(task, sim=sim, delay_ms=delay_ms):
                sim.store.wire.delay_ms = delay_ms

            point.when("store.put_if_absent begins", "kill", where=commit_once(slow_down), seen=int)
            point.when("store.put_if_absent sent", "kill", where=in_job("commit"), seen=int)
            first = sim.start("w0")
            worker = first.writer._worker_id
            go_on(sim, point, "kill")
            appended = [r["worker"] for r in sim.oracle.receipts.values() if r["kind"] == "append"]
            winners.add(appended[0] == worker)
            context.__exit__(None, None, None)
    assert winners == {True, False}


LOST = ["500 after apply", "reset after apply", "timed out"]


def lose_the_answer(sim: Simulation, how: str) -> Callable:
    """Let the first commit be applied and its answer lost in this way."""

    def action(task):
        if how == "timed out":
            sim.store.wire.delay_ms = sim.store.wire.timeout_ms + 5
        else:
            name = "store.error_after" if how.startswith("500") else "store.lost_answer"
            sim.world.enable(name, 1)
            sim.world.at("clock.sleep", lambda _: sim.world.heal())

    return action


@pytest.mark.parametrize("lost", LOST)
def test_cp7_applied_and_the_reply_lost(sim, lost):
    """The worker lives, asks the log, and knows its own commit; nothing is written twice."""
    point = Point(sim)
    point.when(
        "store.put_if_absent begins",
        "kill",
        where=commit_once(lose_the_answer(sim, lost)),
        seen=lambda: None,
    )
    w0 = sim.start("w0")
    sim.run(lambda: sim.is_complete)
    sim.run(lambda: len(w0.committed) == sim.oracle.commits)
    fault = {"500": "store.error_after", "res": "store.lost_answer", "tim": "store.late"}[lost[:3]]
    assert sim.world.met[fault] >= 1
    assert len(w0.named("commit_retried")) >= 1
    assert w0.named("resynced") == []
    assert len(files(sim)) == sim.oracle.commits
    sim.finish()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("lost", LOST)
def test_cp7_applied_the_reply_lost_and_broken_before_it_asks_again(sim, lost, how):
    point = Point(sim)

    def seen():
        assert sim.workers["w0"].committed == []
        if lost != "timed out":
            assert sim.oracle.commits == 1

    point.when(
        "store.put_if_absent begins",
        how,
        where=commit_once(lose_the_answer(sim, lost)),
        seen=seen,
    )
    point.when("clock.sleep", how, where=in_job("commit"), seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.mark.parametrize("how", HOW)
def test_cp7_applied_and_broken_before_the_reply(sim, how):
    point = Point(sim)

    def seen():
        assert sim.oracle.commits == 1
        assert sim.workers["w0"].committed == []

    point.when("store.put_if_absent ends", how, where=in_job("commit"), seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


def another_append(sim: Simulation) -> None:
    sim.foreign_commit({"txn": {"appId": "another sink/other/0", "version": 3}})


def compaction(sim: Simulation) -> None:
    if sim.oracle.live:
        sim.foreign_compaction()
    else:
        another_append(sim)


def fence(sim: Simulation) -> None:
    sim.foreign_fence()


MEANWHILE = [another_append, compaction, fence]


@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("lost", [*LOST, "never arrived"])
def test_cp8_another_commit_lands_before_the_retry(sim, lost, meanwhile):
    point = Point(sim)
    did: list[bool] = []

    def lose(task):
        if lost == "never arrived":
            sim.world.enable("store.lost_request", 1)
            sim.world.at("clock.sleep", lambda _: sim.world.heal())
        else:
            lose_the_answer(sim, lost)(task)

    def while_it_waits(task):
        if task.name != "commit":
            sim.world.at("clock.sleep", while_it_waits)
            return
        if lost == "timed out":  # it lands a little after its sender gave up
            sim.world.later(6, act)
        else:
            act()

    def act():
        assert sim.oracle.commits == (0 if lost == "never arrived" else 1)
        did.append(True)
        meanwhile(sim)

    sim.world.at("clock.sleep", while_it_waits)
    point.when("store.put_if_absent begins", "kill", where=commit_once(lose), seen=int)
    w0 = sim.start("w0")
    sim.run(lambda: sim.is_complete and bool(did))
    sim.run(lambda: len(w0.committed) == sim.oracle.commits)
    if lost == "never arrived" and meanwhile is fence:
        # The fence took the place of the entry and the files with it: read and uploaded again.
        assert len(w0.named("resynced")) == 1
    else:
        assert w0.named("resynced") == []
    sim.finish()


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_cp8_killed_and_another_commit_lands_first(sim, meanwhile):
    point = Point(sim)

    def seen():
        assert sim.oracle.commits == 1
        meanwhile(sim)

    point.when("store.put_if_absent ends", "kill", where=in_job("commit"), seen=seen)
    sim.start("w0")
    go_on(sim, point, "kill")


# --- CP9 to CP12: acknowledged --------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW)
def test_cp9_acknowledged_and_not_taken_note_of(sim, how, monkeypatch):
    point = Point(sim)
    on_committed = Writer._on_committed

    def broken(self, state, sealed):
        host = sim.world.task().host
        if not point.hits and host.name == "w0":
            point.hits += 1
            assert sim.oracle.commits == 1
            assert state.version == sim.oracle.version
            assert self._state.version < state.version
            point.strike(host, how)
            sim.world.switch("goes on")
        on_committed(self, state, sealed)

    monkeypatch.setattr(Writer, "_on_committed", broken)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("label", ["consumer.commit begins", "consumer.commit ends"])
def test_cp11_and_cp12_around_the_groups_offsets(sim, how, label):
    """Before and after: Kafka's offsets lag behind or are right, and nothing reads them."""
    point = Point(sim)

    def seen():
        assert sim.workers["w0"].committed == []
        assert any(
            sim.group.committed.get(tp, 0) < sim.txn(tp.partition) for tp in sim.group.owners
        )

    point.when(label, how, where=lambda task: sim.oracle.commits == 1, seen=seen)
    sim.start("w0")
    go_on(sim, point, how)


@pytest.mark.parametrize("how", HOW)
def test_cp12_the_groups_offsets_have_arrived(sim, how, monkeypatch):
    point = Point(sim)
    report = Reporter.committed

    def broken(self, *args):
        host = sim.world.task().host
        if not point.hits and host.name == "w0":
            sim.world.sleep_ms(100, "lets them arrive")
            point.hits += 1
            assert all(sim.group.committed[tp] == sim.txn(tp.partition) for tp in sim.group.owners)
            assert sim.workers["w0"].committed == []
            point.strike(host, how)
            sim.world.switch("goes on")
        report(self, *args)

    monkeypatch.setattr(Reporter, "committed", broken)
    sim.start("w0")
    go_on(sim, point, how)


# --- zombies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause_ms", [ZOMBIE_MS, 400_000])
@pytest.mark.parametrize("job", ["decode", "put", "commit"])
def test_a_zombie_commits_nothing(sim, job, pause_ms):
    """Paused with a batch in its hands; another takes over and commits it; then it wakes."""
    label = {"decode": "jobs.submit begins", "put": "store.put begins"}.get(
        job, "store.put_if_absent begins"
    )
    paused: list[int] = []

    def hit(task):
        if task.host.name != "w0" or job not in (task.name, task.detail):
            sim.world.at(label, hit)
            return
        paused.append(sim.oracle.version)
        task.host.pause(pause_ms)

    sim.world.at(label, hit)
    w0 = sim.start("w0")
    sim.run(lambda: bool(paused))
    sim.start("w1")
    sim.run(lambda: sim.is_complete)
    assert w0.host.paused, "it was over before the zombie woke"
    before = set(sim.oracle.receipts)
    sim.run(lambda: not w0.host.paused)
    sim.run_for(2_000)
    ours = w0.named("worker_started")[0]["worker"]
    woken = {v: r for v, r in sim.oracle.receipts.items() if v not in before}
    assert [r for r in woken.values() if r["worker"] == ours] == []
    assert "partitions_revoked" in w0.events
    assert sim.workers["w1"].committed
    sim.fill(6)
    sim.finish()


def test_a_zombie_that_goes_on_reading_is_fenced_and_joins_again(sim):
    """It is put out and not told: fenced twice, it leaves the group and comes back as new."""
    w0 = sim.start("w0")
    sim.run(lambda: sim.is_complete)
    sim.start("w1")
    sim.run(lambda: len(set(sim.group.owners.values())) == 2)
    consumer = w0.writer._consumer
    consumer.isolate(600_000)
    # Behind the group's back both read all partitions; every record goes to both.
    sim.run(lambda: set(sim.group.owners.values()) == {"w1"})
    for _ in range(300):
        sim.fill(4)
        sim.run_for(1_500)
        if w0.named("rejoined"):
            break
    assert len(w0.named("rejoined")) == 1
    assert sim.world.met["kafka.zombie"] > 0
    sim.finish()


def test_every_commit_says_whose_it_is(sim):
    sim.start("w0")
    sim.finish()
    for version, receipt in sim.oracle.receipts.items():
        text = sim.store.peek(f"_delta_log/{version:020d}.json").decode()
        assert receipt["commit_id"] in text
        assert json.loads(text.splitlines()[0])["commitInfo"]["engineInfo"].startswith("delta-sink")
