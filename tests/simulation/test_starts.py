"""Where writers start, what stops them, and with which sentence: directed runs in the simulation."""

import pytest

from delta_sink.errors import FatalError, SourceRefused, TableRefused
from delta_sink.memory import MemoryBudget
from delta_sink.model import TopicPartition
from tests.simulation.harness import DAY_MS, LETTERS, TOPIC, settings_of, simulation

SEEDS = range(3)
P0, P1 = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
MINUTE = 60_000


def source(text: str) -> str:
    return f"source: {{{text}}}"


@pytest.fixture(params=SEEDS)
def seed(request):
    return request.param


def claims(sim) -> list[dict]:
    return [receipt for receipt in sim.oracle.receipts.values() if receipt["kind"] == "claim"]


def claimed(sim) -> dict[int, int]:
    return {part["partition"]: part["offset_next"] for c in claims(sim) for part in c["partitions"]}


def stopped_with(sim, worker, error: type) -> str:
    """Wait until the worker has ended; return the sentence it ended with."""
    sim.run(lambda: worker.task.done, limit_ms=10 * MINUTE)
    assert isinstance(worker.task.error, error), worker.task.error
    return str(worker.task.error)


# --- start ----------------------------------------------------------------------------------------


def test_three_writers_at_once_agree_on_latest_while_records_arrive(seed):
    """One moment for all partitions and all workers, from a topic that never holds still."""
    with simulation(seed, partitions=6, config=source("start: latest")) as sim:
        sim.fill(60)
        for number in range(600):
            sim.world.later(number * 50, lambda n=number: sim.produce(n % 6))
        for name in ("w0", "w1", "w2"):
            sim.start(name)
        sim.run_for(31_000)
        sim.finish()
        [claim] = claims(sim)
        starts = {part["partition"]: part["offset_next"] for part in claim["partitions"]}
        assert len(starts) == 6
        assert all(start >= 10 for start in starts.values())
        for name, place in sim.oracle.places.items():
            partition = int(name.rpartition("/")[2])
            assert min(place.rows) == starts[partition] == place.claimed
            assert len(place.rows) == place.offset_next - place.claimed
        assert sum(len(sim.workers[name].committed) > 0 for name in sim.workers) >= 2


def test_latest_means_the_same_moment_after_every_restart(seed):
    with simulation(seed, partitions=2, config=source("start: latest")) as sim:
        sim.fill(4)
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.workers["w0"].host.kill()
        sim.fill(10)
        sim.start()
        sim.finish()
        assert claimed(sim) == {0: 2, 1: 2}
        assert [len(place.rows) for place in sim.oracle.places.values()] == [5, 5]


def test_earliest_begins_at_what_kafka_still_has(seed):
    with simulation(seed, partitions=2) as sim:
        sim.fill(10)
        sim.kafka.retain_from(TOPIC, 0, 3)
        sim.ledger.optional[TOPIC, 0] |= {0, 1, 2}
        sim.start()
        sim.finish()
        assert claimed(sim) == {0: 3, 1: 0}


def test_a_timestamp_begins_at_the_first_record_at_or_after_it(seed):
    config = source("start: {timestamp: 2026-01-01T00:00:10Z}")
    with simulation(seed, partitions=2, config=config) as s:
        s.fill(4)
        s.world.later(10_000, lambda: s.produce(0))
        s.run(lambda: s.seq == 5)
        s.start()
        s.run(lambda: bool(claims(s)))
        s.produce(1)
        s.finish()
        assert claimed(s) == {0: 2, 1: 2}  # partition 1 had nothing so late: its end


def test_explicit_offsets_and_the_beginning_where_none_is_named(seed):
    config = source(f"start: {{offsets: {{{TOPIC}: {{0: 3}}}}}}")
    with simulation(seed, partitions=2, config=config) as sim:
        sim.fill(10)
        sim.start()
        sim.finish()
        assert claimed(sim) == {0: 3, 1: 0}


