"""When maintenance is due: from what stands in the log, the configuration and the time. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct, field

from delta_sink.delta.actions import Add, Entry
from delta_sink.delta.compaction_plan import CompactionPolicy, worthwhile
from delta_sink.delta.file_columns import file_key
from delta_sink.settings import CompactionSettings

MINUTE_MS: Final = 60_000
CRON_MINUTES_MAX: Final = 2 * 1440
"""How far back a time that was missed still counts."""

Values = tuple[str | None, ...]
"""A table partition: its values as the log spells them, in the order of its columns."""


class Debt(Struct, frozen=True):
    """The small files of a table partition that are old enough to be rewritten, and why now.

    `newest_ms` is when the newest of them was added: while it and `files` stay the same, nothing
    has come of the last request.
    """

    values: Values
    reason: str
    files: int
    size_bytes: int
    newest_ms: int


class _Small(Struct, frozen=True):
    size_bytes: int
    added_ms: int


class SmallFiles(Struct):
    """The small live files of a table, by table partition; kept up to date entry by entry.

    Memory: about 300 bytes for each small file.
    """

    partition_by: tuple[str, ...]
    policy: CompactionPolicy
    _files: dict[Values, dict[str, _Small]] = field(default_factory=dict)
    _places: dict[str, Values] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return how many small files there are."""
        return len(self._places)

    def take(self, files: pa.Table) -> None:
        """Take the live files of a snapshot (`FACT_SCHEMA`)."""
        names = ["path", "partitionValues", "size", "modificationTime", "deletionVector"]
        for row in files.select(names).to_pylist():
            vector = row["deletionVector"]
            known = vector and {name: v for name, v in vector.items() if v is not None}
            self._add(
                file_key(row["path"], known),
                dict(row["partitionValues"]),
                _Small(row["size"], row["modificationTime"]),
            )

    def apply(self, entry: Entry) -> None:
        """Take what a log entry changes."""
        for remove in entry.removes:
            key = file_key(remove.path, remove.deletion_vector)
            values = self._places.pop(key, None)
            if values is not None:
                del self._files[values][key]
                if not self._files[values]:
                    del self._files[values]
        for add in entry.adds:
            self._take_add(add)

    def _take_add(self, add: Add) -> None:
        key = file_key(add.path, add.deletion_vector)
        self._add(key, add.partition_values, _Small(add.size, add.modification_time))

    def _add(self, key: str, named: Mapping[str, str | None], small: _Small) -> None:
        if small.size_bytes >= self.policy.small_share * self.policy.target_file_bytes:
            return
        values = tuple(named.get(name) or None for name in self.partition_by)
        self._files.setdefault(values, {})[key] = small
        self._places[key] = values

    def forget(self, values: Values) -> None:
        """Let go of the small files of a table partition: they were asked for."""
        for key in self._files.pop(values, {}):
            del self._places[key]

    def crowded(self, files_max: int) -> list[Values]:
        """Return the table partitions with more small files than that."""
        return [values for values, files in self._files.items() if len(files) > files_max]

    def due(self, configured: CompactionSettings, now_ms: int) -> list[Debt]:
        """Return the table partitions that ask for a compaction, the most files first."""
        found = []
        for values, files in self._files.items():
            quiet = [f for f in files.values() if f.added_ms <= now_ms - self.policy.quiet_ms]
            debt = self._debt(values, quiet, configured, now_ms)
            if debt is not None:
                found.append(debt)
        return sorted(found, key=lambda debt: (-debt.files, str(debt.values)))

    def _debt(
        self,
        values: Values,
        quiet: Sequence[_Small],
        configured: CompactionSettings,
        now_ms: int,
    ) -> Debt | None:
        if len(quiet) < 2:
            return None
        size_bytes = sum(file.size_bytes for file in quiet)
        oldest_ms = min(file.added_ms for file in quiet)
        if len(quiet) >= configured.small_files_max:
            reason = f"{len(quiet)} small files"
        elif size_bytes >= configured.small_bytes_max:
            reason = f"{size_bytes} bytes in small files"
        elif now_ms - oldest_ms >= configured.age_max_ms:
            reason = f"a small file is {(now_ms - oldest_ms) // 1000} s old"
        else:
            return None
        sizes = np.array([file.size_bytes for file in quiet], np.int64)
        rows = worthwhile(np.arange(len(sizes)), sizes, sizes.astype(np.float64), self.policy)
        if not len(rows):
            return None
        newest_ms = max(file.added_ms for file in quiet)
        return Debt(values, reason, len(quiet), size_bytes, newest_ms)


class FileTotals(Struct):
    """How many files a table has and their bytes; kept up to date entry by entry.

    No names are kept. Where an entry does not say what it changes (a `remove` without a size, an
    `add` of a file that is there already) `is_exact` falls, and the table is to be read anew.
    """

    files: int = 0
    size_bytes: int = 0
    is_exact: bool = True

    def take(self, files: pa.Table) -> None:
        """Take the live files of a snapshot (`FACT_SCHEMA`)."""
        self.files += files.num_rows
        self.size_bytes += pc.sum(files["size"]).as_py() or 0

    def apply(self, entry: Entry) -> None:
        """Take what a log entry changes."""
        self.files += len(entry.adds) - len(entry.removes)
        self.size_bytes += sum(add.size for add in entry.adds)
        self.size_bytes -= sum(remove.size or 0 for remove in entry.removes)
        is_sized = all(remove.size is not None for remove in entry.removes)
        # Statistics or tags that are written later come as an `add` of the same file.
        is_fresh = bool(entry.removes) or all(add.data_change for add in entry.adds)
        self.is_exact = self.is_exact and is_sized and is_fresh


# --- cron -----------------------------------------------------------------------------------------

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def cron_due(expression: str, after_ms: int, now_ms: int) -> int | None:
    """Return the newest minute in `(after_ms, now_ms]` that the expression names, in ms; or None.

    Five fields in UTC. As everywhere, where both days are restricted either of them will do.
    """
    newest = now_ms // MINUTE_MS
    oldest = max(after_ms // MINUTE_MS + 1, newest - CRON_MINUTES_MAX)
    fields = [_numbers(text, low, high) for text, (low, high) in _fields(expression)]
    is_day_free, is_weekday_free = (expression.split()[index].startswith("*") for index in (2, 4))
    for minute in range(newest, oldest - 1, -1):
        at = _EPOCH + dt.timedelta(minutes=minute)
        is_day, is_weekday = at.day in fields[2], at.isoweekday() % 7 in fields[4]
        both = is_day and is_weekday
        is_right_day = both if is_day_free or is_weekday_free else is_day or is_weekday
        is_right_time = at.minute in fields[0] and at.hour in fields[1] and at.month in fields[3]
        if is_right_time and is_right_day:
            return minute * MINUTE_MS
    return None


_BOUNDS: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


def _fields(expression: str) -> list[tuple[str, tuple[int, int]]]:
    return list(zip(expression.split(), _BOUNDS, strict=True))


def _numbers(text: str, low: int, high: int) -> frozenset[int]:
    """Return what a field names; the seventh day of the week is its day 0."""
    found: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        begin = low if first == "*" else int(first)
        end = high if first == "*" else int(last or first)
        found.update(range(begin, end + 1, int(step or 1)))
    return frozenset({number % 7 for number in found} if high == 7 else found)
