"""MinIO: an S3 server that honours `If-None-Match`."""

from __future__ import annotations

import contextlib
import http.client
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.services.install import minio_binary
from tests.services.kafka import Server
from tests.services.processes import NativeServer, free_port

VERSION = "2026-02-12 (source)"
ACCESS_KEY = "deltasinktests"
"""Letters alone, as DynamoDB Local wants them: one pair of keys serves both."""
SECRET_KEY = "only-for-tests-on-loopback"
REGION = "us-east-1"
READY_PATH = "/minio/health/ready"


class Minio:
    """A running S3 server."""

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY
    region = REGION

    def __init__(self, server: Server, endpoint: str) -> None:
        self.server = server
        self.endpoint = endpoint

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the usual AWS chain finds this server."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,  # boto3 knows no other
        }

    @property
    def storage(self) -> dict[str, str]:
        """The group `table.storage` of a sink's file."""
        return {
            "endpoint_url": self.endpoint,
            "access_key_id": self.access_key,
            "secret_access_key": self.secret_key,
            "region": self.region,
        }

    def new_bucket(self) -> str:
        """Return the name of a bucket that was created now."""
        name = f"lake-{uuid.uuid4().hex[:12]}"
        with self.client() as client:
            client.create_bucket(Bucket=name)
        return name

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """Give a boto3 client."""
        with contextlib.closing(_client(self.endpoint)) as client:
            yield client


def _client(endpoint: str, config: Config | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=config,
    )


def answers(port: int, path: str = READY_PATH) -> bool:
    """Whether an HTTP server says yes at this port and path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


_ASKED_ONCE = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})


def is_ready(port: int) -> bool:
    """Whether the server answers signed requests: its health says yes a moment before it does."""
    if not answers(port):
        return False
    with contextlib.closing(_client(f"http://127.0.0.1:{port}", _ASKED_ONCE)) as client:
        try:
            client.list_buckets()
        except (BotoCoreError, ClientError):
            return False
    return True


def native(folder: Path) -> Minio:
    """Return a server as a process, with its data in `folder`; it is not started yet.

    Raises:
        CannotInstall: Go is missing.
    """
    program = minio_binary()
    port = free_port()
    data = folder / "data"
    address = f"127.0.0.1:{port}"
    server = NativeServer(
        "minio",
        [str(program), "server", str(data), "--address", address, "--quiet"],
        folder=folder,
        ready=lambda: is_ready(port),
        env={
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
            "MINIO_CI_CD": "1",  # a folder of the root file system will do
        },
    )
    return Minio(server, f"http://{address}")
