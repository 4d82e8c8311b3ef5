"""Who works on a table, and what is paused: small items that all can see.

*Presence.* Each worker says every `PERIOD_MS` that it is there: one item, with a beat that rises.
Whether another one is alive is judged as leases are: its beat must move, by the observer's own
clock; wall clocks are shown to people and decide nothing but which old item may be used again.
The store knows no deleting, so an item is a numbered place, and a new worker takes the place of
one that has ended or was silent for `REUSE_AFTER_MS`.

*Paused or not.* One durable item for each table and role. Its sequence rises with every change.
It remembers the last `APPLIED_MAX` commands, so that one that is delivered again, or late, after
the one that undid it, changes nothing.

Everything here sends requests: call it in jobs. All of it is a courtesy: where the store does not
answer (RetriableError), a worker goes on as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from delta_sink.control import Command, Pause, Resume, Role
from delta_sink.errors import FatalError, RetriableError
from delta_sink.lease import Lessee, ask_until
from delta_sink.ports import Item, LeaseStore, Scalar

PERIOD_MS: Final = 10_000
SILENT_PERIODS_MAX: Final = 3
REUSE_AFTER_MS: Final = 600_000
CLAIM_TRIES_MAX: Final = 20
APPLIED_MAX: Final = 32

WorkerRole = Literal["writer", "compactor", "vacuum"]


class Presence(Struct, frozen=True):
    """What a worker says of itself. Times are of its wall clock, in milliseconds since 1970.

    `oldest_uncommitted_ms` is the Kafka timestamp of the oldest record that it holds and has not
    committed; None when it holds none.
    """

    worker: str
    role: WorkerRole
    host: str
    since_ms: int
    table: str
    oldest_uncommitted_ms: int | None = None


class Place(Struct, frozen=True):
    """The item in which a worker's presence stands; hand it to the next `publish`."""

    item: Item


def publish(leases: LeaseStore, presence: Presence, place: Place | None, *, now_ms: int) -> Place:
    """Return the place, with one beat more. Call it every `PERIOD_MS`, with the last place.

    Raises:
        RetriableError: no usable answer. Call it again with the same place at the next beat.
    """
    if place is not None:
        beat = _whole(place.item, "beat") + 1
        item = _item(place.item.key, presence, beat, now_ms)
        if leases.put(item, place.item):
            return Place(item)
        found = leases.get(item.key)
        if found == item:
            return Place(item)
        if found is not None and found.attributes.get("worker") == presence.worker:
            # An earlier write had landed without an answer.
            item = _item(item.key, presence, _whole(found, "beat") + 1, now_ms)
            if leases.put(item, found):
                return Place(item)
    return _claimed(leases, presence, now_ms)


def leave(leases: LeaseStore, place: Place) -> None:
    """Say that the worker has ended, if the store answers at once."""
    ended = Item(place.item.key, {**place.item.attributes, "ended": True})
    try:
        leases.put(ended, place.item)
    except (RetriableError, FatalError):
        return  # It will be seen to be silent. A worker that has ended well has ended well.


def _claimed(leases: LeaseStore, presence: Presence, now_ms: int) -> Place:
    for _ in range(CLAIM_TRIES_MAX):
        items = leases.scan(_prefix(presence.table))
        free = next((item for item in items if _is_free(item, presence, now_ms)), None)
        taken = {item.key for item in items}
        keys = (f"{_prefix(presence.table)}{number:04d}" for number in range(len(items) + 1))
        key = free.key if free is not None else next(key for key in keys if key not in taken)
        beat = 0 if free is None else _whole(free, "beat") + 1
        item = _item(key, presence, beat, now_ms)
        if leases.put(item, free):
            return Place(item)
    raise RetriableError(f"lock store: no place below {_prefix(presence.table)!r} could be taken")


def _is_free(item: Item, presence: Presence, now_ms: int) -> bool:
    said = item.attributes
    if said.get("worker") == presence.worker or said.get("ended") is True:
        return True
    return now_ms - _whole(item, "at_ms") > REUSE_AFTER_MS


def _prefix(table: str) -> str:
    return f"presence/{table}/"


def _item(key: str, presence: Presence, beat: int, now_ms: int) -> Item:
    attributes: dict[str, Scalar] = {
        "worker": presence.worker,
        "role": presence.role,
        "host": presence.host,
        "since_ms": presence.since_ms,
        "table": presence.table,
        "beat": beat,
        "at_ms": now_ms,
        "ended": False,
    }
    if presence.oldest_uncommitted_ms is not None:
        attributes["oldest_uncommitted_ms"] = presence.oldest_uncommitted_ms
    return Item(key, attributes)


def _whole(item: Item, name: str) -> int:
    value = item.attributes.get(name)
    return value if type(value) is int else 0


# --- who is there --------------------------------------------------------------------------------

Life = Literal["live", "stale", "ended", "unknown"]


class Sighting(Struct, frozen=True):
    """A worker as an observer sees it.

    `life` is `unknown` until its beat was seen to move (`live`) or to stand still for
    `SILENT_PERIODS_MAX` periods (`stale`). `said_at_ms` is the worker's wall clock at its beat.
    """

    presence: Presence
    life: Life
    beat: int
    said_at_ms: int
    moved_ms: int
    was_seen_moving: bool


