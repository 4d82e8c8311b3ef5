"""What has come from the control topic: commands in order, and which offsets are done. Pure.

A command may take hours, and those behind it in its partition may be done before it. The group's
offset moves only over what is done, so that whoever gets the partition next sees all that is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from msgspec import Struct, field

from delta_sink.control import Command, Pause, Resume
from delta_sink.model import TopicPartition


class Received(Struct, eq=False):
    """A command and the record that it came in."""

    tp: TopicPartition
    offset: int
    command: Command
    is_done: bool = False


def _is_ordered(received: Received) -> bool:
    return isinstance(received.command.args, Pause | Resume)


class _Lane(Struct):
    """One partition: what is open of it, and where reading goes on."""

    offset_next: int
    committed: int
    is_read: bool = False
    open: deque[Received] = field(default_factory=deque)

    @property
    def done_next(self) -> int:
        """The offset below which everything is done."""
        while self.open and self.open[0].is_done:
            self.open.popleft()
        return self.open[0].offset if self.open else self.offset_next


class Inbox:
    """The partitions of the control topic that this worker has."""

    def __init__(self) -> None:
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._waiting: deque[Received] = deque()

    def __len__(self) -> int:
        """How many commands wait to be begun."""
        return len(self._waiting)

    @property
    def partitions(self) -> list[TopicPartition]:
        """The partitions that are ours."""
        return list(self._lanes)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        """Take partitions; they are not read until `start`."""
        for tp in partitions:
            self._lanes[tp] = _Lane(0, 0)

    def revoke(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions; what is begun of them goes on, and moves no offset."""
        gone = {tp for tp in partitions if self._lanes.pop(tp, None) is not None}
        self._waiting = deque(each for each in self._waiting if each.tp not in gone)

    def unread(self) -> list[TopicPartition]:
        """Return the partitions of which nobody has said yet where to begin."""
        return sorted(tp for tp, lane in self._lanes.items() if not lane.is_read)

    def start(self, tp: TopicPartition, offset: int) -> bool:
        """Begin a partition at `offset`; return whether it is still ours and was not begun."""
        lane = self._lanes.get(tp)
        if lane is None or lane.is_read:
            return False
        lane.offset_next = lane.committed = offset
        lane.is_read = True
        return True

    def restart(self, tp: TopicPartition) -> None:
        """Let a partition be begun anew: its offset is gone."""
        if tp in self._lanes:
            self.revoke([tp])
            self.assign([tp])

    def reads_at(self) -> dict[TopicPartition, int]:
        """Return where reading goes on in each partition that is read."""
        return {tp: lane.offset_next for tp, lane in self._lanes.items() if lane.is_read}

    def add(self, tp: TopicPartition, offset: int, command: Command) -> None:
        """Take a command that waits to be begun."""
        lane = self._lanes.get(tp)
        if lane is None or not lane.is_read:
            return
        received = Received(tp, offset, command)
        lane.open.append(received)
        self._waiting.append(received)

    def passed(self, tp: TopicPartition, offset_next: int) -> None:
        """Note that everything below `offset_next` was looked at."""
        lane = self._lanes.get(tp)
        if lane is not None and lane.is_read:
            lane.offset_next = max(lane.offset_next, offset_next)

    def take(self) -> Received | None:
        """Return the next command that may be begun, or None.

        A pause and its resume are begun in the order of their partition, one after the other.
        """
        for received in self._waiting:
            if not _is_ordered(received) or self._is_first(received):
                self._waiting.remove(received)
                return received
        return None

    def _is_first(self, received: Received) -> bool:
        lane = self._lanes[received.tp]
        ordered = (each for each in lane.open if _is_ordered(each) and not each.is_done)
        return next(ordered, None) is received

    def to_commit(self) -> dict[TopicPartition, int]:
        """Return the offsets that the group is to be told, each once."""
        found = {}
        for tp, lane in self._lanes.items():
            if lane.is_read and lane.done_next > lane.committed:
                found[tp] = lane.committed = lane.done_next
        return found
