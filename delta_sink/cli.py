"""The commands: `delta-sink COMMAND --config FILE`. Exit 0 done, 1 wrong, 2 usage, 3 fatal."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from pathlib import Path

import click

from delta_sink import __version__
from delta_sink.adapters.allocator import give_memory_back
from delta_sink.adapters.process import prepare_process
from delta_sink.adapters.secret_files import SecretFiles
from delta_sink.claim import open_table
from delta_sink.cli_control import control
from delta_sink.cli_maintenance import run_compactor, run_vacuum
from delta_sink.cli_options import (
    EXIT_DONE,
    EXIT_FATAL,
    EXIT_USAGE,
    EXIT_WRONG,
    configured,
    operator,
    print_json,
)
from delta_sink.cli_status import status
from delta_sink.cli_worker import last_words, register, stop_by_secret, stop_by_signal, supervised
from delta_sink.connect import Finding, connect_all
from delta_sink.decode.native import NOT_COMPILED, is_compiled
from delta_sink.delta.commit import open_log
from delta_sink.delta.probe import probe_conditional_put
from delta_sink.delta.support import refuse_unsupported
from delta_sink.delta.table import Author, adopt_table
from delta_sink.errors import ConfigError, DeltaSinkError
from delta_sink.forms import Wrong
from delta_sink.lease import move_sink, register_sink
from delta_sink.rules import cost_of
from delta_sink.seek import SeekRequest, Target, ToOffset, execute_seek, show_seek
from delta_sink.server import Station
from delta_sink.settings import Settings
from delta_sink.start import StartEarliest, StartForm, StartLatest, StartTimestamp
from delta_sink.view import view_of
from delta_sink.wiring import (
    Parts,
    create_locks,
    create_topics,
    load_settings,
    make_audit,
    make_leases,
    make_parts,
    make_source,
    make_writer,
    probe_store,
)

INITIAL = ("table", "topics", "locks")
"""What `init` creates."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="delta-sink")
def cli() -> None:
    """Kafka topics into Delta Lake tables: exactly once, within a second."""


cli.add_command(control)
cli.add_command(status)


@cli.group()
def run() -> None:
    """Run a worker until it is asked to stop."""


@run.command("writer")
@configured
@click.option("--until-end", is_flag=True, help="Stop at the end offsets seen at the start.")
def run_writer(
    config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, until_end: bool
) -> None:
    """Write the topics of one sink into its table."""
    # A bounded run ends by itself; what it leaves with says that the end was reached.
    files = SecretFiles()
    settings = load_settings(config, sets, files)
    give_memory_back()
    parts = make_parts(settings)
    parts.telemetry.capture_libraries()
    with supervised(parts):
        _write(parts, SecretFiles() if until_end else files, until_end=until_end)
    if as_json:
        print_json({"ok": True})


def _write(parts: Parts, files: SecretFiles, *, until_end: bool) -> None:
    """Run a writer until it has stopped."""
    prepare_process()
    with Station(parts, "writer") as station:
        register(parts)
        probe_store(parts)
        writer, jobs = make_writer(parts, until_end=until_end)
        station.attach(lambda: writer.status)
        stop_by_signal(parts, writer.request_stop)
        with stop_by_secret(parts, files, writer.request_stop):
            writer.run()
        jobs.close(0)


run.add_command(run_compactor)
run.add_command(run_vacuum)


@cli.command("check-config")
@configured
@click.option("--connect", is_flag=True, help="Also reach broker, topics, store, table and locks.")
def check_config(
    config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, connect: bool
) -> None:
    """Say "ok", or list every problem of the configuration at once."""
    try:
        settings = load_settings(config, sets)
    except ConfigError as error:
        if as_json:
            print_json({"ok": False, "problems": list(error.problems), "warnings": []})
            raise click.exceptions.Exit(EXIT_USAGE) from error
        raise
    warnings = settings.warnings()
    findings = _connect(settings) if connect else []
    ok = all(finding.ok for finding in findings)
    commits, puts = cost_of(settings)
    if as_json:
        print_json(
            {
                "ok": ok,
                "problems": [],
                "warnings": warnings,
                "cost": {"commits_per_day": commits, "puts_per_day_min": puts},
                "json_decoder": "compiled" if is_compiled() else "pyarrow",
                "connect": [dataclasses.asdict(finding) for finding in findings],
            }
        )
    else:
        for warning in warnings:
            click.echo(f"warning: {warning}")
        click.echo(
            f"cost: a writer that is never idle commits {commits:,} times a day by "
            f"flush.interval_ms, with {puts:,} PUTs or more: one for the log's entry, one for each "
            f"table partition in the batch",
            err=True,  # stdout is the verdict
        )
        if not is_compiled():
            click.echo(f"json: {NOT_COMPILED}", err=True)
        for finding in findings:
            click.echo(f"{'ok' if finding.ok else 'NOT OK':7}{finding.what}: {finding.sentence}")
        if ok:
            click.echo("ok")
    if not ok:
        raise click.exceptions.Exit(EXIT_WRONG)


def _connect(settings: Settings) -> list[Finding]:
    parts = make_parts(settings, quiet=True)
    return connect_all(make_source(parts), lambda: make_leases(settings))


