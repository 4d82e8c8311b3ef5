"""Traces: which steps one piece of work took, and when each began and ended. Pure.

Times are on the elapsed clock, in whole milliseconds: a shorter step begins and ends at once. What
traces there are and what their steps are called is declared in `telemetry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from msgspec import Struct, field

T = TypeVar("T")

SPANS_MAX: Final = 500
"""So many steps of one piece of work are kept; what comes after is left out."""


class Span(Struct, frozen=True):
    """One step. `is_failed` says that it ended with an error."""

    name: str
    begun_ms: int
    ended_ms: int
    is_failed: bool = False


class Trace(Struct, frozen=True):
    """One piece of work that has ended; `error` says why it came to nothing."""

    name: str
    begun_ms: int
    ended_ms: int
    spans: tuple[Span, ...]
    fields: Mapping[str, object] = field(default_factory=dict)
    error: str | None = None


class Spans(Struct):
    """The steps of a piece of work that is under way. Jobs of any thread may add to them.

    `now_ms` is the elapsed clock, or None where nobody wants traces: then nothing is kept, and a
    function is returned as it is.
    """

    now_ms: Callable[[], int] | None = None
    found: list[Span] = field(default_factory=list)

    def add(self, name: str, begun_ms: int) -> None:
        """Keep a step that ends now."""
        if self.now_ms is not None:
            self._keep(Span(name, begun_ms, self.now_ms()))

    def join(self, other: Spans) -> None:
        """Keep the steps of `other` too."""
        for span in other.found:
            self._keep(span)

    def timed(self, name: str, function: Callable[[], T]) -> Callable[[], T]:
        """Return a function that does the same, and is kept as a step when it has ended."""
        now_ms = self.now_ms
        if now_ms is None:
            return function

        def step() -> T:
            begun_ms, is_failed = now_ms(), True
            try:
                result = function()
                is_failed = False
                return result
            finally:
                self._keep(Span(name, begun_ms, now_ms(), is_failed))

        return step

    def _keep(self, span: Span) -> None:
        if len(self.found) < SPANS_MAX:
            self.found.append(span)
