"""The object stores: local disk and S3."""

from __future__ import annotations

import os
import uuid

import boto3
import pytest
from moto.server import ThreadedMotoServer

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.delta.probe import probe_conditional_put
from delta_sink.errors import StoreRefused
from tests.contract.race import race_processes
from tests.contract.store_contract import StoreContract


class TestLocalDisk(StoreContract):
    RACES = 100

    @pytest.fixture
    def store(self, tmp_path):
        return LocalDisk(str(tmp_path / "lake" / "orders"))


class TestLocalDiskWithoutFlush(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return LocalDisk(str(tmp_path / "orders"), fsync=False)


REAL_S3 = os.environ.get("DELTA_SINK_TEST_S3")
"""The address of an S3 server to run these tests on, instead of moto."""
KEY = os.environ.get("DELTA_SINK_TEST_S3_KEY", "key")
SECRET = os.environ.get("DELTA_SINK_TEST_S3_SECRET", "secret")


@pytest.fixture(scope="session")
def s3_endpoint():
    """Return the address of an S3 server: the one named in the environment, or one in here."""
    if REAL_S3:
        yield REAL_S3
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_options(s3_endpoint):
    return StorageOptions(
        endpoint_url=s3_endpoint,
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        request_timeout_ms=30_000,
    )


@pytest.fixture
def bucket(s3_endpoint):
    """Return the name of a new bucket."""
    name = f"lake-{uuid.uuid4().hex[:12]}"
    client = boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.mark.process
class TestS3(StoreContract):
    # This server looks and writes in two steps: two may win. MinIO races in `tests/real`.
    test_threads_race_and_one_wins = None

    @pytest.fixture
    def store(self, bucket, s3_options):
        return S3Store(f"s3://{bucket}/lake/orders", storage=s3_options, env={})


@pytest.mark.process
def test_the_probe_passes_on_s3(bucket, s3_options):
    for _ in range(3):
        probe_conditional_put(S3Store(f"s3://{bucket}/t", storage=s3_options, env={}))


@pytest.mark.process
def test_a_table_may_be_the_whole_bucket(bucket, s3_options):
    store = S3Store(f"s3a://{bucket}", storage=s3_options, env={})
    store.put("_delta_log/0.json", b"x")
    inside = S3Store(f"s3://{bucket}/_delta_log/", storage=s3_options, env={})
    assert [info.path for info in inside.list("")] == ["0.json"]
    assert [info.path for info in store.list("")] == ["_delta_log/0.json"]
    assert [info.path for info in store.list("", "_delta_log/")] == ["_delta_log/0.json"]


@pytest.mark.process
def test_a_folder_with_odd_names(bucket, s3_options):
    store = S3Store(f"s3://{bucket}/a b/100%/ü", storage=s3_options, env={})
    store.put("x", b"1")
    assert [info.path for info in store.list("")] == ["x"]
    whole = S3Store(f"s3://{bucket}", storage=s3_options, env={})
    assert [info.path for info in whole.list("")] == ["a b/100%/ü/x"]


@pytest.mark.process
def test_a_bucket_that_is_not_there(s3_options):
    store = S3Store("s3://no-such-bucket-here/t", storage=s3_options, env={})
    calls = [
        lambda: store.put("a", b"x"),
        lambda: store.put_if_absent("a", b"x"),
        lambda: store.get("a"),
        lambda: store.get_range("a", 0, 1),
        lambda: store.list(""),
    ]
    for call in calls:
        with pytest.raises(StoreRefused, match=r"no-such-bucket-here.*NoSuchBucket"):
            call()


@pytest.mark.process
def test_processes_race_on_s3_and_one_wins(bucket, s3_endpoint, s3_options):
    setup = f"""
from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.ports import Created
options = StorageOptions(endpoint_url={s3_endpoint!r}, region="us-east-1", access_key_id={KEY!r},
    secret_access_key={SECRET!r}, request_timeout_ms=30_000)
store = S3Store(place, storage=options, env={{}})
def attempt(me, number):
    path = f"_delta_log/{{number:020d}}.json"
    return path if isinstance(store.put_if_absent(path, f"{{me}}".encode()), Created) else None
"""
    place = f"s3://{bucket}/t"
    won = race_processes(setup, place, processes=4, races=30)
    store = S3Store(place, storage=s3_options, env={})
    names = [f"_delta_log/{number:020d}.json" for number in range(30)]
    assert sorted(name for mine in won for name in mine) == names
    for me, mine in enumerate(won):
        for name in mine:
            assert bytes(store.get(name).data) == f"{me}".encode()
