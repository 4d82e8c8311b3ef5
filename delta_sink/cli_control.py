"""The commands of the control topic: `delta-sink control compact|vacuum|…`, `control log`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import click
from msgspec import Struct

from delta_sink.adapters.system import SystemEntropy
from delta_sink.cli_options import EXIT_WRONG, configured, operator, print_json
from delta_sink.control import (
    ROLES,
    Arguments,
    Checkpoint,
    CleanupLog,
    Command,
    Compact,
    Outcome,
    Pause,
    Resume,
    Role,
    Vacuum,
    encode_command,
    read_command,
)
from delta_sink.control_client import (
    ControlClient,
    Exchange,
    follow,
    recent,
    send_command,
    status_ends,
)
from delta_sink.control_message import Refusal, iso_time
from delta_sink.forms import Size, Wrong, normal_table_uri
from delta_sink.wiring import Parts, load_settings, make_control_client, make_parts

WAIT_S: Final = 600
EXPIRES_IN_S: Final = 3_600

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def control() -> None:
    """Send commands to the table's maintenance, and see what became of them."""


class Sending(Struct, frozen=True):
    """What every command that is sent has beside its own arguments."""

    config: tuple[str, ...]
    sets: tuple[str, ...]
    as_json: bool
    wait: bool
    timeout: int
    expires_in: int


