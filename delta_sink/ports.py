"""The ports: everything that a worker asks of the world outside, and nothing else.

Each port has real implementations in `adapters/` and a fake in `testing/fakes.py`; one contract
suite a port runs on all of them. A worker owns its ports' objects through its one state thread;
which calls may be made from jobs is said at each port.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

from msgspec import Struct, field

from delta_sink.model import OutgoingRecord, Records, TopicPartition
from delta_sink.traces import Trace

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


# --- time and chance ---------------------------------------------------------------------------


class Clock(Protocol):
    """Time. Every method may be called from anywhere."""

    def wall_ms(self) -> int:
        """Return milliseconds since 1970 in UTC. It may jump; only people and files read it."""
        ...

    def elapsed_ms(self) -> int:
        """Return milliseconds on a clock that never goes back and counts suspended time.

        `CLOCK_BOOTTIME` on Linux. Ages, deadlines and leases use this one.
        """
        ...

    def sleep_ms(self, duration_ms: int) -> None:
        """Return after at least `duration_ms`. Only jobs and start-up may call it."""
        ...


class Entropy(Protocol):
    """Chance. Every method may be called from anywhere."""

    def unique_id(self) -> str:
        """Return a fresh id: 32 lower-case hexadecimal digits, never returned before."""
        ...

    def fraction(self) -> float:
        """Return a number in [0, 1), for jitter."""
        ...


# --- jobs --------------------------------------------------------------------------------------


class Job(Protocol[T_co]):
    """A function that runs beside the state thread and returns one value."""

    def is_done(self) -> bool:
        """Return whether the function has returned or raised."""
        ...

    def result(self) -> T_co:
        """Return what the function returned, or raise what it raised. Only when `is_done`."""
        ...


class Jobs(Protocol):
    """Where slow work runs. Only the state thread calls these methods.

    A job is a function of the values that it is given; it may use Clock, Entropy, ObjectStore,
    Producer, Broker, LeaseStore and SchemaRegistry, never the Consumer and never Jobs.
    """

    def submit(self, name: str, function: Callable[[], T]) -> Job[T]:
        """Start `function` and return at once. `name` is for traces: poll, decode, upload, …"""
        ...

    def wait_ms(self, duration_ms: int) -> None:
        """Return when a job ends, or after `duration_ms`, whichever comes first."""
        ...


# --- Kafka -------------------------------------------------------------------------------------


class Assigned(Struct, frozen=True):
    """These partitions are ours from now on. They are paused until `Consumer.start`."""

    partitions: tuple[TopicPartition, ...]


class Revoked(Struct, frozen=True):
    """These partitions are no longer ours; none of their records is returned any more.

    `lost` says that the group gave them away without asking (session time-out, fenced).
    """

    partitions: tuple[TopicPartition, ...]
    lost: bool = False


class OffsetGone(Struct, frozen=True):
    """Kafka does not have the offset at which reading of `tp` should go on.

    The partition delivers nothing until `Consumer.start` is called for it again.
    """

    tp: TopicPartition
    offset: int


class Waiting(Struct, frozen=True):
    """Nothing is wrong yet, but nothing can be read: `reason` is one sentence for a person.

    Returned once when it begins (broker down, topic does not exist), not at every poll.
    """

    reason: str


ConsumerEvent = Assigned | Revoked | OffsetGone | Waiting


class Polled(Struct, frozen=True):
    """What one `Consumer.poll` saw: events in the order they happened, then records.

    `records` has at most one entry for each partition, only of partitions that are ours after
    `events`, and only from the offset that the last `start` named onwards.
    """

    events: tuple[ConsumerEvent, ...] = ()
    records: tuple[Records, ...] = ()


class Consumer(Protocol):
    """A member of a consumer group. Only the state thread calls it."""

    def poll(self, records_max: int, timeout_ms: int) -> Polled:
        """Return what has arrived within `timeout_ms`: at most `records_max` records.

        Must be called at least every `max.poll.interval.ms`. A worker that cannot take more
        calls it with `records_max=1`.

        Raises:
            FatalError: the group, the topic or the credentials are refused for good.
        """
        ...

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read each of these assigned partitions from its offset on; no older record follows.

        A partition that was taken away meanwhile is passed over; the event says so.
        """
        ...

    def stop(self, partitions: Sequence[TopicPartition]) -> None:
        """Deliver nothing more of these assigned partitions until `start`; keep them."""
        ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell the group these next offsets, for lag tools. Asynchronous; a failure is counted."""
        ...

    def rejoin(self) -> None:
        """Leave the group and join again. The partitions are gone; `Revoked` is not returned."""
        ...

    def close(self) -> None:
        """Leave the group and free everything."""
        ...


class Producer(Protocol):
    """Writes dead letters, control messages and outcomes. Jobs may call it."""

    def send(self, topic: str, records: Sequence[OutgoingRecord]) -> None:
        """Return once every record is acknowledged by all replicas in sync.

        Raises:
            BrokerUnavailable: not all were acknowledged in time. Some may have landed.
            FatalError: the topic does not exist, is not ours to write, or a record is too large.
        """
        ...


At = Literal["earliest", "latest"] | int
"""Where in a partition: its first offset, its end, or the first record at or after a time (ms)."""


class Topic(Struct, frozen=True):
    """A topic as the brokers describe it. `topic_id` is None where ids were not asked for."""

    name: str
    partitions: int
    topic_id: str | None


class Broker(Protocol):
    """Questions to the brokers that are not a group member's. Jobs may call it.

    Every method raises BrokerUnavailable when there was no answer in time, and FatalError for
    a definite no (not authorised).
    """

    def topics(self, names: Sequence[str], pattern: str | None) -> list[Topic]:
        """Return the topics of these names, or whose whole name matches, that exist; by name."""
        ...

    def offsets(self, partitions: Sequence[TopicPartition], at: At) -> dict[TopicPartition, int]:
        """Return an offset for each partition. A time after the last record gives the end.

        The end is the last stable offset: where a reader of committed records stops.
        """
        ...

    def group_offsets(
        self, group: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Return the offsets that another group committed; a partition without one is absent."""
        ...


