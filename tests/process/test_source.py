"""Where a sink reads from: starts, waits, restarts, gaps and ends, with real processes."""

from __future__ import annotations

import socket
import time

import pytest
from confluent_kafka import Consumer, TopicPartition
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.delta.receipt import receipt_of
from tests.process.sinks import (
    SESSION_MS,
    Sink,
    events_of,
    produce,
    sentences_of,
    values,
    wait_until,
    write_config,
)

pytestmark = pytest.mark.process

SINK = "events-sink"


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


def sink_on(folder, broker, *topics, start="earliest", **overrides):
    """Return a sink of `topics`; each test has a group of its own, as the broker is shared."""
    source = {"topics": list(topics), "start": start, **overrides.pop("source", {})}
    config = write_config(
        folder, broker.bootstrap_servers, source=source, name=f"on-{topics[0]}", **overrides
    )
    return Sink(folder, config)


def ids_in(folder):
    return sorted(DeltaTable(str(folder / "table")).to_pyarrow_table().column("id").to_pylist())


def group_offsets(broker, group, topic, partitions=1):
    places = _as_group(broker, group, lambda c: c.committed(_places(topic, partitions), timeout=10))
    return [place.offset for place in places]


def commit_group(broker, group, topic, offset):
    """Commit an offset as a member of the group, which the embedded broker asks of its groups."""
    place = TopicPartition(topic, 0, offset)

    def commit(consumer):
        consumer.subscribe([topic])
        wait_until(lambda: consumer.poll(0.1) or consumer.assignment(), 20, "a member")
        consumer.commit(offsets=[place], asynchronous=False)

    _as_group(broker, group, commit)


def _places(topic, partitions):
    return [TopicPartition(topic, partition) for partition in range(partitions)]


def _as_group(broker, group, ask):
    consumer = Consumer(
        {
            "bootstrap.servers": broker.bootstrap_servers,
            "group.id": group,
            "enable.auto.commit": False,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": SESSION_MS,
            "heartbeat.interval.ms": 300,
        }
    )
    try:
        return ask(consumer)
    finally:
        consumer.close()


def txns_of(sink):
    """Return the newest offset of each partition in the log, by `topic/partition`."""
    found = {}
    for entry in sink.entries():
        receipt = receipt_of(entry)
        for part in receipt.partitions if receipt is not None else ():
            found[f"{part.topic}/{part.partition}"] = part.offset_next
    return found


# --- waiting ----------------------------------------------------------------------------------


def test_a_topic_that_is_not_there_yet_is_waited_for(tmp_path, broker):
    with sink_on(tmp_path, broker, "later") as sink:
        writer = sink.start()
        wait_until(lambda: writer.events("waiting"), 20, "it says that it waits")
        time.sleep(1)
        reasons = [event["reason"] for event in writer.events("waiting")]
        assert len(reasons) == 1, reasons
        assert "'later'" in reasons[0]
        assert "does not exist" in reasons[0]
        broker.create_topic("later", 2)
        produce(broker.bootstrap_servers, "later", values(range(10)), partitions=2)
        wait_until(lambda: sink.committed_records() == 10, 30, "the new topic is read")
        assert writer.stop() == 0
    assert ids_in(tmp_path) == [*range(10)]


def test_a_broker_that_is_down_is_waited_for(tmp_path):
    with EmbeddedBroker({"sleepy": 1}) as broker:
        produce(broker.bootstrap_servers, "sleepy", values(range(10)))
        broker.set_down()
        with sink_on(tmp_path, broker, "sleepy") as sink:
            writer = sink.start("--until-end")
            wait_until(lambda: writer.events("waiting"), 20, "it says that it waits")
            time.sleep(0.5)
            broker.set_up()
            assert writer.process.wait(60) == 0, writer.words()
            reasons = [event["reason"] for event in writer.events("waiting")]
            assert len(reasons) == len(set(reasons)) <= 2, reasons
            assert any(broker.bootstrap_servers in reason for reason in reasons), reasons
    assert ids_in(tmp_path) == [*range(10)]


