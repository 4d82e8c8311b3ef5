"""Probes, lag and gauges as functions of what a worker and its checks have said."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from delta_sink.model import TopicPartition
from delta_sink.status import (
    SILENCE_MAX_MS,
    Ends,
    Lag,
    PartitionStatus,
    Reach,
    WorkerStatus,
    gauges,
    liveness,
    readiness,
    status_json,
)

TP = TopicPartition("orders", 0)
PART = PartitionStatus(TP, offset_committed=10, offset_next=15, oldest_ms=4_000, halted=None)
WORKING = WorkerStatus(
    worker="w1", role="writer", state="working", at_ms=0, since_ms=0, table="t", partitions=(PART,)
)
UP = {name: Reach(True, "it answers", 1) for name in ("broker", "store", "locks")}


def test_a_loop_that_stands_still_is_not_alive():
    assert liveness(None, now_ms=10**9).ok, "a worker that waits to begin is not restarted for it"
    assert liveness(WORKING, now_ms=SILENCE_MAX_MS).ok
    verdict = liveness(WORKING, now_ms=SILENCE_MAX_MS + 1_000)
    assert (verdict.ok, verdict.sentence) == (False, "the loop has not moved for 61 s")
    assert liveness(replace(WORKING, state="stopping"), now_ms=10**9).ok


@pytest.mark.parametrize(
    ("status", "down", "ok", "sentence"),
    [
        (None, None, False, "the worker is starting"),
        (WORKING, None, True, "ready, working on 1 partition"),
        (
            replace(WORKING, state="standing_by", partitions=()),
            None,
            True,
            "ready, standing by without partitions",
        ),
        (replace(WORKING, state="stopping"), None, False, "the worker is stopping"),
        (WORKING, "broker", False, "the broker cannot be reached: gone"),
        (WORKING, "store", False, "the store cannot be reached: gone"),
        (
            WORKING,
            "locks",
            True,
            "ready, working on 1 partition; degraded, working without locks: gone",
        ),
        (
            replace(WORKING, partitions=(replace(PART, halted="orders/0: offsets are gone"),)),
            None,
            False,
            "orders/0: offsets are gone",
        ),
    ],
)
def test_readiness(status, down, ok, sentence):
    reaches = UP if down is None else UP | {down: Reach(False, "gone", 5)}
    verdict = readiness(status, reaches)
    assert (verdict.ok, verdict.sentence) == (ok, sentence)


def test_what_was_not_asked_yet_is_not_ready_and_has_no_gauge():
    reaches = UP | {"broker": Reach()}
    assert readiness(WORKING, reaches).sentence == "the broker cannot be reached: not asked yet"
    found = [tags for name, _, tags in gauges(WORKING, reaches, Ends(), wall_ms=0) if "_up" in name]
    assert found == [{"dependency": "store"}, {"dependency": "locks"}]


def test_lag_is_to_what_is_committed():
    ends = Ends()
    assert ends.lag(PART, wall_ms=5_000) == Lag(None, None)
    ends.seen({TP: 25}, WORKING, wall_ms=5_000)
    assert ends.lag(PART, wall_ms=5_000) == Lag(15, 1_000)
    unread = replace(PART, oldest_ms=None)
    assert ends.lag(unread, wall_ms=5_000) == Lag(15, None), "nothing says since when"
    done = replace(PART, offset_committed=25, oldest_ms=None)
    assert ends.lag(done, wall_ms=5_000) == Lag(0, 0)
    ends.seen({TP: 25}, replace(WORKING, partitions=(done,)), wall_ms=6_000)
    ends.seen({TP: 30}, replace(WORKING, partitions=(done,)), wall_ms=9_000)
    assert ends.lag(done, wall_ms=9_000) == Lag(5, 3_000), "since it was last seen caught up"
    ends.seen({}, replace(WORKING, partitions=()), wall_ms=9_500)
    ends.seen({TP: 30}, replace(WORKING, partitions=(unread,)), wall_ms=9_900)
    assert ends.lag(unread, wall_ms=9_900) == Lag(20, None), (
        "a partition that came back begins anew"
    )


def test_one_state_is_1_and_the_document_says_the_same():
    found = {
        (name, *tags.values()): value
        for name, value, tags in gauges(WORKING, UP, Ends(), wall_ms=0)
    }
    states = {key[1]: value for key, value in found.items() if key[0].endswith("worker_state")}
    assert states == {"starting": 0, "standing_by": 0, "working": 1, "stopping": 0}
    document = status_json(WORKING, UP, Ends(), wall_ms=0)
    assert document["state"] == "working"
    assert document["ready"] is True
    assert document["partitions"][0]["offset_committed"] == 10
    assert status_json(None, {}, Ends(), wall_ms=0)["ready"] is False