# --- object store ------------------------------------------------------------------------------


class ObjectInfo(Struct, frozen=True):
    """One object as a listing shows it. `path` is relative to the table, with `/` between."""

    path: str
    size_bytes: int
    modified_ms: int
    e_tag: str


class StoredObject(Struct, frozen=True):
    """An object's bytes, with the `e_tag` they had."""

    data: bytes
    e_tag: str


class Created(Struct, frozen=True):
    """The conditional PUT made the object."""

    e_tag: str


class Exists(Struct, frozen=True):
    """The store says that the object was there before (412, 409, EEXIST). Read it to know."""


class ObjectStore(Protocol):
    """A folder of objects: the table. Paths are relative to it. Jobs may call it.

    No method retries: the caller's loop does. Every method raises StoreUnavailable when there was
    no usable answer and StoreRefused for a definite no.
    """

    def put(self, path: str, data: bytes | memoryview) -> str:
        """Store `data` under a name that nobody else uses, durably; return its `e_tag`."""
        ...

    def put_if_absent(self, path: str, data: bytes | memoryview) -> Created | Exists:
        """Store `data` only if nothing of that name exists: one winner, whole or not at all.

        After StoreUnavailable the outcome is unknown: the request may land at any later time.
        """
        ...

    def get(self, path: str) -> StoredObject:
        """Return the object. Raises ObjectMissing if there is none."""
        ...

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on. Raises ObjectMissing if there is none."""
        ...

    def list(self, prefix: str, start_after: str | None = None) -> list[ObjectInfo]:
        """Return the objects below `prefix` whose path is above `start_after`, by path.

        A listing that begins after a PUT was acknowledged shows it.
        """
        ...

    def delete(self, path: str) -> None:
        """Remove the object; one that is not there is no error. Only vacuum's worker calls it."""
        ...


# --- locks -------------------------------------------------------------------------------------

Scalar = str | int | bool


class Item(Struct, frozen=True):
    """One item of the lock store: a key and its attributes. Compared as a whole."""

    key: str
    attributes: Mapping[str, Scalar] = field(default_factory=dict)


class LeaseStore(Protocol):
    """Small items, read consistently and written on exactly what was read. Jobs may call it.

    Every method raises RetriableError when there was no usable answer (a write may have landed)
    and FatalError for a definite no.
    """

    def get(self, key: str) -> Item | None:
        """Return the item as the last write left it, or None."""
        ...

    def put(self, item: Item, expected: Item | None) -> bool:
        """Write `item` if what is stored now equals `expected` (None: nothing); say whether."""
        ...

    def scan(self, prefix: str) -> list[Item]:
        """Return the items whose key begins with `prefix`, by key. May be slightly stale."""
        ...


# --- schema registry ---------------------------------------------------------------------------


class RegistrySchema(Struct, frozen=True):
    """A schema of the registry, with the schemas that it refers to by name."""

    schema_id: int
    kind: Literal["AVRO", "PROTOBUF", "JSON"]
    text: str
    references: tuple[tuple[str, RegistrySchema], ...] = ()


class SchemaRegistry(Protocol):
    """Schemas by id. Jobs may call it."""

    def schema(self, schema_id: int) -> RegistrySchema:
        """Return the schema; the same id gives the same schema for ever.

        Raises:
            RetriableError: the registry did not answer.
            DataError: the registry knows no such id.
        """
        ...


# --- telemetry ---------------------------------------------------------------------------------

Tag = str | int


class Telemetry(Protocol):
    """Where events, figures and traces go. Names are those of `telemetry.py`. May be called
    anywhere."""

    @property
    def is_tracing(self) -> bool:
        """Whether anybody wants traces; where nobody does, none need be gathered."""
        ...

    def trace(self, trace: Trace) -> None:
        """Hand over a piece of work that has ended."""
        ...

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        """Log one event with its fields. `level`: debug, info, warning or error."""
        ...

    def count(self, metric: str, amount: float = 1, **tags: Tag) -> None:
        """Add to a counter."""
        ...

    def gauge(self, metric: str, value: float | None, **tags: Tag) -> None:
        """Set a gauge; with None it has no value any more, and is shown nowhere."""
        ...

    def observe(self, metric: str, value: float, **tags: Tag) -> None:
        """Add one observation to a histogram."""
        ...
