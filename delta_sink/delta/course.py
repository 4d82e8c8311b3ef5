"""The course of the log since a compaction was planned, heard once for all of its bins.

Every bin was planned from one state of the log, and must know that nobody removed its files since
when it is committed. Would each read all entries since then by itself, the hundredth bin would read
what the ninety-nine before it have committed: entries by the square of the bins.

So the bins of a plan share what was heard. Each entry, in order, is asked once whether it changed
any file of the plan, and a bin whose files it left alone is committed from the newest state that was
reached. After a gap (entries that went behind a checkpoint) nothing more is heard, and each bin goes
by the state that is its own.

Only one commit of a plan is under way at a time: nothing here is locked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from delta_sink.delta.actions import Entry
from delta_sink.delta.commit import Log
from delta_sink.delta.compaction_plan import Bin, InputFile
from delta_sink.delta.state import LogState
from delta_sink.errors import CommitConflict


class Course:
    """What became of the files of `bins` since `state`, from whose snapshot they were planned."""

    def __init__(self, state: LogState, bins: Iterable[Bin]) -> None:
        self._state = state
        self._heard_to = state.version
        self._paths = frozenset(file.path for each in bins for file in each.files)
        self._changed: dict[str, int] = {}  # by path: the version that removed it or added it anew

    def listen(self, log: Log) -> Log:
        """Return `log`, of whose entries this course hears as well."""
        others = log.heard

        def heard(entry: Entry) -> None:
            self._hear(entry)
            if others is not None:
                others(entry)

        return replace(log, heard=heard)

    def _hear(self, entry: Entry) -> None:
        """Take note of the next entry; those that are told again, or behind a gap, are passed."""
        if entry.version != self._heard_to + 1:
            return
        self._heard_to = entry.version
        named = [remove.path for remove in entry.removes] + [add.path for add in entry.adds]
        for path in self._paths.intersection(named):
            self._changed[path] = entry.version

    def reach(self, state: LogState) -> None:
        """Go on from `state` from now on, if every entry up to it was heard."""
        if state.version == self._heard_to:
            self._state = state

    def live_at(self, inputs: Sequence[InputFile], state: LogState) -> LogState:
        """Return the newest state at which `inputs`, live at `state`, are known to be live.

        Raises:
            CommitConflict: one of them was removed or changed since. Drop the bin.
        """
        if state.version >= self._state.version:
            return state
        for file in inputs:
            version = self._changed.get(file.path)
            if version is not None:
                raise CommitConflict(
                    f"version {version} removed or changed {file.path}, which was being compacted"
                )
        return self._state
