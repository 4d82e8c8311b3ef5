"""Live files and tombstones at every version, as deltalake has them, whatever wrote the log."""

import json
import random
from urllib.parse import quote

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from delta_sink.delta.actions import Add, Metadata, Protocol, Remove, encode_entry
from delta_sink.delta.checkpoint import FOOTER_BYTES
from delta_sink.delta.checkpoint_files import BATCH_ROWS
from delta_sink.delta.file_columns import FACT_SCHEMA, FILE_SCHEMA, TOMBSTONE_SCHEMA, file_keys
from delta_sink.delta.logstore import entry_path
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.errors import ObjectMissing, TableRefused
from tests.unit.scripted import SCHEMA, Bench
from tests.unit.test_checkpoint import log_of

LOG = "_delta_log/"


def churn(folder, seed, steps=14):
    """Let deltalake append, delete, overwrite, compact and checkpoint in a random order."""
    dice = random.Random(seed)
    for step in range(steps):
        data = pa.table({"a": [step, step + 100], "day": ["d é%/", f"d{step % 2}"]})
        deed = dice.choice(["append"] * 4 + ["delete", "overwrite", "compact", "checkpoint"])
        if step == 0 or deed == "append":
            write_deltalake(str(folder), data, mode="append", partition_by=["day"])
        elif deed == "delete":
            DeltaTable(str(folder)).delete(f"a = {dice.randrange(step)}")
        elif deed == "overwrite":
            data = data.set_column(1, "day", pa.array(["d0", "d0"]))
            write_deltalake(str(folder), data, mode="overwrite", predicate="day = 'd0'")
        elif deed == "compact":
            DeltaTable(str(folder)).optimize.compact()
        else:
            DeltaTable(str(folder)).create_checkpoint()
    return DeltaTable(str(folder)).version()


def seen_by_deltalake(folder, version):
    table = DeltaTable(str(folder), version=version)
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    return {
        (a["path"], a["size_bytes"], a["num_records"], a["partition.day"]) for a in actions
    }  # fmt: skip


def seen_by_us(snapshot):
    files = snapshot.files()
    assert files.schema.equals(FACT_SCHEMA)
    rows = files.to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {
        (r["path"], r["size"], r["numRecords"], dict(r["partitionValues"])["day"]) for r in rows
    }


def tombstones_by_hand(folder, version):
    """Replay the JSON entries one by one."""
    live, dead = set(), set()
    for number in range(version + 1):
        for line in (folder / LOG / f"{number:020d}.json").read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                live.add(action["add"]["path"])
                dead.discard(action["add"]["path"])
            if "remove" in action:
                dead.add(action["remove"]["path"])
                live.discard(action["remove"]["path"])
    return live, dead


@pytest.mark.parametrize("seed", range(6))
def test_every_version_shows_the_files_that_deltalake_shows(tmp_path, seed):
    head = churn(tmp_path, seed)
    log = log_of(tmp_path)
    for version in range(head + 1):
        snapshot = read_snapshot(log, version)
        assert snapshot.state.version == version
        assert seen_by_us(snapshot) == seen_by_deltalake(tmp_path, version)
        live, dead = tombstones_by_hand(tmp_path, version)
        assert {quote(r["path"], safe="/=%") for r in snapshot.files().to_pylist()} == {
            quote(path, safe="/=%") for path in live
        }
        batches = list(snapshot.tombstone_batches())
        assert all(batch.schema.equals(TOMBSTONE_SCHEMA) for batch in batches)
        found = [path for batch in batches for path in batch["path"].to_pylist()]
        assert len(found) == len(set(found))
        assert set(found) <= dead  # a checkpoint by deltalake forgets old ones, never adds any
        if snapshot.checkpoint is None:
            assert set(found) == dead
    assert read_snapshot(log).state.version == head


def test_a_table_partition_without_a_value_and_statistics_without_rows(tmp_path):
    bench = Bench()
    values = {"p": None, "q": ""}
    added = Add("x", values, 5, 7, data_change=True, stats='{"minValues":{"numRecords":3}}')
    bench.store.store(entry_path(1), encode_entry([added]))
    [file] = read_snapshot(bench.log).files().to_pylist()
    assert dict(file["partitionValues"]) == values
    assert (file["numRecords"], file["tag"], file["modificationTime"]) == (None, None, 7)


