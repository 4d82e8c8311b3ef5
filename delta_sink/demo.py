"""`delta-sink demo`: the whole job on embedded parts, with a writer killed in the middle.

One process is the broker and the producer and watches the table's log; two more are ordinary
writers, started as a user would start them. What is shown is measured from outside: freshness is
the time from a record's production to the moment at which the watcher saw its commit in the log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import yaml
from confluent_kafka import Producer
from msgspec import Struct, field
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table as Grid

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.cli_options import EXIT_WRONG
from delta_sink.delta.actions import Entry
from delta_sink.delta.hive import object_path
from delta_sink.delta.receipt import receipt_of
from delta_sink.demo_maintenance import Maintenance
from delta_sink.demo_records import COLUMNS, orders
from delta_sink.demo_workers import DemoFailed, Workers
from delta_sink.wiring import Parts, load_settings, make_parts

TOPIC = "orders"
CONTROL, STATUS = "orders.control", "orders.status"
SINK = "orders"
PARTITIONS_MIN = 8
PARTITIONS_MAX = 64
PARTITION_RECORDS_MAX = 15_000
"""The embedded broker keeps 5 MiB of a partition; so many records stay well below it."""

WINDOW_RECORDS = 10_000
"""With more records than the broker can keep, the producer stays so close to the table."""

LATE_PARTS = 6
"""One order of so many comes late, in the last act, and for any of many days."""

KILL_AT = 0.45
WATCH_S = 0.005
PRODUCE_S = 12.0
"""The records are spread over about so long, so that there is something to watch."""

FINISH_S_MAX = 120.0


class Seen(Struct):
    """What the watcher saw of the log: when each version appeared, and what it carried."""

    versions_ms: dict[int, float] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    records: int = 0
    commits: int = 0
    first_s: float | None = None
    last_s: float = 0.0


class Watcher:
    """Follows the table's log from outside, entry by entry."""

    def __init__(self, parts: Parts) -> None:
        self._log = parts.log
        self._next = 0
        self.seen = Seen()

    def look(self) -> None:
        """Take every entry that has appeared since the last look."""
        while (entry := self._log.entries.read(self._next)) is not None:
            seen = self.seen
            seen.versions_ms[self._next] = time.time() * 1000
            seen.entries.append(entry)
            self._next += 1
            receipt = receipt_of(entry)
            if receipt is None or receipt.kind != "append":
                continue
            seen.records += sum(part.records for part in receipt.partitions)
            seen.commits += 1
            now_s = time.monotonic()
            seen.first_s = seen.first_s or now_s
            seen.last_s = now_s


class Produced(Struct):
    """How many records the producer has handed to the broker."""

    records: int = 0
    is_done: bool = False
    error: BaseException | None = None


