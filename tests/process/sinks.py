"""Writers as processes, a producer with a ledger, and the comparison of the two.

The ledger is what the producer knows: for each acknowledged record its partition, offset and a
hash of its payload. The table is read through deltalake, raw rows, nothing made distinct.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from confluent_kafka import Consumer, Message, Producer
from confluent_kafka import TopicPartition as Place
from deltalake import DeltaTable

from delta_sink.delta.actions import Entry, parse_entry
from delta_sink.delta.receipt import receipt_of

TOPIC = "events"
SESSION_MS = 2500

SCHEMA = [
    {"name": "id", "type": "long", "nullable": False},
    {"name": "payload", "type": "string", "nullable": False},
]


def write_config(folder: Path, bootstrap: str, **overrides: Any) -> Path:
    """Write a sink's file into `folder` and return its path; groups of `overrides` are merged."""
    config: dict[str, Any] = {
        "name": "events-sink",
        "kafka": {
            "bootstrap.servers": bootstrap,
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": 300,
        },
        "source": {"topics": [TOPIC], "topic_ids": "none"},
        "value": {"format": "json"},
        "table": {"uri": str(folder / "table"), "schema": SCHEMA},
        "flush": {"interval_ms": 100},
        "locks": {"path": str(folder / "locks.db")},
        "logs": {"format": "json", "level": "debug"},
    }
    for group, values in overrides.items():
        if isinstance(values, Mapping) and isinstance(config.get(group), dict):
            config[group] = {**config[group], **values}
        else:
            config[group] = values
    path = folder / "sink.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


@dataclass
class WriterProcess:
    """One `delta-sink run writer`, with its JSON log in a file."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the events logged so far, or those of one name."""
        found = []
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the last line of a killed process may be cut
            if isinstance(event, dict) and (name is None or event.get("event") == name):
                found.append(event)
        return found

    def words(self) -> list[str]:
        """Return the lines that are no log events: what the process told a person."""
        return words_of(self.log_path.read_text(encoding="utf-8"))

    def worker_id(self) -> str | None:
        started = self.events("worker_started")
        return started[0]["worker"] if started else None

    def steps_out(self) -> list[str]:
        """Return the jobs that had begun and not ended when the log ends."""
        out: Counter[str] = Counter()
        for event in self.events():
            if event.get("event") == "job_started":
                out[event["job"]] += 1
            elif event.get("event") == "job_ended":
                out[event["job"]] -= 1
        return sorted(name for name, count in out.items() if count > 0) or ["poll"]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout_s: float = 40.0) -> int:
        """Ask to stop as Kubernetes would, and return the exit code.

        One that has just been started is given time for it: asked while Python starts, it knows
        no better than to die of the signal.
        """
        patience_s = time.monotonic() + 10
        while self.worker_id() is None and self.process.poll() is None:
            if time.monotonic() > patience_s:
                break  # it is kept from starting, which is what the test is about
            time.sleep(0.05)
        self.process.terminate()
        return self.process.wait(timeout=timeout_s)


class Sink:
    """A sink's file and the writers started on it; every process ends with the context."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder = folder
        self.config = config
        self.writers: list[WriterProcess] = []
        self.env: dict[str, str] = {}
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers:
            if writer.process.poll() is None:
                # A stopped process does not see a SIGKILL's wait until it is continued.
                writer.process.send_signal(signal.SIGCONT)
                writer.kill()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "delta_sink.cli", *arguments, "-c", str(self.config)]

    def start(self, *arguments: str, role: str = "writer") -> WriterProcess:
        """Start a worker's process: a writer, or one of `role`."""
        self._count += 1
        log_path = self.folder / f"{role}-{self._count}.jsonl"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                self.command("run", role, *arguments),
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self._environment(),
            )
        writer = WriterProcess(process, log_path)
        self.writers.append(writer)
        return writer

    def run(self, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self._environment(),
            timeout=timeout_s,
            check=False,
        )

    def _environment(self) -> dict[str, str]:
        """Return the environment of a command: ours, with `env` over it."""
        return {**os.environ, "PYTHONUNBUFFERED": "1", **self.env}

    def drain(self, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a writer up to the ends of its topics; it must leave with 0."""
        try:
            done = self.run("run", "writer", "--until-end", *arguments, timeout_s=timeout_s)
        except subprocess.TimeoutExpired as error:
            log = (error.stderr or b"").decode()
            raise AssertionError(f"not at the end in {timeout_s} s: {log[-3000:]}") from None
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    def compare(self, ledger: Ledger) -> dict[str, int]:
        """Return how many records of the ledger are lost, doubled, altered or unknown."""
        return compare(self.folder / "table", ledger)

    def audit(self) -> dict[str, Any]:
        """Return what `audit --deep --json` prints."""
        done = self.run("audit", "--deep", "--json")
        assert done.stdout, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert (done.returncode == 0) == found["ok"], done
        return found

    def entries(self) -> list[Entry]:
        """Return the table's log."""
        log = self.folder / "table" / "_delta_log"
        return [
            parse_entry(int(path.stem), path.read_bytes(), "")
            for path in sorted(log.glob("*.json"))
        ]

    def committed_records(self) -> int:
        """Return how many records the log says are committed."""
        return sum(
            part.records
            for entry in self.entries()
            if (receipt := receipt_of(entry)) is not None and receipt.kind == "append"
            for part in receipt.partitions
        )

    def commits_of(self, worker: str | None) -> int:
        """Return how many append commits a worker has in the log."""
        return sum(
            receipt.worker == worker and receipt.kind == "append"
            for entry in self.entries()
            if (receipt := receipt_of(entry)) is not None
        )


@dataclass
class Ledger:
    """What the brokers acknowledged: (topic, partition, offset) → hash of the payload."""

    acknowledged: dict[tuple[str, int, int], str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.acknowledged)


def digest(payload: str) -> str:
    """Return the hash by which payloads are compared."""
    return hashlib.sha256(payload.encode()).hexdigest()[:16]


class LedgerProducer:
    """Produces records at a steady rate in a thread, and keeps the ledger.

    One that a failed test has left running is stopped after that test (`tests/conftest.py`).
    """

    running: ClassVar[set[LedgerProducer]] = set()

    def __init__(
        self,
        bootstrap: str,
        partitions: int,
        rate_per_s: float,
        topic: str = TOPIC,
        **settings: Any,
    ) -> None:
        self.ledger = Ledger()
        self._topic = topic
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, **settings})
        self._partitions = partitions
        self._rate_per_s = rate_per_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.running.add(self)
        self._thread.start()

    def stop(self) -> Ledger:
        """Stop, wait for every acknowledgement, and return the ledger."""
        self.end()
        self._producer.flush()
        return self.ledger

    def end(self) -> None:
        """Return when nothing more is produced; what is under way may be lost."""
        self._stopped.set()
        if self in self.running:
            self.running.remove(self)
            self._thread.join()

    def produce(self, numbers: Iterable[int]) -> None:
        """Produce records of these ids now."""
        for number in numbers:
            payload = f"payload of {number} " + "é" * (number % 7)
            value = json.dumps({"id": number, "payload": payload}).encode()
            self._producer.produce(
                self._topic,
                value=value,
                partition=number % self._partitions,
                on_delivery=self._noted(digest(payload)),
            )

    def flush(self) -> None:
        self._producer.flush()

    def _noted(self, payload_digest: str) -> Any:
        def delivered(error: object, message: Any) -> None:
            assert error is None, error
            key = (message.topic(), message.partition(), message.offset())
            assert key not in self.ledger.acknowledged
            self.ledger.acknowledged[key] = payload_digest

        return delivered

    def _run(self) -> None:
        started_s = time.monotonic()
        number = 0
        while not self._stopped.is_set():
            due = int((time.monotonic() - started_s) * self._rate_per_s)
            if due > number:
                self.produce(range(number, due))
                number = due
            self._producer.poll(0.01)


