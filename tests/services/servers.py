"""The set of servers of one test run, or of one developer: each started when first asked for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from tests.services import containers, dynamodb, install, kafka, minio
from tests.services.install import CannotInstall, InstallFailed

ENGINE_VARIABLE = "DELTA_SINK_SERVICES"
"""`docker` or `native` decides how servers are run; without it a Docker engine that answers does."""

TITLES = {
    "kafka": f"Apache Kafka {kafka.VERSION}",
    "minio": f"MinIO {minio.VERSION}",
    "dynamodb": f"DynamoDB Local {dynamodb.VERSION}",
}
_INSTALL: dict[str, Callable[[], Path]] = {
    "kafka": install.kafka_jars,
    "minio": install.minio_binary,
    "dynamodb": install.dynamodb_jars,
}
_NATIVE: dict[str, Callable[[Path], Any]] = {
    "kafka": kafka.native,
    "minio": minio.native,
    "dynamodb": dynamodb.native,
}
_CONTAINER: dict[str, Callable[[], Any]] = {
    "kafka": containers.kafka_container,
    "minio": containers.minio_container,
    "dynamodb": containers.dynamodb_container,
}


def uses_docker() -> bool:
    """Whether servers are run as containers on this machine."""
    named = os.environ.get(ENGINE_VARIABLE, "")
    if named not in ("", "docker", "native"):
        raise ValueError(f"{ENGINE_VARIABLE}: got {named!r}, wanted docker or native")
    return named == "docker" or (named == "" and containers.engine_answers())


def installed(name: str) -> None:
    """Return when the server can be started without fetching or building anything.

    Raises:
        CannotInstall: something is missing that a person must install.
        InstallFailed: it could not be fetched or built, or is not what was pinned.
    """
    if not uses_docker():
        _INSTALL[name]()


class Servers:
    """Servers by name: `kafka`, `minio`, `dynamodb`. All of them end with the context."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="delta-sink-services-"))
        self._started: dict[str, Any] = {}
        self._refused: dict[str, CannotInstall | InstallFailed] = {}
        self._docker: bool | None = None
        self.keeps_logs = False
        """Whether the servers' folders, logs and data, outlive the context."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._started.values():
            service.server.close()
        if self.keeps_logs and self._started:
            print(f"logs and data of the servers are in {self._folder}", flush=True)
        else:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where the logs of native servers are."""
        return self._folder

    def get(self, name: str) -> Any:
        """Return the server, running.

        Raises:
            CannotInstall: something is missing that a person must install.
            InstallFailed, ServerFailed: what went wrong, with the end of the log.
        """
        if name in self._refused:
            raise self._refused[name]
        if name not in self._started:
            try:
                service = self._made(name)
            except (CannotInstall, InstallFailed) as error:
                self._refused[name] = error
                raise
            self._started[name] = service  # before it runs: the end of the context is its end
            service.server.start()
        return self._started[name]

    def titles(self) -> list[str]:
        """Return the servers that were started, with version and how they run."""
        how = "container" if self._docker else "process"
        return [f"{TITLES[name]} ({how})" for name in self._started]

    def _made(self, name: str) -> Any:
        if self._docker is None:
            self._docker = uses_docker()
        return _CONTAINER[name]() if self._docker else _NATIVE[name](self._folder / name)
