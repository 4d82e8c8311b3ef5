"""A store and a clock that do exactly what a test writes down, and plans to send through them."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Callable

from delta_sink.adapters.logs import LogTelemetry
from delta_sink.delta.actions import Add, CommitInfo, Metadata, Protocol, Txn, encode_entry
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog, entry_path
from delta_sink.delta.plan import Plan, TxnIs
from delta_sink.delta.receipt import Receipt, encode_receipt
from delta_sink.delta.state import LogState
from delta_sink.delta.support import LOG_STORE_PROPERTY
from delta_sink.errors import ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists, ObjectInfo, StoredObject

SCHEMA = '{"type":"struct","fields":[{"name":"a","type":"long","nullable":true,"metadata":{}}]}'


class ScriptedClock:
    """`Clock` that moves when a test or a sleep moves it."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.slept_ms: list[int] = []

    def wall_ms(self) -> int:
        return 1_767_225_600_000 + self.now_ms

    def elapsed_ms(self) -> int:
        return self.now_ms

    def sleep_ms(self, duration_ms: int) -> None:
        self.slept_ms.append(duration_ms)
        self.now_ms += duration_ms


class CountingEntropy:
    """`Entropy` that counts."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def unique_id(self) -> str:
        return f"{next(self._ids):032x}"

    def fraction(self) -> float:
        return 0.5


Step = Callable[[Callable[[], object]], object]
"""What happens to one request: it is given the honest service and returns or raises an answer."""


class ScriptedStore:
    """`ObjectStore` in memory; each request takes the next step that was written for its kind.

    Attributes:
        asked: (kind, path) of every request, in order.
        late: PUTs that are still on the wire; call them to let them land.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.late: list[Callable[[], object]] = []
        self._script: dict[str, deque[Step]] = {}
        self._e_tags = itertools.count(1)

    def script(self, kind: str, *steps: Step) -> None:
        """Let the next requests of this kind go as written; later ones are served honestly."""
        self._script.setdefault(kind, deque()).extend(steps)

    def count(self, kind: str) -> int:
        return sum(asked == kind for asked, _ in self.asked)

    def _serve(self, kind: str, path: str, honest: Callable[[], object]) -> object:
        self.asked.append((kind, path))
        steps = self._script.get(kind)
        return steps.popleft()(honest) if steps else honest()

    def store(self, path: str, data: bytes) -> str:
        e_tag = f'"{next(self._e_tags)}"'
        self.objects[path] = (bytes(data), e_tag)
        return e_tag

    def put(self, path: str, data: bytes | memoryview) -> str:
        return self._serve("put", path, lambda: self.store(path, bytes(data)))

    def put_if_absent(self, path: str, data: bytes | memoryview) -> Created | Exists:
        def honest() -> Created | Exists:
            return Exists() if path in self.objects else Created(self.store(path, bytes(data)))

        return self._serve("put_if_absent", path, honest)

    def get(self, path: str) -> StoredObject:
        return self._serve("get", path, lambda: StoredObject(*self._found(path)))

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        return self._serve(
            "get_range", path, lambda: self._found(path)[0][offset : offset + length]
        )

    def list(self, prefix: str, start_after: str | None = None) -> list[ObjectInfo]:
        def honest() -> list[ObjectInfo]:
            return [
                ObjectInfo(path, len(data), 0, e_tag)
                for path, (data, e_tag) in sorted(self.objects.items())
                if path.startswith(prefix) and (start_after is None or path > start_after)
            ]

        return self._serve("list", prefix, honest)

    def delete(self, path: str) -> None:
        self.objects.pop(path, None)

    def _found(self, path: str) -> tuple[bytes, str]:
        if path not in self.objects:
            raise ObjectMissing(path)
        return self.objects[path]


# --- steps ----------------------------------------------------------------------------------------


def lost_before(honest: Callable[[], object]) -> object:
    """The request never arrives."""
    raise StoreUnavailable("no answer")


def lost_after(honest: Callable[[], object]) -> object:
    """The request is served and its answer lost: a reset, a time-out, a 5xx after apply."""
    honest()
    raise StoreUnavailable("no answer")


