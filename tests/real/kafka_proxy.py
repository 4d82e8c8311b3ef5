"""A proxy before a Kafka broker, which can lose answers of the broker.

A broker tells its clients where it is, and they go there. So the proxy writes its own port over the
broker's in every answer.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator

CONSUMER_GROUP_HEARTBEAT = 68
"""The key of the request with which a member of a KIP-848 group tells that it is alive."""


class KafkaProxy:
    """Connections to one broker."""

    def __init__(self, bootstrap_servers: str) -> None:
        """Listen for clients of the broker at `bootstrap_servers`, which advertises that."""
        host, _, port = bootstrap_servers.rpartition(":")
        self._behind = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        own_port: int = self._listener.getsockname()[1]
        self.bootstrap_servers = f"127.0.0.1:{own_port}"
        self._theirs = host.encode() + struct.pack(">i", int(port))
        self._ours = host.encode() + struct.pack(">i", own_port)
        self._sockets: list[socket.socket] = [self._listener]
        self.is_lost: Callable[[int, bytes], bool] = lambda api_key, answer: False
        """Whether the client never gets an answer; asked for each, with its request's key."""

    def serve(self) -> None:
        """Return when the proxy is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection(self._behind)
                self._sockets += [client, broker]
                keys: deque[int] = deque()
                for lead in (self._requests, self._answers):
                    threading.Thread(target=lead, args=(client, broker, keys), daemon=True).start()

    def close(self) -> None:
        """Break every connection and take no more."""
        for each in self._sockets:
            _break(each)

    def _requests(self, client: socket.socket, broker: socket.socket, keys: deque[int]) -> None:
        with contextlib.suppress(OSError):
            for request in _frames(client):
                keys.append(*struct.unpack_from(">h", request))
                broker.sendall(struct.pack(">i", len(request)) + request)
        _break(broker)

    def _answers(self, client: socket.socket, broker: socket.socket, keys: deque[int]) -> None:
        """Lead answers back; a broker gives those of one connection in the requests' order."""
        with contextlib.suppress(OSError):
            for answer in _frames(broker):
                if not self.is_lost(keys.popleft(), answer):
                    answer = answer.replace(self._theirs, self._ours)
                    client.sendall(struct.pack(">i", len(answer)) + answer)
        _break(client)


def _frames(source: socket.socket) -> Iterator[bytes]:
    with source.makefile("rb") as stream:
        while head := stream.read(4):
            yield stream.read(*struct.unpack(">i", head))


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def kafka_proxying(bootstrap_servers: str) -> Iterator[KafkaProxy]:
    """Give a proxy before the broker at `bootstrap_servers`."""
    proxy = KafkaProxy(bootstrap_servers)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(5)  # elsewhere than on Linux a closed listener may still be waited for
