"""Version 0 and the adoption of a table: one winner, whatever the store answers."""

import json

import pytest
from deltalake import DeltaTable, Field, Schema
from deltalake.schema import PrimitiveType

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.delta.commit import Log, open_log
from delta_sink.delta.logstore import ConditionalPutLog, entry_path
from delta_sink.delta.receipt import receipt_of
from delta_sink.delta.schema import TableSchema, parse_columns
from delta_sink.delta.support import LOG_STORE_PROPERTY, refuse_log_store, refuse_unsupported
from delta_sink.delta.table import (
    CREATE_TRIES_MAX,
    Author,
    SameProperties,
    TableSpec,
    adopt_table,
    create_table,
)
from delta_sink.errors import CommitUnknown, StoreRefused, TableRefused
from tests.unit.scripted import (
    Bench,
    after,
    first,
    lost_after,
    lost_before,
    nothing_landed,
    refused,
)

AUTHOR = Author("sink", "worker")


def spec(*columns, properties=None, partition_by=()):
    fields = parse_columns(columns or [{"name": "a", "type": "long"}], "table.schema").fields
    return TableSpec(TableSchema(fields), partition_by, properties or {}, "what it is for")


@pytest.fixture
def bench():
    made = Bench()
    made.store.objects.clear()
    made.head = -1
    return made


def entries(bench):
    return [path for path in bench.store.objects if path.endswith(".json")]


def test_a_table_is_made_as_version_0(bench):
    state = create_table(bench.log, spec(properties={"delta.appendOnly": "true"}), AUTHOR)
    assert state == open_log(bench.log)
    assert state.version == 0
    assert state.metadata.configuration == {
        "delta.appendOnly": "true",
        LOG_STORE_PROPERTY: "conditional_put",
    }
    assert state.metadata.description == "what it is for"
    refuse_unsupported(state.protocol, state.metadata)
    refuse_log_store(state.metadata, "conditional_put")
    entry = bench.log.entries.read(0)
    assert receipt_of(entry).kind == "table"
    assert '"event":"table_created"' in bench.lines.getvalue()


def test_deltalake_opens_what_was_made(tmp_path):
    bench = Bench()
    store = LocalDisk(str(tmp_path))
    log = Log(store, ConditionalPutLog(store), bench.clock, bench.log.entropy, bench.telemetry)
    columns = [
        {"name": "a", "type": "long", "nullable": False},
        {"name": "t", "type": "timestamp_ntz"},
        {"name": "day", "type": "date"},
    ]
    create_table(log, spec(*columns, partition_by=("day",)), AUTHOR)
    table = DeltaTable(str(tmp_path))
    assert table.version() == 0
    assert table.metadata().partition_columns == ["day"]
    assert table.metadata().description == "what it is for"
    assert table.protocol().writer_features == ["timestampNtz"]
    history = table.history()
    assert history[0]["operation"] == "CREATE TABLE"
    assert json.loads(history[0]["userMetadata"])["kind"] == "table"
    assert table.to_pyarrow_table().num_rows == 0


def test_a_property_that_we_would_refuse_later_is_refused_now(bench):
    unsafe = spec(properties={"delta.logRetentionDuration": "interval 1 hour"})
    with pytest.raises(TableRefused, match="24 hours"):
        create_table(bench.log, unsafe, AUTHOR)
    assert bench.store.asked == []


def test_somebody_else_was_first(bench):
    bench.other(protocol=bench.protocol, metadata=bench.metadata)
    state = create_table(bench.log, spec(), AUTHOR)
    assert state.metadata.id == "table-id"
    assert "table_created" not in bench.lines.getvalue()


@pytest.mark.parametrize("lost", [lost_before, lost_after])
def test_a_lost_answer_makes_one_table(bench, lost):
    bench.store.script("put_if_absent", lost, lost)
    state = create_table(bench.log, spec(), AUTHOR)
    assert entries(bench) == [entry_path(0)]
    assert bench.sent() == [0, 0, 0]
    assert state.version == 0


