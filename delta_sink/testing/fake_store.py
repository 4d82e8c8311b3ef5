"""An object store that all hosts of a world share: one folder, one table.

What may fail: everything that `wire.py` lists (a PUT or DELETE may land minutes later, after its
sender gave up or died; the condition of put-if-absent is looked at when it lands), and
`store.conflict`: a 409 that the client reports as `Exists` although nothing is there. On demand:
`refuse` (403), `ignores_condition` (the store overwrites in spite of the condition), `drop` (the
whole folder is deleted), `remove` (one object, by hand).

What may not, so that the system can recover: an acknowledged object stays until it is deleted;
it is stored whole or not at all; a listing shows every PUT that was acknowledged before it began;
a read gives what was stored last. The `e_tag` is a hash of the content, as S3's is: the same
bytes stored again look the same.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Literal, get_args

from msgspec import Struct

from delta_sink.errors import ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists, ObjectInfo, StoredObject
from delta_sink.testing.host import Host
from delta_sink.testing.wire import Wire
from delta_sink.testing.world import World

Operation = Literal["put", "put_if_absent", "get", "get_range", "list", "delete"]


class _Object(Struct, frozen=True):
    data: bytes
    e_tag: str
    modified_ms: int


class FakeStore:
    """The store itself: what is in it, and what it does wrong. Hosts talk to it by `client`.

    Attributes:
        wire: latency, time-outs and outages of its requests.
        ignores_condition: put-if-absent overwrites, as on a store that does not know it.
        on_created: called with path and bytes as each new object lands.
        on_overwritten: called with path, old and new bytes when an object is replaced.
        on_deleted: called with the path and the bytes that are gone.
        on_refused: called with the path, the bytes that are there and those that were sent, when
            put-if-absent finds an object.
    """

    def __init__(self, world: World) -> None:
        self.wire = Wire(world, "store", StoreUnavailable)
        self.ignores_condition = False
        self.on_created: Callable[[str, bytes], None] | None = None
        self.on_overwritten: Callable[[str, bytes, bytes], None] | None = None
        self.on_deleted: Callable[[str, bytes], None] | None = None
        self.on_refused: Callable[[str, bytes, bytes], None] | None = None
        self.world = world
        self._objects: dict[str, _Object] = {}
        self._paths: list[str] = []
        self._refused: frozenset[str] = frozenset()
        world.declare({"store.conflict": "put-if-absent answers Exists and nothing is there"})

    def client(self, host: Host) -> FakeStoreClient:
        """Return the store as this host sees it: its `ObjectStore`."""
        return FakeStoreClient(self, host)

    def refuse(self, operations: Collection[Operation] = get_args(Operation)) -> None:
        """Answer these operations with 403 from now on. `refuse(())` allows everything again."""
        self._refused = frozenset(operations)

    # --- for tests: no switch points, no faults -------------------------------------------------

    def peek(self, path: str) -> bytes:
        """Return an object's bytes. Raises ObjectMissing."""
        return self._found(path).data

    def holds(self, path: str) -> bool:
        """Whether an object of that name is there."""
        return path in self._objects

    def paths(self, prefix: str = "") -> list[str]:
        """Return the paths below the folder `prefix`, in order."""
        return self._below(prefix, None)

    def write(self, path: str, data: bytes) -> None:
        """Store an object as another engine would have done it."""
        self.store(path, data)

    def remove(self, path: str) -> None:
        """Delete an object by hand; one that is not there is no error."""
        found = self._objects.pop(path, None)
        if found is None:
            return
        del self._paths[bisect_left(self._paths, path)]
        if self.on_deleted is not None:
            self.on_deleted(path, found.data)

    def drop(self) -> None:
        """Delete everything: the table is dropped."""
        for path in list(self._paths):
            self.remove(path)

    def save(self, folder: str | Path) -> None:
        """Write every object below `folder`, so that any Delta reader can open the table."""
        for path, found in self._objects.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(found.data)

    def set_modified(self, path: str, modified_ms: int) -> None:
        """Let an object look as if it was stored at that wall time."""
        found = self._found(path)
        self._objects[path] = _Object(found.data, found.e_tag, modified_ms)

    # --- what the requests do when they land ----------------------------------------------------

    def store(self, path: str, data: bytes) -> str:
        """Store an object now; return its `e_tag`."""
        e_tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        before = self._objects.get(path)
        self._objects[path] = _Object(data, e_tag, self.world.wall_ms)
        if before is None:
            insort(self._paths, path)
            if self.on_created is not None:
                self.on_created(path, data)
        elif self.on_overwritten is not None:
            self.on_overwritten(path, before.data, data)
        return e_tag

    def store_if_absent(self, path: str, data: bytes) -> Created | Exists:
        """Store an object now unless there is one of that name."""
        found = self._objects.get(path)
        if found is not None and not self.ignores_condition:
            if self.on_refused is not None:
                self.on_refused(path, found.data, data)
            return Exists()
        if self.world.chance("store.conflict"):
            self.world.meet("store.conflict", path)
            return Exists()
        return Created(self.store(path, data))

    def read(self, path: str) -> StoredObject:
        """Return an object as `get` does."""
        found = self._found(path)
        return StoredObject(found.data, found.e_tag)

    def infos(self, prefix: str, start_after: str | None) -> list[ObjectInfo]:
        """Return a listing as `list` does."""
        listed = []
        for path in self._below(prefix, start_after):
            found = self._objects[path]
            listed.append(ObjectInfo(path, len(found.data), found.modified_ms, found.e_tag))
        return listed

    def check_allowed(self, operation: Operation, path: str) -> None:
        """Raise StoreRefused if this operation is refused now."""
        if operation in self._refused:
            raise StoreRefused(f"{operation} of {path}: the store says 403, access denied")

    def _found(self, path: str) -> _Object:
        try:
            return self._objects[path]
        except KeyError:
            raise ObjectMissing(f"no object is named {path}") from None

    def _below(self, prefix: str, start_after: str | None) -> list[str]:
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        first = bisect_left(self._paths, folder)
        if start_after is not None:
            first = max(first, bisect_right(self._paths, start_after))
        if not folder:
            return self._paths[first:]
        return self._paths[first : bisect_left(self._paths, folder[:-1] + "0")]  # "0" follows "/"


