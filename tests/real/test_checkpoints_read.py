"""Checkpoints of ours, read by others: equal files, rows and txns before and after.

deltalake, DuckDB's Delta extension (delta-kernel-rs) and Delta Kernel for Java each say what is in
a table while all its entries are there. Then comes our checkpoint, every entry below it goes, so
that nobody can do without it, and they must say the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.adapters.logs import LogTelemetry
from delta_sink.adapters.system import SystemClock, SystemEntropy
from delta_sink.delta.checkpoint_write import write_checkpoint
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog
from tests.services.install import CannotInstall, delta_kernel, python_readers

pytestmark = pytest.mark.process
SPARK_TABLE = Path(__file__).parents[1] / "data" / "spark_deletion_vectors" / "table"
APPS = ("spark-load", "sink/orders@id/0", "nobody")
DUCKDB = """
import glob, json, sys
sys.path.insert(0, sys.argv[1])
import duckdb
[extension] = glob.glob(f"{sys.argv[1]}/duckdb_ext/extensions/*/*/delta.duckdb_extension")
duckdb.execute(f"LOAD '{extension}'")
table, where = sys.argv[2:]
[files] = duckdb.execute(f"SELECT list(data_file) FROM delta_list_files('{table}')").fetchone()
rows = duckdb.execute(f"SELECT count(*), sum(id) FROM delta_scan('{table}') WHERE {where}")
print(json.dumps({"files": files, "rows": list(map(int, rows.fetchone()))}))
"""


def the_installed(program):
    """Return it, or skip the test where this machine lacks what it is installed with."""
    try:
        return program()
    except CannotInstall as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def printed(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return json.loads(done.stdout.splitlines()[-1])


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


def by_deltalake(table: Path, where: str) -> dict:
    found = DeltaTable(str(table))
    actions = pa.table(found.get_add_actions())
    sizes = zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)
    query = f"SELECT count(*), sum(id) FROM t WHERE {where}"
    rows = pa.table(QueryBuilder().register("t", found).execute(query).read_all())
    return {
        "version": found.version(),
        "txns": {app: found.transaction_version(app) for app in APPS},
        "files": sorted(f"{name_of(path)} {size}" for path, size in sizes),
        "rows": [column.to_pylist()[0] for column in rows.columns],
    }


def by_duckdb(table: Path, where: str) -> dict:
    folder = the_installed(python_readers)
    found = printed([sys.executable, "-c", DUCKDB, str(folder), str(table), where])
    return {"files": sorted(map(name_of, found["files"])), "rows": found["rows"]}


def by_kernel(table: Path, reads: str) -> dict:
    return printed([*the_installed(delta_kernel), str(table), reads, *APPS])


def compare(table: Path, where: str = "true", *, reads: str = "rows") -> dict:
    """Return what deltalake says of a table; the others say the same."""
    told = by_deltalake(table, where)
    duck = by_duckdb(table, where)
    assert duck["files"] == sorted(each.partition(" ")[0] for each in told["files"])
    assert duck["rows"] == told["rows"]
    kernel = by_kernel(table, reads)
    assert kernel["version"] == told["version"]
    assert kernel["txns"] == told["txns"]
    assert kernel["files"] == len(told["files"])
    text = "\n".join(told["files"]).encode()
    assert kernel["digest"] == hashlib.sha256(text).hexdigest()
    if reads == "rows":
        assert [kernel["rows"], kernel["sum"]] == told["rows"]
    return told


def checkpointed(table: Path) -> None:
    """Write our checkpoint of the head, and remove every entry below it."""
    store = LocalDisk(table, fsync=False)
    clock = SystemClock()
    telemetry = LogTelemetry(StringIO(), clock=clock)
    log = Log(store, ConditionalPutLog(store), clock, SystemEntropy(), telemetry)
    written = write_checkpoint(log)
    assert written is not None
    assert written.is_ours
    for entry in (table / "_delta_log").glob("*.json"):
        if int(entry.stem) < written.version:
            entry.unlink()
    for checksum in (table / "_delta_log").glob("*.crc"):
        checksum.unlink()  # Delta Kernel would take protocol and metadata from there


def commit(table: Path, *actions: dict) -> None:
    log = table / "_delta_log"
    version = max((int(entry.stem) for entry in log.glob("*.json")), default=-1) + 1
    lines = [json.dumps(action) for action in actions]
    (log / f"{version:020d}.json").write_text("\n".join(lines))


def data_file(table: Path, name: str, ids: list[int], day: str) -> dict:
    path = table / f"day={day}" / name
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": pa.array(ids, pa.int64())}), path)
    return add_of(f"day={day}/{name}", path.stat().st_size, len(ids), day)


def add_of(path: str, size: int, rows: int, day: str) -> dict:
    return {
        "path": path,
        "partitionValues": {"day": day},
        "size": size,
        "modificationTime": 1_795_000_000_000,
        "dataChange": True,
        "stats": json.dumps({"numRecords": rows}),
    }


def new_table(table: Path) -> None:
    (table / "_delta_log").mkdir(parents=True)
    columns = [("id", "long"), ("day", "date")]
    fields = [{"name": n, "type": t, "nullable": True, "metadata": {}} for n, t in columns]
    metadata = {
        "id": "e2bb29c6-7a8e-4df8-9d03-0d1d2f34a1a5",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
        "partitionColumns": ["day"],
        "configuration": {},
        "createdTime": 1_795_000_000_000,
    }
    protocol = {"minReaderVersion": 1, "minWriterVersion": 2}
    commit(table, {"protocol": protocol}, {"metaData": metadata})


def test_a_partitioned_table(tmp_path):
    new_table(tmp_path)
    days = ("2026-11-01", "2026-11-02")
    for number in range(12):
        add = data_file(tmp_path, f"{number}.parquet", [number, number + 100], days[number % 2])
        txn = {"appId": APPS[1], "version": 10 * number}
        commit(tmp_path, {"txn": txn}, {"add": add})
    gone = {"path": "day=2026-11-01/0.parquet", "deletionTimestamp": 1_795_000_000_000}
    commit(tmp_path, {"remove": {**gone, "dataChange": True}})
    before = compare(tmp_path)
    assert (len(before["files"]), before["rows"][0], before["txns"][APPS[1]]) == (11, 22, 110)
    checkpointed(tmp_path)
    assert compare(tmp_path) == before
    commit(tmp_path, {"add": data_file(tmp_path, "last.parquet", [7], days[0])})
    assert compare(tmp_path)["rows"] == [before["rows"][0] + 1, before["rows"][1] + 7]


def test_a_table_with_deletion_vectors_of_spark(tmp_path):
    table = tmp_path / "table"
    shutil.copytree(SPARK_TABLE, table)
    before = compare(table)
    assert before["rows"] == [456, 1_024_494]
    assert before["txns"] == {APPS[0]: 3, APPS[1]: None, APPS[2]: None}
    checkpointed(table)
    assert compare(table) == before
    commit(table, {"txn": {"appId": APPS[1], "version": 5}})
    after = compare(table)
    assert after == before | {"version": 7, "txns": before["txns"] | {APPS[1]: 5}}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_hundred_thousand_files(tmp_path):
    """Only the rows of one table partition are there to be read; of the others only the log."""
    new_table(tmp_path)
    days = [f"2026-11-{day:02d}" for day in range(1, 31)]
    first = data_file(tmp_path, "first.parquet", [1, 2, 3], days[0])
    for entry in range(100):
        actions = []
        for number in range(entry * 1_000, (entry + 1) * 1_000):
            day, name = days[number % 30], f"{number:06d}.parquet"
            if day == days[0]:
                os.link(tmp_path / first["path"], tmp_path / f"day={day}" / name)
            actions.append({"add": add_of(f"day={day}/{name}", first["size"], 3, day)})
        commit(tmp_path, {"txn": {"appId": APPS[1], "version": entry}}, *actions)
    where = f"day = DATE '{days[0]}'"
    before = compare(tmp_path, where, reads="files")
    assert (len(before["files"]), before["rows"]) == (100_000, [10_002, 20_004])
    checkpointed(tmp_path)
    assert compare(tmp_path, where, reads="files") == before
