"""What only a folder can do wrong: flushes, kills, full disks, links that lie, odd names."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from delta_sink.adapters import localdisk
from delta_sink.adapters.localdisk import TEMPORARY_FOLDER, LocalDisk
from delta_sink.errors import ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists
from tests.contract.race import race_processes


@pytest.fixture
def calls(monkeypatch):
    """Record each call that makes things durable or visible, with the path it was made for."""
    seen = []
    for name in ("fsync", "link", "replace", "unlink"):
        real = getattr(os, name)

        def record(first, *rest, _name=name, _real=real):
            path = str(Path(f"/proc/self/fd/{first}").readlink()) if _name == "fsync" else first
            seen.append((_name, str(path)))
            return _real(first, *rest)

        monkeypatch.setattr(os, name, record)
    return seen


def test_everything_is_flushed_in_order_before_put_if_absent_returns(tmp_path, calls):
    root = str(tmp_path / "new" / "table")
    LocalDisk(root).put_if_absent("_delta_log/0.json", b"x")
    temporary = calls[0][1]
    assert temporary.startswith(f"{root}/{TEMPORARY_FOLDER}/")
    assert calls == [
        ("fsync", temporary),
        ("link", temporary),
        ("fsync", f"{root}/_delta_log"),
        ("fsync", root),
        ("fsync", str(tmp_path / "new")),
        *(("fsync", str(above)) for above in (tmp_path, *tmp_path.parents)),
        ("unlink", temporary),
    ]


def test_a_folder_above_the_table_that_may_not_be_opened_is_passed_over(tmp_path, monkeypatch):
    real = localdisk._flush_folder

    def flush(folder):
        if not folder.startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, "permission denied")
        real(folder)

    monkeypatch.setattr(localdisk, "_flush_folder", flush)
    store = LocalDisk(str(tmp_path / "t"))
    assert isinstance(store.put_if_absent("log/1", b"x"), Created)


def test_folders_that_were_flushed_once_are_not_flushed_again(tmp_path, calls):
    store = LocalDisk(str(tmp_path / "table"))
    store.put_if_absent("_delta_log/0.json", b"x")
    calls.clear()
    store.put_if_absent("_delta_log/1.json", b"x")
    assert [name for name, _ in calls] == ["fsync", "link", "fsync", "unlink"]


def test_a_folder_that_another_process_made_is_flushed_too(tmp_path, calls):
    (tmp_path / "table" / "day=1").mkdir(parents=True)
    LocalDisk(str(tmp_path / "table")).put("day=1/a", b"x")
    flushed = [path for name, path in calls if name == "fsync"]
    assert flushed[1:3] == [str(tmp_path / "table" / "day=1"), str(tmp_path / "table")]


def test_exists_is_as_durable_as_created(tmp_path, calls):
    store = LocalDisk(str(tmp_path))
    store.put_if_absent("a/1", b"x")
    calls.clear()
    assert LocalDisk(str(tmp_path)).put_if_absent("a/1", b"x") == Exists()
    assert ("fsync", str(tmp_path / "a")) in calls


def test_put_is_flushed_before_it_gets_its_name(tmp_path, calls):
    LocalDisk(str(tmp_path / "t")).put("a/b.parquet", b"x")
    names = [name for name, _ in calls]
    assert names[:3] == ["fsync", "replace", "fsync"]


def test_without_fsync_nothing_is_flushed(tmp_path, calls):
    store = LocalDisk(str(tmp_path / "t"), fsync=False)
    store.put("a", b"x")
    store.put_if_absent("b", b"x")
    store.delete("a")
    assert "fsync" not in [name for name, _ in calls]
    assert bytes(store.get("b").data) == b"x"


def test_nothing_temporary_stays_behind_or_is_listed(tmp_path):
    store = LocalDisk(str(tmp_path))
    store.put("a", b"x")
    store.put_if_absent("b", b"x")
    store.put_if_absent("b", b"y")
    folder = tmp_path / TEMPORARY_FOLDER
    assert list(folder.iterdir()) == []
    (folder / "0123").write_bytes(b"of a process that was killed")
    (tmp_path / "_delta_sink" / "probe").write_bytes(b"")
    assert [info.path for info in store.list("")] == ["_delta_sink/probe", "a", "b"]
    assert [info.path for info in store.list("_delta_sink")] == ["_delta_sink/probe"]
    assert store.list(TEMPORARY_FOLDER) == []


@pytest.mark.parametrize("path", ["../a", "a/../../b", "/etc/passwd", "a//b", "", ".", "a/", "a\0"])
def test_paths_that_leave_the_folder_are_a_programmers_error(tmp_path, path):
    store = LocalDisk(str(tmp_path / "t"))
    for call in (
        lambda: store.put(path, b"x"),
        lambda: store.put_if_absent(path, b"x"),
        lambda: store.get(path),
        lambda: store.delete(path),
    ):
        with pytest.raises(AssertionError, match="path"):
            call()
    assert sorted(tmp_path.rglob("*")) == []


REFUSED = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG]
UNAVAILABLE = [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ETIMEDOUT, errno.EINTR]


def failing(code: int):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["open", "write", "link", "makedirs"])
@pytest.mark.parametrize("code", [*REFUSED, *UNAVAILABLE])
def test_errors_before_the_name_is_given(tmp_path, monkeypatch, call, code):
    store = LocalDisk(str(tmp_path / "t"))
    monkeypatch.setattr(os, call, failing(code))
    with pytest.raises(StoreRefused if code in REFUSED else StoreUnavailable) as caught:
        store.put_if_absent("log/1", b"x")
    assert str(caught.value).startswith("cannot put log/1: ")
    assert str(caught.value).endswith(f"({errno.errorcode[code]})")
    monkeypatch.undo()
    assert store.list("") == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert isinstance(store.put_if_absent("log/1", b"x"), Created)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_folder_that_cannot_be_flushed_leaves_the_outcome_unknown(tmp_path, monkeypatch, code):
    store = LocalDisk(str(tmp_path / "t"))
    monkeypatch.setattr(localdisk, "_flush_folder", failing(code))
    with pytest.raises(StoreUnavailable, match="cannot flush the folder of log/1"):
        store.put_if_absent("log/1", b"x")
    with pytest.raises(StoreUnavailable):
        store.put_if_absent("log/1", b"x")
    with pytest.raises(StoreUnavailable):
        store.put("data", b"x")
    monkeypatch.undo()
    assert store.put_if_absent("log/1", b"x") == Exists()


def test_a_data_file_that_cannot_be_flushed_never_gets_its_name(tmp_path, monkeypatch):
    store = LocalDisk(str(tmp_path / "t"))
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(StoreUnavailable):
        store.put_if_absent("log/1", b"x")
    with pytest.raises(StoreUnavailable):
        store.put("data", b"x")
    assert store.list("") == []


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EIO, errno.ENOENT, errno.EPERM])
def test_a_link_that_worked_and_says_it_did_not(tmp_path, monkeypatch, code):
    real = os.link

    def lie(source, target):
        real(source, target)
        failing(code)()

    monkeypatch.setattr(os, "link", lie)
    store = LocalDisk(str(tmp_path))
    assert isinstance(store.put_if_absent("log/1", b"x"), Created)
    assert bytes(store.get("log/1").data) == b"x"


def test_a_link_that_worked_but_whose_name_is_gone_is_unknown(tmp_path, monkeypatch):
    real = os.link

    def lie(source, target):
        real(source, target)
        Path(target).rename(f"{target}.moved")
        failing(errno.EEXIST)()

    monkeypatch.setattr(os, "link", lie)
    with pytest.raises(StoreUnavailable, match="cannot say what became of log/1"):
        LocalDisk(str(tmp_path)).put_if_absent("log/1", b"x")


@pytest.mark.process
def test_a_file_larger_than_allowed_is_refused(tmp_path):
    script = """
