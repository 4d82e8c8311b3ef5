"""The S3 store on MinIO."""

from __future__ import annotations

import pytest

from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.delta.probe import PROBE_PATH, probe_conditional_put
from tests.contract.race import race_processes
from tests.contract.store_contract import StoreContract


@pytest.fixture
def options(minio):
    return StorageOptions(
        endpoint_url=minio.endpoint,
        region=minio.region,
        access_key_id=minio.access_key,
        secret_access_key=minio.secret_key,
        request_timeout_ms=30_000,
    )


@pytest.fixture
def uri(minio):
    return f"s3://{minio.new_bucket()}/lake/orders"


class TestMinio(StoreContract):
    @pytest.fixture
    def store(self, uri, options):
        return S3Store(uri, storage=options, env={})


def test_the_probe_passes_at_every_start(uri, options):
    for _ in range(3):
        probe_conditional_put(S3Store(uri, storage=options, env={}))
    store = S3Store(uri, storage=options, env={})
    assert [info.path for info in store.list("")] == [PROBE_PATH]


def test_what_was_stored_is_there_after_a_kill(minio, uri, options):
    store = S3Store(uri, storage=options, env={})
    tags = {f"log/{number}": store.put(f"log/{number}", b"%d" % number) for number in range(20)}
    minio.server.kill()
    minio.server.start()
    assert {info.path: info.e_tag for info in store.list("log")} == tags


def test_processes_race_and_one_wins(uri, options):
    setup = f"""
from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.ports import Created
options = StorageOptions(endpoint_url={options.endpoint_url!r}, region={options.region!r},
    access_key_id={options.access_key_id!r}, secret_access_key={options.secret_access_key!r},
    request_timeout_ms=30_000)
store = S3Store(place, storage=options, env={{}})
def attempt(me, number):
    name = f"_delta_log/{{number:020d}}.json"
    won = isinstance(store.put_if_absent(name, f"{{me}}".encode()), Created)
    return name if won else None
"""
    won = race_processes(setup, uri, processes=4, races=100)
    names = [f"_delta_log/{number:020d}.json" for number in range(100)]
    assert sorted(name for mine in won for name in mine) == names
    assert sum(bool(mine) for mine in won) > 1, "one process won everything: nothing was raced for"
    store = S3Store(uri, storage=options, env={})
    for me, mine in enumerate(won):
        for name in mine:
            assert bytes(store.get(name).data) == f"{me}".encode()
