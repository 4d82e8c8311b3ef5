"""Whether a dependency answers, asked again and again in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from delta_sink.adapters.logs import LogTelemetry
from delta_sink.errors import DeltaSinkError
from delta_sink.ports import Clock
from delta_sink.status import Reach
from delta_sink.telemetry import DEPENDENCY_FOUND, DEPENDENCY_LOST

PERIOD_MS: Final = 10_000
DOWN_PERIOD_MS: Final = 1_000
"""What does not answer is asked more often, so that its return is seen soon."""


class HealthCheck:
    """Asks one dependency every `period_ms`; `reach` says what came of it last.

    `ask` returns when the dependency answered, and raises a DeltaSinkError when it did not.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], None],
        *,
        clock: Clock,
        telemetry: LogTelemetry,
        period_ms: int = PERIOD_MS,
    ) -> None:
        self.name = name
        self.reach = Reach()
        self._ask = ask
        self._clock = clock
        self._telemetry = telemetry
        self._period_ms = period_ms
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"health-{name}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self) -> None:
        """Ask no more; a question that is out is not waited for."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            sentence = self._failure()
            self._note(sentence)
            wait_ms = self._period_ms if sentence is None else DOWN_PERIOD_MS
            self._ended.wait(min(wait_ms, self._period_ms) / 1000)

    def _failure(self) -> str | None:
        """Ask once; return what is wrong, or None."""
        try:
            self._ask()
        except DeltaSinkError as error:
            return self._telemetry.clean_text(str(error))
        except Exception as error:  # noqa: BLE001  # a check that breaks is a check that failed
            return f"the check ended with {type(error).__name__}"
        return None

    def _note(self, sentence: str | None) -> None:
        before, wall_ms = self.reach, self._clock.wall_ms()
        is_up = sentence is None
        if before.is_up == is_up:
            if not is_up:
                self.reach = Reach(is_up, sentence or "", before.since_ms)
            return
        self.reach = Reach(is_up, sentence or "it answers", wall_ms)
        if sentence is not None:
            self._telemetry.event(DEPENDENCY_LOST, dependency=self.name, error=sentence)
        elif before.since_ms is not None:
            self._telemetry.event(
                DEPENDENCY_FOUND, dependency=self.name, duration_ms=wall_ms - before.since_ms
            )
