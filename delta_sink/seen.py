"""Which commands were begun and done: so that a redelivered one acts at most once.

Theory of operation. Beside each command id stands a small lease and, in the end, the outcome:

* unknown → *begun*: whoever begins it holds its lease and renews it while it works;
* begun → *begun* by another: only after an observer saw the lease stand still for its duration;
* begun → *done*, with the outcome: by its holder, for ever.

It is kept until the command expires and `SKEW_MS` longer; from then on the command itself is
refused as expired by every worker whose wall clock is not further off than that. The store knows
no deleting, so ids do not get items of their own: `BUCKETS` items a table hold them all, and each
write of an item drops from it what is no longer needed.

This too saves work and keeps nothing safe: a worker that dies between its last commit and `done`
leaves a command that is begun again, and what it then finds to do is planned from the table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from delta_sink.control import Command, Outcome, encode_outcome, parse_outcome
from delta_sink.errors import FatalError, RetriableError
from delta_sink.lease import (
    Held,
    Lease,
    Lessee,
    Watch,
    acquired,
    ask_until,
    deadline_ms,
    lease_of,
    may_acquire,
    released,
    renewed,
    watched,
)
from delta_sink.ports import Item, Scalar

BUCKETS: Final = 64
ENTRIES_MAX: Final = 200
"""How many ids one item keeps; DynamoDB takes 400 KB. Beyond, those that expire first go."""
OUTCOME_BYTES_MAX: Final = 1_500
SKEW_MS: Final = 3_600_000
KEEP_MS: Final = 7 * 86_400_000
"""How long the id of a command is kept that says neither when it was issued nor when it expires."""
CONTENTION_MAX: Final = 50
"""How often another command's write may come between before this one is given up."""


class Running(Struct, frozen=True):
    """This worker has begun the command, alone, as long as `held` is safe."""

    command: Command
    held: Held


class Done(Struct, frozen=True):
    """The command was done before. `outcome` is what was said of it then."""

    outcome: Outcome | None


class _Entry(Struct, frozen=True):
    lease: Lease
    keep_until_ms: int
    is_done: bool = False
    outcome: str = ""


def begin(lessee: Lessee, command: Command, watch: Watch | None = None) -> Running | Done | Watch:
    """Return `Running`: do it now; `Done`: report that again; or a `Watch`: another is at it.

    With a watch, come back every few seconds and hand it in: if the other one has died, the
    command is this worker's after a lease's duration.

    Raises:
        RetriableError: the store did not answer in time. Going on without is allowed: work may be
            done twice, and nothing worse.
        FatalError: the store refuses, or its items are not ours.
    """
    clock = lessee.clock
    watches = {} if watch is None else {command.id: watch}
    owner = f"{lessee.name}/{lessee.entropy.unique_id()}"
    wall_ms = clock.wall_ms()
    mine: _Entry | None = None
    sent_ms = clock.elapsed_ms()

    def decide(found: _Entry | None) -> _Entry | None:
        nonlocal mine, sent_ms
        if found is not None and (found.is_done or found == mine):
            return found
        now_ms = clock.elapsed_ms()
        if found is not None:
            watches[command.id] = watched(watches.get(command.id), found.lease, now_ms=now_ms)
        lease = None if found is None else found.lease
        if not may_acquire(lease, watches.get(command.id), now_ms=now_ms):
            return found
        wanted = acquired(
            lease,
            key=command.id,
            owner=owner,
            duration_ms=lessee.duration_ms,
            token_first=max(1, wall_ms),
        )
        if mine is None or wanted != mine.lease:
            mine, sent_ms = _Entry(wanted, _keep_until_ms(command, wall_ms)), now_ms
        return mine

    after = _changed(lessee, command, decide, clock.elapsed_ms() + lessee.duration_ms)
    assert after is not None, command.id
    if after.is_done:
        return Done(parse_outcome(after.outcome.encode()))
    if after != mine:
        return watches[command.id]
    until_ms = deadline_ms(sent_ms=sent_ms, duration_ms=lessee.duration_ms)
    return Running(command, Held(after.lease, until_ms))


def renew_command(lessee: Lessee, running: Running) -> Running | None:
    """Return the command with a new deadline, or None: it may be another's by now, stop.

    Raises:
        FatalError: the store refuses. Treat the command as lost.
    """
    wanted = renewed(running.held.lease)
    sent_ms = lessee.clock.elapsed_ms()
    if not running.held.is_safe(sent_ms):
        return None

    was_sent = False

    def decide(found: _Entry | None) -> _Entry | None:
        nonlocal was_sent
        if found is None or found.lease != running.held.lease:
            return found
        was_sent = True
        return replace(found, lease=wanted)

    try:
        after = _changed(lessee, running.command, decide, running.held.deadline_ms)
    except RetriableError:
        return None
    if after is None or after.lease != wanted or after.is_done:
        return None
    until_ms = running.held.deadline_ms  # if an earlier call sent it, nobody knows when
    if was_sent:
        until_ms = deadline_ms(sent_ms=sent_ms, duration_ms=wanted.duration_ms)
    return Running(running.command, Held(wanted, until_ms))


