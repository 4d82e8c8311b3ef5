"""A seek as a commit: what it shows, what it refuses, who it fences, and what is never certain."""

from __future__ import annotations

import pytest

from delta_sink.audit import audit_log
from delta_sink.audit_chain import Chain
from delta_sink.claim import Source
from delta_sink.delta.actions import Txn, encode_entry
from delta_sink.delta.commit import DOUBT_MAX_MS, Log
from delta_sink.delta.logstore import ConditionalPutLog, entry_path
from delta_sink.delta.receipt import RETIRED, PartitionReceipt
from delta_sink.errors import (
    BrokerUnavailable,
    CommitUnknown,
    DeltaSinkError,
    SourceRefused,
    TableRefused,
)
from delta_sink.model import AppId, TopicPartition
from delta_sink.seek import LOOKS_MAX, SeekRequest, ToOffset, execute_seek, show_seek
from delta_sink.start import StartEarliest, StartLatest, StartTimestamp
from delta_sink.view import table_spec
from tests.simulation.harness import DAY_MS, TOPIC, settings_of, simulation
from tests.unit.scripted import Bench, info, lost_after, lost_before, on_the_wire

MINUTE = 60_000
P0 = TopicPartition(TOPIC, 0)


def wanted(target=None, **fields) -> SeekRequest:
    fields = {"operator": "kim@ops", "reason": "a test"} | fields
    return SeekRequest(target=target, **fields)


def to(offset: int, *partitions: int) -> SeekRequest:
    return wanted(ToOffset(offset), partitions=partitions or (0,))


def by_operator(sim, function, request, *, settings=None, log=None):
    """Return what `function` does on a host of its own, beside whoever runs."""
    host = sim.world.host(f"ops-{len(sim.world.trace)}")
    store = sim.store.client(host)
    settings = settings or sim.settings
    log = log or Log(store, ConditionalPutLog(store), host.clock, host.entropy, host.telemetry)
    source = Source(settings, log, sim.kafka.broker(host), table_spec(settings))
    task = sim.world.spawn(
        host, lambda: function(source, request), may_fail=(DeltaSinkError,), name="seek"
    )
    sim.run(lambda: task.done)
    if task.error is not None:
        raise task.error
    return task.result


def audited(sim, sink: str = "sink"):
    """Return the audit of the log, by the code that `delta-sink audit` runs."""
    return by_operator(sim, lambda source, _: audit_log(source.log, sink), None)


def refusal(sim, request, **options) -> str:
    """Return the sentence with which both the dry run and the real one are refused."""
    version = sim.oracle.version
    told = set()
    for function in (show_seek, execute_seek):
        with pytest.raises((SourceRefused, TableRefused)) as caught:
            by_operator(sim, function, request, **options)
        told.add(str(caught.value))
    assert sim.oracle.version == version
    [sentence] = told
    return sentence


@pytest.fixture
def drained():
    """Ten records in one partition, all in the table, and the writer gone."""
    with simulation(1, partitions=1) as sim:
        drain(sim, 10)
        yield sim


def drain(sim, count: int, **options) -> None:
    sim.fill(count)
    worker = sim.start("first", **options)
    sim.run(lambda: sim.is_complete)
    worker.stop()
    sim.run(lambda: worker.task.done)


# --- what it shows --------------------------------------------------------------------------------


def test_a_dry_run_says_what_is_read_twice_and_changes_nothing(drained):
    version = drained.oracle.version
    seeking = by_operator(drained, show_seek, to(4))
    [move] = seeking.moves
    assert (move.offset_from, move.offset_to, move.twice, move.never) == (10, 4, 6, 0)
    told = seeking.sentences()
    assert told[0] == "orders/0: 10 to 4: offsets 4 to 9 are read twice (Kafka still has 6)"
    assert any("stop the writers first" in line for line in told)
    assert (drained.oracle.version, drained.txn()) == (version, 10)


def test_what_kafka_no_longer_has_is_not_read_twice(drained):
    drained.kafka.retain_from(TOPIC, 0, 7)
    [move] = by_operator(drained, show_seek, wanted(StartEarliest())).moves
    assert (move.offset_to, move.twice) == (7, 3)


