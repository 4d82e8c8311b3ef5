"""The fakes' faults: each one happens as its file says, is counted, and ends."""

import pytest

from delta_sink.errors import (
    BrokerUnavailable,
    DataError,
    FatalError,
    ObjectMissing,
    RetriableError,
    StoreRefused,
    StoreUnavailable,
)
from delta_sink.model import OutgoingRecord, TopicPartition
from delta_sink.ports import (
    Assigned,
    Broker,
    Clock,
    Consumer,
    Created,
    Entropy,
    Exists,
    Item,
    Jobs,
    LeaseStore,
    ObjectStore,
    OffsetGone,
    Producer,
    RegistrySchema,
    Revoked,
    SchemaRegistry,
    Telemetry,
    Topic,
    Waiting,
)
from delta_sink.testing import FakeKafka, FakeLeases, FakeRegistry, FakeStore, World

P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


@pytest.fixture
def world():
    with World(11) as made:
        yield made


def run_task(world, host, function):
    """Run `function` as a task of `host`; return what it returned."""
    task = world.spawn(host, function)
    world.run(until=lambda: task.done)
    return task.result


def outcome(call):
    """Return what `call` returned, or the error that it raised."""
    try:
        return call()
    except Exception as error:
        return error


def attempt(method, *args):
    """Return a function that calls `method` and returns what came of it."""
    return lambda: outcome(lambda: method(*args))


def test_every_fake_is_its_port(world):
    host, kafka = world.host("a"), FakeKafka(world)

    def typed(
        objects: ObjectStore,
        consumer: Consumer,
        producer: Producer,
        broker: Broker,
        leases: LeaseStore,
        registry: SchemaRegistry,
    ) -> None: ...

    typed(
        FakeStore(world).client(host),
        kafka.consumer(host, "g"),
        kafka.producer(host),
        kafka.broker(host),
        FakeLeases(world).client(host),
        FakeRegistry(world).client(host),
    )
    ports = {
        Clock: host.clock,
        Entropy: host.entropy,
        Jobs: host.jobs,
        Telemetry: host.telemetry,
        ObjectStore: FakeStore(world).client(host),
        Consumer: kafka.consumer(host, "g"),
        Producer: kafka.producer(host),
        Broker: kafka.broker(host),
        LeaseStore: FakeLeases(world).client(host),
        SchemaRegistry: FakeRegistry(world).client(host),
    }
    for port, fake in ports.items():
        methods = [name for name in vars(port) if not name.startswith("_")]
        assert methods
        for name in methods:
            if isinstance(getattr(port, name), property):
                assert hasattr(fake, name), (port, name)
                continue
            wanted = getattr(port, name).__annotations__.keys()
            assert getattr(type(fake), name).__annotations__.keys() == wanted, (port, name)


# --- the store --------------------------------------------------------------------------------


def test_a_lost_answer_leaves_the_object_there(world):
    store, host = FakeStore(world), world.host("a")
    client = store.client(host)
    for fault in ("store.lost_answer", "store.error_after"):
        world.enable(fault, 1)
        found = run_task(world, host, attempt(client.put_if_absent, fault, b"x"))
        world.heal()
        assert isinstance(found, StoreUnavailable)
        assert store.peek(fault) == b"x"
        assert world.met[fault] == 1


def test_a_lost_request_leaves_nothing(world):
    store, host = FakeStore(world), world.host("a")
    world.enable("store.lost_request", 1)
    found = run_task(world, host, lambda: outcome(lambda: store.client(host).put("a", b"x")))
    assert isinstance(found, StoreUnavailable)
    assert store.paths() == []
    assert world.met["store.lost_request"] == 1


def slow_put(seed, *, other_first):
    """Send a slow PUT; return what its sender saw and what is there in the end."""
    with World(seed) as world:
        store, host = FakeStore(world), world.host("a")
        world.enable("store.slow", 1)
        found = run_task(world, host, attempt(store.client(host).put_if_absent, "v", b"old"))
        if isinstance(found, StoreUnavailable):
            assert world.now_ms == 30_000
            assert store.paths() == []
            if other_first:
                store.write("v", b"new")
            world.run()
            assert world.met["store.late"] == 1
        return type(found), store.peek("v")


