"""Checkpoints that we write: read by deltalake with equal files, rows and txns; bounded memory."""

import json
import subprocess
import sys
import textwrap

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from delta_sink.audit import write_anchor
from delta_sink.audit_anchor import anchor_path
from delta_sink.delta.actions import Add, Protocol, Remove, encode_entry
from delta_sink.delta.checkpoint_write import CHECKPOINT_SCHEMA, write_checkpoint
from delta_sink.delta.commit import open_log
from delta_sink.delta.logstore import LAST_CHECKPOINT_PATH, entry_path
from delta_sink.delta.snapshot import read_snapshot
from delta_sink.errors import StoreUnavailable, TableRefused
from tests.unit.delta_tables import multiset
from tests.unit.maintained import DAY_MS, P0, P1, Maintained, rows_in
from tests.unit.scripted import Bench, lost_after, lost_before, nothing_landed, refused
from tests.unit.test_checkpoint import log_of
from tests.unit.test_snapshot import churn, seen_by_us

LOG = "_delta_log/"


def checkpoint_path(version):
    return f"{LOG}{version:020d}.checkpoint.parquet"


def what_deltalake_sees(folder, version=None):
    table = DeltaTable(str(folder), version=version)
    actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    facts = sorted(json.dumps(action, default=str, sort_keys=True) for action in actions)
    return facts, multiset(rows_in(table)), table.metadata(), table.protocol()


def keep_only(folder, version):
    """Take away every entry below `version` and all other checkpoints."""
    for path in (folder / LOG).iterdir():
        digits = path.name.split(".")[0]
        if digits.isdigit() and path.name not in (
            f"{version:020d}.json",
            f"{version:020d}.checkpoint.parquet",
        ):
            path.unlink()


@pytest.mark.parametrize("seed", range(4))
def test_deltalake_reads_from_it_what_it_reads_from_the_entries(tmp_path, seed):
    """Partitioned, with overwrites, deletes and compactions, from entries and other checkpoints."""
    head = churn(tmp_path, seed)
    txn = CommitProperties(app_transactions=[Transaction(f"app{n}", n * 10) for n in range(300)])
    data = pa.table({"a": [5], "day": ["d0"]})
    write_deltalake(str(tmp_path), data, mode="append", commit_properties=txn)
    head += 1
    before = what_deltalake_sees(tmp_path)
    ours = seen_by_us(read_snapshot(log_of(tmp_path)))
    state = open_log(log_of(tmp_path))
    written = write_checkpoint(log_of(tmp_path))
    assert (written.version, written.is_ours, written.txns) == (head, True, 300)
    assert written.files == len(before[0])
    keep_only(tmp_path, head)
    assert what_deltalake_sees(tmp_path) == before
    table = DeltaTable(str(tmp_path))
    assert all(table.transaction_version(f"app{n}") == n * 10 for n in range(300))
    assert seen_by_us(read_snapshot(log_of(tmp_path))) == ours
    found = open_log(log_of(tmp_path))
    assert (found.txns, found.metadata, found.protocol) == (
        state.txns,
        state.metadata,
        state.protocol,
    )


def test_our_own_tables_go_on_behind_it(tmp_path):
    table = Maintained()
    for _ in range(3):
        table.append(7, P0)
        table.append(5, P1)
    before = table.read(tmp_path / "before")
    write_checkpoint(table.log)
    head = table.state.version
    for version in range(head):
        table.store.delete(entry_path(version))
    assert table.read(tmp_path / "after") == before
    table.reopen()
    table.append(4, P0)
    assert sum(table.read(tmp_path / "on").values()) == 40
    written = write_checkpoint(table.log)
    assert (written.version, written.files) == (head + 1, 14)


def test_a_version_in_the_middle(tmp_path):
    table = Maintained()
    versions = [table.append() for _ in range(4)]
    write_checkpoint(table.log, versions[1])
    before = table.read(tmp_path / "a", versions[1])
    table.store.delete(entry_path(0))
    assert table.read(tmp_path / "b", versions[1]) == before
    assert sum(table.read(tmp_path / "b").values()) == 40