@cli.command()
@configured
@click.option("--move", is_flag=True, help="Register the sink's name for a table that was moved.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(INITIAL),
    help="Create this and not the rest; may be given several times.",
)
def init(
    config: tuple[str, ...],
    sets: tuple[str, ...],
    as_json: bool,
    move: bool,
    only: tuple[str, ...],
) -> None:
    """Create the table, the lock table and the topics we write; what exists stays as it is."""
    settings = load_settings(config, sets)
    parts = make_parts(settings)
    wanted = only or INITIAL
    if "locks" in wanted:
        create_locks(settings)
    if move:
        leases = make_leases(settings)
        move_sink(leases, sink=settings.name, table_uri=parts.table_uri)
    elif "locks" in wanted or "table" in wanted:
        leases = make_leases(settings)
        register_sink(leases, sink=settings.name, table_uri=parts.table_uri)
    version = _init_table(parts) if "table" in wanted else None
    topics = create_topics(settings, parts.telemetry) if "topics" in wanted else []
    if as_json:
        print_json({"ok": True, "table_version": version, "topics_created": topics})
        return
    if version is not None:
        click.echo(f"table {settings.table.uri} is ready at version {version}")
    if "locks" in wanted:
        click.echo("the lock store is ready")
    for topic in topics:
        click.echo(f"topic {topic} was created")


def _init_table(parts: Parts) -> int:
    """Return the version at which the table is there as it is configured."""
    settings, source = parts.settings, make_source(parts)
    probe_conditional_put(parts.log.store)
    author = Author(settings.name, "init")
    state = open_log(parts.log)
    if state is not None:
        # Before anything is written into a table that turns out to be another one than is meant.
        refuse_unsupported(state.protocol, state.metadata)
        view_of(settings, state)
        state = adopt_table(parts.log, state, author)
    state = open_table(source, author)
    view_of(settings, state)
    return state.version


@cli.command()
@configured
@click.option("--deep", is_flag=True, help="Also read every row's offset, and Kafka's.")
def audit(config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, deep: bool) -> None:
    """Prove from the table that every record is in it exactly once, or name what is not."""
    settings = load_settings(config, sets)
    found = make_audit(make_parts(settings, quiet=True), deep=deep)
    if as_json:
        print_json(found.to_json())
    else:
        for sentence in found.sentences():
            click.echo(sentence)
    if not found.ok:
        raise click.exceptions.Exit(EXIT_WRONG)


@cli.command()
@configured
@click.option("--topic", help="Only this topic; without it all topics of the sink.")
@click.option(
    "--partition",
    "partitions",
    multiple=True,
    type=click.IntRange(0),
    metavar="NUMBER",
    help="Only this partition; may be given several times.",
)
@click.option("--to-offset", type=click.IntRange(0), help="Go on at this offset.")
@click.option("--to-time", metavar="ISO", help="Go on at the first record of this time or later.")
@click.option("--to-earliest", is_flag=True, help="Go on at the first record that Kafka has.")
@click.option("--to-latest", is_flag=True, help="Go on at the end.")
@click.option("--adopt-topic", is_flag=True, help="Go on with a topic that was created again.")
@click.option("--adopt-sink", metavar="NAME", help="Go on where another sink of the table is.")
@click.option("--reason", required=True, help="Why; it stands in the table's history.")
@click.option("--execute", is_flag=True, help="Do it; without this it is only shown.")
def seek(
    config: tuple[str, ...],
    sets: tuple[str, ...],
    as_json: bool,
    topic: str | None,
    partitions: tuple[int, ...],
    to_offset: int | None,
    to_time: str | None,
    to_earliest: bool,
    to_latest: bool,
    adopt_topic: bool,
    adopt_sink: str | None,
    reason: str,
    execute: bool,
) -> None:
    """Move offsets by hand, as a commit: what is read twice or never is shown first."""
    targets: list[Target] = [
        *([] if to_offset is None else [ToOffset(to_offset)]),
        *([] if to_time is None else [_time_target(to_time)]),
        *([StartEarliest()] if to_earliest else []),
        *([StartLatest()] if to_latest else []),
    ]
    if len(targets) > 1 or not (targets or adopt_topic or adopt_sink):
        raise click.UsageError(
            "say once where to go: --to-offset, --to-time, --to-earliest, --to-latest, "
            "--adopt-topic or --adopt-sink"
        )
    target = targets[0] if targets else None
    request = SeekRequest(operator(), reason, target, topic, partitions, adopt_topic, adopt_sink)
    source = make_source(make_parts(load_settings(config, sets), quiet=True))
    sought = execute_seek(source, request) if execute else None
    seeking = sought.seeking if sought is not None else show_seek(source, request)
    version = sought.version if sought is not None else None
    if as_json:
        print_json({"executed": execute, "version": version, **seeking.to_json()})
        return
    for sentence in seeking.sentences():
        click.echo(sentence)
    if version is not None:
        click.echo(f"done: version {version} of the table")
    elif not execute:
        click.echo("nothing was changed; --execute does it")


def _time_target(text: str) -> StartTimestamp:
    try:
        start = StartForm().read({"timestamp": text})
    except Wrong as wrong:
        raise click.BadParameter(str(wrong), param_hint="--to-time") from wrong
    assert isinstance(start, StartTimestamp), start
    return start


@cli.command()
@click.option("--records", default=300_000, show_default=True, help="How many records to produce.")
@click.option("--keep", metavar="DIR", help="Where to put the table; kept. Must not exist yet.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end.")
def demo(records: int, keep: str | None, as_json: bool) -> None:
    """Run the whole job here: writers, one of them killed, compaction, vacuum, the audit."""
    from delta_sink.demo import default_folder, run_demo  # its imports are the demo's alone

    folder = Path(keep).absolute() if keep else default_folder()
    if not run_demo(records=records, folder=folder, as_json=as_json):
        raise click.exceptions.Exit(EXIT_WRONG)


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
