"""An object store whose requests are counted and timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from delta_sink.errors import ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import (
    Clock,
    Created,
    Exists,
    ObjectInfo,
    ObjectStore,
    StoredObject,
    Telemetry,
)
from delta_sink.telemetry import STORE_REQUEST_DURATION, STORE_REQUESTS

T = TypeVar("T")

_STATUSES = (
    (ObjectMissing, "missing"),
    (StoreUnavailable, "unavailable"),
    (StoreRefused, "refused"),
)


class MeteredStore:
    """The `ObjectStore` `store`; each call adds to the metrics of store requests."""

    def __init__(self, store: ObjectStore, telemetry: Telemetry, clock: Clock) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock

    def put(self, path: str, data: bytes | memoryview) -> str:
        """Do as `ObjectStore.put`."""
        return self._measure("put", lambda: self._store.put(path, data))

    def put_if_absent(self, path: str, data: bytes | memoryview) -> Created | Exists:
        """Do as `ObjectStore.put_if_absent`."""
        return self._measure("put_if_absent", lambda: self._store.put_if_absent(path, data))

    def get(self, path: str) -> StoredObject:
        """Do as `ObjectStore.get`."""
        return self._measure("get", lambda: self._store.get(path))

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """Do as `ObjectStore.get_range`."""
        return self._measure("get_range", lambda: self._store.get_range(path, offset, length))

    def list(self, prefix: str, start_after: str | None = None) -> list[ObjectInfo]:
        """Do as `ObjectStore.list`."""
        return self._measure("list", lambda: self._store.list(prefix, start_after))

    def delete(self, path: str) -> None:
        """Do as `ObjectStore.delete`."""
        self._measure("delete", lambda: self._store.delete(path))

    def _measure(self, verb: str, call: Callable[[], T]) -> T:
        begun_ms = self._clock.elapsed_ms()
        status = "ok"
        try:
            result = call()
            if isinstance(result, Exists):
                status = "exists"
            return result
        except (ObjectMissing, StoreUnavailable, StoreRefused) as error:
            status = next(name for kind, name in _STATUSES if isinstance(error, kind))
            raise
        finally:
            took_s = (self._clock.elapsed_ms() - begun_ms) / 1000
            self._telemetry.observe(STORE_REQUEST_DURATION, took_s, verb=verb)
            self._telemetry.count(STORE_REQUESTS, verb=verb, status=status)
