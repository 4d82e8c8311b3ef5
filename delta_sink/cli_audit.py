"""`delta-sink audit`: the proof that every record is in the table exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from delta_sink.audit import audit_log
from delta_sink.audit_report import Audit
from delta_sink.audit_rows import audit_rows
from delta_sink.cli_options import EXIT_WRONG, configured, print_json
from delta_sink.model import TopicPartition
from delta_sink.wiring import Parts, load_settings, make_parts

if TYPE_CHECKING:
    from delta_sink.adapters.kafka_reader import Served


@click.command()
@configured
@click.option("--deep", is_flag=True, help="Also read every row's offset, and Kafka's.")
def audit(config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, deep: bool) -> None:
    """Prove from the table that every record is in it exactly once, or name what is not."""
    settings = load_settings(config, sets)
    found = _audited(make_parts(settings, quiet=True), deep=deep)
    if as_json:
        print_json(found.to_json())
    else:
        for sentence in found.sentences():
            click.echo(sentence)
    if not found.ok:
        raise click.exceptions.Exit(EXIT_WRONG)


def _audited(parts: Parts, *, deep: bool) -> Audit:
    """Return what the log proves; with `deep` also what the rows and Kafka say."""
    found = audit_log(parts.log, parts.settings.name)
    if not deep:
        return found
    # deltalake is large, and no worker needs it.
    from delta_sink.adapters.deltareader import DeltaRows
    from delta_sink.adapters.kafka_reader import read_offsets

    settings = parts.settings
    rows = DeltaRows(settings.table.uri, settings.table.storage)

    def served(ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[Served]:
        return read_offsets(settings.kafka, ranges, telemetry=parts.telemetry)

    return audit_rows(found, rows, served)