def test_a_slow_put_times_out_and_lands_later_if_its_condition_still_holds():
    assert {slow_put(seed, other_first=False) for seed in range(40)} == {
        (Created, b"old"),
        (StoreUnavailable, b"old"),
    }
    assert {slow_put(seed, other_first=True) for seed in range(40)} == {
        (Created, b"old"),
        (StoreUnavailable, b"new"),
    }


def lands_after_death(seed):
    with World(seed) as world:
        store, host = FakeStore(world), world.host("a")
        world.at("store.put sent", lambda task: world.later(0, task.host.kill))
        world.spawn(host, lambda: store.client(host).put("a", b"x"))
        world.run()
        assert world.met["store.late"] + world.met["store.cut"] == 1
        assert (store.paths() == ["a"]) == (world.met["store.late"] == 1)
        return world.met["store.late"]


def test_a_request_on_the_wire_survives_its_sender_or_is_cut():
    assert 8 < sum(lands_after_death(seed) for seed in range(40)) < 32


def test_a_conflict_is_reported_as_exists_with_nothing_there(world):
    store, host = FakeStore(world), world.host("a")
    world.enable("store.conflict", 1)
    found = run_task(world, host, lambda: store.client(host).put_if_absent("a", b"x"))
    assert found == Exists()
    assert store.paths() == []
    world.heal()
    assert isinstance(
        run_task(world, host, lambda: store.client(host).put_if_absent("a", b"x")), Created
    )


def test_refusals_outages_and_read_failures(world):
    store, host = FakeStore(world), world.host("a")
    client = store.client(host)
    store.write("a", b"x")
    store.refuse({"put", "delete"})
    for call in (lambda: client.put("b", b""), lambda: client.delete("a")):
        assert isinstance(run_task(world, host, lambda call=call: outcome(call)), StoreRefused)
    assert run_task(world, host, lambda: client.get("a").data) == b"x"
    store.refuse()
    assert isinstance(run_task(world, host, lambda: outcome(lambda: client.list(""))), StoreRefused)
    store.refuse(())
    store.wire.outage(10_000)
    for call in (lambda: client.put("b", b""), lambda: client.get("a")):
        assert isinstance(run_task(world, host, lambda call=call: outcome(call)), StoreUnavailable)
    assert world.met["store.outage"] == 2
    run_task(world, host, lambda: host.clock.sleep_ms(10_000))
    world.enable("store.read_failed", 1)
    found = run_task(world, host, lambda: outcome(lambda: client.list("")))
    assert isinstance(found, StoreUnavailable)
    world.heal()
    assert [info.path for info in run_task(world, host, lambda: client.list(""))] == ["a"]


def test_the_store_tells_what_was_created_overwritten_and_deleted(world):
    store, seen = FakeStore(world), []
    client = store.client(world.host("a"))
    store.on_created = lambda path, data: seen.append(("created", path, data))
    store.on_overwritten = lambda path, old, new: seen.append(("overwritten", path, old, new))
    store.on_deleted = lambda path, data: seen.append(("deleted", path, data))
    client.put_if_absent("a", b"1")
    client.put_if_absent("a", b"2")
    store.ignores_condition = True
    assert isinstance(client.put_if_absent("a", b"3"), Created)
    client.delete("a")
    client.delete("a")
    assert seen == [
        ("created", "a", b"1"),
        ("overwritten", "a", b"1", b"3"),
        ("deleted", "a", b"3"),
    ]


def test_a_checker_that_objects_ends_the_run(world):
    store, host = FakeStore(world), world.host("a")

    def check(path, data):
        raise AssertionError(f"{path} is wrong")

    store.on_created = check
    world.spawn(host, lambda: store.client(host).put("v1", b""))
    with pytest.raises(AssertionError, match="v1 is wrong"):
        world.run()


