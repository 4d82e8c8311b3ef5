"""Writers killed, stopped and woken, and brokers gone, under every way to be in a group."""

from __future__ import annotations

import pytest

from tests.process.sinks import LedgerProducer
from tests.process.test_kills import assert_exactly_once, kill_writers
from tests.process.test_zombie import PARTITIONS as ZOMBIE_PARTITIONS
from tests.process.test_zombie import wake_a_zombie
from tests.real.lake import PROTOCOLS, WAYS, LakeSink, new_topic

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
            assert kafka.group_protocol(sink.name) == PROTOCOLS[way]
            if way == "static":
                assert all(member.startswith("seat-") for member in kafka.members_of(sink.name))

        ledger = kill_writers(sink, producer, kills=kills, seed=kills, look=look)
        assert_exactly_once(sink, ledger)


@pytest.mark.parametrize("way", ["cooperative", "eager", "kip848"])
def test_a_resumed_zombie_commits_nothing(tmp_path, kafka, minio, way):
    topic = new_topic(kafka, ZOMBIE_PARTITIONS)
    producer = _producer(kafka, topic, ZOMBIE_PARTITIONS, rate_per_s=600)
    with LakeSink(tmp_path, kafka, minio, topic, way=way) as sink:
        ledger = wake_a_zombie(sink, producer, pause_s=0.02)
        assert_exactly_once(sink, ledger)
