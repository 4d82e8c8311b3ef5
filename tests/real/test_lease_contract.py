"""The lock store on DynamoDB Local."""

from __future__ import annotations

import uuid

import pytest

from delta_sink.adapters.dynamodb import DynamoLeases
from delta_sink.ports import Item
from tests.contract.lease_contract import LeaseContract
from tests.contract.race import race_processes


@pytest.fixture(autouse=True)
def credentials(monkeypatch, dynamodb):
    """Give boto3 credentials, and nothing of the machine's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", dynamodb.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", dynamodb.secret_key)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


@pytest.fixture
def leases(dynamodb):
    leases = DynamoLeases.connect(
        table_name=f"locks-{uuid.uuid4().hex}",
        region=dynamodb.region,
        endpoint_url=dynamodb.endpoint,
        request_timeout_ms=30_000,
    )
    leases.create_table()
    return leases


class TestDynamoDbLocal(LeaseContract):
    RACES = 25

    @pytest.fixture
    def leases(self, leases):
        return leases


def test_the_endpoint_comes_from_the_environment(monkeypatch, dynamodb):
    for key, value in dynamodb.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    leases = DynamoLeases.connect(table_name=f"locks-{uuid.uuid4().hex}")
    leases.create_table()
    assert leases.put(Item("a", {"n": 1}), None)
    assert leases.get("a") == Item("a", {"n": 1})


def test_processes_race_and_one_wins(leases, dynamodb):
    setup = f"""
from delta_sink.adapters.dynamodb import DynamoLeases
from delta_sink.ports import Item
leases = DynamoLeases.connect(table_name=place, region={dynamodb.region!r},
    endpoint_url={dynamodb.endpoint!r}, request_timeout_ms=30_000)
def attempt(me, number):
    return f"k/{{number}}" if leases.put(Item(f"k/{{number}}", {{"owner": me}}), None) else None
"""
    won = race_processes(setup, leases._table_name, processes=4, races=30)
    assert sorted(key for keys in won for key in keys) == sorted(f"k/{n}" for n in range(30))
    for me, keys in enumerate(won):
        for key in keys:
            assert leases.get(key) == Item(key, {"owner": me})
