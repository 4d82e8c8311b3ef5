"""The lock stores: SQLite and DynamoDB."""

from __future__ import annotations

import http.server
import os
import sys
import threading
import uuid

import boto3
import pytest
from moto.server import ThreadedMotoServer

from delta_sink.adapters.dynamodb import DynamoLeases
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.errors import FatalError, RetriableError
from delta_sink.ports import Item
from tests.contract.lease_contract import LeaseContract
from tests.contract.race import race_processes


class TestSqlite(LeaseContract):
    @pytest.fixture
    def leases(self, tmp_path):
        leases = SqliteLeases(str(tmp_path / "deep" / "locks.db"))
        yield leases
        leases.close()

    def test_it_is_there_after_a_restart(self, tmp_path):
        path = str(tmp_path / "locks.db")
        first = SqliteLeases(path)
        assert first.put(Item("a", {"n": 1}), None)
        first.close()
        second = SqliteLeases(path)
        assert second.get("a") == Item("a", {"n": 1})
        assert not second.put(Item("a", {"n": 2}), None)
        second.close()

    def test_two_connections_see_each_other(self, tmp_path):
        path = str(tmp_path / "locks.db")
        first, second = SqliteLeases(path), SqliteLeases(path)
        assert first.put(Item("a", {"n": 1}), None)
        assert second.put(Item("a", {"n": 2}), Item("a", {"n": 1}))
        assert first.get("a") == Item("a", {"n": 2})
        first.close()
        second.close()

    @pytest.mark.process
    def test_processes_race_and_one_wins(self, tmp_path):
        path = str(tmp_path / "locks.db")
        won = race_processes(_RACE_LEASES, path, processes=4, races=40)
        assert sorted(key for keys in won for key in keys) == sorted(f"k/{n}" for n in range(40))
        leases = SqliteLeases(path)
        for me, keys in enumerate(won):
            for key in keys:
                assert leases.get(key) == Item(key, {"owner": me})
        leases.close()

    def test_a_file_that_is_no_database_is_fatal(self, tmp_path):
        path = tmp_path / "locks.db"
        path.write_text("orders: this is no database, but long enough to be looked at" * 20)
        with pytest.raises(FatalError, match=r"locks\.db"):
            SqliteLeases(str(path))

    def test_a_folder_that_cannot_be_made_is_fatal(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(FatalError, match="lock file"):
            SqliteLeases(str(tmp_path / "file" / "locks.db"))
        with pytest.raises(FatalError, match="lock file"):
            SqliteLeases(str(tmp_path))

    def test_a_lock_held_by_another_is_retriable(self, tmp_path, monkeypatch):
        monkeypatch.setattr("delta_sink.adapters.sqlite.BUSY_TIMEOUT_MS", 50)
        path = str(tmp_path / "locks.db")
        leases, other = SqliteLeases(path), SqliteLeases(path)
        other._connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RetriableError, match="locked"):
            leases.put(Item("a"), None)
        other._connection.execute("ROLLBACK")
        assert leases.put(Item("a"), None)
        leases.close()
        other.close()


_RACE_LEASES = """
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.ports import Item
leases = SqliteLeases(place)
def attempt(me, number):
    return f"k/{number}" if leases.put(Item(f"k/{number}", {"owner": me}), None) else None
"""


# --- DynamoDB ----------------------------------------------------------------------------------

REAL_DYNAMODB = os.environ.get("DELTA_SINK_TEST_DYNAMODB")
"""The address of a DynamoDB server to run these tests on, instead of moto."""


@pytest.fixture(autouse=True)
def aws(monkeypatch):
    """Give boto3 credentials, and nothing of the machine's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


@pytest.fixture(scope="session")
def dynamo_endpoint():
    """Return the address of a DynamoDB server: the one named in the environment, or one in here."""
    if REAL_DYNAMODB:
        yield REAL_DYNAMODB
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def connect(endpoint: str, table_name: str, timeout_ms: int = 30_000) -> DynamoLeases:
    return DynamoLeases.connect(
        table_name=table_name,
        region="us-east-1",
        endpoint_url=endpoint,
        request_timeout_ms=timeout_ms,
    )


@pytest.mark.process
class TestDynamo(LeaseContract):
    RACES = 10

    @pytest.fixture
    def leases(self, dynamo_endpoint):
        leases = connect(dynamo_endpoint, f"locks-{uuid.uuid4().hex}")
        leases.create_table()
        return leases

    def test_true_is_not_one(self, leases):
        if REAL_DYNAMODB:
            super().test_true_is_not_one(leases)
        else:  # moto 5.2 compares as Python does; this fails when it no longer does
            with pytest.raises(AssertionError):
                super().test_true_is_not_one(leases)

    def test_create_table_again(self, leases):
        assert leases.put(Item("a", {"n": 1}), None)
        leases.create_table()
        assert leases.get("a") == Item("a", {"n": 1})

    def test_processes_race_and_one_wins(self, leases, dynamo_endpoint):
        setup = f"""
