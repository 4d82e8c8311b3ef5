"""`python -m tests.services install | install-k8s | up`: the servers of the tests, for a developer.

`install` fetches and builds what is not there yet, `install-k8s` Kubernetes, which alone
`make test-k8s` and `make test-long` need. `up` starts all servers, prints the environment
in which programs find them, and ends them on Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial

from tests.services.install import (
    CannotInstall,
    InstallFailed,
    all_of_kubernetes,
    cache,
    delta_kernel,
    helm_binary,
    python_readers,
)
from tests.services.processes import ServerFailed
from tests.services.servers import TITLES, Servers, installed, uses_docker


def install() -> int:
    """Return 0 when helm is there and every server can be started; under CI, else 1."""
    missing = 0
    print(f"services: installed in {cache()}; the first time takes some minutes", flush=True)
    wanted: dict[str, Callable[[], object]] = {"helm": helm_binary, "Delta Kernel": delta_kernel}
    wanted["DuckDB's Delta extension"] = python_readers
    if uses_docker():
        print("services: a Docker engine answers, the tests use its containers")
    else:
        wanted |= {title: partial(installed, name) for name, title in TITLES.items()}
    for title, program in wanted.items():
        try:
            program()
        except CannotInstall as error:
            missing += 1
            print(f"services: tests on {title} are skipped: {error}", flush=True)
    return 1 if missing and os.environ.get("CI") == "true" else 0


def install_kubernetes() -> int:
    """Return 0 when an API server can be started, or a sentence says why not."""
    print(f"services: installed in {cache()}; Kubernetes takes its time, once", flush=True)
    try:
        all_of_kubernetes()
    except CannotInstall as error:
        print(f"services: tests on Kubernetes are skipped: {error}", flush=True)
    return 0


def up() -> int:
    """Run all servers until Ctrl-C or SIGTERM; return 0."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Servers() as servers:
        variables: dict[str, str] = {}
        for name in TITLES:
            if ended.is_set():
                return 0
            service = servers.get(name)
            if name == "kafka":
                variables["KAFKA_BOOTSTRAP_SERVERS"] = service.bootstrap_servers
            else:
                # One pair of keys serves both stores: DynamoDB Local takes any.
                variables = {**service.environment, **variables}
        print("\n".join(f"# {title}" for title in servers.titles()))
        print("\n".join(f"export {key}={value}" for key, value in sorted(variables.items())))
        print("# running; Ctrl-C ends them", flush=True)
        ended.wait()
    return 0


def main() -> int:
    """Do what the argument says; an error is its sentence."""
    commands = {"install": install, "install-k8s": install_kubernetes, "up": up}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(f"usage: python -m tests.services {' | '.join(commands)}", file=sys.stderr)
        return 2
    try:
        return commands[sys.argv[1]]()
    except (CannotInstall, InstallFailed, ServerFailed) as error:
        print(f"services: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
