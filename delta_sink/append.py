"""From a batch to a plan: dead letters out, data files up, and the actions that list them.

These are jobs: functions of the values they are given, which use ports and return a value. They
run beside the state thread and change nothing that it owns. Whatever they leave behind when their
result is dropped (files that no commit lists, dead letters of a commit that never came) is
harmless: vacuum removes the one, and readers of dead letters go by the commit id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec import Struct

from delta_sink.buffer import Batch, Letter
from delta_sink.delta.actions import Action, Add, Txn
from delta_sink.delta.commit import BACKOFF_FIRST_MS, BACKOFF_MAX_MS, Log
from delta_sink.delta.hive import add_path
from delta_sink.delta.parquet import DataFile, FileLayout, encode_files
from delta_sink.delta.plan import Plan, SameTable, StillSupported, TagAboveFence, TxnIs
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt, partition_receipt
from delta_sink.delta.table import Author, commit_info
from delta_sink.errors import RetriableError
from delta_sink.model import AppId, Header, OffsetRange, OutgoingRecord, TopicPartition
from delta_sink.ports import Clock, Entropy, ObjectStore, Producer

PUT_TRIES_MAX = 8
"""Attempts to store one data file, or to send one batch of dead letters, before giving up."""

COMMIT_ID_HEADER = "delta_sink.commit_id"
REASON_HEADER = "delta_sink.reason"
_CONNECT = "__connect.errors."


class DeadLetterTarget(Struct, frozen=True):
    """Where bad records go."""

    producer: Producer
    topic: str


class EncodedBatch(Struct, frozen=True):
    """A batch as files: the rows themselves are no longer needed."""

    commit_id: str
    tag: int
    files: tuple[DataFile, ...]
    ranges: tuple[OffsetRange, ...]
    rows_count: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size_bytes for file in self.files)


def encode_batch(
    batch: Batch,
    layout: FileLayout,
    *,
    sink: str,
    commit_id: str,
    tag: int,
    entropy: Entropy,
    clock: Clock,
    dead_letters: DeadLetterTarget | None,
) -> EncodedBatch:
    """Return the files of `batch`, with its dead letters acknowledged by the brokers.

    `tag` is the log version known now, before any upload begins.

    Raises:
        RetriableError: the dead letters did not get through. Drop the batch and read it again.
        FatalError: the dead-letter topic refuses them.
    """
    letters = [dead_letter(letter, sink=sink, commit_id=commit_id) for letter in batch.letters]
    if letters:
        assert dead_letters is not None, "a decoder without a dead-letter topic stops instead"
        target = dead_letters
        _persist(lambda: target.producer.send(target.topic, letters), clock, entropy)
    files = encode_files(batch.tables, layout, tag=tag, unique_id=entropy.unique_id)
    return EncodedBatch(commit_id, tag, tuple(files), batch.ranges, batch.rows_count)


def store_files(
    files: Sequence[DataFile], store: ObjectStore, clock: Clock, entropy: Entropy
) -> None:
    """Return once every file is durable under its own name.

    The names are fresh, so that the same bytes may be sent again after silence.

    Raises:
        RetriableError: the store did not answer for long. Drop the batch and read it again.
        StoreRefused: a definite no.
    """
    for file in files:
        _persist(lambda file=file: store.put(file.path, file.data), clock, entropy)  # type: ignore[misc]  # mypy cannot type a default of a lambda


def _persist(call: Callable[[], object], clock: Clock, entropy: Entropy) -> None:
    """Repeat an idempotent call until it is answered, a bounded number of times."""
    for attempt in range(PUT_TRIES_MAX):
        try:
            call()
            return
        except RetriableError:
            if attempt == PUT_TRIES_MAX - 1:
                raise
            backoff_ms = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << attempt)
            clock.sleep_ms(round(backoff_ms * (0.5 + entropy.fraction())))


def plan_append(
    log: Log,
    encoded: EncodedBatch,
    *,
    author: Author,
    app_ids: Mapping[TopicPartition, AppId],
    table: SameTable,
) -> Plan:
    """Return the plan that puts the files and the offsets of a batch into the log together."""
    now_ms = log.clock.wall_ms()
    receipt = Receipt(
        format=RECEIPT_FORMAT,
        kind="append",
        sink=author.sink,
        worker=author.worker,
        generation=author.generation,
        commit_id=encoded.commit_id,
        partitions=tuple(
            partition_receipt(str(app_ids[covered.tp]), covered) for covered in encoded.ranges
        ),
    )
    info = commit_info(
        log,
        receipt,
        "WRITE",
        {"mode": "Append", "partitionBy": msgspec.json.encode(table.partition_columns).decode()},
        is_blind_append=True,
        operation_metrics={
            "numFiles": str(len(encoded.files)),
            "numOutputRows": str(encoded.rows_count),
            "numOutputBytes": str(encoded.size_bytes),
        },
    )
    actions: list[Action] = [info]
    conditions: list[TxnIs | SameTable | TagAboveFence | StillSupported] = [
        table,
        StillSupported(log.entries.kind),
    ]
    for covered in encoded.ranges:
        app_id = str(app_ids[covered.tp])
        actions.append(Txn(app_id, covered.offset_next))
        conditions.append(TxnIs(app_id, covered.offset_first))
    if encoded.files:
        conditions.append(TagAboveFence(encoded.tag))
    actions += [_add(file, now_ms) for file in encoded.files]
    return Plan.of(encoded.commit_id, actions, conditions)


def _add(file: DataFile, now_ms: int) -> Add:
    return Add(
        path=add_path(file.path),
        partition_values=dict(file.partition_values),
        size=file.size_bytes,
        modification_time=now_ms,
        data_change=True,
        stats=file.stats,
    )


def dead_letter(letter: Letter, *, sink: str, commit_id: str) -> OutgoingRecord:
    """Return the bad record as the dead-letter topic gets it: itself, and why, where from.

    The headers are those of Kafka Connect (KIP-298), numbers as decimal text, so that tools for
    Connect's dead letters work; `delta_sink.commit_id` says which commit lists it. A letter whose
    commit is not in the log is a repetition of one whose commit is.
    """
    bad = letter.bad
    headers: list[Header] = list(letter.headers)
    facts = {
        _CONNECT + "topic": letter.tp.topic,
        _CONNECT + "partition": str(letter.tp.partition),
        _CONNECT + "offset": str(bad.offset),
        _CONNECT + "connector.name": sink,
        _CONNECT + "task.id": "0",
        _CONNECT + "stage": "VALUE_CONVERTER",
        _CONNECT + "class.name": "delta_sink.decode.Decoder",
        _CONNECT + "exception.class.name": "delta_sink.errors.DataError",
        _CONNECT + "exception.message": bad.message,
        REASON_HEADER: bad.reason,
        COMMIT_ID_HEADER: commit_id,
    }
    headers += [(name, text.encode("utf-8", "replace")) for name, text in facts.items()]
    return OutgoingRecord(letter.key, letter.value, tuple(headers))
