"""Send made-up orders to the topic `orders`, as JSON.

python examples/local/produce.py localhost:9092 --records 10000
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from datetime import UTC, datetime, timedelta

from confluent_kafka import KafkaException, Producer

FIRST = datetime(2026, 11, 21, tzinfo=UTC)
SKUS = [f"sku-{number:03d}" for number in range(100)]


def order(number: int, chance: random.Random) -> dict[str, object]:
    """Return one order."""
    return {
        "order_id": number,
        "customer": f"c{chance.randrange(500):04d}",
        "amount": f"{chance.randrange(100, 50_000) / 100:.2f}",
        "placed_at": (FIRST + timedelta(seconds=20 * number)).isoformat(),
        "lines": [
            {"sku": chance.choice(SKUS), "quantity": chance.randint(1, 5)}
            for _ in range(chance.randint(1, 3))
        ],
    }


def main() -> int:
    """Send the records; return 1 if the broker did not take all of them."""
    parser = argparse.ArgumentParser(description="Send made-up orders to a topic, as JSON.")
    parser.add_argument("bootstrap", help="address of a broker, for example localhost:9092")
    parser.add_argument("--topic", default="orders")
    parser.add_argument("--records", type=int, default=10_000)
    arguments = parser.parse_args()

    chance = random.Random(1)
    producer = Producer({"bootstrap.servers": arguments.bootstrap, "linger.ms": 20})
    refused: list[str] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            refused.append(str(error))

    for number in range(arguments.records):
        record = order(number, chance)
        while True:
            try:
                producer.produce(
                    arguments.topic,
                    key=str(record["customer"]),
                    value=json.dumps(record),
                    on_delivery=delivered,
                )
                break
            except BufferError:  # the client's own queue is full: let it send
                producer.poll(0.1)
            except KafkaException as error:  # the broker has refused the topic already
                refused.append(str(error))
                break
        producer.poll(0)
    waiting = producer.flush(30)
    if refused or waiting:
        reason = refused[0] if refused else "the broker did not answer in time"
        print(f"{len(refused) + waiting} records were not taken: {reason}", file=sys.stderr)
        return 1
    print(f"{arguments.records} records are in topic {arguments.topic}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
