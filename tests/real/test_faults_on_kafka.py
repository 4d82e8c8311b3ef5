"""Writers killed, stopped and woken, and brokers gone, under every way to be in a group."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest

from tests.process.sinks import LedgerProducer, sentences_of, wait_until
from tests.process.test_kills import assert_exactly_once, kill_writers
from tests.process.test_zombie import PARTITIONS as ZOMBIE_PARTITIONS
from tests.process.test_zombie import versions_of, wake_a_zombie
from tests.real.lake import PROTOCOLS, WAYS, LakeSink, new_topic
from tests.real.proxy import proxying

PARTITIONS = 8
RATE_PER_S = 800


def _producer(kafka, topic, partitions, rate_per_s=RATE_PER_S):
    return LedgerProducer(kafka.bootstrap_servers, partitions, rate_per_s, topic)


@pytest.mark.parametrize("way", WAYS)
def test_a_few_kills(tmp_path, kafka, minio, way):
    _kill(tmp_path, kafka, minio, way, kills=3)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("way", WAYS)
def test_twenty_kills(tmp_path, kafka, minio, way):
    _kill(tmp_path, kafka, minio, way, kills=20)


def _kill(tmp_path, kafka, minio, way, kills):
    topic = new_topic(kafka, PARTITIONS)
    producer = _producer(kafka, topic, PARTITIONS)
    with LakeSink(tmp_path, kafka, minio, topic, way=way) as sink:

        def look():
            # While it rebalances a group has no assignor to name.
            wait_until(
                lambda: kafka.group_protocol(sink.name) == PROTOCOLS[way],
                30,
                "the group is settled",
            )
            if way == "static":
                assert all(member.startswith("seat-") for member in kafka.members_of(sink.name))

        ledger = kill_writers(sink, producer, kills=kills, seed=kills, look=look)
        assert_exactly_once(sink, ledger)


@pytest.mark.parametrize(
    "way", ["cooperative", "kip848", pytest.param("eager", marks=pytest.mark.long)]
)
def test_a_resumed_zombie_commits_nothing(tmp_path, kafka, minio, way):
    topic = new_topic(kafka, ZOMBIE_PARTITIONS)
    producer = _producer(kafka, topic, ZOMBIE_PARTITIONS, rate_per_s=600)
    with LakeSink(tmp_path, kafka, minio, topic, way=way) as sink:
        ledger = wake_a_zombie(sink, producer, pause_s=0.02)
        assert_exactly_once(sink, ledger)


@pytest.mark.parametrize("way", ["cooperative", "kip848"])
def test_a_seat_that_is_taken_over_commits_nothing(tmp_path, kafka, minio, way):
    """A static member is stopped; another process takes its seat; then the first one wakes."""
    topic = new_topic(kafka, 2)
    producer = _producer(kafka, topic, 2, rate_per_s=400)
    seat = ("--set", "kafka.group.instance.id=the-seat")
    # A classic member that wakes within its session is told; after it, it takes the seat back.
    keys = {"session.timeout.ms": 120_000} if way == "cooperative" else {}
    with LakeSink(tmp_path, kafka, minio, topic, way=way, keys=keys) as sink:
        zombie = sink.start(*seat)
        producer.start()
        wait_until(lambda: sink.commits_of(zombie.worker_id()) > 3, 60, "the writer commits")
        assert kafka.members_of(sink.name) == ["the-seat"]
        zombie.process.send_signal(signal.SIGSTOP)
        if way == "kip848":
            # Here the newcomer is turned away for as long as the first one's session lasts.
            early = sink.start(*seat)
            assert early.process.wait(30) == 3
            [sentence] = sentences_of(early.log_path.read_text(encoding="utf-8"))
            assert "The instance ID is still used by another member" in sentence
            wait_until(lambda: not kafka.members_of(sink.name), 30, "the session is over")
        successor = sink.start(*seat)
        wait_until(lambda: sink.commits_of(successor.worker_id()) > 3, 60, "the successor commits")
        taken_over = versions_of(sink, successor.worker_id())[0]
        zombie.process.send_signal(signal.SIGCONT)
        assert zombie.process.wait(40) == 3, "it is told that its seat is taken"
        [sentence] = sentences_of(zombie.log_path.read_text(encoding="utf-8"))
        assert "same group.instance.id" in sentence or "instance ID is still used" in sentence
        ledger = producer.stop()
        wait_until(lambda: sink.committed_records() >= len(ledger), 60, "all is committed")
        assert successor.stop() == 0
        # One PUT may have been under way when it was stopped.
        late = [v for v in versions_of(sink, zombie.worker_id()) if v > taken_over]
        assert len(late) <= 1, late
        assert_exactly_once(sink, ledger)


@pytest.mark.long
def test_of_two_in_a_seat_one_leaves(tmp_path, kafka, minio):
    """A static member that wakes after its session takes its seat back or is told that it is lost.

    It depends on what it asks first: to join again, or for its heartbeat.
    """
    topic = new_topic(kafka, 2)
    producer = _producer(kafka, topic, 2, rate_per_s=400)
    seat = ("--set", "kafka.group.instance.id=the-seat")
    with LakeSink(tmp_path, kafka, minio, topic) as sink:
        first = sink.start(*seat)
        producer.start()
        wait_until(lambda: sink.commits_of(first.worker_id()) > 3, 60, "the writer commits")
        first.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: not kafka.members_of(sink.name), 30, "the session is over")
        second = sink.start(*seat)
        wait_until(lambda: sink.commits_of(second.worker_id()) > 3, 60, "the second one commits")
        first.process.send_signal(signal.SIGCONT)
        both = [first, second]
        wait_until(lambda: any(w.process.poll() is not None for w in both), 40, "one leaves")
        [leaver] = [writer for writer in both if writer.process.poll() is not None]
        assert leaver.process.wait() == 3
        [sentence] = sentences_of(leaver.log_path.read_text(encoding="utf-8"))
        assert "same group.instance.id" in sentence
        ledger = producer.stop()
        wait_until(lambda: sink.committed_records() >= len(ledger), 60, "all is committed")
        [other] = [writer for writer in both if writer is not leaver]
        assert other.stop() == 0
        assert_exactly_once(sink, ledger)


@pytest.mark.parametrize(
    "way",
    [
        "cooperative",
        "kip848",
        pytest.param("eager", marks=pytest.mark.long),
        pytest.param("static", marks=pytest.mark.long),
    ],
)
def test_rebalances_meet_batches_in_flight(tmp_path, kafka, minio, way):
    """Members join one after the other while the store takes its time with every answer."""
    topic = new_topic(kafka, PARTITIONS)
    producer = _producer(kafka, topic, PARTITIONS, rate_per_s=400)
    with proxying(minio.endpoint) as proxy:
        table = {"storage": {**minio.storage, "endpoint_url": proxy.url}}
        with LakeSink(tmp_path, kafka, minio, topic, way=way, table=table) as sink:
            writers = [sink.start()]
            producer.start()
            _await_commits(sink, writers)
            proxy.answers_after_s = lambda method, _: 0.3 if method == "PUT" else 0.0
            for _ in range(2):
                writers.append(sink.start())
                _await_commits(sink, writers)
            # A member that leaves gives back, and what the others get is read from the log.
            assert writers.pop(0).stop() == 0
            if way != "static":  # its seat is kept for it until its session is over
                _await_commits(sink, writers)
            proxy.answers_after_s = lambda *_: 0.0
            ledger = producer.stop()
            wait_until(lambda: sink.committed_records() >= len(ledger), 60, "all is committed")
            # While it rebalances a group has no assignor to name.
            wait_until(
                lambda: kafka.group_protocol(sink.name) == PROTOCOLS[way],
                30,
                "the group is settled",
            )
            assert [writer.stop() for writer in writers] == [0, 0]
            met = [jobs for writer in sink.writers for jobs in _out_at_revocations(writer)]
            assert sum(bool({"put", "commit"} & set(jobs)) for jobs in met) >= 2, met
            dropped = [e["reason"] for writer in sink.writers for e in writer.events("resynced")]
            assert "partitions were taken away" in dropped
            assert_exactly_once(sink, ledger)


def _out_at_revocations(writer):
    """Return the jobs that were under way each time the group took partitions from a writer."""
    out: Counter[str] = Counter()
    found = []
    for event in writer.events():
        match event.get("event"):
            case "job_started":
                out[event["job"]] += 1
            case "job_ended":
                out[event["job"]] -= 1
            case "partitions_revoked":
                found.append(sorted(name for name, count in out.items() if count > 0))
    return found


def test_a_broker_that_is_killed_and_comes_again(tmp_path, kafka, minio):
    _outages(tmp_path, kafka, minio, "cooperative", ["kill"], away_s=4)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
def test_a_broker_that_is_gone_for_a_minute(tmp_path, kafka, minio, way):
    """Twice: shut down in order, and killed."""
    _outages(tmp_path, kafka, minio, way, ["stop", "kill"], away_s=60)


def _outages(tmp_path, kafka, minio, way, ends, away_s):
    topic = new_topic(kafka, 4)
    # What the broker had stored without saying so must not be stored twice by the producer.
    producer = LedgerProducer(
        kafka.bootstrap_servers, 4, 300, topic, **{"enable.idempotence": True, "log_level": 0}
    )
    with LakeSink(tmp_path, kafka, minio, topic, way=way) as sink:
        writers = [sink.start(), sink.start()]
        producer.start()
        for end in ends:
            _await_commits(sink, writers)
            getattr(kafka, end)()
            try:
                time.sleep(away_s)
                assert [writer.process.poll() for writer in writers] == [None, None]
            finally:
                kafka.start()
        _await_commits(sink, writers)
        ledger = producer.stop()
        wait_until(lambda: sink.committed_records() >= len(ledger), 60, "all is committed")
        for writer in writers:
            reasons = [event["reason"] for event in writer.events("waiting")]
            assert any("not reachable" in reason for reason in reasons), reasons
        assert [writer.stop() for writer in writers] == [0, 0]
        assert_exactly_once(sink, ledger)


def _await_commits(sink, writers):
    """Return when each writer has committed again."""
    before = {writer.pid: sink.commits_of(writer.worker_id()) for writer in writers}
    wait_until(
        lambda: all(sink.commits_of(w.worker_id()) > before[w.pid] for w in writers),
        90,
        "every writer commits",
    )