def test_explicit_offsets_that_kafka_does_not_have_are_refused(seed):
    config = source(f"start: {{offsets: {{{TOPIC}: {{0: 11}}}}}}")
    with simulation(seed, partitions=2, config=config) as sim:
        sim.fill(10)
        sentence = stopped_with(sim, sim.start(), SourceRefused)
        assert sentence == (
            "source.start: orders/0 is asked to start at offset 11, but Kafka has 0 up to 5"
        )
        assert claims(sim) == []


def test_another_groups_offsets(seed):
    with simulation(seed, partitions=2, config=source("start: {group: connect-orders}")) as sim:
        sim.fill(10)
        sim.kafka.group("connect-orders").committed = {P0: 4}
        sim.start()
        sim.finish()
        assert claimed(sim) == {0: 4, 1: 0}


def test_a_group_without_offsets_is_refused(seed):
    with simulation(seed, config=source("start: {group: conect-orders}")) as sim:
        sim.fill(10)
        sentence = stopped_with(sim, sim.start(), SourceRefused)
        assert "group 'conect-orders' has no committed offset for orders" in sentence


def test_the_groups_own_offsets_are_never_read(seed):
    """F8: deleted, behind or ahead; the log decides."""
    with simulation(seed, partitions=2) as sim:
        sim.fill(10)
        sim.start()
        sim.run(lambda: sim.is_complete)
        for number, offsets in enumerate(({}, {P0: 1, P1: 0}, {P0: 9_999})):
            sim.workers["w0"].host.kill()
            sim.run_for(1)
            dict.clear(sim.group.committed)
            dict.update(sim.group.committed, offsets)
            sim.fill(4)
            sim.start()
            sim.run(lambda: sim.is_complete)
            assert sim.txn(0) == 5 + 2 * (number + 1)
        sim.finish()


def test_a_topic_that_does_not_exist_yet_is_waited_for(seed):
    with simulation(seed, config=source("topics: [later]")) as sim:
        w0 = sim.start()
        sim.run_for(90_000)
        assert [w["reason"] for w in w0.named("waiting")] == ["topic later does not exist"]
        sim.kafka.create_topic("later", 1)
        sim.produce(0, topic="later")
        sim.run(lambda: sim.oracle.txns.get(sim.app_id(topic="later")) == 1)


def test_brokers_that_are_down_at_start_are_waited_for(seed):
    with simulation(seed) as sim:
        sim.fill(6)
        sim.kafka.wire.outage(15 * MINUTE)
        w0 = sim.start()
        sim.run_for(15 * MINUTE)
        assert w0.is_up
        assert 1 <= len(w0.named("waiting")) <= 3
        sim.finish()


# --- the same topic, twice ------------------------------------------------------------------------


def test_of_two_sinks_that_claim_one_topic_at_once_one_wins(seed):
    with simulation(seed, partitions=2) as sim:
        sim.fill(10)
        one = sim.start("w0")
        other = sim.start("w1", settings=settings_of("name: second"))
        sim.run(lambda: one.task.done or other.task.done)
        loser, winner = (one, other) if one.task.done else (other, one)
        names = ("second", "sink") if winner is other else ("sink", "second")
        sentence = str(loser.task.error)
        assert isinstance(loser.task.error, SourceRefused)
        assert sentence.startswith(
            f"orders/0: sink '{names[0]}' already fills this table from this topic, and "
            f"'{names[1]}' would read it again"
        )
        assert f"seek --adopt-sink {names[0]}" in sentence
        sim.run(lambda: sum(len(p.rows) for p in sim.oracle.places.values()) == 10)
        assert {app_id.split("/")[0] for app_id in sim.oracle.txns} == {names[0]}
        assert len(claims(sim)) == 1


def test_both_sinks_win_over_the_seeds():
    winners = set()
    for number in range(12):
        with simulation(number, partitions=2) as sim:
            sim.start("w0")
            sim.start("w1", settings=settings_of("name: second"))
            sim.run(lambda sim=sim: bool(claims(sim)))
            winners.add(claims(sim)[0]["sink"])
    assert winners == {"sink", "second"}