def test_the_same_bytes_are_sent_each_time(bench):
    """So that whichever attempt lands, it is the one table that this worker means."""
    bodies = []
    put = bench.store.put_if_absent
    bench.store.put_if_absent = lambda path, data: (bodies.append(data), put(path, data))[1]
    bench.store.script("put_if_absent", lost_before, lost_before)
    create_table(bench.log, spec(), AUTHOR)
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


def test_made_and_then_not_readable_for_a_while(bench):
    bench.store.script("list", lost_before, lost_before)
    assert create_table(bench.log, spec(), AUTHOR).version == 0
    assert entries(bench) == [entry_path(0)]


def test_exists_and_nothing_is_there(bench):
    """A 409 that stands for no object: try again."""
    bench.store.script("put_if_absent", nothing_landed, nothing_landed)
    assert create_table(bench.log, spec(), AUTHOR).version == 0
    assert bench.sent() == [0, 0, 0]


@pytest.mark.parametrize("answer", [lost_before, nothing_landed])
def test_a_store_that_never_says_anything_certain(bench, answer):
    bench.store.script("put_if_absent", *[answer] * CREATE_TRIES_MAX)
    with pytest.raises(CommitUnknown, match="version 0"):
        create_table(bench.log, spec(), AUTHOR)
    assert bench.sent() == [0] * CREATE_TRIES_MAX


def test_a_definite_no(bench):
    bench.store.script("put_if_absent", refused)
    with pytest.raises(StoreRefused):
        create_table(bench.log, spec(), AUTHOR)


def test_a_store_that_takes_the_entry_and_does_not_show_it(bench):
    bench.store.script("put_if_absent", after(bench.store.objects.clear))
    with pytest.raises(TableRefused, match="no store to keep a log in"):
        create_table(bench.log, spec(), AUTHOR)


# --- adoption -------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    """A table that deltalake made, with the log that we would write it through."""
    schema = Schema([Field("a", PrimitiveType("long"))])
    DeltaTable.create(str(tmp_path), schema, configuration={"delta.appendOnly": "true"})
    bench = Bench()
    store = LocalDisk(str(tmp_path))
    return Log(store, ConditionalPutLog(store), bench.clock, bench.log.entropy, bench.telemetry)


def test_adoption_records_how_the_table_is_written_and_nothing_else(foreign, tmp_path):
    before = open_log(foreign)
    with pytest.raises(TableRefused, match="delta-sink init"):
        refuse_log_store(before.metadata, "conditional_put")
    state = adopt_table(foreign, before, AUTHOR)
    assert state.version == 1
    refuse_log_store(state.metadata, "conditional_put")
    table = DeltaTable(str(tmp_path))
    assert table.version() == 1
    assert table.metadata().configuration == {
        "delta.appendOnly": "true",
        LOG_STORE_PROPERTY: "conditional_put",
    }
    assert table.metadata().id == before.metadata.id
    assert table.history()[0]["operation"] == "SET TBLPROPERTIES"


def test_adoption_twice_commits_once(foreign):
    state = adopt_table(foreign, open_log(foreign), AUTHOR)
    assert adopt_table(foreign, state, AUTHOR) is state


def test_of_two_that_adopt_at_once_the_second_is_told(foreign):
    stale = open_log(foreign)
    adopt_table(foreign, stale, AUTHOR)
    with pytest.raises(TableRefused, match="changed while `init` wrote its own"):
        adopt_table(foreign, stale, Author("sink", "another"))


def test_a_table_that_we_cannot_write_is_not_adopted(foreign, tmp_path):
    DeltaTable(str(tmp_path)).alter.add_constraint({"positive": "a > 0"})
    with pytest.raises(TableRefused, match="CHECK constraint"):
        adopt_table(foreign, open_log(foreign), AUTHOR)
    assert open_log(foreign).version == 1


def test_appends_meanwhile_do_not_disturb_an_adoption(bench):
    plain = type(bench.metadata)("table-id", bench.metadata.schema_string)
    bench.other(protocol=bench.protocol, metadata=plain)
    state = open_log(bench.log)
    bench.store.script("put_if_absent", first(bench.other))
    assert adopt_table(bench.log, state, AUTHOR).version == 2


def test_same_properties():
    bench = Bench()
    SameProperties.of(bench.state()).check(bench.state(), None)
