"""A writer that was stopped past its session while another took over commits nothing of its own.

The zombie wakes up with records in its pipeline, a position and an open log; only the
compare-and-set in the log stands between it and a doubled record.
"""

from __future__ import annotations

import signal
import time

import pytest

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.delta.receipt import receipt_of
from tests.process.sinks import (
    SESSION_MS,
    TOPIC,
    Ledger,
    LedgerProducer,
    Sink,
    wait_until,
    write_config,
)

PARTITIONS = 4

pytestmark = pytest.mark.process


@pytest.mark.parametrize("round_", range(3))
def test_a_resumed_zombie_commits_nothing(tmp_path, round_):
    with EmbeddedBroker({TOPIC: PARTITIONS}) as broker:
        config = write_config(tmp_path, broker.bootstrap_servers)
        producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, rate_per_s=600)
        with Sink(tmp_path, config) as sink:
            ledger = wake_a_zombie(sink, producer, pause_s=0.03 * round_)
            found = sink.compare(ledger)
            audit = sink.audit()
    assert found == {"rows": len(ledger), "lost": 0, "doubled": 0, "altered": 0}
    assert audit["ok"], audit["violations"]


def wake_a_zombie(sink: Sink, producer: LedgerProducer, *, pause_s: float) -> Ledger:
    """Stop a writer past its session, wake it, and return what was produced, all committed.

    It fails if the zombie commits anything between the take-over and the moment at which it learns
    of it. The partitions are `PARTITIONS`.
    """
    zombie = sink.start()
    producer.start()
    wait_until(lambda: sink.commits_of(zombie.worker_id()) > 3, 60, "the writer commits")
    time.sleep(pause_s)
    zombie.process.send_signal(signal.SIGSTOP)
    stopped_at = len(sink.entries())
    # What it had committed before it was stopped is its own; a PUT may have been under way, so
    # that one more entry of its may be there by now.
    successor = sink.start()
    wait_until(lambda: sink.commits_of(successor.worker_id()) > 3, 60, "the successor commits")
    taken_over = _first_version_of(sink, successor.worker_id())
    assert taken_over >= stopped_at
    wait_until(lambda: _owns_all(sink, successor), 60, "the successor has all partitions")
    time.sleep(SESSION_MS / 1000)
    awake_at = len(sink.entries())
    zombie.process.send_signal(signal.SIGCONT)
    # Long enough for the zombie to try: it notices the lost session within a heartbeat.
    wait_until(
        lambda: zombie.events("partitions_revoked") or zombie.events("fenced"),
        30,
        "the zombie notices",
    )
    noticed_at = len(sink.entries())
    ledger = producer.stop()
    wait_until(lambda: sink.committed_records() >= len(ledger), 60, "everything is committed")
    assert [zombie.stop(), successor.stop()] == [0, 0]
    zombie_commits = versions_of(sink, zombie.worker_id())
    # Between the take-over and the moment at which it learned of it, nothing of it landed. What
    # it commits later, as a new member with partitions of its own, is no zombie's.
    assert not [v for v in zombie_commits if taken_over < v < noticed_at], zombie_commits
    assert awake_at > taken_over
    return ledger


def versions_of(sink: Sink, worker: str | None) -> list[int]:
    return [
        entry.version
        for entry in sink.entries()
        if (receipt := receipt_of(entry)) is not None and receipt.worker == worker
    ]


def _first_version_of(sink: Sink, worker: str | None) -> int:
    return versions_of(sink, worker)[0]


def _owns_all(sink: Sink, writer) -> bool:
    """Whether the writer's newest commits cover every partition."""
    covered = {
        part.tp.partition
        for entry in sink.entries()[-6:]
        if (receipt := receipt_of(entry)) is not None and receipt.worker == writer.worker_id()
        for part in receipt.partitions
    }
    return len(covered) == PARTITIONS
