"""Several processes try the same thing at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack

# Each process makes its store and says that it is ready. Then it is told one number after the other,
# as all are: left to itself, one that is ahead stays ahead and wins everything.
_PROCESS = """
import json, sys
place, me = sys.argv[1], int(sys.argv[2])
{setup}
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(attempt(me, int(line))), flush=True)
"""


def race_processes(setup: str, place: str, *, processes: int, races: int) -> list[list[str]]:
    """Return what each process won.

    `setup` is Python that finds `place` and defines `attempt(me, number)`, which returns the name
    of what it won, or None.
    """
    code = _PROCESS.replace("{setup}", setup)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with ExitStack() as stack:
        started = []
        for me in range(processes):
            process = subprocess.Popen(
                [sys.executable, "-c", code, place, str(me)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout.readline() == "ready\n"
        won: list[list[str]] = [[] for _ in started]
        for number in range(races):
            for process in started:
                process.stdin.write(f"{number}\n")
                process.stdin.flush()
            for mine, process in zip(won, started, strict=True):
                name = json.loads(process.stdout.readline())
                if name is not None:
                    mine.append(name)
        for process in started:
            process.communicate(timeout=120)
        assert [process.returncode for process in started] == [0] * processes
    return won
