"""An S3 server as a process, and a proxy before it that counts, delays, loses and refuses.

What the proxy may do to a request: nothing; wait before it is passed on; answer 503 instead of
passing it on; pass it on and close the connection instead of answering; pass it on without its
`If-None-Match`, which makes of the server one that does not know the condition.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = "lake"
REGION = "us-east-1"


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it."""

    method: str
    path: str
    authorization: str

    @property
    def is_entry(self) -> bool:
        """Whether it is about an entry of a table's log."""
        return "/_delta_log/" in self.path and self.path.endswith(".json")


class Proxy:
    """A proxy on 127.0.0.1 from construction until `close`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self.requests: list[Request] = []
        self.put_delay_s = 0.0
        self.is_down = False
        self.knows_conditions = True
        self.answers_to_lose = 0
        """How many PUTs of log entries are stored and never answered, from now on."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        """The endpoint to give to a client."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Else headers and body go out as two packets, and the second waits for an ACK.
            wbufsize = -1
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815  # names of the base class

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        """Do to one request what the proxy is told to."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        path = handler.path.partition("?")[0]
        seen = Request(handler.command, path, handler.headers.get("Authorization", ""))
        with self._lock:
            self.requests.append(seen)
            loses = self.answers_to_lose > 0 and seen.method == "PUT" and seen.is_entry
            self.answers_to_lose -= loses
        if seen.method == "PUT" and self.put_delay_s:
            time.sleep(self.put_delay_s)
        try:
            if self.is_down:
                self._answer(handler, 503, {}, b"<Error><Code>ServiceUnavailable</Code></Error>")
                return
            status, headers, answer = self._forward(handler, body)
            if loses:
                handler.close_connection = True
                return
            self._answer(handler, status, headers, answer)
        except OSError:  # the client is gone: killed, or out of patience
            handler.close_connection = True

    def _forward(
        self, handler: BaseHTTPRequestHandler, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        headers = dict(handler.headers.items())
        if not self.knows_conditions:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        connection = http.client.HTTPConnection(*self._target, timeout=30)
        try:
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def _answer(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes
    ) -> None:
        handler.send_response_only(status)
        skipped = {"connection", "transfer-encoding", "content-length"}
        length = str(len(body))
        for name, value in headers.items():
            if name.lower() not in skipped:
                handler.send_header(name, value)
            elif name.lower() == "content-length" and handler.command == "HEAD":
                length = value
        handler.send_header("Content-Length", length)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)
        handler.wfile.flush()


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's S3 server as a process, with the bucket in it; yield its endpoint."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _make_bucket(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _make_bucket(process: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("PUT", f"/{BUCKET}")
            assert connection.getresponse().status == 200
            return
        except OSError:
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < deadline_s, "the S3 server did not start"
            time.sleep(0.05)
        finally:
            connection.close()
