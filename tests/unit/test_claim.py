"""Where partitions start: the questions asked of log and brokers, and what each answer leads to."""

import pytest

from delta_sink.claim import CLAIM_TRIES_MAX, Source, open_table, settle
from delta_sink.delta.commit import Log, open_log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.delta.table import Author
from delta_sink.errors import BrokerUnavailable, SourceRefused, TableRefused
from delta_sink.model import AppId, TopicPartition
from delta_sink.ports import Topic
from delta_sink.view import table_spec
from tests.simulation.harness import TOPIC, settings_of, simulation

P0, P1, P2 = (TopicPartition(TOPIC, number) for number in range(3))
AUTHOR = Author("sink", "worker")


@pytest.fixture
def sim():
    with simulation(5, partitions=2) as made:
        made.fill(10)
        yield made


def source(sim, config="", *, table=True, name="asks"):
    """Return the questions as one host asks them: outside any task, so that all answer at once."""
    settings = settings_of(config)
    host = sim.world.hosts.get(name) or sim.world.host(name)
    store = sim.store.client(host)
    log = Log(store, ConditionalPutLog(store), host.clock, host.entropy, host.telemetry)
    return Source(settings, log, sim.kafka.broker(host), table_spec(settings) if table else None)


def starts(settled):
    return {tp: (start.offset_next, start.read_from) for tp, start in settled.starts.items()}


def test_all_partitions_are_claimed_at_once_and_only_those_asked_for_are_answered(sim):
    settled = settle(source(sim), None, [P1], AUTHOR)
    assert starts(settled) == {P1: (0, 0)}
    assert settled.state.txns == {sim.app_id(0): 0, sim.app_id(1): 0}
    assert settled.state.version == 1
    assert settled.ends is None


def test_a_second_settling_claims_nothing(sim):
    asks = source(sim, "source: {start: latest}")
    first = settle(asks, None, [P0], AUTHOR)
    sim.fill(10)
    second = settle(asks, first.state, [P0, P1], AUTHOR)
    assert second.state.version == first.state.version
    assert starts(second) == {P0: (5, 5), P1: (5, 5)}


def test_settling_without_partitions_claims_too(sim):
    settled = settle(source(sim), None, [], AUTHOR)
    assert (starts(settled), len(settled.state.txns)) == ({}, 2)


def test_the_ends_are_those_of_all_partitions(sim):
    settled = settle(source(sim), None, [P0], AUTHOR, ends=True)
    topic_id = sim.kafka.topic_id(TOPIC)
    assert settled.ends == {AppId("sink", tp, topic_id): 5 for tp in (P0, P1)}


def test_the_ends_of_topics_that_do_not_all_exist(sim):
    with pytest.raises(BrokerUnavailable, match="topic 'returns': it does not exist yet"):
        settle(source(sim, "source: {topics: [orders, returns]}"), None, [], AUTHOR, ends=True)
    none = "source: {topics: null, topics_regex: 'x.*'}"
    with pytest.raises(BrokerUnavailable, match=r"a topic that source\.topics_regex matches"):
        settle(source(sim, none), None, [], AUTHOR, ends=True)


def test_an_assigned_partition_that_the_brokers_do_not_know(sim):
    with pytest.raises(BrokerUnavailable, match="do not know orders/2, which is assigned to us"):
        settle(source(sim), None, [P0, P2], AUTHOR)
    assert open_log(source(sim).log).version == 0


def test_brokers_that_give_no_topic_ids_are_asked_again(sim):
    """A silence is never taken for "no ids": that would be another app id."""
    sim.kafka.topic_ids = False
    with pytest.raises(BrokerUnavailable, match="gave no id of topic 'orders'"):
        settle(source(sim), None, [P0], AUTHOR)
    assert open_log(source(sim).log).txns == {}


def test_without_topic_ids_the_name_has_none(sim):
    settled = settle(source(sim, "source: {topic_ids: none}"), None, [P0], AUTHOR)
    assert set(settled.state.txns) == {"sink/orders/0", "sink/orders/1"}


def test_ids_that_are_there_and_not_wanted_stay_out_of_the_name(sim):
    asks = source(sim, "source: {topic_ids: none}")
    assert str(asks.app_id(Topic(TOPIC, 2, "an id"), 1)) == "sink/orders/1"


@pytest.mark.parametrize(("before", "after"), [("required", "none"), ("none", "required")])
def test_another_spelling_is_refused(sim, before, after):
    settle(source(sim, f"source: {{topic_ids: {before}}}"), None, [P0], AUTHOR)
    asks = source(sim, f"source: {{topic_ids: {after}}}")
    with pytest.raises(SourceRefused, match=r"set source\.topic_ids as it was"):
        settle(asks, None, [P0], AUTHOR)


def test_another_sink_is_refused_before_anything_is_written(sim):
    settle(source(sim), None, [P0], AUTHOR)
    with pytest.raises(SourceRefused, match="sink 'sink' already fills this table"):
        settle(source(sim, "name: second"), None, [P0], Author("second", "w"))
    assert sim.oracle.version == 1


def test_another_topic_of_the_same_table_is_claimed_by_another_sink(sim):
    settle(source(sim), None, [P0], AUTHOR)
    sim.kafka.create_topic("returns", 1)
    asks = source(sim, "name: second\nsource: {topics: [returns]}")
    settled = settle(asks, None, [TopicPartition("returns", 0)], Author("second", "w"))
    assert len(settled.state.txns) == 3


