"""Tables as other engines see them, and tables that other engines made, through the commands."""

from __future__ import annotations

import datetime as dt
import json
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.model import AppId
from tests.process.sinks import (
    SCHEMA,
    Sink,
    produce,
    sentences_of,
    values,
    write_config,
)

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


def sink_on(folder, broker, topic, **overrides):
    config = write_config(
        folder,
        broker.bootstrap_servers,
        name=f"on-{topic}",
        source={"topics": [topic]},
        **overrides,
    )
    return Sink(folder, config)


def opened(folder):
    return DeltaTable(str(folder / "table"))


# --- tables that we make ----------------------------------------------------------------------

ORDERS = [
    {"name": "id", "type": "long", "nullable": False},
    {"name": "region", "type": "string"},
    {"name": "amount", "type": "decimal(12,2)"},
    {"name": "placed_at", "type": "timestamp"},
    {"name": "point", "type": {"struct": [{"name": "x", "type": "double"}]}},
    {"name": "day", "type": "date", "from": "date(placed_at)"},
]
REGIONS = ["north", "süd/west", None, "a=b %c"]


def order(number):
    day = 1 + number % 2
    return {
        "id": number,
        "region": REGIONS[number % 4],
        "amount": f"{number}.25",
        "placed_at": f"2026-11-0{day}T23:59:59.999999Z",
        "point": {"x": number / 4} if number % 3 else None,
    }


def test_a_partitioned_table_with_everything(tmp_path, broker):
    broker.create_topic("orders", 2)
    records = [json.dumps(order(number)).encode() for number in range(200)]
    headers = [("trace", b"\x00\xff"), ("empty", b"")]
    produce(
        broker.bootstrap_servers, "orders", records, partitions=2, key=b"k-\xff", headers=headers
    )
    table = {
        "schema": ORDERS,
        "partition_by": ["day", "region"],
        "comment": "orders of the shop",
        "properties": {"delta.appendOnly": "true", "team": "checkout"},
        "metadata_columns": ["topic", "partition", "offset", "timestamp", "key", "headers"],
    }
    with sink_on(tmp_path, broker, "orders", table=table) as sink:
        sink.drain()
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
    found = opened(tmp_path)
    metadata = found.metadata()
    assert metadata.partition_columns == ["day", "region"]
    assert metadata.description == "orders of the shop"
    assert metadata.configuration["team"] == "checkout"
    assert metadata.configuration["delta.appendOnly"] == "true"
    assert metadata.configuration["delta.deletedFileRetentionDuration"] == "interval 7 days"
    rows = found.to_pyarrow_table().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == [*range(200)]
    for number, row in enumerate(rows):
        wanted = order(number)
        assert row["region"] == wanted["region"]
        assert str(row["amount"]) == wanted["amount"]
        assert row["placed_at"] == dt.datetime.fromisoformat(wanted["placed_at"])
        assert row["point"] == wanted["point"]
        assert row["day"] == row["placed_at"].date()
        assert (row["_kafka_topic"], row["_kafka_partition"]) == ("orders", number % 2)
        assert row["_kafka_offset"] == number // 2
        assert row["_kafka_key"] == b"k-\xff"
        assert [(pair["key"], pair["value"]) for pair in row["_kafka_headers"]] == headers
    _compare_statistics(found, tmp_path / "table", ("id", "amount"))
    assert _txns(sink) == {"orders/0": 100, "orders/1": 100}
    for app_id, offset in _app_ids(sink).items():
        assert found.transaction_version(app_id) == offset
    only = found.to_pyarrow_table(filters=[("day", "=", dt.date(2026, 11, 1))])
    assert only.num_rows == 100


def _app_ids(sink):
    return {app_id: offset for e in sink.entries() for app_id, offset in e.txns.items()}


def _txns(sink):
    return {str(AppId.parse(app_id).tp): offset for app_id, offset in _app_ids(sink).items()}


