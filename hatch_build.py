"""Compiles the plain path of the JSON decoder while the package is built or installed.

The compiler is a wheel (`ziglang`), so nobody needs one of their own. Where it cannot compile, the
package is built without: the same rows come out of it, more slowly, and this says so.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("delta_sink/decode/native")
LIBRARY = FOLDER / "libdelta_sink_json.so"


class Compile(BuildHookInterface[Any]):
    """Adds the compiled library to what is built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; an editable installation finds the library beside its source."""
        if self.target_name != "wheel":
            return
        library = Path(self.root) / LIBRARY
        # A process that has it loaded keeps it. Left over, it would not fit its source.
        library.unlink(missing_ok=True)
        problem = compile_library(Path(self.root))
        if problem is not None:
            self.app.display_warning(f"delta-sink decodes JSON without compiled code: {problem}")
            return
        build_data["artifacts"].append(LIBRARY.as_posix())
        build_data["pure_python"] = False
        # Any Python 3 loads it: it knows nothing of the interpreter.
        build_data["tag"] = (
            f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        )


def compile_library(root: Path) -> str | None:
    """Return None once the library lies beside its source; else why it does not."""
    target = _target()
    if target is None:
        return f"no target for {platform.system()} on {platform.machine()}"
    with tempfile.TemporaryDirectory() as cache:
        made = Path(cache) / LIBRARY.name
        command = [
            *(sys.executable, "-m", "ziglang", "build-lib", "-dynamic", "-lc", "-fstrip"),
            # Checked: an index out of bounds ends the process and changes no value.
            *("-O", "ReleaseSafe", "-target", target, "-mcpu=baseline"),
            "-fno-stack-protector",  # no index leaves its array: a canary has nothing to find
            *("--cache-dir", cache, "--global-cache-dir", cache),
            str(root / FOLDER / "json.zig"),
            f"-femit-bin={made}",
        ]
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        (root / LIBRARY).write_bytes(made.read_bytes())
    return None


def _target() -> str | None:
    machine = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}.get(platform.machine())
    if machine is None:
        return None
    if platform.system() == "Darwin":
        return f"{machine}-macos"
    if platform.system() != "Linux":
        return None
    is_musl = "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")
    return f"{machine}-linux-musl" if is_musl else f"{machine}-linux-gnu.2.17"
