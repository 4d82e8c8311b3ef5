"""How a process's memory is shared out: librdkafka's queues, the pipeline, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024

BASE_BYTES = 170 * MIB
"""What a worker occupies with nothing in flight: Python, Arrow, librdkafka (measured, RSS)."""

PIPELINE_FACTOR = 4
"""Peak bytes in the process for each byte of record values held: raw, Arrow, file (measured)."""

QUEUE_BYTES_MAX = 16 * MIB
CHUNK_BYTES_MAX = 8 * MIB


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The shares of `memory.bytes_max`.

    `queue_bytes` is for librdkafka's queues, which overshoot by a fetch. `pipeline_bytes` counts
    record values from the poll to the upload: above it the worker takes one record a poll.
    """

    queue_bytes: int
    pipeline_bytes: int
    chunk_bytes: int

    @classmethod
    def of(cls, bytes_max: int) -> MemoryBudget:
        """Return the shares for a process that may occupy `bytes_max`."""
        free_bytes = max(bytes_max - BASE_BYTES, 32 * MIB)
        queue_bytes = min(QUEUE_BYTES_MAX, free_bytes // 8)
        pipeline_bytes = (free_bytes - 2 * queue_bytes) // PIPELINE_FACTOR
        return cls(queue_bytes, pipeline_bytes, min(CHUNK_BYTES_MAX, pipeline_bytes // 4))