def sending(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of every command that is sent, and hand them over as one `Sending`."""

    @configured
    @click.option("--wait", is_flag=True, help="Follow the outcome, and exit by it.")
    @click.option(
        "--timeout",
        type=click.IntRange(1),
        default=WAIT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long --wait waits.",
    )
    @click.option(
        "--expires-in",
        type=click.IntRange(1),
        default=EXPIRES_IN_S,
        show_default=True,
        metavar="SECONDS",
        help="When the command is refused if nobody has begun it.",
    )
    def sent(
        config: tuple[str, ...],
        sets: tuple[str, ...],
        as_json: bool,
        wait: bool,
        timeout: int,
        expires_in: int,
        **arguments: object,
    ) -> None:
        command(Sending(config, sets, as_json, wait, timeout, expires_in), **arguments)

    sent.__doc__ = command.__doc__
    sent.__click_params__ = [  # type: ignore[attr-defined]  # where click keeps options until it makes a command
        *getattr(command, "__click_params__", []),
        *getattr(sent, "__click_params__", []),
    ]
    return sent


@control.command("compact")
@sending
@click.option("--where", metavar="FILTER", help="Only these table partitions: day >= '2026-11-01'.")
@click.option("--target-file-bytes", metavar="SIZE", help="Size of the files made: 128MiB.")
@click.option("--sort-by", multiple=True, metavar="COLUMN", help="Sort rows by it; repeatable.")
@click.option("--zorder-by", multiple=True, metavar="COLUMN", help="Z-order by it; repeatable.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def compact(
    sending: Sending,
    where: str | None,
    target_file_bytes: str | None,
    sort_by: tuple[str, ...],
    zorder_by: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Rewrite small files of the table into large ones."""
    size = None if target_file_bytes is None else _size(target_file_bytes)
    _send(sending, Compact(where, size, sort_by, zorder_by, dry_run))


@control.command("vacuum")
@sending
@click.option("--retention-hours", type=click.IntRange(0), help="Keep what was live since then.")
@click.option("--execute", is_flag=True, help="Delete; without this it is only counted.")
def vacuum(sending: Sending, retention_hours: int | None, execute: bool) -> None:
    """Delete files that no version within the retention needs."""
    _send(sending, Vacuum(not execute, retention_hours))


@control.command("checkpoint")
@sending
def checkpoint(sending: Sending) -> None:
    """Write a checkpoint of the table's newest version."""
    _send(sending, Checkpoint())


@control.command("cleanup-log")
@sending
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def cleanup_log(sending: Sending, dry_run: bool) -> None:
    """Remove log entries that a checkpoint has made superfluous."""
    _send(sending, CleanupLog(dry_run))


_role = click.option(
    "--role", type=click.Choice(ROLES), required=True, help="Whom: the writers, or maintenance."
)


@control.command("pause")
@sending
@_role
def pause(sending: Sending, role: Role) -> None:
    """Let the table's writers, or its maintenance, stand still until they are resumed."""
    _send(sending, Pause(role))


@control.command("resume")
@sending
@_role
def resume(sending: Sending, role: Role) -> None:
    """Let the table's writers, or its maintenance, go on."""
    _send(sending, Resume(role))


@control.command("log")
@configured
@click.option(
    "--last",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="How many commands.",
)
def log(config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, last: int) -> None:
    """List the last commands for this table, and what became of each."""
    parts = make_parts(load_settings(config, sets), quiet=True)
    exchanges = recent(make_control_client(parts), normal_table_uri(parts.table_uri), last=last)
    if as_json:
        print_json({"commands": [exchange.to_json() for exchange in exchanges]})
        return
    for exchange in exchanges:
        click.echo(_line(exchange))
    if not exchanges:
        click.echo("no commands for this table")


# --- sending and following -----------------------------------------------------------------------


def _send(sending: Sending, args: Arguments) -> None:
    """Send a command; with `--wait` leave with 0 only if it succeeded."""
    parts = make_parts(load_settings(sending.config, sending.sets), quiet=True)
    client = make_control_client(parts)
    command = _command(parts, args, expires_in_s=sending.expires_in)
    since = status_ends(client) if sending.wait else {}
    send_command(client, command)
    if not sending.wait:
        if sending.as_json:
            print_json({"ok": True, "id": command.id, "command": command.to_json()})
        else:
            click.echo(f"sent {command.command} {command.id} to {client.topic}")
        return
    if not _followed(client, command, since, sending):
        raise click.exceptions.Exit(EXIT_WRONG)


def _command(parts: Parts, args: Arguments, *, expires_in_s: int) -> Command:
    """Return the command with an id of its own, checked as a worker will check it."""
    now_ms = parts.log.clock.wall_ms()
    table = normal_table_uri(parts.table_uri)
    command = Command(
        id=SystemEntropy().unique_id(),
        table=table,
        args=args,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + expires_in_s * 1000,
        issuer=operator()[:256],
    )
    try:
        read_command(encode_command(command), table)
    except Refusal as refusal:
        sentence = refusal.message.partition(": ")[2]
        raise click.UsageError(sentence) from refusal
    return command


def _followed(
    client: ControlClient, command: Command, since: Mapping[Any, int], sending: Sending
) -> bool:
    """Return whether the command succeeded; say what is heard of it meanwhile."""
    heard: list[Outcome] = []

    def told(outcome: Outcome) -> None:
        heard.append(outcome)
        if not sending.as_json:
            click.echo(_said(outcome))

    if not sending.as_json:
        click.echo(f"sent {command.command} {command.id} to {client.topic}")
    final = follow(client, command.id, since, timeout_ms=sending.timeout * 1000, told=told)
    ok = final is not None and final.state == "succeeded"
    if sending.as_json:
        print_json(_followed_json(command, heard, final))
    elif final is None:
        click.echo(
            f"no outcome within {sending.timeout} s; the command stays valid until "
            f"{iso_time(command.expires_at_ms or 0)}; `delta-sink control log` shows what becomes "
            f"of it"
        )
    return ok


def _followed_json(
    command: Command, heard: Sequence[Outcome], final: Outcome | None
) -> dict[str, object]:
    newest = final or (heard[-1] if heard else None)
    return {
        "ok": final is not None and final.state == "succeeded",
        "id": command.id,
        "command": command.to_json(),
        "state": None if newest is None else newest.state,
        "message": "no outcome in time" if final is None else final.message,
        "result": {} if final is None else dict(final.result),
        "outcomes": [outcome.to_json() for outcome in heard],
    }


def _said(outcome: Outcome) -> str:
    part = outcome.part
    which = "" if part is None else f" (part {part.index + 1} of {part.count})"
    message = f": {outcome.message}" if outcome.message else ""
    figures = ", ".join(f"{name} {value}" for name, value in outcome.result.items())
    return (
        f"{iso_time(outcome.at_ms)} {outcome.state}{which} by {outcome.worker}{message}"
        f"{f' ({figures})' if figures else ''}"
    )


def _line(exchange: Exchange) -> str:
    command, last = exchange.command, exchange.last
    what = command.command if command is not None else (last.command if last is not None else "?")
    issuer = f" by {command.issuer}" if command is not None and command.issuer else ""
    if last is not None:
        became = _said(last)
    else:
        became = f"unreadable: {exchange.refusal}" if exchange.refusal else "no outcome yet"
    at = iso_time(exchange.at_ms) if exchange.at_ms else "at an unknown time"
    return f"{at} {what} {exchange.id}{issuer}: {became}"


def _size(text: str) -> int:
    try:
        found = Size().read(int(text) if text.isdigit() else text)
    except Wrong as wrong:
        raise click.BadParameter(str(wrong), param_hint="--target-file-bytes") from wrong
    assert isinstance(found, int), found
    return found
