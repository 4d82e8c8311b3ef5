"""The sender's side of the control topic: send a command, follow its outcome, read what was said.

It belongs to no consumer group and moves nobody's offsets: it reads ranges of offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol

from msgspec import Struct, field

from delta_sink.control import Command, Outcome, encode_command, parse_outcome, read_command
from delta_sink.control_message import Refusal, Signer
from delta_sink.errors import BrokerUnavailable, FatalError
from delta_sink.model import OutgoingRecord, TopicPartition
from delta_sink.ports import At, Broker, Clock, Producer

POLL_MS: Final = 300
LOG_RECORDS_MAX: Final = 5_000
"""How far back `recent` looks in each partition of the two topics."""


class ServedValues(Protocol):
    """Consecutive records of one partition, as the reader of ranges yields them."""

    @property
    def tp(self) -> TopicPartition:
        """The partition."""
        ...

    @property
    def offsets(self) -> Sequence[int]:
        """Rising offsets."""
        ...

    @property
    def values(self) -> Sequence[bytes | None]:
        """The value of each."""
        ...


ReadRanges = Callable[[Mapping[TopicPartition, tuple[int, int]]], Iterable[ServedValues]]
"""Yields what Kafka serves of each `[first, next)`, values included."""

Offsets = Mapping[TopicPartition, int]


class ControlClient(Struct, frozen=True):
    """The two topics, and the ways to them. Every function here waits: call them in jobs."""

    broker: Broker
    producer: Producer
    read: ReadRanges
    clock: Clock
    topic: str
    status_topic: str
    signer: Signer | None = field(default=None)


def send_command(client: ControlClient, command: Command) -> None:
    """Return once the command is in the control topic, under the key of its table.

    Raises:
        BrokerUnavailable: it may be there or not. Sending it again under the same id is harmless.
        FatalError: there is no such topic, or no right to write to it.
    """
    value = encode_command(command, client.signer)
    client.producer.send(client.topic, [OutgoingRecord(command.table.encode(), value)])


def status_ends(client: ControlClient) -> dict[TopicPartition, int]:
    """Return where the status topic ends now. Take it before a command is sent, to miss nothing.

    Raises:
        BrokerUnavailable: no answer in time.
        FatalError: there is no such topic.
    """
    return _offsets(client, client.status_topic, "latest")


def recent_offsets(client: ControlClient) -> dict[TopicPartition, int]:
    """Return offsets of the status topic from which on the last `LOG_RECORDS_MAX` records follow.

    Raises: as `status_ends`.
    """
    earliest = _offsets(client, client.status_topic, "earliest")
    return {
        tp: max(earliest.get(tp, 0), end - LOG_RECORDS_MAX)
        for tp, end in status_ends(client).items()
    }


def follow(
    client: ControlClient,
    command_id: str,
    since: Offsets,
    *,
    timeout_ms: int,
    told: Callable[[Outcome], None],
) -> Outcome | None:
    """Return the final outcome of a command, or None if there is none within `timeout_ms`.

    `told` hears every outcome of the command and of its parts in the order of each partition,
    the final one too. `since` is what `status_ends` returned before the command was sent. Brokers
    that do not answer are asked again.

    Raises:
        FatalError: the topic or the credentials are refused.
    """
    until_ms = client.clock.elapsed_ms() + timeout_ms
    offsets = dict(since)
    while True:
        try:
            for outcome in newer_outcomes(client, offsets):
                if command_id not in (outcome.id, _parent_of(outcome)):
                    continue
                told(outcome)
                if outcome.id == command_id and outcome.is_final:
                    return outcome
        except BrokerUnavailable:
            pass  # Until the time is over.
        left_ms = until_ms - client.clock.elapsed_ms()
        if left_ms <= 0:
            return None
        client.clock.sleep_ms(min(POLL_MS, left_ms))


def newer_outcomes(client: ControlClient, offsets: dict[TopicPartition, int]) -> Iterator[Outcome]:
    """Yield the outcomes after `offsets`, and move these past each one that was yielded.

    Raises:
        BrokerUnavailable: no answer in time; what was yielded is not yielded again.
        FatalError: there is no such topic.
    """
    ends = status_ends(client)
    ranges = {tp: (offsets.get(tp, 0), end) for tp, end in ends.items()}
    for served in client.read({tp: span for tp, span in ranges.items() if span[0] < span[1]}):
        for offset, value in zip(served.offsets, served.values, strict=True):
            offsets[served.tp] = offset + 1
            outcome = parse_outcome(value)
            if outcome is not None:
                yield outcome
    offsets.update({tp: max(end, offsets.get(tp, 0)) for tp, end in ends.items()})


def _parent_of(outcome: Outcome) -> str | None:
    return None if outcome.part is None else outcome.part.parent


def _offsets(client: ControlClient, topic: str, at: At) -> dict[TopicPartition, int]:
    found = client.broker.topics([topic], None)
    if not found:
        raise FatalError(f"kafka: there is no topic {topic!r}: `delta-sink init` creates it")
    return client.broker.offsets(
        [TopicPartition(topic, number) for number in range(found[0].partitions)], at
    )


# --- what was asked and answered ------------------------------------------------------------------


class Exchange(Struct, frozen=True):
    """A command and what was said of it, as far as the topics still have it.

    `outcomes` is in the order of its partition. `command` is None where only outcomes are left,
    or where the message is none that can be read; `refusal` then says why.
    """

    id: str
    command: Command | None = None
    refusal: str | None = None
    outcomes: tuple[Outcome, ...] = ()

    @property
    def at_ms(self) -> int:
        """When it was issued, or first spoken of; 0 where nothing says so."""
        if self.command is not None and self.command.issued_at_ms is not None:
            return self.command.issued_at_ms
        return min((outcome.at_ms for outcome in self.outcomes), default=0)

    @property
    def last(self) -> Outcome | None:
        """The final outcome, or the newest one."""
        final = [outcome for outcome in self.outcomes if outcome.is_final]
        return final[0] if final else self.outcomes[-1] if self.outcomes else None

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {
            "id": self.id,
            "command": None if self.command is None else self.command.to_json(),
            "refusal": self.refusal,
            "state": None if self.last is None else self.last.state,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
        }


def recent(client: ControlClient, table_uri: str, *, last: int) -> list[Exchange]:
    """Return the last commands for a table, oldest first, each with what was said of it.

    At most `LOG_RECORDS_MAX` records are read of each partition of each topic.

    Raises:
        BrokerUnavailable: no answer in time.
        FatalError: a topic is not there, or refused.
    """
    found: dict[str, Exchange] = {}
    for value in _tail(client, client.topic):
        exchange = _exchange_of(value, table_uri)
        if exchange is not None:
            found.setdefault(exchange.id, exchange)
    outcomes: dict[str, list[Outcome]] = {}
    for value in _tail(client, client.status_topic):
        outcome = parse_outcome(value)
        if outcome is not None and outcome.table == table_uri:
            outcomes.setdefault(outcome.id, []).append(outcome)
    merged = [
        Exchange(
            name,
            found[name].command if name in found else None,
            found[name].refusal if name in found else None,
            tuple(outcomes.get(name, ())),
        )
        for name in [*found, *(name for name in outcomes if name not in found)]
    ]
    return sorted(merged, key=lambda exchange: exchange.at_ms)[-last:]


def _tail(client: ControlClient, topic: str) -> Iterator[bytes | None]:
    earliest = _offsets(client, topic, "earliest")
    latest = _offsets(client, topic, "latest")
    ranges = {
        tp: (max(earliest.get(tp, 0), end - LOG_RECORDS_MAX), end)
        for tp, end in latest.items()
        if earliest.get(tp, 0) < end
    }
    for served in client.read(ranges):
        yield from served.values


def _exchange_of(value: bytes | None, table_uri: str) -> Exchange | None:
    try:
        command = read_command(value, table_uri)
    except Refusal as refusal:
        if refusal.id is None or refusal.table != table_uri:
            return None
        return Exchange(refusal.id, refusal=refusal.message)
    return None if command is None else Exchange(command.id, command)