# --- what is in it --------------------------------------------------------------------------------


def test_columns_are_those_of_the_protocol(tmp_path):
    """deltalake's own checkpoint is the model: names, types, what is required, inside of maps too."""
    churn(tmp_path, 1)
    DeltaTable(str(tmp_path)).create_checkpoint()
    head = DeltaTable(str(tmp_path)).version()
    path = tmp_path / checkpoint_path(head)
    theirs = leaves(pq.ParquetFile(path).schema)
    path.unlink()
    write_checkpoint(log_of(tmp_path))
    ours = leaves(pq.ParquetFile(path).schema)
    # Maps of properties may hold a null in JSON; everything else is as strict as theirs.
    loose = {"metaData.configuration.key_value.value", "metaData.format.options.key_value.value"}
    for name, column in ours.items():
        assert theirs[name][:2] == column[:2], name
        if name not in loose:
            assert theirs[name] == column, name
    assert {name.split(".")[0] for name in ours} == set(CHECKPOINT_SCHEMA.names)
    assert set(theirs) - set(ours) == {
        *(f"{a}.{c}" for a in ("add", "remove") for c in ("baseRowId", "defaultRowCommitVersion")),
        "add.clusteringProvider",
        "remove.stats",
        "remove.tags.key_value.key",
        "remove.tags.key_value.value",
        *(f"domainMetadata.{c}" for c in ("domain", "configuration", "removed")),
        *(f"sidecar.{c}" for c in ("path", "sizeInBytes", "modificationTime")),
        "sidecar.tags.key_value.key",
        "sidecar.tags.key_value.value",
    }


def leaves(schema):
    columns = [schema.column(index) for index in range(len(schema))]
    return {c.path: (c.physical_type, str(c.logical_type), c.max_definition_level) for c in columns}


def test_tombstones_stay_as_long_as_the_table_wants_and_a_day_more():
    bench = Bench(configuration=None)
    seven = msgspec.structs.replace(
        bench.metadata,
        configuration={
            **bench.metadata.configuration,
            "delta.deletedFileRetentionDuration": "interval 3 days",
        },
    )
    bench.other(metadata=seven)
    now = bench.clock.wall_ms()
    ages = {"young": 3 * DAY_MS, "margin": 4 * DAY_MS - 1, "old": 4 * DAY_MS, "undated": None}
    removes = [
        Remove(
            name,
            data_change=name != "young",
            deletion_timestamp=None if age is None else now - age,
            extended_file_metadata=True,
            partition_values={"p": None},
            size=3,
        )
        for name, age in ages.items()
    ]
    bench.store.store(entry_path(2), encode_entry(removes))
    written = write_checkpoint(bench.log)
    assert (written.version, written.tombstones) == (2, 2)
    for version in range(3):
        bench.store.delete(entry_path(version))
    found = [r for b in read_snapshot(bench.log).tombstone_batches() for r in b.to_pylist()]
    assert [(r["path"], r["dataChange"], r["size"]) for r in found] == [
        ("young", False, 3),
        ("margin", True, 3),
    ]
    assert found[0]["deletionTimestamp"] == now - 3 * DAY_MS
    assert dict(found[0]["partitionValues"]) == {"p": None}