def words_of(text: str) -> list[str]:
    """Return the lines of `text` that are no JSON: of a command's stderr, its last words."""
    return [line for line in text.splitlines() if line and not line.startswith("{")]


def sentences_of(text: str) -> list[str]:
    """Return what a command that failed told a person: its last words, in the log or beside it."""
    failed = [str(event["error"]) for event in events_of(text, "worker_failed")]
    return [*words_of(text), *failed]


def events_of(text: str, name: str) -> list[dict[str, Any]]:
    """Return the events of one name in a JSON log."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [event for event in lines if event.get("event") == name]


def values(numbers: Iterable[int], padding: int = 0) -> list[bytes]:
    """Return a record's value for each number; `padding` makes it longer by so many letters."""
    return [
        json.dumps({"id": number, "payload": f"payload of {number}" + "x" * padding}).encode()
        for number in numbers
    ]


def produce(
    bootstrap: str,
    topic: str,
    records: Iterable[bytes | None],
    *,
    partitions: int = 1,
    key: bytes | None = None,
    headers: list[tuple[str, bytes]] | None = None,
) -> None:
    """Return once the brokers have every record, spread over `partitions` in turn."""
    failed = []
    config = {"bootstrap.servers": bootstrap, "linger.ms": 5, "message.max.bytes": 16 << 20}
    producer = Producer(config)

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            failed.append(error)

    for number, value in enumerate(records):
        while True:
            try:
                producer.produce(
                    topic,
                    value=value,
                    key=key,
                    headers=headers,
                    partition=number % partitions,
                    on_delivery=delivered,
                )
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    assert producer.flush(30) == 0
    assert not failed, failed[0]


def records_in(bootstrap: str, topic: str) -> list[Message]:
    """Return every record that partition 0 of a topic holds."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "a-reader-of-tests",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 32 << 20,
            "receive.message.max.bytes": 64 << 20,
        }
    )
    try:
        first, end = consumer.get_watermark_offsets(Place(topic, 0), timeout=10)
        consumer.assign([Place(topic, 0, first)])
        found: list[Message] = []
        while (missing := end - first - len(found)) > 0:
            messages = consumer.consume(min(1000, missing), timeout=10)
            assert messages, f"{topic}: {len(found)} of {end - first} records"
            found += messages
        return found
    finally:
        consumer.close()


def compare(table: Path, ledger: Ledger) -> dict[str, int]:
    """Return what `compare_table` says of the table in a folder."""
    return compare_table(DeltaTable(str(table)), ledger)


def compare_table(table: DeltaTable, ledger: Ledger) -> dict[str, int]:
    """Return how many records of the ledger are lost, doubled, altered or unknown in the table."""
    rows = table.to_pyarrow_table(
        columns=["payload", "_kafka_topic", "_kafka_partition", "_kafka_offset"]
    )
    seen: Counter[tuple[str, int, int]] = Counter()
    altered = 0
    for payload, topic, partition, offset in zip(
        *(rows.column(name).to_pylist() for name in rows.column_names), strict=True
    ):
        key = (topic, partition, offset)
        seen[key] += 1
        altered += ledger.acknowledged.get(key) != digest(payload)
    return {
        "rows": rows.num_rows,
        "lost": sum(key not in seen for key in ledger.acknowledged),
        "doubled": sum(count - 1 for count in seen.values()),
        "altered": altered,
    }


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Return when `condition()` is true; fail with `what` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)
