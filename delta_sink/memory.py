"""How a process's memory is shared out: librdkafka's queues, the pipeline, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024

BASE_BYTES = 160 * MIB
"""What a worker occupies whatever it holds, with some to spare: Python and its libraries, Arrow's
kernels and codecs once they have worked, threads, librdkafka's buffers (measured: 140, RSS)."""

PIPELINE_FACTOR = 3
"""Bytes in the process for each byte held. The slope was 1.9 from 12 to 260 MiB held (measured
with records of 150 B to 400 kB); the rest is for rows that decode or encode worse than those."""

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
