"""The same servers as containers, where a Docker engine answers.

testcontainers starts them and its reaper ends them, however the test run ends. Each server gets a
port of the loopback address that stays its own when it is stopped and started again.
"""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from tests.services import dynamodb, kafka, minio
from tests.services.processes import STOP_S, ServerFailed, free_port

KAFKA_IMAGE = "apache/kafka:4.4.0"
MINIO_IMAGE = "minio/minio:RELEASE.2025-09-07T16-13-09Z"
DYNAMODB_IMAGE = "amazon/dynamodb-local:3.3.1"
READY_S = 120.0
_LOG_LINES = 40


def engine_answers() -> bool:
    """Whether testcontainers is installed and a Docker engine answers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these libraries, at import and after a refusal
        try:
            import docker
            import testcontainers.core.container  # noqa: F401  # only whether it is there
        except ImportError:
            return False
        answers = _pings(docker)
        gc.collect()  # what could not be connected leaves its socket behind
        return answers


def _pings(docker: Any) -> bool:
    try:
        client = docker.from_env(timeout=3)
    except docker.errors.DockerException:
        return False
    try:
        return bool(client.ping())
    except (docker.errors.DockerException, OSError):
        return False
    finally:
        client.close()


class ContainerServer:
    """One server in a container, its ports bound to the loopback address."""

    def __init__(
        self,
        image: str,
        ports: Mapping[int, int],
        *,
        ready: Callable[[], bool],
        env: Mapping[str, str] | None = None,
        command: list[str] | None = None,
    ) -> None:
        """Describe the server; nothing is started.

        Args:
            image: name and tag.
            ports: the container's ports, each with the port of this machine.
            ready: asked again and again after a start, until it says yes.
            env: variables of the container.
            command: arguments of the image's own entry point.
        """
        self._image = image
        self._ports = dict(ports)
        self._ready = ready
        self._env = dict(env or {})
        self._command = command
        self._made: Any = None

    def start(self) -> None:
        """Return when the server is ready, with what it had stored before."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # testcontainers' own deprecations
            if self._made is None:
                from testcontainers.core.container import DockerContainer

                self._made = DockerContainer(self._image, command=self._command, env=self._env)
                # `with_bind_ports` would bind all addresses of the machine.
                self._made.ports = {
                    f"{inside}/tcp": ("127.0.0.1", outside)
                    for inside, outside in self._ports.items()
                }
                self._made.start()
            else:
                self._made.get_wrapped_container().start()
        deadline_s = time.monotonic() + READY_S
        while not self._ready():
            if time.monotonic() > deadline_s:
                tail = self.log_tail()
                self.close()
                raise ServerFailed(f"{self._image} was not ready within {READY_S:.0f} s:\n{tail}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Return when the server has ended in order; what it stored is kept."""
        self._made.get_wrapped_container().stop(timeout=int(STOP_S))

    def kill(self) -> None:
        """Return when the server is dead."""
        container = self._made.get_wrapped_container()
        container.kill()
        container.wait()

    def close(self) -> None:
        """Return when the container is removed."""
        if self._made is not None:
            self._made.stop()
            self._made = None

    def log_tail(self, lines: int = _LOG_LINES) -> str:
        """Return the end of the server's log."""
        if self._made is None:
            return ""
        output: bytes = self._made.get_wrapped_container().logs(tail=lines)
        return output.decode(errors="replace")


def kafka_container() -> kafka.Kafka:
    """Return a broker in a container, described and not started yet."""
    port = free_port()
    settings = {
        **kafka.SETTINGS,
        # Clients come from outside through the bound port; the broker's own requests (transaction
        # markers) stay inside.
        "listeners": "OUTSIDE://:9092,INSIDE://:9094,CONTROLLER://:9093",
        "advertised.listeners": f"OUTSIDE://127.0.0.1:{port},INSIDE://localhost:9094",
        "listener.security.protocol.map": (
            "OUTSIDE:PLAINTEXT,INSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "inter.broker.listener.name": "INSIDE",
        "controller.quorum.voters": "1@localhost:9093",
    }
    server = ContainerServer(
        KAFKA_IMAGE,
        {9092: port},
        ready=lambda: kafka.answers(f"127.0.0.1:{port}"),
        env={f"KAFKA_{key.upper().replace('.', '_')}": value for key, value in settings.items()},
    )
    return kafka.Kafka(server, f"127.0.0.1:{port}")


def minio_container() -> minio.Minio:
    """Return an S3 server in a container, described and not started yet."""
    port = free_port()
    server = ContainerServer(
        MINIO_IMAGE,
        {9000: port},
        ready=lambda: minio.is_ready(port),
        env={"MINIO_ROOT_USER": minio.ACCESS_KEY, "MINIO_ROOT_PASSWORD": minio.SECRET_KEY},
        command=["server", "/data"],
    )
    return minio.Minio(server, f"http://127.0.0.1:{port}")


def dynamodb_container() -> dynamodb.DynamoDb:
    """Return a DynamoDB server in a container, described and not started yet."""
    port = free_port()
    server = ContainerServer(
        DYNAMODB_IMAGE,
        {8000: port},
        ready=lambda: dynamodb.answers(port),
        command=["-jar", "DynamoDBLocal.jar", "-inMemory", "-sharedDb", "-disableTelemetry"],
    )
    return dynamodb.DynamoDb(server, f"http://127.0.0.1:{port}")
