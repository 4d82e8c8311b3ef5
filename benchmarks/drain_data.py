"""What the drain is measured on: two topics of made-up orders, the same ones for the same seed.

`flat` is a small record of 100 bytes, in which the cost of handling a record shows; `nested` is an
order of about 1,000 bytes, with structs and lists three levels deep, in which the cost of a byte
shows. Both are written as programs write JSON: no spaces, the same keys in the same order.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.appender import SEED
from benchmarks.drain_contender import PARTITIONS

FLAT_BYTES: Final = 100
ORDERS_DISTINCT: Final = 4_000
"""So many different orders are made; each record is one of them with a number of its own."""

_FIRST_S: Final = 1_795_500_000
_CITIES: Final = ("Lisbon", "Nairobi", "Osaka", "Quito", "Tromsø", "Valparaíso", "Zürich")
_STREETS: Final = ("Harbour Road", "Rua das Flores", "Station Street", "Mill Lane", "Long Walk")
_METHODS: Final = ("card", "transfer", "invoice", "voucher")
_TAGS: Final = ("new", "sale", "fragile", "large", "cold", "gift")
_WORDS: Final = ("leave", "the", "parcel", "with", "my", "neighbour", "behind", "blue", "door")

Kind = Literal["flat", "nested"]

COLUMNS: Final[dict[Kind, list[dict[str, object]]]] = {
    "flat": [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "amount", "type": "double"},
        {"name": "at", "type": "timestamp"},
        {"name": "note", "type": "string"},
    ],
    "nested": [
        {"name": "id", "type": "long", "nullable": False},
        {"name": "at", "type": "timestamp"},
        {
            "name": "customer",
            "type": {
                "struct": [
                    {"name": "id", "type": "long"},
                    {"name": "name", "type": "string"},
                    {"name": "email", "type": "string"},
                    {
                        "name": "address",
                        "type": {
                            "struct": [
                                {"name": "street", "type": "string"},
                                {"name": "city", "type": "string"},
                                {"name": "zip", "type": "string"},
                            ]
                        },
                    },
                ]
            },
        },
        {
            "name": "lines",
            "type": {
                "array": {
                    "struct": [
                        {"name": "sku", "type": "string"},
                        {"name": "quantity", "type": "integer"},
                        {"name": "price", "type": "double"},
                        {"name": "tags", "type": {"array": "string"}},
                    ]
                }
            },
        },
        {
            "name": "payment",
            "type": {
                "struct": [
                    {"name": "method", "type": "string"},
                    {"name": "amount", "type": "double"},
                    {"name": "paid", "type": "boolean"},
                ]
            },
        },
        {"name": "note", "type": "string"},
    ],
}
"""`table.schema` for each kind."""

TIMES: Final = ("at",)
"""The columns that are text in JSON and timestamps in the table."""


def arrow_schema(kind: Kind) -> pa.Schema:
    """Return the columns of `kind` as a user of Arrow would write them."""
    line = pa.struct(
        [
            ("sku", pa.string()),
            ("quantity", pa.int32()),
            ("price", pa.float64()),
            ("tags", pa.list_(pa.string())),
        ]
    )
    address = pa.struct([("street", pa.string()), ("city", pa.string()), ("zip", pa.string())])
    at = pa.timestamp("us", tz="UTC")
    if kind == "flat":
        return pa.schema(
            [("id", pa.int64()), ("amount", pa.float64()), ("at", at), ("note", pa.string())]
        )
    customer = [("id", pa.int64()), ("name", pa.string()), ("email", pa.string())]
    payment = [("method", pa.string()), ("amount", pa.float64()), ("paid", pa.bool_())]
    return pa.schema(
        [
            ("id", pa.int64()),
            ("at", at),
            ("customer", pa.struct([*customer, ("address", address)])),
            ("lines", pa.list_(line)),
            ("payment", pa.struct(payment)),
            ("note", pa.string()),
        ]
    )


def make_values(kind: Kind, count: int) -> Iterator[bytes]:
    """Yield `count` values; `id` counts up from 0."""
    chance = random.Random(SEED)
    return _flat(chance, count) if kind == "flat" else _nested(chance, count)


def _flat(chance: random.Random, count: int) -> Iterator[bytes]:
    words = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=1 << 16)).encode()
    for number in range(count):
        at = chance.getrandbits(15)
        head = b'{"id":%d,"amount":%d.%02d,"at":"%s","note":"' % (
            number,
            at & 511,
            at % 100,
            _time(number),
        )
        yield head + words[at : at + FLAT_BYTES - len(head) - 2] + b'"}'


def _nested(chance: random.Random, count: int) -> Iterator[bytes]:
    tails = [_order(chance) for _ in range(ORDERS_DISTINCT)]
    for number in range(count):
        yield b'{"id":%d,"at":"%s",' % (number, _time(number)) + chance.choice(tails)


def _time(number: int) -> bytes:
    at = time.gmtime(_FIRST_S + number // 1_000)
    return (time.strftime("%Y-%m-%dT%H:%M:%S", at) + f".{number % 1_000:03d}Z").encode()


def _order(chance: random.Random) -> bytes:
    """Return everything of an order behind its number and time."""
    person = f"{chance.choice(_WORDS)}.{chance.choice(_WORDS)}{chance.randrange(10_000)}"
    lines = [
        {
            "sku": f"sku-{chance.randrange(5_000):05d}-{chance.getrandbits(40):010x}",
            "quantity": chance.randrange(1, 9),
            "price": chance.randrange(100, 100_000) / 100,
            "tags": chance.sample(_TAGS, chance.randrange(1, 4)),
        }
        for _ in range(chance.randrange(5, 8))
    ]
    order = {
        "customer": {
            "id": chance.getrandbits(40),
            "name": person.replace(".", " ").title(),
            "email": f"{person}@example.com",
            "address": {
                "street": f"{chance.choice(_STREETS)} {chance.randrange(200)}",
                "city": chance.choice(_CITIES),
                "zip": f"{chance.randrange(100_000):05d}",
            },
        },
        "lines": lines,
        "payment": {
            "method": chance.choice(_METHODS),
            "amount": chance.randrange(1_000, 1_000_000) / 100,
            "paid": chance.random() < 0.9,
        },
        "note": " ".join(chance.choices(_WORDS, k=chance.randrange(34, 46))),
    }
    return json.dumps(order, separators=(",", ":"), ensure_ascii=False).encode()[1:]


# --- topics -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Backlog:
    """A topic that is full: so many records of `kind`, and the bytes of their values."""

    servers: str
    topic: str
    kind: Kind
    records: int
    size_bytes: int


def fill(servers: str, kind: Kind, records: int) -> Backlog:
    """Return a topic that holds exactly these records; one that is there already is taken as it is.

    Raises:
        AssertionError: the topic of this name holds something else.
    """
    topic = f"delta-sink-bench-{kind}-{records}-seed-{SEED}"
    size_bytes = sum(map(len, make_values(kind, records)))
    if topic not in AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10).topics:
        _produce(servers, topic, kind, records)
    found = _count(servers, topic)
    assert found == records, f"topic {topic} holds {found} records, wanted {records}"
    return Backlog(servers, topic, kind, records, size_bytes)


def _produce(servers: str, topic: str, kind: Kind, records: int) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    for created in admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values():
        created.result()
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "linger.ms": 50,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 1_000_000,
            "compression.type": "none",
        }
    )
    for number, value in enumerate(make_values(kind, records)):
        while True:
            try:
                producer.produce(topic, value=value, partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
        if number % 10_000 == 0:
            producer.poll(0)
    left = producer.flush(120)
    assert not left, f"{left} records of {topic} were not acknowledged"


def _count(servers: str, topic: str) -> int:
    client = Consumer({"bootstrap.servers": servers, "group.id": "delta-sink-bench-count"})
    try:
        marks = [
            client.get_watermark_offsets(TopicPartition(topic, partition), timeout=10)
            for partition in range(PARTITIONS)
        ]
    finally:
        client.close()
    return sum(end - first for first, end in marks)
