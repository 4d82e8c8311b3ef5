"""One scan of a whole table in this process, which has loaded its engine before: seconds and rows.

`python -m benchmarks.scan ENGINE TABLE [FOLDER]` prints JSON. The time is from nothing known of the
table to its count of rows and the sum of its column `id`; what else deltalake is asked afterwards
does not count. FOLDER is where DuckDB is installed, with its extension for Delta.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final

DELTALAKE: Final = "deltalake"
DUCKDB: Final = "DuckDB"

Scan = Callable[[], dict[str, float]]


def _deltalake(table: str) -> Scan:
    import pyarrow.compute as pc  # only this engine is to be loaded
    import pyarrow.dataset  # noqa: F401  # deltalake loads it when it reads
    from deltalake import DeltaTable

    def scan() -> dict[str, float]:
        begun_s = perf_counter()
        opened = DeltaTable(table)
        ids = opened.to_pyarrow_table(columns=["id"])["id"]
        total = pc.sum(ids).as_py() or 0
        seconds = perf_counter() - begun_s
        files, version = len(opened.file_uris()), opened.version()
        return {
            "seconds": seconds,
            "rows": len(ids),
            "sum": total,
            "files": files,
            "version": version,
        }

    return scan


def _duckdb(table: str, folder: str) -> Scan:
    sys.path.insert(0, folder)
    import duckdb  # from that folder

    [extension] = Path(folder).glob("duckdb_ext/extensions/*/*/delta.duckdb_extension")
    duckdb.execute(f"LOAD '{extension}'")

    def scan() -> dict[str, float]:
        begun_s = perf_counter()
        found = duckdb.execute(f"SELECT count(*), coalesce(sum(id), 0) FROM delta_scan('{table}')")
        rows, total = found.fetchone()
        return {"seconds": perf_counter() - begun_s, "rows": int(rows), "sum": int(total)}

    return scan


def main() -> None:
    """Scan once and print what it took."""
    engine, table, *folder = sys.argv[1:]
    scan = _duckdb(table, *folder) if engine == DUCKDB else _deltalake(table)
    print(json.dumps(scan()))


if __name__ == "__main__":
    main()
