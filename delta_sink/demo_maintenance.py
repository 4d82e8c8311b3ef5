"""The demo's last act: thousands of small files, compacted and vacuumed while orders keep coming.

Late orders of many days come in, so that each commit makes a file for each of these days. Two
`compact` commands race each other over the control topic, then a `vacuum` deletes what nothing
needs any more. After each step the table is audited.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Producer
from msgspec import Struct, field
from rich.console import Console
from rich.table import Table as Grid

from delta_sink.control import Command, Compact, Outcome, Vacuum
from delta_sink.control_client import follow, send_command, status_ends
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.demo_records import orders
from delta_sink.demo_workers import DemoFailed, Workers
from delta_sink.wiring import Parts, make_control_client

LATE_DAYS = 40
COMPACTORS = 2
LATE_S = 12.0
"""About so long late orders come before the table is compacted, and again afterwards."""

LATE_PER_S = 4_000

BEFORE_SHARE = 0.7
ANSWER_MS_MAX = 120_000
BUCKETS = (4, 16, 64, 256, 1024, 4096)
"""Upper bounds of the histogram, in KiB."""

BAR = 40


class Sizes(Struct):
    """The live files of the table, as their sizes in bytes."""

    sizes: list[int]

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)

    def rows(self) -> list[tuple[str, int]]:
        """Return how many files there are in each bucket."""
        found: list[tuple[str, int]] = []
        below = 0
        for bound in BUCKETS:
            count = sum(below * 1024 <= size < bound * 1024 for size in self.sizes)
            found.append((f"< {bound:,} KiB", count))
            below = bound
        return [*found, (f"≥ {below:,} KiB", sum(size >= below * 1024 for size in self.sizes))]


class Maintenance(Struct):
    """The act: `audit` returns what `delta-sink audit --json` prints, `look` follows the log."""

    console: Console
    parts: Parts
    workers: Workers
    look: Callable[[], None]
    audit: Callable[[], dict[str, Any]]
    _produced: threading.Event = field(default_factory=threading.Event)

    def run(self, bootstrap: str, topic: str, partitions: int, *, first: int, count: int) -> None:
        """Return when the table is compacted and vacuumed, and all late orders are produced.

        Raises:
            DemoFailed: a command was not carried out, or an audit is not clean.
        """
        for _ in range(COMPACTORS):
            self.workers.start("compactor")
        self.workers.start("vacuum")
        late = list(orders(count, seed=2, first=first, days=LATE_DAYS, mixed=True))
        before = int(count * BEFORE_SHARE)
        late_s = min(LATE_S, count / LATE_PER_S)
        self.console.print(
            f"\n[bold]maintenance[/]  {count:,} late orders of {LATE_DAYS} days; "
            f"{COMPACTORS} compactors and a vacuum started"
        )
        _produce(bootstrap, topic, partitions, late[:before], late_s)
        rest = threading.Thread(
            target=_produce, args=(bootstrap, topic, partitions, late[before:], late_s), daemon=True
        )
        rest.start()
        sizes = self._sizes()
        self._print(sizes, "before", sizes)
        self._compact(sizes)
        self._vacuum()
        rest.join()

    def _compact(self, before: Sizes) -> None:
        first, second = self._ask(Compact(), Compact())
        figures = [outcome.result for outcome in (first, second)]
        removed = sum(_number(each, "files_removed") for each in figures)
        added = sum(_number(each, "files_added") for each in figures)
        self.console.print(
            f"  two [cyan]compact[/] commands raced: {removed:,} files became {added:,}, while "
            f"orders kept coming"
        )
        self._print(self._sizes(), "after", before)
        self._audited("after the compaction")

    def _vacuum(self) -> None:
        [done] = self._ask(Vacuum(dry_run=False))
        size_mb = _number(done.result, "bytes_deleted") / 1e6
        self.console.print(
            f"  [cyan]vacuum[/], no retention: {_number(done.result, 'files_deleted'):,} files, "
            f"{size_mb:.1f} MB deleted"
        )
        self._audited("after the vacuum")

    def _ask(self, *wanted: Compact | Vacuum) -> list[Outcome]:
        """Send commands at once, and return the outcome of each."""
        client = make_control_client(self.parts)
        log = self.parts.log
        since = status_ends(client)
        commands = [
            Command(log.entropy.unique_id(), self.parts.table_uri, args, log.clock.wall_ms())
            for args in wanted
        ]
        for command in commands:
            send_command(client, command)
        outcomes = []
        for command in commands:
            final = follow(client, command.id, since, timeout_ms=ANSWER_MS_MAX, told=self._told)
            if final is None or final.state != "succeeded":
                said = "no outcome in time" if final is None else f"{final.state}: {final.message}"
                raise DemoFailed(f"{command.command}: {said}; see the workers' logs")
            outcomes.append(final)
        return outcomes

    def _told(self, outcome: Outcome) -> None:
        self.look()
        self.workers.check()

    def _sizes(self) -> Sizes:
        snapshot = read_snapshot(self.parts.log)
        assert snapshot is not None, "the table was there before"
        return Sizes(snapshot.files()["size"].to_pylist())

    def _print(self, now: Sizes, when: str, before: Sizes) -> None:
        most = max(count for _, count in before.rows())
        grid = Grid.grid(padding=(0, 2))
        for name, count in now.rows():
            grid.add_row(f"  {name}", f"{count:,}", "█" * round(BAR * min(count, most) / most))
        self.console.print(f"  {when}: {len(now.sizes):,} files, {now.total_bytes / 1e6:.1f} MB")
        self.console.print(grid)

    def _audited(self, when: str) -> None:
        found = self.audit()
        if not found["ok"]:
            raise DemoFailed(f"the audit {when}: {'; '.join(found['violations'][:3])}")
        self.console.print(f"  audit {when}: [green]ok[/] at version {found['table_version']}")


def _produce(
    bootstrap: str,
    topic: str,
    partitions: int,
    records: list[tuple[bytes, bytes]],
    duration_s: float,
) -> None:
    """Produce the records evenly over the time."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    began_s = time.monotonic()
    for number, (key, value) in enumerate(records):
        producer.produce(topic, value=value, key=key, partition=number % partitions)
        if number % 100 == 0:
            producer.poll(0)
            ahead_s = duration_s * number / len(records) - (time.monotonic() - began_s)
            if ahead_s > 0:
                time.sleep(ahead_s)
    producer.flush()


def _number(figures: Mapping[str, object], name: str) -> int:
    value = figures.get(name)
    return value if isinstance(value, int) else 0
