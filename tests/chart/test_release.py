"""The rendered release, run as processes: what the manifests say, and nothing else, is done.

Commands, arguments, environment, probes and the mounted file are read from the objects. Only the
places differ: a folder of the test stands for the root of the container.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.chart.rendering import NAME, one, whole_values
from tests.process.sinks import produce, wait_until
from tests.process.stores import BUCKET, REGION, s3_server
from tests.services.processes import free_port

pytestmark = pytest.mark.process

SECRET = "planted-secret-of-the-store"
SCHEDULE = {"name": "hourly", "schedule": "0 * * * *", "command": ["compact"]}


class Release:
    """The objects of a release, and what runs of it."""

    def __init__(self, folder: Path, objects: list[dict]) -> None:
        self.folder = folder
        self.objects = objects
        self.processes: list[subprocess.Popen[bytes]] = []
        config = one(objects, "ConfigMap", f"{NAME}-config")
        for path in ("etc/delta-sink", "var/lib/delta-sink"):
            (folder / path).mkdir(parents=True)
        for name, text in config["data"].items():
            (folder / "etc/delta-sink" / name).write_text(text, encoding="utf-8")

    def command(self, container: dict) -> list[str]:
        """Return the command as the container has it, with the files of this machine."""
        words = [*container["command"], *container["args"]]
        words = [f"{self.folder}{word}" if word.startswith("/") else word for word in words]
        return [str(Path(sys.executable).with_name(words[0])), *words[1:]]

    def options(self, container: dict) -> dict:
        """Return where the container's process runs and in which environment."""
        env = {item["name"]: item["value"] for item in container.get("env", [])}
        base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        # What a Secret would give by envFrom.
        secret = {"STORE_SECRET": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
        return {"cwd": f"{self.folder}{container['workingDir']}", "env": base | env | secret}

    def run(self, container: dict, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return subprocess.run(
            self.command(container),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **self.options(container),
        )

    def start(self, component: str) -> Worker:
        """Start the one container of a Deployment."""
        spec = one(self.objects, "Deployment", f"{NAME}-{component}")["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        with (self.folder / f"{component}.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(container), stdout=log, stderr=log, **self.options(container)
            )
        self.processes.append(process)
        return Worker(process, container, spec)

    def logs(self) -> str:
        return "".join(path.read_text() for path in self.folder.glob("*.log"))


class Worker:
    """A container that runs, and its probes."""

    def __init__(self, process: subprocess.Popen[bytes], container: dict, spec: dict) -> None:
        self.process = process
        self.container = container
        self.grace_s = spec["terminationGracePeriodSeconds"]

    def get(self, path: str) -> tuple[int, str]:
        port = {port["name"]: port["containerPort"] for port in self.container["ports"]}["http"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def passes(self, probe: str) -> bool:
        return self.get(self.container[probe]["httpGet"]["path"])[0] == 200

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=self.grace_s)


@contextmanager
def installed(helm, folder: Path, broker: EmbeddedBroker, endpoint: str):
    """Yield the release that stands for `helm install`, with servers of this machine."""
    for topic, partitions in (("orders", 4), ("delta-sink.control", 4), ("delta-sink.status", 1)):
        broker.create_topic(topic, partitions)
    values = whole_values()
    config = values["config"]
    config["kafka"] = {"bootstrap.servers": broker.bootstrap_servers}
    config["source"] = {"topics": ["orders"], "topic_ids": "none"}
    config["table"]["uri"] = f"s3://{BUCKET}/orders"
    config["table"]["storage"] = {
        "endpoint_url": endpoint,
        "region": REGION,
        "access_key_id": "key",
        "secret_access_key": "${STORE_SECRET}",
    }
    config["locks"] |= {"endpoint_url": endpoint, "region": REGION}
    config["flush"] = {"interval_ms": 100}
    config["compaction"] = {"quiet_ms": 0, "small_files_max": 100_000}
    # The lock store's library takes its credentials from the usual chain.
    values["env"] = [
        {"name": "AWS_ACCESS_KEY_ID", "value": "key"},
        {"name": "AWS_DEFAULT_REGION", "value": REGION},
    ]
    values["schedules"] = [SCHEDULE]
    objects = []
    for component in ("writer", "compactor", "vacuum"):
        # On one machine each needs a port of its own; in a cluster each pod has its address.
        config["http"] = {"port": free_port()}
        rendered = helm.objects({}, values)
        name = f"{NAME}-{component}"
        objects.append(one(rendered, "Deployment", name))
    objects += [found for found in rendered if found["kind"] != "Deployment"]
    release = Release(folder, objects)
    try:
        yield release
    finally:
        for process in release.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_a_release_ingests_a_topic_and_compacts_on_a_schedule(helm, tmp_path):
    with EmbeddedBroker({}) as broker, s3_server() as endpoint:
        root = tmp_path / "root"
        root.mkdir()
        with installed(helm, root, broker, endpoint) as release:
            _run(release, broker, endpoint)


def _run(release, broker, endpoint):
    (job,) = [found for found in release.objects if found["kind"] == "Job"]
    (init,) = job["spec"]["template"]["spec"]["containers"]
    done = release.run(init)
    assert done.returncode == 0, done.stderr
    assert release.run(init).returncode == 0, "a Job may run twice"
    workers = {name: release.start(name) for name in ("writer", "compactor", "vacuum")}
    for name, worker in workers.items():
        wait_until(lambda worker=worker: worker.passes("readinessProbe"), 60, f"{name} is ready")
        assert worker.passes("livenessProbe")
        assert worker.passes("startupProbe")
    for number in range(5):
        records = [
            json.dumps({"order_id": n, "amount": "1.50", "placed_at": "2026-11-24T10:00:00Z"})
            for n in range(100 * number, 100 * number + 100)
        ]
        produce(broker.bootstrap_servers, "orders", [r.encode() for r in records], partitions=4)
        wait_until(
            lambda number=number: _ids(endpoint) == list(range(100 * number + 100)), 40, "written"
        )
    before = len(_table(endpoint).file_uris())
    cron = one(release.objects, "CronJob", f"{NAME}-hourly")
    (control,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert release.run(control).returncode == 0
    wait_until(lambda: len(_table(endpoint).file_uris()) < before, 60, "it is compacted")
    assert _ids(endpoint) == list(range(500))
    test = one(release.objects, "Pod", f"{NAME}-test")["spec"]
    for container in [*test["initContainers"], *test["containers"]]:
        done = release.run(container)
        assert done.returncode == 0, (container["name"], done.stdout, done.stderr)
    served = "".join(
        worker.get(path)[1] for worker in workers.values() for path in ("/metrics", "/status")
    )
    assert 'delta_sink_compaction_bytes_total{direction="read"' in served
    assert SECRET not in served + release.logs() + json.dumps(release.objects) + done.stdout
    assert [worker.stop() for worker in workers.values()] == [0, 0, 0], release.logs()[-2000:]


def _table(endpoint: str) -> DeltaTable:
    options = {
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "reader",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    return DeltaTable(f"s3://{BUCKET}/orders", storage_options=options)


def _ids(endpoint: str) -> list[int]:
    return sorted(_table(endpoint).to_pyarrow_table().column("order_id").to_pylist())