def test_deletion_vectors_and_tags_are_carried():
    bench = Bench()
    vector = {
        "storageType": "u",
        "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA",
        "offset": 1,
        "sizeInBytes": 36,
        "cardinality": 2,
    }
    added = Add("x", {}, 5, 6, True, '{"numRecords":10}', {"t": None}, vector)
    removed = Remove("y", deletion_timestamp=bench.clock.wall_ms(), deletion_vector=vector)
    plain = Add("z", {}, 5, 6, data_change=True)
    bench.store.store(entry_path(1), encode_entry([added, removed, plain]))
    write_checkpoint(bench.log)
    bench.remove(0, 1)
    snapshot = read_snapshot(bench.log)
    x, z = sorted(
        (r for b in snapshot.live_batches() for r in b.to_pylist()), key=lambda r: r["path"]
    )
    assert x["deletionVector"] == vector
    assert (x["stats"], dict(x["tags"])) == ('{"numRecords":10}', {"t": None})
    assert (z["deletionVector"], z["tags"], z["stats"]) == (None, None, None)
    [y] = [r for b in snapshot.tombstone_batches() for r in b.to_pylist()]
    assert y["deletionVector"] == vector


def test_features_and_descriptions_are_carried(tmp_path):
    data = pa.table({"t": pa.array([0], pa.timestamp("us"))})
    write_deltalake(str(tmp_path), data, name="n", description="d")
    before = what_deltalake_sees(tmp_path)
    write_checkpoint(log_of(tmp_path))
    keep_only(tmp_path, 0)
    assert what_deltalake_sees(tmp_path) == before
    assert before[3].reader_features == ["timestampNtz"]


# --- how it is stored -----------------------------------------------------------------------------


def hint(store):
    return json.loads(store.objects[LAST_CHECKPOINT_PATH][0])


def test_the_hint_names_it_and_never_goes_back():
    table = Maintained()
    versions = [table.append() for _ in range(4)]
    written = write_checkpoint(table.log)
    assert hint(table.store) == {
        "version": versions[3],
        "size": 8 + 1 + 2,
        "sizeInBytes": written.size_bytes,
        "numOfAddFiles": 8,
    }
    assert write_checkpoint(table.log, versions[0]).is_ours
    assert hint(table.store)["version"] == versions[3]


@pytest.mark.parametrize("step", [refused, lost_before, lost_after])
def test_a_hint_that_cannot_be_written_is_no_failure(step):
    table = Maintained()
    table.append()
    table.store.script("put", step)
    assert write_checkpoint(table.log).is_ours
    assert checkpoint_path(2) in table.store.objects
    table.store.store(LAST_CHECKPOINT_PATH, b"not json")
    table.append()
    assert write_checkpoint(table.log).version == 3


def test_who_comes_second_leaves_it_as_it_is():
    table = Maintained()
    table.append()
    first = write_checkpoint(table.log)
    stored = dict(table.store.objects)
    second = write_checkpoint(table.worker())
    assert (first.is_ours, second.is_ours) == (True, False)
    assert table.store.objects == stored


@pytest.mark.parametrize("step", [lost_before, lost_after, nothing_landed])
def test_an_unanswered_put_is_sent_again(step):
    table = Maintained()
    table.append()
    table.store.script("put_if_absent", step)
    written = write_checkpoint(table.log)
    assert written.version == 2
    if step is not nothing_landed:
        assert checkpoint_path(2) in table.store.objects
        assert open_log(table.worker()).txns == table.state.txns


def test_a_store_that_never_answers():
    table = Maintained()
    table.append()
    table.store.script("put_if_absent", *[lost_before] * 50)
    with pytest.raises(StoreUnavailable):
        write_checkpoint(table.log)
    assert len(table.clock.slept_ms) == 7


def test_no_table_and_tables_that_are_refused():
    bench = Bench()
    features = Protocol(3, 7, (), ("domainMetadata",))
    bench.other(protocol=features)
    with pytest.raises(TableRefused, match="domainMetadata"):
        write_checkpoint(bench.log)
    assert not any("checkpoint" in path for path in bench.store.objects)
    bench.store.objects.clear()
    assert write_checkpoint(bench.log) is None


def test_an_older_checkpoint_that_goes_while_it_is_read():
    table = Maintained()
    for _ in range(3):
        table.append()
    write_checkpoint(table.log)
    table.append()
    table.store.script("get_range", *[lambda honest: honest()] * 2, gone)
    assert write_checkpoint(table.log).files == 8


