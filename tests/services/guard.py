"""Runs one server, and ends it when whoever asked for it is gone.

Run as a program of its own: `python guard.py COMMAND…`. It starts the command in a session of its
own and prints the process id. Each line that it then reads is the name of a signal for the server
and everything that the server started. The end of its input means that the other side is finished,
or dead, however it died: the server is asked to end, and killed if it does not.

This holds where `atexit` does not: a test run that is killed closes its pipes all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    """Ask Linux to kill the server if even the guard is killed; elsewhere there is no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _send(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _obey(child: subprocess.Popen[bytes]) -> None:
    """Pass on signals until the input ends; then end the server."""
    for line in sys.stdin:
        _send(child, signal.Signals[line.strip()])
    _send(child, signal.SIGCONT)
    _send(child, signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _send(child, signal.SIGKILL)


def main() -> int:
    """Return the server's exit code once it has ended."""
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        start_new_session=True,
        preexec_fn=_die_with_guard,  # safe: no thread was started yet
    )
    print(child.pid, flush=True)
    threading.Thread(target=_obey, args=(child,), daemon=True).start()
    code = child.wait()
    _send(child, signal.SIGKILL)  # what it started and left behind
    return code


if __name__ == "__main__":
    # A thread may still read the input: leave without waiting for it.
    os._exit(main() & 0xFF)
