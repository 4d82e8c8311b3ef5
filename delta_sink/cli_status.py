"""`delta-sink status`: how a sink stands, for a person in a terminal or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from delta_sink.adapters.logs import size
from delta_sink.cli_options import EXIT_WRONG, configured, print_json
from delta_sink.control_message import iso_time
from delta_sink.overview import Overview, overlook
from delta_sink.presence import Sighting
from delta_sink.wiring import (
    Parts,
    load_settings,
    make_control_client,
    make_leases,
    make_parts,
    make_source,
)

WATCH_MS = 2_000
DEBTS_SHOWN = 10


@click.command("status")
@configured
@click.option("--watch", is_flag=True, help="Look again every two seconds, until Ctrl-C.")
def status(config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, watch: bool) -> None:
    """Show workers, lag, files, leases and the last commands of one sink."""
    parts = make_parts(load_settings(config, sets), quiet=True)
    found = _look(parts, {})
    try:
        while True:
            if watch and not as_json:
                click.clear()
            _say(found, parts, as_json=as_json)
            if not watch:
                break
            parts.log.clock.sleep_ms(WATCH_MS)
            found = _look(parts, found.sightings)
    except KeyboardInterrupt:
        return
    if found.problems:
        raise click.exceptions.Exit(EXIT_WRONG)


def _look(parts: Parts, before: Mapping[str, Sighting]) -> Overview:
    settings = parts.settings
    client = None if settings.control is None else (lambda: make_control_client(parts))
    return overlook(
        make_source(parts), parts.table_uri, lambda: make_leases(settings), client, before
    )


def _say(found: Overview, parts: Parts, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    for line in _lines(found, now_ms=parts.log.clock.wall_ms()):
        click.echo(line)


def _lines(found: Overview, *, now_ms: int) -> Iterator[str]:
    if found.table_version is None:
        yield f"table {found.table_uri}: there is none, or it cannot be read"
    else:
        files = sum(debt.files for debt in found.debts)
        small = sum(debt.small_files for debt in found.debts)
        total = size(sum(debt.size_bytes for debt in found.debts))
        yield (
            f"table {found.table_uri}: version {found.table_version}, {files:,} files, {total}, "
            f"{small:,} small"
        )
    yield from _debt_lines(found)
    for each in found.progress:
        lag = "lag unknown" if each.lag_records is None else f"{each.lag_records:,} behind"
        at = "nothing committed" if each.offset_committed is None else f"{each.offset_committed:,}"
        yield f"  {each.tp}: {at}, {lag}"
    for sighting in found.sightings.values():
        yield _worker_line(sighting, now_ms)
    for role, state in found.paused.items():
        if state.is_paused:
            yield f"paused: {role}, since {iso_time(state.at_ms)} by {state.issuer or 'somebody'}"
    for lease in found.leases:
        yield f"lease {lease.key.rpartition('/')[2]}: held by {lease.owner}, token {lease.token}"
    for exchange in found.commands:
        last = exchange.last
        name = exchange.command.command if exchange.command else last.command if last else "?"
        became = "no outcome yet" if last is None else f"{last.state} {last.message}".strip()
        yield f"command {name} {exchange.id}: {became}"
    for problem in found.problems:
        yield f"NOT OK {problem}"


def _debt_lines(found: Overview) -> Iterator[str]:
    parted = [debt for debt in found.debts if debt.values]
    for debt in parted[:DEBTS_SHOWN]:
        values = ", ".join(f"{name}={value}" for name, value in debt.values.items())
        yield (
            f"  {values}: {debt.files:,} files, {size(debt.size_bytes)}, {debt.small_files:,} "
            f"small with {size(debt.small_bytes)}"
        )
    if len(parted) > DEBTS_SHOWN:
        yield f"  and {len(parted) - DEBTS_SHOWN:,} table partitions more"


def _worker_line(sighting: Sighting, now_ms: int) -> str:
    presence = sighting.presence
    life = "seen" if sighting.life == "unknown" else f"{sighting.life}, seen"
    ago_s = max(0, now_ms - sighting.said_at_ms) // 1000
    oldest_ms = presence.oldest_uncommitted_ms
    held = "" if oldest_ms is None else f", oldest record {(now_ms - oldest_ms) / 1000:.1f} s old"
    return f"{presence.role} {presence.worker} on {presence.host}: {life} {ago_s} s ago{held}"
