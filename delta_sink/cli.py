"""The commands: `delta-sink COMMAND --config FILE`. Exit 0 done, 1 wrong, 2 usage, 3 fatal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from importlib import import_module

import click

import delta_sink.adapters.allocator  # noqa: F401  # before anything that imports Arrow
from delta_sink import __version__
from delta_sink.cli_options import EXIT_DONE, EXIT_FATAL, EXIT_USAGE, last_words
from delta_sink.errors import ConfigError, DeltaSinkError


class Commands(click.Group):
    """Commands of which each is loaded when it is asked for: a worker starts without the others.

    `places` has the module and the name in it for each command.
    """

    def __init__(self, *arguments: object, places: Mapping[str, str], **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]  # as they were given to us
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, sorted."""
        return sorted([*super().list_commands(ctx), *self._places])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, loaded, or None."""
        if cmd_name not in self._places:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._places[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"delta_sink.{module}"), name)
        return command


@click.group(
    cls=Commands,
    places={
        "audit": "cli_audit:audit",
        "check-config": "cli_setup:check_config",
        "control": "cli_control:control",
        "demo": "demo:demo",
        "init": "cli_setup:init",
        "seek": "cli_seek:seek",
        "status": "cli_status:status",
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="delta-sink")
def cli() -> None:
    """Kafka topics into Delta Lake tables: exactly once, within a second."""


@cli.group(
    cls=Commands,
    places={
        "compactor": "cli_maintenance:run_compactor",
        "vacuum": "cli_maintenance:run_vacuum",
        "writer": "cli_writer:run_writer",
    },
)
def run() -> None:
    """Run a worker until it is asked to stop."""


def main() -> None:
    """Run a command and leave with its exit code; every error is one sentence on stderr."""
    code = EXIT_DONE
    try:
        # Outside of its standalone mode click returns the code of an `Exit` and does not raise it.
        code = cli.main(standalone_mode=False) or EXIT_DONE
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"configuration: {problem}", err=True)
        code = EXIT_USAGE
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except click.Abort:
        code = EXIT_FATAL
    except DeltaSinkError as error:
        click.echo(f"delta-sink: {error}", err=True)
        code = EXIT_FATAL
    except Exception as error:  # noqa: BLE001  # the top: said once, and the process ends
        click.echo(f"delta-sink: {last_words(error)}", err=True)
        code = EXIT_FATAL
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it any more, as behind `| head`
            stream.flush()
    # Readers of Arrow tables and librdkafka run threads that may abort an interpreter that is
    # being torn down; nothing is left to do here that tearing down would do.
    os._exit(code)


if __name__ == "__main__":
    main()
