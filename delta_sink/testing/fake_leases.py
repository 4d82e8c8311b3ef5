"""A lock store that all hosts of a world share, as DynamoDB behaves.

What may fail: everything that `wire.py` lists (a conditional write may land without an answer, or
late; its condition is looked at when it lands); `leases.throttled`: refused for now, nothing
written; `leases.stale_scan`: a scan misses the newest write. On demand: outages (`wire.outage`),
an item deleted by hand or by a time-to-live (`remove`), and `is_broken`: every host gets every
lock, because each sees only what it wrote itself.

What may not, so that the system can recover: unless broken, a read sees the last write, and of
writes with one `expected` at most one succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from delta_sink.errors import RetriableError
from delta_sink.ports import Item
from delta_sink.testing.host import Host
from delta_sink.testing.wire import Wire
from delta_sink.testing.world import World

T = TypeVar("T")


class FakeLeases:
    """The store itself. Hosts talk to it by `client`.

    Attributes:
        wire: latency, time-outs and outages of its requests.
        is_broken: every lock is broken: no host sees what another wrote.
        on_written: called with the item before (or None) and the item written.
    """

    def __init__(self, world: World) -> None:
        self.wire = Wire(world, "leases", RetriableError)
        self.is_broken = False
        self.on_written: Callable[[Item | None, Item], None] | None = None
        self.world = world
        self._items: dict[str, Item] = {}
        self._private: dict[str, dict[str, Item]] = {}
        self._before_last: dict[str, Item] = {}
        world.declare(
            {
                "leases.throttled": "a request is refused for now and has no effect",
                "leases.stale_scan": "a scan shows the state before the last write",
            }
        )

    def client(self, host: Host) -> FakeLeaseClient:
        """Return the store as this host sees it: its `LeaseStore`."""
        return FakeLeaseClient(self, host)

    def items(self, host: Host | None = None) -> dict[str, Item]:
        """Return what is stored; with broken locks, what `host` believes to be stored."""
        if self.is_broken and host is not None:
            return self._private.setdefault(host.name, dict(self._items))
        return self._items

    def remove(self, key: str) -> None:
        """Delete an item by hand; one that is not there is no error."""
        self.world.note("lease deleted by hand", key)
        self._items.pop(key, None)

    def write(self, host: Host, item: Item, expected: Item | None) -> bool:
        """Write now if the condition holds; say whether."""
        items = self.items(host)
        before = items.get(item.key)
        if not _same(before, expected):
            return False
        self._before_last = dict(items)
        items[item.key] = Item(item.key, dict(item.attributes))
        if self.on_written is not None:
            self.on_written(before, item)
        return True

    def listed(self, host: Host, prefix: str) -> list[Item]:
        """Return what a scan shows now."""
        items = self.items(host)
        if not self.is_broken and self.world.chance("leases.stale_scan"):
            self.world.meet("leases.stale_scan", prefix)
            items = self._before_last
        return [_copy(items[key]) for key in sorted(items) if key.startswith(prefix)]

    def check_throttle(self, what: str) -> None:
        """Raise RetriableError if this request is refused for now."""
        if self.world.chance("leases.throttled"):
            self.world.meet("leases.throttled", what)
            raise RetriableError(f"{what}: the lock store throttles requests")


class FakeLeaseClient:
    """`LeaseStore` of one host."""

    def __init__(self, leases: FakeLeases, host: Host) -> None:
        self._leases = leases
        self._host = host

    def get(self, key: str) -> Item | None:
        """Return the item as it was written last, or None."""

        def answer() -> Item | None:
            self._leases.check_throttle(f"get of {key}")
            found = self._leases.items(self._host).get(key)
            return None if found is None else _copy(found)

        return self._leases.wire.read("leases.get", key, answer)

    def put(self, item: Item, expected: Item | None) -> bool:
        """Write if what is stored equals `expected` when the request lands."""
        sent = _copy(item)
        condition = None if expected is None else _copy(expected)

        def effect() -> bool:
            self._leases.check_throttle(f"put of {item.key}")
            return self._leases.write(self._host, sent, condition)

        return self._leases.wire.write(self._host, "leases.put", item.key, effect)

    def scan(self, prefix: str) -> list[Item]:
        """Return the items whose key begins with `prefix`, by key."""

        def answer() -> list[Item]:
            self._leases.check_throttle(f"scan of {prefix}")
            return self._leases.listed(self._host, prefix)

        return self._leases.wire.read("leases.scan", prefix, answer)


def _copy(item: Item) -> Item:
    return Item(item.key, dict(item.attributes))


def _same(stored: Item | None, expected: Item | None) -> bool:
    """Compare as the real stores do: True and 1 are different values."""
    if stored is None or expected is None:
        return stored is expected
    return _typed(stored) == _typed(expected)


def _typed(item: Item) -> tuple[str, dict[str, tuple[type, object]]]:
    return item.key, {name: (type(value), value) for name, value in item.attributes.items()}