def test_an_address_where_nobody_listens_is_waited_for(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with Sink(tmp_path, write_config(tmp_path, address)) as sink:
        writer = sink.start()
        wait_until(lambda: writer.events("waiting"), 20, "it says that it waits")
        assert address in writer.events("waiting")[0]["reason"]
        started_s = time.monotonic()
        assert writer.stop() == 0
        assert time.monotonic() - started_s < 15


# --- until the end ----------------------------------------------------------------------------


def test_two_bounded_writers_at_once_both_end(tmp_path, broker):
    broker.create_topic("halves", 4)
    produce(broker.bootstrap_servers, "halves", values(range(400)), partitions=4)
    with sink_on(tmp_path, broker, "halves") as sink:
        writers = [sink.start("--until-end") for _ in range(2)]
        for writer in writers:
            assert writer.process.wait(60) == 0, writer.events()[-3:]
            assert writer.events("worker_stopped")[0]["reason"] == "end reached"
        assert ids_in(tmp_path) == [*range(400)]
        assert sink.audit()["ok"]


def test_nothing_to_read_is_an_end_too(tmp_path, broker):
    broker.create_topic("empty", 3)
    with sink_on(tmp_path, broker, "empty") as sink:
        sink.drain()
        assert ids_in(tmp_path) == []
        assert sink.audit()["ok"]
        produce(broker.bootstrap_servers, "empty", values(range(30)), partitions=3)
        sink.drain()
        versions = len(sink.entries())
        sink.drain()  # everything was consumed already
        assert len(sink.entries()) == versions
    assert ids_in(tmp_path) == [*range(30)]


def test_what_comes_later_is_not_waited_for(tmp_path, broker):
    broker.create_topic("growing", 1)
    produce(broker.bootstrap_servers, "growing", values(range(50)))
    with sink_on(tmp_path, broker, "growing", flush={"interval_ms": 2000}) as sink:
        writer = sink.start("--until-end")
        wait_until(lambda: writer.events("table_opened"), 20, "the ends were seen")
        produce(broker.bootstrap_servers, "growing", values(range(50, 60)))
        assert writer.process.wait(30) == 0
        found = ids_in(tmp_path)
        assert found[:50] == [*range(50)]
        assert sink.audit()["ok"]


# --- many topics ------------------------------------------------------------------------------


def test_many_topics_become_one_table(tmp_path, broker):
    for name, partitions in (("many.a", 2), ("many.b", 1), ("many.c", 3), ("manyx", 1)):
        broker.create_topic(name, partitions)
        first = {"many.a": 0, "many.b": 100, "many.c": 200, "manyx": 300}[name]
        produce(
            broker.bootstrap_servers, name, values(range(first, first + 10)), partitions=partitions
        )
    by_name, by_pattern = tmp_path / "names", tmp_path / "pattern"
    by_name.mkdir()
    by_pattern.mkdir()
    with sink_on(by_name, broker, "many.a", "many.c") as sink:
        sink.drain()
        assert ids_in(by_name) == [*range(10), *range(200, 210)]
        assert set(txns_of(sink)) == {"many.a/0", "many.a/1", "many.c/0", "many.c/1", "many.c/2"}
    source = {"topics": None, "topics_regex": r"many\.[ab]"}
    with sink_on(by_pattern, broker, "pattern", source=source) as sink:
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 20, 30, "both topics are read")
        rows = DeltaTable(str(by_pattern / "table")).to_pyarrow_table()
        assert set(rows.column("_kafka_topic").to_pylist()) == {"many.a", "many.b"}
        assert writer.stop() == 0
        assert sink.audit()["ok"]
    assert ids_in(by_pattern) == [*range(10), *range(100, 110)]


