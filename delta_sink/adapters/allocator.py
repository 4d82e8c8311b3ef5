"""How this process takes memory and gives it back.

A writer allocates and frees large buffers from a dozen threads. Left alone, the C library keeps
an arena of freed memory for each of them, and Arrow's own allocator keeps freed pages for itself:
measured, a writer that held 30 MiB at a time grew to twice what it does with the settings below.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

import pyarrow as pa

ARENAS_MAX: Final = 2
MMAP_THRESHOLD_BYTES: Final = 128 * 1024
"""From this size on a buffer is mapped on its own and goes back when it is freed. Fixed: left to
itself the library raises it to the largest buffer that it has seen, up to 32 MiB."""

TRIM_THRESHOLD_BYTES: Final = 1024 * 1024

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8


def give_memory_back() -> None:
    """Make freed memory go back to the system soon. Call it before threads are started.

    Where the C library is not glibc, only Arrow's share is changed.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, ARENAS_MAX)
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
