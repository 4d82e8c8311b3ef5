"""What must hold of maintenance besides: retention, clean-up, deletion vectors, and leases."""

from __future__ import annotations

from collections import Counter
from urllib.parse import unquote

from delta_sink.ports import Item
from delta_sink.testing import FakeLeases
from tests.simulation.foreign import DAY_MS
from tests.simulation.oracle import ENTRY, FENCE, TAG, Oracle, Row, require

CHECKPOINT = ".checkpoint.parquet"


class UpkeepOracle(Oracle):
    """Also follows deletion vectors, and judges each deletion by who made it, when, and its order.

    Attributes:
        retention_ms: what the workers' own configuration lets a vacuum go down to.
        vectors: the rows that each deletion vector names, told by whoever wrote it.
        adds: the action of each live file.
        removes: every tombstone.
        is_foreign: whether what happens now is another engine's doing.
        seen: how often maintenance really did something.
    """

    def _begin(self) -> None:
        super()._begin()
        self.retention_ms = 0
        self.vectors: dict[str, set[int]] = {}
        self.adds: dict[str, dict] = {}
        self.removes: list[dict] = []
        self.is_foreign = False
        self.seen: Counter[str] = Counter()
        self._landed_ms: dict[str, int] = {}
        self._checkpoints: set[int] = set()
        self._now: list[dict] = []
        self._masked: dict[str, list[Row]] = {}

    # --- deletion vectors -----------------------------------------------------------------------

    def _adds(self, adds: list[dict], fence: int) -> list[str]:
        """Take files as before; one that comes back with a deletion vector has fewer rows (I7)."""
        self._now = adds
        self._masked = {}
        plain = [add for add in adds if add.get("deletionVector") is None]
        rewrites = super()._adds(plain, fence)
        for add in adds:
            vector, path = add.get("deletionVector"), add["path"]
            if vector is not None:
                require(path in self.files, "I7", f"{path} gets a vector and is not live")
                gone = self.vectors[vector["pathOrInlineDv"]]
                rows = self.files[path]
                self._masked[path] = [row for at, row in enumerate(rows) if at not in gone]
        return rewrites

    def _removes(self, removes: list[dict], rewrites: list[str]) -> None:
        super()._removes(removes, rewrites)
        for remove in removes:
            had = self.adds.pop(remove["path"]).get("deletionVector")
            told = remove.get("deletionVector")
            require(had == told, "I7", f"{remove['path']} is removed with {told}, it had {had}")
            self.removes.append(remove)
            is_rewrite = not self.is_foreign and not remove.get("dataChange", True)
            self.seen["file compacted"] += is_rewrite
            self.seen["deletion vector applied"] += is_rewrite and had is not None
        for path, rows in self._masked.items():
            self.files[path] = rows
            del self._removed[path]
        for add in self._now:
            self.adds[add["path"]] = add

    # --- deletions ------------------------------------------------------------------------------

    def _created(self, path: str, data: bytes) -> None:
        self._landed_ms[path] = self.store.world.wall_ms
        if path.endswith(CHECKPOINT):
            self._checkpoints.add(int(path[11:31]))
            self.seen["checkpoint written"] += not self.is_foreign
        super()._created(path, data)

    def _deleted(self, path: str, data: bytes) -> None:
        super()._deleted(path, data)
        if self._is_dropping:
            return
        match = ENTRY.fullmatch(path)
        if match is not None:
            self._entry_deleted(int(match[1]), path)
        elif path.endswith(CHECKPOINT):
            self._checkpoint_deleted(int(path[11:31]))
        elif not path.startswith("_") and not self.is_foreign:
            self._file_deleted(path)

    def _entry_deleted(self, version: int, path: str) -> None:
        """I10 of the log: only old entries go, the oldest first, and what vacuum needs stays."""
        if version in self.ghosts:
            return
        age_ms = self.store.world.wall_ms - self._landed_ms[path]
        require(age_ms >= DAY_MS, "I10", f"entry {version} is deleted, {age_ms} ms old")
        left = (ENTRY.fullmatch(each) for each in self.store.paths("_delta_log"))
        lowest = next((int(m[1]) for m in left if m and int(m[1]) not in self.ghosts), None)
        in_order = lowest is not None and lowest > version
        require(in_order, "I10", f"entry {version} is deleted while {lowest} is there")
        if not self.is_foreign:
            self._is_rebuildable(version)
            self.seen["entry cleaned up"] += 1

    def _checkpoint_deleted(self, version: int) -> None:
        self._checkpoints.discard(version)
        self._is_rebuildable(version)

    def _is_rebuildable(self, version: int) -> None:
        """Vacuum can read the table as of its fence, and readers as of the head."""
        fence = self.txns.get(FENCE, -1)
        needed = fence if fence >= 0 else self.version
        holds = any(version < found <= needed for found in self._checkpoints)
        require(holds, "I10", f"{version} is cleaned up, no checkpoint is above it up to {needed}")

    def _file_deleted(self, path: str) -> None:
        """I10 of files: nothing that a version inside retention needs, nothing above the fence."""
        self.seen["file vacuumed"] += 1
        removed_ms = self.removed_ms(path)
        if removed_ms is not None:
            age_ms = self.store.world.wall_ms - removed_ms
            is_old = age_ms >= self.retention_ms
            require(is_old, "I10", f"{path} is deleted {age_ms} ms after it was removed")
            return
        fence, tag = self.txns.get(FENCE, -1), TAG.fullmatch(unquote(path))
        is_behind = tag is None or int(tag[1]) <= fence
        require(is_behind, "I10", f"{path} is deleted, in no commit, above the fence {fence}")


class LeaseJudge:
    """I12: tokens only rise, and nobody takes a lease before it has stood still for its time."""

    def __init__(self, leases: FakeLeases, seen: Counter[str]) -> None:
        self._leases = leases
        self._seen = seen
        self._written_ms: dict[str, int] = {}

    def written(self, before: Item | None, item: Item) -> None:
        """Judge one write: it has landed just now."""
        if not item.key.startswith("lease/"):
            return
        if self._leases.is_broken:
            self._written_ms.clear()
            return
        now_ms = self._leases.world.now_ms
        since_ms = self._written_ms.get(item.key)
        self._written_ms[item.key] = now_ms
        if before is None or since_ms is None:
            return
        old, new = before.attributes, item.attributes
        require(new["token"] >= old["token"], "I12", f"the token of {item.key} falls")
        if new["token"] == old["token"] or old["released"]:
            return
        self._seen["lease taken over"] += 1
        # A millisecond less: both times are cut to whole ones.
        is_over = now_ms - since_ms >= int(old["duration_ms"]) - 1
        require(is_over, "I12", f"{item.key} is taken after {now_ms - since_ms} ms")