def test_forward_says_what_is_never_read(drained):
    drained.fill(8)
    seeking = by_operator(drained, show_seek, to(15))
    [move] = seeking.moves
    assert (move.offset_from, move.offset_to, move.twice, move.never) == (10, 15, 0, 5)
    assert seeking.sentences() == [
        "orders/0: 10 to 15: offsets 10 to 14 are never read (Kafka still has 5)"
    ]


def test_forward_over_what_retention_took(drained):
    drained.fill(8)
    drained.kafka.retain_from(TOPIC, 0, 14)
    [move] = by_operator(drained, show_seek, wanted(StartLatest())).moves
    assert (move.offset_from, move.offset_to, move.never) == (10, 18, 4)


def test_a_time_is_the_first_record_from_then_on(drained):
    drained.run_for(5_000)
    at_ms = drained.world.wall_ms
    drained.run_for(1_000)
    drained.fill(3)
    later = by_operator(drained, show_seek, wanted(StartTimestamp(at_ms)))
    assert later.moves == ()
    assert later.sentences() == ["nothing to move: every partition is there already"]
    [move] = by_operator(drained, show_seek, wanted(StartTimestamp(at_ms - 3_600_000))).moves
    assert move.offset_to == 0


def test_nothing_to_move_is_no_commit(drained):
    version = drained.oracle.version
    assert by_operator(drained, execute_seek, to(10)).version is None
    assert drained.oracle.version == version


def test_the_commit_says_who_and_why(drained):
    sought = by_operator(drained, execute_seek, to(4))
    receipt = drained.oracle.receipts[sought.version]
    assert (receipt["kind"], receipt["worker"], receipt["reason"]) == ("seek", "kim@ops", "a test")
    [part] = receipt["partitions"]
    assert (part["offset_first"], part["offset_next"]) == (10, 4)
    entry = drained.store.peek(entry_path(sought.version)).decode()
    assert '"operation":"SEEK"' in entry
    assert '"operator":"kim@ops"' in entry
    assert drained.txn() == 4
    [seek] = audited(drained).seeks
    assert (seek.offset_from, seek.offset_to, seek.operator) == (10, 4, "kim@ops")


def test_only_the_partitions_that_were_named_move():
    with simulation(1, partitions=3) as sim:
        drain(sim, 30)
        sought = by_operator(sim, execute_seek, to(4, 0, 2))
        assert [move.app_id.tp.partition for move in sought.seeking.moves] == [0, 2]
        assert [sim.txn(partition) for partition in range(3)] == [4, 10, 4]
        by_operator(sim, execute_seek, wanted(StartEarliest()))
        assert [sim.txn(partition) for partition in range(3)] == [0, 0, 0]


def test_a_partition_that_nobody_began_with_stays(drained):
    drained.kafka.add_partitions(TOPIC, 2)
    seeking = by_operator(drained, show_seek, wanted(StartEarliest()))
    assert [move.app_id.tp for move in seeking.moves] == [P0]
    assert seeking.stays == ("orders/1: stays, no writer has begun with it",)


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (to(11), "orders/0: asked to go on at offset 11, but Kafka has 3 up to 10"),
        (to(2), "orders/0: asked to go on at offset 2, but Kafka has 3 up to 10"),
        (to(4, 1), "orders/1 does not exist: the topic has 1 partitions"),
        (wanted(StartEarliest(), topic="ordres"), "those are: orders"),
        (wanted(StartEarliest(), reason=" "), "a seek needs a reason"),
        (wanted(), "say where to go"),
        (wanted(StartTimestamp(2**42)), "the time lies in the future"),
        (wanted(adopt_sink="sink"), "is this sink's own name"),
        (wanted(adopt_sink="other"), "it has those of no other sink"),
        (wanted(StartEarliest(), adopt_sink="other"), "it takes no target"),
        (wanted(adopt_sink="other", adopt_topic=True), "not both in one seek"),
        (wanted(adopt_topic=True, partitions=(0,)), "partitions are adopted together"),
        (wanted(adopt_topic=True), "nothing to adopt: the log knows orders under the id"),
    ],
)
def test_what_makes_no_sense_is_refused(drained, request_, sentence):
    drained.kafka.retain_from(TOPIC, 0, 3)
    assert sentence in refusal(drained, request_)


def test_one_offset_for_several_partitions_is_refused():
    with simulation(1, partitions=3) as sim:
        drain(sim, 30)
        assert "for which of the 3 partitions" in refusal(sim, wanted(ToOffset(4)))


