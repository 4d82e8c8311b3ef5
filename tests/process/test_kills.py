"""Writers killed with SIGKILL, members added and removed: nothing lost, nothing doubled."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import pytest

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import (
    TOPIC,
    Ledger,
    LedgerProducer,
    Sink,
    WriterProcess,
    wait_until,
    write_config,
)

PARTITIONS = 8
RATE_PER_S = 800
MEMBERS = 3

pytestmark = pytest.mark.process


def _has_committed(sink: Sink, writer: WriterProcess) -> bool:
    assert writer.process.poll() is None, writer.events()[-3:]
    worker = writer.worker_id()
    return worker is not None and sink.commits_of(worker) > 0


def kill_writers(
    sink: Sink,
    producer: LedgerProducer,
    *,
    kills: int,
    seed: int,
    look: Callable[[], None] = lambda: None,
) -> Ledger:
    """Return the ledger once everything in it is committed, in spite of so many kills.

    Members join and leave in between; every writer has ended in order at the end. `look` is called
    before that, while the group still has members.
    """
    chance = random.Random(seed)
    steps: Counter[str] = Counter()
    members = [sink.start() for _ in range(MEMBERS)]
    producer.start()
    for kill in range(kills):
        victim = chance.choice(members)
        # Only a victim that has work to lose counts: it must have committed since it was started.
        wait_until(lambda v=victim: _has_committed(sink, v), 60, "the victim commits")
        before = sink.commits_of(victim.worker_id())
        assert before > 0
        time.sleep(chance.random() * 0.4)
        victim.kill()
        steps.update(victim.steps_out())
        members.remove(victim)
        members.append(sink.start())
        if kill % 3 == 1:
            members.append(sink.start())  # one more member for a while
        if kill % 3 == 2 and len(members) > MEMBERS:
            leaver = members.pop(0)
            assert leaver.stop() == 0, leaver.events()[-3:]
    ledger = producer.stop()
    wait_until(lambda: sink.committed_records() >= len(ledger), 90, "everything is committed")
    look()
    for member in members:
        assert member.stop() == 0, member.events()[-3:]
    print(f"{kills} kills fell into {dict(steps)}")
    return ledger


def assert_exactly_once(sink: Sink, ledger: Ledger) -> None:
    """Return if the table has every record of the ledger once, and the audit proves it."""
    found = sink.compare(ledger)
    audit = sink.audit()
    print(found)
    assert found == {"rows": len(ledger), "lost": 0, "doubled": 0, "altered": 0}
    assert audit["ok"], audit["violations"]
    assert not audit["unproven"]


def _run(tmp_path, kills: int, seed: int) -> None:
    with EmbeddedBroker({TOPIC: PARTITIONS}) as broker:
        config = write_config(tmp_path, broker.bootstrap_servers)
        producer = LedgerProducer(broker.bootstrap_servers, PARTITIONS, RATE_PER_S)
        with Sink(tmp_path, config) as sink:
            ledger = kill_writers(sink, producer, kills=kills, seed=seed)
            assert_exactly_once(sink, ledger)


def test_ten_kills(tmp_path):
    _run(tmp_path, kills=10, seed=20261124)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_thirty_kills(tmp_path):
    _run(tmp_path, kills=30, seed=7)
