"""Leases: the decisions alone, then whole lives of holders and observers in the simulated world.

What is claimed: while locks are not broken and clocks run at nearly equal rates, at most one host
believes itself safe at a time; tokens of a key only rise, whatever happens; and when faults stop,
somebody holds the lease again within bounded time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink import lease as rules
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.errors import FatalError, RetriableError
from delta_sink.lease import (
    Held,
    Lease,
    Lessee,
    Watch,
    acquire,
    acquired,
    deadline_ms,
    lease_key,
    lease_of,
    may_acquire,
    release,
    released,
    renew,
    renewed,
    slot_key,
    slot_of,
    watched,
)
from delta_sink.ports import Item
from delta_sink.testing import FakeLeases, Host, World

KEY = lease_key("s3://lake/orders", "vacuum")
DURATION_MS = 30_000


# --- decisions -----------------------------------------------------------------------------------


def a_lease(token: int = 5, beat: int = 2, *, owner: str = "w1/x", is_released: bool = False):
    return Lease(KEY, owner, token, beat, DURATION_MS, is_released)


def test_an_absent_or_released_lease_is_free():
    assert may_acquire(None, None, now_ms=0)
    assert may_acquire(a_lease(is_released=True), None, now_ms=0)
    assert not may_acquire(a_lease(), None, now_ms=10**12)


def test_a_lease_is_over_after_its_duration_under_watch():
    watch = watched(None, a_lease(), now_ms=1_000)
    for now_ms, free in ((1_000, False), (30_999, False), (31_000, True)):
        again = watched(watch, a_lease(), now_ms=now_ms)
        assert again is watch
        assert may_acquire(a_lease(), again, now_ms=now_ms) is free


@pytest.mark.parametrize(
    "other", [a_lease(beat=3), a_lease(token=6), a_lease(owner="w2/y"), a_lease(6, 0)]
)
def test_a_lease_that_moved_is_watched_anew(other):
    watch = watched(None, a_lease(), now_ms=0)
    assert watched(watch, other, now_ms=29_999).since_ms == 29_999
    assert not may_acquire(other, watch, now_ms=100_000)


def test_tokens_rise_and_beats_begin_anew():
    first = acquired(None, key=KEY, owner="a", duration_ms=DURATION_MS, token_first=700)
    assert (first.token, first.beat) == (700, 0)
    second = acquired(renewed(first), key=KEY, owner="b", duration_ms=DURATION_MS, token_first=9)
    assert (second.token, second.beat, second.owner) == (701, 0, "b")
    assert released(renewed(second)) == Lease(KEY, "b", 701, 1, DURATION_MS, True)


@given(sent_ms=st.integers(0, 10**12), duration_ms=st.integers(1_000, 600_000))
def test_the_deadline_is_before_any_observer_is_done(sent_ms, duration_ms):
    until_ms = deadline_ms(sent_ms=sent_ms, duration_ms=duration_ms)
    held = Held(Lease(KEY, "a", 1, 0, duration_ms), until_ms)
    assert sent_ms < held.renew_at_ms < until_ms < sent_ms + duration_ms
    assert held.is_safe(until_ms - 1)
    assert not held.is_safe(until_ms)
    # An observer saw the write at the moment it was sent at the earliest.
    watch = watched(None, held.lease, now_ms=sent_ms)
    assert not watch.is_over(until_ms)


def test_an_item_and_a_lease_are_the_same_thing():
    assert lease_of(a_lease().item) == a_lease()
    assert set(a_lease().item.attributes) == {"owner", "token", "beat", "duration_ms", "released"}


@pytest.mark.parametrize(
    "change",
    [{"owner": 1}, {"token": "5"}, {"token": True}, {"beat": -1}, {"released": 0}],
    ids=str,
)
def test_an_item_that_is_no_lease_is_fatal_and_shows_no_value(change):
    item = Item(KEY, {**a_lease().item.attributes, **change})
    with pytest.raises(FatalError, match="no lease"):
        lease_of(item)
    with pytest.raises(FatalError, match="no lease"):
        lease_of(Item(KEY, {"table": "x"}))


def test_slots_are_stable_and_spread():
    assert slot_of("day=2026-11-24") == 45
    assert slot_key("s3://lake/orders", 7) == "lease/s3://lake/orders/compaction/07"
    counts = [0] * rules.SLOTS
    for number in range(6_400):
        counts[slot_of(f"day={number}")] += 1
    assert min(counts) > 60
    assert max(counts) < 150


# --- one host ------------------------------------------------------------------------------------


def in_world(function, *, seed: int = 1, hosts: int = 1, faults: dict[str, float] | None = None):
    """Run `function(store, lessee, …)` on fresh hosts until it returns; return the value."""
    with World(seed) as world:
        store = FakeLeases(world)
        store.wire.timeout_ms = 3_000
        for name, chance in (faults or {}).items():
            world.enable(name, chance)
        lessees = [lessee_of(store, world.host(f"h{n}")) for n in range(hosts)]
        task = world.spawn(world.hosts["h0"], lambda: function(store, *lessees))
        world.run(lambda: task.done, limit_ms=10_000_000)
        assert task.done
        return task.result


def lessee_of(store: FakeLeases, host: Host) -> Lessee:
    return Lessee(store.client(host), host.clock, host.entropy, host.name, DURATION_MS)


def test_a_life():
    def life(store, mine, other):
        held = acquire(mine, KEY)
        assert isinstance(held, Held)
        assert held.is_safe(mine.clock.elapsed_ms())
        watch = acquire(other, KEY)
        assert isinstance(watch, Watch)
        again = renew(mine, held)
        assert again is not None
        assert (again.token, again.lease.beat) == (held.token, 1)
        assert again.deadline_ms > held.deadline_ms
        late = renew(mine, held)
        assert late is not None
        assert late.lease == again.lease
        assert late.deadline_ms == held.deadline_ms, "a beat that is there already prolongs nothing"
        assert not release(mine, held)
        assert release(mine, again)
        assert KEY in store.items(), "nothing is ever deleted"
        theirs = acquire(other, KEY, watch)
        assert isinstance(theirs, Held)
        assert theirs.token == held.token + 1
        assert renew(mine, again) is None

    in_world(life, hosts=2)


def test_a_dead_holder_costs_one_duration():
    def take_over(store, mine, other):
        acquire(mine, KEY)
        began_ms = other.clock.elapsed_ms()
        watch = acquire(other, KEY)
        while isinstance(watch, Watch):
            other.clock.sleep_ms(1_000)
            watch = acquire(other, KEY, watch)
        return other.clock.elapsed_ms() - began_ms

    assert DURATION_MS <= in_world(take_over, hosts=2) <= DURATION_MS + 2_000


def test_a_one_time_look_takes_nothing():
    def looks(store, mine, other):
        acquire(mine, KEY)
        for _ in range(5):
            other.clock.sleep_ms(DURATION_MS)
            assert isinstance(acquire(other, KEY), Watch), "without its watch the wait begins anew"

    in_world(looks, hosts=2)


def test_an_outage_ends_a_renewal_within_the_lease():
    def lose(store, mine):
        held = acquire(mine, KEY)
        store.wire.outage(10 * DURATION_MS)
        assert renew(mine, held) is None
        assert mine.clock.elapsed_ms() <= held.deadline_ms + store.wire.timeout_ms
        assert renew(mine, held) is None, "a lease past its deadline is not asked for"
        assert not release(mine, held)
        with pytest.raises(RetriableError):
            acquire(mine, KEY)

    in_world(lose)


def test_a_short_outage_is_outlived():
    def outlive(store, mine):
        held = acquire(mine, KEY)
        sent_ms = mine.clock.elapsed_ms()
        store.wire.outage(5_000)
        again = renew(mine, held)
        assert again is not None
        # From before the first try, although a later one was answered.
        assert again.deadline_ms <= deadline_ms(sent_ms=sent_ms, duration_ms=DURATION_MS) + 1

    in_world(outlive)


@pytest.mark.parametrize("fault", ["leases.lost_answer", "leases.error_after"])
@pytest.mark.parametrize("seed", range(20))
def test_an_unanswered_write_is_settled(fault, seed):
    def settle(store, mine):
        for _ in range(3):
            held = acquire(mine, KEY)
            assert isinstance(held, Held)
            again = renew(mine, held)
            assert again is not None
            assert store.items()[KEY] == again.lease.item
            if not release(mine, again):
                assert lease_of(store.items()[KEY]).released, "it landed, only the answer was lost"

    in_world(settle, seed=seed, faults={fault: 0.5})


def test_a_deleted_item_does_not_bring_tokens_back():
    def delete(store, mine, other):
        held = acquire(mine, KEY)
        mine.clock.sleep_ms(50)
        store.remove(KEY)
        assert renew(mine, held) is None
        theirs = acquire(other, KEY)
        assert isinstance(theirs, Held)
        assert theirs.token > held.token

    in_world(delete, hosts=2)


# --- many hosts, every fault -----------------------------------------------------------------------

FAULTS = {
    "leases.throttled": 0.05,
    "leases.lost_request": 0.03,
    "leases.lost_answer": 0.03,
    "leases.error_after": 0.03,
    "leases.slow": 0.02,
    "leases.read_failed": 0.03,
    "world.stall": 0.001,
}
HOSTS = 4
RUN_MS = 1_200_000


@dataclass
class Witness:
    """Sees what every host believes."""

    held: dict[Host, Held] = field(default_factory=dict)
    overlaps: list[str] = field(default_factory=list)
    holds: int = 0
    token_max: int = 0
    owner: str = ""
    falls: list[tuple[int, int]] = field(default_factory=list)

    def believe(self, host: Host, held: Held | None) -> None:
        self.held.pop(host, None)
        if held is None or not held.is_safe(host.clock.elapsed_ms()):
            return
        for other, theirs in self.held.items():
            if not other.dead and theirs.is_safe(other.clock.elapsed_ms()):
                self.overlaps.append(f"{host} {held.token} while {other} {theirs.token}")
        self.held[host] = held
        self.holds += 1

    def written(self, _before: Item | None, item: Item) -> None:
        lease = lease_of(item)
        if lease.token < self.token_max or (
            lease.token == self.token_max and lease.owner != self.owner
        ):
            self.falls.append((self.token_max, lease.token))
        self.token_max, self.owner = max(self.token_max, lease.token), lease.owner


def worker(witness: Witness, store: FakeLeases, host: Host, chance) -> None:
    """Take the lease, work under it for a while, and let it go, again and again."""
    lessee = lessee_of(store, host)
    watch = None
    while True:
        try:
            found = acquire(lessee, KEY, watch)
        except RetriableError:
            host.clock.sleep_ms(1_000)
            continue
        if isinstance(found, Watch):
            watch = found
            host.clock.sleep_ms(500 + int(2_000 * chance.random()))
            continue
        watch, held = None, found
        witness.believe(host, held)
        for _ in range(int(12 * chance.random())):
            now_ms = host.clock.elapsed_ms()
            host.clock.sleep_ms(max(0, held.renew_at_ms - now_ms))
            again = renew(lessee, held)
            witness.believe(host, again)
            if again is None:
                break
            held = again
        else:
            if chance.random() < 0.7:
                witness.believe(host, None)
                release(lessee, held)
                continue
        host.clock.sleep_ms(int(20_000 * chance.random()))


def lives(seed: int, *, deletes: bool = False, breaks: bool = False) -> Witness:
    """Let hosts compete for twenty minutes with pauses, kills and outages; then heal."""
    with World(seed) as world:
        store, witness = FakeLeases(world), Witness()
        store.wire.timeout_ms = 3_000
        store.on_written = witness.written
        store.is_broken = breaks
        chance = world.random("lives")
        for name, probability in FAULTS.items():
            if name != "leases.slow" or not deletes:
                world.enable(name, probability * chance.choice((0, 1, 3)))

        def start(name: str) -> None:
            drift_ppm = chance.randrange(-1_000, 1_000)
            # After a deletion tokens begin at the wall clock: they rise as far as it is right.
            skew_ms = 0 if deletes else chance.randrange(-60_000, 60_000)
            host = world.host(name, skew_ms=skew_ms, drift_ppm=drift_ppm)
            own = world.random(f"worker/{host}")
            world.spawn(host, lambda: worker(witness, store, host, own))

        for number in range(HOSTS):
            start(f"h{number}")
        while world.now_ms < RUN_MS:
            world.run(limit_ms=int(40_000 * chance.random()) + 1)
            host = world.hosts[f"h{chance.randrange(HOSTS)}"]
            match chance.randrange(4 + deletes):
                case 0:
                    host.pause(int(90_000 * chance.random()))
                case 1:
                    host.kill()
                    start(host.name)
                case 2:
                    store.wire.outage(int(40_000 * chance.random()))
                case 4:
                    store.remove(KEY)
        world.heal()
        before = witness.holds
        world.run(lambda: witness.holds > before, limit_ms=700_000)
        assert witness.holds > before, f"seed {seed}: nobody holds the lease after all is healed"
        return witness


@pytest.mark.parametrize("seed", range(60))
def test_at_most_one_believes_itself_safe(seed):
    witness = lives(seed)
    assert not witness.overlaps, f"seed {seed}"
    assert not witness.falls, f"seed {seed}"
    assert witness.holds > 10


@pytest.mark.parametrize("seed", range(30))
def test_tokens_only_rise_even_when_items_are_deleted(seed):
    assert not lives(seed, deletes=True).falls, f"seed {seed}"


def _found(**options) -> bool:
    return any(
        witness.overlaps or witness.falls for witness in (lives(s, **options) for s in range(40))
    )


def _eager_watch(monkeypatch):
    monkeypatch.setattr(Watch, "is_over", lambda self, now_ms: now_ms - self.since_ms >= 20_000)


def _late_deadline(monkeypatch):
    monkeypatch.setattr(
        rules, "deadline_ms", lambda *, sent_ms, duration_ms: sent_ms + 2 * duration_ms
    )


def _token_stands(monkeypatch):
    def stands(found, *, key, owner, duration_ms, token_first):
        return Lease(key, owner, 1 if found is None else max(1, found.token - 1), 0, duration_ms)

    monkeypatch.setattr(rules, "acquired", stands)


def _deadline_from_answer(monkeypatch):
    real = rules.renew

    def late(lessee, held):
        again = real(lessee, held)
        if again is None:
            return None
        return Held(again.lease, lessee.clock.elapsed_ms() + again.lease.duration_ms)

    monkeypatch.setitem(globals(), "renew", late)


@pytest.mark.parametrize(
    "mutant", [_eager_watch, _late_deadline, _token_stands, _deadline_from_answer]
)
def test_a_wrong_rule_is_noticed(mutant, monkeypatch):
    mutant(monkeypatch)
    assert _found()


def test_broken_locks_are_noticed():
    assert _found(breaks=True)


# --- a real store ----------------------------------------------------------------------------------


class Hands:
    """A clock and ids that a test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.ids = 0

    def wall_ms(self) -> int:
        return 1_800_000_000_000 + self.now_ms

    def elapsed_ms(self) -> int:
        return self.now_ms

    def sleep_ms(self, duration_ms: int) -> None:
        self.now_ms += duration_ms

    def unique_id(self) -> str:
        self.ids += 1
        return f"{self.ids:032x}"

    def fraction(self) -> float:
        return 0.5


