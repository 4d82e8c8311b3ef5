"""Asking for compactions: what a request says, and a writer that asks for what it sees.

A writer hears of every entry that it applies while it follows the log, and so sees small files
come and go. Once those of a table partition ask for a compaction, it sends the command that anybody
would send. The scheduler of the compactors looks at the whole table and asks as well; both name
what they want by table partition and minute, so that one command comes of it.

A writer knows only what was added since it started, and asks once for what it has seen: what comes
of it is not its business.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from msgspec import Struct

from delta_sink.control import Arguments, Command, Compact
from delta_sink.control_client import ControlClient, send_command
from delta_sink.delta.actions import Entry, Metadata
from delta_sink.delta.compaction_plan import CompactionPolicy, target_file_bytes
from delta_sink.delta.schema import TableSchema
from delta_sink.delta.state import LogState
from delta_sink.errors import DeltaSinkError
from delta_sink.policy import MINUTE_MS, Debt, SmallFiles
from delta_sink.ports import Job, Jobs, Telemetry
from delta_sink.settings import Settings
from delta_sink.where import where_of

LIFE_MS: Final = 3_600_000
PARTITIONS_MAX: Final = 16
"""With more table partitions due, one command is sent for the whole table."""

LOOK_MS: Final = 5_000
HEARD_MAX: Final = 10_000
"""So many entries are kept for the next look; of more, the scheduler takes care."""


class Wanted(Struct, frozen=True):
    """A command that policy asks for. `name` makes its id, together with the minute."""

    name: str
    args: Arguments
    reason: str
    at_ms: int


def command_for(wanted: Wanted, table_uri: str, issuer: str, *, now_ms: int) -> Command:
    """Return the command that asks for it; the same from everybody within the same minute."""
    return Command(
        f"auto.{wanted.name}.{wanted.at_ms // MINUTE_MS}",
        table_uri,
        wanted.args,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + LIFE_MS,
        issuer=issuer,
    )


def compactions_for(due: Sequence[Debt], metadata: Metadata, now_ms: int) -> Iterator[Wanted]:
    """Yield a compaction for each table partition; one for the table where they are many."""
    if len(due) > PARTITIONS_MAX:
        reason = f"{len(due)} table partitions, the first with {due[0].reason}"
        yield Wanted("compact", Compact(), reason, now_ms)
        return
    schema = TableSchema.from_json(metadata.schema_string)
    for debt in due:
        where = where_of(metadata.partition_columns, debt.values, schema)
        name = "compact"
        if where is not None:
            name = f"compact.{hashlib.sha256(where.encode()).hexdigest()[:12]}"
        yield Wanted(name, Compact(where=where), debt.reason, now_ms)


class Asking:
    """A writer's eye on small files. Only its state thread touches it, but for `hear`."""

    def __init__(
        self, settings: Settings, client: ControlClient, table_uri: str, telemetry: Telemetry
    ) -> None:
        self._clock = client.clock
        self._settings = settings
        self._client = client
        self._table_uri = table_uri
        self._telemetry = telemetry
        self._heard: deque[Entry] = deque(maxlen=HEARD_MAX)
        self._small: SmallFiles | None = None
        self._version = -1
        self._look_ms = 0
        self._job: Job[None] | None = None

    def hear(self, entry: Entry) -> None:
        """Note an entry for the next look. Jobs may call it."""
        if entry.adds or entry.removes:
            self._heard.append(entry)

    def advance(self, jobs: Jobs, state: LogState) -> None:
        """Look at what was heard, and ask for what is due, every few seconds."""
        now_ms = self._clock.elapsed_ms()
        if self._job is not None and self._job.is_done():
            self._end(self._job)
        if self._job is not None or now_ms - self._look_ms < LOOK_MS:
            return
        self._look_ms = now_ms
        wall_ms = self._clock.wall_ms()
        wanted = self._wanted(state, wall_ms)
        if wanted:
            self._job = jobs.submit("ask", lambda: self._send(wanted, wall_ms))

    def _wanted(self, state: LogState, wall_ms: int) -> list[Wanted]:
        configured = self._settings.compaction
        metadata = state.metadata
        policy = CompactionPolicy(
            target_file_bytes(metadata, configured.target_file_bytes), quiet_ms=configured.quiet_ms
        )
        small = self._small
        if small is None or (small.partition_by, small.policy) != (
            metadata.partition_columns,
            policy,
        ):
            small = self._small = SmallFiles(metadata.partition_columns, policy)
        while self._heard:
            entry = self._heard.popleft()
            if entry.version > self._version:
                small.apply(entry)
                self._version = entry.version
        due = small.due(configured, wall_ms)
        for values in (
            *(debt.values for debt in due),
            *small.crowded(2 * configured.small_files_max),
        ):
            small.forget(values)
        return list(compactions_for(due, metadata, wall_ms))

    def _send(self, wanted: Sequence[Wanted], wall_ms: int) -> None:
        for each in wanted:
            command = command_for(each, self._table_uri, "writer", now_ms=wall_ms)
            send_command(self._client, command)
            self._telemetry.event(
                "command_sent", command=command.command, id=command.id, reason=each.reason
            )

    def _end(self, job: Job[None]) -> None:
        self._job = None
        try:
            job.result()
        except DeltaSinkError as error:
            # A courtesy: the scheduler asks for the same.
            self._telemetry.event("waiting", "warning", reason=f"asking for maintenance: {error}")
