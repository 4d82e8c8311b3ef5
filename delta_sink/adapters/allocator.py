"""How this process takes memory and gives it back. Import it before anything that imports Arrow.

A writer allocates and frees large buffers from a dozen threads. Left alone, the C library keeps
freed memory in an arena for each of them, and Arrow's own allocator keeps freed pages for itself.
Measured while 100 MB of JSON were drained with 16 MiB of records in the process at a time: 280 to
370 MiB resident left alone, 210 to 250 MiB so, in the same time.

Arrow chooses its allocator when it is loaded, by a variable of the environment, and parts of it go
by that choice alone whatever is said later; hence the variable is set when this module is loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

ARENAS_MAX: Final = 2
MMAP_THRESHOLD_BYTES: Final = 1024 * 1024
"""From this size on a buffer is mapped on its own and goes back when it is freed. Left to itself,
the library raises this to the largest buffer that it has seen, up to 32 MiB. At 128 KiB nearly
every buffer of a decoder is mapped, and the system clears each page of it anew: a third of the
time of decoding small JSON. At 16 MiB what lies freed between live buffers took 30 MiB more."""

TRIM_THRESHOLD_BYTES: Final = 4 * 1024 * 1024
"""So much freed memory at the end of an arena is kept for the next buffers."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def give_memory_back() -> None:
    """Make freed memory go back to the system soon. Call it before threads are started.

    Where the C library is not glibc, nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_ARENA_MAX, ARENAS_MAX)
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