def test_another_spelling_of_the_own_name_is_refused(seed):
    """Filled with topic ids, read without: the same records under another app id."""
    with simulation(seed, partitions=2) as sim:
        sim.fill(4)
        sim.start()
        sim.run(lambda: sim.is_complete)
        sim.workers["w0"].stop()
        w1 = sim.start("w1", settings=settings_of(source("topic_ids: none")))
        sentence = stopped_with(sim, w1, SourceRefused)
        assert "set source.topic_ids as it was when the table was filled" in sentence


def test_a_topic_that_was_created_again_is_refused_at_the_start(seed):
    with simulation(seed, partitions=2) as sim:
        sim.fill(10)
        sim.start()
        sim.run(lambda: sim.is_complete)
        sim.workers["w0"].host.kill()
        before = sim.app_id()
        sim.kafka.delete_topic(TOPIC)
        sim.kafka.create_topic(TOPIC, 2)
        sim.kafka.produce(TOPIC, 0, b'{"seq": 1}')
        sentence = stopped_with(sim, sim.start(), SourceRefused)
        assert "the topic was deleted and created again" in sentence
        assert before.split("@")[1].split("/")[0] in sentence
        assert "seek --adopt-topic" in sentence
        assert len(claims(sim)) == 1


def test_a_topic_that_is_created_again_while_it_is_read(seed):
    with simulation(seed, partitions=2) as sim:
        sim.fill(10)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        sim.run_for(2_000)
        sim.kafka.delete_topic(TOPIC)
        sim.kafka.create_topic(TOPIC, 2)
        sentence = stopped_with(sim, w0, SourceRefused)
        assert "created again" in sentence or "truncated" in sentence


def test_a_topic_that_is_filled_past_the_old_offset_is_not_taken_for_the_old_one(seed):
    """Only its id tells it apart: nothing of it may be committed under the old name."""
    with simulation(seed, partitions=1) as sim:
        sim.fill(10)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        sim.run_for(2_000)
        before = sim.app_id()
        sim.recreate_topic()
        sim.fill(20)
        sentence = stopped_with(sim, w0, SourceRefused)
        assert "created again" in sentence
        assert sim.oracle.txns[before] == 10
        assert "fenced" in w0.events


# --- partitions that come -------------------------------------------------------------------------


def test_a_partition_that_is_added_later_starts_at_its_beginning(seed):
    """Also where the start was latest: everything in it is new."""
    with simulation(seed, partitions=2, config=source("start: latest")) as sim:
        sim.fill(4)
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.fill(4)
        sim.run_for(5_000)
        sim.kafka.add_partitions(TOPIC, 4)
        for _ in range(3):
            sim.produce(2)
            sim.produce(3)
        sim.partitions = 4
        sim.finish()
        assert len(claims(sim)) == 2
        assert claimed(sim) == {0: 2, 1: 2, 2: 0, 3: 0}


def test_a_partition_that_is_added_while_nobody_runs(seed):
    with simulation(seed, partitions=1, config=source("start: latest")) as sim:
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.workers["w0"].host.kill()
        sim.kafka.add_partitions(TOPIC, 2)
        sim.produce(1)
        sim.partitions = 2
        sim.start()
        sim.finish()
        assert claimed(sim) == {0: 0, 1: 0}


def test_another_topic_of_the_pattern_has_a_start_of_its_own(seed):
    config = "source: {topics: null, topics_regex: 'orders|returns', start: latest}"
    with simulation(seed, partitions=1, config=config) as sim:
        sim.fill(2)
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.kafka.create_topic("returns", 1)
        sim.produce(0, topic="returns")
        sim.run(lambda: sim.app_id(topic="returns") in sim.oracle.txns)
        sim.produce(0, topic="returns")
        sim.run(lambda: sim.oracle.txns[sim.app_id(topic="returns")] == 2)
        assert sim.oracle.places[sim.app_id(topic="returns")].claimed <= 1


