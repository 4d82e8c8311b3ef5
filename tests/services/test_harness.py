"""The harness itself: what it starts ends, and what it installs is what was pinned."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.services import install
from tests.services.processes import NativeServer, ServerFailed, free_port

ROOT = Path(__file__).parent.parent.parent

# A server that has a child, ignores SIGTERM where it is told to, and says when it is there.
SERVER = """
import pathlib, signal, subprocess, sys, time
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def server_in(folder, mood="obedient"):
    ready = folder / "child.pid"
    return NativeServer(
        "sleeper",
        [sys.executable, "-c", SERVER, str(ready), mood],
        folder=folder,
        ready=lambda: ready.exists() and ready.read_text() != "",
        ready_s=20,
    )


def assert_gone(*pids):
    deadline_s = time.monotonic() + 25
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline_s, pids
        time.sleep(0.05)


def _lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.process
@pytest.mark.parametrize("how", ["stop", "kill", "close"])
def test_a_server_ends_with_everything_that_it_started(tmp_path, how):
    server = server_in(tmp_path)
    server.start()
    child = int((tmp_path / "child.pid").read_text())
    assert _lives(server.pid)
    assert _lives(child)
    getattr(server, how)()
    assert not server.is_running
    assert_gone(server.pid, child)
    server.close()


@pytest.mark.process
def test_a_server_that_is_stopped_ends_too(tmp_path):
    server = server_in(tmp_path)
    server.start()
    server.signal("STOP")
    server.close()
    assert_gone(server.pid)


@pytest.mark.process
@pytest.mark.parametrize("mood", ["obedient", "stubborn"])
def test_servers_end_when_the_run_is_killed(tmp_path, mood):
    program = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.services.test_harness import server_in
server = server_in(Path({str(tmp_path)!r}), {mood!r})
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as run:
        pid = int(run.stdout.readline())
        child = int((tmp_path / "child.pid").read_text())
        assert _lives(pid)
        run.send_signal(signal.SIGKILL)
    assert_gone(pid, child)


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_server_ends_when_even_its_guard_is_killed(tmp_path):
    server = server_in(tmp_path)
    server.start()
    os.kill(psutil.Process(server.pid).ppid(), signal.SIGKILL)
    assert_gone(server.pid)
    server.close()
    psutil.Process(int((tmp_path / "child.pid").read_text())).kill()


@pytest.mark.process
def test_a_server_that_ends_at_once_fails_with_its_log(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('the port is taken')"]
    server = NativeServer("early", command, folder=tmp_path, ready=lambda: False)
    with pytest.raises(ServerFailed, match="early ended at its start:\nthe port is taken"):
        server.start()
    missing = NativeServer("none", ["/no/such/program"], folder=tmp_path, ready=lambda: False)
    with pytest.raises(ServerFailed, match="none could not be started"):
        missing.start()


@pytest.mark.process
def test_a_server_that_is_not_ready_in_time_is_ended(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = NativeServer("late", command, folder=tmp_path, ready=lambda: False, ready_s=0.2)
    with pytest.raises(ServerFailed, match="late was not ready"):
        server.start()
    assert_gone(server.pid)


def test_ports_are_free_and_differ():
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(15_000 <= port < 30_000 for port in ports)


# --- installing ---------------------------------------------------------------------------------


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """Return a folder of pins of one file, and make the cache a folder of the test."""
    monkeypatch.setenv(install.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(install, "PINNED", tmp_path / "pinned")
    folder = tmp_path / "pinned" / "tool"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(b"a").hexdigest()
    (folder / "files.sha256").write_text(f"{digest}  a.jar\n")
    return folder


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"a.jar": "a"}, None),
        ({"a.jar": "b"}, "SHA-256"),
        ({}, "is missing"),
        ({"a.jar": "a", "b.jar": "b"}, "was not asked for"),
    ],
)
def test_what_comes_is_compared_with_its_pins(tmp_path, pinned, files, complaint):
    came = tmp_path / "came"
    came.mkdir()
    for name, text in files.items():
        (came / name).write_text(text)
    if complaint is None:
        install.verify(came, pinned / "files.sha256")
    else:
        with pytest.raises(install.InstallFailed, match=complaint):
            install.verify(came, pinned / "files.sha256")


def test_of_several_at_once_one_installs(pinned):
    installed, found = [], []

    def work():
        with install._installation("tool") as (folder, fresh):
            if fresh is not None:
                time.sleep(0.2)
                (fresh / "a.jar").write_text("a")
                installed.append(folder)
        found.append((folder / "a.jar").read_text())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(installed) == 1
    assert found == ["a"] * 4


def test_a_changed_pin_is_a_new_installation_and_a_failed_one_is_none(pinned):
    places = []
    for round_ in range(2):
        with install._installation("tool") as (folder, fresh):
            assert fresh is not None
            places.append(folder)
        (pinned / "files.sha256").write_text(f"changed {round_}")
    assert len(set(places)) == 2
    with pytest.raises(RuntimeError), install._installation("tool") as (folder, fresh):
        raise RuntimeError
    assert not folder.exists()
    assert not fresh.exists()


def test_a_missing_program_is_named(pinned, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(install.CannotInstall, match=r"Kafka needs a JDK .* install openjdk-17"):
        install.kafka_jars()
    (pinned.parent / "minio").mkdir()
    with pytest.raises(install.CannotInstall, match=r"MinIO is built with Go .* install Go"):
        install.minio_binary()
    monkeypatch.setattr(install, "require_java", lambda _what: None)
    (pinned.parent / "kafka").mkdir()
    with pytest.raises(install.CannotInstall, match="no mvn: install maven"):
        install.kafka_jars()
