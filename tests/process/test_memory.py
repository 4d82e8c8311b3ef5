"""What a writer occupies while it drains a backlog, against `memory.bytes_max`."""

from __future__ import annotations

import json
import random
import re
import string
import time
from pathlib import Path

import psutil
import pytest

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import Sink, produce, wait_until, write_config
from tests.process.stores import BUCKET, REGION, Proxy, s3_server

pytestmark = pytest.mark.process

MIB = 1 << 20
SAMPLE_S = 0.02
PARTITION_BYTES = 4_500_000
"""The embedded broker keeps 5 MiB of a partition."""

SCHEMA = [
    {"name": "order_id", "type": "long", "nullable": False},
    {"name": "customer", "type": "string"},
    {"name": "amount", "type": "decimal(12,2)"},
    {"name": "placed_at", "type": "timestamp"},
    {"name": "note", "type": "string"},
    {
        "name": "lines",
        "type": {
            "array": {
                "struct": [
                    {"name": "sku", "type": "string"},
                    {"name": "quantity", "type": "integer"},
                    {"name": "price", "type": "double"},
                ]
            }
        },
    },
]


def orders(record_bytes):
    """Return different orders of about so many bytes, nested, as a shop would send them."""
    chance = random.Random(record_bytes)
    lines_count = max(0, (record_bytes - 150) // 90)
    found = []
    for number in range(max(20, min(400, 2_000_000 // record_bytes))):
        lines = [
            {
                "sku": "".join(chance.choices(string.ascii_uppercase, k=8)),
                "quantity": n,
                "price": chance.random() * 100,
            }
            for n in range(lines_count)
        ]
        record = {
            "order_id": number,
            "customer": f"customer-{chance.randrange(10**6)}",
            "amount": f"{chance.randrange(10**6) / 100:.2f}",
            "placed_at": "2026-11-24T10:00:00.123Z",
            "lines": lines,
        }
        record["note"] = "".join(
            chance.choices(
                string.ascii_letters, k=max(0, record_bytes - len(json.dumps(record)) - 12)
            )
        )
        found.append(json.dumps(record).encode())
    return found


def fill(broker, topic, partitions, record_bytes):
    """Produce a backlog; return how many records and bytes it has."""
    choice = orders(record_bytes)
    mean_bytes = sum(map(len, choice)) / len(choice) + 70  # what the broker adds to each
    count = int(PARTITION_BYTES / mean_bytes) * partitions
    records = (choice[number % len(choice)] for number in range(count))
    produce(broker.bootstrap_servers, topic, records, partitions=partitions)
    return count, int(count * (mean_bytes - 70))


def peak_rss(process, until=lambda: False):
    """Return the most that the process occupied at one moment, with the most of each child.

    It is looked at until it ended or `until()` holds. The kernel remembers each process's peak,
    so that none falls between two looks; elsewhere than on Linux only the looks count.
    """
    watched = psutil.Process(process.pid)
    peaks = {}
    while process.poll() is None and not until():
        try:
            for member in [watched, *watched.children(recursive=True)]:
                peaks[member.pid] = max(peaks.get(member.pid, 0), _high_water(member))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
        time.sleep(SAMPLE_S)
    assert peaks
    return sum(peaks.values())


def _high_water(member):
    if not psutil.LINUX:
        return member.memory_info().rss
    status = Path(f"/proc/{member.pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0  # a process that has ended has no memory


def config_of(folder, broker, memory, schema=SCHEMA, **table):
    return write_config(
        folder,
        broker.bootstrap_servers,
        source={"topics": ["backlog"]},
        table={"schema": schema, **table},
        flush={"interval_ms": 1000},
        memory=memory,
        value={"record_bytes_max": "1MiB"},
        logs={"level": "info"},
    )


def drained(folder, partitions, record_bytes, memory, schema=SCHEMA):
    """Drain a backlog; return the peak of the process in MiB."""
    with EmbeddedBroker({"backlog": partitions}) as broker:
        count, size_bytes = fill(broker, "backlog", partitions, record_bytes)
        with Sink(folder, config_of(folder, broker, memory, schema)) as sink:
            writer = sink.start("--until-end")
            started_s = time.monotonic()
            peak = peak_rss(writer.process)
            took_s = time.monotonic() - started_s
            assert writer.process.returncode == 0, writer.words()
            assert sink.committed_records() == count
    print(
        f"{size_bytes / MIB:.0f} MiB of {record_bytes} B in {partitions} partitions, "
        f"{took_s:.1f} s: peak {peak / MIB:.0f} MiB with {memory or 'the default'}"
    )
    return peak / MIB


@pytest.mark.parametrize("record_bytes", [150, 1000, 20_000, 400_000])
def test_a_small_budget_is_kept(tmp_path, record_bytes):
    assert drained(tmp_path, 10, record_bytes, {"bytes_max": "256MiB"}) <= 256


def test_a_table_that_no_fast_path_reads(tmp_path):
    """A map is decoded value by value, as Python objects."""
    as_map = {"name": "lines", "type": {"array": {"map": {"key": "string", "value": "string"}}}}
    slow = [*(column for column in SCHEMA if column["name"] != "lines"), as_map]
    records = [json.dumps({**json.loads(v), "lines": [{"sku": "a" * 40}] * 8}) for v in orders(400)]
    with EmbeddedBroker({"backlog": 8}) as broker:
        produce(
            broker.bootstrap_servers,
            "backlog",
            (records[number % len(records)].encode() for number in range(30_000)),
            partitions=8,
        )
        with Sink(tmp_path, config_of(tmp_path, broker, {"bytes_max": "256MiB"}, slow)) as sink:
            writer = sink.start("--until-end")
            peak = peak_rss(writer.process) / MIB
            assert writer.process.returncode == 0, writer.words()
            assert sink.committed_records() == 30_000
    print(f"30,000 records with maps: peak {peak:.0f} MiB with 256 MiB")
    assert peak <= 256


def test_the_default_budget_is_kept(tmp_path):
    assert drained(tmp_path, 28, 1000, {"bytes_max": "512MiB"}) <= 512


def test_a_store_that_is_away_fills_nothing(tmp_path):
    """However long the store does not answer: what Kafka has is not read into memory."""
    with s3_server() as server, EmbeddedBroker({"backlog": 20}) as broker:
        proxy = Proxy(server)
        try:
            storage = {
                "endpoint_url": proxy.url,
                "region": REGION,
                "access_key_id": "key",
                "secret_access_key": "secret",
            }
            config = config_of(
                tmp_path,
                broker,
                {"bytes_max": "256MiB"},
                uri=f"s3://{BUCKET}/away",
                storage=storage,
            )
            with Sink(tmp_path, config) as sink:
                writer = sink.start()
                wait_until(lambda: writer.events("table_opened"), 30, "it is about to read")
                proxy.put_delay_s = 9  # below the time-out of a request: nobody gives up
                fill(broker, "backlog", 20, 400_000)
                until_s = time.monotonic() + 9
                peak = peak_rss(writer.process, lambda: time.monotonic() > until_s) / MIB
                assert writer.process.poll() is None
        finally:
            proxy.close()
    print(f"80 MiB of 400 kB behind a store that is away: peak {peak:.0f} MiB with 256 MiB")
    assert peak <= 256
