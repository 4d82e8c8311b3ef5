"""What must hold in the log for a compaction's and a vacuum's commit to be right.

They stand beside the conditions of `plan.py` and are checked in the same way: on the state from
which a plan is sent, and after every entry that is applied before it lands.
"""

from __future__ import annotations

from msgspec import Struct

from delta_sink.delta.actions import Entry, Metadata, Protocol
from delta_sink.delta.file_columns import file_key
from delta_sink.delta.state import LogState
from delta_sink.delta.support import refuse_log_store, refuse_unsupported
from delta_sink.errors import CommitConflict, TableRefused


class InputsUnseen(CommitConflict):
    """The log jumped over entries that may have removed an input: look at the inputs anew."""


class FenceReached(CommitConflict):
    """Another vacuum's fence is as high or higher: there is nothing to commit; go on with it."""


class InputsLive(Struct, frozen=True):
    """Every input of a compaction is live, with the deletion vector that was applied.

    `version` is where that was seen. From there on every entry is looked at; where entries were
    passed over, behind a checkpoint, nobody can say any more, and the condition fails.
    """

    version: int
    keys: frozenset[str]
    paths: frozenset[str]

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise CommitConflict if an input was removed or changed, InputsUnseen after a jump."""
        if entry is None:
            if state.version != self.version:
                raise InputsUnseen(
                    f"the inputs were live at version {self.version}, the log was opened anew at "
                    f"{state.version}"
                )
            return
        for remove in entry.removes:
            if file_key(remove.path, remove.deletion_vector) in self.keys:
                raise CommitConflict(
                    f"version {entry.version} removed {remove.path}, which was being compacted"
                )
        for add in entry.adds:
            if add.path in self.paths:
                raise CommitConflict(
                    f"version {entry.version} changed {add.path}, which was being compacted"
                )


class FenceBelow(Struct, frozen=True):
    """Vacuum's fence in the log lies below `fence`: it never falls, and never stands still."""

    fence: int

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise FenceReached if the fence is there already."""
        if state.vacuum_fence >= self.fence:
            raise FenceReached(
                f"vacuum's fence is at {state.vacuum_fence}, wanted to raise it to {self.fence}"
            )


class StillRewritable(Struct, frozen=True):
    """The table is one whose files this sink may replace, whatever its owner has changed."""

    log_store: str

    def check(self, state: LogState, entry: Entry | None) -> None:
        """Raise TableRefused if a feature or property came to be used that we refuse."""
        if entry is None or entry.metadata is not None or entry.protocol is not None:
            refuse_rewriting(state.protocol, state.metadata)
            refuse_log_store(state.metadata, self.log_store)


def refuse_rewriting(protocol: Protocol, metadata: Metadata) -> None:
    """Return if this sink may replace data files of such a table by others with the same rows.

    Raises:
        TableRefused: it may not; the sentence names what is in the way.
    """
    # What would have to be carried from row to row or file to file (row tracking, clustering,
    # column mapping, widened types) is refused for appending already.
    refuse_unsupported(protocol, metadata)
    if metadata.configuration.get("delta.enableChangeDataFeed", "false") == "true":
        raise TableRefused(
            "the table has a change data feed (delta.enableChangeDataFeed), which this sink does "
            "not keep when it replaces files: it appends to the table, but does not compact it"
        )
