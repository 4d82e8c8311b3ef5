"""What a worker knows of the log: the state at one version, moved forward an entry at a time."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from delta_sink.delta.actions import Entry, Metadata, Protocol
from delta_sink.model import VACUUM_APP_ID

KNOWLEDGE_AGE_MAX_MS = 60_000
"""Older knowledge may neither send a commit nor believe an answer.

Log entries are cleaned up: once entry N+1 may have come and gone, its absence proves nothing, and
a PUT-if-absent of N+1 succeeds where nobody will ever read it. Clean-up leaves what is younger
than a day, so that a minute keeps a wide margin.
"""


class LogState(Struct, frozen=True):
    """The log up to and including `version`. It never holds the list of files.

    `e_tag` is that of entry `version` (empty where the entry itself was cleaned up behind a
    checkpoint). `looked_at_ms` is when the last look at the log *began*, on the worker's elapsed
    clock: own commits and answers to them do not make knowledge younger.
    """

    version: int
    e_tag: str
    protocol: Protocol
    metadata: Metadata
    txns: Mapping[str, int]
    looked_at_ms: int

    def applied(self, entry: Entry) -> LogState:
        """Return the state one version later."""
        assert entry.version == self.version + 1, (entry.version, self.version)
        return replace(
            self,
            version=entry.version,
            e_tag=entry.e_tag,
            protocol=entry.protocol or self.protocol,
            metadata=entry.metadata or self.metadata,
            txns={**self.txns, **entry.txns} if entry.txns else self.txns,
        )

    def is_old(self, now_ms: int) -> bool:
        """Return whether this knowledge is too old to act on."""
        return now_ms - self.looked_at_ms >= KNOWLEDGE_AGE_MAX_MS

    @property
    def vacuum_fence(self) -> int:
        """The version up to which vacuum may have deleted uncommitted files; -1 for none."""
        return self.txns.get(VACUUM_APP_ID, -1)