import sys
from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.errors import StoreRefused
store = LocalDisk(sys.argv[1])
try:
    store.put_if_absent("log/1", bytes(3_000_000))
except StoreRefused as error:
    print(error)
store.put_if_absent("log/2", bytes(1000))
print([info.path for info in store.list("")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )
    assert done.stdout.splitlines() == [
        "cannot put log/1: the file is too large for this file system (EFBIG)",
        "['log/2']",
    ]


def test_a_path_through_a_file_is_refused(tmp_path):
    store = LocalDisk(str(tmp_path))
    store.put("a", b"x")
    with pytest.raises(StoreRefused, match="a part of the path is a file"):
        store.put("a/b", b"x")
    with pytest.raises(StoreRefused, match="a part of the path is a file"):
        store.put_if_absent("a/b", b"x")
    with pytest.raises(StoreRefused, match="too long"):
        store.put("n" * 300, b"x")
    with pytest.raises(ObjectMissing):
        store.get("a/b")


def test_names_that_are_not_utf_8_are_not_listed(tmp_path):
    (tmp_path / "good").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")).write_bytes(b"")
    assert [info.path for info in LocalDisk(str(tmp_path)).list("")] == ["good"]


def test_listing_does_not_read_folders_before_the_start(tmp_path, monkeypatch):
    store = LocalDisk(str(tmp_path), fsync=False)
    for path in ("a/1", "b/1", "b/2", "c/1"):
        store.put(path, b"")
    read = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: read.append(path) or real(path))
    assert [info.path for info in store.list("", "b/1")] == ["b/2", "c/1"]
    assert f"{tmp_path}/a" not in read


