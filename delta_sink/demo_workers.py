"""The processes of the demo: workers as a user would start them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from delta_sink.errors import DeltaSinkError


class DemoFailed(DeltaSinkError):
    """The demo did not end as it must; the sentence says where to look."""


class Workers:
    """The worker processes, each with its log in a file of `folder`."""

    def __init__(self, folder: Path, config: Path) -> None:
        self._folder = folder
        self._config = config
        self._started = 0
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, role: str) -> int:
        """Start one more worker of this role; return its number."""
        self._started += 1
        log_path = self._folder / f"{role}-{self._started}.log"
        command = [sys.executable, "-m", "delta_sink.cli", "run", role, "-c", str(self._config)]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)  # noqa: S603  # our own command line
        self.running.append(process)
        return self._started

    def kill_one(self) -> int:
        """Kill the first worker as the kernel would; return its process id."""
        victim = self.running.pop(0)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        return victim.pid

    def check(self) -> None:
        """Raise DemoFailed if a worker ended by itself."""
        for process in self.running:
            if process.poll() is not None:
                raise DemoFailed(f"a worker ended with {process.returncode}: see {self._folder}")

    def stop(self) -> None:
        """Ask all to stop; kill what does not within its grace period."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()
