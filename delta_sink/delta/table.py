"""Making a table, and taking over one that another engine made: through the same committer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from delta_sink import __version__
from delta_sink.delta.actions import (
    Action,
    CommitInfo,
    Metadata,
    Protocol,
    encode_entry,
)
from delta_sink.delta.commit import (
    BACKOFF_FIRST_MS,
    BACKOFF_MAX_MS,
    Log,
    commit,
    open_log,
)
from delta_sink.delta.plan import Plan, SameTable
from delta_sink.delta.receipt import RECEIPT_FORMAT, Receipt, encode_receipt
from delta_sink.delta.schema import TableSchema
from delta_sink.delta.state import LogState
from delta_sink.delta.support import LOG_STORE_PROPERTY, refuse_unsupported
from delta_sink.errors import CommitUnknown, StoreUnavailable, TableRefused
from delta_sink.ports import Created

ENGINE_INFO = f"delta-sink/{__version__}"
CREATE_TRIES_MAX = 20


class Author(Struct, frozen=True):
    """Who commits: stands in every receipt, so that `DESCRIBE HISTORY` answers "who was it"."""

    sink: str
    worker: str
    generation: int = 0


class TableSpec(Struct, frozen=True):
    """The table that the configuration asks for."""

    schema: TableSchema
    partition_by: tuple[str, ...]
    properties: Mapping[str, str]
    comment: str | None = None


def commit_info(
    log: Log, receipt: Receipt, operation: str, parameters: Mapping[str, object], **fields: object
) -> CommitInfo:
    """Return the commit info that carries `receipt`; `fields` as `CommitInfo` has them."""
    info = CommitInfo(
        timestamp=log.clock.wall_ms(),
        operation=operation,
        operation_parameters=dict(parameters),
        engine_info=ENGINE_INFO,
        user_metadata=encode_receipt(receipt),
    )
    return msgspec.structs.replace(info, **fields)


def _table_receipt(author: Author, commit_id: str) -> Receipt:
    return Receipt(
        RECEIPT_FORMAT, "table", author.sink, author.worker, author.generation, commit_id
    )


def create_table(log: Log, spec: TableSpec, author: Author) -> LogState:
    """Return the state of the table, made as version 0 unless somebody else was first.

    Raises:
        CommitUnknown: the store did not answer for too long; open the log to see.
        StoreRefused: a definite no.
    """
    commit_id = log.entropy.unique_id()
    body = encode_entry(_creation(log, spec, author, commit_id))
    for attempt in range(CREATE_TRIES_MAX):
        if attempt:
            backoff_ms = min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS << min(attempt, 10))
            log.clock.sleep_ms(round(backoff_ms * (0.5 + log.entropy.fraction())))
        try:
            answer = log.entries.create(0, body)
            state = open_log(log)
        except StoreUnavailable:
            # The identical bytes go to the same version again: whichever attempt lands, one wins.
            continue
        if state is not None:
            if isinstance(answer, Created):
                log.telemetry.event("table_created", version=0)
            return state
        if isinstance(answer, Created):
            raise TableRefused(
                "the store took version 0 of the table and then does not show it: it is no store "
                "to keep a log in"
            )
        # *Exists* with nothing there: some stores answer so when a race was lost by everybody.
    raise CommitUnknown("version 0: the store did not answer whether the table was created")


def _creation(log: Log, spec: TableSpec, author: Author, commit_id: str) -> list[Action]:
    features = ("timestampNtz",) if spec.schema.has_timestamp_ntz else ()
    protocol = Protocol(3, 7, features, features) if features else Protocol(1, 2)
    metadata = Metadata(
        id=_uuid_text(log.entropy.unique_id()),
        schema_string=spec.schema.to_json(),
        partition_columns=spec.partition_by,
        configuration={**spec.properties, LOG_STORE_PROPERTY: log.entries.kind},
        name=None,
        description=spec.comment,
        created_time=log.clock.wall_ms(),
    )
    refuse_unsupported(protocol, metadata)
    parameters = {
        "isManaged": "false",
        "description": spec.comment,
        "partitionBy": msgspec.json.encode(spec.partition_by).decode(),
        "properties": msgspec.json.encode(metadata.configuration).decode(),
    }
    receipt = _table_receipt(author, commit_id)
    info = commit_info(log, receipt, "CREATE TABLE", parameters, is_blind_append=True)
    return [info, protocol, metadata]


def _uuid_text(hexadecimal: str) -> str:
    """Return 32 hexadecimal digits with the dashes of a UUID, as Delta writes table ids."""
    h = hexadecimal
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def adopt_table(log: Log, state: LogState, author: Author) -> LogState:
    """Return the state after the table says through which log store it is written.

    Nothing is committed if it says so already.

    Raises:
        TableRefused: the table says another kind, or uses what this sink does not implement.
        CommitConflict, CommitUnknown: as `commit`.
    """
    refuse_unsupported(state.protocol, state.metadata)
    if state.metadata.configuration.get(LOG_STORE_PROPERTY) is not None:
        return state
    commit_id = log.entropy.unique_id()
    properties = {**state.metadata.configuration, LOG_STORE_PROPERTY: log.entries.kind}
    metadata = msgspec.structs.replace(state.metadata, configuration=properties)
    info = commit_info(
        log,
        _table_receipt(author, commit_id),
        "SET TBLPROPERTIES",
        {"properties": msgspec.json.encode({LOG_STORE_PROPERTY: log.entries.kind}).decode()},
    )
    plan = Plan.of(commit_id, [info, metadata], [SameTable.of(state), SameProperties.of(state)])
    return commit(log, state, plan)


class SameProperties(Struct, frozen=True):
    """Nobody changed the table's properties: ours would overwrite theirs."""

    configuration: tuple[tuple[str, str | None], ...]

    def check(self, state: LogState, entry: object) -> None:
        """Raise TableRefused if the properties changed while ours were on the way."""
        if SameProperties.of(state) != self:
            raise TableRefused(
                "the table's properties changed while `init` wrote its own: run it again"
            )

    @classmethod
    def of(cls, state: LogState) -> SameProperties:
        """Return the condition that the properties stay as they are at `state`."""
        return cls(tuple(sorted(state.metadata.configuration.items())))
