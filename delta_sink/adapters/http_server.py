"""A small HTTP server in threads of its own: one function a path, GET and HEAD only."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

from msgspec import Struct

from delta_sink.errors import ConfigError

REQUEST_S_MAX: Final = 10.0
"""A client that says nothing for so long is left."""
REQUESTS_MAX: Final = 16
"""Requests answered at a time; further ones are refused, so that nobody can fill the process."""


class Answer(Struct, frozen=True):
    """What a path says."""

    status: int
    content_type: str
    body: bytes


class HttpServer:
    """Serves `routes` from construction until `close`. `address` is where it listens."""

    def __init__(self, host: str, port: int, routes: Mapping[str, Callable[[], Answer]]) -> None:
        """Listen on `host` and `port`; 0 takes a free port.

        Raises:
            ConfigError: the address cannot be had.
        """

        class Handler(_Handler):
            answers = routes

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            problem = f"http: {host}:{port} cannot be listened on: {error.strerror or error}"
            raise ConfigError([problem]) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """Return `host:port`, with the port that was taken."""
        host, port = self._server.server_address[:2]
        name = host.decode() if isinstance(host, bytes) else host
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[_Handler]) -> None:
        self._places = threading.BoundedSemaphore(REQUESTS_MAX)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are, as the base class would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: object, client_address: object) -> None:
        """Answer in a thread, if one is free."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]  # a socket, as the base has it
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]  # as above

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Answer, and give the place back."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]  # as above
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that went away is no news, and a fault is answered with 500."""


class _Handler(BaseHTTPRequestHandler):
    answers: Mapping[str, Callable[[], Answer]] = {}
    timeout = REQUEST_S_MAX
    server_version = "delta-sink"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the body."""
        self._say(self._answer(), with_body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._say(self._answer(), with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log nothing: probes come every few seconds."""

    def _answer(self) -> Answer:
        answer = self.answers.get(self.path.partition("?")[0])
        if answer is None:
            paths = " ".join(sorted(self.answers))
            return Answer(404, "text/plain; charset=utf-8", f"there are: {paths}\n".encode())
        try:
            return answer()
        except Exception as error:  # noqa: BLE001  # the top of a request; its text may hold a value
            body = f"this is a bug in delta-sink: {type(error).__name__}\n".encode()
            return Answer(500, "text/plain; charset=utf-8", body)

    def _say(self, answer: Answer, *, with_body: bool) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)
