"""Locks and registrations over a LeaseStore. They save work; the log alone keeps data safe.

Theory of operation. A lease is one item of the store, and it is never deleted:

    {key, owner, token, beat, duration_ms, released}

Three moves change it, each a conditional write on exactly the item that was read before:

* *acquire*: a new `owner`, `token + 1`, beat 0. Allowed when there is no item, when it is
  released, or when an observer saw `(token, beat)` stand still for `duration_ms` on its own
  elapsed clock. How long it has watched is a `Watch`, which the caller keeps between tries.
* *renew*: `beat + 1`, by the holder.
* *release*: `released` becomes true, by the holder.

Why two do not hold it at once. A holder believes itself safe until its deadline: the moment before
its last successful write was first sent, plus `duration_ms`, less a margin. An observer counts
from the moment after the read that showed it that write, which is later; so at the end of its wait
the deadline has passed. The margin pays for clocks that run at different rates. A renewal that
lands meanwhile changes the item, and the observer's conditional write fails. No two hosts compare
their clocks.

Why an unanswered write is no riddle. The owner is a fresh id for each acquisition, and tokens and
beats only rise, so no item is ever written twice. The same write is sent again until it succeeds,
or until its condition fails: then an item that is exactly what was to be written is ours. A write
that nobody waits for any more changes nothing that somebody else believes: it lands on the very
item that was read, or not at all.

An item deleted by hand ends the lease for the next who looks, while its holder may believe in it
until its deadline: that is a broken lock, which costs work and no data. A new item's first token
is the wall clock's milliseconds, so that tokens rise even then, as far as wall clocks agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, TypeVar

from msgspec import Struct

from delta_sink.errors import FatalError, RetriableError, SourceRefused
from delta_sink.ports import Clock, Entropy, Item, LeaseStore

DURATION_MS: Final = 30_000
"""How long a lease lasts without a renewal: ten requests of a lock store at their time-out."""

MARGIN_PARTS: Final = 10
"""A tenth of the duration is the margin: clocks may run 5% apart each way."""

RENEWALS_PER_DURATION: Final = 3
"""A renewal is due after a third, so that one may fail and be sent again in time."""

PAUSE_MS: Final = 100
PAUSE_MS_MAX: Final = 2_000
REGISTER_TRIES_MAX: Final = 10

T = TypeVar("T")


# --- the item, and what may be done with it: pure ------------------------------------------------


class Lease(Struct, frozen=True):
    """What the item of a lease says."""

    key: str
    owner: str
    token: int
    beat: int
    duration_ms: int
    released: bool = False

    @property
    def item(self) -> Item:
        """The lease as the store keeps it."""
        return Item(
            self.key,
            {
                "owner": self.owner,
                "token": self.token,
                "beat": self.beat,
                "duration_ms": self.duration_ms,
                "released": self.released,
            },
        )


def lease_of(item: Item) -> Lease:
    """Return the lease that an item is.

    Raises:
        FatalError: it is none; somebody else writes into the lock store.
    """
    said = item.attributes
    owner, released = said.get("owner"), said.get("released")
    numbers = [said.get(name) for name in ("token", "beat", "duration_ms")]
    if not isinstance(owner, str) or type(released) is not bool:
        raise FatalError(f"lock store item {item.key!r}: it is no lease: {sorted(said)}")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise FatalError(f"lock store item {item.key!r}: it is no lease: {sorted(said)}")
    token, beat, duration_ms = (int(number) for number in numbers if number is not None)
    return Lease(item.key, owner, token, beat, duration_ms, released)


class Watch(Struct, frozen=True):
    """What an observer knows of somebody else's lease, and since when it stands still.

    `since_ms` is on the observer's elapsed clock: when the read had returned that first showed
    this token and beat.
    """

    key: str
    owner: str
    token: int
    beat: int
    duration_ms: int
    since_ms: int

    def is_over(self, now_ms: int) -> bool:
        """Return whether the lease has stood still for its whole duration, as this one saw it."""
        return now_ms - self.since_ms >= self.duration_ms


def watched(before: Watch | None, found: Lease, *, now_ms: int) -> Watch:
    """Return the watch after a read that returned `found` at `now_ms`: its wait goes on or anew."""
    if before is not None and before.key == found.key:
        same = (before.owner, before.token, before.beat) == (found.owner, found.token, found.beat)
        if same:
            return before
    return Watch(found.key, found.owner, found.token, found.beat, found.duration_ms, now_ms)


def may_acquire(found: Lease | None, watch: Watch | None, *, now_ms: int) -> bool:
    """Return whether the lease is free: absent, released, or watched until it was over."""
    if found is None or found.released:
        return True
    return watch is not None and watched(watch, found, now_ms=now_ms).is_over(now_ms)


def acquired(
    found: Lease | None, *, key: str, owner: str, duration_ms: int, token_first: int
) -> Lease:
    """Return the lease as `owner` wants to write it. `token_first` is for one that is absent."""
    token = token_first if found is None else found.token + 1
    return Lease(key, owner, token, 0, duration_ms)


def renewed(lease: Lease) -> Lease:
    """Return the lease with one more beat."""
    return Lease(lease.key, lease.owner, lease.token, lease.beat + 1, lease.duration_ms)


def released(lease: Lease) -> Lease:
    """Return the lease as its holder gives it up; the token stays, so that the next one rises."""
    return Lease(lease.key, lease.owner, lease.token, lease.beat, lease.duration_ms, released=True)


def deadline_ms(*, sent_ms: int, duration_ms: int) -> int:
    """Return until when a write that was first sent at `sent_ms` lets its holder feel safe."""
    return sent_ms + duration_ms - duration_ms // MARGIN_PARTS


class Held(Struct, frozen=True):
    """A lease that this process holds, until `deadline_ms` on its own elapsed clock."""

    lease: Lease
    deadline_ms: int

    @property
    def token(self) -> int:
        """The number that goes with everything done under this lease; a later holder's is higher."""
        return self.lease.token

    @property
    def renew_at_ms(self) -> int:
        """When a renewal is due, on the elapsed clock."""
        duration_ms = self.lease.duration_ms
        sent_ms = self.deadline_ms - deadline_ms(sent_ms=0, duration_ms=duration_ms)
        return sent_ms + duration_ms // RENEWALS_PER_DURATION

    def is_safe(self, now_ms: int) -> bool:
        """Return whether nobody else can hold the lease at `now_ms`. Ask before each effect."""
        return now_ms < self.deadline_ms