def test_without_a_table_there_is_nothing_to_move():
    with simulation(1, partitions=1) as sim:
        assert "there is no table" in refusal(sim, to(0))


def test_a_partition_without_an_offset_is_refused(drained):
    drained.kafka.add_partitions(TOPIC, 2)
    assert "orders/1: no writer has begun with it" in refusal(drained, to(0, 1))


def test_brokers_that_do_not_answer_move_nothing(drained):
    drained.world.enable("kafka.read_failed", 1.0)
    with pytest.raises(BrokerUnavailable):
        by_operator(drained, execute_seek, to(4))
    assert drained.txn() == 10


# --- beside running writers -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_busy_writer_is_sought_back_and_forth(seed):
    """The seek wins its race in the end; the writer goes on from where the log says, once."""
    with simulation(seed, partitions=1, config="flush: {interval_ms: 1000}") as sim:
        sim.start()
        for number in range(400):
            sim.world.later(number * 50, lambda: sim.produce(0))
        sim.run(lambda: (sim.txn() or 0) > 100)
        back = by_operator(sim, execute_seek, to(50))
        sim.run(lambda: sim.txn() > 120)
        for _ in range(200):
            sim.produce(0)
        sim.run_for(200)  # now the writer has them, and has not committed them
        ahead = by_operator(sim, execute_seek, wanted(StartLatest()))
        sim.run(lambda: sim.seq == 600)
        sim.finish()
        [moved_back] = back.seeking.moves
        assert moved_back.offset_from > 100 > moved_back.offset_to == 50
        assert sim.workers["w0"].named("resynced")
        audit = audited(sim)
        assert audit.ok, audit.violations
        skipped = sum(move.offset_to - move.offset_from for move in ahead.seeking.moves)
        assert skipped > 0
        [part] = audit.partitions
        assert part.records == 600 + (moved_back.offset_from - 50) - skipped
        assert [s.version for s in audit.seeks] == [back.version, ahead.version]


@pytest.mark.parametrize("target", [StartLatest(), ToOffset(15)])
def test_a_seek_forward_that_a_writer_overtakes_does_not_go_back(drained, target):
    """While it lost its race the partition passed the target: there is nothing left to do."""
    drained.fill(5)

    def overtake(_task):
        drained.foreign_commit({"txn": {"appId": drained.app_id(), "version": 17}})

    drained.world.at("store.put_if_absent begins", overtake)
    sought = by_operator(drained, execute_seek, wanted(target))
    assert (sought.version, sought.seeking.moves) == (None, ())
    assert drained.txn() == 17


def test_a_seek_that_loses_every_race_moves_nothing(drained):
    """Somebody commits this partition before each attempt: the seek gives up with a sentence."""
    txn = [10]

    def overtake(_task):
        txn[0] += 1
        drained.foreign_commit({"txn": {"appId": drained.app_id(), "version": txn[0]}})
        drained.world.at("store.put_if_absent begins", overtake)

    drained.world.at("store.put_if_absent begins", overtake)
    with pytest.raises(SourceRefused, match="lost 50 races"):
        by_operator(drained, execute_seek, to(4))
    assert drained.txn() == 60


def test_two_people_at_once_do_not_undo_each_other(drained):
    def meddle(_task):
        receipt = dict(drained.oracle.receipts[drained.oracle.version])
        part = {"app_id": drained.app_id(), "topic": TOPIC, "partition": 0, "offset_first": 10,
                "offset_next": 2, "records": 0, "rows": 0}  # fmt: skip
        receipt |= {"kind": "seek", "commit_id": "somebody else", "partitions": [part]}
        drained.seek_commit(receipt, {"txn": {"appId": drained.app_id(), "version": 2}})

    drained.world.at("store.put_if_absent begins", meddle)
    with pytest.raises(SourceRefused, match="somebody else moved it from 10 back to 2"):
        by_operator(drained, execute_seek, to(4))
    assert drained.txn() == 2


def test_a_table_that_changed_meanwhile_is_not_written_to(drained):
    def forbid(_task):
        changed = dict(drained.oracle.metadata)
        feature = {"delta.setTransactionRetentionDuration": "interval 1 day"}
        changed["configuration"] = {**changed["configuration"], **feature}
        drained.foreign_commit({"metaData": changed})

    drained.world.at("store.put_if_absent begins", forbid)
    with pytest.raises(TableRefused, match="setTransactionRetentionDuration"):
        by_operator(drained, execute_seek, to(4))
    assert drained.txn() == 10