def test_a_listing_survives_what_goes_away_meanwhile(tmp_path, monkeypatch):
    store = LocalDisk(str(tmp_path), fsync=False)
    for number in range(5):
        store.put(f"d{number}/x", b"")
        store.put(f"f{number}", b"")
    real = os.scandir

    def vanish(path):
        found = real(path)
        if path == str(tmp_path):
            (tmp_path / "f2").unlink()
            (tmp_path / "d3" / "x").unlink()
            (tmp_path / "d3").rmdir()
        return found

    monkeypatch.setattr(os, "scandir", vanish)
    paths = [info.path for info in store.list("")]
    assert paths == ["d0/x", "d1/x", "d2/x", "d4/x", "f0", "f1", "f3", "f4"]


@pytest.mark.process
def test_processes_race_and_one_wins(tmp_path):
    setup = """
from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.ports import Created
store = LocalDisk(place)
def attempt(me, number):
    path = f"_delta_log/{number:020d}.json"
    return path if isinstance(store.put_if_absent(path, f"{me}".encode()), Created) else None
"""
    won = race_processes(setup, str(tmp_path / "t"), processes=4, races=200)
    store = LocalDisk(str(tmp_path / "t"))
    names = [f"_delta_log/{number:020d}.json" for number in range(200)]
    assert sorted(name for mine in won for name in mine) == names
    for me, mine in enumerate(won):
        for name in mine:
            assert bytes(store.get(name).data) == f"{me}".encode()
    assert [info.path for info in store.list("")] == names


@pytest.mark.process
def test_a_killed_process_leaves_whole_objects_only(tmp_path):
    script = """
import sys
from delta_sink.adapters.localdisk import LocalDisk
store = LocalDisk(sys.argv[1])
body = b"0123456789abcdef" * 131072
number = 0
while True:
    store.put_if_absent(f"log/{number}", body)
    print(number, flush=True)
    number += 1
"""
    for attempt in range(5):
        root = str(tmp_path / str(attempt))
        with subprocess.Popen(
            [sys.executable, "-c", script, root], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout.readline() == "0\n"
            time.sleep(0.02 + attempt * 0.013)
            process.kill()
            acknowledged = {f"log/{line.strip()}" for line in process.stdout} | {"log/0"}
        found = LocalDisk(root).list("")
        assert {info.size_bytes for info in found} == {2 * 1024 * 1024}
        assert acknowledged <= {info.path for info in found}
        assert len(found) <= len(acknowledged) + 1
