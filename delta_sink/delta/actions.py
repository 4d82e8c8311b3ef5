"""The actions of a Delta log entry, read and written as the Delta protocol has them.

An entry is a file of JSON lines, one action each. What this sink has no use for (change data,
domain metadata, sidecars) is passed over when it is read; whether a table may be written at all
is decided in `support.py`.

Source: Delta protocol, "Actions".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from delta_sink.errors import TableRefused


class Protocol(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a reader and a writer must understand."""

    min_reader_version: int
    min_writer_version: int
    reader_features: tuple[str, ...] | None = None
    writer_features: tuple[str, ...] | None = None


class Format(msgspec.Struct, frozen=True):
    """How data files are encoded; Delta knows Parquet only."""

    provider: str = "parquet"
    options: dict[str, str] = {}


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Schema, table partition columns and properties of a table."""

    id: str
    schema_string: str
    partition_columns: tuple[str, ...] = ()
    configuration: dict[str, str | None] = {}
    format: Format = Format()
    name: str | None = None
    description: str | None = None
    created_time: int | None = None


class Txn(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """How far an application has come. We never set `last_updated` (FACTS: it can expire)."""

    app_id: str
    version: int
    last_updated: int | None = None


class Add(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A data file that belongs to the table from this version on."""

    path: str
    partition_values: dict[str, str | None]
    size: int
    modification_time: int
    data_change: bool
    stats: str | None = None
    tags: dict[str, str | None] | None = None
    deletion_vector: dict[str, object] | None = None


class Remove(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A data file that no longer belongs to the table from this version on."""

    path: str
    data_change: bool = True
    deletion_timestamp: int | None = None
    extended_file_metadata: bool | None = None
    partition_values: dict[str, str | None] | None = None
    size: int | None = None
    deletion_vector: dict[str, object] | None = None


class CommitInfo(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Who committed, and what. `user_metadata` of our commits is a receipt (`receipt.py`).

    Other engines put what they like here, so nothing of it is required to be there.
    """

    timestamp: int | None = None
    operation: str | None = None
    operation_parameters: dict[str, object] | None = None
    is_blind_append: bool | None = None
    operation_metrics: dict[str, object] | None = None
    engine_info: str | None = None
    user_metadata: object = None


class Line(msgspec.Struct, rename="camel", omit_defaults=True):
    """One line of an entry: exactly one of its fields is set."""

    protocol: Protocol | None = None
    meta_data: Metadata | None = None
    txn: Txn | None = None
    add: Add | None = None
    remove: Remove | None = None
    commit_info: CommitInfo | None = None


class Entry(Struct, frozen=True):
    """One version of the log, with the `e_tag` of the object that holds it."""

    version: int
    e_tag: str
    protocol: Protocol | None = None
    metadata: Metadata | None = None
    txns: Mapping[str, int] | None = None
    adds: Sequence[Add] = ()
    removes: Sequence[Remove] = ()
    commit_info: CommitInfo | None = None


_line_decoder = msgspec.json.Decoder(Line)
_encoder = msgspec.json.Encoder()


def parse_entry(version: int, data: bytes, e_tag: str) -> Entry:
    """Return the entry that `data`, the whole file of `version`, holds.

    Raises:
        TableRefused: a line is no action of Delta's. Nobody can go on from such a log.
    """
    protocol = metadata = commit_info = None
    txns: dict[str, int] = {}
    adds: list[Add] = []
    removes: list[Remove] = []
    for number, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = _line_decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TableRefused(
                f"_delta_log/{version:020d}.json line {number}: expected a Delta action, "
                f"got something else ({error})"
            ) from error
        protocol = line.protocol or protocol
        metadata = line.meta_data or metadata
        commit_info = line.commit_info or commit_info
        if line.txn is not None:
            txns[line.txn.app_id] = line.txn.version
        if line.add is not None:
            adds.append(line.add)
        if line.remove is not None:
            removes.append(line.remove)
    return Entry(version, e_tag, protocol, metadata, txns, adds, removes, commit_info)


Action = Protocol | Metadata | Txn | Add | Remove | CommitInfo


def encode_entry(actions: Sequence[Action]) -> bytes:
    """Return the file of an entry with these actions, in this order."""
    return b"\n".join(_encoder.encode(_as_line(action)) for action in actions) + b"\n"


def _as_line(action: Action) -> Line:
    match action:
        case Protocol():
            return Line(protocol=action)
        case Metadata():
            return Line(meta_data=action)
        case Txn():
            return Line(txn=action)
        case Add():
            return Line(add=action)
        case Remove():
            return Line(remove=action)
        case CommitInfo():
            return Line(commit_info=action)
