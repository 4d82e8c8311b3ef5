"""DynamoDB is stopped under a writer: it says so, works on, and finds it again."""

from __future__ import annotations

import uuid

import pytest

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import produce, values, wait_until
from tests.process.test_http import ask, figures, is_ready, sink_on, status


def locks_up(writer):
    return figures(writer).get(("delta_sink_dependency_up", ("dependency", "locks")))


@pytest.fixture
def broker():
    with EmbeddedBroker({}) as broker:
        yield broker


def test_without_dynamodb_a_writer_is_degraded_and_works(tmp_path, broker, dynamodb):
    """The server is stopped, comes back empty, and has the table again: each is told apart."""
    name = f"locks-{uuid.uuid4().hex[:8]}"
    locks = {
        "path": None,
        "store": "dynamodb",
        "table_name": name,
        "region": dynamodb.region,
        "endpoint_url": dynamodb.endpoint,
    }
    with sink_on(tmp_path, broker, "away", locks=locks) as sink:
        sink.env = {
            "AWS_ACCESS_KEY_ID": dynamodb.access_key,
            "AWS_SECRET_ACCESS_KEY": dynamodb.secret_key,
        }
        assert sink.run("init").returncode == 0
        writer = sink.start()
        wait_until(lambda: is_ready(writer) and locks_up(writer) == 1, 40, "it is ready")
        assert "degraded" not in ask(writer, "/readyz")[1]

        dynamodb.server.stop()
        try:
            wait_until(lambda: locks_up(writer) == 0, 40, "the locks are missed")
            code, sentence = ask(writer, "/readyz")
            assert code == 200
            assert "; degraded, working without locks: DynamoDB table " in sentence
            assert name in sentence
            said = status(writer)["dependencies"]
            assert (said["locks"]["up"], said["broker"]["up"], said["store"]["up"]) == (
                False,
                True,
                True,
            )
            produce(broker.bootstrap_servers, "away", values(range(20)))
            wait_until(lambda: sink.committed_records() == 20, 40, "it works without them")
        finally:
            dynamodb.server.start()

        # In memory, it has forgotten the table: another sentence, and the way that the docs say.
        wait_until(lambda: "no such table" in ask(writer, "/readyz")[1], 40, "it came back empty")
        assert ask(writer, "/readyz")[0] == 200
        assert sink.run("init", "--only", "locks").returncode == 0
        wait_until(lambda: locks_up(writer) == 1, 40, "the locks are found again")
        assert ask(writer, "/readyz") == (200, "ready, working on 1 partition\n")
        (lost,) = writer.events("dependency_lost")
        (found,) = writer.events("dependency_found")
        assert (lost["dependency"], found["dependency"]) == ("locks", "locks")
        assert writer.stop() == 0
        assert sink.committed_records() == 20
