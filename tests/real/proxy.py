"""An HTTP proxy before an S3 server: it counts requests, and can lose answers or requests.

It can also speak TLS, and refuse session tokens as AWS does when their time is over.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Fault = str
"""`none`; `lose`: done, and the answer is lost; `refuse`: not done, 503; `drop`: not done, broken;
`expire`: not done, and it says that the token's time is over, as AWS does."""


@dataclass
class Proxy:
    """What went through, and what is to go wrong."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each, in the order of arrival."""
    met: list[tuple[str, str, str]] = field(default_factory=list)
    """Fault, method and path of each fault that was really made."""
    fault: Callable[[str, str], Fault] = lambda method, path: "none"
    tokens: list[str] = field(default_factory=list)
    """The session token of each request that had one."""
    is_expired: Callable[[str], bool] = lambda token: False
    """Whether requests with this session token are refused."""
    answers_after_s: Callable[[str, str], float] = lambda method, path: 0.0
    """How long an answer is held back, the request being done."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def noted(self, method: str, path: str, token: str | None) -> Fault:
        """Count a request and return what is to become of it."""
        with self._lock:
            self.requests.append((method, path))
            fault = self.fault(method, path)
            if token is not None:
                self.tokens.append(token)
                fault = "expire" if self.is_expired(token) else fault
            if fault != "none":
                self.met.append((fault, method, path))
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy
    behind: str

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients go away in the middle here; nothing of it is an error of the test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        token = self.headers.get("x-amz-security-token")
        fault = self.server.proxy.noted(self.command, self.path, token)
        if fault == "refuse":
            self._send(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == "expire":
            self._send(400, [], b"<Error><Code>ExpiredToken</Code></Error>")
            return
        if fault == "drop":
            self._break()
            return
        # The host header stays the client's: its signature covers it.
        connection = http.client.HTTPConnection(self.server.behind, timeout=30)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            found = connection.getresponse()
            status, headers, content = found.status, found.getheaders(), found.read()
        finally:
            connection.close()
        time.sleep(self.server.proxy.answers_after_s(self.command, self.path))
        if fault == "lose":
            self._break()
        else:
            self._send(status, headers, content)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = answer  # noqa: N815 # http.server's names


@contextlib.contextmanager
def proxying(endpoint: str, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Give a proxy before the server at `endpoint`; with `tls` it is reached by HTTPS alone."""
    server = _Server(("127.0.0.1", 0), _Handler)
    port = server.server_address[1]
    if tls is None:
        server.proxy = Proxy(url=f"http://127.0.0.1:{port}")
    else:
        # Shaken hands with in the connection's own thread: a client that refuses us stops nobody.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.proxy = Proxy(url=f"https://localhost:{port}")
    server.behind = urlsplit(endpoint).netloc
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