def finish(lessee: Lessee, running: Running, outcome: Outcome) -> bool:
    """Return whether the outcome is kept, so that nobody does the command again.

    False says that another one has begun it meanwhile. Publish the outcome in either case.

    Raises:
        RetriableError: the store did not answer in time; the command may be begun again.
    """
    assert outcome.is_final, outcome
    text = _short(outcome)

    def decide(found: _Entry | None) -> _Entry | None:
        if found is None or found.lease.owner != running.held.lease.owner:
            return found
        return replace(found, lease=released(found.lease), is_done=True, outcome=text)

    until_ms = lessee.clock.elapsed_ms() + lessee.duration_ms
    after = _changed(lessee, running.command, decide, until_ms)
    return after is not None and after.lease.owner == running.held.lease.owner


def _keep_until_ms(command: Command, now_ms: int) -> int:
    return now_ms + KEEP_MS if command.expiry_ms is None else command.expiry_ms


def _short(outcome: Outcome) -> str:
    text = encode_outcome(replace(outcome, message=outcome.message[:300]))
    if len(text) > OUTCOME_BYTES_MAX:
        text = encode_outcome(replace(outcome, message=outcome.message[:300], result={}))
    return text.decode()


# --- items ---------------------------------------------------------------------------------------


def bucket_key(command: Command) -> str:
    """Return the key of the item that knows of a command."""
    digest = hashlib.sha256(command.id.encode()).digest()
    return f"commands/{command.table}/{digest[0] % BUCKETS:02d}"


def _changed(
    lessee: Lessee,
    command: Command,
    decide: Callable[[_Entry | None], _Entry | None],
    until_ms: int,
) -> _Entry | None:
    """Return the entry once it is as `decide` wants it, or `decide` leaves it as it is.

    An unanswered write is settled by the next read: owners are fresh and beats rise, so an entry
    that is exactly the wanted one was written by us.
    """
    key = bucket_key(command)
    for _ in range(CONTENTION_MAX):
        settled, entry = ask_until(lessee, until_ms, lambda: _attempt(lessee, key, command, decide))
        if settled:
            return entry
    raise RetriableError(f"lock store item {key!r}: others keep changing it")


def _attempt(
    lessee: Lessee,
    key: str,
    command: Command,
    decide: Callable[[_Entry | None], _Entry | None],
) -> tuple[bool, _Entry | None]:
    found = lessee.leases.get(key)
    entries = {} if found is None else _entries_of(found)
    before = entries.get(command.id)
    wanted = decide(before)
    if wanted is None or wanted == before:
        return True, before
    entries[command.id] = wanted
    kept = _kept(entries, command.id, lessee.clock.wall_ms())
    item = Item(key, {name: _text_of(entry) for name, entry in kept.items()})
    return lessee.leases.put(item, found), wanted


def _kept(entries: Mapping[str, _Entry], wanted: str, now_ms: int) -> dict[str, _Entry]:
    """Return the entries without those that are no longer needed."""
    by_age = sorted(entries.items(), key=lambda each: (each[1].keep_until_ms, each[0]))
    alive = [each for each in by_age if each[1].keep_until_ms + SKEW_MS > now_ms]
    return dict(alive[-ENTRIES_MAX:]) | {wanted: entries[wanted]}


def _text_of(entry: _Entry) -> str:
    said = {**entry.lease.item.attributes, "keep_until_ms": entry.keep_until_ms}
    if entry.is_done:
        said |= {"is_done": True, "outcome": entry.outcome}
    return json.dumps(said, separators=(",", ":"), ensure_ascii=False)


def _entries_of(item: Item) -> dict[str, _Entry]:
    return {name: _entry_of(item.key, name, text) for name, text in item.attributes.items()}


def _entry_of(key: str, name: str, text: Scalar) -> _Entry:
    try:
        said = json.loads(str(text))
        keep_until_ms, outcome = said["keep_until_ms"], said.get("outcome", "")
        lease = lease_of(Item(name, said))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FatalError(
            f"lock store item {key!r}: {name!r} is no command that was seen"
        ) from error
    if type(keep_until_ms) is not int or not isinstance(outcome, str):
        raise FatalError(f"lock store item {key!r}: {name!r} is no command that was seen")
    return _Entry(lease, keep_until_ms, said.get("is_done") is True, outcome)
