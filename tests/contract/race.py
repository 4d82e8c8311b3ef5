"""Several processes try the same thing at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack

# Each process makes its store, says that it is ready, and starts when it is told to; then it goes
# through the numbers and reports what it won.
_PROCESS = """
import json, sys
place, me, races = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
{setup}
print("ready", flush=True)
sys.stdin.readline()
won = [attempt(me, number) for number in range(races)]
print(json.dumps([name for name in won if name is not None]), flush=True)
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
                [sys.executable, "-c", code, place, str(me), str(races)],
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
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0] * processes
    return [json.loads(answer) for answer in answers]
