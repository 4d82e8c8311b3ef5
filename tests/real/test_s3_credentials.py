"""Who a writer is to an S3 server: the chain of credentials, those that end, and an own CA.

The temporary credentials are real: MinIO's STS gives them, and MinIO looks at every signature and
session token. It gives none for less than a quarter of an hour, so that the proxy before it plays
the end of their time: it refuses a token after its `Expiration` with the answer that AWS gives.
"""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest

from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.errors import StoreRefused
from tests.process.sinks import produce, sentences_of, values, wait_until
from tests.real.lake import LakeSink, new_topic
from tests.real.proxy import proxying

CONTAINER_TOKEN = "only-for-the-tests"
ROLE = "arn:aws:iam::000000000000:role/writer"
IDENTITY = "who-a-pod-is"


@pytest.fixture(autouse=True)
def _nobody(monkeypatch):
    """Let the processes of these tests find no credentials of whoever runs them."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)


def temporary(minio):
    """Return credentials that MinIO's STS gives now."""
    client = boto3.client(
        "sts",
        endpoint_url=minio.endpoint,
        region_name=minio.region,
        aws_access_key_id=minio.access_key,
        aws_secret_access_key=minio.secret_key,
    )
    with contextlib.closing(client):
        return client.assume_role(RoleArn=ROLE, RoleSessionName="tests")["Credentials"]