def test_a_topic_that_matches_later_is_read_from_its_beginning(tmp_path, broker):
    broker.create_topic("grow.1", 1)
    produce(broker.bootstrap_servers, "grow.1", values(range(5)))
    source = {"topics": None, "topics_regex": r"grow\.\d"}
    with sink_on(
        tmp_path, broker, "grow", source=source, kafka={"topic.metadata.refresh.interval.ms": 500}
    ) as sink:
        writer = sink.start()
        wait_until(lambda: sink.committed_records() == 5, 30, "the first topic is read")
        broker.create_topic("grow.2", 1)
        produce(broker.bootstrap_servers, "grow.2", values(range(100, 105)))
        wait_until(lambda: sink.committed_records() == 10, 30, "the second topic is read")
        assert writer.stop() == 0
    assert ids_in(tmp_path) == [*range(5), *range(100, 105)]


# --- where to start ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("earliest", [*range(20)]),
        ("latest", []),
        ({"offsets": {"START": {0: 7}}}, [*range(7, 20)]),
        ({"group": "connect-start"}, [*range(12, 20)]),
    ],
    ids=["earliest", "latest", "offsets", "group"],
)
def test_a_start_is_claimed_once(tmp_path, broker, request, start, expected):
    topic = f"start-{request.node.callspec.id}"
    broker.create_topic(topic, 1)
    produce(broker.bootstrap_servers, topic, values(range(20)))
    commit_group(broker, "connect-start", topic, 12)
    if isinstance(start, dict) and "offsets" in start:
        start = {"offsets": {topic: start["offsets"]["START"]}}
    with sink_on(tmp_path, broker, topic, start=start) as sink:
        sink.drain()
        assert ids_in(tmp_path) == expected
        claims = [
            r for e in sink.entries() if (r := receipt_of(e)) is not None and r.kind == "claim"
        ]
        assert [part.offset_first for part in claims[0].partitions] == [20 - len(expected)]
        # What was claimed stands, whatever comes, and whatever the file says by then.
        produce(broker.bootstrap_servers, topic, values(range(20, 25)))
        sink.drain("--set", "source.start=latest")
        assert ids_in(tmp_path) == [*expected, *range(20, 25)]
        assert sink.audit()["ok"]


def test_a_start_by_time_after_everything_is_the_end(tmp_path, broker):
    broker.create_topic("timed", 1)
    produce(broker.bootstrap_servers, "timed", values(range(5)))
    start = {"timestamp": "2100-01-01T00:00:00Z"}
    with sink_on(tmp_path, broker, "timed", start=start) as sink:
        sink.drain()
        produce(broker.bootstrap_servers, "timed", values(range(5, 8)))
        sink.drain()
    assert ids_in(tmp_path) == [5, 6, 7]


@pytest.mark.parametrize(
    ("start", "wanted"),
    [
        ({"offsets": {}}, ["impossible-offsets", "99", "0 up to 3"]),
        ({"group": "nobody"}, ["nobody", "no committed offset"]),
    ],
    ids=["offsets", "group"],
)
def test_a_start_that_is_not_there_is_refused(tmp_path, broker, request, start, wanted):
    topic = f"impossible-{request.node.callspec.id}"
    broker.create_topic(topic, 1)
    produce(broker.bootstrap_servers, topic, values(range(3)))
    if "offsets" in start:
        start = {"offsets": {topic: {0: 99}}}
    with sink_on(tmp_path, broker, topic, start=start) as sink:
        done = sink.run("run", "writer", "--until-end")
    assert done.returncode == 3
    [sentence] = sentences_of(done.stderr)
    assert all(word in sentence for word in wanted), sentence


# --- restarts and the group's offsets ---------------------------------------------------------


def test_the_log_decides_and_the_group_only_follows(tmp_path, broker):
    broker.create_topic("followed", 1)
    group = "on-followed"
    with sink_on(tmp_path, broker, "followed") as sink:
        for round_, elsewhere in enumerate((3, 1_000_000)):
            produce(
                broker.bootstrap_servers, "followed", values(range(round_ * 10, round_ * 10 + 10))
            )
            sink.drain()
            [committed] = group_offsets(broker, group, "followed")
            assert committed == txns_of(sink)["followed/0"] == round_ * 10 + 10
            commit_group(broker, group, "followed", elsewhere)
        produce(broker.bootstrap_servers, "followed", values(range(20, 25)))
        sink.drain()
        assert ids_in(tmp_path) == [*range(25)]
        assert sink.audit()["ok"]