def vector(text, offset=None, cardinality=1):
    found = {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": 40}
    return {**found, "cardinality": cardinality} | ({} if offset is None else {"offset": offset})


def test_a_file_is_told_apart_by_its_deletion_vector():
    """A delete with vectors removes the file with the old one and adds it with the new one."""
    bench = Bench()
    a, b = vector("aaaa"), vector("aaaa", offset=1)
    steps = [
        [Add("x", {}, 1, 0, data_change=True)],
        [Remove("x"), Add("x", {}, 1, 0, data_change=True, deletion_vector=a)],
        [Remove("x", deletion_vector=a), Add("x", {}, 1, 0, True, deletion_vector=b)],
    ]
    for version, actions in enumerate(steps, start=1):
        bench.store.store(entry_path(version), encode_entry(actions))
    for version, wanted in [(1, None), (2, a), (3, b)]:
        [file] = read_snapshot(bench.log, version).files().to_pylist()
        found = file["deletionVector"]
        assert (found and {k: v for k, v in found.items() if v is not None}) == wanted
    tombs = [r for b in read_snapshot(bench.log).tombstone_batches() for r in b.to_pylist()]
    assert [tomb["deletionVector"] and tomb["deletionVector"]["offset"] for tomb in tombs] == [
        None,
        None,
    ]
    [batch] = read_snapshot(bench.log, 3).live_batches()
    assert file_keys(batch).to_pylist() == ["x\niaaaa@1"]


def test_a_vector_that_is_none_is_refused():
    bench = Bench()
    added = Add("x", {}, 1, 0, data_change=True, deletion_vector={"storageType": "i"})
    bench.store.store(entry_path(1), encode_entry([added]))
    with pytest.raises(TableRefused, match="deletion vector without 'pathOrInlineDv' at x"):
        read_snapshot(bench.log)
    wrong = vector("aaaa", cardinality="many")
    added = Add("x", {}, 1, 0, data_change=True, deletion_vector=wrong)
    bench.store.store(entry_path(1), encode_entry([added]))
    with pytest.raises(TableRefused, match="deletionVector is not as Delta has it"):
        read_snapshot(bench.log)


# --- checkpoints of every kind --------------------------------------------------------------------


def checkpointed(folder):
    """Make a table with entries on both sides of a checkpoint by deltalake, and take that out.

    Return the checkpoint's rows, and the files that deltalake shows at versions 9 and 10.
    """
    for number in range(9):
        data = pa.table({"a": [number], "day": [f"d{number % 2}"]})
        write_deltalake(str(folder), data, mode="append", partition_by=["day"])
    DeltaTable(str(folder)).delete("a = 3")
    DeltaTable(str(folder)).create_checkpoint()
    name = f"{9:020d}.checkpoint.parquet"
    found = pq.read_table(folder / LOG / name)
    (folder / LOG / name).unlink()
    (folder / LOG / "_last_checkpoint").unlink()
    DeltaTable(str(folder)).delete("a = 4")
    wanted = {version: seen_by_deltalake(folder, version) for version in (9, 10)}
    for version in range(9):
        (folder / LOG / f"{version:020d}.json").unlink()
    return found, wanted


def in_parts(folder, found):
    for part in range(3):
        rows = found.take(list(range(part, found.num_rows, 3)))
        name = f"{9:020d}.checkpoint.{part + 1:010d}.{3:010d}.parquet"
        pq.write_table(rows, folder / LOG / name)


def in_sidecars(folder, found, *, is_json):
    is_file = [r["add"] is not None or r["remove"] is not None for r in found.to_pylist()]
    files = pa.Table.from_pylist(
        [
            {"add": r["add"], "remove": r["remove"]}
            for r in found.to_pylist()
            if r["add"] or r["remove"]
        ],
        schema=pa.schema([optional(found.schema.field(name)) for name in ("add", "remove")]),
    )
    (folder / LOG / "_sidecars").mkdir()
    sidecars = []
    for part in range(2):
        name = f"0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f{part}.parquet"
        path = folder / LOG / "_sidecars" / name
        pq.write_table(files.take(list(range(part, files.num_rows, 2))), path)
        prefix = "file:///elsewhere/_delta_log/_sidecars/" if part else ""
        size = path.stat().st_size
        sidecars.append({"path": prefix + name, "sizeInBytes": size, "modificationTime": 0})
    rest = [r for r, is_one in zip(found.to_pylist(), is_file, strict=True) if not is_one]
    uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    if is_json:
        lines = [{k: v for k, v in row.items() if v is not None} for row in rest]
        for line in lines:
            if "metaData" in line:
                line["metaData"] |= {"configuration": {}, "format": {"provider": "parquet"}}
        lines += [{"checkpointMetadata": {"version": 9}}, *({"sidecar": s} for s in sidecars)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / LOG / f"{9:020d}.checkpoint.{uuid}.json").write_text(text)
        return
    kind = pa.struct(
        {"path": pa.string(), "sizeInBytes": pa.int64(), "modificationTime": pa.int64()}
    )
    head = [optional(found.schema.field(name)) for name in ("txn", "protocol", "metaData")]
    schema = pa.schema([*head, pa.field("sidecar", kind)])
    rows = [{**row, "sidecar": None} for row in rest] + [{"sidecar": s} for s in sidecars]
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, folder / LOG / f"{9:020d}.checkpoint.{uuid}.parquet")