def _compare_statistics(table, folder, names):
    """Compare what the log says of each file with the file itself, over all its rows."""
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert actions
    for action in actions:
        file = pq.ParquetFile(folder / unquote(action["path"])).read()
        assert action["num_records"] == file.num_rows
        for name in names:
            column = [value for value in file.column(name).to_pylist() if value is not None]
            assert action[f"min.{name}"] == min(column), name
            assert action[f"max.{name}"] == max(column), name
            assert action[f"null_count.{name}"] == file.column(name).null_count


def test_a_table_without_metadata_columns(tmp_path, broker):
    broker.create_topic("bare", 1)
    produce(broker.bootstrap_servers, "bare", values(range(10)))
    with sink_on(tmp_path, broker, "bare", table={"metadata_columns": []}) as sink:
        sink.drain()
        assert opened(tmp_path).to_pyarrow_table().column_names == ["id", "payload"]
        audit = sink.audit()
        assert audit["ok"]
        assert not audit["proven"]  # nothing in a row says which record it was
        assert any("column" in sentence for sentence in audit["unproven"])


def test_what_cannot_be_a_path_is_a_bad_record(tmp_path, broker):
    broker.create_topic("paths", 1)
    broker.create_topic("paths.dlq", 1)
    regions = ["fine", "x" * 300, "", "also fine"]
    records = [json.dumps({"id": n, "payload": r}).encode() for n, r in enumerate(regions)]
    produce(broker.bootstrap_servers, "paths", records)
    errors = {"tolerance": "all", "dead_letter_topic": "paths.dlq", "ratio_max": 1.0}
    nullable = [SCHEMA[0], {"name": "payload", "type": "string"}]
    table = {"schema": nullable, "partition_by": ["payload"]}
    with sink_on(tmp_path, broker, "paths", table=table, errors=errors) as sink:
        sink.drain()
        found = opened(tmp_path).to_pyarrow_table().sort_by("id").to_pylist()
        audit = sink.audit()
    assert audit["ok"], audit["violations"]
    [part] = audit["partitions"]
    assert len(found) == part["rows"]
    assert part["rows"] + part["dead_letters"] == 4
    assert {row["payload"] for row in found} >= {"fine", "also fine"}
    assert "x" * 300 not in {row["payload"] for row in found}


# --- tables that deltalake made ---------------------------------------------------------------

THEIRS = pa.schema([pa.field("id", pa.int64(), False), pa.field("payload", pa.string(), False)])


def theirs(folder, versions=1, **options):
    """Let deltalake make a table with rows of negative ids; return its path."""
    table = str(folder / "table")
    for version in range(versions):
        rows = pa.table({"id": [-1 - version], "payload": ["theirs"]}, schema=THEIRS)
        write_deltalake(table, rows, mode="append", **(options if version == 0 else {}))
    return table


def _only_checkpoint(log, version):
    """Delete the entries up to the checkpoint, as a clean-up would have."""
    for entry in log.glob("*.json"):
        if entry.stem.isdigit() and int(entry.stem) <= version:
            entry.unlink()


def _in_parts(log, version):
    """Make of a single checkpoint one of two parts, as Spark writes them."""
    [single] = log.glob("*.checkpoint.parquet")
    whole = pq.read_table(single)
    half = whole.num_rows // 2
    for part, rows in enumerate([whole.slice(0, half), whole.slice(half)], 1):
        name = f"{version:020d}.checkpoint.{part:010d}.{2:010d}.parquet"
        pq.write_table(rows, log / name)
    single.unlink()
    hint = {"version": version, "size": whole.num_rows, "parts": 2}
    (log / "_last_checkpoint").write_text(json.dumps(hint))


