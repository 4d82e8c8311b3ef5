"""Files that are written as a stream: into room of their own, whatever size they come to."""

import os
import platform
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_sink.delta.file_stream import FileStream, Room, Weight
from delta_sink.delta.parquet import FileLayout
from delta_sink.delta.schema import Field, TableSchema

SCHEMA = TableSchema((Field("id", "long"), Field("text", "string")))
LAYOUT = FileLayout(SCHEMA)


def rows(first, count):
    numbers = range(first, first + count)
    texts = [f"{number * 2_654_435_761 % 2**64:016x}" * 4 for number in numbers]
    return pa.table({"id": list(numbers), "text": texts}, schema=SCHEMA.arrow)


def test_room_holds_what_was_written_in_order():
    room = Room(8)
    assert room.writable()
    assert [room.write(part) for part in (b"abc", memoryview(b"defgh"), b"")] == [3, 5, 0]
    assert room.tell() == 8
    assert room.taken() == b"abcdefgh"


def test_room_grows_where_it_is_too_small():
    room = Room(4)
    parts = [bytes([number]) * 1_000 for number in range(50)]
    for part in parts:
        room.write(part)
    assert room.tell() == 50_000
    assert room.taken() == b"".join(parts)


def test_room_takes_any_buffer_by_its_bytes():
    room = Room(64)
    assert room.write(pa.py_buffer(b"12345678")) == 8
    assert room.write(memoryview(bytearray(16)).cast("q")) == 16
    assert room.taken() == b"12345678" + bytes(16)


@pytest.mark.parametrize("target", [1, 100_000, 64_000_000])
def test_a_file_of_another_size_than_wanted_is_whole(target):
    stream = FileStream(LAYOUT, (), Weight(), target)
    parts = [rows(first, 20_000) for first in range(0, 200_000, 20_000)]
    for part in parts:
        stream.write(part, part.nbytes)
    file = stream.finish(tag=3, unique_id="0" * 32)
    assert file.rows == 200_000
    assert file.size_bytes > 1_000_000
    found = pq.read_table(pa.BufferReader(file.data))
    assert found.num_rows == 200_000
    assert found["id"].to_pylist() == list(range(200_000))
    assert found["text"].combine_chunks() == pa.concat_tables(parts)["text"].combine_chunks()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="jemalloc is asked for with glibc")
def test_the_program_gives_arrow_the_allocator_that_keeps_little():
    look = "import delta_sink.cli, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    env = {name: value for name, value in os.environ.items() if "ARROW" not in name}
    done = subprocess.run(
        [sys.executable, "-c", look],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=env,
    )
    assert done.stdout.strip() == "jemalloc"
    assert done.stderr == ""


def test_the_program_loads_no_client_of_arrow_for_object_stores():
    look = "import sys, delta_sink.cli, delta_sink.cli_writer; print(sys.modules['pyarrow.fs'], sys.modules['pyarrow._s3fs'])"
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("<module 'pyarrow.fs'")
    assert done.stdout.strip().endswith("None")
