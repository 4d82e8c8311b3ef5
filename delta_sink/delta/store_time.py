"""Ages by the store's own time: how old a log entry is does not depend on any worker's clock.

Objects and log entries are dated by the store. What time it is there now is read off an object
that was stored a moment ago, so that both ends of an age come from the same clock.
"""

from __future__ import annotations

from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import Listing
from delta_sink.delta.repeat import repeat

CLOCK_FOLDER = "_delta_sink/clock/"
CLOCK_PATH = CLOCK_FOLDER + "now"


def store_now_ms(log: Log) -> int:
    """Return a time by the store's clock that is not in its future, ms since 1970.

    It stores a small object over the one before, for which the right to write is needed.

    Raises:
        RetriableError, StoreRefused: as the store says.
    """
    repeat(lambda: log.store.put(CLOCK_PATH, b"now"), log.clock, log.entropy)
    found = repeat(lambda: log.store.list(CLOCK_FOLDER), log.clock, log.entropy)
    return max(info.modified_ms for info in found)


def version_before(listing: Listing, cutoff_ms: int) -> int | None:
    """Return the newest version that is older than `cutoff_ms`, if it can still be read.

    It is the table as it was at that time. It must lie in the unbroken run of entries that ends
    at the head, and there must be a checkpoint, or version 0, from which to come to it.
    """
    if not listing.entries:
        return None
    lowest = max(listing.entries)
    while lowest - 1 in listing.entries:
        lowest -= 1
    newest = max(listing.entries)
    old = [v for v in range(lowest, newest + 1) if listing.entries[v].modified_ms < cutoff_ms]
    if not old:
        return None
    wanted = old[-1]
    starts = [found.version for found in listing.checkpoints]
    if lowest == 0 or any(lowest - 1 <= start <= wanted for start in starts):
        return wanted
    return None
