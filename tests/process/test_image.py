"""The image and the compose file, without Docker: their steps and commands run as processes.

What only a Docker engine can show (the base image, users, the read-only root) is compared with
what must stand in the files.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import wait_until
from tests.process.stores import BUCKET, s3_server
from tests.services import containers

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = ROOT / "examples" / "docker-compose.yml"
SERVICES = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]

pytestmark = pytest.mark.process


def steps(text):
    """Return the Dockerfile's instructions: word and the rest, continued lines joined."""
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    lines = bare.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


STEPS = steps(DOCKERFILE)
STAGES = [index for index, (word, _) in enumerate(STEPS) if word == "FROM"]


# --- the Dockerfile -------------------------------------------------------------------------------


@pytest.mark.long
def test_the_steps_of_the_build_make_an_environment_that_works(tmp_path):
    """The first stage runs here: COPY into a folder, RUN in it, with the pins that it names."""
    build, prefix = tmp_path / "build", tmp_path / "delta-sink"
    build.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def here(text):
        return text.replace("/build", str(build)).replace("/opt/delta-sink", str(prefix))

    for word, rest in STEPS[STAGES[0] + 1 : STAGES[1]]:
        if word == "COPY":
            *sources, target = rest.split()
            for name in sources:
                source = ROOT / name
                if source.is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.so")  # `.dockerignore`
                    shutil.copytree(source, build / target, ignore=ignored)
                else:
                    shutil.copy(source, build / target)
        elif word == "ENV":
            name, value = rest.split("=", 1)
            env[name] = here(value)
        elif word == "RUN":
            words = shlex.split(here(rest))
            words[0] = sys.executable if words[0] == "python" else words[0]
            done = subprocess.run(
                words, cwd=build, env=env, capture_output=True, text=True, timeout=280, check=False
            )
            assert done.returncode == 0, (rest, done.stderr[-2000:])
    shutil.rmtree(build)  # the second stage has nothing of it
    command = [prefix / "bin" / "delta-sink", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env)
    assert version("delta-sink") in said.stdout
    libraries = (
        "import boto3, prometheus_client, opentelemetry.exporter.otlp.proto.grpc, delta_sink"
    )
    compiled = "from delta_sink.decode.native import is_compiled; assert is_compiled()"
    for code in (libraries, compiled):
        subprocess.run([prefix / "bin" / "python", "-c", code], check=True, timeout=60, env=env)
    assert not (prefix / "bin" / "pip").exists()
    folders = {path.name for path in prefix.glob("lib/python*/site-packages/*-*.dist-info")}
    found = {_normal(name.removesuffix(".dist-info").rsplit("-", 1)) for name in folders}
    pinned = {_normal(line.split("==")) for line in _constraints()}
    ours = {("delta-sink", version("delta-sink"))}
    # A venv of Python before 3.12, which the image does not have, brings setuptools along.
    unpinned = {pair for pair in found - pinned if pair[0] != "setuptools"}
    assert unpinned == ours, "everything is pinned"


def _normal(pair):
    return re.sub(r"[-_.]+", "-", pair[0]).lower(), pair[1]


def _constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_every_pin_is_exact():
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in _constraints())
    (python,) = [rest for word, rest in STEPS if word == "ARG" and rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-[a-z]+", python)
    assert [rest for word, rest in STEPS if word == "FROM"] == [
        "python:${PYTHON} AS build",
        "python:${PYTHON}",
    ]


def test_the_image_runs_as_nobody_and_says_what_it_is():
    final = dict(STEPS[STAGES[1] :])
    assert final["USER"] == "10001:10001"
    values = yaml.safe_load((ROOT / "helm/delta-sink/values.yaml").read_text())
    assert values["podSecurityContext"]["runAsUser"] == 10001
    assert final["ENTRYPOINT"] == '["delta-sink"]'
    assert f"VERSION={version('delta-sink')}" in [rest for word, rest in STEPS if word == "ARG"]
    for label in ("title", "description", "licenses", "version"):
        assert f"org.opencontainers.image.{label}=" in final["LABEL"]
    assert "/livez" in final["HEALTHCHECK"]


def test_the_context_has_what_is_copied_and_nothing_else():
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"
    ]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {
        name
        for word, rest in STEPS
        if word == "COPY" and not rest.startswith("--from")
        for name in rest.split()[:-1]
    }
    assert kept == copied
    assert any(fnmatch.fnmatch("delta_sink/__pycache__", rule) for rule in rules[1:])


# --- the compose file -----------------------------------------------------------------------------


def test_images_are_those_of_the_tests():
    assert SERVICES["kafka"]["image"] == containers.KAFKA_IMAGE
    assert SERVICES["minio"]["image"] == containers.MINIO_IMAGE
    assert SERVICES["dynamodb"]["image"] == containers.DYNAMODB_IMAGE
    ours = {name for name, service in SERVICES.items() if service["image"] == "delta-sink"}
    assert ours == {"producer", "init", "writer", "compactor", "vacuum"}
    for name in ours:
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]
    for service in SERVICES.values():
        for place in service.get("volumes", []):
            assert (COMPOSE.parent / place.split(":")[0]).is_file(), place


class Composed:
    """The services that are ours, as processes on servers of this machine."""

    def __init__(self, folder, broker, endpoint):
        self.folder = folder
        self.places = {"kafka:9092": broker.bootstrap_servers, "http://minio:9000": endpoint}
        self.places["http://dynamodb:8000"] = endpoint
        self.processes = {}

    def words(self, name):
        """Return the command of a service; what it mounts is where it lies."""
        service = SERVICES[name]
        words = [*service.get("entrypoint", ["delta-sink"]), *service["command"]]
        mounts = dict(reversed(place.split(":")[:2]) for place in service["volumes"])
        found = [
            str(COMPOSE.parent / mounts[word]) if word in mounts else self.places.get(word, word)
            for word in words
        ]
        found[0] = str(Path(sys.executable).with_name(found[0]))
        # On one machine each needs a port of its own.
        return found + (["--set", "http.port=0"] if "run" in words else [])

    def environment(self, name):
        said = SERVICES[name]["environment"]
        ours = {key: self.places.get(value, value) for key, value in said.items()}
        return {**os.environ, **ours, "TOPIC_IDS": "none"}

    def run(self, name):
        subprocess.run(
            self.words(name),
            cwd=self.folder,
            env=self.environment(name),
            check=True,
            timeout=120,
            capture_output=True,
        )

    def start(self, name):
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self.words(name),
                cwd=self.folder,
                env=self.environment(name),
                stdout=log,
                stderr=log,
            )

    def stop(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(timeout=60) for name, process in self.processes.items()}

    def kill(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


def test_the_services_make_a_table(tmp_path):
    with EmbeddedBroker({}) as broker, s3_server() as endpoint:
        for topic, partitions in (
            ("orders", 4),
            ("delta-sink.control", 4),
            ("delta-sink.status", 1),
        ):
            broker.create_topic(topic, partitions)
        composed = Composed(tmp_path, broker, endpoint)
        try:
            composed.run("init")
            for name in ("writer", "compactor", "vacuum"):
                composed.start(name)
            composed.run("producer")
            wait_until(lambda: len(_ids(endpoint)) >= 10_000, 90, "every order is in the table")
            assert _ids(endpoint) == list(range(10_000))
            assert set(composed.stop().values()) == {0}
        finally:
            composed.kill()


def _ids(endpoint):
    options = {
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "reader",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    table = DeltaTable(f"s3://{BUCKET}/orders", storage_options=options)
    return sorted(table.to_pyarrow_table().column("order_id").to_pylist())
