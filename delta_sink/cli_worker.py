"""What running a worker of any kind shares: its name, its signals, its last words."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import click

from delta_sink.adapters.allocator import give_memory_back
from delta_sink.adapters.process import prepare_process
from delta_sink.adapters.secret_files import SecretFiles, SecretWatch
from delta_sink.cli_options import EXIT_FATAL, last_words
from delta_sink.errors import ConfigError, DeltaSinkError, RetriableError
from delta_sink.lease import register_sink
from delta_sink.wiring import Parts, load_settings, make_leases, make_parts

JOB_THREADS = 8


def begin(config: tuple[str, ...], sets: tuple[str, ...]) -> tuple[Parts, SecretFiles]:
    """Return the parts of a worker, and the files of secrets that its configuration refers to.

    From now on the process is fit for many records, and tells its log what libraries say.
    """
    files = SecretFiles()
    settings = load_settings(config, sets, files)
    give_memory_back()
    prepare_process()
    parts = make_parts(settings)
    parts.telemetry.capture_libraries()
    return parts, files


@contextmanager
def supervised(parts: Parts) -> Iterator[None]:
    """Run a worker; what ends it is one line of its log, and the exit code."""
    try:
        yield
    except ConfigError:
        raise  # what only the machine or librdkafka can tell is a wrong configuration all the same
    except DeltaSinkError as error:
        parts.telemetry.event("worker_failed", "error", error=str(error), exit_code=EXIT_FATAL)
        raise click.exceptions.Exit(EXIT_FATAL) from error
    except click.exceptions.Exit:
        raise
    except Exception as error:
        # The top of a worker: said once, as one line of its log, and the process ends.
        sentence = last_words(error)
        parts.telemetry.event("worker_failed", "error", error=sentence, exit_code=EXIT_FATAL)
        raise click.exceptions.Exit(EXIT_FATAL) from error


def stop_by_signal(parts: Parts, request_stop: Callable[[], None]) -> None:
    """Let SIGTERM and SIGINT ask the worker to stop; a second one drops what is in flight."""

    def stop(number: int, _frame: FrameType | None) -> None:
        parts.telemetry.event("signal_received", reason=signal.Signals(number).name)
        request_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


@contextmanager
def stop_by_secret(
    parts: Parts, files: SecretFiles, request_stop: Callable[[], None]
) -> Iterator[None]:
    """Let a changed file of secrets ask the worker to stop, as long as the block runs."""
    watch = SecretWatch(files, request_stop, parts.telemetry)
    try:
        yield
    finally:
        watch.close()


def register(parts: Parts) -> None:
    """Register the sink's name with its table, where the lock store answers."""
    try:
        leases = make_leases(parts.settings)
        register_sink(leases, sink=parts.settings.name, table_uri=parts.table_uri)
    except RetriableError as error:
        # Locks are a courtesy: the log alone keeps the table right.
        parts.telemetry.event("waiting", "warning", reason=f"working without locks: {error}")