# --- the moves: requests to the store ------------------------------------------------------------


class Lessee(Struct, frozen=True):
    """Who takes leases, and with what. Its functions send requests and wait: call them in jobs.

    `name` begins each owner's id, so that a person sees who holds what: the worker's id.
    """

    leases: LeaseStore
    clock: Clock
    entropy: Entropy
    name: str
    duration_ms: int = DURATION_MS


def acquire(lessee: Lessee, key: str, watch: Watch | None = None) -> Held | Watch:
    """Return the lease, held now, or a `Watch` to come back with: it is somebody else's.

    Come back every few seconds, with the watch of the last time; without it the wait begins anew.

    Raises:
        RetriableError: the store gave no usable answer for a whole duration. An acquisition that
            was sent may still land; nobody believes in it, and it is over after its duration.
        FatalError: the store refuses, or the item is no lease.
    """
    clock = lessee.clock
    until_ms = clock.elapsed_ms() + lessee.duration_ms
    found = ask_until(lessee, until_ms, lambda: lessee.leases.get(key))
    lease = None if found is None else lease_of(found)
    if lease is not None and not lease.released:
        watch = watched(watch, lease, now_ms=clock.elapsed_ms())
    if not may_acquire(lease, watch, now_ms=clock.elapsed_ms()):
        assert watch is not None, key
        return watch
    mine = acquired(
        lease,
        key=key,
        owner=f"{lessee.name}/{lessee.entropy.unique_id()}",
        duration_ms=lessee.duration_ms,
        token_first=max(1, clock.wall_ms()),
    )
    sent_ms = clock.elapsed_ms()
    after, _ = _settled(lessee, mine.item, found, until_ms)
    if after == mine.item:
        return Held(mine, deadline_ms(sent_ms=sent_ms, duration_ms=mine.duration_ms))
    if after is None:  # deleted by hand just now
        return watched(None, mine, now_ms=clock.elapsed_ms())
    return watched(watch, lease_of(after), now_ms=clock.elapsed_ms())


def renew(lessee: Lessee, held: Held) -> Held | None:
    """Return the lease with a new deadline, or None: it is lost, and so is the work under it.

    Requests that fail are sent again while the lease lasts, and no longer. None is also the
    answer for a lease whose deadline has passed: acquire it anew.

    Raises:
        FatalError: the store refuses. Treat the lease as lost.
    """
    wanted = renewed(held.lease)
    sent_ms = lessee.clock.elapsed_ms()
    if not held.is_safe(sent_ms):
        return None
    try:
        after, was_sent = _settled(lessee, wanted.item, held.lease.item, held.deadline_ms)
    except RetriableError:
        return None
    if after != wanted.item:
        return None
    if not was_sent:
        # An earlier call sent it, nobody knows when: the lease is ours, and no longer than before.
        return Held(wanted, held.deadline_ms)
    return Held(wanted, deadline_ms(sent_ms=sent_ms, duration_ms=wanted.duration_ms))


