"""Mounted secrets that change: the files that a configuration was read from are looked at again.

A worker keeps the secrets that it began with. Once one of its files holds something else, and holds
the same at the next look, the worker is asked to stop, so that whoever runs it starts it with the new one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from delta_sink.ports import Telemetry
from delta_sink.telemetry import SECRET_CHANGED

LOOK_S: Final = 10.0


class SecretFiles:
    """The files that were read, as they were then. No content is kept, only what it comes to."""

    def __init__(self) -> None:
        self._known: dict[str, bytes] = {}

    def read(self, path: str) -> str:
        """Return the text of a file, and remember it. Raises OSError as `open` does."""
        text = Path(path).read_text(encoding="utf-8")
        self._known[path] = _digest(text.encode())
        return text

    def note(self, path: str) -> None:
        """Remember a file that a library reads; one that cannot be read is left to the library."""
        found = _digest_of(path)
        if found is not None:
            self._known[path] = found

    def changed(self) -> dict[str, bytes]:
        """Return the files that hold something else now. One that is not there has not changed."""
        found = {path: _digest_of(path) for path in self._known}
        return {p: d for p, d in found.items() if d is not None and d != self._known[p]}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not self._known


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _digest_of(path: str) -> bytes | None:
    try:
        return _digest(Path(path).read_bytes())
    except OSError:
        return None


class SecretWatch:
    """Looks at the files every `look_s` in a thread of its own, until one has changed or `close`."""

    def __init__(
        self,
        files: SecretFiles,
        request_stop: Callable[[], None],
        telemetry: Telemetry,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._files = files
        self._request_stop = request_stop
        self._telemetry = telemetry
        self._look_s = look_s
        self._ended = threading.Event()
        if not files.is_empty:
            threading.Thread(target=self._run, name="secrets", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()

    def _run(self) -> None:
        before: dict[str, bytes] = {}
        while not self._ended.wait(self._look_s):
            changed = self._files.changed()
            # Seen twice alike: a file that is just being written is not read by the next start.
            if changed and changed == before:
                self._telemetry.event(SECRET_CHANGED, reason=", ".join(sorted(changed)))
                self._request_stop()
                return
            before = changed
