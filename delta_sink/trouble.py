"""Failures: how long to wait after some in a row, and what is said of one that nobody expected."""

from __future__ import annotations

import traceback
from pathlib import Path

from delta_sink import __version__

RETRY_FIRST_MS = 100
RETRY_MAX_MS = 10_000


def bug_sentence(error: Exception) -> str:
    """Return where an unexpected error came from; its text may hold a value and stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "delta_sink" in frame.filename] or list(frames)
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}"
    return f"this is a bug in delta-sink {__version__}: {type(error).__name__} at {where}"


class Trouble:
    """One thing that may fail and be tried again. Time is an argument."""

    def __init__(self) -> None:
        self._failures = 0
        self._since_ms = 0
        self._reason = ""
        self.retry_at_ms = 0

    def failed(self, reason: str, now_ms: int) -> bool:
        """Count a failure; return whether a person should be told (it is new, or another)."""
        if self._failures == 0:
            self._since_ms = now_ms
        self.retry_at_ms = now_ms + min(RETRY_MAX_MS, RETRY_FIRST_MS << min(self._failures, 10))
        self._failures += 1
        is_news = self._failures == 1 or reason != self._reason
        self._reason = reason
        return is_news

    def lasted_ms(self, now_ms: int) -> int:
        """Return for how long it has failed; 0 if it has not."""
        return now_ms - self._since_ms if self._failures else 0

    def is_over(self) -> None:
        """Forget the failures: it worked."""
        self._failures = 0
