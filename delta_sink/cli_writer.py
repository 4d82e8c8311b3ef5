"""`delta-sink run writer`: the worker that turns records into commits."""

from __future__ import annotations

import click
from msgspec.structs import replace

from delta_sink.adapters.kafka import KafkaConsumer
from delta_sink.adapters.kafka_columns import ConsumerColumns
from delta_sink.adapters.secret_files import SecretFiles
from delta_sink.adapters.system import ThreadJobs
from delta_sink.adapters.traced import TracedJobs
from delta_sink.asking import Asking
from delta_sink.cli_options import configured, print_json
from delta_sink.cli_worker import (
    JOB_THREADS,
    begin,
    register,
    stop_by_secret,
    stop_by_signal,
    supervised,
)
from delta_sink.company import Company
from delta_sink.errors import ConfigError
from delta_sink.memory import MemoryBudget
from delta_sink.rules import memory_problems
from delta_sink.server import Station
from delta_sink.wiring import (
    Parts,
    make_attendance,
    make_control_client,
    make_dead_letters,
    make_leases,
    make_source,
    memory_bytes_max,
    probe_store,
)
from delta_sink.writer import Writer


@click.command("writer")
@configured
@click.option("--until-end", is_flag=True, help="Stop at the end offsets seen at the start.")
def run_writer(
    config: tuple[str, ...], sets: tuple[str, ...], as_json: bool, until_end: bool
) -> None:
    """Write the topics of one sink into its table."""
    parts, files = begin(config, sets)
    with supervised(parts):
        # A bounded run ends by itself; what it leaves with says that the end was reached.
        _write(parts, SecretFiles() if until_end else files, until_end=until_end)
    if as_json:
        print_json({"ok": True})


def _write(parts: Parts, files: SecretFiles, *, until_end: bool) -> None:
    """Run a writer until it has stopped."""
    with Station(parts, "writer") as station:
        register(parts)
        probe_store(parts)
        writer, jobs = _make_writer(parts, until_end=until_end)
        station.attach(lambda: writer.status)
        stop_by_signal(parts, writer.request_stop)
        with stop_by_secret(parts, files, writer.request_stop):
            writer.run()
        jobs.close(0)


def _make_writer(parts: Parts, *, until_end: bool) -> tuple[Writer, ThreadJobs]:
    """Return a writer, ready to run, and the threads of its jobs."""
    settings = parts.settings
    memory_bytes = memory_bytes_max(settings)
    problems = list(memory_problems(settings, memory_bytes))
    if problems:
        raise ConfigError(problems)
    budget = MemoryBudget.of(memory_bytes)
    dead_letters = make_dead_letters(parts)
    metadata = settings.table.metadata_columns
    consumer = KafkaConsumer(
        settings.kafka,
        group=settings.consumer_group,
        topics=settings.source.topics or (),
        pattern=settings.source.topics_regex,
        columns=ConsumerColumns(
            timestamps="timestamp" in metadata,
            keys="key" in metadata or dead_letters is not None,
            headers="headers" in metadata or dead_letters is not None,
        ),
        queue_bytes_max=budget.queue_bytes,
        telemetry=parts.telemetry,
    )
    jobs = ThreadJobs(JOB_THREADS)
    asking = None
    if settings.control is not None:
        client = make_control_client(parts)
        asking = Asking(settings, client, parts.table_uri, parts.telemetry)
        parts = replace(parts, log=replace(parts.log, heard=asking.hear))
    log = parts.log
    traced = TracedJobs(jobs, log.clock, log.telemetry, says_so=settings.logs.level == "debug")
    writer = Writer(
        make_source(parts),
        consumer,
        traced,
        budget=budget,
        dead_letters=dead_letters,
        until_end=until_end,
        company=Company(
            make_attendance(parts, make_leases(settings), "writer", log.entropy.unique_id()[:12]),
            asking,
        ),
    )
    return writer, jobs
