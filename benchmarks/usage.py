"""What a process took from its start to its end, as the kernel says: seconds, CPU, peak memory.

`python -m benchmarks.usage COMMAND …` runs a command and prints that as JSON. It is a process of its
own because the kernel counts, for a process that was just started, the memory of the one that
started it as well: a peak that is asked of a large benchmark would be the benchmark's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

_CHECKOUT: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process took. `peak_bytes` is of resident memory."""

    duration_s: float
    cpu_s: float
    peak_bytes: int


def installed(compiled: Path) -> dict[str, str]:
    """Return the environment in which a contender finds its modules compiled below `compiled`.

    So an installed program does, whatever this process was told: else each run may compile them
    anew, which took delta-sink a second.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPYCACHEPREFIX": str(compiled)}


def usage_of(command: Sequence[str], compiled: Path) -> Usage:
    """Return what `command` took; its output is dropped, its complaints are passed on.

    Modules that are not `compiled` yet are, on the way: run something that does not count first.

    Raises:
        AssertionError: it did not end with 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.usage", *command],
        stdout=subprocess.PIPE,
        check=False,
        cwd=_CHECKOUT,
        env=installed(compiled),
    )
    assert done.returncode == 0, f"{command[:4]} ended with {done.returncode}"
    return Usage(**json.loads(done.stdout))


def main() -> int:
    """Run what the arguments say; return its exit code."""
    begun_s = perf_counter()
    process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "duration_s": perf_counter() - begun_s,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    print(json.dumps(found))
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