# --- what Kafka no longer has ---------------------------------------------------------------------


def behind(sim, *, retained_from: int = 8):
    """Commit 5 offsets of partition 0, then let retention run past them."""
    for _ in range(5):
        sim.produce(0)
    sim.start()
    sim.run(lambda: sim.is_complete)
    sim.run_for(2_000)
    sim.workers["w0"].host.kill()
    for _ in range(5):
        sim.produce(0)
    sim.kafka.retain_from(TOPIC, 0, retained_from)
    sim.ledger.optional[TOPIC, 0] |= set(range(retained_from))


def test_a_retention_gap_halts_with_the_number_of_missing_offsets(seed):
    with simulation(seed, partitions=1) as sim:
        behind(sim)
        sentence = stopped_with(sim, sim.start(), SourceRefused)
        assert sentence == (
            "orders/0: offsets 5 to 7 are no longer in Kafka (3 offsets were deleted before they "
            "were read): set source.on_offset_gap: skip to go on without them, which the table "
            "records"
        )
        assert sim.txn() == 5


def test_a_halted_partition_does_not_stop_the_others(seed):
    with simulation(seed, partitions=2) as sim:
        behind(sim)
        w0 = sim.start()
        sim.run(lambda: bool(w0.named("partition_halted")))
        sim.produce(1)
        sim.run(lambda: sim.txn(1) == 1)
        assert w0.is_up
        w0.stop()
        assert "orders/0: offsets 5 to 7" in stopped_with(sim, w0, SourceRefused)


def test_a_halted_partition_does_not_keep_a_bounded_run_from_its_end(seed):
    with simulation(seed, partitions=2) as sim:
        behind(sim)
        sim.produce(1)
        w0 = sim.start(until_end=True)
        assert "orders/0: offsets 5 to 7" in stopped_with(sim, w0, SourceRefused)
        assert sim.txn(1) == 1


def test_skip_records_what_is_gone_and_goes_on(seed):
    with simulation(seed, partitions=1, config=source("on_offset_gap: skip")) as sim:
        behind(sim)
        sim.start()
        sim.finish()
        [part] = [
            part
            for receipt in sim.oracle.receipts.values()
            for part in receipt.get("partitions", [])
            if "gone" in part
        ]
        assert (part["gone"], part["offset_first"], part["offset_next"]) == ([[5, 8]], 5, 10)
        counts = sim.workers["w0"].host.telemetry.counts
        assert counts["delta_sink_offset_gap_records_total", ("topic", TOPIC)] == 3


@pytest.mark.parametrize("until_end", [True, False])
def test_skip_records_a_gap_that_reaches_to_the_end(seed, until_end):
    """Nothing is left to read, so that no record ever comes to take the gap along."""
    with simulation(seed, partitions=1, config=source("on_offset_gap: skip")) as sim:
        behind(sim, retained_from=10)
        w0 = sim.start(until_end=until_end)
        sim.run(lambda: sim.txn() == 10, limit_ms=5 * MINUTE)
        if until_end:
            sim.run(lambda: w0.task.done)
            assert w0.task.error is None


def test_an_offset_that_goes_away_while_it_is_read(seed):
    with simulation(seed, partitions=1, config=source("on_offset_gap: skip")) as sim:
        sim.fill(3)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        sim.kafka.wire.outage(5_000)
        sim.fill(6)
        sim.kafka.retain_from(TOPIC, 0, 7)
        sim.ledger.optional[TOPIC, 0] |= set(range(7))
        sim.finish()
        assert len(w0.named("offset_gone")) == 1
        assert "resynced" in w0.events


