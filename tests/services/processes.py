"""A server as a process of this machine: started, awaited, stopped, killed, its log kept."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
STOP_S = 30.0

# Below the range from which systems take ports for outgoing connections: a server that is stopped
# and started again must find its port free.
_PORTS = range(15_000, 30_000)
_chance = random.SystemRandom()


class ServerFailed(Exception):
    """A server did not become ready; the message ends with the last lines of its log."""


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    for _ in range(200):
        port = _chance.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerFailed("no free port found in 200 tries")


class NativeServer:
    """One server process behind a guard (`guard.py`). May be started again after it has ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        ready: Callable[[], bool],
        ready_s: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the server; nothing is started.

        Args:
            name: for logs and errors.
            command: what to run.
            folder: its working directory; the log is written beside its files.
            ready: asked again and again after a start, until it says yes.
            ready_s: how long that may take.
            env: variables over those of this process.
        """
        self.name = name
        self.folder = folder
        self.log_path = folder / f"{name}.log"
        self._command = list(command)
        self._ready = ready
        self._ready_s = ready_s
        self._env = {**os.environ, **(env or {})}
        self._guard: subprocess.Popen[str] | None = None
        self.pid = 0

    @property
    def is_running(self) -> bool:
        """Whether the process is there."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Return when the server is ready.

        Raises:
            ServerFailed: it ended, or was not ready in time; it is not running then.
        """
        assert not self.is_running, f"{self.name} runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), *self._command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=self._env,
                start_new_session=True,  # Ctrl-C is for us alone
            )
        assert self._guard.stdout is not None
        pid = self._guard.stdout.readline().strip()
        if not pid:
            self._reap()
            raise ServerFailed(f"{self.name} could not be started:\n{self.log_tail()}")
        self.pid = int(pid)
        try:
            self._await()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Return when the server has ended, as it does by itself when it is asked to."""
        self.signal("TERM")
        self._end(STOP_S)

    def kill(self) -> None:
        """Return when the server is dead, without having had time for anything."""
        self.signal("KILL")
        self._end(STOP_S)

    def signal(self, name: str) -> None:
        """Send a signal (`TERM`, `KILL`, `STOP`, `CONT`) to the server, if it is there."""
        if self.is_running:
            assert self._guard is not None
            assert self._guard.stdin is not None
            try:
                self._guard.stdin.write(f"SIG{name}\n")
                self._guard.stdin.flush()
            except BrokenPipeError:
                return  # it ended meanwhile

    def close(self) -> None:
        """Return when nothing of the server runs any more, stopped ones included."""
        self._end(0)

    def log_tail(self, lines: int = 40) -> str:
        """Return the end of the server's log."""
        if not self.log_path.exists():
            return ""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _await(self) -> None:
        deadline_s = time.monotonic() + self._ready_s
        while not self._ready():
            if not self.is_running:
                raise ServerFailed(f"{self.name} ended at its start:\n{self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise ServerFailed(
                    f"{self.name} was not ready within {self._ready_s:.0f} s:\n{self.log_tail()}"
                )
            time.sleep(0.05)

    def _end(self, patience_s: float) -> None:
        """Wait for the end; after `patience_s` let the guard bring it about."""
        if self._guard is None:
            return
        try:
            self._guard.wait(patience_s)
        except subprocess.TimeoutExpired:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait(STOP_S)
        self._reap()

    def _reap(self) -> None:
        guard, self._guard = self._guard, None
        assert guard is not None
        guard.wait()
        for stream in (guard.stdin, guard.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # the last signal found nobody
