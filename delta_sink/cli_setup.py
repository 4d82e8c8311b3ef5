"""`delta-sink check-config` and `init`: what is done before the first worker starts."""

from __future__ import annotations

import click
from msgspec.structs import asdict

from delta_sink.claim import open_table
from delta_sink.cli_options import EXIT_USAGE, EXIT_WRONG, configured, print_json
from delta_sink.connect import Finding, connect_all
from delta_sink.decode.native import NOT_COMPILED, is_compiled
from delta_sink.delta.commit import open_log
from delta_sink.delta.probe import probe_conditional_put
from delta_sink.delta.support import refuse_unsupported
from delta_sink.delta.table import Author, adopt_table
from delta_sink.errors import ConfigError
from delta_sink.lease import move_sink, register_sink
from delta_sink.rules import cost_of
from delta_sink.settings import Settings
from delta_sink.view import view_of
from delta_sink.wiring import (
    Parts,
    create_locks,
    create_topics,
    load_settings,
    make_leases,
    make_parts,
    make_source,
)

INITIAL = ("table", "topics", "locks")
"""What `init` creates."""


@click.command("check-config")
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
                "connect": [asdict(finding) for finding in findings],
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


@click.command()
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