@dataclass
class Vending:
    """The endpoint at which a container finds its credentials; each request gets new ones."""

    minio: object
    lasts_s: float
    ends_s: dict[str, float] = field(default_factory=dict)
    """When the time of each session token is over."""
    is_down: bool = False
    url: str = ""
    asked: int = 0

    def vend(self):
        found = temporary(self.minio)
        # Whole seconds, as AWS says them: never later than what is told.
        ends_s = int(time.time() + self.lasts_s)
        self.ends_s[found["SessionToken"]] = ends_s
        return {
            "AccessKeyId": found["AccessKeyId"],
            "SecretAccessKey": found["SecretAccessKey"],
            "Token": found["SessionToken"],
            "Expiration": datetime.fromtimestamp(ends_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def is_expired(self, token):
        return time.time() >= self.ends_s.get(token, float("inf"))


class _Vendor(BaseHTTPRequestHandler):
    """GET: the endpoint of a container's role. POST: what STS has for a web identity."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.headers.get("authorization") != CONTAINER_TOKEN:
            self._send(401, b"")
        elif self.server.vending.is_down:
            self._send(500, b"")
        else:
            self._send(200, json.dumps(self.server.vending.vend()).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        asked = parse_qs(urlsplit(self.path).query) | parse_qs(body)
        if asked.get("WebIdentityToken") != [IDENTITY] or asked.get("RoleArn") != [ROLE]:
            self._send(403, b"")
            return
        found = self.server.vending.vend()
        named = {"SessionToken" if name == "Token" else name: found[name] for name in found}
        inside = "".join(f"<{name}>{value}</{name}>" for name, value in named.items())
        kind = "AssumeRoleWithWebIdentity"
        answer = f"<Credentials>{inside}</Credentials>"
        self._send(200, f"<{kind}Response><{kind}Result>{answer}</{kind}Result></{kind}Response>")

    def _send(self, status, body):
        body = body.encode() if isinstance(body, str) else body
        self.server.vending.asked += 1
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def vending(minio, lasts_s, tls=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Vendor)
    server.daemon_threads = True
    url = f"http://127.0.0.1:{server.server_address[1]}/credentials"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        url = f"https://localhost:{server.server_address[1]}"
    server.vending = Vending(minio, lasts_s, url=url)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.vending
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def nothing_else(folder, **variables):
    """Return an environment in which nobody finds credentials but by these variables."""
    return {
        "AWS_CONFIG_FILE": str(folder / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        **variables,
    }


def of_a_container(folder, vending, endpoint, region):
    """Return the environment of a process in a container with a role."""
    token = folder / "container-token"
    token.write_text(CONTAINER_TOKEN)
    return nothing_else(
        folder,
        AWS_CONTAINER_CREDENTIALS_FULL_URI=vending.url,
        AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(token),
        AWS_ENDPOINT_URL_S3=endpoint,
        AWS_REGION=region,
    )


def test_a_profile(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic, table={"storage": {}}) as sink:
        found = temporary(minio)
        (tmp_path / "credentials").write_text(
            f"[lake]\naws_access_key_id = {found['AccessKeyId']}\n"
            f"aws_secret_access_key = {found['SecretAccessKey']}\n"
            f"aws_session_token = {found['SessionToken']}\n"
        )
        sink.env = nothing_else(
            tmp_path,
            AWS_PROFILE="lake",
            AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
            AWS_ENDPOINT_URL_S3=minio.endpoint,
            AWS_REGION=minio.region,
        )
        sink.drain()
        assert sink.ids() == [*range(10)]
        assert sink.audit()["ok"]


def test_credentials_that_end_are_renewed(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with (
        proxying(minio.endpoint) as proxy,
        vending(minio, lasts_s=3) as vendor,
        LakeSink(tmp_path, kafka, minio, topic, table={"storage": {}}) as sink,
    ):
        proxy.is_expired = vendor.is_expired
        sink.env = of_a_container(tmp_path, vendor, proxy.url, minio.region)
        writer = sink.start()
        count = 0
        began_s = time.monotonic()
        while time.monotonic() - began_s < 9:
            produce(kafka.bootstrap_servers, topic, values([count]))
            count += 1
            wait_until(lambda n=count: len(writer.events("table_committed")) >= n, 30, "commits")
        first = proxy.tokens[0]
        assert vendor.is_expired(first)
        with pytest.raises(StoreRefused, match="ExpiredToken"):
            _store_of(sink, proxy, minio, first).get("_delta_log/00000000000000000000.json")
        assert proxy.met == [("expire", "GET", proxy.met[0][2])], "that one alone met the end"
        assert writer.process.poll() is None
        assert writer.stop() == 0
        assert len(set(proxy.tokens)) >= 3
        assert sink.ids() == [*range(count)]


def _store_of(sink, proxy, minio, token):
    storage = StorageOptions(
        endpoint_url=proxy.url,
        region=minio.region,
        access_key_id="whoever",
        secret_access_key="whatever",
        session_token=token,
    )
    return S3Store(sink.uri, storage=storage, env={})


def test_credentials_that_cannot_be_renewed_are_waited_for(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with (
        vending(minio, lasts_s=3) as vendor,
        proxying(minio.endpoint) as proxy,
        LakeSink(tmp_path, kafka, minio, topic, table={"storage": {}}) as sink,
    ):
        proxy.is_expired = vendor.is_expired
        sink.env = of_a_container(tmp_path, vendor, proxy.url, minio.region)
        writer = sink.start()
        produce(kafka.bootstrap_servers, topic, values(range(10)))
        wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
        vendor.is_down = True
        wait_until(lambda: all(map(vendor.is_expired, vendor.ends_s)), 10, "their time is over")
        produce(kafka.bootstrap_servers, topic, values(range(10, 20)))
        wait_until(lambda: writer.events("waiting"), 30, "it says that it waits")
        reason = writer.events("waiting")[0]["reason"]
        assert "no credentials could be had: HTTP status 500" in reason
        assert sink.committed_records() == 10
        asked = vendor.asked
        time.sleep(2)
        assert vendor.asked - asked < 20, "it asks again with pauses"
        vendor.is_down = False
        wait_until(lambda: sink.committed_records() == 20, 60, "it goes on")
        assert writer.process.poll() is None
        assert writer.stop() == 0
        assert sink.ids() == [*range(20)]


def test_credentials_of_the_file_that_end_are_a_sentence(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    found = temporary(minio)
    ended = threading.Event()
    with proxying(minio.endpoint) as proxy:
        proxy.is_expired = lambda token: ended.is_set()
        storage = {
            "endpoint_url": proxy.url,
            "region": minio.region,
            "access_key_id": found["AccessKeyId"],
            "secret_access_key": found["SecretAccessKey"],
            "session_token": found["SessionToken"],
        }
        with LakeSink(tmp_path, kafka, minio, topic, table={"storage": storage}) as sink:
            writer = sink.start()
            produce(kafka.bootstrap_servers, topic, values(range(10)))
            wait_until(lambda: len(writer.events("table_committed")) >= 1, 30, "the first ten")
            wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
            ended.set()
            produce(kafka.bootstrap_servers, topic, values(range(10, 20)))
            assert writer.process.wait(30) == 3
            assert proxy.met, "the store refused the token"
            log = writer.log_path.read_text(encoding="utf-8")
            [sentence] = sentences_of(log)
            assert "HTTP status 400 ExpiredToken" in sentence
            for secret in ("SecretAccessKey", "SessionToken"):
                assert found[secret] not in log
            assert sink.ids() == [*range(10)]


# --- an own certificate authority ---------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the file of a CA's certificate, and what a server needs that it has signed for."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=our-own")
    openssl("req", *new, "-keyout", "s.key", "-out", "s.csr", "-subj", "/CN=localhost")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    openssl("x509", "-req", "-in", "s.csr", *signed, "-days", "2", "-out", "s.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "s.pem", folder / "s.key")
    return folder / "ca.pem", context


def test_an_own_certificate_authority_and_the_bucket_in_the_path(
    tmp_path, kafka, minio, certificate
):
    authority, context = certificate
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with proxying(minio.endpoint, context) as proxy:
        storage = {**minio.storage, "endpoint_url": proxy.url, "allow_http": False}
        with LakeSink(tmp_path, kafka, minio, topic, table={"storage": storage}) as sink:
            sink.env = {"SSL_CERT_FILE": ""}
            unknown = json.loads(sink.run("check-config", "--connect", "--json").stdout)
            assert not unknown["ok"]
            assert "no connection" in json.dumps(unknown)
            assert not proxy.requests, "nothing is said to a server that is not trusted"
            sink.env = {"SSL_CERT_FILE": str(authority)}
            sink.drain()
            assert sink.audit()["ok"]
            assert sink.ids() == [*range(10)]
        assert len(proxy.requests) > 10
        bucket = sink.uri.removeprefix("s3:/")
        bucket = bucket[: bucket.index("/", 1)]
        assert all(path.startswith(bucket) for _, path in proxy.requests)


def test_a_web_identity(tmp_path, kafka, minio, certificate):
    """As a pod with a role has it. STS is reached by HTTPS alone, here with a CA of our own."""
    authority, context = certificate
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    (tmp_path / "identity").write_text(IDENTITY)
    with (
        vending(minio, 3600, context) as sts,
        proxying(minio.endpoint) as proxy,
        LakeSink(tmp_path, kafka, minio, topic, table={"storage": {}}) as sink,
    ):
        sink.env = nothing_else(
            tmp_path,
            AWS_WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "identity"),
            AWS_ROLE_ARN=ROLE,
            AWS_ENDPOINT_URL_STS=sts.url,
            AWS_ENDPOINT_URL_S3=proxy.url,
            AWS_REGION=minio.region,
            SSL_CERT_FILE=str(authority),
        )
        sink.drain()
        assert set(proxy.tokens) == set(sts.ends_s), "every request as who STS said"
        assert len(proxy.tokens) == len(proxy.requests)
        assert sink.ids() == [*range(10)]