def _produce(bootstrap: str, count: int, partitions: int, produced: Produced, seen: Seen) -> None:
    """Produce `count` records, evenly over time, never further ahead than the broker keeps."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    window = partitions * WINDOW_RECORDS
    started_s = time.monotonic()
    try:
        for number, (key, value) in enumerate(orders(count)):
            producer.produce(TOPIC, value=value, key=key, partition=number % partitions)
            produced.records = number + 1
            if number % 200:
                continue
            producer.poll(0)
            ahead_s = PRODUCE_S * number / count - (time.monotonic() - started_s)
            if ahead_s > 0:
                time.sleep(ahead_s)
            while number - seen.records > window:
                time.sleep(0.01)
        producer.flush()
    except BaseException as error:  # noqa: BLE001  # handed to the main thread, which raises it
        produced.error = error
    produced.is_done = True


def _write_config(folder: Path, bootstrap: str) -> Path:
    config = {
        "name": SINK,
        "kafka": {
            "bootstrap.servers": bootstrap,
            # A killed writer is noticed within seconds, so that the demo stays short.
            "session.timeout.ms": 2000,
            "heartbeat.interval.ms": 200,
        },
        "source": {"topics": [TOPIC], "topic_ids": "none"},
        "value": {"format": "json"},
        "table": {
            "uri": str(folder / "table"),
            "schema": COLUMNS,
            "partition_by": ["day"],
            "comment": "Made by delta-sink demo.",
        },
        "flush": {"interval_ms": 250},
        "locks": {"path": str(folder / "locks.db")},
        "http": {"port": 0},
        "control": {"topic": CONTROL, "status_topic": STATUS},
        # The demo asks for everything itself, and at once.
        "compaction": {
            "target_file_bytes": "32MiB",
            "quiet_ms": 0,
            "small_files_max": 1_000_000,
            "age_max_ms": 3_600_000,
        },
        "vacuum": {"retention_hours": 0, "retention_hours_min": 0},
    }
    path = folder / "sink.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


@click.command("demo")
@click.option("--records", default=300_000, show_default=True, help="How many records to produce.")
@click.option("--keep", metavar="DIR", help="Where to put the table; kept. Must not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end.")
def demo(records: int, keep: str | None, as_json: bool) -> None:
    """Run the whole job here: writers, one of them killed, compaction, vacuum, the audit."""
    folder = Path(keep).absolute() if keep else default_folder()
    if not run_demo(records=records, folder=folder, as_json=as_json):
        raise click.exceptions.Exit(EXIT_WRONG)


def run_demo(*, records: int, folder: Path, as_json: bool) -> bool:
    """Run the demo in `folder`, print what came of it, return whether all is exactly once.

    Raises:
        DemoFailed: a writer died by itself, or the table did not get everything in time.
    """
    console = Console(stderr=as_json, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise DemoFailed(f"{folder} is not empty: name a folder that does not exist yet")
    partitions = min(PARTITIONS_MAX, max(PARTITIONS_MIN, -(-records // PARTITION_RECORDS_MAX)))
    with EmbeddedBroker({TOPIC: partitions, CONTROL: 4, STATUS: 1}) as broker:
        config = _write_config(folder, broker.bootstrap_servers)
        parts = make_parts(load_settings([str(config)], []), quiet=True)
        watcher = Watcher(parts)
        writers = Workers(folder, config)
        late = records // LATE_PARTS
        console.print(
            f"[bold]delta-sink demo[/]  {records:,} orders → topic [cyan]{TOPIC}[/] "
            f"({partitions} partitions, embedded broker) → Delta table, two writers"
        )
        try:
            _ingest(console, watcher, writers, broker.bootstrap_servers, records - late, partitions)
            figures = _figures(folder, watcher.seen)
            _print_ingested(console, folder, watcher.seen, figures)
            act = Maintenance(console, parts, writers, watcher.look, lambda: _audit(config))
            act.run(broker.bootstrap_servers, TOPIC, partitions, first=records - late, count=late)
            _wait_for_rest(watcher, writers, records)
        finally:
            writers.stop()
        watcher.look()
        audit = _audit(config, "--deep")
    result = _result(folder, watcher.seen, records, audit, figures)
    _print_end(console, folder, result, audit)
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    return bool(result["ok"])


def _ingest(
    console: Console,
    watcher: Watcher,
    writers: Workers,
    bootstrap: str,
    records: int,
    partitions: int,
) -> None:
    """Return once every record is in the table, one writer having been killed on the way."""
    for _ in range(2):
        writers.start("writer")
    _wait_for_table(watcher, writers)
    produced = Produced()
    threading.Thread(
        target=_produce, args=(bootstrap, records, partitions, produced, watcher.seen), daemon=True
    ).start()
    killed = False
    for _ in _watching(console, watcher, produced, records):
        writers.check()
        if produced.error is not None:
            raise DemoFailed(f"the producer failed: {produced.error}")
        if not killed and watcher.seen.records >= records * KILL_AT:
            killed = True
            pid = writers.kill_one()
            number = writers.start("writer")
            console.print(
                f"  [red]SIGKILL[/] to a writer (pid {pid}) at table version "
                f"{len(watcher.seen.entries) - 1}; writer {number} started in its place"
            )


def _wait_for_rest(watcher: Watcher, writers: Workers, records: int) -> None:
    deadline_s = time.monotonic() + FINISH_S_MAX
    while watcher.seen.records < records:
        watcher.look()
        writers.check()
        if time.monotonic() > deadline_s:
            raise DemoFailed(f"the table has {watcher.seen.records:,} of {records:,} records")
        time.sleep(0.05)


def _wait_for_table(watcher: Watcher, writers: Workers) -> None:
    deadline_s = time.monotonic() + FINISH_S_MAX
    while len(watcher.seen.entries) < 2:
        watcher.look()
        writers.check()
        if time.monotonic() > deadline_s:
            raise DemoFailed("the writers did not create the table in time")
        time.sleep(0.02)


def _watching(
    console: Console, watcher: Watcher, produced: Produced, records: int
) -> Iterator[None]:
    """Yield after each look at the log until the table has all records; show how far it is."""
    deadline_s = time.monotonic() + FINISH_S_MAX + PRODUCE_S + records / 10_000
    columns = (
        TextColumn("  {task.description:9}"),
        BarColumn(bar_width=40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=10, transient=True) as progress:
        into_kafka = progress.add_task("produced", total=records, note="")
        into_table = progress.add_task("in table", total=records, note="")
        while watcher.seen.records < records:
            if time.monotonic() > deadline_s:
                raise DemoFailed(
                    f"the table has {watcher.seen.records:,} of {records:,} records and got no "
                    f"further in time: see the writers' logs"
                )
            watcher.look()
            progress.update(into_kafka, completed=produced.records)
            progress.update(
                into_table,
                completed=watcher.seen.records,
                note=f"v{len(watcher.seen.entries) - 1}, {watcher.seen.commits} commits",
            )
            yield
            time.sleep(WATCH_S)


def _audit(config: Path, *how: str) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "delta_sink.cli"),
        *("audit", *how, "--json", "-c", str(config)),
    ]
    done = subprocess.run(command, capture_output=True, check=False, cwd=config.parent)  # noqa: S603  # our own command line
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise DemoFailed(f"the audit did not answer: {done.stderr.decode()[-500:]}") from error
    return found


def _figures(folder: Path, seen: Seen) -> dict[str, object]:
    """Return what was measured of the writers; maintenance deletes what it is measured on."""
    ages_ms = _freshness_ms(folder / "table", seen)
    duration_s = max(seen.last_s - (seen.first_s or 0.0), 0.001)
    p50, p99 = np.percentile(ages_ms, [50, 99]) if len(ages_ms) else (0.0, 0.0)
    return {
        "records_per_s": round(seen.records / duration_s),
        "freshness_p50_ms": round(float(p50)),
        "freshness_p99_ms": round(float(p99)),
    }


def _result(
    folder: Path, seen: Seen, records: int, audit: dict[str, Any], figures: dict[str, object]
) -> dict[str, object]:
    rows = sum(part["rows"] for part in audit["partitions"])
    return {
        "ok": bool(audit["ok"]) and not audit.get("unproven") and rows == records,
        "records": records,
        "rows": rows,
        "commits": seen.commits,
        **figures,
        "table": str(folder / "table"),
    }


def _freshness_ms(table: Path, seen: Seen) -> np.ndarray[Any, Any]:
    """Return for every record how long it took from being produced to being seen in the log."""
    ages = []
    for entry in seen.entries:
        for add in entry.adds:
            path = table / object_path(add.path)
            file = pq.read_table(path, columns=["_kafka_timestamp"], partitioning=None)
            produced_us = file.column(0).to_numpy().astype("int64")
            ages.append(seen.versions_ms[entry.version] - produced_us / 1000)
    return np.concatenate(ages) if ages else np.empty(0)


def _print_ingested(console: Console, folder: Path, seen: Seen, figures: dict[str, object]) -> None:
    adds = [add for entry in seen.entries for add in entry.adds]
    facts = Grid.grid(padding=(0, 2))
    facts.add_row(
        "records", f"{seen.records:,}, {figures['records_per_s']:,} a second, as they came"
    )
    facts.add_row("commits", f"{seen.commits:,}, table version {len(seen.entries) - 1}")
    facts.add_row(
        "freshness",
        f"p50 {figures['freshness_p50_ms']:,} ms, p99 {figures['freshness_p99_ms']:,} ms "
        f"(produced → in the log; the p99 has the killed writer in it)",
    )
    size_mb = sum(add.size for add in adds) / 1e6
    facts.add_row("files", f"{len(adds):,}, {size_mb:.1f} MB of Parquet (zstd)")
    console.print(Panel(facts, title="what happened", expand=False))
    _print_sample(console, folder / "table", adds[0].path)


def _print_end(
    console: Console, folder: Path, result: dict[str, object], audit: dict[str, Any]
) -> None:
    if result["ok"]:
        partitions = len(audit["partitions"])
        console.print(
            f"[bold green]audit: exactly once[/]: {result['rows']:,} records of {partitions} "
            f"partitions are in the table, none twice (log, raw rows and Kafka compared)"
        )
    else:
        console.print("[bold red]audit: NOT exactly once[/]")
        for sentence in [*audit["violations"], *audit.get("unproven", [])]:
            console.print(f"  {sentence}")
    table = folder / "table"
    console.print(f"\nthe table: [cyan]{table}[/]   (configuration and logs beside it)")
    select = f"select * from delta_scan('{table}') limit 10;"  # noqa: S608  # shown, not run
    console.print(f"  duckdb   {select}", markup=False)
    console.print(f"  polars   pl.scan_delta('{table}').head(10).collect()", markup=False)
    console.print(f"  spark    spark.read.format('delta').load('{table}').show(10)", markup=False)


def _print_sample(console: Console, table: Path, path: str) -> None:
    names = ["order_id", "customer", "city", "amount", "placed_at", "lines"]
    rows = pq.read_table(table / path, columns=names).slice(0, 4).to_pylist()
    grid = Grid(title=f"some rows of {path[:40]}…", title_justify="left")
    for name in names:
        grid.add_column(name, justify="right" if name == "amount" else "left")
    for row in rows:
        lines = ", ".join(f"{line['quantity']}x{line['sku']}" for line in row["lines"])
        shown = [row[name] for name in names[:-2]]
        placed_at = f"{row['placed_at']:%Y-%m-%d %H:%M:%S}"
        grid.add_row(*(str(value) for value in shown), placed_at, lines)
    console.print(grid)


def default_folder() -> Path:
    """Return where the demo lives when the user names no place: a new folder beside the user."""
    return Path.cwd() / f"demo-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
