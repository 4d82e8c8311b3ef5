"""Which tables are appended to: real ones by deltalake where it can make them, and each refusal."""

import json

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field, Schema, TableFeatures, write_deltalake
from deltalake.schema import PrimitiveType

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.delta.actions import Metadata, Protocol
from delta_sink.delta.commit import open_log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.delta.schema import TableSchema
from delta_sink.delta.support import (
    LOG_STORE_PROPERTY,
    interval_ms,
    refuse_log_store,
    refuse_unsupported,
)
from delta_sink.errors import TableRefused
from tests.unit.scripted import SCHEMA, Bench

LONG = Schema([Field("a", PrimitiveType("long"))])
LEGACY = Protocol(1, 2)


def opened(folder):
    """Return the state of a table that deltalake made, as a worker opens it."""
    bench = Bench()
    store = LocalDisk(str(folder))
    log = type(bench.log)(
        store, ConditionalPutLog(store), bench.clock, bench.log.entropy, bench.telemetry
    )
    state = open_log(log)
    assert state is not None
    return state


def refusal(state):
    with pytest.raises(TableRefused) as caught:
        refuse_unsupported(state.protocol, state.metadata)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence[0].islower()
    return sentence


def with_properties(**properties):
    return Metadata("id", SCHEMA, configuration={k: str(v) for k, v in properties.items()})


# --- tables by deltalake --------------------------------------------------------------------------

MADE = {
    "plain": {},
    "append only": {"delta.appendOnly": "true"},
    "change data": {"delta.enableChangeDataFeed": "true"},
    "deletion vectors": {"delta.enableDeletionVectors": "true"},
    "checkpoints of the second version": {"delta.checkpointPolicy": "v2"},
    "long enough a log": {"delta.logRetentionDuration": "interval 24 hours"},
    "column mapping that is off": {"delta.columnMapping.mode": "none"},
    "row tracking that is off": {"delta.enableRowTracking": "false"},
}


@pytest.mark.parametrize("name", MADE)
def test_a_table_by_deltalake_that_can_be_appended_to(tmp_path, name):
    DeltaTable.create(str(tmp_path), LONG, configuration=MADE[name], raise_if_key_not_exists=False)
    state = opened(tmp_path)
    refuse_unsupported(state.protocol, state.metadata)
    assert TableSchema.from_json(state.metadata.schema_string).names == ("a",)