def test_a_truncated_topic_halts(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(10)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        sim.kafka.truncate(TOPIC, 0, 6)
        sentence = stopped_with(sim, w0, SourceRefused)
        assert sentence == (
            "orders/0: the table has everything up to offset 10, but the topic ends at 6: it was "
            "truncated or created again; check the topic, then move the offset with "
            "`delta-sink seek`"
        )


def test_transactions_and_compaction_leave_gaps_that_lose_nothing(seed):
    with simulation(seed, partitions=1) as sim:
        sim.start()
        sim.transaction(0, 3, aborts=True)
        sim.fill(3)
        sim.transaction(0, 3, aborts=False)
        sim.compact(0)
        sim.transaction(0, 2, aborts=True)
        sim.finish()
        assert sim.txn() == 14


# --- bad records ----------------------------------------------------------------------------------

NO_TOLERANCE = "errors: {tolerance: none, dead_letter_topic: null}"


def test_without_tolerance_it_stops_after_committing_what_came_before(seed):
    with simulation(seed, partitions=1, config=NO_TOLERANCE) as sim:
        sim.fill(5)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        sim.produce(0, "bad")
        sim.fill(3)
        sentence = stopped_with(sim, w0, FatalError)
        assert sentence.startswith("orders/0@5: ")
        assert "nothing from it on was committed" in sentence
        assert "text 6" not in sentence, "a sentence shows no value"
        assert sim.txn() == 5
        assert len(sim.kafka.records(LETTERS, 0)) == 0
        assert "nothing" in stopped_with(sim, sim.start(), FatalError)
        assert sim.txn() == 5


def test_records_behind_a_bad_one_are_not_taken_for_its_successors(seed):
    """While the worker stops, polls still bring records: they must not join what came before."""
    config = NO_TOLERANCE + "\nflush: {interval_ms: 5000}"
    budget = MemoryBudget(queue_bytes=1 << 20, pipeline_bytes=1 << 24, chunk_bytes=300)
    with simulation(seed, partitions=2, config=config, budget=budget) as sim:
        w0 = sim.start()
        for number in range(400):
            at_ms = 3_000 + number * 5
            sim.world.later(at_ms, lambda n=number: sim.produce(0, "bad" if n == 200 else "good"))
            sim.world.later(at_ms, lambda: sim.produce(1))
        sentence = stopped_with(sim, w0, FatalError)
        assert sentence.startswith("orders/0@200: ")
        assert 100 < sim.txn(0) <= 200
        assert 100 < sim.txn(1) < 300


def test_too_many_bad_records_stop_the_worker(seed):
    config = "errors: {ratio_max: 0.05, ratio_window_records: 1000}"
    with simulation(seed, partitions=1, config=config) as sim:
        for number in range(1_200):
            sim.produce(0, "bad" if number % 10 == 0 else "good")
        sentence = stopped_with(sim, sim.start(), FatalError)
        assert "of the last records are bad, errors.ratio_max is 5.0%" in sentence
        assert "the topic does not fit the table; the latest: orders/0@" in sentence


def test_a_few_bad_records_do_not(seed):
    config = "errors: {ratio_max: 0.05, ratio_window_records: 1000}"
    with simulation(seed, partitions=1, config=config) as sim:
        for number in range(1_200):
            sim.produce(0, "bad" if number % 50 == 0 else "good")
        sim.start()
        sim.finish()
        assert len(sim.oracle.places[sim.app_id()].letters) == 24


def test_a_burst_of_bad_records_that_is_read_again_counts_once(seed):
    """Dropped and read again, the same few bad records must not add up to a bad topic."""
    config = "errors: {ratio_max: 0.3, ratio_window_records: 10000}"
    with simulation(seed, partitions=1, config=config) as sim:
        sim.fill(3_000)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        for _ in range(600):
            sim.produce(0, "bad")
        sim.fill(1)

        def block(task):
            if len(w0.named("resynced")) < 8:
                sim.world.at("store.put_if_absent begins", block)
                sim.foreign_fence()

        sim.world.at("store.put_if_absent begins", block)
        sim.finish()
        assert len(w0.named("resynced")) == 8


def test_dead_letters_carry_the_record_and_why(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(3)
        sim.produce(0, "bad")
        sim.start()
        sim.finish()
        [letter] = sim.kafka.records(LETTERS, 0)
        bad = sim.kafka.records(TOPIC, 0)[3]
        assert (letter.value, letter.key) == (bad.value, bad.key)
        headers = {name: value.decode() for name, value in letter.headers}
        assert headers["__connect.errors.topic"] == TOPIC
        assert headers["__connect.errors.partition"] == "0"
        assert headers["__connect.errors.offset"] == "3"
        assert headers["__connect.errors.connector.name"] == "sink"
        assert headers["__connect.errors.task.id"] == "0"
        assert headers["__connect.errors.exception.message"].startswith("orders/0@3: ")
        [receipt] = [r for r in sim.oracle.receipts.values() if r["kind"] == "append"]
        assert headers["delta_sink.commit_id"] == receipt["commit_id"]


def test_brokers_that_take_no_dead_letters_stop_nothing_for_good(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(3)
        sim.produce(0, "bad")
        sim.world.enable("kafka.lost_answer", 1)
        w0 = sim.start()
        sim.run_for(3 * MINUTE)
        assert sim.oracle.commits == 0
        assert w0.is_up
        sim.finish()


def test_a_dead_letter_topic_that_does_not_exist_is_fatal(seed):
    with simulation(seed, partitions=1) as sim:
        sim.kafka.delete_topic(LETTERS)
        sim.produce(0, "bad")
        assert LETTERS in stopped_with(sim, sim.start(), FatalError)


# --- nothing but offsets --------------------------------------------------------------------------


def test_tombstones_are_skipped_and_listed(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(2)
        sim.produce(0, "tombstone")
        sim.fill(1)
        sim.start()
        sim.finish()
        place = sim.oracle.places[sim.app_id()]
        assert (place.skipped, place.rows) == ({2}, {0, 1, 3})


def test_tombstones_as_dead_letters_say_nothing_about_the_topic(seed):
    with simulation(seed, partitions=1, config="value: {tombstones: dead_letter}") as sim:
        sim.fill(2)
        sim.produce(0, "tombstone")
        sim.start()
        sim.finish()
        assert sim.oracle.places[sim.app_id()].letters == {2}


def test_tombstones_as_dead_letters_without_tolerance(seed):
    config = "value: {tombstones: dead_letter}\nerrors: {tolerance: none}"
    with simulation(seed, partitions=1, config=config) as sim:
        sim.fill(2)
        sim.produce(0, "tombstone")
        sim.fill(1)
        sim.start()
        sim.finish()
        assert sim.oracle.places[sim.app_id()].letters == {2}


def test_tombstones_as_rows_of_nulls(seed):
    with simulation(seed, partitions=1, config="value: {tombstones: null_row}") as sim:
        sim.oracle.row_kinds.add("tombstone")
        sim.fill(2)
        sim.produce(0, "tombstone")
        sim.start()
        sim.finish()
        assert sim.oracle.places[sim.app_id()].rows == {0, 1, 2}


def test_offsets_alone_go_after_an_idle_minute_in_a_commit_without_files(seed):
    with simulation(seed, partitions=1) as sim:
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.run_for(5_000)
        began_ms = sim.world.now_ms
        sim.produce(0, "tombstone")
        sim.run(lambda: sim.txn() == 1)
        assert 59_000 <= sim.world.now_ms - began_ms <= 70_000
        assert sim.oracle.live == set()


def test_offsets_ride_along_with_the_next_row(seed):
    with simulation(seed, partitions=1) as sim:
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.produce(0, "tombstone")
        sim.run_for(5_000)
        assert sim.txn() == 0
        sim.fill(1)
        sim.run(lambda: sim.txn() == 2, limit_ms=5_000)
        assert sim.oracle.commits == 1


def test_a_clean_stop_takes_offsets_along(seed):
    with simulation(seed, partitions=1) as sim:
        w0 = sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.run_for(3_000)
        sim.produce(0, "tombstone")
        sim.run_for(3_000)
        w0.stop()
        sim.run(lambda: w0.task.done)
        assert w0.task.error is None
        assert sim.txn() == 1


# --- stopping, and being fenced -------------------------------------------------------------------


def test_asked_to_stop_it_commits_what_it_has_read(seed):
    with simulation(seed, partitions=2, config="flush: {interval_ms: 60000}") as sim:
        w0 = sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.run_for(3_000)
        sim.fill(10)
        sim.run_for(3_000)
        assert sim.oracle.commits == 0
        w0.stop()
        sim.run(lambda: w0.task.done, limit_ms=5_000)
        assert w0.task.error is None
        assert sim.is_complete
        assert w0.named("worker_stopped")[0]["reason"] == "asked to stop"
        assert sim.group.owners == {}


def test_asked_twice_it_drops_what_it_has(seed):
    with simulation(seed, partitions=2) as sim:
        sim.fill(10)
        sim.world.enable("store.lost_request", 1)
        w0 = sim.start()
        sim.run_for(20_000)
        w0.stop()
        sim.run_for(1_000)
        w0.stop()
        sim.run(lambda: w0.task.done, limit_ms=5_000)
        assert w0.task.error is None
        sim.world.heal()
        sim.start()
        sim.finish()


def test_the_grace_period_ends_what_does_not_end(seed):
    with simulation(seed, partitions=2, config="shutdown: {grace_ms: 10000}") as sim:
        sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.run_for(2_000)
        w0 = sim.workers["w0"]
        sim.world.at("store.put_if_absent begins", lambda _: fall_silent(sim))
        sim.fill(10)
        sim.run(lambda: bool(w0.named("commit_retried")))
        w0.stop()
        began_ms = sim.world.now_ms
        sim.run(lambda: w0.task.done)
        assert 9_000 <= sim.world.now_ms - began_ms <= 12_000
        sim.world.heal()
        sim.start()
        sim.finish()


def fall_silent(sim) -> None:
    sim.world.enable("store.lost_request", 1)


def test_fenced_twice_it_leaves_the_group_and_joins_again(seed):
    """Somebody moves the offsets each time that a commit is on its way."""
    with simulation(seed, partitions=1) as sim:
        w0 = sim.start()
        sim.run(lambda: bool(claims(sim)))
        for _ in range(2):
            fences = len(w0.named("fenced"))
            sim.fill(3)
            sim.world.at("store.put_if_absent begins", lambda _: seek(sim, sim.txn() + 1))
            sim.run(lambda n=fences: len(w0.named("fenced")) > n)
        sim.run(lambda: bool(w0.named("rejoined")))
        sim.finish()


def seek(sim, to: int) -> None:
    """Let an operator move partition 0 to `to`, as the command does: one commit."""
    app_id, before = sim.app_id(), sim.txn()
    moved = {
        "app_id": app_id,
        "topic": TOPIC,
        "partition": 0,
        "offset_first": before,
        "offset_next": to,
        "records": 0,
        "rows": 0,
    }
    receipt = {
        "format": 1,
        "kind": "seek",
        "sink": "sink",
        "worker": "ops",
        "generation": 0,
        "commit_id": f"seek-{sim.oracle.version}",
        "partitions": [moved],
    }
    sim.seek_commit(receipt, {"txn": {"appId": app_id, "version": to}})


def test_an_idle_writer_notices_a_seek_within_two_minutes(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(10)
        sim.start()
        sim.run(lambda: sim.is_complete)
        sim.run_for(30_000)
        place = sim.oracle.places[sim.app_id()]
        place.rows.clear()  # what the seek goes back over may be read again
        seek(sim, 4)
        sim.run(lambda: sim.txn() == 10, limit_ms=2 * MINUTE)
        assert place.rows == {4, 5, 6, 7, 8, 9}
        sim.finish()


def test_a_schema_that_changes_meanwhile_stops_the_worker_with_the_difference(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(3)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        changed = dict(sim.oracle.metadata)
        changed["schemaString"] = changed["schemaString"].replace('"seq"', '"sequence"')
        sim.foreign_commit({"metaData": changed})
        sim.fill(3)
        sentence = stopped_with(sim, w0, TableRefused)
        assert "seq" in sentence


def test_a_property_that_is_not_supported_stops_the_worker(seed):
    with simulation(seed, partitions=1) as sim:
        sim.fill(3)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        changed = dict(sim.oracle.metadata)
        changed["configuration"] = {
            **changed["configuration"],
            "delta.setTransactionRetentionDuration": "interval 1 day",
        }
        sim.foreign_commit({"metaData": changed})
        sim.fill(3)
        assert "setTransactionRetentionDuration" in stopped_with(sim, w0, TableRefused)
        assert sim.txn() == 3


# --- until the end --------------------------------------------------------------------------------


def test_a_bounded_run_ends_at_the_end_that_it_saw(seed):
    with simulation(seed, partitions=3, config="flush: {interval_ms: 60000}") as sim:
        sim.fill(30)
        sim.transaction(1, 2, aborts=True)
        workers = [sim.start(f"w{number}", until_end=True) for number in range(2)]
        sim.run(lambda: all(worker.task.done for worker in workers), limit_ms=2 * MINUTE)
        assert [worker.task.error for worker in workers] == [None, None]
        assert sim.is_complete
        assert workers[0].named("worker_stopped")[0]["reason"] == "end reached"


def test_a_bounded_run_of_an_empty_topic_ends(seed):
    with simulation(seed, partitions=2) as sim:
        w0 = sim.start(until_end=True)
        sim.run(lambda: w0.task.done, limit_ms=2 * MINUTE)
        assert w0.task.error is None


# --- what another member does ---------------------------------------------------------------------


def test_what_is_buffered_of_a_revoked_partition_is_dropped(seed):
    """Not flushed: by the time that it could be, the partition may be another's."""
    with simulation(seed, partitions=2, config="flush: {interval_ms: 60000}") as sim:
        w0 = sim.start("w0")
        sim.run(lambda: bool(claims(sim)))
        sim.run_for(5_000)
        sim.fill(10)
        sim.run_for(2_000)
        w1 = sim.start("w1")
        sim.run(lambda: bool(w0.named("partitions_revoked")))
        sim.run_for(500)
        assert [fields["reason"] for fields in w0.named("resynced")] == [
            "partitions were taken away"
        ]
        w0.stop()
        sim.run(lambda: w0.task.done)
        sim.run(lambda: sim.is_complete and bool(w1.committed))
        mine = {
            part["partition"]
            for receipt in sim.oracle.receipts.values()
            if receipt["worker"] == w0.named("worker_started")[0]["worker"]
            and receipt["kind"] == "append"
            for part in receipt["partitions"]
        }
        assert len(mine) <= 1


def test_after_a_long_night_in_which_the_log_was_cleaned_up(seed):
    """Paused for two days just before its commit is sent: it lands where nobody reads."""
    with simulation(seed, partitions=1) as sim:
        w0 = sim.start()
        sim.run(lambda: bool(claims(sim)))
        sim.run_for(3_000)
        asleep = []

        def sleep(task):
            asleep.append(True)
            task.host.pause(2 * DAY_MS)

        sim.world.at("store.put_if_absent begins", sleep)
        sim.fill(5)
        sim.run(lambda: bool(asleep))
        for _ in range(4):
            sim.foreign_commit({"txn": {"appId": "at night", "version": 1}})
        sim.checkpoint()
        sim.run_for(DAY_MS + DAY_MS // 2)
        sim.clean_up()
        sim.run(lambda: not w0.host.paused, limit_ms=DAY_MS)
        sim.finish()
        assert list(sim.oracle.ghosts) == [2]
        assert {"reason": "a commit was not answered"} in w0.named("resynced")
        assert len(sim.oracle.places[sim.app_id()].rows) == 5
