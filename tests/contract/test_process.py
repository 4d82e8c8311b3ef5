"""A worker's process: pyarrow does not import pandas, and the collector runs seldom."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

SCRIPT = """
import gc, sys
from delta_sink.adapters.process import GC_OBJECTS, prepare_process
if {prepared}:
    prepare_process()
    assert gc.get_threshold()[0] == GC_OBJECTS
import pyarrow as pa
import pyarrow.compute as pc
assert pc.less(pa.array([1, 2]), 2).to_pylist() == [True, False]
print("pandas" in sys.modules)
import pandas
assert pandas.DataFrame({{"a": [1]}}).shape == (1, 1)
"""


@pytest.mark.parametrize(("prepared", "imported"), [(True, "False"), (False, "True")])
def test_pandas_stays_out_of_a_prepared_process(prepared, imported):
    """Without the preparation pyarrow imports it: where that ends, the preparation can go."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(prepared=prepared)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [imported]


def test_a_writer_loads_no_other_command():
    others = {f"delta_sink.{name}" for name in ("maintenance", "audit", "seek", "overview", "demo")}
    script = (
        f"import sys, delta_sink.cli, delta_sink.cli_writer; print(*{others} & {{*sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


def test_commands_load_large_libraries_only_where_they_need_them():
    """librdkafka is 5 MiB and deltalake 60: a compactor that runs `--once` needs neither."""
    script = "import sys, delta_sink.cli_maintenance; print(*{'confluent_kafka', 'deltalake'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
