"""Sinks from Apache Kafka into tables on MinIO, for every way to be a member of a group."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from confluent_kafka import Producer
from deltalake import DeltaTable

from delta_sink.adapters.objectstore import S3Store, StorageOptions
from delta_sink.delta.actions import Entry, parse_entry
from tests.process.sinks import (
    Ledger,
    Sink,
    WriterProcess,
    compare_table,
    digest,
    write_config,
)
from tests.services.kafka import Kafka
from tests.services.minio import Minio

WAYS: Mapping[str, Mapping[str, str]] = {
    "cooperative": {},
    "eager": {"partition.assignment.strategy": "range"},
    "kip848": {"group.protocol": "consumer"},
    "static": {},
}
PROTOCOLS = {
    "cooperative": "CLASSIC cooperative-sticky",
    "eager": "CLASSIC range",
    "kip848": "CONSUMER",
    "static": "CLASSIC cooperative-sticky",
}
"""What the broker says of a group whose members joined in that way."""

SESSION_KEYS = ("session.timeout.ms", "heartbeat.interval.ms")
"""Keys that KIP-848 has made the broker's."""


class LakeSink(Sink):
    """A sink of one topic, named after it, with its table in a bucket of its own."""

    def __init__(
        self,
        folder: Path,
        kafka: Kafka,
        minio: Minio,
        topic: str,
        *,
        way: str = "cooperative",
        keys: Mapping[str, Any] | None = None,
        name: str | None = None,
        uri: str | None = None,
        **overrides: Any,
    ) -> None:
        """Write the sink's file; nothing is started.

        Args:
            folder: where the file and the logs are.
            kafka: the broker; the topic may come later.
            minio: the store; a bucket is created.
            topic: what is read.
            way: one of `WAYS`.
            keys: more of the group `kafka`.
            name: of the sink, if not the topic's.
            uri: of the table, if it is another sink's.
            overrides: groups of the file, merged over what is said here.
        """
        self.name = name or f"on-{topic}"
        self.way = way
        self.uri = uri or f"s3://{minio.new_bucket()}/lake/{topic}"
        self._minio = minio
        self._store = S3Store(self.uri, storage=StorageOptions(**minio.storage), env={})
        self._entries: dict[int, Entry] = {}
        source = {"topics": [topic], "topic_ids": "required", **overrides.pop("source", {})}
        table = {"uri": self.uri, "storage": minio.storage, **overrides.pop("table", {})}
        keys = {**WAYS[way], **(keys or {})}
        config = write_config(
            folder,
            kafka.bootstrap_servers,
            name=self.name,
            source=source,
            table=table,
            kafka=keys,
            **overrides,
        )
        if way == "kip848":
            _without(config, SESSION_KEYS)
        super().__init__(folder, config)

    def start(self, *arguments: str, role: str = "writer") -> WriterProcess:
        """Start a worker; under static membership as the first member that does not run."""
        if self.way == "static":
            arguments = (*arguments, "--set", f"kafka.group.instance.id={self._free_seat()}")
        return super().start(*arguments, role=role)

    def _free_seat(self) -> str:
        taken = {
            argument.rpartition("=")[2]
            for writer in self.writers
            if writer.process.poll() is None
            for argument in writer.process.args  # type: ignore[union-attr]  # a list here
            if "group.instance.id" in str(argument)
        }
        return next(seat for n in range(100) if (seat := f"seat-{n}") not in taken)

    def entries(self) -> list[Entry]:
        """Return the table's log; an entry is fetched once."""
        names = [info.path for info in self._store.list("_delta_log/")]
        for name in names:
            stem, _, kind = name.rpartition("/")[2].partition(".")
            if kind == "json" and stem.isdigit() and int(stem) not in self._entries:
                data = bytes(self._store.get(name).data)
                self._entries[int(stem)] = parse_entry(int(stem), data, "")
        return [entry for _, entry in sorted(self._entries.items())]

    def table(self) -> DeltaTable:
        """Return the table as deltalake sees it."""
        options = {
            "aws_endpoint_url": self._minio.endpoint,
            "aws_access_key_id": self._minio.access_key,
            "aws_secret_access_key": self._minio.secret_key,
            "aws_region": self._minio.region,
            "allow_http": "true",
        }
        return DeltaTable(self.uri, storage_options=options)

    def ids(self) -> list[int]:
        """Return the column `id` of all rows, sorted."""
        return sorted(self.table().to_pyarrow_table(columns=["id"]).column("id").to_pylist())

    def compare(self, ledger: Ledger) -> dict[str, int]:
        """Return how many records of the ledger are lost, doubled, altered or unknown."""
        return compare_table(self.table(), ledger)


def new_topic(kafka: Kafka, partitions: int, **config: str) -> str:
    """Return the name of a topic that was created now."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    kafka.create_topic(name, partitions, **config)
    return name


class Transactions:
    """A producer that writes in transactions, and a ledger of what it committed."""

    def __init__(self, kafka: Kafka, topic: str, partitions: int) -> None:
        self.ledger = Ledger()
        self.aborted = 0
        self._topic = topic
        self._partitions = partitions
        self._producer = Producer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "transactional.id": f"tests-{topic}",
                "linger.ms": 1,
            }
        )
        self._producer.init_transactions(20)

    def run(self, numbers: range, *, abort: bool) -> None:
        """Produce records of these ids in one transaction and end it, one way or the other."""
        written: dict[tuple[str, int, int], str] = {}
        self._producer.begin_transaction()
        for number in numbers:
            payload = f"payload of {number}"
            value = json.dumps({"id": number, "payload": payload}).encode()

            def delivered(error: object, message: Any, payload: str = payload) -> None:
                assert error is None, error
                key = (message.topic(), message.partition(), message.offset())
                written[key] = digest(payload)

            partition = number % self._partitions
            self._producer.produce(
                self._topic, value=value, partition=partition, on_delivery=delivered
            )
        # An abort purges what the client still holds: only what was sent before is aborted there.
        assert self._producer.flush(20) == 0
        assert len(written) == len(numbers)
        if abort:
            self._producer.abort_transaction(20)
            self.aborted += len(written)
        else:
            self._producer.commit_transaction(20)
            self.ledger.acknowledged |= written


def _without(config: Path, keys: tuple[str, ...]) -> None:
    tree = yaml.safe_load(config.read_text(encoding="utf-8"))
    for key in keys:
        tree["kafka"].pop(key, None)
    config.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