def look(
    leases: LeaseStore, table: str, before: Mapping[str, Sighting], *, now_ms: int
) -> dict[str, Sighting]:
    """Return who is there by place, as far as this observer can tell after its earlier looks.

    `before` is what the last look returned, empty at the first; `now_ms` is the elapsed clock.
    """
    found: dict[str, Sighting] = {}
    for item in leases.scan(_prefix(table)):
        presence = _presence_of(item)
        if presence is not None:
            found[item.key] = _sighting(item, presence, before.get(item.key), now_ms)
    return found


def _sighting(item: Item, presence: Presence, before: Sighting | None, now_ms: int) -> Sighting:
    beat = _whole(item, "beat")
    moved_ms, was_seen_moving = now_ms, False
    if before is not None and before.presence.worker == presence.worker:
        has_moved = beat > before.beat  # a scan may be stale: a beat that falls says nothing
        beat = max(beat, before.beat)
        moved_ms = now_ms if has_moved else before.moved_ms
        was_seen_moving = has_moved or before.was_seen_moving
    is_silent = now_ms - moved_ms >= SILENT_PERIODS_MAX * PERIOD_MS
    life: Life = "live" if was_seen_moving else "unknown"
    if item.attributes.get("ended") is True:
        life = "ended"
    elif is_silent:
        life = "stale"
    return Sighting(presence, life, beat, _whole(item, "at_ms"), moved_ms, was_seen_moving)


def _presence_of(item: Item) -> Presence | None:
    said = item.attributes
    worker, role, host, table = (said.get(name) for name in ("worker", "role", "host", "table"))
    if role not in ("writer", "compactor", "vacuum"):
        return None
    oldest = said.get("oldest_uncommitted_ms")
    return Presence(
        worker=str(worker),
        role=role,  # type: ignore[arg-type]  # one of the three, just looked at
        host=str(host),
        since_ms=_whole(item, "since_ms"),
        table=str(table),
        oldest_uncommitted_ms=oldest if type(oldest) is int else None,
    )


# --- paused or not -------------------------------------------------------------------------------


class PausedState(Struct, frozen=True):
    """Whether a role of a table stands still, since when (wall clock) and by whose command.

    `sequence` rises with every change; 0 says that it was never paused.
    """

    is_paused: bool = False
    sequence: int = 0
    command_id: str = ""
    issuer: str = ""
    at_ms: int = 0


def paused_state(leases: LeaseStore, table: str, role: Role) -> PausedState:
    """Return the state. Raises RetriableError when the store does not answer: keep the last one."""
    item = leases.get(_paused_key(table, role))
    return PausedState() if item is None else _paused_of(item)


def apply_pause(lessee: Lessee, command: Command) -> tuple[PausedState, bool]:
    """Return the state once a pause or resume was applied, and whether it changed anything.

    A command that was applied before, or that asks for what is so already, changes nothing.

    Raises:
        RetriableError: the store did not answer within a lease's duration; apply it again.
        FatalError: the item is not ours.
    """
    args = command.args
    assert isinstance(args, Pause | Resume), command
    key = _paused_key(command.table, args.role)
    sequences: list[int] = []

    def attempt() -> tuple[PausedState, bool] | None:
        found = lessee.leases.get(key)
        state = PausedState() if found is None else _paused_of(found)
        sequences.append(state.sequence)
        applied = [] if found is None else str(found.attributes.get("applied", "")).split()
        if command.id in applied:
            # Applied before, or by an earlier try of this call whose answer was lost.
            is_ours = state.command_id == command.id and state.sequence > sequences[0]
            return state, is_ours
        now_ms = lessee.clock.wall_ms()
        wanted = _after(state, command, is_paused=isinstance(args, Pause), now_ms=now_ms)
        item = _paused_item(key, wanted, [*applied, command.id][-APPLIED_MAX:])
        return (wanted, wanted != state) if lessee.leases.put(item, found) else None

    until_ms = lessee.clock.elapsed_ms() + lessee.duration_ms
    for _ in range(CLAIM_TRIES_MAX):
        settled = ask_until(lessee, until_ms, attempt)
        if settled is not None:
            return settled
    raise RetriableError(f"lock store item {key!r}: others keep changing it")


def _after(state: PausedState, command: Command, *, is_paused: bool, now_ms: int) -> PausedState:
    if state.is_paused == is_paused:
        return state
    return PausedState(is_paused, state.sequence + 1, command.id, command.issuer or "", now_ms)


def _paused_key(table: str, role: Role) -> str:
    return f"paused/{table}/{role}"


def _paused_item(key: str, state: PausedState, applied: list[str]) -> Item:
    return Item(
        key,
        {
            "paused": state.is_paused,
            "sequence": state.sequence,
            "command_id": state.command_id,
            "issuer": state.issuer,
            "at_ms": state.at_ms,
            "applied": " ".join(applied),
        },
    )


def _paused_of(item: Item) -> PausedState:
    said = item.attributes
    is_paused = said.get("paused")
    if not isinstance(is_paused, bool) or type(said.get("sequence")) is not int:
        raise FatalError(f"lock store item {item.key!r}: it is no paused state: {sorted(said)}")
    return PausedState(
        is_paused,
        _whole(item, "sequence"),
        str(said.get("command_id", "")),
        str(said.get("issuer", "")),
        _whole(item, "at_ms"),
    )
