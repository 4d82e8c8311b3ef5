"""DynamoDB Local, in memory. Its licence is Amazon's own: it is fetched, never shipped."""

from __future__ import annotations

import http.client
from pathlib import Path

from tests.services.install import PINNED, dynamodb_jars
from tests.services.kafka import Server
from tests.services.minio import ACCESS_KEY, REGION, SECRET_KEY
from tests.services.processes import NativeServer, free_port

VERSION = "3.3.1"


class DynamoDb:
    """A running DynamoDB server. Every table of a test needs a name of its own."""

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
            "AWS_ENDPOINT_URL_DYNAMODB": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,  # boto3 knows no other
        }


def answers(port: int) -> bool:
    """Whether anything speaks HTTP at this port: it says 400 to whoever does not sign."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status > 0
    except OSError:
        return False
    finally:
        connection.close()


def native(folder: Path) -> DynamoDb:
    """Return a server as a process; it is not started yet, and a restart empties it.

    It would listen on every address of the machine and has no option against that; a few lines of
    Java in front of its own `main` bind it to the loopback address.

    Raises:
        CannotInstall: Java or Maven is missing.
    """
    jars = f"{dynamodb_jars()}/*"
    port = free_port()
    launcher = PINNED / "dynamodb" / "LoopbackOnly.java"
    options = ["-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port)]
    server = NativeServer(
        "dynamodb",
        ["java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", jars, str(launcher), *options],
        folder=folder,
        ready=lambda: answers(port),
        env={"DDB_LOCAL_TELEMETRY": "0"},
    )
    return DynamoDb(server, f"http://127.0.0.1:{port}")
