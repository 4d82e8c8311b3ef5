"""The examples on Apache Kafka and MinIO, as a user runs them: the commands, then the rows."""

from __future__ import annotations

import json
import os
import uuid

import pytest
from confluent_kafka import KafkaException
from deltalake import DeltaTable

from tests.process import test_examples as examples
from tests.process.sinks import produce

ORDERS = 500
BAD_ORDERS = 7


class User(examples.User):
    """Somebody with a real broker, whose topics have ids."""

    def __init__(self, folder, broker):
        super().__init__(folder, broker)
        self.topic_ids = self.env["TOPIC_IDS"] = "required"


def _without(kafka, *topics):
    for topic in topics:
        if kafka.partitions_of(topic):
            kafka.delete_topic(topic)


@pytest.fixture
def user(tmp_path, kafka):
    _without(kafka, "orders", "orders.dlq")
    kafka.create_topic("orders", 4)
    # Earlier tests may have left offsets under the example's names.
    for group in ("orders", "connect-orders"):
        try:
            kafka.delete_group(group)
        except KafkaException:
            continue  # there was none
    yield User(tmp_path, kafka)
    _without(kafka, "orders", "orders.dlq")


@pytest.fixture
def flights_user(tmp_path, kafka):
    _without(kafka, "flights")
    kafka.create_topic("flights", examples.FLIGHTS_PARTITIONS)
    yield User(tmp_path, kafka)
    _without(kafka, "flights")


def test_s3(user, kafka, minio, dynamodb):
    """Orders and a few bad records, into a table on MinIO, with locks in DynamoDB."""
    config = examples.EXAMPLES / "s3" / "sink.yaml"
    secret = user.folder / "minio-secret"
    secret.write_text(minio.secret_key)
    user.env |= {
        "S3_ENDPOINT": minio.endpoint,
        "MINIO_USER": minio.access_key,
        **dynamodb.environment,
    }
    uri = f"s3://{minio.new_bucket()}/orders"
    here = [
        *("--set", f"table.uri={uri}", "--set", f"locks.table_name=locks-{uuid.uuid4().hex[:8]}"),
        *("--set", f"table.storage.secret_access_key=${{file:{secret}}}"),
    ]
    user.python(examples.EXAMPLES / "local" / "produce.py", user.bootstrap, "--records", ORDERS)
    bad = [b'{"order_id": "nobody knows"}'] * BAD_ORDERS
    produce(kafka.bootstrap_servers, "orders", bad, partitions=4)
    user.sink("init", "-c", config, *here)
    assert kafka.partitions_of("orders.dlq") > 0, "init creates the topic of dead letters"
    checked = user.sink("check-config", "--connect", "-c", config, *here)
    user.sink("run", "writer", "--until-end", "-c", config, *here, *examples.QUICK_SESSION)
    audit = json.loads(user.sink("audit", "--deep", "--json", "-c", config, *here))
    assert audit["ok"], audit["violations"]
    assert audit["proven"], audit["unproven"]
    assert sum(part["rows"] for part in audit["partitions"]) == ORDERS
    assert sum(part["dead_letters"] for part in audit["partitions"]) == BAD_ORDERS
    letters = kafka.partitions_of("orders.dlq")
    assert sum(kafka.end_offset("orders.dlq", number) for number in range(letters)) == BAD_ORDERS
    options = {
        "aws_endpoint_url": minio.endpoint,
        "aws_access_key_id": minio.access_key,
        "aws_secret_access_key": minio.secret_key,
        "aws_region": minio.region,
        "allow_http": "true",
    }
    rows = DeltaTable(uri, storage_options=options).to_pyarrow_table().to_pylist()
    assert sorted(row["order_id"] for row in rows) == [*range(ORDERS)]
    assert all(row["day"] == row["placed_at"].date() for row in rows)
    assert minio.secret_key not in checked


def test_local_with_its_table_on_s3(user, minio):
    """The example of a local disk needs nothing but another place and the usual environment."""
    config = examples.EXAMPLES / "local" / "sink.yaml"
    user.env |= {**minio.environment, "TABLE": f"s3://{minio.new_bucket()}/orders"}
    user.env["AWS_CONFIG_FILE"] = os.devnull
    user.python(examples.EXAMPLES / "local" / "produce.py", user.bootstrap, "--records", ORDERS)
    user.writes(config)
    assert sum(part["rows"] for part in user.audit(config)["partitions"]) == ORDERS


# --- what runs on the embedded broker too -------------------------------------------------------


@pytest.mark.long
def test_flights(flights_user):
    examples.test_flights(flights_user)


@pytest.mark.long
def test_connect_cutover(user):
    examples.test_connect_cutover_begins_where_the_connector_was(user)


@pytest.mark.long
def test_the_readme_leads_from_nothing_to_a_table(user):
    examples.test_the_readme_leads_from_nothing_to_a_table(user)