from delta_sink.adapters.dynamodb import DynamoLeases
from delta_sink.ports import Item
leases = DynamoLeases.connect(table_name=place, region="us-east-1",
    endpoint_url={dynamo_endpoint!r}, request_timeout_ms=30_000)
def attempt(me, number):
    return f"k/{{number}}" if leases.put(Item(f"k/{{number}}", {{"owner": me}}), None) else None
"""
        won = race_processes(setup, leases._table_name, processes=4, races=10)
        assert sorted(key for keys in won for key in keys) == sorted(f"k/{n}" for n in range(10))
        for me, keys in enumerate(won):
            for key in keys:
                assert leases.get(key) == Item(key, {"owner": me})


@pytest.mark.process
def test_a_table_with_another_key_is_fatal(dynamo_endpoint):
    client = boto3.client("dynamodb", endpoint_url=dynamo_endpoint, region_name="us-east-1")
    name = f"delta_log-{uuid.uuid4().hex}"
    client.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "tablePath", "KeyType": "HASH"},
            {"AttributeName": "fileName", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "tablePath", "AttributeType": "S"},
            {"AttributeName": "fileName", "AttributeType": "S"},
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(FatalError, match="wanted the one key 'key'"):
        connect(dynamo_endpoint, name).create_table()
    client.close()


@pytest.mark.process
def test_a_table_that_is_not_there_is_fatal(dynamo_endpoint):
    leases = connect(dynamo_endpoint, "nowhere")
    for call in (
        lambda: leases.get("a"),
        lambda: leases.put(Item("a"), None),
        lambda: leases.scan(""),
    ):
        with pytest.raises(FatalError, match="nowhere: there is no such table"):
            call()


@pytest.mark.process
def test_an_item_that_is_no_lock_is_fatal(dynamo_endpoint):
    name = f"mixed-{uuid.uuid4().hex}"
    leases = connect(dynamo_endpoint, name)
    leases.create_table()
    client = boto3.client("dynamodb", endpoint_url=dynamo_endpoint, region_name="us-east-1")
    client.put_item(TableName=name, Item={"key": {"S": "a"}, "owner": {"S": "x"}})
    with pytest.raises(FatalError, match="DynamoDB item a: it is no lock"):
        leases.get("a")
    client.close()


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers each request with the server's status and error code; status 0 is silence."""

    def do_POST(self):
        self.server.asked += 1
        self.rfile.read(int(self.headers["content-length"]))
        if self.server.status == 0:
            self.server.released.wait(20)
            return
        body = f'{{"__type": "com.amazonaws.dynamodb.v20120810#{self.server.code}"}}'.encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.daemon_threads = True
    server.asked, server.released = 0, threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (500, "InternalServerError", RetriableError),
        (503, "ServiceUnavailable", RetriableError),
        (400, "ProvisionedThroughputExceededException", RetriableError),
        (400, "ThrottlingException", RetriableError),
        (0, "silence", RetriableError),
        (400, "AccessDeniedException", FatalError),
        (400, "UnrecognizedClientException", FatalError),
        (400, "ValidationException", FatalError),
    ],
)
def test_each_answer_is_asked_for_once(refusing, status, code, error):
    refusing.status, refusing.code = status, code
    leases = connect(f"http://127.0.0.1:{refusing.server_address[1]}", "locks", timeout_ms=300)
    for call in (
        lambda: leases.get("a"),
        lambda: leases.put(Item("a"), None),
        lambda: leases.scan(""),
        leases.create_table,
    ):
        refusing.asked = 0
        with pytest.raises(error, match="DynamoDB table locks: ") as caught:
            call()
        assert refusing.asked == 1
        assert status == 0 or code in str(caught.value)


def test_nobody_is_there_is_retriable(refusing):
    refusing.shutdown()
    refusing.server_close()
    with pytest.raises(RetriableError, match="EndpointConnectionError"):
        connect(f"http://127.0.0.1:{refusing.server_address[1]}", "locks").get("a")


def test_no_credentials_is_fatal(monkeypatch, refusing):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(FatalError, match="NoCredentialsError"):
        connect(f"http://127.0.0.1:{refusing.server_address[1]}", "locks").get("a")


def test_no_region_is_fatal(monkeypatch):
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with pytest.raises(FatalError, match="region"):
        DynamoLeases.connect(table_name="locks")


def test_without_boto3_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(FatalError, match=r"pip install 'delta-sink\[dynamodb\]'"):
        DynamoLeases.connect(table_name="locks", region="us-east-1")
