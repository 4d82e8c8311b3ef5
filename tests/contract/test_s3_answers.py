"""What an S3 store makes of each answer of a server: statuses, silence, broken connections.

The answers come from a small HTTP server here, through obstore as it is installed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.adapters.metered import MeteredStore
from delta_sink.adapters.objectstore import Answer, S3Store, StorageOptions, open_store
from delta_sink.errors import ConfigError, ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists

SECRET = "a-secret-key-that-nobody-may-see"


class Script:
    """What the server answers, and what it was asked."""

    def __init__(self):
        self.status = 200
        self.body = b""
        self.fault = ""  # "", close, stall, short, slow
        self.requests = []
        self.released = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self):
        script = self.server.script
        length = int(self.headers.get("content-length") or 0)
        script.requests.append((self.command, self.path, dict(self.headers.items())))
        received = 0
        while received < length:
            received += len(self.rfile.read(min(length - received, 1 << 20)))
            if script.fault == "slow":
                time.sleep(0.05)
        if script.fault == "close":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if script.fault == "stall":
            self.close_connection = True
            script.released.wait(20)
            return
        self.send_response(script.status)
        self.send_header("etag", '"tag"')
        self.send_header("last-modified", "Wed, 21 Oct 2026 07:28:00 GMT")
        size = len(script.body) + (100 if script.fault == "short" else 0)
        self.send_header("content-length", str(size))
        self.end_headers()
        self.wfile.write(script.body)
        if script.fault == "short":
            self.wfile.flush()
            self.close_connection = True

    do_GET = do_PUT = do_DELETE = do_POST = do_HEAD = answer  # noqa: N815 # http.server's names


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients go away in the middle here; nothing of it is an error of the test."""


@contextlib.contextmanager
def serving():
    server = Server(("127.0.0.1", 0), Handler)
    server.script = Script()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.script.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server():
    with serving() as server:
        yield server


def options(server, **changes) -> StorageOptions:
    settings = {
        "endpoint_url": server.url,
        "region": "us-east-1",
        "access_key_id": "KEY",
        "secret_access_key": SECRET,
        "request_timeout_ms": 20_000,
    }
    return StorageOptions(**{**settings, **changes})


@pytest.fixture
def store(server):
    return S3Store("s3://bucket/t", storage=options(server), env={})


CALLS = {
    "put": lambda store: store.put("a/b", b"x"),
    "put_if_absent": lambda store: store.put_if_absent("a/b", b"x"),
    "get": lambda store: store.get("a/b"),
    "get_range": lambda store: store.get_range("a/b", 0, 1),
    "list": lambda store: store.list("a"),
    "delete": lambda store: store.delete("a/b"),
}
PUT, ABSENT, GET, RANGE, LIST, DELETE = CALLS
ALL = tuple(CALLS)


def xml(code: str) -> bytes:
    detail = f"<Message>m</Message><Secret>{SECRET}</Secret>"
    return f'<?xml version="1.0"?><Error><Code>{code}</Code>{detail}</Error>'.encode()


UNAVAILABLE = [
    (status, b"", ALL) for status in (408, 429, 500, 502, 503, 504)
] + [
    (503, xml("SlowDown"), ALL),
    (400, xml("RequestTimeout"), ALL),
    (409, xml("OperationAborted"), (PUT, GET, RANGE, LIST, DELETE)),
    (412, b"", (PUT,)),
]  # fmt: skip
REFUSED = [
    (status, b"", ALL) for status in (400, 401, 403, 405, 413, 501)
] + [
    (403, xml("AccessDenied"), ALL),
    (403, xml("SignatureDoesNotMatch"), ALL),
    (403, xml("RequestTimeTooSkewed"), ALL),
    (404, xml("NoSuchBucket"), ALL),
    (404, b"", (PUT, ABSENT, LIST)),
    (416, xml("InvalidRange"), (RANGE,)),
]  # fmt: skip


