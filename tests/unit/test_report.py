"""What a writer says of its reads and commits."""

from __future__ import annotations

import pytest

from delta_sink.append import EncodedBatch
from delta_sink.model import OffsetRange, Records, TopicPartition
from delta_sink.part import Part
from delta_sink.pipeline import Sealed
from delta_sink.report import Reporter
from delta_sink.testing import FakeStore, World, make_log

TP = TopicPartition("orders", 0)


@pytest.fixture
def host():
    with World(1) as world:
        yield world.host("w0")


@pytest.fixture
def reporter(host):
    return Reporter(make_log(host, FakeStore(host.world)), worker="w0", table="/t")


def records(offset_next: int, produced_first_ms: int | None) -> Records:
    """Return two records whose timestamps no column of the table holds."""
    offsets = (offset_next - 2, offset_next - 1)
    return Records(TP, offset_next, offsets, (b"1", b"2"), produced_first_ms=produced_first_ms)


def commit(reporter: Reporter, offset_next: int) -> None:
    covered = OffsetRange(TP, 0, offset_next, records=offset_next, rows=offset_next)
    encoded = EncodedBatch("c", 0, (), (covered,), offset_next)
    state = type("State", (), {"version": 3})()
    reporter.committed(state, Sealed("c", 0, None, 0, 1, None), encoded)


def freshness(host) -> list[float]:
    found = host.telemetry.observations
    return [each for key, values in found.items() if "freshness" in key[0] for each in values]


def test_freshness_needs_no_column_of_timestamps(host, reporter):
    now_ms = host.clock.wall_ms()
    reporter.read(records(2, now_ms - 4_000))
    reporter.read(records(4, now_ms - 1_000))
    commit(reporter, 4)
    assert freshness(host) == [4.0]


def test_the_oldest_record_held_is_known_until_it_is_committed(host, reporter):
    now_ms = host.clock.wall_ms()
    reporter.read(records(2, now_ms - 4_000))
    reporter.read(records(4, now_ms - 1_000))
    parts = {TP: Part()}

    def oldest_ms() -> int | None:
        state = "working" if reporter.status.state != "working" else "stopping"
        reporter.renew(state, parts, held_bytes=0, table_version=None)
        [part] = reporter.status.partitions
        return part.oldest_ms

    assert oldest_ms() == now_ms - 4_000
    commit(reporter, 2)
    assert oldest_ms() == now_ms - 1_000
    reporter.dropped()
    assert oldest_ms() is None


def test_records_without_a_time_say_nothing_of_freshness(host, reporter):
    reporter.read(records(2, None))
    commit(reporter, 2)
    assert freshness(host) == []