# --- a topic that was created again ---------------------------------------------------------------


def recreate(sim, partitions: int) -> str:
    """Delete the topic and create it again; return the app id that partition 0 had."""
    old = sim.app_id()
    sim.kafka.delete_topic(TOPIC)
    sim.kafka.create_topic(TOPIC, partitions)
    sim.partitions = partitions
    for tp in [tp for tp in sim.ledger.records if tp[0] == TOPIC]:
        del sim.ledger.records[tp]
    return old


def test_a_topic_created_again_goes_on_once_it_is_adopted():
    with simulation(1, partitions=2) as sim:
        drain(sim, 10)
        old = recreate(sim, 3)
        sim.fill(9)
        w1 = sim.start("w1")
        sim.run(lambda: w1.task.done)
        assert "seek --adopt-topic" in str(w1.task.error)
        assert "seek --adopt-topic" in refusal(sim, wanted(StartEarliest()))
        sought = by_operator(sim, execute_seek, wanted(adopt_topic=True))
        assert [(m.offset_from, m.offset_to) for m in sought.seeking.moves] == [(None, 0)] * 3
        assert sim.oracle.txns[old] == RETIRED
        sim.start("w2")
        sim.finish()
        audit = audited(sim)
        assert audit.ok, audit.violations
        assert sum(part.rows for part in audit.partitions) == 19
        assert {str(seek).split(": ")[1][:10] for seek in audit.seeks} == {"version 3 "}
        assert [seek.replaces for seek in audit.seeks] == [old, old[:-1] + "1", None]
        ended = {part.app_id: part.offset_next for part in audit.partitions}
        assert ended[old] == 5
        assert "nothing to adopt" in refusal(sim, wanted(adopt_topic=True))


def test_an_adopted_topic_with_fewer_partitions_begins_where_it_is_told():
    with simulation(1, partitions=2) as sim:
        drain(sim, 10)
        recreate(sim, 1)
        sim.fill(9)
        sought = by_operator(sim, execute_seek, wanted(ToOffset(4), adopt_topic=True))
        assert [move.offset_to for move in sought.seeking.moves] == [4]
        assert len(sought.seeking.retired) == 2
        assert any("is given up" in line for line in sought.seeking.sentences())
        sim.start("w1")
        sim.finish()
        audit = audited(sim)
        assert audit.ok, audit.violations
        assert sum(part.rows for part in audit.partitions) == 15
        assert any("nobody goes on" in str(seek) for seek in audit.seeks)


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_that_still_runs_under_the_old_id_commits_nothing_more(seed):
    """It had not looked at the topic's id yet; the retired offset fences it at once."""
    with simulation(seed, partitions=1, config="flush: {interval_ms: 100}") as sim:
        sim.fill(10)
        w0 = sim.start()
        sim.run(lambda: sim.is_complete)
        old = recreate(sim, 1)
        by_operator(sim, execute_seek, wanted(adopt_topic=True))
        sim.fill(30)
        sim.run_for(2 * MINUTE)
        if not w0.is_up:
            sim.start("w1")
        sim.finish()
        assert sim.oracle.txns[old] == RETIRED
        audit = audited(sim)
        assert audit.ok, audit.violations
        assert [part.rows for part in audit.partitions if part.app_id != old] == [30]


def test_a_topic_created_again_twice_is_adopted_twice():
    """What was given up the first time is in nobody's way the second time."""
    with simulation(1, partitions=1) as sim:
        drain(sim, 10)
        names = [sim.app_id()]
        for _ in range(2):
            recreate(sim, 1)
            names.append(sim.app_id())
            sim.fill(5)
            by_operator(sim, execute_seek, wanted(adopt_topic=True))
            worker = sim.start(f"w{len(names)}")
            sim.run(lambda: sim.is_complete)
            worker.stop()
            sim.run(lambda task=worker.task: task.done)
        assert [sim.oracle.txns[name] for name in names] == [RETIRED, RETIRED, 5]
        audit = audited(sim)
        assert audit.ok, audit.violations
        assert sorted(part.rows for part in audit.partitions) == [5, 5, 10]


def test_without_topic_ids_there_is_nothing_to_tell_them_by():
    with simulation(1, partitions=1, config="source: {topic_ids: none}") as sim:
        drain(sim, 10)
        assert "seek to its earliest offset instead" in refusal(sim, wanted(adopt_topic=True))