# --- races for the claim --------------------------------------------------------------------------


def test_a_lost_race_takes_what_the_winner_claimed(sim):
    """Both saw no txn; the first claims 5, records come, the second must not claim 10."""
    config = "source: {start: latest}"
    slow = source(sim, config, name="slow")
    open_table(slow, AUTHOR)

    class Overtaken(type(slow.broker)):
        def offsets(self, partitions, at):
            found = super().offsets(partitions, at)
            if at == "latest" and sim.oracle.version == 0:
                settle(source(sim, config, name="fast"), None, [P0], Author("sink", "fast"))
                sim.fill(10)
            return found

    overtaken = Overtaken(sim.kafka, sim.world.hosts["slow"])
    asks = Source(slow.settings, slow.log, overtaken, slow.table)
    settled = settle(asks, None, [P0], AUTHOR)
    assert starts(settled) == {P0: (5, 5)}
    assert [r["worker"] for r in sim.oracle.receipts.values() if r["kind"] == "claim"] == ["fast"]


def test_races_that_are_always_lost_end():
    with simulation(5, partitions=CLAIM_TRIES_MAX + 5) as sim:
        asks = source(sim)
        open_table(asks, AUTHOR)
        others = iter(range(CLAIM_TRIES_MAX + 5))

        class Overtaken(type(asks.broker)):
            def offsets(self, partitions, at):
                txn = {"appId": sim.app_id(next(others)), "version": 0}
                sim.foreign_commit({"txn": txn})
                return super().offsets(partitions, at)

        overtaken = Overtaken(sim.kafka, sim.world.hosts["asks"])
        with pytest.raises(BrokerUnavailable, match=f"lost {CLAIM_TRIES_MAX} races"):
            settle(Source(asks.settings, asks.log, overtaken, asks.table), None, [P0], AUTHOR)
        assert sim.oracle.receipts.keys() == {0}


# --- the table ------------------------------------------------------------------------------------


def test_no_table_and_no_schema(sim):
    with pytest.raises(TableRefused, match=r"no table at /simulated/table .* no table\.schema"):
        settle(source(sim, table=False), None, [P0], AUTHOR)


def test_a_table_of_somebody_else_must_be_adopted_first(sim):
    asks = source(sim)
    state = open_table(asks, AUTHOR)
    sim.oracle.drop_table()
    protocol = {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}
    metadata = {"id": "x", "schemaString": state.metadata.schema_string, "partitionColumns": []}
    metadata |= {"configuration": {}, "format": {"provider": "parquet", "options": {}}}
    sim.foreign_commit(protocol, {"metaData": metadata})
    with pytest.raises(TableRefused, match="run `delta-sink init` once"):
        settle(asks, None, [P0], AUTHOR)
    assert sim.oracle.version == 0


# --- guards ---------------------------------------------------------------------------------------


def test_each_partition_is_guarded_by_itself(sim):
    asks = source(sim)
    first = settle(asks, None, [P0, P1], AUTHOR)
    sim.kafka.retain_from(TOPIC, 0, 2)
    settled = settle(asks, first.state, [P0, P1], AUTHOR)
    assert starts(settled) == {P1: (0, 0)}
    assert list(settled.halted) == [P0]
    assert "offsets 0 to 1 are no longer in Kafka (2 offsets" in settled.halted[P0]


def test_a_gap_that_may_be_skipped(sim):
    asks = source(sim, "source: {on_offset_gap: skip}")
    first = settle(asks, None, [P0, P1], AUTHOR)
    sim.kafka.retain_from(TOPIC, 0, 2)
    settled = settle(asks, first.state, [P0, P1], AUTHOR)
    assert starts(settled) == {P0: (0, 2), P1: (0, 0)}
    assert settled.starts[P0].gone == ((0, 2),)
    assert settled.halted == {}


def test_an_end_below_the_txn_is_a_truncation(sim):
    asks = source(sim, "source: {start: latest}")
    first = settle(asks, None, [P0], AUTHOR)
    sim.kafka.truncate(TOPIC, 0, 4)
    settled = settle(asks, first.state, [P0], AUTHOR)
    assert "everything up to offset 5, but the topic ends at 4" in settled.halted[P0]
    sim.produce(0)
    assert starts(settle(asks, first.state, [P0], AUTHOR)) == {P0: (5, 5)}


@pytest.mark.parametrize("offset", [1, 6])
def test_a_start_outside_of_what_kafka_has(sim, offset):
    sim.kafka.retain_from(TOPIC, 0, 2)
    config = f"source: {{start: {{offsets: {{orders: {{0: {offset}}}}}}}}}"
    with pytest.raises(SourceRefused, match=f"offset {offset}, but Kafka has 2 up to 5"):
        settle(source(sim, config), None, [P0], AUTHOR)


def test_the_groups_offsets_are_checked_too(sim):
    sim.kafka.group("connect").committed = {P0: 99}
    with pytest.raises(SourceRefused, match="orders/0 is asked to start at offset 99"):
        settle(source(sim, "source: {start: {group: connect}}"), None, [P0], AUTHOR)
