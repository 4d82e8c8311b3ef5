"""Where log entries live, and the one place where two workers can meet: claiming a version."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from delta_sink.delta.actions import Entry, parse_entry
from delta_sink.delta.receipt import receipt_of
from delta_sink.errors import ObjectMissing
from delta_sink.ports import Created, Exists, ObjectInfo, ObjectStore

LOG_FOLDER = "_delta_log/"
LAST_CHECKPOINT_PATH = LOG_FOLDER + "_last_checkpoint"

_ENTRY = re.compile(r"_delta_log/(\d{20})\.json")
_CHECKPOINT = re.compile(
    r"_delta_log/(\d{20})\.checkpoint"
    r"(?:\.(?P<part>\d{10})\.(?P<parts>\d{10})|\.(?P<uuid>[0-9a-fA-F-]{36}))?\.(?:parquet|json)"
)


class Checkpoint(Struct, frozen=True):
    """A complete checkpoint: its version and its files (several if it was written in parts)."""

    version: int
    files: tuple[ObjectInfo, ...]


class Listing(Struct, frozen=True):
    """What a LIST of the log showed: entries by version, complete checkpoints, oldest first."""

    entries: Mapping[int, ObjectInfo]
    checkpoints: Sequence[Checkpoint]


class LogStore(Protocol):
    """The log of one table. Errors are those of the ObjectStore below it."""

    kind: str
    """What `delta-sink.logStore` of the table must say."""

    def create(self, version: int, body: bytes) -> Created | Exists:
        """Claim `version` for `body` if it is free. After StoreUnavailable: unknown."""
        ...

    def read(self, version: int) -> Entry | None:
        """Return the entry of `version`, or None where there is none.

        Raises:
            TableRefused: it is damaged, or a newer delta-sink wrote it.
        """
        ...

    def list(self, version: int = 0) -> Listing:
        """Return what there is of `version` and above."""
        ...


def entry_path(version: int) -> str:
    """Return the object that holds the entry of `version`."""
    return f"{LOG_FOLDER}{version:020d}.json"


class ConditionalPutLog:
    """A version is claimed by a PUT that the store refuses if the object is there."""

    kind = "conditional_put"

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, version: int, body: bytes) -> Created | Exists:
        """Claim `version` for `body` if it is free. After StoreUnavailable: unknown."""
        return self._store.put_if_absent(entry_path(version), body)

    def read(self, version: int) -> Entry | None:
        """Return the entry of `version`, or None where there is none."""
        try:
            found = self._store.get(entry_path(version))
        except ObjectMissing:
            return None
        entry = parse_entry(version, found.data, found.e_tag)
        receipt_of(entry)  # refuses what a newer delta-sink wrote, whoever reads it and why
        return entry

    def list(self, version: int = 0) -> Listing:
        """Return what there is of `version` and above."""
        # "….json" and "….checkpoint" of a version both sort after its digits and a dot.
        start_after = f"{LOG_FOLDER}{version:020d}." if version else None
        return listing_of(self._store.list(LOG_FOLDER, start_after))


def listing_of(objects: Sequence[ObjectInfo]) -> Listing:
    """Return the entries and complete checkpoints among `objects`; the rest is passed over.

    Source: Delta protocol, "Checkpoints" (classic, multi-part, V2).
    """
    entries: dict[int, ObjectInfo] = {}
    found: dict[tuple[int, str], list[ObjectInfo]] = {}
    for info in objects:
        if match := _ENTRY.fullmatch(info.path):
            entries[int(match[1])] = info
        elif match := _CHECKPOINT.fullmatch(info.path):
            # A multi-part checkpoint counts only when all its parts are there; the number of
            # parts is in the name, so that two attempts of different sizes do not mix.
            group = match["parts"] or match["uuid"] or "single"
            found.setdefault((int(match[1]), group), []).append(info)
    checkpoints = [
        Checkpoint(version, tuple(files))
        for (version, group), files in sorted(found.items())
        if not group.isdigit() or len(files) == int(group)
    ]
    return Listing(entries, checkpoints)
