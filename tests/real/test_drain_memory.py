"""What a worker occupies while it drains a long backlog of small records from Apache Kafka.

Small records are the hard case: what is kept beside each of them is more than the record. A
worker that held on to something with every commit would show it here, where there are dozens.
"""

from __future__ import annotations

import time

import psutil
import pytest
from confluent_kafka import Producer

from benchmarks.drain_data import COLUMNS, FLAT_BYTES, make_values
from tests.process.sinks import Sink, write_config
from tests.process.test_memory import _high_water

pytestmark = pytest.mark.process

MIB = 1 << 20
PARTITIONS = 4
GROWTH_MAX_MIB = 24
"""How much more than in the middle of the drain may be occupied later: the heap breathes."""


def fill(kafka, topic, records):
    kafka.create_topic(topic, PARTITIONS)
    settings = {"linger.ms": 50, "batch.num.messages": 10_000}
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, **settings})
    for number, value in enumerate(make_values("flat", records)):
        while True:
            try:
                producer.produce(topic, value=value, partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(60) == 0


def watch(process):
    """Return looks at a process until its end: peak so far, and what it occupies now, in MiB."""
    watched = psutil.Process(process.pid)
    looks = []
    while process.poll() is None:
        try:
            looks.append((_high_water(watched) / MIB, watched.memory_info().rss / MIB))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.05)
    return looks


def drain(folder, kafka, records, memory):
    """Drain a backlog; return the looks at the worker and the number of its commits."""
    topic = f"backlog-{records}"
    fill(kafka, topic, records)
    config = write_config(
        folder,
        kafka.bootstrap_servers,
        source={"topics": [topic]},
        table={"schema": COLUMNS["flat"]},
        flush={"interval_ms": 200},
        memory={"bytes_max": memory},
        logs={"level": "info"},
    )
    try:
        with Sink(folder, config) as sink:
            writer = sink.start("--until-end")
            looks = watch(writer.process)
            assert writer.process.returncode == 0, writer.words()
            assert sink.committed_records() == records
            commits = len(writer.events("table_committed"))
    finally:
        kafka.delete_all_topics()
    peak = max(peak for peak, _ in looks)
    print(f"{records:,} records of {FLAT_BYTES} B: {commits} commits, peak {peak:.0f} of {memory}")
    return looks, commits


@pytest.mark.parametrize("memory", [256, 512])
def test_a_short_backlog_stays_in_its_budget(tmp_path, kafka, memory):
    looks, _ = drain(tmp_path, kafka, 600_000, f"{memory}MiB")
    assert max(peak for peak, _ in looks) <= memory


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("memory", [256, 512])
def test_ten_million_records_stay_in_the_budget_and_do_not_add_up(tmp_path, kafka, memory):
    looks, commits = drain(tmp_path, kafka, 10_000_000, f"{memory}MiB")
    assert commits >= 20, "too few commits to tell whether they add up"
    assert max(peak for peak, _ in looks) <= memory
    occupied = [now for _, now in looks]
    third = len(occupied) // 3
    middle, late = max(occupied[third : 2 * third]), max(occupied[2 * third :])
    print(f"most in the second third {middle:.0f} MiB, in the last {late:.0f} MiB")
    assert late <= middle + GROWTH_MAX_MIB