def a_life_on(leases, others) -> None:
    """Take, renew, outlive, take over, release: on any real store, by two clients."""
    hands = Hands()
    mine, other = (
        Lessee(each, hands, hands, name, 30_000) for each, name in ((leases, "a"), (others, "b"))
    )
    held = acquire(mine, KEY)
    assert isinstance(held, Held)
    watch = acquire(other, KEY)
    assert isinstance(watch, Watch)
    hands.now_ms += 20_000
    held = renew(mine, held)
    assert held is not None
    hands.now_ms += 15_000
    watch = acquire(other, KEY, watch)
    assert isinstance(watch, Watch), "it was renewed meanwhile"
    hands.now_ms += 29_999
    assert isinstance(acquire(other, KEY, watch), Watch)
    assert not held.is_safe(hands.now_ms)
    hands.now_ms += 1
    theirs = acquire(other, KEY, watch)
    assert isinstance(theirs, Held)
    assert theirs.token == held.token + 1
    assert renew(mine, held) is None
    assert not release(mine, held)
    assert release(other, theirs)
    last = acquire(mine, KEY)
    assert isinstance(last, Held)
    assert last.token == theirs.token + 1
    assert leases.get(KEY) == last.lease.item


def test_on_sqlite(tmp_path):
    first, second = (SqliteLeases(str(tmp_path / "locks.db")) for _ in range(2))
    a_life_on(first, second)
    first.close()
    second.close()


@pytest.mark.process
def test_on_dynamodb(monkeypatch):
    from moto.server import ThreadedMotoServer

    from delta_sink.adapters.dynamodb import DynamoLeases

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        first, second = (
            DynamoLeases.connect(
                table_name="locks",
                region="us-east-1",
                endpoint_url=f"http://{host}:{port}",
                request_timeout_ms=30_000,
            )
            for _ in range(2)
        )
        first.create_table()
        a_life_on(first, second)
    finally:
        server.stop()
