"""How requests travel between a host and a service, and how they get lost.

A write is sent, lands, and is answered: three moments, and between them anything may happen. The
sender may be killed or give up waiting while the request is under way; it lands nevertheless
(often) and its effect, conditions included, is decided where it lands. A read has no effect, so
it only is slow or fails.

Faults, each named with the service in front (`store.lost_answer`):

* `lost_request`: never arrives; the sender waits and then knows nothing.
* `lost_answer`: served, then the answer is lost: a reset, a time-out.
* `error_after`: served, then answered with an error, as a 5xx after apply.
* `slow`: a write takes between `slow_ms_min` and `slow_ms_max`. The sender may time out or die before it lands.
* `read_failed`: a read gets no usable answer.
* met without being switched on: `late` (a write landed when nobody waited for it any more),
  `cut` (the sender died before the whole request had left it), `outage`.

What may not happen: a request lands twice, in parts, or later than `slow_ms_max`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar, cast

from delta_sink.errors import DeltaSinkError
from delta_sink.testing.host import Host
from delta_sink.testing.world import Signal, World

T = TypeVar("T")

FAULTS = {
    "lost_request": "a write never arrives; the sender gets no answer",
    "lost_answer": "a write is served and its answer is lost",
    "error_after": "a write is served and answered with an error",
    "slow": "a write takes up to minutes; its sender may time out or die meanwhile",
    "read_failed": "a read gets no usable answer",
    "late": "a write landed when its sender no longer waited for it",
    "cut": "a write was lost because its sender died while sending",
    "outage": "a request was made while the service was down",
}


class Wire:
    """The way to one service.

    Attributes:
        latency_ms: bounds of the time that one way takes.
        timeout_ms: how long a sender waits for an answer.
        slow_ms_min, slow_ms_max: how long a slow write takes; short times are as likely as long
            ones. It may be days: a proxy that keeps a request, a host that was suspended.
        in_flight: how many writes are on their way now.
        down_until_ms: when the last outage ends, in the world's time.
    """

    def __init__(self, world: World, service: str, error: Callable[[str], DeltaSinkError]) -> None:
        self.latency_ms = (1, 20)
        self.timeout_ms = 30_000
        self.slow_ms_min = 1
        self.slow_ms_max = 600_000
        self.in_flight = 0
        self._world = world
        self._service = service
        self._error = error
        self._random = world.random(f"wire/{service}")
        self.down_until_ms = 0
        world.declare({f"{service}.{name}": text for name, text in FAULTS.items()})

    def outage(self, duration_ms: int) -> None:
        """Let every request from now on fail for `duration_ms`; none of them arrives."""
        self._world.note(f"{self._service} is down", f"for {duration_ms} ms")
        self.down_until_ms = self._world.now_ms + duration_ms

    @property
    def is_down(self) -> bool:
        """Whether an outage lasts."""
        return self._world.now_ms < self.down_until_ms

    def read(self, label: str, detail: object, answer: Callable[[], T]) -> T:
        """Return what `answer()` finds at one moment between now and the return."""
        world = self._world
        world.sleep_ms(self._latency(), f"{label} begins", detail)
        if self._fails("read_failed", label, detail):
            raise self._no_answer(label, detail)
        found = answer()
        world.sleep_ms(self._latency(), f"{label} ends", detail)
        return found

    def write(self, host: Host, label: str, detail: object, effect: Callable[[], T]) -> T:
        """Send a request that has an effect; return its answer or raise what it raised."""
        world = self._world
        if not world.in_task:
            return effect()
        world.switch(f"{label} begins", detail)
        if self._fails("lost_request", label, detail):
            world.sleep_ms(self._latency(), f"{label} ends", detail)
            raise self._no_answer(label, detail)
        request = _Request(self, host, label, detail, effect)
        self.in_flight += 1
        world.later(self._write_delay(detail), request.land)
        request.signal.wait(self.timeout_ms, f"{label} sent", detail)
        if not request.landed:
            request.given_up = True
            raise self._no_answer(label, detail)
        world.sleep_ms(self._latency(), f"{label} ends", detail)
        for fault in ("lost_answer", "error_after"):
            if world.chance(f"{self._service}.{fault}"):
                world.meet(f"{self._service}.{fault}", detail)
                raise self._no_answer(label, detail)
        return request.answer()

    def _fails(self, fault: str, label: str, detail: object) -> bool:
        if self.is_down:
            self._world.meet(f"{self._service}.outage", f"{label} {detail}")
            return True
        if self._world.chance(f"{self._service}.{fault}"):
            self._world.meet(f"{self._service}.{fault}", f"{label} {detail}")
            return True
        return False

    def _latency(self) -> int:
        low, high = self.latency_ms
        return low + int((high - low + 1) * self._random.random())

    def _write_delay(self, detail: object) -> int:
        if not self._world.chance(f"{self._service}.slow"):
            return self._latency()
        self._world.meet(f"{self._service}.slow", detail)
        span = self.slow_ms_max / self.slow_ms_min
        return int(self.slow_ms_min * span ** self._random.random())

    def _no_answer(self, label: str, detail: object) -> DeltaSinkError:
        return self._error(f"{label} of {detail}: no usable answer")

    def arrives(self, request: _Request[T]) -> bool:
        """Say whether a request whose time has come gets there."""
        if request.host.dead and self._random.random() < 0.5:
            self._world.meet(f"{self._service}.cut", f"{request.label} {request.detail}")
            return False
        if request.host.dead or request.given_up:
            self._world.meet(f"{self._service}.late", f"{request.label} {request.detail}")
        self._world.note(f"{request.label} lands", request.detail)
        return True


class _Request(Generic[T]):
    """One write under way."""

    __slots__ = (
        "_effect",
        "_error",
        "_value",
        "_wire",
        "detail",
        "given_up",
        "host",
        "label",
        "landed",
        "signal",
    )

    def __init__(
        self, wire: Wire, host: Host, label: str, detail: object, effect: Callable[[], T]
    ) -> None:
        self.host = host
        self.label = label
        self.detail = detail
        self.signal = Signal(host.world)
        self.landed = False
        self.given_up = False
        self._wire = wire
        self._effect = effect
        self._value: T | None = None
        self._error: DeltaSinkError | None = None

    def land(self) -> None:
        """Take effect, outside any task, and wake the sender if it still waits."""
        self._wire.in_flight -= 1
        if not self._wire.arrives(self):
            return
        try:
            self._value = self._effect()
        except DeltaSinkError as error:
            self._error = error
        self.landed = True
        self.signal.notify()

    def answer(self) -> T:
        """Return what the service answered, or raise it."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)
