"""Checkpoints that others wrote, read for what a writer needs: protocol, metadata, txns."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.delta.checkpoint import FOOTER_BYTES, read_checkpoint
from delta_sink.delta.commit import Log, commit, open_log
from delta_sink.delta.logstore import Checkpoint, ConditionalPutLog, listing_of
from delta_sink.errors import TableRefused
from delta_sink.ports import ObjectInfo
from delta_sink.testing import World
from delta_sink.testing.fake_store import FakeStore
from tests.unit.scripted import Bench, ScriptedStore

LOG = "_delta_log/"


def log_of(folder):
    bench = Bench()
    store = LocalDisk(str(folder))
    return Log(store, ConditionalPutLog(store), bench.clock, bench.log.entropy, bench.telemetry)


def append(folder, number, **options):
    data = pa.table({"a": [number], "day": ["d"]})
    txn = CommitProperties(app_transactions=[Transaction(f"app{number % 7}", number)])
    write_deltalake(str(folder), data, mode="append", commit_properties=txn, **options)


def as_deltalake_sees_it(folder):
    table = DeltaTable(str(folder))
    names = [f"app{number}" for number in range(7)]
    found = {name: table.transaction_version(name) for name in names}
    return table, {name: version for name, version in found.items() if version is not None}


@pytest.mark.parametrize("properties", [{}, {"delta.appendOnly": "true"}])
@pytest.mark.parametrize("is_cleaned_up", [True, False])
def test_a_checkpoint_by_deltalake_reads_as_deltalake_reads_it(tmp_path, properties, is_cleaned_up):
    for number in range(12):
        append(tmp_path, number, configuration=properties, partition_by=["day"])
    DeltaTable(str(tmp_path)).create_checkpoint()
    append(tmp_path, 12)
    if is_cleaned_up:
        for version in range(11):
            (tmp_path / LOG / f"{version:020d}.json").unlink()
    state = open_log(log_of(tmp_path))
    table, txns = as_deltalake_sees_it(tmp_path)
    assert (state.version, state.txns) == (table.version(), txns)
    assert state.metadata.id == str(table.metadata().id)
    assert state.metadata.configuration == table.metadata().configuration == properties
    assert state.metadata.partition_columns == ("day",)
    assert state.metadata.schema_string == table.schema().to_json()
    assert state.protocol.min_writer_version == table.protocol().min_writer_version


def test_a_checkpoint_with_features_by_deltalake(tmp_path):
    data = pa.table({"t": pa.array([0], pa.timestamp("us"))})
    write_deltalake(str(tmp_path), data)
    DeltaTable(str(tmp_path)).create_checkpoint()
    (tmp_path / LOG / f"{0:020d}.json").unlink()
    state = open_log(log_of(tmp_path))
    assert state.protocol.reader_features == ("timestampNtz",)
    assert state.protocol.writer_features == ("timestampNtz",)
    assert state.e_tag == ""


def test_we_go_on_behind_a_checkpoint_by_deltalake(tmp_path):
    for number in range(3):
        append(tmp_path, number)
    DeltaTable(str(tmp_path)).create_checkpoint()
    for version in range(3):
        (tmp_path / LOG / f"{version:020d}.json").unlink()
    log = log_of(tmp_path)
    plan = Bench().plan()
    state = commit(log, open_log(log), plan)
    assert state.version == 3
    assert DeltaTable(str(tmp_path)).transaction_version("mine") == 10


# --- in parts, and of the second version ----------------------------------------------------------


def parts_of(folder, count):
    """Cut deltalake's checkpoint into several files, row by row in turn."""
    [name] = [path.name for path in (folder / LOG).glob("*.checkpoint.parquet")]
    table = pq.read_table(folder / LOG / name)
    (folder / LOG / name).unlink()
    version = name.split(".")[0]
    for part in range(count):
        rows = table.take(list(range(part, table.num_rows, count)))
        path = f"{version}.checkpoint.{part + 1:010d}.{count:010d}.parquet"
        pq.write_table(rows, folder / LOG / path)


def test_a_checkpoint_in_parts(tmp_path):
    for number in range(9):
        append(tmp_path, number)
    DeltaTable(str(tmp_path)).create_checkpoint()
    (tmp_path / LOG / "_last_checkpoint").unlink()
    parts_of(tmp_path, 3)
    for version in range(8):
        (tmp_path / LOG / f"{version:020d}.json").unlink()
    state = open_log(log_of(tmp_path))
    assert (state.version, state.txns) == (8, as_deltalake_sees_it(tmp_path)[1])


