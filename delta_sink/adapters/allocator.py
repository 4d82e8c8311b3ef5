"""How this process takes memory and gives it back. Import it before anything that imports Arrow.

A writer allocates and frees large buffers from a dozen threads, a compactor thousands of small ones
between large ones. Left alone, the C library keeps freed memory in an arena for each thread, and
Arrow's own allocator keeps freed pages for itself. Measured while 100 MB of JSON were drained with
16 MiB of records in the process at a time: 280 to 370 MiB resident left alone, 210 to 250 MiB so, in
the same time (with less kept than now, see below).

For Arrow's buffers jemalloc is used, with one arena that all threads share and no caches beside it,
and with a second until freed pages go back. The C library, asked for aligned buffers, leaves gaps
that later ones do not fit: 10,000 small files took a compactor 179 MiB with it, 150 with jemalloc.
A drain takes as much memory and no more CPU with either.

Arrow chooses its allocator when it is loaded, by a variable of the environment, and parts of it go
by that choice alone whatever is said later; hence the variables are set when this module is loaded.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from typing import Final

ARENAS_MAX: Final = 2
MMAP_THRESHOLD_BYTES: Final = 8 * 1024 * 1024
"""From this size on a buffer is mapped on its own and goes back when it is freed. Left to itself,
the library raises this to the largest buffer that it has seen, up to 32 MiB. What is mapped anew the
system clears, page by page. The answer to a fetch of four partitions takes 4 MiB."""

TRIM_THRESHOLD_BYTES: Final = 32 * 1024 * 1024
"""So much freed memory at the end of an arena is kept for the next buffers.

Draining half a GB of nested JSON, a process met 121,000 page faults and took 1.5 CPU seconds a GB in the
system with 4 and 16 MiB here and 200 ms in `JEMALLOC`; 62,000 and 0.8 as it is now, for 15 MiB more at
its peak (264 and 279)."""

JEMALLOC: Final = "narenas:1,tcache:false,dirty_decay_ms:1000,muzzy_decay_ms:0"

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

# Arrow for Linux with glibc comes with jemalloc; elsewhere it may not, and would warn.
if sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", JEMALLOC)
else:
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Arrow brings clients of its own for object stores. They are never used here, and to load them costs
# 3 MiB: to Python they are not there.
for _client in ("_azurefs", "_gcsfs", "_hdfs", "_s3fs"):
    sys.modules.setdefault(f"pyarrow.{_client}", None)  # type: ignore[arg-type]  # means: none
# NumPy is not asked for linear algebra here; its library would start a thread for each core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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