def release(lessee: Lessee, held: Held) -> bool:
    """Return whether the lease is free for the next at once; if not, it is after its duration.

    One request, no second try: somebody who stops must not wait for a lock store.
    """
    try:
        return lessee.leases.put(released(held.lease).item, held.lease.item)
    except RetriableError:
        return False


def _settled(
    lessee: Lessee, wanted: Item, expected: Item | None, until_ms: int
) -> tuple[Item | None, bool]:
    """Return what is stored once it is known whether `wanted` was written over `expected`.

    And whether a request of this call may have written it: one that succeeded or got no answer.

    Raises:
        RetriableError: it was not known at `until_ms`. The write may still land.
    """
    may_have_landed = False

    def attempt() -> Item | None:
        nonlocal may_have_landed
        try:
            if lessee.leases.put(wanted, expected):
                may_have_landed = True
                return wanted
        except RetriableError:
            may_have_landed = True
            raise
        return lessee.leases.get(wanted.key)

    return ask_until(lessee, until_ms, attempt), may_have_landed


def ask_until(lessee: Lessee, until_ms: int, request: Callable[[], T]) -> T:
    """Return the answer, asking again with growing pauses until `until_ms` on the elapsed clock.

    Raises:
        RetriableError: the last answer, when no further try fits.
    """
    pause_ms = PAUSE_MS
    while True:
        try:
            return request()
        except RetriableError:
            jittered_ms = int(pause_ms * (0.5 + lessee.entropy.fraction() / 2))
            if lessee.clock.elapsed_ms() + jittered_ms >= until_ms:
                raise
        lessee.clock.sleep_ms(jittered_ms)
        pause_ms = min(2 * pause_ms, PAUSE_MS_MAX)


# --- what is leased ------------------------------------------------------------------------------

SLOTS: Final = 64
"""Into how many leases the compaction of one table is divided."""


def lease_key(table_uri: str, work: str) -> str:
    """Return the key of a table's lease. `work` is `vacuum`, `checkpoint`, `scheduler`, …"""
    return f"lease/{table_uri}/{work}"


def slot_of(table_partition: str) -> int:
    """Return the slot, below `SLOTS`, under whose lease a table partition is compacted.

    `table_partition` is its folder (`day=2026-11-24/region=eu`, empty for a table without). The
    same text has the same slot on every host and for ever.
    """
    digest = hashlib.sha256(table_partition.encode()).digest()
    return int.from_bytes(digest[:4], "big") % SLOTS


def slot_key(table_uri: str, slot: int) -> str:
    """Return the key of the lease under which a slot of a table is compacted."""
    assert 0 <= slot < SLOTS, slot
    return lease_key(table_uri, f"compaction/{slot:02d}")


# --- names of sinks ------------------------------------------------------------------------------


def register_sink(leases: LeaseStore, *, sink: str, table_uri: str) -> None:
    """Return once the name `sink` stands for the table `table_uri` and for no other.

    Two sinks of one name share a consumer group: on two tables each would see half of the topic.

    Raises:
        SourceRefused: the name is another table's.
        RetriableError: the lock store did not answer. Locks are a courtesy: go on without.
    """
    key = f"sink/{sink}"
    mine = Item(key, {"table": table_uri})
    for _ in range(REGISTER_TRIES_MAX):
        found = leases.get(key)
        if found is None:
            if leases.put(mine, None):
                return
            continue
        if found.attributes.get("table") != table_uri:
            raise SourceRefused(
                f"the name '{sink}' is registered for the table "
                f"{found.attributes.get('table')}, the configuration says {table_uri}: two "
                f"tables under one name would each get half of the topic; choose another name, "
                f"or run `delta-sink init --move` if the table was moved"
            )
        return
    raise SourceRefused(f"the name '{sink}' could not be registered: others keep changing {key}")


def move_sink(leases: LeaseStore, *, sink: str, table_uri: str) -> None:
    """Return once the name `sink` stands for `table_uri`, whatever it stood for before."""
    key = f"sink/{sink}"
    for _ in range(REGISTER_TRIES_MAX):
        if leases.put(Item(key, {"table": table_uri}), leases.get(key)):
            return
    raise SourceRefused(f"the name '{sink}' could not be registered: others keep changing {key}")