def test_a_store_can_be_changed_by_hand(world):
    store = FakeStore(world)
    client = store.client(world.host("a"))
    store.write("log/1", b"x")
    store.set_modified("log/1", 5)
    assert [(info.path, info.modified_ms) for info in client.list("log")] == [("log/1", 5)]
    store.remove("log/1")
    store.remove("log/1")
    with pytest.raises(ObjectMissing):
        store.peek("log/1")
    store.write("log/2", b"x")
    store.drop()
    assert store.paths() == []


# --- Kafka: what there is to read ---------------------------------------------------------------


def reader(kafka, host, group="g", topics=("orders",), **options):
    """Return a consumer and a function that polls until nothing comes, starting at 0."""
    consumer = kafka.consumer(host, group, topics, **options)
    seen, events = [], []

    def drain(start=True, polls=20):
        for _ in range(polls):
            polled = consumer.poll(100, 500)
            events.extend(polled.events)
            for event in polled.events:
                if isinstance(event, Assigned) and start:
                    consumer.start(dict.fromkeys(event.partitions, 0))
            seen.extend(polled.records)
            if len(polled.records) == 0 and consumer.owned and not polled.events:
                return

    return consumer, seen, events, drain


def test_records_arrive_with_their_columns_and_only_after_start(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    kafka.produce("orders", 0, b"v", key=b"k", headers=[("h", b"1")], timestamp_ms=77)
    kafka.produce("orders", 0, None)
    consumer, seen, events, drain = reader(kafka, host)
    run_task(world, host, lambda: drain(start=False))
    assert events == [Assigned((P0,))]
    assert seen == []
    run_task(world, host, lambda: (consumer.start({P0: 0, P1: 5}), drain()))
    (records,) = seen
    assert (records.tp, records.offset_next, records.offsets) == (P0, 2, [0, 1])
    assert (records.values, records.keys) == ([b"v", None], [b"k", None])
    assert records.headers == [(("h", b"1"),), ()]
    assert records.timestamps_ms[0] == 77
    assert records.size_bytes == len(b"v" + b"k" + b"h1")


def test_a_poll_waits_for_records_and_no_longer_than_asked(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    consumer, _, _, drain = reader(kafka, host)
    run_task(world, host, drain)
    start_ms = world.now_ms
    world.later(400, lambda: kafka.produce("orders", 0, b"v"))
    polled = run_task(world, host, lambda: consumer.poll(10, 5_000))
    assert len(polled.records[0]) == 1
    assert world.now_ms - start_ms == 400
    assert run_task(world, host, lambda: consumer.poll(10, 700)).records == ()
    assert world.now_ms - start_ms == 1_100


def test_stop_and_start_again_at_an_older_offset(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    consumer, seen, _, drain = reader(kafka, host)
    run_task(world, host, drain)
    run_task(world, host, lambda: consumer.stop([P0]))
    for _ in range(5):
        kafka.produce("orders", 0, b"v")
    run_task(world, host, drain)
    assert seen == []
    run_task(world, host, lambda: (consumer.start({P0: 2}), drain()))
    assert [offset for records in seen for offset in records.offsets] == [2, 3, 4]


def test_at_most_records_max_over_all_partitions(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 3)
    for number in range(60):
        kafka.produce("orders", number % 3, b"v")
    consumer, _, _, drain = reader(kafka, host)
    run_task(world, host, lambda: drain(start=False))
    run_task(
        world, host, lambda: consumer.start({TopicPartition("orders", p): 0 for p in range(3)})
    )
    sizes = []
    while sum(sizes) < 60:
        polled = run_task(world, host, lambda: consumer.poll(7, 100))
        sizes.append(sum(map(len, polled.records)))
        assert len({records.tp for records in polled.records}) == len(polled.records)
    assert max(sizes) == 7


def test_gaps_of_transactions_and_compaction(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    kafka.produce("orders", 0, b"0")
    aborted = kafka.transaction()
    aborted.produce("orders", 0, b"1")
    kafka.produce("orders", 0, b"2")
    consumer, seen, _, drain = reader(kafka, host)
    run_task(world, host, drain)
    assert [(records.offsets, records.offset_next) for records in seen] == [([0], 1)]
    aborted.abort()
    run_task(world, host, drain)
    assert [(records.offsets, records.offset_next) for records in seen[1:]] == [([2], 4)]
    committed = kafka.transaction()
    committed.produce("orders", 0, b"4")
    committed.commit()
    tail = kafka.transaction()
    tail.produce("orders", 0, b"6")
    tail.abort()
    run_task(world, host, drain)
    assert [(records.offsets, records.offset_next) for records in seen[2:]] == [([4], 8)]
    kafka.compact("orders", 0, lambda record: record.offset == 4)
    assert [record.offset for record in kafka.records("orders", 0)] == [4]
    del seen[:]
    run_task(world, host, lambda: (consumer.start({P0: 0}), drain()))
    assert [(records.offsets, records.offset_next) for records in seen] == [([4], 8)]


def test_a_tail_of_markers_alone_moves_the_position(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    transaction = kafka.transaction()
    transaction.produce("orders", 0, b"0")
    transaction.abort()
    _, seen, _, drain = reader(kafka, host)
    run_task(world, host, drain)
    assert [(len(records), records.offset_next) for records in seen] == [(0, 2)]


def test_short_reads_cut_anywhere_and_lose_nothing(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    world.enable("kafka.short_read", 0.9)
    for number in range(40):
        kafka.produce("orders", 0, b"v")
        if number % 7 == 0:
            transaction = kafka.transaction()
            transaction.produce("orders", 0, b"x")
            transaction.abort()
    _, seen, _, drain = reader(kafka, host)
    run_task(world, host, lambda: drain(polls=100))
    assert [offset for records in seen for offset in records.offsets] == [
        record.offset for record in kafka.records("orders", 0)
    ]
    assert seen[-1].offset_next == kafka.log(P0).end
    assert len(seen) > 2
    assert world.met["kafka.short_read"] > 0


def test_an_offset_that_is_gone_is_told_once_until_started_again(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    for _ in range(10):
        kafka.produce("orders", 0, b"v")
    kafka.retain_from("orders", 0, 5)
    consumer, seen, events, drain = reader(kafka, host)
    run_task(world, host, drain)
    run_task(world, host, drain)
    assert events == [Assigned((P0,)), OffsetGone(P0, 0)]
    assert seen == []
    run_task(world, host, lambda: (consumer.start({P0: 5}), drain()))
    assert [offset for records in seen for offset in records.offsets] == [5, 6, 7, 8, 9]
    kafka.truncate("orders", 0, 7)
    run_task(world, host, drain)
    assert events[-1] == OffsetGone(P0, 10)
    assert [record.offset for record in kafka.records("orders", 0)] == [5, 6]


def test_a_missing_topic_is_waited_for_and_told_once(world):
    kafka, host = FakeKafka(world), world.host("a")
    consumer, seen, events, drain = reader(kafka, host)
    run_task(world, host, lambda: drain(polls=5))
    assert events == [Waiting("topic orders does not exist")]
    kafka.create_topic("orders", 1)
    kafka.produce("orders", 0, b"v")
    run_task(world, host, lambda: drain(polls=30))
    assert Assigned((P0,)) in events
    assert len(seen) == 1
    kafka.wire.outage(5_000)
    for _ in range(3):
        run_task(world, host, lambda: events.extend(consumer.poll(1, 100).events))
    assert events[-1] == Waiting("no broker answers")
    assert events[-2] != events[-1]


def test_a_pattern_finds_topics_that_come_later(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders.eu", 1)
    kafka.create_topic("other", 1)
    consumer, _, _, drain = reader(kafka, host, topics=(), pattern=r"orders\..*")
    run_task(world, host, lambda: drain(polls=5))
    assert [tp.topic for tp in consumer.owned] == ["orders.eu"]
    kafka.create_topic("orders.us", 1)
    world.run(limit_ms=10_000)
    run_task(world, host, drain)
    assert [tp.topic for tp in consumer.owned] == ["orders.eu", "orders.us"]


def test_refused_clients_get_a_fatal_error(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.refused = "group g: not authorised"
    consumer = kafka.consumer(host, "g", ["orders"])
    for call in (
        lambda: consumer.poll(1, 10),
        lambda: kafka.broker(host).topics(["orders"], None),
        lambda: kafka.producer(host).send("orders", []),
    ):
        found = run_task(world, host, lambda call=call: outcome(call))
        assert isinstance(found, FatalError)
        assert "not authorised" in str(found)


# --- Kafka: groups ----------------------------------------------------------------------------


class Crowd:
    """Members that poll for ever and start each partition at 0."""

    def __init__(self, world, kafka):
        self.world, self.kafka = world, kafka
        self.consumers = {}
        self.events = {}
        self.read = {}
        self.asleep = {}

    def add(self, name):
        host = self.world.host(name)
        consumer = self.kafka.consumer(host, "g", ["orders"])
        self.consumers[name], self.events[name] = consumer, []

        def poll():
            while True:
                polled = consumer.poll(10, 500)
                self.events[name] += polled.events
                for event in polled.events:
                    if isinstance(event, Assigned):
                        consumer.start(dict.fromkeys(event.partitions, 0))
                for records in polled.records:
                    self.read.setdefault(records.tp, []).append((name, self.world.now_ms))
                host.clock.sleep_ms(self.asleep.pop(name, 0))

        self.world.spawn(host, poll)
        return host

    def owned(self):
        return {
            name: sorted(tp.partition for tp in consumer.owned)
            for name, consumer in self.consumers.items()
            if not consumer.host.dead
        }

    def watch_exclusive(self, for_ms):
        """Run and assert at each step that no partition has two owners."""

        def overlap():
            flat = [tp for consumer in self.consumers.values() for tp in consumer.owned]
            return len(flat) != len(set(flat))

        assert self.world.run(until=overlap, limit_ms=for_ms) == "limit"


@pytest.mark.parametrize("protocol", ["cooperative", "eager"])
@pytest.mark.parametrize("seed", range(5))
def test_partitions_are_spread_and_never_owned_twice_without_faults(protocol, seed):
    with World(seed) as world:
        kafka = FakeKafka(world)
        kafka.create_topic("orders", 8)
        kafka.group("g").protocol = protocol
        crowd = Crowd(world, kafka)
        crowd.add("a")
        crowd.watch_exclusive(20_000)
        assert crowd.owned() == {"a": list(range(8))}
        crowd.add("b")
        crowd.add("c")
        crowd.watch_exclusive(20_000)
        assert sorted(map(len, crowd.owned().values())) == [2, 3, 3]
        kafka.add_partitions("orders", 12)
        crowd.watch_exclusive(20_000)
        assert sorted(map(len, crowd.owned().values())) == [4, 4, 4]
        assert kafka.group("g").owners.keys() == {TopicPartition("orders", p) for p in range(12)}
        lost = [event for event in crowd.events["a"] if isinstance(event, Revoked)]
        everything = any(len(event.partitions) == 8 for event in lost)
        assert everything == (protocol == "eager")
        assert not any(event.lost for event in lost)


def test_a_killed_member_is_replaced_after_its_session(world):
    kafka = FakeKafka(world)
    kafka.create_topic("orders", 4)
    crowd = Crowd(world, kafka)
    first = crowd.add("a")
    crowd.add("b")
    world.run(limit_ms=20_000)
    first.kill()
    world.run(limit_ms=40_000)
    assert crowd.owned()["b"] != [0, 1, 2, 3]
    world.run(limit_ms=20_000)
    assert crowd.owned() == {"b": [0, 1, 2, 3]}


def test_a_member_that_closes_or_rejoins_gives_its_partitions_back(world):
    kafka, host = FakeKafka(world), world.host("x")
    kafka.create_topic("orders", 2)
    consumer, _, events, drain = reader(kafka, host)
    run_task(world, host, drain)
    run_task(world, host, consumer.rejoin)
    assert consumer.owned == {}
    run_task(world, host, drain)
    assert events == [Assigned((P0, P1)), Assigned((P0, P1))]
    run_task(world, host, consumer.close)
    assert consumer.owned == {}
    assert kafka.group("g").owners == {}


@pytest.mark.parametrize("how", ["paused", "silent"])
def test_a_member_out_for_too_long_is_told_when_it_comes_back(world, how):
    kafka = FakeKafka(world)
    kafka.create_topic("orders", 4)
    group = kafka.group("g")
    group.max_poll_interval_ms = 55_000
    crowd = Crowd(world, kafka)
    crowd.add("other")
    host = crowd.add("late")
    world.run(limit_ms=20_000)
    if how == "paused":
        host.pause(80_000)
    else:
        crowd.asleep["late"] = 80_000
    world.run(limit_ms=40_000)
    assert set(group.owners.values()) == {"other", "late"}
    world.run(limit_ms=35_000)
    assert set(group.owners.values()) == {"other"}
    assert len(crowd.consumers["late"].owned) == 2
    world.run(limit_ms=30_000)
    assert any(isinstance(event, Revoked) and event.lost for event in crowd.events["late"])
    assert sorted(map(len, crowd.owned().values())) == [2, 2]


def test_a_zombie_reads_on_while_another_owns_its_partitions(world):
    kafka = FakeKafka(world)
    kafka.create_topic("orders", 2)
    crowd = Crowd(world, kafka)
    crowd.add("zombie")
    world.run(limit_ms=10_000)
    crowd.add("heir")
    crowd.consumers["zombie"].isolate(150_000)
    world.run(limit_ms=100_000)
    assert set(kafka.group("g").owners.values()) == {"heir"}
    for partition in (0, 1):
        kafka.produce("orders", partition, b"v")
    world.run(limit_ms=5_000)
    for tp in (P0, P1):
        assert {name for name, _ in crowd.read[tp]} == {"zombie", "heir"}
    assert world.met["kafka.zombie"] >= 1
    world.spawn(crowd.consumers["zombie"].host, lambda: crowd.consumers["zombie"].commit({P0: 99}))
    world.run(limit_ms=5_000)
    assert kafka.group("g").committed == {}
    world.run(limit_ms=120_000)
    assert any(isinstance(e, Revoked) and e.lost for e in crowd.events["zombie"])
    assert sorted(map(len, crowd.owned().values())) == [1, 1]


def test_a_member_that_was_put_out_untold_still_believes_in_its_partitions():
    overlaps = 0
    for seed in range(10):
        with World(seed) as world:
            kafka = FakeKafka(world)
            kafka.create_topic("orders", 4)
            world.enable("kafka.untold", 1)
            crowd = Crowd(world, kafka)
            for name in ("a", "b", "c"):
                crowd.add(name)

            def overlap(crowd=crowd):
                flat = [tp for consumer in crowd.consumers.values() for tp in consumer.owned]
                return len(flat) != len(set(flat))

            overlaps += world.run(until=overlap, limit_ms=300_000) == "until"
            assert world.met["kafka.untold"] > 0
            world.heal()
            world.run(limit_ms=300_000)
            assert sorted(map(len, crowd.owned().values())) == [1, 1, 2]
            assert not overlap()
    assert overlaps > 5


def test_group_commits_land_in_order_or_are_lost(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("orders", 1)
    consumer, _, _, drain = reader(kafka, host)
    run_task(world, host, drain)
    run_task(world, host, lambda: [consumer.commit({P0: number}) for number in range(20)])
    world.run(limit_ms=1_000)
    assert kafka.group("g").committed == {P0: 19}
    world.enable("kafka.commit_lost", 1)
    run_task(world, host, lambda: consumer.commit({P0: 30}))
    world.run(limit_ms=1_000)
    assert kafka.group("g").committed == {P0: 19}
    assert world.met["kafka.commit_lost"] == 1


# --- Kafka: topics that change, producer, broker -----------------------------------------------


def test_a_topic_made_again_has_another_id_and_may_go_unnoticed(world):
    kafka, host = FakeKafka(world), world.host("a")
    first = kafka.create_topic("orders", 1)
    for _ in range(3):
        kafka.produce("orders", 0, b"old")
    consumer, seen, events, drain = reader(kafka, host)
    run_task(world, host, drain)
    run_task(world, host, lambda: consumer.commit({P0: 3}))
    world.run(limit_ms=1_000)
    kafka.delete_topic("orders")
    second = kafka.create_topic("orders", 1)
    assert first != second
    assert kafka.group("g").committed == {}
    for _ in range(5):
        kafka.produce("orders", 0, b"new")
    run_task(world, host, drain)
    assert [value for records in seen[1:] for value in records.values] == [b"new", b"new"]
    assert run_task(world, host, lambda: kafka.broker(host).topics(["orders"], None)) == [
        Topic("orders", 1, second)
    ]
    kafka.delete_topic("orders")
    world.run(limit_ms=10_000)
    run_task(world, host, lambda: drain(polls=10))
    assert Revoked((P0,)) in events
    assert events[-1] == Waiting("topic orders does not exist")


def test_the_broker_answers(world):
    kafka, host = FakeKafka(world, topic_ids=False), world.host("a")
    kafka.create_topic("orders", 2)
    kafka.create_topic("orders.eu", 1)
    broker = kafka.broker(host)
    for number in range(4):
        kafka.produce("orders", 0, b"v", timestamp_ms=100 * number)
    open_one = kafka.transaction()
    open_one.produce("orders", 0, b"v")
    kafka.retain_from("orders", 0, 1)
    kafka.group("connect").committed[P0] = 3
    assert broker.topics(["missing", "orders"], None) == [Topic("orders", 2, None)]
    assert [topic.name for topic in broker.topics([], r"orders\.eu")] == ["orders.eu"]
    assert [topic.name for topic in broker.topics([], "orders.*")] == ["orders", "orders.eu"]
    assert broker.offsets([P0, P1], "earliest") == {P0: 1, P1: 0}
    assert broker.offsets([P0, P1], "latest") == {P0: 4, P1: 0}
    assert broker.offsets([P0], 150) == {P0: 2}
    assert broker.offsets([P0], 10_000) == {P0: 4}
    assert broker.group_offsets("connect", [P0, P1]) == {P0: 3}
    kafka.wire.outage(1_000)
    found = run_task(world, host, lambda: outcome(lambda: broker.offsets([P0], "latest")))
    assert isinstance(found, BrokerUnavailable)


def test_a_produce_lands_by_key_or_partly_or_without_an_answer(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("dlq", 3)
    producer = kafka.producer(host)
    records = [OutgoingRecord(b"same", b"%d" % number) for number in range(6)]

    def landed():
        found = [record for p in range(3) for record in kafka.records("dlq", p)]
        return [record.value for record in found]

    run_task(world, host, lambda: producer.send("dlq", records))
    assert landed() == [record.value for record in records]
    partial = set()
    for _ in range(12):
        before = len(landed())
        world.enable("kafka.partial_produce", 1)
        found = run_task(world, host, lambda: outcome(lambda: producer.send("dlq", records)))
        assert isinstance(found, BrokerUnavailable)
        partial.add(len(landed()) - before)
    assert partial <= set(range(6))
    assert len(partial) > 2
    world.heal()
    world.enable("kafka.lost_answer", 1)
    before = len(landed())
    found = run_task(world, host, lambda: outcome(lambda: producer.send("dlq", records)))
    assert isinstance(found, BrokerUnavailable)
    assert len(landed()) - before == 6


def test_a_produce_that_can_never_work_is_fatal(world):
    kafka, host = FakeKafka(world), world.host("a")
    kafka.create_topic("dlq", 1)
    kafka.message_bytes_max = 10
    producer = kafka.producer(host)
    with pytest.raises(FatalError, match=r"11 bytes, the broker takes 10"):
        producer.send("dlq", [OutgoingRecord(b"k", b"0123456789")])
    with pytest.raises(FatalError, match="does not exist"):
        producer.send("nope", [OutgoingRecord(b"k", b"v")])
    assert kafka.records("dlq", 0) == []


# --- locks and schemas ------------------------------------------------------------------------


def test_lock_writes_may_be_throttled_lost_or_unanswered(world):
    leases, host = FakeLeases(world), world.host("a")
    client = leases.client(host)
    effects = {"leases.throttled": False, "leases.lost_request": False, "leases.lost_answer": True}
    for fault, has_effect in effects.items():
        world.enable(fault, 1)
        found = run_task(
            world, host, lambda fault=fault: outcome(lambda: client.put(Item(fault), None))
        )
        world.heal()
        assert isinstance(found, RetriableError)
        assert (client.get(fault) is not None) == has_effect
        assert world.met[fault] == 1


def test_a_late_lock_write_meets_its_condition_where_it_lands(world):
    leases, host = FakeLeases(world), world.host("a")
    client = leases.client(host)
    leases.wire.timeout_ms = 5
    leases.wire.latency_ms = (10, 10)
    found = run_task(world, host, lambda: outcome(lambda: client.put(Item("k", {"n": 1}), None)))
    assert isinstance(found, RetriableError)
    assert client.put(Item("k", {"n": 2}), None)
    world.run()
    assert client.get("k") == Item("k", {"n": 2})
    assert world.met["leases.late"] == 1


def test_broken_locks_give_every_host_every_lock(world):
    leases = FakeLeases(world)
    a, b = leases.client(world.host("a")), leases.client(world.host("b"))
    written = []
    leases.on_written = lambda before, item: written.append((before, item))
    assert a.put(Item("k", {"owner": "a"}), None)
    assert not b.put(Item("k", {"owner": "b"}), None)
    leases.is_broken = True
    first = a.get("k")
    assert b.put(Item("k", {"owner": "b"}), first)
    assert a.get("k") == first
    assert a.put(Item("k", {"owner": "a", "beat": 2}), first)
    assert b.get("k") == Item("k", {"owner": "b"})
    assert [item.key for item in b.scan("")] == ["k"]
    assert len(written) == 3


def test_items_deleted_by_hand_and_stale_scans(world):
    leases = FakeLeases(world)
    client = leases.client(world.host("a"))
    assert client.put(Item("k/1"), None)
    assert client.put(Item("k/2"), None)
    world.enable("leases.stale_scan", 1)
    assert [item.key for item in client.scan("k/")] == ["k/1"]
    world.heal()
    assert [item.key for item in client.scan("k/")] == ["k/1", "k/2"]
    leases.remove("k/1")
    leases.remove("k/1")
    assert client.get("k/1") is None


def test_the_registry_answers_fails_and_knows_what_it_does_not_know(world):
    registry, host = FakeRegistry(world), world.host("a")
    schema = RegistrySchema(7, "AVRO", '"string"')
    registry.register(schema)
    registry.register(schema)
    with pytest.raises(AssertionError, match="is taken"):
        registry.register(RegistrySchema(7, "AVRO", '"long"'))
    client = registry.client(host)
    assert run_task(world, host, lambda: client.schema(7)) == schema
    with pytest.raises(DataError, match="no schema 8"):
        client.schema(8)
    registry.wire.outage(60_000)
    found = run_task(world, host, lambda: outcome(lambda: client.schema(7)))
    assert isinstance(found, RetriableError)
