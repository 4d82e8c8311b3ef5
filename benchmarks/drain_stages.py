"""`python -m benchmarks.drain_stages COUNTS ARGUMENT …`: `delta-sink ARGUMENT …`, its CPU counted.

What runs is the worker as users run it; around a few of its functions, each called once for many
records, the thread's own CPU time is read. The seconds of each stage go into the file COUNTS as
JSON. What no stage of Python's threads accounts for was used by librdkafka's own threads.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import process_time, thread_time
from typing import Any, Final, ParamSpec, TypeVar

from delta_sink import cli
from delta_sink.adapters.kafka import KafkaConsumer
from delta_sink.adapters.system import ThreadJobs
from delta_sink.decode.json import ArrowFastPath
from delta_sink.decode.native import NativeDecoder
from delta_sink.writer import Writer

P = ParamSpec("P")
T = TypeVar("T")

STAGES: Final = (
    "start",
    "consume",
    "columns",
    "state thread, rest",
    "decode: compiled",
    "decode: pyarrow",
    "decode: rest",
    "encode",
    "put and commit",
    "librdkafka",
)


class _Counts:
    """CPU seconds by the name of what was counted; functions within others are in both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    def counted(self, name: str, function: Callable[P, T]) -> Callable[P, T]:
        """Return `function`, with the CPU time of its calls added up under `name`."""

        def call(*arguments: P.args, **named: P.kwargs) -> T:
            begun = thread_time()
            try:
                return function(*arguments, **named)
            finally:
                taken = thread_time() - begun
                with self._lock:
                    self.seconds[name] = self.seconds.get(name, 0.0) + taken

        return call


def _install(counts: _Counts) -> dict[str, float]:
    """Count what the worker does from now on; return where the start's share will be."""
    marks: dict[str, float] = {}
    submit = ThreadJobs.submit

    def submit_counted(self: ThreadJobs, name: str, function: Callable[[], T]) -> Any:
        return submit(self, name, counts.counted(f"job {name}", function))

    run = Writer.run

    def run_counted(self: Writer) -> None:
        marks["start"] = process_time()
        counts.counted("run", run)(self)

    patched: list[tuple[Any, str, Any]] = [
        (ThreadJobs, "submit", submit_counted),
        (Writer, "run", run_counted),
        (KafkaConsumer, "poll", counts.counted("poll", KafkaConsumer.poll)),
        (KafkaConsumer, "_taken", counts.counted("columns", KafkaConsumer._taken)),
        (NativeDecoder, "decode", counts.counted("plain", NativeDecoder.decode)),
        # What it leaves, or all where it is not compiled:
        (ArrowFastPath, "__call__", counts.counted("pyarrow", ArrowFastPath.__call__)),
    ]
    for owner, name, function in patched:
        setattr(owner, name, function)
    return marks


def stages_of(found: dict[str, float], *, start: float, total: float) -> dict[str, float]:
    """Return the CPU seconds of each of `STAGES`, which add up to `total`."""

    def of(name: str) -> float:
        return found.get(name, 0.0)

    stages = {
        "start": start,
        "consume": of("poll") - of("columns"),
        "columns": of("columns"),
        "state thread, rest": of("run") - of("poll"),
        "decode: compiled": of("plain"),
        "decode: pyarrow": of("pyarrow"),
        "decode: rest": of("job decode") - of("plain") - of("pyarrow"),
        "encode": of("job encode"),
        "put and commit": sum(
            seconds
            for name, seconds in found.items()
            if name.startswith("job ") and name not in ("job decode", "job encode")
        ),
    }
    return {**stages, "librdkafka": total - sum(stages.values())}


def main(arguments: list[str]) -> None:
    """Run the command line and write what was counted."""
    path, *command = arguments
    counts = _Counts()
    marks = _install(counts)
    try:
        cli.cli(command, standalone_mode=False)
    finally:
        stages = stages_of(counts.seconds, start=marks["start"], total=process_time())
        Path(path).write_text(json.dumps(stages), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
