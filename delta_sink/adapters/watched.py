"""A consumer that says how the worker that polls it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from delta_sink.model import TopicPartition
from delta_sink.ports import Assigned, Clock, Consumer, Polled, Revoked
from delta_sink.status import PartitionStatus, WorkerStatus


class WatchedConsumer:
    """The `Consumer` `consumer`; `status` says when it was last polled and what it holds.

    The group's offsets that it commits stand for what is committed: a control topic has no table.
    Only the state thread calls the methods of the port; `status` may be read by any.
    """

    def __init__(
        self, consumer: Consumer, clock: Clock, *, worker: str, role: str, table: str
    ) -> None:
        self._consumer = consumer
        self._clock = clock
        self._offsets: dict[TopicPartition, int | None] = {}
        self._is_closed = False
        self._since_ms = clock.wall_ms()
        self._worker, self._role, self._table = worker, role, table
        self._at_ms = clock.elapsed_ms()

    @property
    def status(self) -> WorkerStatus:
        """How the worker stands now."""
        offsets = sorted(self._offsets.copy().items())
        return WorkerStatus(
            worker=self._worker,
            role=self._role,
            state="stopping" if self._is_closed else "working" if offsets else "standing_by",
            at_ms=self._at_ms,
            since_ms=self._since_ms,
            table=self._table,
            partitions=tuple(
                PartitionStatus(tp, offset, offset or 0, None, None) for tp, offset in offsets
            ),
        )

    def poll(self, records_max: int, timeout_ms: int) -> Polled:
        """Do as `Consumer.poll`."""
        self._at_ms = self._clock.elapsed_ms()
        polled = self._consumer.poll(records_max, timeout_ms)
        for event in polled.events:
            if isinstance(event, Assigned):
                self._offsets.update(dict.fromkeys(event.partitions))
            elif isinstance(event, Revoked):
                for tp in event.partitions:
                    self._offsets.pop(tp, None)
        return polled

    def start(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Do as `Consumer.start`."""
        self._note(offsets)
        self._consumer.start(offsets)

    def stop(self, partitions: Sequence[TopicPartition]) -> None:
        """Do as `Consumer.stop`."""
        self._consumer.stop(partitions)

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Do as `Consumer.commit`."""
        self._note(offsets)
        self._consumer.commit(offsets)

    def rejoin(self) -> None:
        """Do as `Consumer.rejoin`."""
        self._offsets = {}
        self._consumer.rejoin()

    def close(self) -> None:
        """Do as `Consumer.close`."""
        self._is_closed = True
        self._consumer.close()

    def _note(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._offsets.update({tp: at for tp, at in offsets.items() if tp in self._offsets})