def optional(field):
    """Return the field with nothing required in it: pyarrow writes no null above what is."""
    kind = field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([optional(child) for child in kind])
    return pa.field(field.name, kind)


def in_one(folder, found):
    pq.write_table(found, folder / LOG / f"{9:020d}.checkpoint.parquet", row_group_size=3)


KINDS = {
    "in one": in_one,
    "in parts": in_parts,
    "in sidecars, JSON": lambda folder, found: in_sidecars(folder, found, is_json=True),
    "in sidecars, Parquet": lambda folder, found: in_sidecars(folder, found, is_json=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_every_kind(tmp_path, kind):
    rows, wanted = checkpointed(tmp_path)
    KINDS[kind](tmp_path, rows)
    snapshot = read_snapshot(log_of(tmp_path))
    assert snapshot.checkpoint.version == 9
    assert seen_by_us(snapshot) == wanted[10]
    assert snapshot.files().num_rows == 7
    found = [p for b in snapshot.tombstone_batches() for p in b["path"].to_pylist()]
    assert len(found) == 2
    assert seen_by_us(read_snapshot(log_of(tmp_path), 9)) == wanted[9]


def test_what_a_checkpoint_leaves_out_is_null_and_what_it_adds_is_not_fetched(tmp_path):
    found, wanted = checkpointed(tmp_path)
    add = found["add"].combine_chunks()
    kept = ["path", "partitionValues", "size", "modificationTime", "dataChange", "stats"]
    parts = [add.field(add.type.get_field_index(name)) for name in kept]
    parsed = pa.array([{"x": "y" * 40_000 + str(n)} for n in range(len(add))])
    slim = pa.StructArray.from_arrays([*parts, parsed], [*kept, "stats_parsed"], mask=add.is_null())
    place = found.column_names.index("add")
    table = found.set_column(place, "add", slim)
    path = tmp_path / LOG / f"{9:020d}.checkpoint.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False)
    log = log_of(tmp_path)
    fetched = []
    ranged = log.store.get_range
    log.store.get_range = lambda path, offset, length: (
        fetched.append(length),
        ranged(path, offset, length),
    )[1]
    assert seen_by_us(read_snapshot(log, 9)) == wanted[9]
    assert sum(fetched) - 3 * FOOTER_BYTES < 10_000 < 300_000 < path.stat().st_size
    batches = [batch for batch in read_snapshot(log, 9).live_batches() if batch.num_rows]
    assert all(batch.schema.equals(FILE_SCHEMA) for batch in batches)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    found, _ = checkpointed(tmp_path)
    place = found.column_names.index("add")
    bad = pa.array([{"path": "x", "size": "large"}] * found.num_rows)
    table = found.set_column(place, "add", bad)
    pq.write_table(table, tmp_path / LOG / f"{9:020d}.checkpoint.parquet")
    with pytest.raises(TableRefused, match=r"checkpoint\.parquet: the field size is string"):
        read_snapshot(log_of(tmp_path), 9).files()


# --- what the log cannot show ---------------------------------------------------------------------


def test_there_is_no_table():
    bench = Bench()
    bench.store.objects.clear()
    assert read_snapshot(bench.log) is None


def test_a_version_that_does_not_exist_or_is_gone(tmp_path):
    head = churn(tmp_path, 1)
    log = log_of(tmp_path)
    with pytest.raises(TableRefused, match=f"no version {head + 5}, its log ends at {head}"):
        read_snapshot(log, head + 5)
    (tmp_path / LOG / f"{0:020d}.json").unlink()
    with pytest.raises(TableRefused, match="version 1 cannot be read: log entry 0 is missing"):
        read_snapshot(log, 1)


def test_an_entry_that_goes_between_list_and_get_is_read_elsewhere(tmp_path):
    rows, wanted = checkpointed(tmp_path)
    log = log_of(tmp_path)
    calls = []
    read = log.entries.read

    def racing(version):
        calls.append(version)
        if len(calls) == 1:
            in_one(tmp_path, rows)  # a checkpoint comes, and an entry goes
            return None
        return read(version)

    log.entries.read = racing
    assert seen_by_us(read_snapshot(log)) == wanted[10]


def test_a_stale_hint_costs_a_listing_and_nothing_else(tmp_path):
    head = churn(tmp_path, 2)
    DeltaTable(str(tmp_path)).create_checkpoint()
    log = log_of(tmp_path)
    for hint in (0, head, head + 50):
        (tmp_path / LOG / "_last_checkpoint").write_text(json.dumps({"version": hint}))
        assert seen_by_us(read_snapshot(log)) == seen_by_deltalake(tmp_path, head)
        assert seen_by_us(read_snapshot(log, 1)) == seen_by_deltalake(tmp_path, 1)


def test_state_is_that_of_a_worker_who_followed_the_log():
    bench = Bench()
    newer = msgspec.structs.replace(bench.metadata, name="newer")
    bench.other("app", 3)
    bench.other("app", 4, metadata=newer)
    bench.other("more", 5, protocol=Protocol(1, 3))
    state = read_snapshot(bench.log).state
    assert state.txns == {"other": 1, "app": 4, "more": 5}
    assert (state.metadata, state.protocol) == (newer, Protocol(1, 3))
    assert state.e_tag == bench.store.objects[entry_path(3)][1]
    assert read_snapshot(bench.log, 1).state.txns == {"other": 1, "app": 3}


def test_many_files_come_in_small_batches():
    """A checkpoint of one row group is not decoded at once."""
    bench = Bench()
    count = 3 * BATCH_ROWS
    adds = [
        {"path": f"f{n}", "partitionValues": [], "size": 1, "modificationTime": 0,
         "dataChange": False} for n in range(count)
    ]  # fmt: skip
    kind = pa.struct(
        {
            "path": pa.large_string(),
            "partitionValues": pa.map_(pa.string(), pa.string()),
            "size": pa.int64(),
            "modificationTime": pa.int64(),
            "dataChange": pa.bool_(),
        }
    )
    head = pa.table(
        {
            "protocol": [{"minReaderVersion": 1, "minWriterVersion": 2}],
            "metaData": [{"id": "t", "schemaString": SCHEMA}],
            "add": pa.nulls(1, kind),
        }
    )
    files = pa.table({"add": pa.array(adds, kind)})
    nulls = {
        name: pa.nulls(count, head.schema.field(name).type) for name in ("protocol", "metaData")
    }
    table = pa.concat_tables([head, pa.table({**nulls, "add": files["add"]})])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10 * count)
    bench.store.store(f"{LOG}{5:020d}.checkpoint.parquet", sink.getvalue().to_pybytes())
    snapshot = read_snapshot(bench.log)
    sizes = [batch.num_rows for batch in snapshot.live_batches()]
    assert sum(sizes) == count
    assert max(sizes) <= BATCH_ROWS
    assert isinstance(snapshot.state.metadata, Metadata)


def test_a_checkpoint_that_goes_while_it_is_read_says_so():
    bench = Bench()
    bench.store.store(f"{LOG}{5:020d}.checkpoint.json", b"")
    with pytest.raises((ObjectMissing, TableRefused)):
        read_snapshot(bench.log)
