"""How a process's memory is shared out: librdkafka's queues, the pipeline, and what is left."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from delta_sink.model import Records

MIB = 1024 * 1024

BASE_BYTES = 185 * MIB
"""What a worker occupies whatever it holds, with some to spare: Python and its libraries, Arrow's
kernels and codecs once they have worked, threads, librdkafka's buffers (measured: 155, RSS)."""

PIPELINE_FACTOR = 6
"""Peak bytes in the process for each byte held, by the worst of what was measured: 2 to 3 for
records of 150 B to 20 kB, 6 for nested ones of 400 kB while three chunks are being decoded."""

BATCHES_HELD = 3
"""One batch is read while the one before is encoded, and the one before that is committed."""

QUEUE_BYTES_MAX = 16 * MIB
CHUNK_BYTES_MAX = 8 * MIB

POLL_RECORDS_MAX = 1_000
"""More than this many records a poll cost throughput (measured)."""

POLL_GROWTH = 4


class MemoryBudget(Struct, frozen=True):
    """The shares of `memory.bytes_max`.

    `queue_bytes` is for librdkafka's queues, which overshoot by a fetch. `pipeline_bytes` counts
    record values from the poll to the upload: above it the worker takes one record a poll.
    """

    queue_bytes: int
    pipeline_bytes: int
    chunk_bytes: int

    @property
    def batch_bytes(self) -> int:
        """Records that occupy so much end a batch, so that others come in while it is encoded.

        One that took the whole share would let nothing in until its files are there: to drain a
        backlog of records of 100 B took a sixth longer so.
        """
        return self.pipeline_bytes // BATCHES_HELD

    @classmethod
    def of(cls, bytes_max: int) -> MemoryBudget:
        """Return the shares for a process that may occupy `bytes_max`."""
        free_bytes = max(bytes_max - BASE_BYTES, 32 * MIB)
        queue_bytes = min(QUEUE_BYTES_MAX, free_bytes // 8)
        pipeline_bytes = (free_bytes - 2 * queue_bytes) // PIPELINE_FACTOR
        return cls(queue_bytes, pipeline_bytes, min(CHUNK_BYTES_MAX, pipeline_bytes // 4))


class PollPace:
    """How many records the next poll may take, so that it does not overrun what is free.

    Nobody knows the size of a record before it is there, and during one call librdkafka fetches
    on: a thousand records of 400 kB are 400 MB. So a poll takes as many as fit if they are like
    those of the poll before, but only a few times more than came then; after silence it begins
    with as many as fit if each is as large as a record may be.
    """

    def __init__(self, record_bytes_max: int) -> None:
        """`record_bytes_max` is the largest value that is not a bad record."""
        self._record_bytes_max = record_bytes_max
        self._records = 0
        self._record_bytes = record_bytes_max

    def note(self, polled: Iterable[Records]) -> None:
        """Take what a poll returned into account."""
        count = size_bytes = 0
        for records in polled:
            count += len(records)
            size_bytes += records.size_bytes
        self._records = count
        if count:
            self._record_bytes = max(1, size_bytes // count)

    def records_max(self, room_bytes: int) -> int:
        """Return how many records to take when `room_bytes` are free; at least one."""
        surely = room_bytes // self._record_bytes_max
        likely = min(room_bytes // self._record_bytes, self._records * POLL_GROWTH)
        return max(1, min(POLL_RECORDS_MAX, max(surely, likely)))
