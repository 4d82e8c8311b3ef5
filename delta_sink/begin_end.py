"""The beginning and the end that all commands share: noted as begun, kept with their outcome.

Pieces of errands, as `maintenance.py` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from delta_sink.append import REASON_HEADER, DeadLetterTarget
from delta_sink.control import Outcome
from delta_sink.control_message import Refusal
from delta_sink.errand import (
    WATCH_MS,
    Ended,
    Errand,
    Interrupted,
    Kept,
    Rest,
    Steps,
    Upkeep,
    do,
    publish,
)
from delta_sink.errors import RetriableError
from delta_sink.lease import Held
from delta_sink.model import OutgoingRecord, TopicPartition
from delta_sink.presence import apply_pause
from delta_sink.seen import Done, Running, begin, finish, renew_command

COMMAND_LEASE: Final = "command"


def begun(errand: Errand) -> Steps[Running | Done | None]:
    """Return once the command is this worker's, or was done before; None without a lock store."""
    watch = None
    lessee, command = errand.upkeep.lessee, errand.command
    while True:
        if errand.is_stopping:
            raise Interrupted("the worker was asked to stop")
        try:
            found = yield from do("begin", lambda: begin(lessee, command, watch))  # noqa: B023  # runs before the next round
        except RetriableError:
            return None  # It may be done twice, and nothing worse.
        if isinstance(found, Done):
            return found
        if isinstance(found, Running):
            errand.leases[COMMAND_LEASE] = Kept(found.held, _command_renewal(errand))
            return found
        watch = found
        yield Rest(WATCH_MS)


def _command_renewal(errand: Errand) -> Callable[[Held], Held | None]:
    lessee, command = errand.upkeep.lessee, errand.command

    def renewal(held: Held) -> Held | None:
        found = renew_command(lessee, Running(command, held))
        return None if found is None else found.held

    return renewal


def keep_outcome(errand: Errand, begun: Running | None, outcome: Outcome) -> Steps[None]:
    """Note the outcome, so that nobody does the command again; where nothing is noted, so be it."""
    kept = errand.leases.get(COMMAND_LEASE)
    if begun is None or kept is None:
        return
    while kept.job is not None:
        yield Rest(50)
    running = Running(errand.command, kept.held)
    lessee = errand.upkeep.lessee
    del errand.leases[COMMAND_LEASE]
    try:
        yield from do("finish", lambda: finish(lessee, running, outcome))
    except RetriableError as error:
        errand.upkeep.log.telemetry.event("waiting", "warning", reason=str(error))


def release_work(errand: Errand) -> Steps[None]:
    """Give back what is leased for the work; the command's own note runs out by itself."""
    for key in [key for key in errand.leases if key != COMMAND_LEASE]:
        yield from errand.let_go(key)


def pause_or_resume(errand: Errand) -> Steps[Ended]:
    """Return what became of a pause or a resume, once the lock store has it."""
    lessee, command = errand.upkeep.lessee, errand.command
    state, has_changed = yield from do("pause", lambda: apply_pause(lessee, command))
    result = {"paused": state.is_paused, "sequence": state.sequence}
    return Ended("succeeded", "" if has_changed else "it was so already", result)


def refused(
    upkeep: Upkeep,
    refusal: Refusal,
    dead_letters: DeadLetterTarget | None,
    tp: TopicPartition,
    offset: int,
    value: bytes | None,
) -> Steps[None]:
    """Answer a message that is no command, and keep it as a dead letter where there is a topic."""
    if dead_letters is not None:
        target = dead_letters
        facts = {
            REASON_HEADER: refusal.reason,
            "delta_sink.source": f"{tp}@{offset}",
            "delta_sink.message": refusal.message,
        }
        headers = tuple((name, text.encode("utf-8", "replace")) for name, text in facts.items())
        letter = OutgoingRecord(None, value, headers)
        try:
            yield from do("refuse", lambda: target.producer.send(target.topic, [letter]))
        except RetriableError as error:
            upkeep.log.telemetry.event("waiting", "warning", reason=str(error))
    if refusal.id is not None and refusal.table is not None:
        outcome = Outcome(
            refusal.id,
            refusal.table,
            refusal.command or "unknown",
            "refused",
            upkeep.log.clock.wall_ms(),
            upkeep.worker,
            refusal.message,
        )
        yield from publish(upkeep, outcome)
