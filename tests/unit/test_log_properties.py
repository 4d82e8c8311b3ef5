"""Properties of the log: what a plan in doubt comes to, and what entries and checkpoints read as."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.delta.actions import (
    Add,
    CommitInfo,
    Metadata,
    Protocol,
    Remove,
    Txn,
    encode_entry,
    parse_entry,
)
from delta_sink.delta.checkpoint import read_checkpoint
from delta_sink.delta.commit import commit
from delta_sink.delta.logstore import Checkpoint
from delta_sink.errors import (
    CommitUnknown,
    FencedError,
    ObjectMissing,
    StoreRefused,
    StoreUnavailable,
    TableRefused,
)
from delta_sink.ports import ObjectInfo
from tests.simulation.foreign import CHECKPOINT_SCHEMA
from tests.unit.scripted import (
    Bench,
    ScriptedStore,
    after,
    first,
    lost_after,
    lost_before,
    nothing_landed,
    on_the_wire,
    refused,
)

# --- the resolver of unknown outcomes -------------------------------------------------------------


def land_one(bench: Bench):
    """Let the oldest PUT that is still on the wire arrive."""

    def arrive():
        if bench.store.late:
            bench.store.late.pop(0)()

    return arrive


STEPS = {
    "served": lambda bench: lambda honest: honest(),
    "lost before": lambda bench: lost_before,
    "lost after": lambda bench: lost_after,
    "409": lambda bench: nothing_landed,
    "403": lambda bench: refused,
    "on the wire": lambda bench: on_the_wire(bench.store),
    "a late one first": lambda bench: first(land_one(bench)),
    "a late one after": lambda bench: after(land_one(bench)),
    "another first": lambda bench: first(bench.other),
    "another after": lambda bench: after(bench.other),
    "another, then lost": lambda bench: first(bench.other, lost_before),
    "lost, then another": lambda bench: after_lost(bench),
    "fenced first": lambda bench: first(lambda: bench.other("mine", 99)),
    "a minute first": lambda bench: first(lambda: bench.clock.sleep_ms(61_000)),
    "a minute after": lambda bench: after(lambda: bench.clock.sleep_ms(61_000)),
}


def after_lost(bench: Bench):
    def step(honest):
        honest()
        bench.other()
        raise StoreUnavailable("no answer")

    return step


READS = ["served", "lost before", "403", "another first", "a late one first", "a minute first"]
scripts = st.fixed_dictionaries(
    {
        "put_if_absent": st.lists(st.sampled_from(sorted(STEPS)), max_size=12),
        "get": st.lists(st.sampled_from(READS), max_size=6),
        "list": st.lists(st.sampled_from(READS), max_size=4),
    }
)


@given(scripts, st.sampled_from([0, 59_000, 61_000]))
@settings(max_examples=400, deadline=None)
def test_whatever_is_answered_a_plan_lands_once_or_not_at_all(script, age_ms):
    bench = Bench()
    plan, state = bench.plan(), bench.state(age_ms=age_ms)
    for kind, names in script.items():
        bench.store.script(kind, *(STEPS[name](bench) for name in names))
    try:
        told = commit(bench.log, state, plan).version
    except (FencedError, StoreRefused, StoreUnavailable) as error:
        told = error
    except CommitUnknown:
        told = None
    for late in bench.store.late:
        late()
    landed = bench.landed(plan)
    if isinstance(told, int):
        assert landed == [told]
    elif told is None:
        assert len(landed) <= 1
    else:
        assert landed == [], f"{told!r} says that nothing landed"


@given(scripts)
@settings(max_examples=100, deadline=None)
def test_two_plans_of_one_partition_never_both_land(script):
    """What a second worker plans from the same offset is fenced, whatever became of the first."""
    bench = Bench()
    plans = [bench.plan(next_=10), bench.plan(next_=20)]
    states = [bench.state(), bench.state()]
    for kind, names in script.items():
        bench.store.script(kind, *(STEPS[name](bench) for name in names))
    for plan, state in zip(plans, states, strict=True):
        try:
            commit(bench.log, state, plan)
        except (FencedError, StoreRefused, StoreUnavailable, CommitUnknown):
            continue
    for late in bench.store.late:
        late()
    assert len(bench.landed(plans[0])) + len(bench.landed(plans[1])) <= 1


# --- entries --------------------------------------------------------------------------------------

words = st.text(max_size=12)
longs = st.integers(0, 2**63 - 1)
values = st.dictionaries(words, words | st.none(), max_size=3)
txns = st.builds(Txn, words, longs)
adds = st.builds(Add, words, values, longs, longs, st.booleans(), stats=words | st.none())
removes = st.builds(Remove, words, st.booleans(), longs | st.none())
infos = st.builds(CommitInfo, timestamp=longs, operation=words, user_metadata=words)
protocols = st.builds(Protocol, st.integers(1, 3), st.integers(1, 7))
metadatas = st.builds(Metadata, words, words, st.tuples(words), values)
entries = st.lists(st.one_of(txns, adds, removes, infos, protocols, metadatas), max_size=8)


@given(entries)
def test_an_entry_reads_as_it_was_written(actions):
    entry = parse_entry(3, encode_entry(actions), "tag")
    assert list(entry.adds) == [a for a in actions if isinstance(a, Add)]
    assert list(entry.removes) == [a for a in actions if isinstance(a, Remove)]
    assert entry.txns == {a.app_id: a.version for a in actions if isinstance(a, Txn)}
    for kind, found in ((Protocol, entry.protocol), (Metadata, entry.metadata)):
        assert found == next((a for a in reversed(actions) if isinstance(a, kind)), None)
    assert (entry.version, entry.e_tag) == (3, "tag")


def lines_of(actions) -> list[dict]:
    """Return an entry as `json` reads it."""
    return [json.loads(line) for line in encode_entry(actions).splitlines() if line]


@given(entries)
def test_an_entry_is_json_lines_that_say_the_same(actions):
    lines = lines_of(actions)
    assert all(len(line) == 1 for line in lines)
    told = [line["txn"] for line in lines if "txn" in line]
    assert told == [
        {"appId": a.app_id, "version": a.version} for a in actions if isinstance(a, Txn)
    ]
    paths = [line["add"]["path"] for line in lines if "add" in line]
    assert paths == [a.path for a in actions if isinstance(a, Add)]


unknown = st.dictionaries(words, st.recursive(words | longs | st.none(), st.lists, max_leaves=4))


@given(entries, unknown)
def test_what_an_entry_has_more_than_we_know_is_passed_over(actions, more):
    lines = lines_of(actions)
    for line in lines:
        for action in line.values():
            action.update({f"new {name}": value for name, value in more.items()})
    lines.append({"newAction": more})
    body = b"\n\n".join(json.dumps(line).encode() for line in lines)
    assert parse_entry(1, body, "") == parse_entry(1, encode_entry(actions), "")


@given(entries, st.data())
def test_a_damaged_entry_is_refused_or_means_something(actions, data):
    """Never another error than the one that says which line is wrong."""
    body = bytearray(encode_entry(actions))
    for _ in range(data.draw(st.integers(1, 3))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_entry(1, bytes(body), "")
    except TableRefused as refused_:
        said = str(refused_)
    else:
        said = "_delta_log/00000000000000000001.json line "
    assert said.startswith("_delta_log/00000000000000000001.json line ")


# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint_of(offsets: dict[str, int], *, adds_count: int, rows_a_group: int):
    """Return a store and the checkpoint in it, with file actions between what a writer reads."""
    table = {
        "id": "t",
        "schemaString": "{}",
        "partitionColumns": [],
        "configuration": [],
        "format": {"provider": "parquet", "options": []},
    }
    rows = [{"add": {"path": f"part-{number}"}} for number in range(adds_count)]
    rows += [{"txn": {"appId": name, "version": at}} for name, at in offsets.items()]
    rows += [{"metaData": table}, {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}]
    buffer = pa.BufferOutputStream()
    written = pa.Table.from_pylist(rows, schema=CHECKPOINT_SCHEMA)
    pq.write_table(written, buffer, row_group_size=rows_a_group)
    store = ScriptedStore()
    path = "_delta_log/00000000000000000007.checkpoint.parquet"
    e_tag = store.store(path, buffer.getvalue().to_pybytes())
    info = ObjectInfo(path, len(store.objects[path][0]), 0, e_tag)
    return store, Checkpoint(7, (info,))


offset_maps = st.dictionaries(words, longs, max_size=6)


@given(offset_maps, st.integers(0, 30), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_gives_every_txn_however_it_is_cut(offsets, adds_count, rows_a_group):
    store, checkpoint = checkpoint_of(offsets, adds_count=adds_count, rows_a_group=rows_a_group)
    protocol, metadata, found = read_checkpoint(store, checkpoint)
    assert found == offsets
    assert (protocol, metadata.id) == (Protocol(1, 2), "t")


@given(offset_maps, st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_checkpoint_is_refused_or_read(offsets, data):
    """A byte of a page may change unseen (Parquet's checksums are off by default); nothing breaks."""
    store, checkpoint = checkpoint_of(offsets, adds_count=3, rows_a_group=100)
    [info] = checkpoint.files
    body = bytearray(store.objects[info.path][0])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    store.objects[info.path] = (bytes(body), info.e_tag)
    try:
        said = str(read_checkpoint(store, checkpoint)[2])
    except TableRefused as refused_:
        said = str(refused_)
    assert said.startswith("{") or "checkpoint" in said


@pytest.mark.parametrize("kept", [0, 7, 200])
def test_a_checkpoint_that_was_cut_off_is_refused(kept):
    store, checkpoint = checkpoint_of({"a": 1}, adds_count=3, rows_a_group=100)
    [info] = checkpoint.files
    store.objects[info.path] = (store.objects[info.path][0][:kept], info.e_tag)
    short = Checkpoint(7, (ObjectInfo(info.path, kept, 0, info.e_tag),))
    with pytest.raises((TableRefused, ObjectMissing), match=r"checkpoint"):
        read_checkpoint(store, short)
