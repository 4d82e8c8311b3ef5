"""`python -m benchmarks.telemetry_off ARGUMENT …`: `delta-sink ARGUMENT …` that counts nothing.

A user cannot switch counting off; the benchmark can, to know what it costs. Events are logged as
they are.
"""

from __future__ import annotations

import sys

from delta_sink import cli
from delta_sink.adapters.logs import LogTelemetry


def _nothing(*_values: object, **_tags: object) -> None:
    """Count nothing."""


def main(arguments: list[str]) -> None:
    """Run the command line."""
    for name in ("count", "gauge", "observe"):
        setattr(LogTelemetry, name, _nothing)
    cli.cli(arguments, standalone_mode=False)


if __name__ == "__main__":
    main(sys.argv[1:])
