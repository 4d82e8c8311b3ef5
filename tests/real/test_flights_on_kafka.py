"""336,776 flights through Apache Kafka into a table on MinIO, every value compared."""

from __future__ import annotations

import pytest

from tests.process.test_flights import (
    compare_flights,
    flights_schema,
    load_flights,
    produce_flights,
)
from tests.real.lake import LakeSink, new_topic

PARTITIONS = 6


@pytest.mark.timeout(280)
def test_every_flight_arrives_as_it_left(tmp_path, kafka, minio):
    records = load_flights()
    topic = new_topic(kafka, PARTITIONS)
    produce_flights(kafka.bootstrap_servers, topic, PARTITIONS, records)
    ends = [kafka.end_offset(topic, partition) for partition in range(PARTITIONS)]
    assert sum(ends) == len(records)
    with LakeSink(
        tmp_path,
        kafka,
        minio,
        topic,
        table={"schema": flights_schema()},
        flush={"interval_ms": 1000},
        logs={"format": "json", "level": "info"},
    ) as sink:
        sink.drain(timeout_s=240)
        audit = sink.audit()
        assert audit["ok"], audit["violations"]
        assert [part["offset_next"] for part in audit["partitions"]] == ends
        assert sum(part["rows"] for part in audit["partitions"]) == len(records)
        compare_flights(sink.table().to_pyarrow_table(), records)
