"""Presence, the paused state, and which commands were seen: alone, and with every fault."""

from __future__ import annotations

import contextlib
import json
from collections import Counter

import pytest

from delta_sink import seen
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.control import (
    Checkpoint,
    Command,
    Pause,
    Resume,
    Rules,
    encode_command,
    outcome_of,
    parse_command,
)
from delta_sink.control_message import Refusal
from delta_sink.errors import FatalError, RetriableError
from delta_sink.lease import Held, Lessee, Watch
from delta_sink.ports import Item
from delta_sink.presence import (
    APPLIED_MAX,
    PERIOD_MS,
    REUSE_AFTER_MS,
    Presence,
    apply_pause,
    leave,
    look,
    paused_state,
    publish,
)
from delta_sink.seen import (
    ENTRIES_MAX,
    KEEP_MS,
    SKEW_MS,
    Done,
    Running,
    begin,
    bucket_key,
    finish,
    renew_command,
)
from delta_sink.testing import FakeLeases, Host, World

TABLE = "s3://lake/orders"
DURATION_MS = 30_000


class Hands:
    """A clock and ids that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.wall_offset_ms = 1_800_000_000_000
        self.ids = 0

    def wall_ms(self) -> int:
        return self.wall_offset_ms + self.now_ms

    def elapsed_ms(self) -> int:
        return self.now_ms

    def sleep_ms(self, duration_ms: int) -> None:
        self.now_ms += duration_ms

    def unique_id(self) -> str:
        self.ids += 1
        return f"{self.ids:032x}"

    def fraction(self) -> float:
        return 0.5


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def store(tmp_path):
    leases = SqliteLeases(str(tmp_path / "locks.db"))
    yield leases
    leases.close()


def lessee(store, hands, name: str = "w1") -> Lessee:
    return Lessee(store, hands, hands, name, DURATION_MS)


# --- who is there --------------------------------------------------------------------------------


def a_worker(name: str, **change) -> Presence:
    return Presence(
        **{
            "worker": name,
            "role": "writer",
            "host": f"host-of-{name}",
            "since_ms": 7,
            "table": TABLE,
            **change,
        }
    )


def lives(found) -> dict[str, str]:
    return {sighting.presence.worker: sighting.life for sighting in found.values()}


def test_workers_are_listed_with_what_they_say(store, hands):
    publish(store, a_worker("w1", oldest_uncommitted_ms=99), None, now_ms=hands.wall_ms())
    publish(store, a_worker("w2", role="vacuum"), None, now_ms=hands.wall_ms())
    publish(store, a_worker("w3", table="s3://lake/orders2"), None, now_ms=hands.wall_ms())
    found = look(store, TABLE, {}, now_ms=hands.now_ms)
    assert [sighting.presence for sighting in found.values()] == [
        a_worker("w1", oldest_uncommitted_ms=99),
        a_worker("w2", role="vacuum"),
    ]
    assert {sighting.said_at_ms for sighting in found.values()} == {hands.wall_ms()}


def test_live_is_whose_beat_moves_and_stale_is_whose_does_not(store, hands):
    first = publish(store, a_worker("w1"), None, now_ms=hands.wall_ms())
    publish(store, a_worker("w2"), None, now_ms=hands.wall_ms())
    found = look(store, TABLE, {}, now_ms=hands.now_ms)
    assert lives(found) == {"w1": "unknown", "w2": "unknown"}, "one look tells nothing"
    for _ in range(3):
        hands.now_ms += PERIOD_MS
        # Its wall clock is years behind: that decides nothing.
        first = publish(store, a_worker("w1"), first, now_ms=5)
        assert lives(found)["w2"] == "unknown"
        found = look(store, TABLE, found, now_ms=hands.now_ms)
    assert lives(found) == {"w1": "live", "w2": "stale"}
    leave(store, first)
    assert lives(look(store, TABLE, found, now_ms=hands.now_ms)) == {"w1": "ended", "w2": "stale"}


def test_a_place_is_used_again(store, hands):
    first = publish(store, a_worker("w1"), None, now_ms=hands.wall_ms())
    second = publish(store, a_worker("w2"), None, now_ms=hands.wall_ms())
    assert first.item.key != second.item.key
    leave(store, first)
    third = publish(store, a_worker("w3"), None, now_ms=hands.wall_ms())
    assert third.item.key == first.item.key
    hands.now_ms += REUSE_AFTER_MS + 1
    third = publish(store, a_worker("w3"), third, now_ms=hands.wall_ms())
    fourth = publish(store, a_worker("w4"), None, now_ms=hands.wall_ms())
    assert fourth.item.key == second.item.key
    # w2 was only asleep: it finds its place taken, and takes another one.
    again = publish(store, a_worker("w2"), second, now_ms=hands.wall_ms())
    assert again.item.key not in (third.item.key, fourth.item.key)
    assert lives(look(store, TABLE, {}, now_ms=0)).keys() == {"w2", "w3", "w4"}


def test_many_restarts_leave_few_items(store, hands):
    for number in range(50):
        place = publish(store, a_worker(f"w{number}"), None, now_ms=hands.wall_ms())
        hands.now_ms += PERIOD_MS
        if number % 2:
            leave(store, place)
    assert len(store.scan("presence/")) < 40


@pytest.mark.parametrize("seed", range(30))
def test_presence_outlives_faults(seed):
    with World(seed) as world:
        store = FakeLeases(world)
        store.wire.timeout_ms = 3_000
        for name in ("lost_answer", "error_after", "lost_request", "throttled", "stale_scan"):
            world.enable(f"leases.{name}", 0.15)

        def publishing(host):
            place = None
            while True:
                try:
                    place = publish(
                        store.client(host), a_worker(host.name), place, now_ms=host.clock.wall_ms()
                    )
                except RetriableError:
                    host.clock.sleep_ms(500)
                    continue
                host.clock.sleep_ms(PERIOD_MS)

        for number in range(3):
            host = world.host(f"w{number}")
            world.spawn(host, lambda host=host: publishing(host))
        world.run(limit_ms=300_000)
        world.heal()
        world.run(limit_ms=120_000)
        observer = store.client(world.host("observer"))
        before = look(observer, TABLE, {}, now_ms=0)
        world.run(limit_ms=40_000)
        found = look(observer, TABLE, before, now_ms=40_000)
        # An answer lost at the first claim may leave an item behind: it is stale, and used again.
        living = [s.presence.worker for s in found.values() if s.life == "live"]
        assert sorted(living) == ["w0", "w1", "w2"]


# --- paused or not -------------------------------------------------------------------------------


def a_command(name: str, args=None, **change) -> Command:
    return Command(name, TABLE, args or Checkpoint(), **change)


def test_pause_and_resume(store, hands):
    mine = lessee(store, hands)
    assert paused_state(store, TABLE, "writer").sequence == 0
    pause = a_command("p1", Pause("writer"), issuer="ops")
    state, changed = apply_pause(mine, pause)
    assert changed
    assert (state.is_paused, state.sequence, state.command_id, state.issuer) == (
        True,
        1,
        "p1",
        "ops",
    )
    assert paused_state(store, TABLE, "writer") == state
    assert not paused_state(store, TABLE, "maintenance").is_paused
    assert apply_pause(mine, a_command("p2", Pause("writer"))) == (state, False)
    state, changed = apply_pause(mine, a_command("r1", Resume("writer")))
    assert (state.is_paused, state.sequence, changed) == (False, 2, True)


def test_a_pause_delivered_again_after_its_resume_changes_nothing(store, hands):
    mine = lessee(store, hands)
    pause, resume = a_command("p1", Pause("writer")), a_command("r1", Resume("writer"))
    apply_pause(mine, pause)
    after, _ = apply_pause(mine, resume)
    for command in (pause, resume, pause):
        assert apply_pause(mine, command) == (after, False)
    for number in range(APPLIED_MAX - 2):
        apply_pause(mine, a_command(f"x{number}", Resume("writer")))
    assert apply_pause(mine, pause) == (after, False)
    assert len(store.get(f"paused/{TABLE}/writer").attributes["applied"].split()) == APPLIED_MAX


def test_an_item_that_is_no_paused_state_is_fatal(store):
    store.put(Item(f"paused/{TABLE}/writer", {"paused": "yes"}), None)
    with pytest.raises(FatalError, match="no paused state"):
        paused_state(store, TABLE, "writer")


@pytest.mark.parametrize("seed", range(40))
def test_each_pause_takes_effect_once_whatever_is_lost(seed):
    with World(seed) as world:
        store = FakeLeases(world)
        store.wire.timeout_ms = 3_000
        sequences: list[int] = []
        store.on_written = lambda _, item: sequences.append(item.attributes["sequence"])
        for name in ("lost_answer", "error_after", "lost_request", "slow", "throttled"):
            world.enable(f"leases.{name}", 0.1)
        commands = [
            a_command(f"c{number}", (Pause, Resume)[number % 2]("writer")) for number in range(6)
        ]
        changes: Counter[str] = Counter()

        def applying(host, chance):
            mine = Lessee(store.client(host), host.clock, host.entropy, host.name, DURATION_MS)
            for _ in range(12):
                command = commands[int(len(commands) * chance.random())]
                try:
                    changes[command.id] += apply_pause(mine, command)[1]
                except RetriableError:
                    host.clock.sleep_ms(100)

        for number in range(3):
            host = world.host(f"w{number}")
            chance = world.random(f"commands/{host}")
            world.spawn(host, lambda host=host, chance=chance: applying(host, chance))
        world.run(limit_ms=2_000_000)
        assert sequences == sorted(sequences)
        assert max(changes.values()) <= 1
        # Nothing undoes an effect but another command: as many rises as effects at most.
        assert store.items()[f"paused/{TABLE}/writer"].attributes["sequence"] <= len(commands)


# --- seen ----------------------------------------------------------------------------------------


def done(command: Command, hands, message: str = "done"):
    return outcome_of(
        command,
        "succeeded",
        at_ms=hands.wall_ms(),
        worker="w1",
        message=message,
        result={"rows": 3},
    )


def test_a_command_is_done_once(store, hands):
    mine, other = lessee(store, hands), lessee(store, hands, "w2")
    command = a_command("c1")
    running = begin(mine, command)
    assert isinstance(running, Running)
    assert isinstance(begin(other, command), Watch)
    running = renew_command(mine, running)
    assert running is not None
    outcome = done(command, hands)
    assert finish(mine, running, outcome)
    assert finish(mine, running, outcome), "saying it again is harmless"
    for each in (mine, other):
        assert begin(each, command) == Done(outcome)
    assert renew_command(mine, running) is None


def test_a_dead_workers_command_is_begun_again(store, hands):
    mine, other = lessee(store, hands), lessee(store, hands, "w2")
    command = a_command("c1")
    first = begin(mine, command)
    watch = begin(other, command)
    hands.now_ms += DURATION_MS - 1
    assert begin(other, command, watch) == watch
    hands.now_ms += 1
    assert not first.held.is_safe(hands.now_ms)
    second = begin(other, command, watch)
    assert isinstance(second, Running)
    assert second.held.token > first.held.token
    assert renew_command(mine, first) is None
    assert not finish(mine, first, done(command, hands)), "it is the other's now"
    assert finish(other, second, done(command, hands))


def test_two_commands_of_one_item_do_not_disturb_each_other(store, hands):
    mine = lessee(store, hands)
    first = a_command("c1")
    second = next(
        each
        for each in (a_command(f"d{number}") for number in range(10_000))
        if bucket_key(each) == bucket_key(first)
    )
    one, two = begin(mine, first), begin(mine, second)
    for _ in range(3):
        hands.now_ms += 10_000
        one, two = renew_command(mine, one), renew_command(mine, two)
    assert finish(mine, one, done(first, hands))
    assert renew_command(mine, two) is not None


def test_an_id_is_kept_until_nobody_would_take_the_command(store, hands):
    mine = lessee(store, hands)
    expires_ms = hands.wall_ms() + 60_000
    command = a_command("c1", expires_at_ms=expires_ms)
    finish(mine, begin(mine, command), done(command, hands))
    neighbour = (
        each
        for each in (a_command(f"d{number}") for number in range(100_000))
        if bucket_key(each) == bucket_key(command)
    )
    hands.now_ms += 60_000 + SKEW_MS - 1
    begin(mine, next(neighbour))
    assert isinstance(begin(mine, command), Done)
    with pytest.raises(Refusal, match="expired"):
        parse_command(encode_command(command), Rules(TABLE), now_ms=hands.wall_ms())
    hands.now_ms += 2
    begin(mine, next(neighbour))
    assert command.id not in store.get(bucket_key(command)).attributes


def test_a_command_without_times_is_kept_for_a_week(store, hands):
    mine = lessee(store, hands)
    command = a_command("c1")
    finish(mine, begin(mine, command), done(command, hands))
    hands.now_ms += KEEP_MS
    assert isinstance(begin(mine, command), Done)


def test_items_stay_small(store, hands, monkeypatch):
    monkeypatch.setattr(seen, "BUCKETS", 1)
    monkeypatch.setattr(seen, "ENTRIES_MAX", 40)
    mine = lessee(store, hands)
    for number in range(60):
        command = a_command(f"c{number}", expires_at_ms=hands.wall_ms() + 10_000 + number)
        outcome = outcome_of(
            command,
            "failed",
            at_ms=0,
            worker="w",
            message="x" * 5_000,
            result={f"figure_{n}": n for n in range(500)},
        )
        assert finish(mine, begin(mine, command), outcome)
    (item,) = store.scan("commands/")
    assert len(item.attributes) <= 40 + 1
    assert len(json.dumps(dict(item.attributes))) < 400_000 * 40 / ENTRIES_MAX
    assert isinstance(begin(mine, command), Done), "the newest are kept"


def test_an_item_that_is_not_ours_is_fatal_and_shows_no_value(store, hands):
    command = a_command("c1")
    for text in ("7", "{}", "x", '{"owner": "secret"}'):
        item = Item(bucket_key(command), {"c1": text})
        store.put(item, store.get(item.key))
        with pytest.raises(FatalError, match=r"no command that was seen|no lease") as caught:
            begin(lessee(store, hands), command)
        assert "secret" not in str(caught.value)


FAULTS = {
    "leases.throttled": 0.05,
    "leases.lost_request": 0.05,
    "leases.lost_answer": 0.05,
    "leases.error_after": 0.05,
    "leases.slow": 0.02,
    "leases.read_failed": 0.05,
}


class Redelivery:
    """Three workers that get the same commands again and again, and what they believe."""

    def __init__(self, seed: int) -> None:
        self.commands = [a_command(f"c{number}") for number in range(4)]
        self.overlaps: list[str] = []
        self.finished: Counter[str] = Counter()
        self._running: dict[tuple[str, Host], Held] = {}
        self._seed = seed

    def run(self) -> Redelivery:
        with World(self._seed) as world:
            self._store = FakeLeases(world)
            self._store.wire.timeout_ms = 3_000
            for name, probability in FAULTS.items():
                world.enable(name, probability)
            chance = world.random("lives")
            for number in range(3):
                self._start(world, f"w{number}")
            for _ in range(12):
                world.run(limit_ms=int(30_000 * chance.random()) + 1)
                host = world.hosts[f"w{chance.randrange(3)}"]
                if chance.random() < 0.5:
                    host.pause(int(60_000 * chance.random()))
                else:
                    host.kill()
                    self._start(world, host.name)
            world.heal()
            world.run(lambda: len(self.finished) == len(self.commands), limit_ms=2_000_000)
        return self

    def _start(self, world: World, name: str) -> None:
        host = world.host(name)
        chance = world.random(f"worker/{host}")
        world.spawn(host, lambda: self._receive(host, chance))

    def _receive(self, host: Host, chance) -> None:
        client = self._store.client(host)
        mine = Lessee(client, host.clock, host.entropy, host.name, DURATION_MS)
        watches: dict[str, Watch] = {}
        while True:
            command = self.commands[int(len(self.commands) * chance.random())]
            with contextlib.suppress(RetriableError):
                found = begin(mine, command, watches.get(command.id))
                if isinstance(found, Watch):
                    watches[command.id] = found
                elif isinstance(found, Running):
                    self._work(host, mine, found, chance)
            host.clock.sleep_ms(1_000)

    def _work(self, host: Host, mine: Lessee, found: Running, chance) -> None:
        command = found.command
        self._believe(host, command, found.held)
        for _ in range(int(6 * chance.random())):
            host.clock.sleep_ms(9_000)
            again = renew_command(mine, found)
            self._believe(host, command, None if again is None else again.held)
            if again is None:
                return
            found = again
        if found.held.is_safe(host.clock.elapsed_ms()):
            outcome = outcome_of(command, "succeeded", at_ms=0, worker=host.name)
            self.finished[command.id] += finish(mine, found, outcome)
        self._believe(host, command, None)

    def _believe(self, host: Host, command: Command, held: Held | None) -> None:
        self._running.pop((command.id, host), None)
        if held is None or not held.is_safe(host.clock.elapsed_ms()):
            return
        for (name, other), theirs in self._running.items():
            is_live = not other.dead and theirs.is_safe(other.clock.elapsed_ms())
            if name == command.id and is_live:
                self.overlaps.append(f"{name}: {host} while {other}")
        if self.finished[command.id]:
            self.overlaps.append(f"{command.id}: {host} began it after it was done")
        self._running[command.id, host] = held


@pytest.mark.parametrize("seed", range(30))
def test_a_redelivered_command_is_one_workers_at_a_time_and_done_once(seed):
    found = Redelivery(seed).run()
    assert not found.overlaps, f"seed {seed}"
    # A worker may die between writing that it is done and saying so here.
    assert found.finished
    assert max(found.finished.values()) == 1


def test_a_worker_that_does_not_look_is_noticed(monkeypatch):
    monkeypatch.setattr(seen, "may_acquire", lambda *_, **__: True)
    assert any(Redelivery(seed).run().overlaps for seed in range(5))
