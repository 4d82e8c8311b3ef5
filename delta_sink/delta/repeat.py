"""Asking a store again: for requests that may be sent twice without harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from delta_sink.delta.commit import BACKOFF_FIRST_MS, BACKOFF_MAX_MS
from delta_sink.errors import RetriableError
from delta_sink.ports import Clock, Entropy

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
