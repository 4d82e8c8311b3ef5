"""Anchors: what log entries proved before they were cleaned up, kept beside the table.

`_delta_sink/audit/{version}.json` holds what an audit of all entries up to and including `version`
knew of every sink: how far each partition's ranges chain, what became of the offsets, what was
wrong. It is written once, by whoever cleans up, before the first entry goes; an audit goes on from
it, and holds it against the checkpoint of the same version. Ranges that follow each other are
kept as one, so that an anchor grows with what is out of the ordinary and not with the log.

The object is JSON with a `format`. A reader refuses a higher one than it knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from delta_sink.delta.receipt import Receipt
from delta_sink.errors import TableRefused
from delta_sink.model import Run
from delta_sink.ports import ObjectStore

ANCHOR_FORMAT = 1
ANCHOR_FOLDER = "_delta_sink/audit/"

_NAME = re.compile(r"_delta_sink/audit/(\d{20})\.json")


class AnchoredChain(msgspec.Struct, frozen=True, omit_defaults=True):
    """One app id's chain as it stood. A range is first, next, rows, and its newest version."""

    app_id: str
    txn: int | None
    offset_first: int | None
    offset_next: int | None
    offset_last: int
    is_known: bool
    proven_from: int
    records: int
    commits: int
    ranges: tuple[tuple[int, int, int, int], ...] = ()
    dead_letters: tuple[Run, ...] = ()
    skipped: tuple[Run, ...] = ()
    gone: tuple[Run, ...] = ()


class AnchoredSeek(msgspec.Struct, frozen=True):
    """A seek, with all that its receipt says."""

    version: int
    receipt: Receipt


class Anchor(msgspec.Struct, frozen=True, omit_defaults=True):
    """What entries `version_first` to `version` proved.

    `violations` are by sink, those under "" are the table's. `commits` counts by sink and kind of
    receipt; "" has those of other engines.
    """

    format: int
    version: int
    version_first: int
    unknown_before: int
    chains: tuple[AnchoredChain, ...]
    seeks: tuple[AnchoredSeek, ...] = ()
    violations: dict[str, tuple[str, ...]] = {}
    unproven: tuple[str, ...] = ()
    commits: dict[str, dict[str, int]] = {}
    removals: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()


class _Format(msgspec.Struct):
    format: int


def anchor_path(version: int) -> str:
    """Return the object that holds the anchor of `version`."""
    return f"{ANCHOR_FOLDER}{version:020d}.json"


def encode_anchor(anchor: Anchor) -> bytes:
    """Return the object's bytes."""
    return msgspec.json.encode(anchor)


def decode_anchor(version: int, data: bytes) -> Anchor:
    """Return the anchor that `data` holds.

    Raises:
        TableRefused: a newer delta-sink wrote it, or it is damaged.
    """
    where = f"the audit's anchor {anchor_path(version)}"
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found > ANCHOR_FORMAT:
            raise TableRefused(
                f"{where} has format {found}, this delta-sink reads up to {ANCHOR_FORMAT}: upgrade"
            )
        anchor = msgspec.json.decode(data, type=Anchor)
    except msgspec.DecodeError as error:
        raise TableRefused(f"{where} is damaged ({error})") from error
    if anchor.version != version:
        raise TableRefused(f"{where} says that it is of version {anchor.version}")
    return anchor


def anchor_versions(store: ObjectStore) -> list[int]:
    """Return the versions that have an anchor, in order."""
    matches = (_NAME.fullmatch(info.path) for info in store.list(ANCHOR_FOLDER))
    return [int(match[1]) for match in matches if match is not None]


def chosen_anchor(anchors: Sequence[int], first_entry: int) -> int | None:
    """Return from which anchor to go on where `first_entry` is the oldest entry that is left.

    The oldest one that reaches to it: what entries can still prove is left to them. If none
    reaches so far, the newest: the gap behind it is another's doing.
    """
    if first_entry == 0 or not anchors:
        return None
    reaching = [version for version in anchors if version >= first_entry - 1]
    return min(reaching) if reaching else max(anchors)