def cases(table):
    return [
        pytest.param(status, body, call, id=f"{status}-{Answer.of(body.decode()).code}-{call}")
        for status, body, calls in table
        for call in calls
    ]


@pytest.mark.parametrize(("status", "body", "call"), cases(UNAVAILABLE))
def test_no_usable_answer(server, store, status, body, call):
    server.script.status, server.script.body = status, body
    with pytest.raises(StoreUnavailable, match=f"HTTP status {status}") as caught:
        CALLS[call](store)
    assert "s3://bucket/t" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(server.script.requests) == 1, "the client must not try again by itself"


@pytest.mark.parametrize(("status", "body", "call"), cases(REFUSED))
def test_a_definite_no(server, store, status, body, call):
    server.script.status, server.script.body = status, body
    with pytest.raises(StoreRefused, match=f"HTTP status {status}") as caught:
        CALLS[call](store)
    assert "s3://bucket/t" in str(caught.value)
    assert Answer.of(body.decode()).code in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(server.script.requests) == 1


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])  # fmt: skip
def test_the_condition_failed(server, store, status, code):
    server.script.status, server.script.body = status, xml(code)
    assert store.put_if_absent("a", b"x") == Exists()
    assert len(server.script.requests) == 1


@pytest.mark.parametrize("body", [b"", xml("NoSuchKey")])
def test_a_missing_object(server, store, body):
    server.script.status, server.script.body = 404, body
    for call in (GET, RANGE):
        with pytest.raises(ObjectMissing, match="no object a/b in s3://bucket/t"):
            CALLS[call](store)
    store.delete("a/b")


@pytest.mark.parametrize("call", ALL)
def test_a_connection_that_breaks(server, store, call):
    server.script.fault = "close"
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        CALLS[call](store)
    assert len(server.script.requests) == 1


@pytest.mark.parametrize("call", ALL)
def test_a_server_that_is_silent(server, call):
    server.script.fault = "stall"
    store = S3Store("s3://bucket/t", storage=options(server, request_timeout_ms=500), env={})
    before = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer in time"):
        CALLS[call](store)
    assert 0.4 < time.monotonic() - before < 5
    assert len(server.script.requests) == 1


@pytest.mark.parametrize("call", [GET, LIST])
def test_a_body_that_is_cut_off(server, store, call):
    server.script.fault = "short"
    server.script.body = b"<half"
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        CALLS[call](store)


@pytest.mark.parametrize("body", [b"", b"no XML at all", b"<html><body>"])
def test_an_answer_that_is_no_listing(server, store, body):
    # A whole page of HTML would pass for an empty listing: obstore looks at no element's name.
    server.script.body = body
    with pytest.raises(StoreUnavailable, match="no usable answer"):
        store.list("a")


@pytest.mark.parametrize("call", ALL)
def test_nobody_is_there(server, call):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        store = S3Store("s3://bucket/t", storage=options(server, endpoint_url=url), env={})
        with pytest.raises(StoreUnavailable, match="no connection"):
            CALLS[call](store)


def test_a_large_upload_may_take_longer_than_a_small_request(server):
    server.script.fault = "slow"
    store = S3Store("s3://bucket/t", storage=options(server, request_timeout_ms=500), env={})
    before = time.monotonic()
    assert isinstance(store.put_if_absent("a", bytes(20 << 20)), Created)
    assert time.monotonic() - before > 0.6


def test_the_condition_is_sent_and_the_body_is_one_request(server, store):
    store.put_if_absent("a", bytes(6 << 20))
    store.put("b", bytes(6 << 20))
    (first, path, headers), (second, other, others) = server.script.requests
    assert (first, path, headers["if-none-match"]) == ("PUT", "/bucket/t/a", "*")
    assert (second, other) == ("PUT", "/bucket/t/b")
    assert "if-none-match" not in others


@pytest.mark.parametrize("call", [PUT, ABSENT])
def test_a_bucket_in_another_region(server, store, call):
    server.script.status, server.script.body = 301, xml("PermanentRedirect")
    with pytest.raises(StoreRefused, match="is the bucket in another region"):
        CALLS[call](store)


