"""The whole writer on an S3 server: credentials, requests a commit, a store that fails."""

from __future__ import annotations

import time

import pytest
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import (
    SCHEMA,
    Sink,
    events_of,
    produce,
    sentences_of,
    values,
    wait_until,
    write_config,
)
from tests.process.stores import BUCKET, REGION, Proxy, s3_server

pytestmark = pytest.mark.process

SECRET = "the-secret-of-the-store"


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


@pytest.fixture(scope="module")
def server():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def proxy(server):
    proxy = Proxy(server)
    yield proxy
    proxy.close()


def sink_on(folder, broker, topic, storage=None, **overrides):
    broker.create_topic(topic, 1)
    config = write_config(
        folder,
        broker.bootstrap_servers,
        name=f"on-{topic}",
        source={"topics": [topic]},
        table={"uri": f"s3://{BUCKET}/{topic}", "schema": SCHEMA, "storage": storage or {}},
        **overrides,
    )
    sink = Sink(folder, config)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        sink.env[name] = ""
    return sink


def with_environment(sink, endpoint):
    """Give the sink its credentials and endpoint as a container would."""
    sink.env |= {
        "AWS_ACCESS_KEY_ID": "key-of-the-environment",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": endpoint,
    }
    return sink


def table_at(server, topic):
    options = {
        "AWS_ACCESS_KEY_ID": "reader",
        "AWS_SECRET_ACCESS_KEY": "reader",
        "AWS_REGION": REGION,
        "AWS_ENDPOINT_URL": server,
        "AWS_ALLOW_HTTP": "true",
    }
    return DeltaTable(f"s3://{BUCKET}/{topic}", storage_options=options)


def ids_at(server, topic):
    return sorted(table_at(server, topic).to_pyarrow_table().column("id").to_pylist())


def test_credentials_of_the_environment(tmp_path, broker, server, proxy):
    with with_environment(sink_on(tmp_path, broker, "by-env"), proxy.url) as sink:
        assert sink.run("check-config", "--connect").returncode == 0
        assert sink.run("init").returncode == 0
        produce(broker.bootstrap_servers, "by-env", values(range(100)))
        done = sink.drain()
        assert ids_at(server, "by-env") == [*range(100)]
        assert all("Credential=key-of-the-environment/" in r.authorization for r in proxy.requests)
        assert all(request.path.startswith(f"/{BUCKET}") for request in proxy.requests)
        assert SECRET not in done.stderr
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
        assert audit["proven"], audit["unproven"]


def test_credentials_of_the_file_go_before_the_environment(tmp_path, broker, server, proxy):
    (tmp_path / "secret").write_text(SECRET)
    storage = {
        "endpoint_url": proxy.url,
        "region": REGION,
        "access_key_id": "${KEY_ID}",
        "secret_access_key": f"${{file:{tmp_path}/secret}}",
    }
    sink = with_environment(sink_on(tmp_path, broker, "by-file", storage), "http://127.0.0.1:1")
    with sink:
        sink.env["KEY_ID"] = "key-of-the-file"
        produce(broker.bootstrap_servers, "by-file", values(range(10)))
        done = sink.drain()
        assert ids_at(server, "by-file") == [*range(10)]
        assert all("Credential=key-of-the-file/" in r.authorization for r in proxy.requests)
        assert SECRET not in done.stderr
        assert sink.audit()["ok"]


def test_a_commit_of_one_file_is_two_requests(tmp_path, broker, server, proxy):
    with with_environment(sink_on(tmp_path, broker, "counted"), proxy.url) as sink:
        writer = sink.start()
        produce(broker.bootstrap_servers, "counted", values(range(10)))

        def rows_told():
            return sum(event["rows"] for event in writer.events("table_committed"))

        wait_until(lambda: rows_told() == 10, 30, "the first commit")
        before, commits_before = len(proxy.requests), len(writer.events("table_committed"))
        for round_ in range(5):
            first = 10 + round_ * 10
            produce(broker.bootstrap_servers, "counted", values(range(first, first + 10)))
            time.sleep(0.3)
        wait_until(lambda: rows_told() == 60, 20, "everything is there")
        assert len(ids_at(server, "counted")) == 60
        commits = len(writer.events("table_committed")) - commits_before
        requests = proxy.requests[before:]
        assert commits >= 3
        assert [request.method for request in requests] == ["PUT", "PUT"] * commits
        assert [request.is_entry for request in requests] == [False, True] * commits
        assert writer.stop() == 0


def test_a_store_without_conditions_is_refused(tmp_path, broker, proxy):
    proxy.knows_conditions = False
    with with_environment(sink_on(tmp_path, broker, "unconditional"), proxy.url) as sink:
        for command in (("run", "writer"), ("init",)):
            done = sink.run(*command)
            assert done.returncode == 3
            [sentence] = sentences_of(done.stderr)
            assert "conditional PUT" in sentence
        checked = sink.run("check-config", "--connect")
        assert checked.returncode == 1
        assert "conditional PUT" in checked.stdout
        assert not any(request.is_entry and request.method == "PUT" for request in proxy.requests)


def test_a_bucket_that_is_not_there_is_one_sentence(tmp_path, broker, server):
    with with_environment(sink_on(tmp_path, broker, "bucketless"), server) as sink:
        done = sink.run("run", "writer", "--set", "table.uri=s3://no-such-bucket/table")
        assert done.returncode == 3
        [sentence] = sentences_of(done.stderr)
        assert "NoSuchBucket" in sentence
        assert SECRET not in done.stderr


def test_a_store_that_is_down_for_a_while(tmp_path, broker, server, proxy):
    proxy.is_down = True
    with with_environment(sink_on(tmp_path, broker, "shaky"), proxy.url) as sink:
        writer = sink.start()
        wait_until(lambda: writer.events("waiting"), 20, "it waits for the store")
        assert "503" in writer.events("waiting")[0]["reason"]
        proxy.is_down = False
        produce(broker.bootstrap_servers, "shaky", values(range(50)))
        wait_until(lambda: len(writer.events("table_committed")) > 0, 30, "it commits")
        proxy.is_down = True
        produce(broker.bootstrap_servers, "shaky", values(range(50, 100)))
        time.sleep(3)
        proxy.is_down = False
        wait_until(lambda: len(ids_at(server, "shaky")) >= 100, 60, "everything is there")
        assert writer.stop() == 0
        assert ids_at(server, "shaky") == [*range(100)]
        assert sink.audit()["ok"]


def test_answers_that_are_lost_change_nothing(tmp_path, broker, server, proxy):
    with with_environment(sink_on(tmp_path, broker, "lossy"), proxy.url) as sink:
        writer = sink.start()
        produce(broker.bootstrap_servers, "lossy", values(range(10)))
        wait_until(lambda: writer.events("table_committed"), 30, "the first commit")
        for round_ in range(3):
            proxy.answers_to_lose = 1
            first = 10 + round_ * 10
            produce(broker.bootstrap_servers, "lossy", values(range(first, first + 10)))
            wait_until(lambda: proxy.answers_to_lose == 0, 20, "an answer was lost")
        wait_until(lambda: len(ids_at(server, "lossy")) >= 40, 60, "everything is there")
        assert writer.stop() == 0
        assert ids_at(server, "lossy") == [*range(40)]
        assert sink.audit()["ok"]
        assert events_of(writer.log_path.read_text(), "commit_retried")