def nothing_landed(honest: Callable[[], object]) -> object:
    """409: reported as *exists*, and nothing is there."""
    return Exists()


def refused(honest: Callable[[], object]) -> object:
    """403."""
    raise StoreRefused("403, access denied")


def on_the_wire(store: ScriptedStore) -> Step:
    """No answer, and the request arrives when the test calls what is then in `store.late`."""

    def step(honest: Callable[[], object]) -> object:
        store.late.append(honest)
        raise StoreUnavailable("timed out")

    return step


def first(action: Callable[[], object], then: Step | None = None) -> Step:
    """Something happens before the request is served."""

    def step(honest: Callable[[], object]) -> object:
        action()
        return then(honest) if then else honest()

    return step


def after(action: Callable[[], object]) -> Step:
    """Something happens between the serving of the request and its answer."""

    def step(honest: Callable[[], object]) -> object:
        answer = honest()
        action()
        return answer

    return step


# --- a table to work on ---------------------------------------------------------------------------


def info(commit_id: str, **fields: object) -> CommitInfo:
    receipt = Receipt(1, "append", "sink", "worker", 0, commit_id)
    return CommitInfo(operation="WRITE", user_metadata=encode_receipt(receipt), **fields)


class Bench:
    """A table at version 0 in a scripted store, and what is needed to commit to it."""

    def __init__(self, *, readback: bool = False, configuration: dict | None = None) -> None:
        self.store = ScriptedStore()
        self.clock = ScriptedClock()
        self.lines = io.StringIO()
        self.telemetry = LogTelemetry(
            self.lines, format="json", level="debug", sink="sink", clock=self.clock
        )
        self.log = Log(
            self.store,
            ConditionalPutLog(self.store),
            self.clock,
            CountingEntropy(),
            self.telemetry,
            readback,
        )
        self.protocol = Protocol(1, 2)
        self.metadata = Metadata(
            "table-id", SCHEMA, configuration={LOG_STORE_PROPERTY: "conditional_put"}
        )
        self.head = -1
        self.other(protocol=self.protocol, metadata=self.metadata)

    def state(self, *, age_ms: int = 0) -> LogState:
        """Return version 0 as a worker knows it that looked `age_ms` ago."""
        e_tag = self.store.objects[entry_path(0)][1]
        looked_at_ms = self.clock.now_ms - age_ms
        return LogState(0, e_tag, self.protocol, self.metadata, {}, looked_at_ms)

    def other(
        self,
        app_id: str = "other",
        version: int = 1,
        *,
        protocol: Protocol | None = None,
        metadata: Metadata | None = None,
    ) -> int:
        """Let somebody else's commit land at the head now; return its version."""
        while entry_path(self.head + 1) in self.store.objects:
            self.head += 1
        self.head += 1
        actions = [info(f"other-{self.head}"), Txn(app_id, version)]
        actions += [action for action in (protocol, metadata) if action is not None]
        self.store.store(entry_path(self.head), encode_entry(actions))
        return self.head

    def plan(self, app_id: str = "mine", expected: int | None = None, *, next_: int = 10) -> Plan:
        """Return a plan that moves `app_id` from `expected` to `next_` and adds a file."""
        commit_id = self.log.entropy.unique_id()
        add = Add(f"part-{commit_id}", {}, 1, 0, data_change=True)
        actions = [info(commit_id), Txn(app_id, next_), add]
        return Plan.of(commit_id, actions, [TxnIs(app_id, expected)])

    def landed(self, plan: Plan) -> list[int]:
        """Return the versions that hold the plan: what a reader would see."""
        return [
            int(path[11:31])
            for path, (data, _) in sorted(self.store.objects.items())
            if path.endswith(".json") and plan.commit_id.encode() in data
        ]

    def sent(self) -> list[int]:
        """Return the version of each PUT of an entry, in order."""
        return [int(path[11:31]) for kind, path in self.store.asked if kind == "put_if_absent"]

    def remove(self, *versions: int) -> None:
        """Clean up these entries."""
        for version in versions:
            self.store.delete(entry_path(version))
