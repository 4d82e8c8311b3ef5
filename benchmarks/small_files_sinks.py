"""The two sinks of `small_files`: one topic, one with maintenance workers and one without.

All are processes as a user starts them: `delta-sink run writer`, `run compactor`, `run vacuum`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Final, Self

import yaml
from confluent_kafka import Producer

TOPIC: Final = "readings"
PARTITIONS: Final = 2
CONTROL: Final = "small-files.control"
STATUS: Final = "small-files.status"
TOPICS: Final = {TOPIC: PARTITIONS, CONTROL: 2, STATUS: 1}
COMMIT_MS: Final = 100
INTERVAL_MS: Final = 60
"""A batch is due so long after its first record: it takes two lots of records, and the third begins
the next. That is a little more often than every `COMMIT_MS`, since some commits come late."""
RECORDS_PER_S: Final = 500
_TICK_S: Final = 0.045
"""Records come in small lots: of each partition the embedded broker hands out one lot a request."""
_STOP_S_MAX: Final = 40

MAINTAINED: Final = {
    "control": {"topic": CONTROL, "status_topic": STATUS},
    # A table that gets 600 files a minute: they are left alone for five seconds, not a minute.
    "compaction": {"target_file_bytes": "16MiB", "small_files_max": 100, "quiet_ms": 5_000},
    "checkpoint": {"commits_max": 100},
    # Ten minutes show nothing of a retention of hours: what no version needs goes every minute.
    "vacuum": {"retention_hours": 0, "retention_hours_min": 0, "cron": "* * * * *"},
}
"""What the maintained sink's configuration has beside the other's."""


@dataclass(slots=True)
class Sink:
    """The processes of one sink, each with its log in `folder`; the table is in there as well."""

    folder: Path
    maintenance: tuple[str, ...]
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def made(cls, folder: Path, bootstrap_servers: str, *, is_maintained: bool) -> Sink:
        """Return a sink that is configured and does not run yet."""
        folder.mkdir(parents=True)
        config = _configuration(folder, bootstrap_servers)
        config |= MAINTAINED if is_maintained else {}
        sink = cls(folder, ("compactor", "vacuum") if is_maintained else ())
        sink.config.write_text(yaml.safe_dump(config), encoding="utf-8")
        return sink

    @property
    def table(self) -> Path:
        """The table's folder."""
        return self.folder / "table"

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.folder / "sink.yaml"

    def __enter__(self) -> Self:
        """Start the writer, which makes the table."""
        self._start("writer")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them; a worker that does not stop when it is asked to is killed."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def maintain(self) -> None:
        """Start the maintenance workers, where there are to be some."""
        for role in self.maintenance:
            self._start(role)

    def check(self) -> None:
        """Return if all workers run.

        Raises:
            AssertionError: one ended; with the end of its log.
        """
        for role, process in self._processes.items():
            code = process.poll()
            end = self._log(role).read_text(encoding="utf-8")[-2_000:] if code is not None else ""
            assert code is None, f"the {role} ended with {code}: {end}"

    def warnings(self) -> list[str]:
        """Return what the workers logged as warnings and errors."""
        found = []
        for role in self._processes:
            for line in self._log(role).read_text(encoding="utf-8").splitlines():
                event = json.loads(line)
                if event["level"] in ("warning", "error"):
                    found.append(f"{role}: {line}")
        return found

    def audited(self) -> dict[str, object]:
        """Return what `delta-sink audit` finds."""
        done = subprocess.run(
            [*self._command("audit"), "--json"], capture_output=True, timeout=600, check=False
        )
        assert done.stdout, done.stderr.decode()[-2_000:]
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    def _start(self, role: str) -> None:
        with self._log(role).open("wb") as log:
            self._processes[role] = subprocess.Popen(
                self._command("run", role), stdout=log, stderr=log
            )

    def _command(self, *words: str) -> Sequence[str]:
        return [sys.executable, "-m", "delta_sink.cli", *words, "-c", str(self.config)]

    def _log(self, role: str) -> Path:
        return self.folder / f"{role}.log"


def _configuration(folder: Path, bootstrap_servers: str) -> dict[str, object]:
    return {
        "name": folder.name,
        # The embedded broker lets a fetch that finds nothing wait, whatever arrives meanwhile.
        "kafka": {"bootstrap.servers": bootstrap_servers, "fetch.wait.max.ms": 10},
        "source": {"topics": [TOPIC], "topic_ids": "none"},
        "value": {"format": "json"},
        "table": {
            "uri": str(folder / "table"),
            "schema": [
                {"name": "id", "type": "long", "nullable": False},
                {"name": "sensor", "type": "string"},
                {"name": "value", "type": "double"},
            ],
        },
        "flush": {"interval_ms": INTERVAL_MS},
        "locks": {"path": str(folder / "locks.db")},
        "logs": {"format": "json"},
    }


class Feed:
    """Records that come evenly over time, from when it is made until `close`."""

    def __init__(self, bootstrap_servers: str) -> None:
        """Start to produce."""
        self.begun_s = monotonic()
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 5})
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self.records = 0
        self._thread.start()

    def close(self) -> None:
        """End; every record is in the topic then, and `records` says how many there are."""
        self._ended.set()
        self._thread.join()
        left = self._producer.flush(30)
        assert left == 0, f"{left} records were not produced"
        del self._producer  # it would complain that the broker is gone

    def _run(self) -> None:
        while not self._ended.is_set():
            due = int((monotonic() - self.begun_s) * RECORDS_PER_S)
            for number in range(self.records, due):
                self._producer.produce(
                    TOPIC,
                    value=b'{"id":%d,"sensor":"s-%02d","value":%d.5}'
                    % (number, number % 40, number * 7919 % 1000),
                    partition=number % PARTITIONS,
                )
            self.records = max(self.records, due)
            self._producer.poll(0)
            sleep(_TICK_S)
