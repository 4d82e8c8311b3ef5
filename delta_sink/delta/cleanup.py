"""Removing log entries that nobody needs: what stands in a checkpoint and is old enough.

Theory of operation. Everything below one version, the *kept* one, may go. That is the newest
version that has a checkpoint, and that lies

* at or below the newest entry that is older than vacuum's retention, and at or below the fence
  that vacuum has put up, so that vacuum can read the table from there on;
* above nothing but entries older than the log's retention, and never younger than a day: a writer
  trusts for a minute that the entry it knows is still there.

Ages are the store's own. Before the first entry goes, what the entries prove about offsets is
folded into an anchor for the audit. Then entries go oldest first, each with what belongs to its
version, so that what is left is an unbroken log at every moment: a clean-up that dies is a smaller
clean-up, and the next one goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from delta_sink.delta.actions import Metadata
from delta_sink.delta.checkpoint_files import sidecars_of
from delta_sink.delta.commit import Log, open_log
from delta_sink.delta.logstore import (
    LAST_CHECKPOINT_PATH,
    LOG_FOLDER,
    Checkpoint,
    Listing,
    listing_of,
)
from delta_sink.delta.repeat import repeat
from delta_sink.delta.store_time import store_now_ms, version_before
from delta_sink.delta.support import (
    LOG_RETENTION_MIN_MS,
    interval_ms,
    refuse_log_store,
    refuse_unsupported,
)
from delta_sink.errors import ObjectMissing, TableRefused
from delta_sink.ports import ObjectInfo

LOG_RETENTION_PROPERTY = "delta.logRetentionDuration"
LOG_RETENTION_DEFAULT_MS = 30 * 86_400_000
"""What Delta keeps of a table that does not say."""

_VERSIONED = re.compile(r"_delta_log/(\d{20})\.(?:json|crc|checkpoint\..+)")
_COMPACTED = re.compile(r"_delta_log/\d{20}\.(\d{20})\.compacted\.json")


class CleanupPlan(Struct, frozen=True):
    """What may go: every object of versions below `keep_from`, oldest version first.

    `keep_from` is None, and `objects` empty, where nothing may.
    """

    keep_from: int | None
    objects: tuple[ObjectInfo, ...]
    checkpoints: tuple[Checkpoint, ...]
    is_hint_stale: bool

    @property
    def size_bytes(self) -> int:
        """Bytes of all objects together."""
        return sum(info.size_bytes for info in self.objects)

    @property
    def entries(self) -> int:
        """How many log entries are among them."""
        return len(listing_of(self.objects).entries)


class CleanedUp(Struct, frozen=True):
    """What was removed. `is_complete` is False where the worker was asked to stop."""

    objects_removed: int
    bytes_removed: int
    is_complete: bool


def log_retention_ms(metadata: Metadata) -> int:
    """Return how long the table wants log entries to be kept, at least a day, in ms."""
    text = metadata.configuration.get(LOG_RETENTION_PROPERTY)
    wanted = LOG_RETENTION_DEFAULT_MS if text is None else interval_ms(text)
    return max(LOG_RETENTION_MIN_MS, wanted)


def plan_cleanup(log: Log, *, vacuum_retention_ms: int) -> CleanupPlan:
    """Return what may be removed of the log; a dry run stops here.

    Raises:
        TableRefused: there is no table, or it uses something that this sink does not implement.
        RetriableError, StoreRefused: as the store says.
    """
    now_ms = store_now_ms(log)
    state = open_log(log)
    if state is None:
        raise TableRefused("there is no table to clean up: its log is empty")
    refuse_unsupported(state.protocol, state.metadata)
    refuse_log_store(state.metadata, log.entries.kind)
    objects = repeat(lambda: log.store.list(LOG_FOLDER), log.clock, log.entropy)
    listing = log.entries.list()
    cutoff_ms = now_ms - log_retention_ms(state.metadata)
    needed = version_before(listing, now_ms - vacuum_retention_ms)
    fence = state.vacuum_fence
    if needed is not None and fence >= 0:
        needed = min(needed, fence)
    keep_from = None if needed is None else _keep_from(listing, needed, cutoff_ms)
    if keep_from is None:
        return CleanupPlan(None, (), (), is_hint_stale=False)
    going = [
        (version, info.path.endswith(".json") and ".checkpoint" not in info.path, info)
        for info in objects
        if (version := _version_of(info.path)) is not None and version < keep_from
    ]
    # Of one version the entry goes first: what is left below `keep_from` is never needed.
    going.sort(key=lambda one: (one[0], not one[1], one[2].path))
    kept = tuple(info for _, _, info in going if info.modified_ms < cutoff_ms)
    checkpoints = tuple(c for c in listing.checkpoints if c.version < keep_from)
    return CleanupPlan(keep_from, kept, checkpoints, _is_hint_stale(log, keep_from))


def _keep_from(listing: Listing, needed: int, cutoff_ms: int) -> int | None:
    """Return the newest checkpoint's version below which nothing is needed or young."""
    young = [v for v, info in listing.entries.items() if info.modified_ms >= cutoff_ms]
    limit = min(needed, min(young, default=needed))
    below = [found.version for found in listing.checkpoints if found.version <= limit]
    # The entry itself stays as well: readers look for it beside its checkpoint.
    usable = [version for version in below if version in listing.entries]
    return usable[-1] if usable else None