# --- what Kafka has no more -------------------------------------------------------------------


def _overfilled(broker, sink, topic, numbers):
    """Read ten records, then produce more than the broker keeps; return the first offset kept."""
    produce(broker.bootstrap_servers, topic, values(range(10)))
    sink.drain()
    produce(broker.bootstrap_servers, topic, values(numbers, padding=10_000))
    first, _ = _as_group(
        broker, "nobody", lambda c: c.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    )
    assert first > 10
    return first


def test_a_gap_is_refused_with_its_size_or_skipped_and_recorded(tmp_path, broker):
    broker.create_topic("gap", 1)
    with sink_on(tmp_path, broker, "gap") as sink:
        first = _overfilled(broker, sink, "gap", range(10, 810))
        refused = sink.run("run", "writer", "--until-end")
        assert refused.returncode == 3
        [sentence] = sentences_of(refused.stderr)
        assert f"({first - 10} offsets" in sentence
        assert f"offsets 10 to {first - 1}" in sentence
        assert "source.on_offset_gap: skip" in sentence
        endless = sink.run("run", "writer", timeout_s=30)
        assert endless.returncode == 3
        versions = len(sink.entries())
        assert ids_in(tmp_path) == [*range(10)]
        sink.drain("--set", "source.on_offset_gap=skip")
        assert len(sink.entries()) > versions
        assert ids_in(tmp_path) == [*range(10), *range(first, 810)]
        gone = [
            part.gone
            for entry in sink.entries()
            if (receipt := receipt_of(entry)) is not None
            for part in receipt.partitions
            if part.gone
        ]
        assert gone == [((10, first),)]
        human = sink.run("audit")
        assert f"Kafka had lost {first - 10} offsets" in human.stdout, human.stdout
        machine = sink.audit()
        assert machine["partitions"][0]["gone"] == first - 10
        assert machine["partitions"][0]["rows"] == 10 + 810 - first


def test_one_lost_partition_does_not_stop_the_others(tmp_path, broker):
    broker.create_topic("half-gone", 2)
    with sink_on(tmp_path, broker, "half-gone") as sink:
        _overfilled(broker, sink, "half-gone", range(10, 810))
        everything = values(range(1000, 1010))
        produce(
            broker.bootstrap_servers,
            "half-gone",
            [value for value in everything for _ in range(1)],
            partitions=2,
        )
        done = sink.run("run", "writer", "--until-end")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "half-gone/0" in sentence
        assert "half-gone/1" not in sentence
        halted = events_of(done.stderr, "partition_halted")
        assert [(event["topic"], event["partition"]) for event in halted] == [("half-gone", 0)]
        assert txns_of(sink)["half-gone/1"] == 5


def test_a_topic_that_was_made_anew_is_refused(tmp_path, broker):
    broker.create_topic("anew", 1)
    produce(broker.bootstrap_servers, "anew", values(range(10)))
    with sink_on(tmp_path, broker, "anew") as sink:
        sink.drain()
        broker.delete_topic("anew")
        broker.create_topic("anew", 1)
        produce(broker.bootstrap_servers, "anew", values(range(50, 53)))
        done = sink.run("run", "writer", "--until-end")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "up to offset 10" in sentence
        assert "ends at 3" in sentence
        assert "delta-sink seek" in sentence
    assert ids_in(tmp_path) == [*range(10)]


def test_another_sink_on_the_same_topic_is_refused(tmp_path, broker):
    broker.create_topic("taken", 1)
    produce(broker.bootstrap_servers, "taken", values(range(10)))
    with sink_on(tmp_path, broker, "taken") as sink:
        sink.drain()
        done = sink.run("run", "writer", "--until-end", "--set", "name=a-second-sink")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "on-taken" in sentence
        assert ids_in(tmp_path) == [*range(10)]
