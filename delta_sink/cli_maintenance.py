"""`delta-sink run compactor` and `run vacuum`: the maintenance workers."""

from __future__ import annotations

import click

from delta_sink.adapters.allocator import give_memory_back
from delta_sink.adapters.process import prepare_process
from delta_sink.adapters.secret_files import SecretFiles
from delta_sink.cli_options import EXIT_WRONG, configured, print_json
from delta_sink.cli_worker import register, stop_by_secret, stop_by_signal, supervised
from delta_sink.control import Arguments, Checkpoint, CleanupLog, Command, Compact, Vacuum
from delta_sink.errand import Ended
from delta_sink.maintenance import MaintenanceRole
from delta_sink.server import Station
from delta_sink.wiring import Parts, load_settings, make_maintainer, make_parts

ONCE = "Do what is to be done now, without the control topic, and end: for cron."


@click.command("compactor")
@configured
@click.option("--once", is_flag=True, help=ONCE)
def run_compactor(
    config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, once: bool
) -> None:
    """Rewrite small files into large ones, and write checkpoints, as the control topic asks."""
    _run("compactor", config, sets, as_json=as_json, once=(Compact(), Checkpoint()) if once else ())


@click.command("vacuum")
@configured
@click.option("--once", is_flag=True, help=ONCE)
def run_vacuum(config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, once: bool) -> None:
    """Delete files and log entries that nothing needs any more, as the control topic asks."""
    todo = (Vacuum(dry_run=False), CleanupLog()) if once else ()
    _run("vacuum", config, sets, as_json=as_json, once=todo)


def _run(
    role: MaintenanceRole,
    config: tuple[str, ...],
    sets: tuple[str, ...],
    *,
    as_json: bool,
    once: tuple[Arguments, ...],
) -> None:
    files = SecretFiles()
    settings = load_settings(config, sets, files)
    give_memory_back()
    parts = make_parts(settings)
    parts.telemetry.capture_libraries()
    with supervised(parts):
        ended = _maintain(parts, role, once, files)
    is_well = all(each.state == "succeeded" for each in ended) and len(ended) == len(once)
    if as_json:
        outcomes = [
            {"state": each.state, "message": each.message, "result": dict(each.result)}
            for each in ended
        ]
        print_json({"ok": is_well, "outcomes": outcomes})
    if not is_well:
        raise click.exceptions.Exit(EXIT_WRONG)


def _maintain(
    parts: Parts, role: MaintenanceRole, once: tuple[Arguments, ...], files: SecretFiles
) -> list[Ended]:
    prepare_process()
    if once:
        return _once(parts, role, once)
    with Station(parts, role) as station:
        register(parts)
        maintainer, jobs = make_maintainer(parts, role, once=False, watch=station.watch)
        stop_by_signal(parts, maintainer.request_stop)
        with stop_by_secret(parts, files, maintainer.request_stop):
            maintainer.run()
        jobs.close(0)
    return []


def _once(parts: Parts, role: MaintenanceRole, once: tuple[Arguments, ...]) -> list[Ended]:
    """Carry out `once`; nobody probes a worker that ends by itself, so that nothing is served."""
    register(parts)
    maintainer, jobs = make_maintainer(parts, role, once=True, watch=lambda consumer, _: consumer)
    stop_by_signal(parts, maintainer.request_stop)
    unique_id = parts.log.entropy.unique_id
    commands = [Command(f"once.{unique_id()}", parts.table_uri, args) for args in once]
    ended = maintainer.run_once(commands)
    jobs.close(0)
    return ended