@pytest.mark.parametrize("kind", ["log", "checkpoint", "parts", "no-hint"])
def test_a_table_with_checkpoints_of_others_is_appended_to(tmp_path, broker, kind):
    topic = f"theirs-{kind}"
    broker.create_topic(topic, 1)
    produce(broker.bootstrap_servers, topic, values(range(20)))
    path = theirs(tmp_path, versions=5)
    log = tmp_path / "table" / "_delta_log"
    if kind != "log":
        DeltaTable(path).create_checkpoint()
        if kind == "parts":
            _in_parts(log, 4)
        if kind == "no-hint":
            (log / "_last_checkpoint").unlink()
        _only_checkpoint(log, 3)
    with sink_on(tmp_path, broker, topic, table={"metadata_columns": []}) as sink:
        assert sink.run("init").returncode == 0
        sink.drain()
        produce(broker.bootstrap_servers, topic, values(range(20, 25)))
        DeltaTable(path).create_checkpoint()  # from here on it holds our own txns
        _only_checkpoint(log, DeltaTable(path).version() - 1)
        sink.drain()
        rows = opened(tmp_path).to_pyarrow_table().column("id").to_pylist()
        assert sorted(rows) == [*range(-5, 0), *range(25)]
        write_deltalake(
            path, pa.table({"id": [99], "payload": ["x"]}, schema=THEIRS), mode="append"
        )
        assert opened(tmp_path).to_pyarrow_table().num_rows == 31
        audit = sink.audit()
        assert audit["ok"], audit["violations"]


# --- tables that are refused ------------------------------------------------------------------


def _with_properties(**properties):
    def make(folder):
        theirs(folder, configuration={k.replace("__", "."): v for k, v in properties.items()})

    return make


def _with_constraint(folder):
    DeltaTable(theirs(folder)).alter.add_constraint({"positive": "id > -100"})


def _with_action(change):
    """Change the first entry of deltalake's table by hand, to what it does not write itself."""

    def make(folder):
        theirs(folder)
        [entry] = (folder / "table" / "_delta_log").glob("*.json")
        actions = [json.loads(line) for line in entry.read_text().splitlines()]
        for action in actions:
            change(action)
        entry.write_text("\n".join(json.dumps(action) for action in actions))

    return make


def _column_mapping(action):
    if "metaData" in action:
        action["metaData"]["configuration"]["delta.columnMapping.mode"] = "name"
    if "protocol" in action:
        action["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}


def _unknown_feature(action):
    if "protocol" in action:
        features = {"readerFeatures": [], "writerFeatures": ["clustering"]}
        action["protocol"] = {"minReaderVersion": 3, "minWriterVersion": 7, **features}


def _newer_protocol(action):
    if "protocol" in action:
        action["protocol"] = {"minReaderVersion": 4, "minWriterVersion": 8}


def _other_type(action):
    if "metaData" in action:
        text = action["metaData"]["schemaString"]
        action["metaData"]["schemaString"] = text.replace('"long"', '"integer"')


def _other_log_store(action):
    if "metaData" in action:
        action["metaData"]["configuration"]["delta-sink.logStore"] = "dynamodb"


REFUSED = {
    "constraint": (_with_constraint, "CHECK constraint 'positive'"),
    "column-mapping": (_with_action(_column_mapping), "column mapping"),
    "feature": (_with_action(_unknown_feature), "'clustering'"),
    "protocol": (_with_action(_newer_protocol), "reader version 4"),
    "other-type": (_with_action(_other_type), "id"),
    "log-store": (_with_action(_other_log_store), "'dynamodb'"),
    "txn-retention": (
        _with_properties(delta__setTransactionRetentionDuration="interval 7 days"),
        "delta.setTransactionRetentionDuration",
    ),
    "log-retention": (
        _with_properties(delta__logRetentionDuration="interval 1 hours"),
        "delta.logRetentionDuration",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_table_that_we_cannot_write_is_refused(tmp_path, broker, kind):
    make, wanted = REFUSED[kind]
    make(tmp_path)
    before = sorted((tmp_path / "table" / "_delta_log").iterdir())
    with sink_on(tmp_path, broker, "refused", table={"metadata_columns": []}) as sink:
        done = sink.run("init")
        assert done.returncode == 3, done.stderr
        [sentence] = sentences_of(done.stderr)
        assert wanted in sentence
    assert sorted((tmp_path / "table" / "_delta_log").iterdir()) == before
