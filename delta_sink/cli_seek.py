"""`delta-sink seek`: offsets moved by hand."""

from __future__ import annotations

import click

from delta_sink.cli_options import configured, operator, print_json
from delta_sink.forms import Wrong
from delta_sink.seek import SeekRequest, Target, ToOffset, execute_seek, show_seek
from delta_sink.start import StartEarliest, StartForm, StartLatest, StartTimestamp
from delta_sink.wiring import load_settings, make_parts, make_source


@click.command()
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