def test_a_truncated_topic_goes_on_after_a_seek(drained):
    drained.kafka.truncate(TOPIC, 0, 6)
    w1 = drained.start("w1")
    drained.run(lambda: w1.task.done)
    assert "move the offset with `delta-sink seek`" in str(w1.task.error)
    [move] = by_operator(drained, execute_seek, wanted(StartLatest())).seeking.moves
    assert (move.offset_from, move.offset_to, move.twice) == (10, 6, 0)
    drained.fill(3)
    drained.start("w2")
    drained.finish()
    assert audited(drained).ok


# --- a sink under a new name ----------------------------------------------------------------------

HEIR = "name: heir"


@pytest.mark.parametrize("seed", range(4))
def test_a_renamed_sink_goes_on_while_the_old_one_still_runs(seed):
    """Not one record twice, although nobody stopped the writer of the old name."""
    with simulation(seed, partitions=2, config="flush: {interval_ms: 100}") as sim:
        heir = settings_of("flush: {interval_ms: 100}\n" + HEIR)
        old = sim.start("old")
        for number in range(300):
            sim.world.later(number * 50, lambda n=number: sim.produce(n % 2))
        sim.run(lambda: sum(sim.txn(p) or 0 for p in range(2)) > 100)
        w1 = sim.start("new", settings=heir)
        sim.run(lambda: w1.task.done)
        assert "seek --adopt-sink sink" in str(w1.task.error)
        by_operator(sim, execute_seek, wanted(adopt_sink="sink"), settings=heir)
        new = sim.start("new", settings=heir)
        names = [sim.app_id(partition, sink="heir") for partition in range(2)]
        sim.run(lambda: [sim.oracle.txns[name] for name in names] == [150, 150])
        sim.run(lambda: old.task.done)
        told = str(old.task.error)
        assert "sink 'heir' took over the offsets of 'sink'" in told
        new.stop()
        sim.run(lambda: new.task.done)
        rows = [sim.oracle.places[sim.app_id(p)].rows for p in range(2)]
        fresh = [sim.oracle.places[name].rows for name in names]
        for before, after in zip(rows, fresh, strict=True):
            assert not before & after
            assert before | after == set(range(150))
        audit = audited(sim, "heir")
        assert audit.ok, audit.violations
        assert [seek.replaces for seek in audit.seeks] == [sim.app_id(p) for p in range(2)]
        theirs = audited(sim)
        assert theirs.ok, theirs.violations
        assert [seek.heir for seek in theirs.seeks] == names
        assert "takes it over" in theirs.sentences()[1]


def test_a_sink_can_be_taken_back():
    with simulation(1, partitions=1) as sim:
        heir = settings_of(HEIR)
        drain(sim, 10)
        by_operator(sim, execute_seek, wanted(adopt_sink="sink"), settings=heir)
        assert "took over the offsets" in refusal(sim, wanted(StartEarliest()))
        by_operator(sim, execute_seek, wanted(adopt_sink="heir"))
        assert (sim.txn(), sim.oracle.txns[sim.app_id(sink="heir")]) == (10, RETIRED)
        sim.fill(5)
        sim.start("again")
        sim.finish()
        audit = audited(sim)
        assert audit.ok, audit.violations
        assert [part.offset_next for part in audit.partitions] == [15]


def test_the_other_sinks_topic_must_be_the_same_one():
    with simulation(1, partitions=1) as sim:
        drain(sim, 10)
        recreate(sim, 1)
        told = refusal(sim, wanted(adopt_sink="sink"), settings=settings_of(HEIR))
        assert "adopt the topic under the name 'sink' first" in told


def test_a_third_sink_is_in_the_way():
    with simulation(1, partitions=1) as sim:
        drain(sim, 10)
        sim.foreign_commit({"txn": {"appId": sim.app_id(sink="third"), "version": 4}})
        told = refusal(sim, wanted(adopt_sink="sink"), settings=settings_of(HEIR))
        assert "sink 'third' already fills this table" in told