REFUSED = {
    "delta.columnMapping.mode": ("name", "column mapping"),
    "delta.enableRowTracking": ("true", "row tracking"),
    "delta.enableInCommitTimestamps": ("true", "in-commit timestamps"),
    "delta.enableTypeWidening": ("true", "type widening"),
    "delta.enableIcebergCompatV1": ("true", "Iceberg compatibility"),
    "delta.enableIcebergCompatV2": ("true", "Iceberg compatibility"),
    "delta.setTransactionRetentionDuration": ("interval 30 days", "forget how far Kafka was read"),
    "delta.logRetentionDuration": ("interval 23 hours", "less than 24 hours make commits unsafe"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_table_by_deltalake_that_cannot(tmp_path, key):
    value, why = REFUSED[key]
    DeltaTable.create(
        str(tmp_path), LONG, configuration={key: value}, raise_if_key_not_exists=False
    )
    sentence = refusal(opened(tmp_path))
    assert key in sentence
    assert why in sentence


def test_a_check_constraint_by_deltalake(tmp_path):
    table = DeltaTable.create(str(tmp_path), LONG)
    table.alter.add_constraint({"positive": "a > 0"})
    assert refusal(opened(tmp_path)) == (
        "the table has the CHECK constraint 'positive', which this sink cannot evaluate"
    )


LISTED = [
    "AppendOnly",
    "ChangeDataFeed",
    "CheckConstraints",
    "ColumnMapping",
    "DeletionVectors",
    "GeneratedColumns",
    "IcebergCompatV1",
    "IdentityColumns",
    "Invariants",
    "TimestampWithoutTimezone",
    "V2Checkpoint",
    "VariantType",
    "VariantTypePreview",
]


@pytest.mark.parametrize("feature", LISTED)
def test_a_feature_that_is_listed_and_not_used(tmp_path, feature):
    table = DeltaTable.create(str(tmp_path), LONG)
    table.alter.add_feature(getattr(TableFeatures, feature), allow_protocol_versions_increase=True)
    state = opened(tmp_path)
    assert state.protocol.min_writer_version == 7
    refuse_unsupported(state.protocol, state.metadata)


@pytest.mark.parametrize(
    ("feature", "name"), [("RowTracking", "rowTracking"), ("DomainMetadata", "domainMetadata")]
)
def test_a_feature_whose_listing_alone_asks_something_of_writers(tmp_path, feature, name):
    table = DeltaTable.create(str(tmp_path), LONG)
    table.alter.add_feature(getattr(TableFeatures, feature), allow_protocol_versions_increase=True)
    assert refusal(opened(tmp_path)) == (
        f"the table uses the feature '{name}', which this sink does not implement"
    )


def test_zone_less_timestamps_by_deltalake(tmp_path):
    table = pa.table({"t": pa.array([0], pa.timestamp("us"))})
    write_deltalake(str(tmp_path), table)
    state = opened(tmp_path)
    assert (state.protocol.min_reader_version, state.protocol.min_writer_version) == (3, 7)
    refuse_unsupported(state.protocol, state.metadata)


# --- tables that deltalake cannot make ------------------------------------------------------------


@pytest.mark.parametrize(
    "feature",
    [
        "rowTracking",
        "clustering",
        "domainMetadata",
        "catalogManaged",
        "catalogOwned-preview",
        "icebergCompatV3",
        "allOfTomorrow",
    ],
)
@pytest.mark.parametrize("side", ["reader", "writer"])
def test_a_feature_that_is_not_on_the_list(feature, side):
    features = {f"{side}_features": (feature,)}
    with pytest.raises(TableRefused, match=f"the feature '{feature}', which this sink does not"):
        refuse_unsupported(Protocol(3, 7, **features), Metadata("id", SCHEMA))


@pytest.mark.parametrize("versions", [(4, 7), (3, 8), (9, 9)])
def test_versions_of_the_protocol_that_do_not_exist_yet(versions):
    with pytest.raises(TableRefused, match=f"needs reader version {versions[0]} and writer"):
        refuse_unsupported(Protocol(*versions), Metadata("id", SCHEMA))


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("delta.invariants", "an invariant"),
        ("delta.generationExpression", "a generated column"),
        ("delta.identity.start", "an identity column"),
        ("delta.typeChanges", "a widened type"),
        ("CURRENT_DEFAULT", "a default value"),
    ],
)
def test_a_column_that_would_have_to_be_evaluated(key, what):
    schema = json.loads(SCHEMA)
    schema["fields"][0]["metadata"] = {key: "1"}
    with pytest.raises(TableRefused, match=f"schema has {what}, which this sink cannot evaluate"):
        refuse_unsupported(LEGACY, Metadata("id", json.dumps(schema)))


def test_a_column_of_such_a_name_is_a_column():
    """Names in text are quoted in the schema's JSON, so that a comment is no metadata key."""
    schema = json.loads(SCHEMA)
    schema["fields"][0]["metadata"] = {"comment": 'the column "delta.invariants" is no more'}
    refuse_unsupported(LEGACY, Metadata("id", json.dumps(schema)))


def test_a_variant_column_is_refused():
    schema = SCHEMA.replace('"long"', '"variant"')
    with pytest.raises(TableRefused, match="variant"):
        TableSchema.from_json(schema)


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("interval 1 day", 24),
        ("INTERVAL 24 HOURS", 24),
        ("interval 30 days", 720),
        ("interval 1 week", 168),
        ("interval 1 day 12 hours", 36),
        ("2880 minutes", 48),
        ("interval 86400000 milliseconds", 24),
    ],
)
def test_intervals_that_delta_writes(text, hours):
    assert interval_ms(text) == hours * 3_600_000
    refuse_unsupported(LEGACY, with_properties(**{"delta.logRetentionDuration": text}))


@pytest.mark.parametrize(
    "text", ["", "interval", "interval 1 month", "1 year", "interval day", "interval -1 days", "1"]
)
def test_intervals_that_are_none(text):
    with pytest.raises(TableRefused, match=f"such as 'interval 7 days', got '{text}'"):
        refuse_unsupported(LEGACY, with_properties(**{"delta.logRetentionDuration": text}))


# --- the log store --------------------------------------------------------------------------------


def test_a_table_that_does_not_say_how_it_is_written():
    with pytest.raises(TableRefused, match="run `delta-sink init` once"):
        refuse_log_store(Metadata("id", SCHEMA), "conditional_put")


def test_a_table_that_is_written_through_another_log_store():
    metadata = with_properties(**{LOG_STORE_PROPERTY: "dynamodb"})
    with pytest.raises(TableRefused, match=r"'dynamodb', this sink is configured for 'conditional"):
        refuse_log_store(metadata, "conditional_put")
    refuse_log_store(metadata, "dynamodb")
