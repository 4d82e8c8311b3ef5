"""What the modules of commands share: exit codes, the options of every command, what is printed."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import click

from delta_sink.trouble import bug_sentence

EXIT_DONE = 0
EXIT_WRONG = 1
EXIT_USAGE = 2
EXIT_FATAL = 3

F = TypeVar("F", bound=Callable[..., Any])


def configured(command: F) -> F:
    """Add the options that every command has: `--config`, `--set`, `--json`."""
    command = click.option(
        "--config",
        "-c",
        "config",
        multiple=True,
        required=True,
        metavar="FILE",
        help="Configuration file; several are laid over each other in order.",
    )(command)
    command = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="PATH=VALUE",
        help="Set one key over all files, for example flush.interval_ms=200.",
    )(command)
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)


def print_json(value: object) -> None:
    """Print one line of JSON."""
    click.echo(json.dumps(value, ensure_ascii=False))


def operator() -> str:
    """Return who runs this command, as far as the machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def last_words(error: Exception) -> str:
    """Return what is said of a process that ends by an unexpected error."""
    return f"{bug_sentence(error)}; nothing uncommitted was kept, so that a restart is safe"