def gone(honest):
    from delta_sink.errors import ObjectMissing

    raise ObjectMissing("cleaned up")


# --- memory ---------------------------------------------------------------------------------------

MANY = """
    import json, resource, sys
    from io import StringIO
    from delta_sink.adapters.localdisk import LocalDisk
    from delta_sink.adapters.logs import LogTelemetry
    from delta_sink.adapters.system import SystemClock, SystemEntropy
    from delta_sink.delta.checkpoint_write import write_checkpoint
    from delta_sink.delta.commit import Log
    from delta_sink.delta.logstore import ConditionalPutLog
    store = LocalDisk(sys.argv[1], fsync=False)
    telemetry = LogTelemetry(StringIO(), clock=SystemClock())
    log = Log(store, ConditionalPutLog(store), SystemClock(), SystemEntropy(), telemetry)
    written = write_checkpoint(log)
    try:
        # Not ru_maxrss: a child's begins with what its parent had when it was forked.
        lines = open("/proc/self/status").read().splitlines()
        [peak] = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")]
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"files": written.files, "peak_mib": peak}))
"""


def write_many(folder, count, *, entries):
    """Write a log of `count` files with statistics of 600 bytes; the files themselves are not there."""
    (folder / LOG).mkdir(parents=True)
    head = Maintained(properties={"delta.appendOnly": "false"}).store.objects[entry_path(0)][0]
    (folder / entry_path(0)).write_bytes(head)
    bounds = {"_kafka_topic": "orders", "_kafka_partition": 3, "_kafka_offset": 10**9}
    bounds |= {f"column_{n}": f"value {n} " * 3 for n in range(6)}
    for entry in range(entries):
        lines = []
        for number in range(entry * count // entries, (entry + 1) * count // entries):
            stats = {"numRecords": number, "minValues": bounds, "maxValues": bounds}
            day = f"2026-11-{1 + number % 30:02d}"
            add = {
                "path": f"day={day}/part-{number:020d}-{number:032x}.zstd.parquet",
                "partitionValues": {"day": day},
                "size": 40_000 + number % 999,
                "modificationTime": 1_795_000_000_000 + number,
                "dataChange": True,
                "stats": json.dumps(stats | {"nullCount": {"id": number % 7}}),
            }
            lines.append(json.dumps({"add": add}))
        (folder / entry_path(entry + 1)).write_text("\n".join(lines))


@pytest.mark.process
def test_a_hundred_thousand_files_take_less_than_300_mib(tmp_path):
    """From entries alone, and then from our own checkpoint and one entry more."""
    write_many(tmp_path, 100_000, entries=1_000)
    for files in (100_000, 100_001):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(MANY), str(tmp_path)],
            check=True,
            capture_output=True,
        )
        found = json.loads(done.stdout)
        print(found)
        assert found["files"] == files
        assert found["peak_mib"] < 300
        add = {"path": "x", "partitionValues": {"day": None}, "size": 1, "modificationTime": 0}
        line = json.dumps({"add": {**add, "dataChange": True}})
        (tmp_path / entry_path(1_001)).write_text(line)
    assert DeltaTable(str(tmp_path)).version() == 1_001
    assert len(DeltaTable(str(tmp_path)).file_uris()) == 100_001


def test_a_store_that_says_exists_and_has_nothing_is_asked_again():
    """A 409 of a lost race: neither a checkpoint nor an anchor is taken for written."""
    table = Maintained()
    table.append()
    table.store.script("put_if_absent", nothing_landed)
    written = write_checkpoint(table.log)
    assert written.is_ours
    assert f"_delta_log/{written.version:020d}.checkpoint.parquet" in table.store.objects
    table.store.script("put_if_absent", nothing_landed)
    write_anchor(table.log, written.version)
    assert anchor_path(written.version) in table.store.objects
