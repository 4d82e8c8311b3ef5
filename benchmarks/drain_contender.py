"""`python -m benchmarks.drain_contender NAME SERVERS TOPIC KIND RECORDS FOLDER`: one contender.

`bare` consumes and throws away. `loop` is what one writes first: consume, parse each value, and
once a second make a table of the rows and append it to the Delta table in FOLDER. Both are tuned
as the sink is. The last line that is printed is JSON: how long reading took, and the rows written.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final

from confluent_kafka import Consumer, Message, TopicPartition

PARTITIONS: Final = 4
CONSUME_MAX: Final = 500
COMMIT_S: Final = 1.0
TUNED: Final[dict[str, Any]] = {
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 16 * 1024,
    "queued.min.messages": 32_768,
    "fetch.max.bytes": 8 * 1024 * 1024,
    "fetch.wait.max.ms": 100,
    "check.crcs": True,
    "isolation.level": "read_committed",
}
"""What the sink sets by itself, under its default budget."""


def _polls(servers: str, topic: str, records: int) -> Iterator[list[Message]]:
    """Yield what each call of `consume` gives until there were `records`."""
    client = Consumer(
        {"bootstrap.servers": servers, "group.id": "bench", "enable.auto.commit": False, **TUNED}
    )
    client.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
    found = 0
    while found < records:
        messages = client.consume(CONSUME_MAX, 0.1)
        found += len(messages)
        yield messages


def bare(servers: str, topic: str, _kind: str, records: int, _folder: str) -> int:
    """Return 0, the rows written, once `records` were consumed."""
    for messages in _polls(servers, topic, records):
        del messages
    return 0


def loop(servers: str, topic: str, kind: str, records: int, folder: str) -> int:
    """Return the rows written once `records` are in the table."""
    # Here, not above: what only consumes should not pay for the memory of these.
    import orjson
    import pyarrow as pa
    from deltalake import write_deltalake

    from benchmarks.drain_data import TIMES, arrow_schema

    wanted = arrow_schema(kind)  # type: ignore[arg-type]  # the parent passes a kind
    as_text = pa.schema([(f.name, pa.string() if f.name in TIMES else f.type) for f in wanted])
    rows: list[object] = []
    written = 0
    committed_s = perf_counter()
    for messages in _polls(servers, topic, records):
        rows += [orjson.loads(m.value()) for m in messages if m.error() is None]
        if rows and (written + len(rows) == records or perf_counter() - committed_s >= COMMIT_S):
            table = pa.Table.from_pylist(rows, as_text).cast(wanted)
            write_deltalake(folder, table, mode="append")
            written += len(rows)
            rows = []
            committed_s = perf_counter()
    return written


CONTENDERS: Final[dict[str, Callable[[str, str, str, int, str], int]]] = {
    "bare": bare,
    "loop": loop,
}


def main(arguments: list[str]) -> None:
    """Run one contender and print what it did."""
    name, servers, topic, kind, records, folder = arguments
    begun = perf_counter()
    rows = CONTENDERS[name](servers, topic, kind, int(records), folder)
    print(json.dumps({"seconds": perf_counter() - begun, "rows": rows}), flush=True)
    # Closing the consumer is no part of reading, and the same for all.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