def test_no_etag_is_refused(server, store, monkeypatch):
    real = Handler.send_header
    monkeypatch.setattr(
        Handler, "send_header", lambda self, k, v: None if k == "etag" else real(self, k, v)
    )
    with pytest.raises(StoreRefused, match="sends no ETag"):
        store.put("a", b"x")


@pytest.mark.parametrize("path", ["../a", "a//b", "", "/a", "a/./b"])
def test_paths_that_leave_the_table_are_a_programmers_error(store, path):
    for call in (store.get, store.delete, lambda path: store.put(path, b"")):
        with pytest.raises(AssertionError, match="not a path"):
            call(path)


# --- where it sends, and as whom ---------------------------------------------------------------


def sent(server):
    _, path, headers = server.script.requests[-1]
    key = headers["authorization"].split("Credential=")[1].split("/")
    return path, headers["host"], key[0], key[2], headers.get("x-amz-security-token")


def test_the_given_credentials_are_not_mixed_with_the_environments(server, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of the other")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    S3Store("s3://bucket/t", storage=options(server), env=os.environ).put("a", b"")
    assert sent(server)[2:] == ("KEY", "us-east-1", None)
    with_token = options(server, session_token="token", region="eu-west-3")
    S3Store("s3://bucket/t", storage=with_token, env=os.environ).put("a", b"")
    assert sent(server)[2:] == ("KEY", "eu-west-3", "token")


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_endpoint_region_and_credentials_from_the_environment(server, monkeypatch, name):
    env = {
        name: server.url,
        "AWS_REGION": "ap-south-1",
        "AWS_ACCESS_KEY_ID": "ENVKEY",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_SESSION_TOKEN": "t",
    }
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    S3Store("s3://bucket/t", storage=StorageOptions(), env=env).put("a", b"")
    path, _, *who = sent(server)
    assert path == "/bucket/t/a"
    assert who == ["ENVKEY", "ap-south-1", "t"]


def test_a_profile_needs_to_exist(server, monkeypatch, tmp_path):
    config = tmp_path / "credentials"
    config.write_text("[ops]\naws_access_key_id = PROFILEKEY\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(config))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    storage = options(server, access_key_id=None, secret_access_key=None)
    S3Store("s3://bucket/t", storage=storage, env={"AWS_PROFILE": "ops"}).put("a", b"")
    assert sent(server)[2] == "PROFILEKEY"
    with pytest.raises(ConfigError, match="AWS_PROFILE=nobody"):
        S3Store("s3://bucket/t", storage=storage, env={"AWS_PROFILE": "nobody"})


def test_the_bucket_may_stand_in_the_host_name(server):
    port = server.server_address[1]
    storage = options(server, endpoint_url=f"http://localhost:{port}/", path_style=False)
    with contextlib.suppress(StoreUnavailable):  # bucket.localhost may have no address here
        S3Store("s3://bucket/t", storage=storage, env={}).put("a", b"")
        assert sent(server)[:2] == ("/t/a", f"bucket.localhost:{port}")


def test_credentials_that_cannot_be_had(server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    server.script.status = 404
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/credentials")
    token = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
    monkeypatch.setenv(token, "/dev/null")
    storage = options(server, access_key_id=None, secret_access_key=None)
    store = S3Store("s3://bucket/t", storage=storage, env={})
    with pytest.raises(StoreRefused, match="no credentials could be had: HTTP status 404"):
        store.get("a")
    server.script.status = 500
    with pytest.raises(StoreUnavailable, match="no credentials could be had: HTTP status 500"):
        store.get("a")


@pytest.mark.process
def test_an_own_certificate_authority(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out",
         certificate, "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:false"],
        check=True, capture_output=True,
    )  # fmt: skip
    script = """
import sys
from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.errors import DeltaSinkError
options = StorageOptions(endpoint_url=sys.argv[1], access_key_id="k", secret_access_key="s",
    allow_http=False)
try:
    print(S3Store("s3://bucket/t", storage=options, env={}).put("a", b"x"))
except DeltaSinkError as error:
    print(type(error).__name__)
"""
    with serving() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = f"https://localhost:{server.server_address[1]}"
        seen = []
        for extra in ({"SSL_CERT_FILE": str(certificate)}, {}):
            env = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
            done = subprocess.run(
                [sys.executable, "-c", script, url],
                env={**env, **extra}, capture_output=True, text=True, timeout=60, check=True,
            )  # fmt: skip
            seen.append(done.stdout.strip())
    assert seen == ['"tag"', "StoreUnavailable"]


# --- choosing the store ------------------------------------------------------------------------


def test_the_uri_chooses(tmp_path):
    keys = StorageOptions(access_key_id="k", secret_access_key=SECRET)
    for uri in ("s3://bucket/t", "s3a://bucket/t/"):
        assert repr(open_store(uri, keys, {})) == "S3Store('s3://bucket/t')"
    quick = StorageOptions(fsync=False)
    folder = f"{tmp_path}/a b"
    for uri in (folder, f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        assert repr(open_store(uri, quick, {})) == f"LocalDisk({folder!r}, fsync=False)"
    assert isinstance(open_store("lake/orders", quick, {}), LocalDisk)


@pytest.mark.parametrize(
    ("uri", "changes", "problem"),
    [
        ("gs://bucket/t", {}, "got the scheme 'gs', wanted s3, s3a, file"),
        ("s3:///t", {}, "wanted s3://bucket/folder"),
        ("file://", {}, "wanted file:///folder"),
        ("file://elsewhere/t", {}, "wanted file:///folder"),
        ("s3://b/t", {"access_key_id": "k"}, "belong together"),
        ("s3://b/t", {"secret_access_key": SECRET}, "belong together"),
        ("s3://b/t", {"session_token": SECRET}, "session_token without access_key_id"),
        ("s3://b/t", {"endpoint_url": "http://x:9", "allow_http": False}, "allow_http is false"),
    ],
)
def test_what_cannot_be_meant_so(uri, changes, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        open_store(uri, StorageOptions(**changes), {})
    assert SECRET not in str(caught.value)


def test_secrets_do_not_show():
    shown = repr(StorageOptions(access_key_id="k", secret_access_key=SECRET, session_token=SECRET))
    assert SECRET not in shown


# --- the metered store -------------------------------------------------------------------------


def test_requests_are_counted_by_what_came_of_them(tmp_path, server, store):
    from delta_sink.adapters.logs import LogTelemetry
    from delta_sink.adapters.system import SystemClock

    telemetry = LogTelemetry(sys.stderr, clock=SystemClock())
    disk = MeteredStore(LocalDisk(str(tmp_path)), telemetry, SystemClock())
    disk.put("a", b"xyz")
    disk.put_if_absent("a", b"x")
    assert bytes(disk.get("a").data) == b"xyz"
    assert disk.get_range("a", 1, 1) == b"y"
    assert len(disk.list("")) == 1
    disk.delete("a")
    with pytest.raises(ObjectMissing):
        disk.get("a")
    remote = MeteredStore(store, telemetry, SystemClock())
    for status, error in ((403, StoreRefused), (503, StoreUnavailable)):
        server.script.status = status
        with pytest.raises(error):
            remote.put("a", b"x")
    figures = telemetry.snapshot()
    counted = {tags: value for (_, tags), value in figures.counters.items()}
    assert {
        (dict(tags)["verb"], dict(tags)["status"]): value for tags, value in counted.items()
    } == {
        ("put", "ok"): 1,
        ("put_if_absent", "exists"): 1,
        ("get", "ok"): 1,
        ("get_range", "ok"): 1,
        ("list", "ok"): 1,
        ("delete", "ok"): 1,
        ("get", "missing"): 1,
        ("put", "refused"): 1,
        ("put", "unavailable"): 1,
    }
    assert sum(found.count for found in figures.histograms.values()) == 9
