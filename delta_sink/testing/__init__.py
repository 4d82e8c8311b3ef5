"""Run the workers of delta-sink in a seeded world of fakes; `docs/testing.md` shows how.

It needs `greenlet`: `pip install 'delta-sink[testing]'`.
"""

from __future__ import annotations

from delta_sink.testing.fakes import (
    FakeKafka,
    FakeLeases,
    FakeRegistry,
    FakeStore,
    FakeTelemetry,
    Host,
)
from delta_sink.testing.workers import make_log, make_maintainer, make_writer
from delta_sink.testing.world import Killed, Task, World, WorldError

__all__ = [
    "FakeKafka",
    "FakeLeases",
    "FakeRegistry",
    "FakeStore",
    "FakeTelemetry",
    "Host",
    "Killed",
    "Task",
    "World",
    "WorldError",
    "make_log",
    "make_maintainer",
    "make_writer",
]