def test_a_checkpoint_of_the_second_version_in_parquet(tmp_path):
    """Its main file holds everything but the files, which stand in sidecars."""
    for number in range(4):
        append(tmp_path, number)
    DeltaTable(str(tmp_path)).create_checkpoint()
    [name] = [path.name for path in (tmp_path / LOG).glob("*.checkpoint.parquet")]
    found = pq.read_table(tmp_path / LOG / name)
    sidecar = pa.struct({"path": pa.string(), "sizeInBytes": pa.int64()})
    extra = pa.array([{"path": "x.parquet", "sizeInBytes": 1}] * found.num_rows, sidecar)
    main = found.drop_columns(["add", "remove"]).append_column("sidecar", extra)
    uuid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
    (tmp_path / LOG / name).unlink()
    pq.write_table(main, tmp_path / LOG / f"{3:020d}.checkpoint.{uuid}.parquet")
    for version in range(3):
        (tmp_path / LOG / f"{version:020d}.json").unlink()
    state = open_log(log_of(tmp_path))
    assert (state.version, state.txns) == (3, {f"app{n}": n for n in range(4)})


def test_listing_knows_checkpoints_from_everything_else():
    names = [
        f"{4:020d}.json",
        f"{4:020d}.crc",
        f"{4:020d}.checkpoint.parquet",
        f"{4:020d}.checkpoint.parquet.tmp",
        f"{5:020d}.checkpoint.{1:010d}.{2:010d}.parquet",
        f"{5:020d}.checkpoint.{1:010d}.{1:010d}.parquet",
        f"{6:020d}.checkpoint.{2:010d}.{2:010d}.parquet",
        f"{7:020d}.checkpoint.0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0.json",
        f"{1:020d}.{4:020d}.compacted.json",
        "_last_checkpoint",
        "_sidecars/0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0.parquet",
        "4.json",
    ]
    listing = listing_of([ObjectInfo(LOG + name, 1, 0, "e") for name in names])
    assert list(listing.entries) == [4]
    assert [checkpoint.version for checkpoint in listing.checkpoints] == [4, 5, 7]


# --- how it is read -------------------------------------------------------------------------------


def large_checkpoint(rows, row_group_size):
    """Return a checkpoint with far more files than txns, in several row groups."""
    adds = [{"path": f"{number:0200d}"} for number in range(rows)]
    txns = [{"appId": f"app{n}", "version": n} if n % 50 == 0 else None for n in range(rows)]
    protocol = [None] * (rows - 1) + [{"minReaderVersion": 1, "minWriterVersion": 2}]
    metadata = [{"id": "t", "schemaString": "{}"}] + [None] * (rows - 1)
    table = pa.table({"add": adds, "txn": txns, "protocol": protocol, "metaData": metadata})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_size, use_dictionary=["txn"])
    return sink.getvalue().to_pybytes()


def stored(data):
    store = ScriptedStore()
    path = f"{LOG}{9:020d}.checkpoint.parquet"
    store.store(path, data)
    return store, Checkpoint(9, tuple(store.list(LOG)))


@pytest.mark.parametrize("row_group_size", [100, 1_000, 100_000])
def test_only_the_footer_and_the_wanted_columns_are_fetched(row_group_size):
    data = large_checkpoint(5_000, row_group_size)
    store, checkpoint = stored(data)
    fetched = []
    get_range = store.get_range
    store.get_range = lambda path, offset, length: (
        fetched.append(length),
        get_range(path, offset, length),
    )[1]
    protocol, metadata, txns = read_checkpoint(store, checkpoint)
    assert txns == {f"app{n}": n for n in range(0, 5_000, 50)}
    assert (protocol.min_writer_version, metadata.id) == (2, "t")
    groups = -(-5_000 // row_group_size)
    assert len(fetched) <= 2 + 2 * groups
    if row_group_size > 1_000:
        assert sum(fetched) < len(data) / 2 + FOOTER_BYTES


def test_a_footer_larger_than_what_is_fetched_at_first():
    data = large_checkpoint(3_000, 4)
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    assert footer_bytes > FOOTER_BYTES
    store, checkpoint = stored(data)
    assert len(read_checkpoint(store, checkpoint)[2]) == 60


def test_ports_are_called_from_the_job_alone():
    """Arrow reads from threads of its own; in a world a port call from there is an error."""
    with World(1) as world:
        store, host = FakeStore(world), world.host("w")
        path = f"{LOG}{9:020d}.checkpoint.parquet"
        store.write(path, large_checkpoint(2_000, 500))
        [info] = store.infos("_delta_log", None)
        client = store.client(host)
        task = world.spawn(host, lambda: read_checkpoint(client, Checkpoint(9, (info,))))
        assert world.run() == "done"
        assert len(task.result[2]) == 40


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: data[:-20],
        lambda data: b"not parquet at all" * 9,
        lambda data: data[:4] + b"\0" * 3_000 + data[3_004:],
        lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(damage):
    store, checkpoint = stored(damage(large_checkpoint(50, 10)))
    with pytest.raises(TableRefused, match=r"checkpoint"):
        read_checkpoint(store, checkpoint)


def test_a_checkpoint_without_protocol_is_damaged():
    table = pa.table({"txn": [{"appId": "a", "version": 1}]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store, checkpoint = stored(sink.getvalue().to_pybytes())
    with pytest.raises(TableRefused, match="checkpoint 9 has no protocol or no metadata"):
        read_checkpoint(store, checkpoint)
