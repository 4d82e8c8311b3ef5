"""A mounted secret changes: each worker stops cleanly, and the next one begins with the new one."""

from __future__ import annotations

import json
import time

import pytest

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.adapters.secret_files import SecretFiles, SecretWatch
from tests.process.sinks import Sink, produce, values, wait_until, write_config

OLD, NEW = "the first key of the sink", "the second key of the sink"


class Mount:
    """A Secret as Kubernetes mounts it: links into a folder that is replaced whole."""

    def __init__(self, folder):
        self.folder = folder
        self.versions = 0
        folder.mkdir()
        self.write(OLD)
        (folder / "key").symlink_to("..data/key")

    def write(self, text):
        self.versions += 1
        fresh = self.folder / f"..v{self.versions}"
        fresh.mkdir()
        (fresh / "key").write_text(text + "\n")
        link = self.folder / "..data_tmp"
        link.symlink_to(fresh.name)
        link.replace(self.folder / "..data")


@pytest.mark.process
def test_workers_stop_when_a_mounted_secret_changes_and_go_on_with_the_new_one(tmp_path):
    mount = Mount(tmp_path / "secret")
    with EmbeddedBroker({}) as broker:
        for topic, partitions in (("orders", 1), ("ops.control", 1), ("ops.status", 1)):
            broker.create_topic(topic, partitions)
        reference = f"${{dir:{mount.folder}:key}}"
        control = {"topic": "ops.control", "status_topic": "ops.status"}
        config = write_config(
            tmp_path,
            broker.bootstrap_servers,
            source={"topics": ["orders"]},
            control={**control, "signing_keys": {"k1": reference}},
            flush={"interval_ms": 60_000},
        )
        with Sink(tmp_path, config) as sink:
            produce(broker.bootstrap_servers, "orders", values(range(20)))
            workers = [sink.start(role=role) for role in ("writer", "compactor")]
            for worker in workers:
                wait_until(
                    lambda w=worker: w.events("partitions_assigned"), 40, "it has partitions"
                )
            mount.write(OLD)  # mounted anew, and the same: nothing changes
            time.sleep(12)
            assert [worker.process.poll() for worker in workers] == [None, None]
            mount.write(NEW)
            assert [worker.process.wait(60) for worker in workers] == [0, 0]
            for worker in workers:
                (event,) = worker.events("secret_changed")
                assert event["reason"] == str(mount.folder / "key")
                assert worker.events("worker_stopped")
                log = worker.log_path.read_text()
                assert OLD not in log
                assert NEW not in log
            assert sink.committed_records() == 20, "what it held was committed before it left"

            # A command signed with the new key is obeyed: the worker that was started has it.
            compactor = sink.start(role="compactor")
            done = sink.run("control", "compact", "--wait", "--timeout", "60", "--json")
            assert json.loads(done.stdout.splitlines()[-1])["state"] == "succeeded", done.stderr
            assert compactor.stop() == 0


class Heard:
    """Keeps the events that it gets."""

    def __init__(self):
        self.events = []

    def event(self, name, level="info", **fields):
        self.events.append((name, fields))


def watched(files, folder):
    heard, stops = Heard(), []
    return SecretWatch(files, lambda: stops.append(1), heard, look_s=0.02), heard, stops


def test_a_change_is_told_once(tmp_path):
    path = tmp_path / "key"
    path.write_text("a")
    files = SecretFiles()
    assert files.is_empty
    assert files.read(str(path)) == "a"
    watch, heard, stops = watched(files, tmp_path)
    path.write_text("b")
    wait_until(lambda: stops, 5, "the stop")
    path.write_text("c")
    time.sleep(0.2)
    watch.close()
    assert stops == [1]
    assert heard.events == [("secret_changed", {"reason": str(path)})]


def test_a_file_that_is_being_written_or_away_is_waited_for(tmp_path):
    path = tmp_path / "key"
    path.write_text("a")
    files = SecretFiles()
    files.read(str(path))
    assert files.changed() == {}
    path.unlink()
    assert files.changed() == {}
    path.write_text("half")
    half = files.changed()
    path.write_text("whole")
    assert set(half) == set(files.changed()) == {str(path)}
    assert half != files.changed(), "a look that differs from the one before tells nothing yet"
    files.note(str(tmp_path / "nowhere"))
    assert set(files.changed()) == {str(path)}
