"""The commands: `delta-sink COMMAND --config FILE`. Exit 0 done, 1 wrong, 2 usage, 3 fatal."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import click

from delta_sink import __version__
from delta_sink.errors import ConfigError, DeltaSinkError, RetriableError
from delta_sink.lease import register_sink
from delta_sink.ports import LeaseStore
from delta_sink.settings import Settings
from delta_sink.wiring import Parts, load_settings, make_leases, make_parts, make_writer

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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="delta-sink")
def cli() -> None:
    """Kafka topics into Delta Lake tables: exactly once, within a second."""


@cli.group()
def run() -> None:
    """Run a worker until it is asked to stop."""


@run.command("writer")
@configured
@click.option("--until-end", is_flag=True, help="Stop at the end offsets seen at the start.")
def run_writer(config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, until_end: bool) -> None:
    """Write the topics of one sink into its table."""
    settings = load_settings(config, sets)
    parts = make_parts(settings)
    _register(parts, make_leases)
    writer, jobs = make_writer(parts, until_end=until_end)

    def stop(number: int, _frame: FrameType | None) -> None:
        parts.telemetry.event("signal_received", reason=signal.Signals(number).name)
        writer.request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    writer.run()
    jobs.close(0)
    if as_json:
        _print_json({"ok": True})


def _register(parts: Parts, leases: Callable[[Settings], LeaseStore]) -> None:
    """Register the sink's name with its table, where the lock store answers."""
    try:
        register_sink(
            leases(parts.settings), sink=parts.settings.name, table_uri=parts.table_uri
        )
    except RetriableError as error:
        # Locks are a courtesy: the log alone keeps the table right.
        parts.telemetry.event("waiting", "warning", reason=f"working without locks: {error}")


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def main() -> None:
    """Run a command and leave with its exit code; every error is one sentence on stderr."""
    code = EXIT_DONE
    try:
        cli.main(standalone_mode=False)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(f"configuration: {problem}", err=True)
        code = EXIT_USAGE
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except click.Abort:
        code = EXIT_FATAL
    except DeltaSinkError as error:
        click.echo(f"delta-sink: {error}", err=True)
        code = EXIT_FATAL
    sys.stdout.flush()
    sys.stderr.flush()
    # Readers of Arrow tables and librdkafka run threads that may abort an interpreter that is
    # being torn down; nothing is left to do here that tearing down would do.
    os._exit(code)


if __name__ == "__main__":
    main()
