"""Orders of a small shop, as JSON: the records that `delta-sink demo` produces. Pure, seeded."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

CITIES = ("Lisbon", "Nairobi", "Osaka", "Quito", "Tromsø", "Valparaíso", "Zürich", "Hà Nội")
CHANNELS = ("web", "app", "shop", "phone")
SKUS = tuple(f"sku-{number:04d}" for number in range(400))
FIRST_DAY = datetime(2026, 11, 21, tzinfo=UTC)
DAYS = 3

COLUMNS = [
    {"name": "order_id", "type": "long", "nullable": False},
    {"name": "customer", "type": "string"},
    {"name": "city", "type": "string"},
    {"name": "channel", "type": "string"},
    {"name": "amount", "type": "decimal(12,2)"},
    {"name": "placed_at", "type": "timestamp"},
    {
        "name": "lines",
        "type": {
            "array": {
                "struct": [
                    {"name": "sku", "type": "string"},
                    {"name": "quantity", "type": "integer"},
                ]
            }
        },
    },
    {"name": "day", "type": "date", "from": "date(placed_at)"},
]
"""`table.schema` for these records."""


def orders(
    count: int, seed: int = 1, *, first: int = 0, days: int = DAYS, mixed: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """Yield `count` records as key and value; the same seed gives the same records.

    They are numbered from `first` on, and placed in the order of their numbers over `days`, or,
    `mixed`, in any order.
    """
    chance = random.Random(seed)  # noqa: S311  # made-up shopping needs no secrecy
    span_s = days * 86_400
    for number in range(first, first + count):
        customer = f"c{chance.randrange(5_000):05d}"
        share = chance.random() if mixed else (number - first) / count
        placed_at = FIRST_DAY + timedelta(seconds=span_s * share)
        lines = [
            {"sku": chance.choice(SKUS), "quantity": chance.randint(1, 5)}
            for _ in range(chance.randint(1, 3))
        ]
        order = {
            "order_id": number,
            "customer": customer,
            "city": chance.choice(CITIES),
            "channel": chance.choice(CHANNELS),
            "amount": f"{chance.randrange(500, 90_000) / 100:.2f}",
            "placed_at": placed_at.isoformat(timespec="milliseconds"),
            "lines": lines,
        }
        if number % 97 == 0:
            del order["channel"]  # real data has holes
        yield customer.encode(), json.dumps(order, ensure_ascii=False).encode()