def test_a_retired_offset_survives_a_checkpoint():
    """Entries are cleaned up; the fence and the audit live on in the checkpoint."""
    with simulation(1, partitions=1) as sim:
        heir = settings_of(HEIR)
        drain(sim, 10)
        by_operator(sim, execute_seek, wanted(adopt_sink="sink"), settings=heir)
        sim.checkpoint()
        later = []
        sim.world.later(DAY_MS + MINUTE, lambda: later.append(True))
        sim.run(lambda: bool(later), limit_ms=2 * DAY_MS)
        assert sim.clean_up()
        w1 = sim.start("w1")
        sim.run(lambda: w1.task.done)
        assert "sink 'heir' took over" in str(w1.task.error)
        for sink in ("sink", "heir"):
            audit = audited(sim, sink)
            assert audit.ok, audit.violations


def test_the_audit_names_a_commit_under_a_name_that_was_given_up():
    told = []
    app_id = AppId("sink", P0, None)
    chain = Chain(str(app_id), app_id, proven_from=0)

    def part(first: int, after: int, rows: int = 0) -> PartitionReceipt:
        return PartitionReceipt(str(app_id), TOPIC, 0, first, after, rows, rows)

    chain.take(part(0, 0), "claim", 1, 0, told.append)
    chain.take(part(0, 9, 9), "append", 2, 9, told.append)
    chain.take(part(9, RETIRED), "seek", 3, RETIRED, told.append)
    assert told == []
    assert (chain.audited().offset_next, chain.audited().rows) == (9, 9)
    chain.take(part(9, 12, 3), "append", 4, 12, told.append)
    assert told == [
        "version 4: orders/0: a range from 9 after another app id took over",
        f"version 4: orders/0: the txn falls from {RETIRED} to 12, which only a seek may do",
    ]


# --- no answer ------------------------------------------------------------------------------------

APP = AppId("sink", P0, None)


@pytest.fixture
def bench():
    """A table with an offset of 10 behind a store that does what is scripted."""
    bench = Bench()
    receipt_free = [info("claim"), Txn(str(APP), 10)]
    bench.store.store(entry_path(1), encode_entry(receipt_free))
    bench.head = 1
    return bench


def sought_on(bench):
    with simulation(1, partitions=1, config="source: {topic_ids: none}") as sim:
        sim.fill(10)
        return by_operator(sim, execute_seek, to(4), log=bench.log)


def seeks_in(bench) -> list[int]:
    return [
        int(path[11:31])
        for path, (data, _) in bench.store.objects.items()
        if b'"operation":"SEEK"' in data
    ]


@pytest.mark.parametrize("lost", [lost_before, lost_after])
def test_a_lost_answer_lands_once(bench, lost):
    bench.store.script("put_if_absent", lost)
    assert sought_on(bench).version == 2
    assert seeks_in(bench) == [2]


def test_one_that_landed_without_an_answer_is_found_by_its_commit_id(bench):
    """The commit had given up before the request landed: only the log can tell."""
    bench.store.script("put_if_absent", on_the_wire(bench.store), *[lost_before] * 300)
    gave_up = []

    def look(honest):
        if bench.clock.now_ms > 1_000_000 + DOUBT_MAX_MS and not gave_up:
            gave_up.append(True)
            bench.store.late[0]()
        return honest()

    bench.store.script("list", *[look] * 40)
    assert sought_on(bench).version == 2
    assert gave_up
    assert seeks_in(bench) == [2]


def test_one_that_may_still_land_is_called_unknown(bench):
    bench.store.script("put_if_absent", on_the_wire(bench.store), *[lost_before] * 300)
    with pytest.raises(CommitUnknown) as caught:
        sought_on(bench)
    told = str(caught.value)
    assert "do not repeat it before the table has a newer version than 1" in told
    assert "look for commit id " in told
    bench.store.late[0]()
    assert seeks_in(bench) == [2]
    commit_id = told.split("commit id ")[1].split(" ")[0]
    assert commit_id.encode() in bench.store.objects[entry_path(2)][0]


def test_one_that_can_no_longer_land_is_made_again(bench):
    """The version it was sent to is somebody else's by now: it did not land, and never will."""
    bench.store.script("put_if_absent", *[lost_before] * 300)
    looks = []

    def look(honest):
        looks.append(1)
        if bench.clock.now_ms > 1_000_000 + DOUBT_MAX_MS:
            bench.other()  # while nothing was answered, another worker went on
            bench.store._script.pop("put_if_absent", None)
        return honest()

    bench.store.script("list", *[look] * 40)
    assert sought_on(bench).version is not None
    assert len(seeks_in(bench)) == 1
    assert len(looks) < 40 + LOOKS_MAX
