"""Asking a store again: for requests that may be sent twice without harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from delta_sink.delta.commit import BACKOFF_FIRST_MS, BACKOFF_MAX_MS
from delta_sink.errors import ObjectMissing, RetriableError, StoreUnavailable
from delta_sink.ports import Clock, Created, Entropy, ObjectStore

TRIES_MAX = 8
"""Attempts at one request before its caller gives up what it was doing."""

T = TypeVar("T")


def repeat(call: Callable[[], T], clock: Clock, entropy: Entropy) -> T:
    """Return what `call` returns, after at most `TRIES_MAX` attempts with growing pauses.

    Raises:
        RetriableError: no attempt was answered.
    """
    for attempt in range(TRIES_MAX - 1):
        try:
            return call()
        except RetriableError:
            pause_ms = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << attempt)
            clock.sleep_ms(round(pause_ms * (0.5 + entropy.fraction())))
    return call()


def put_once(
    store: ObjectStore, path: str, data: bytes | memoryview, clock: Clock, entropy: Entropy
) -> bool:
    """Return once an object of that name is there; whether this call is known to have put it there.

    "Exists" counts only once the object was seen: some stores say so of a write that lost a race
    although nothing landed.

    Raises:
        RetriableError: no attempt was answered, or the store went on saying so of nothing.
    """

    def attempt() -> bool:
        if isinstance(store.put_if_absent(path, data), Created):
            return True
        try:
            store.get_range(path, 0, 1)
        except ObjectMissing:
            raise StoreUnavailable(f"{path}: the store says it exists, and it does not") from None
        return False

    return repeat(attempt, clock, entropy)
