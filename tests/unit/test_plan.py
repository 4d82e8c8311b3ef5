"""Conditions: what each lets through, what it refuses and with which error; plans as bytes."""

import json

import msgspec
import pytest

from delta_sink.delta.actions import Entry, Metadata, Protocol, Txn, encode_entry, parse_entry
from delta_sink.delta.plan import (
    NoRival,
    Plan,
    SameTable,
    StillSupported,
    TagAboveFence,
    TxnIs,
    rival_sentence,
)
from delta_sink.delta.state import KNOWLEDGE_AGE_MAX_MS, LogState
from delta_sink.delta.support import LOG_STORE_PROPERTY
from delta_sink.errors import CommitConflict, FencedError, SourceRefused, TableRefused
from delta_sink.model import VACUUM_APP_ID, AppId, TopicPartition
from tests.unit.scripted import SCHEMA, info

TP = TopicPartition("orders", 3)
MINE = AppId("sink", TP, "idA")
METADATA = Metadata("table", SCHEMA, configuration={LOG_STORE_PROPERTY: "conditional_put"})


def state(txns=None, *, protocol=None, metadata=METADATA, version=7):
    return LogState(version, "e", protocol or Protocol(1, 2), metadata, txns or {}, 0)


def entry(**fields):
    return Entry(8, "e", **fields)


# --- TxnIs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [None, 0, 5])
def test_a_txn_that_is_as_expected(expected):
    txns = {} if expected is None else {"a": expected}
    TxnIs("a", expected).check(state(txns), None)


@pytest.mark.parametrize(
    ("expected", "found"), [(None, 0), (None, 5), (0, None), (5, 4), (5, 6), (5, None)]
)
def test_a_txn_that_is_not(expected, found):
    txns = {"b": 5} | ({} if found is None else {"a": found})
    with pytest.raises(FencedError) as caught:
        TxnIs("a", expected).check(state(txns), None)
    assert str(caught.value) == (f"a: expected txn {expected}, the log has {found} at version 7")
    assert not isinstance(caught.value, CommitConflict)


# --- NoRival --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        str(MINE),
        "other/orders@idA/4",  # another partition
        "other/returns@idB/3",  # another topic
        "sink/orders@idA/33",
        VACUUM_APP_ID,
        "a spark job",
        "other/orders@idA",
    ],
)
def test_an_app_id_that_is_no_rival(text):
    NoRival(MINE).check(state({text: 1}), None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("other/orders@idA/3", "seek --adopt-sink other"),
        ("other/orders/3", "sink 'other' already fills this table from this topic"),
        ("sink/orders@idB/3", "seek --adopt-topic"),
        ("sink/orders/3", "set source.topic_ids as it was when the table was filled"),
    ],
)
def test_a_rival_is_refused(text, says):
    with pytest.raises(SourceRefused, match=r"orders/3: ") as caught:
        NoRival(MINE).check(state({str(MINE): 1, text: 1}), None)
    assert says in str(caught.value)


def test_rivals_are_looked_for_only_where_txns_came():
    """The map grows with the topics; commits of others' files must not cost a walk over it."""
    rival = state({"other/orders@idA/3": 1})
    NoRival(MINE).check(rival, entry())
    with pytest.raises(SourceRefused):
        NoRival(MINE).check(rival, entry(txns={"x": 1}))


def test_rival_sentences_show_the_whole_spelling():
    without = AppId("sink", TP, None)
    assert "'sink/orders/3'" in rival_sentence(MINE, without)
    assert "'sink/orders@idA/3'" in rival_sentence(MINE, without)
    again = rival_sentence(MINE, AppId("sink", TP, "idB"))
    assert "id idB in the log, idA at the brokers" in again


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tag", "fence"), [(0, None), (5, 4), (1, 0)])
def test_files_above_the_fence(tag, fence):
    txns = {} if fence is None else {VACUUM_APP_ID: fence}
    TagAboveFence(tag).check(state(txns), None)