class FakeStoreClient:
    """`ObjectStore` of one host."""

    def __init__(self, store: FakeStore, host: Host) -> None:
        self._store = store
        self._host = host

    def put(self, path: str, data: bytes | memoryview) -> str:
        """Store an object; return its `e_tag`."""
        body = bytes(data)

        def effect() -> str:
            self._store.check_allowed("put", path)
            return self._store.store(path, body)

        return self._store.wire.write(self._host, "store.put", path, effect)

    def put_if_absent(self, path: str, data: bytes | memoryview) -> Created | Exists:
        """Store an object if there is none of that name when the request lands."""
        body = bytes(data)

        def effect() -> Created | Exists:
            self._store.check_allowed("put_if_absent", path)
            return self._store.store_if_absent(path, body)

        return self._store.wire.write(self._host, "store.put_if_absent", path, effect)

    def get(self, path: str) -> StoredObject:
        """Return an object with its `e_tag`."""

        def answer() -> StoredObject:
            self._store.check_allowed("get", path)
            return self._store.read(path)

        return self._store.wire.read("store.get", path, answer)

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """Return a part of an object; StoreRefused if the object ends before it does."""

        def answer() -> bytes:
            self._store.check_allowed("get_range", path)
            data = self._store.read(path).data[offset : offset + length]
            if len(data) != length:
                raise StoreRefused(
                    f"get_range of {path}: wanted {length} bytes from {offset}, got {len(data)}"
                )
            return data

        return self._store.wire.read("store.get_range", path, answer)

    def list(self, prefix: str, start_after: str | None = None) -> list[ObjectInfo]:
        """Return what lies below the folder `prefix` and above `start_after`, by path."""

        def answer() -> list[ObjectInfo]:
            self._store.check_allowed("list", prefix)
            return self._store.infos(prefix, start_after)

        return self._store.wire.read("store.list", prefix, answer)

    def delete(self, path: str) -> None:
        """Remove an object."""

        def effect() -> None:
            self._store.check_allowed("delete", path)
            self._store.remove(path)

        self._store.wire.write(self._host, "store.delete", path, effect)
