"""A plan: actions that a worker wants in the log, and the conditions under which they are right.

A plan is committed whole or not at all. Its conditions are checked on the state from which it is
sent, and again after every entry that is applied before it lands; that is all the fencing there
is. They are pure: a condition looks at a state, and at the entry that led to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as TypingProtocol

from msgspec import Struct

from delta_sink.delta.actions import Action, Entry, Protocol, encode_entry
from delta_sink.delta.receipt import RETIRED
from delta_sink.delta.state import LogState
from delta_sink.delta.support import refuse_log_store, refuse_unsupported
from delta_sink.errors import CommitConflict, FencedError, SourceRefused
from delta_sink.model import AppId


class Condition(TypingProtocol):
    """Something that must hold in the log for a plan to be right."""

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Return if it holds at `state`; `entry` is the one just applied, None after a jump.

        Raises:
            FencedError: (or its subclass) the plan is wrong now and must be dropped whole.
            FatalError: only a person can settle it.
        """
        ...


class TxnIs(Struct, frozen=True):
    """A partition's `txn` is exactly what the plan continues from; None: there is none yet."""

    app_id: str
    expected: int | None

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise FencedError if somebody moved this partition's offset."""
        found = state.txns.get(self.app_id)
        if found != self.expected:
            raise FencedError(
                f"{self.app_id}: expected txn {self.expected}, the log has {found} "
                f"at version {state.version}"
            )


class NoRival(Struct, frozen=True):
    """No other sink, and no other incarnation of the topic, has a `txn` for this partition.

    Retired ones are nobody's any more. `replaced` are those that the plan itself retires.
    """

    app_id: AppId
    replaced: frozenset[str] = frozenset()

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise SourceRefused if the partition is somebody else's already."""
        if entry is not None and not entry.txns:
            return
        for text, txn in state.txns.items():
            if txn == RETIRED or text in self.replaced:
                continue
            other = AppId.parse(text)
            if other is not None and other.tp == self.app_id.tp and other != self.app_id:
                raise SourceRefused(rival_sentence(self.app_id, other))


def rival_sentence(mine: AppId, other: AppId) -> str:
    """Return why `mine` cannot have a partition for which the log holds `other`."""
    if other.sink != mine.sink:
        return (
            f"{mine.tp}: sink '{other.sink}' already fills this table from this topic, and "
            f"'{mine.sink}' would read it again: use the name '{other.sink}', another table, or "
            f"take its offsets over with `delta-sink seek --adopt-sink {other.sink}`"
        )
    if mine.topic_id is None or other.topic_id is None:
        return (
            f"{mine.tp}: the log knows this partition as '{other}', the sink would write "
            f"'{mine}': set source.topic_ids as it was when the table was filled"
        )
    return (
        f"{mine.tp}: the topic was deleted and created again (id {other.topic_id} in the log, "
        f"{mine.topic_id} at the brokers), so its offsets mean other records: confirm with "
        f"`delta-sink seek --adopt-topic`"
    )


def retired_sentence(mine: AppId, heirs: Sequence[AppId]) -> str:
    """Return why `mine` cannot go on: its offset was taken over by one of `heirs`, if that is known."""
    heir = next((other for other in heirs if other.tp == mine.tp), None)
    if heir is None or heir.sink == mine.sink:
        return (
            f"{mine.tp}: the table goes on under another id of this topic than the brokers now "
            f"give ({mine.topic_id}), which was given up by `delta-sink seek --adopt-topic`"
        )
    return (
        f"{mine.tp}: sink '{heir.sink}' took over the offsets of '{mine.sink}' and goes on in its "
        f"place: start writers under the name '{heir.sink}', or take them back with `delta-sink "
        f"seek --adopt-sink {heir.sink}`"
    )


class TagAboveFence(Struct, frozen=True):
    """The data files' tag lies above vacuum's fence: none of them can have been deleted."""

    tag: int

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise CommitConflict if a vacuum may have deleted the plan's files."""
        if self.tag <= state.vacuum_fence:
            raise CommitConflict(
                f"files uploaded at version {self.tag} are behind vacuum's fence "
                f"{state.vacuum_fence}: upload again"
            )


class SameTable(Struct, frozen=True):
    """Schema, table partitioning and protocol are those the files were written for."""

    table_id: str
    schema_string: str
    partition_columns: tuple[str, ...]
    protocol: Protocol

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise CommitConflict if the table is another one by now."""
        found = SameTable.of(state)
        if found != self:
            raise CommitConflict(
                f"schema or protocol changed before version {state.version}: plan again"
            )

    @classmethod
    def of(cls, state: LogState) -> SameTable:
        """Return the condition that the table stays as it is at `state`."""
        metadata = state.metadata
        return cls(metadata.id, metadata.schema_string, metadata.partition_columns, state.protocol)


class StillSupported(Struct, frozen=True):
    """The table is one that this sink may append to, whatever its owner has changed."""

    log_store: str

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise TableRefused if a feature or property came to be used that we refuse."""
        if entry is None or entry.metadata is not None or entry.protocol is not None:
            refuse_unsupported(state.protocol, state.metadata)
            refuse_log_store(state.metadata, self.log_store)


class Plan(Struct, frozen=True):
    """What to commit, encoded once: every attempt sends these very bytes.

    `commit_id` stands in the receipt within `body`; by it, and by nothing else, a worker knows an
    entry of the log as its own.
    """

    commit_id: str
    body: bytes
    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, commit_id: str, actions: Sequence[Action], conditions: Sequence[Condition]) -> Plan:
        """Return the plan for `actions`; `commit_id` must stand in their commit info."""
        body = encode_entry(actions)
        assert commit_id.encode() in body, "a plan without its commit id cannot be recognised"
        return cls(commit_id, body, tuple(conditions))

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Return if every condition holds at `state`; else raise what the first one raises."""
        for condition in self.conditions:
            condition.check(state, entry)
