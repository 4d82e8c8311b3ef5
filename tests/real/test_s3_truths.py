"""The whole writer on a real S3 server: credentials, requests counted, answers lost, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from delta_sink.delta.receipt import receipt_of
from tests.process.sinks import LedgerProducer, events_of, produce, sentences_of, values, wait_until
from tests.process.test_kills import assert_exactly_once
from tests.real.lake import LakeSink, new_topic
from tests.real.proxy import proxying

OUTAGE_S = 3.0
ASKED_MAX = 15
"""Requests in such an outage: pauses begin at 50 ms and double up to 5 s."""

NO_CHAIN = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}


# --- credentials --------------------------------------------------------------------------------


def test_credentials_and_endpoint_come_from_the_usual_chain(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    with LakeSink(tmp_path, kafka, minio, topic, table={"storage": {}}) as sink:
        assert "storage: {}" in sink.config.read_text(encoding="utf-8")
        sink.env = {**NO_CHAIN, **minio.environment}
        checked = json.loads(sink.run("check-config", "--connect", "--json").stdout)
        assert checked["ok"], checked
        sink.drain()
        assert sink.ids() == [*range(10)]
        assert sink.audit()["ok"]


def test_wrong_credentials_end_in_a_sentence_without_them(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with LakeSink(tmp_path, kafka, minio, topic, table={"storage": {}}) as sink:
        wrong = {"AWS_SECRET_ACCESS_KEY": "the-wrong-secret-of-somebody"}
        sink.env = {**NO_CHAIN, **minio.environment, **wrong}
        done = sink.run("run", "writer", "--until-end")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "HTTP status 403 SignatureDoesNotMatch" in sentence
        assert sink.uri in sentence
        assert "the-wrong-secret" not in done.stderr + done.stdout


def test_a_bucket_that_is_not_there_ends_in_a_sentence(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with LakeSink(tmp_path, kafka, minio, topic, table={"uri": "s3://not-there/t"}) as sink:
        done = sink.run("run", "writer", "--until-end")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "s3://not-there/t" in sentence
        assert "NoSuchBucket" in sentence


# --- requests -----------------------------------------------------------------------------------


def test_a_commit_is_two_requests(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with (
        proxying(minio.endpoint) as proxy,
        LakeSink(
            tmp_path,
            kafka,
            minio,
            topic,
            table={"storage": {**minio.storage, "endpoint_url": proxy.url}},
        ) as sink,
    ):
        writer = sink.start()
        commits = 0

        def commit():
            nonlocal commits
            produce(kafka.bootstrap_servers, topic, values([commits]))
            commits += 1
            wait_until(lambda: len(writer.events("table_committed")) >= commits, 30, "the commit")
            assert len(writer.events("table_committed")) == commits

        commit()
        before = len(proxy.requests)
        assert before > 2, "the table was opened through the proxy"
        for _ in range(10):
            commit()
        requests = proxy.requests[before:]
        assert writer.stop() == 0
        path = re.escape(sink.uri.removeprefix("s3:/"))
        for data, entry in zip(requests[::2], requests[1::2], strict=True):
            assert data[0] == entry[0] == "PUT", requests
            assert re.fullmatch(rf"{path}/[^/]+\.parquet", data[1]), data
            assert re.fullmatch(rf"{path}/_delta_log/\d{{20}}\.json", entry[1]), entry
        assert len(requests) == 2 * 10
        assert sink.ids() == [*range(11)]


def test_lost_answers_lose_and_double_nothing(tmp_path, kafka, minio):
    topic = new_topic(kafka, 4)
    producer = LedgerProducer(kafka.bootstrap_servers, 4, 400, topic)
    with (
        proxying(minio.endpoint) as proxy,
        LakeSink(
            tmp_path,
            kafka,
            minio,
            topic,
            table={"storage": {**minio.storage, "endpoint_url": proxy.url}},
        ) as sink,
    ):
        writers = [sink.start(), sink.start()]
        producer.start()
        wait_until(lambda: all(writer.events("table_committed") for writer in writers), 60, "both")
        faults = iter(["none", "lose", "none", "refuse", "none", "drop", "none"] * 1000)
        proxy.fault = lambda method, _: next(faults) if method == "PUT" else "none"
        wait_until(lambda: _lost_commits(proxy) >= 5, 60, "answers to commits are lost")
        proxy.fault = lambda *_: "none"
        ledger = producer.stop()
        wait_until(lambda: sink.committed_records() >= len(ledger), 60, "all is committed")
        assert [writer.stop() for writer in writers] == [0, 0]
        assert {fault for fault, _, _ in proxy.met} == {"lose", "refuse", "drop"}
        assert_exactly_once(sink, ledger)
        ids = [receipt.commit_id for e in sink.entries() if (receipt := receipt_of(e)) is not None]
        assert len(ids) == len(set(ids)), "a plan was committed twice"


def test_a_store_that_refuses_is_asked_again_with_pauses(tmp_path, kafka, minio):
    topic = new_topic(kafka, 1)
    with proxying(minio.endpoint) as proxy:
        table = {"storage": {**minio.storage, "endpoint_url": proxy.url}}
        with LakeSink(tmp_path, kafka, minio, topic, table=table) as sink:
            writer = sink.start()
            produce(kafka.bootstrap_servers, topic, values(range(10)))
            wait_until(lambda: sink.committed_records() == 10, 30, "the first ten")
            for where in (".parquet", ".json"):
                proxy.met.clear()
                count = sink.committed_records()
                proxy.fault = lambda _, path, end=where: "refuse" if path.endswith(end) else "none"
                produce(kafka.bootstrap_servers, topic, values(range(count, count + 10)))
                wait_until(lambda: proxy.met, 30, "it is refused")
                time.sleep(OUTAGE_S)
                asked = [path for _, method, path in proxy.met if method == "PUT"]
                assert 3 <= len(asked) <= ASKED_MAX, asked
                if where == ".json":
                    assert len(set(asked)) == 1, "a commit goes to no other version meanwhile"
                assert sink.committed_records() == count
                proxy.fault = lambda *_: "none"
                wait_until(lambda n=count: sink.committed_records() == n + 10, 30, "it goes on")
            assert len(writer.events("commit_retried")) >= 3, "it has said so"
            assert writer.stop() == 0
            assert sink.ids() == [*range(30)]
            assert sink.audit()["ok"]


def _lost_commits(proxy):
    return sum(fault == "lose" and "_delta_log/" in path for fault, _, path in proxy.met)


# --- a store on which no commit would be safe ---------------------------------------------------


class _Overwriting(BaseHTTPRequestHandler):
    """Just enough of S3 to be taken for it: objects, and no condition is honoured."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.conditions.append(self.headers.get("if-none-match"))
        self.server.objects[self.path] = body
        self._send(200, b"", body)

    def do_GET(self):
        body = self.server.objects.get(self.path)
        if body is None:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", b"")
        else:
            self._send(200, body, body)

    def _send(self, status, body, tagged):
        self.send_response(status)
        self.send_header("etag", f'"{hashlib.md5(tagged).hexdigest()}"')
        self.send_header("last-modified", "Tue, 24 Nov 2026 07:28:00 GMT")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def overwriting():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Overwriting)
    server.daemon_threads = True
    server.objects, server.conditions = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    with contextlib.closing(server):
        server.close = server.server_close
        yield server
        server.shutdown()
        thread.join()


def test_a_store_that_ignores_conditions_is_refused_at_start(tmp_path, kafka, minio, overwriting):
    topic = new_topic(kafka, 1)
    produce(kafka.bootstrap_servers, topic, values(range(10)))
    endpoint = f"http://127.0.0.1:{overwriting.server_address[1]}"
    table = {"storage": {**minio.storage, "endpoint_url": endpoint}}
    with LakeSink(tmp_path, kafka, minio, topic, table=table) as sink:
        done = sink.run("run", "writer")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "does not honour conditional PUT" in sentence
        assert overwriting.conditions == ["*", "*"], "it was asked, and overwrote"
        assert [path.rpartition("/")[2] for path in overwriting.objects] == ["probe"]
        assert not events_of(done.stderr, "partitions_assigned")