def _version_of(path: str) -> int | None:
    match = _VERSIONED.fullmatch(path) or _COMPACTED.fullmatch(path)
    return None if match is None else int(match[1])


class _Hint(msgspec.Struct):
    version: int


def _is_hint_stale(log: Log, keep_from: int) -> bool:
    try:
        found = msgspec.json.decode(log.store.get(LAST_CHECKPOINT_PATH).data, type=_Hint)
    except ObjectMissing:
        return False
    except msgspec.DecodeError:
        return True
    return found.version < keep_from


def clean_log(
    log: Log,
    plan: CleanupPlan,
    *,
    fold: Callable[[int], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> CleanedUp:
    """Return once the plan's objects are gone, or `should_stop` said so.

    `fold(version)` must return only when what the entries up to and including `version` prove is
    kept elsewhere, durably; it is called before anything is removed.

    Raises:
        RetriableError, StoreRefused: as the store says, or whatever `fold` raises. What is
            removed stays removed; the next plan goes on.
    """
    if plan.keep_from is None or not plan.objects:
        return CleanedUp(0, 0, is_complete=True)
    fold(plan.keep_from)
    if plan.is_hint_stale:
        # It names a checkpoint that is about to go; without it readers list the log.
        _remove(log, LAST_CHECKPOINT_PATH)
    sidecars = _sidecars(log, plan.checkpoints)
    objects = size_bytes = 0
    for info in (*plan.objects, *sidecars):
        if should_stop():
            return CleanedUp(objects, size_bytes, is_complete=False)
        _remove(log, info.path)
        objects += 1
        size_bytes += info.size_bytes
    return CleanedUp(objects, size_bytes, is_complete=True)


def _remove(log: Log, path: str) -> None:
    repeat(lambda: log.store.delete(path), log.clock, log.entropy)


def _sidecars(log: Log, checkpoints: Sequence[Checkpoint]) -> list[ObjectInfo]:
    """Return the sidecars of checkpoints that go, without those that a kept one names as well."""
    gone = {info.path: info for found in checkpoints for info in _sidecars_of(log, found)}
    if not gone:
        return []
    versions = {found.version for found in checkpoints}
    for kept in log.entries.list().checkpoints:
        if kept.version not in versions:
            for info in sidecars_of(log.store, kept):
                gone.pop(info.path, None)
    return [gone[path] for path in sorted(gone)]


def _sidecars_of(log: Log, checkpoint: Checkpoint) -> list[ObjectInfo]:
    try:
        return sidecars_of(log.store, checkpoint)
    except (ObjectMissing, TableRefused):
        return []  # It is on its way out: what it named stays, as an orphan.
