"""`delta-sink run compactor` and `run vacuum`: the maintenance workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from delta_sink.adapters.secret_files import SecretFiles
from delta_sink.adapters.system import ThreadJobs
from delta_sink.auditing import audit_again
from delta_sink.cli_options import EXIT_WRONG, configured, print_json
from delta_sink.cli_worker import (
    JOB_THREADS,
    begin,
    register,
    stop_by_secret,
    stop_by_signal,
    supervised,
)
from delta_sink.control import Arguments, Checkpoint, CleanupLog, Command, Compact, Vacuum
from delta_sink.errand import Ended, Upkeep
from delta_sink.errors import ConfigError
from delta_sink.lease import Lessee
from delta_sink.maintenance import Maintainer, MaintenanceRole
from delta_sink.memory import MIB
from delta_sink.ports import Consumer
from delta_sink.scheduler import schedule
from delta_sink.server import Station
from delta_sink.wiring import (
    Parts,
    make_attendance,
    make_control_client,
    make_dead_letters,
    make_leases,
    memory_bytes_max,
)

if TYPE_CHECKING:
    # librdkafka is loaded where it is needed: a maintenance worker that runs `--once` needs none.
    from delta_sink.adapters.kafka import KafkaConsumer

CONTROL_QUEUE_BYTES = MIB

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
    parts, files = begin(config, sets)
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
    if once:
        return _once(parts, role, once)
    with Station(parts, role) as station:
        register(parts)
        maintainer, jobs = _make_maintainer(parts, role, once=False, watch=station.watch)
        stop_by_signal(parts, maintainer.request_stop)
        with stop_by_secret(parts, files, maintainer.request_stop):
            maintainer.run()
        jobs.close(0)
    return []


def _once(parts: Parts, role: MaintenanceRole, once: tuple[Arguments, ...]) -> list[Ended]:
    """Carry out `once`; nobody probes a worker that ends by itself, so that nothing is served."""
    register(parts)
    maintainer, jobs = _make_maintainer(parts, role, once=True, watch=lambda consumer, _: consumer)
    stop_by_signal(parts, maintainer.request_stop)
    unique_id = parts.log.entropy.unique_id
    commands = [Command(f"once.{unique_id()}", parts.table_uri, args) for args in once]
    ended = maintainer.run_once(commands)
    jobs.close(0)
    return ended


def _make_maintainer(
    parts: Parts,
    role: MaintenanceRole,
    *,
    once: bool,
    watch: Callable[[Consumer, str], Consumer],
) -> tuple[Maintainer, ThreadJobs]:
    """Return a maintenance worker, ready to run, and the threads of its jobs.

    With `once` it needs no Kafka: `run_once` carries out what it is given. `watch` gets the
    consumer and the worker's id, and returns the consumer to use.

    Raises:
        ConfigError: it is to follow the control topic, and the group `control` is missing.
    """
    settings, log = parts.settings, parts.log
    if settings.control is None and not once:
        raise ConfigError(
            [f"control: a {role} follows these topics; without this group only `--once` works"]
        )
    leases = make_leases(settings)
    worker = log.entropy.unique_id()[:12]
    upkeep = Upkeep(
        settings=settings,
        log=log,
        lessee=Lessee(leases, log.clock, log.entropy, worker, settings.locks.lease_ms),
        table_uri=parts.table_uri,
        worker=worker,
        memory_bytes_max=memory_bytes_max(settings),
        cores=os.cpu_count() or 1,
        client=None if once else make_control_client(parts),
    )
    group = settings.compactor_group if role == "compactor" else settings.vacuum_group
    maintainer = Maintainer(
        role,
        upkeep,
        jobs := ThreadJobs(JOB_THREADS),
        consumer=None if once else watch(_control_consumer(parts, group), worker),
        group=group,
        attendance=make_attendance(parts, leases, role, worker),
        dead_letters=None if once else make_dead_letters(parts),
        standing=(schedule, audit_again) if role == "compactor" and not once else (),
    )
    return maintainer, jobs


def _control_consumer(parts: Parts, group: str) -> KafkaConsumer:
    from delta_sink.adapters.kafka import KafkaConsumer
    from delta_sink.adapters.kafka_columns import ConsumerColumns

    control = parts.settings.control
    assert control is not None, "the control client was made before"
    return KafkaConsumer(
        parts.settings.kafka,
        group=group,
        topics=[control.topic],
        pattern=None,
        columns=ConsumerColumns(),
        queue_bytes_max=CONTROL_QUEUE_BYTES,
        telemetry=parts.telemetry,
    )