@pytest.mark.parametrize(("tag", "fence"), [(0, 0), (4, 4), (3, 9)])
def test_files_behind_the_fence_are_uploaded_again(tag, fence):
    with pytest.raises(CommitConflict, match=f"at version {tag} are behind vacuum's fence {fence}"):
        TagAboveFence(tag).check(state({VACUUM_APP_ID: fence}), None)


def test_the_same_table():
    same = SameTable.of(state())
    same.check(state(), None)
    renamed = msgspec.structs.replace(
        METADATA, name="x", description="y", configuration={"delta.appendOnly": "true"}
    )
    same.check(state(metadata=renamed), None)


@pytest.mark.parametrize(
    "changed",
    [
        {"metadata": msgspec.structs.replace(METADATA, id="another")},
        {"metadata": msgspec.structs.replace(METADATA, schema_string="{}")},
        {"metadata": msgspec.structs.replace(METADATA, partition_columns=("a",))},
        {"protocol": Protocol(3, 7, (), ())},
    ],
)
def test_another_table(changed):
    with pytest.raises(CommitConflict, match="changed before version 7: plan again"):
        SameTable.of(state()).check(state(**changed), None)


def test_support_is_looked_at_with_each_metadata_and_protocol():
    unsupported = msgspec.structs.replace(
        METADATA,
        configuration={
            **METADATA.configuration,
            "delta.setTransactionRetentionDuration": "interval 1 day",
        },
    )
    condition = StillSupported("conditional_put")
    condition.check(state(metadata=unsupported), entry())
    for seen in (None, entry(metadata=unsupported), entry(protocol=Protocol(1, 2))):
        with pytest.raises(TableRefused, match="setTransactionRetentionDuration"):
            condition.check(state(metadata=unsupported), seen)


def test_a_log_store_that_changes_is_refused():
    other = msgspec.structs.replace(METADATA, configuration={LOG_STORE_PROPERTY: "dynamodb"})
    with pytest.raises(TableRefused, match="log store 'dynamodb'"):
        StillSupported("conditional_put").check(state(metadata=other), entry(metadata=other))


# --- plans ----------------------------------------------------------------------------------------


def test_a_plan_is_its_bytes_and_knows_its_commit_id():
    plan = Plan.of("c1", [info("c1"), Txn("a", 5)], [])
    assert plan.body == encode_entry([info("c1"), Txn("a", 5)])
    found = parse_entry(1, plan.body, "e")
    assert found.txns == {"a": 5}
    lines = plan.body.splitlines()
    assert [next(iter(json.loads(line))) for line in lines] == ["commitInfo", "txn"]


def test_a_plan_without_its_commit_id_is_a_mistake():
    with pytest.raises(AssertionError, match="commit id"):
        Plan.of("c1", [info("c2"), Txn("a", 5)], [])


def test_a_plan_raises_what_its_first_failing_condition_raises():
    plan = Plan.of("c1", [info("c1")], [TxnIs("a", None), TagAboveFence(1), TxnIs("a", 3)])
    plan_holds_up_to_the_last = state({})
    with pytest.raises(FencedError, match="expected txn 3"):
        plan.check(plan_holds_up_to_the_last, None)
    with pytest.raises(CommitConflict):
        plan.check(state({VACUUM_APP_ID: 1}), None)


# --- state ----------------------------------------------------------------------------------------


def test_a_state_moves_one_entry_at_a_time():
    before = state({"a": 1, "b": 2})
    after = before.applied(Entry(8, "e8", txns={"a": 3}))
    assert (after.version, after.e_tag, after.txns) == (8, "e8", {"a": 3, "b": 2})
    assert before.txns == {"a": 1, "b": 2}
    assert after.applied(Entry(9, "e9")).txns is after.txns
    for wrong in (7, 9, 10):
        with pytest.raises(AssertionError):
            before.applied(Entry(wrong, "e"))


def test_knowledge_is_old_after_a_minute():
    known = state()
    assert not known.is_old(KNOWLEDGE_AGE_MAX_MS - 1)
    assert known.is_old(KNOWLEDGE_AGE_MAX_MS)


def test_the_fence_of_a_table_that_was_never_vacuumed_lies_below_every_tag():
    assert state().vacuum_fence == -1
    assert state({VACUUM_APP_ID: 4}).vacuum_fence == 4
