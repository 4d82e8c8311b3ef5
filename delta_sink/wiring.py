"""From a configuration to running parts: which adapter stands behind each port."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from delta_sink.adapters.logs import LogTelemetry
from delta_sink.adapters.metered import MeteredStore
from delta_sink.adapters.objectstore import StorageOptions, open_store
from delta_sink.adapters.secret_files import SecretFiles
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.adapters.system import SystemClock, SystemEntropy, ThreadJobs
from delta_sink.adapters.traced import TracedJobs
from delta_sink.append import DeadLetterTarget
from delta_sink.asking import Asking
from delta_sink.attendance import Attendance
from delta_sink.audit import audit_log
from delta_sink.audit_report import Audit
from delta_sink.audit_rows import audit_rows
from delta_sink.auditing import audit_again
from delta_sink.claim import Source
from delta_sink.company import Company
from delta_sink.config import Source as ConfigSource
from delta_sink.config import load
from delta_sink.control_client import ControlClient
from delta_sink.control_message import Signer
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.delta.probe import probe_conditional_put
from delta_sink.errand import Upkeep
from delta_sink.errors import ConfigError, StoreUnavailable
from delta_sink.lease import Lessee
from delta_sink.maintenance import Maintainer, MaintenanceRole
from delta_sink.memory import MIB, MemoryBudget
from delta_sink.model import TopicPartition
from delta_sink.ports import Consumer, LeaseStore
from delta_sink.presence import Presence, WorkerRole
from delta_sink.rules import memory_problems
from delta_sink.scheduler import schedule
from delta_sink.settings import Settings
from delta_sink.view import table_spec
from delta_sink.writer import Writer

if TYPE_CHECKING:
    # librdkafka is loaded where it is needed: a maintenance worker that runs `--once` needs none.
    from delta_sink.adapters.kafka import KafkaConsumer
    from delta_sink.adapters.kafka_admin import KafkaBroker
    from delta_sink.adapters.kafka_reader import Served

JOB_THREADS = 8
PROBE_TRIES_MAX = 12
CONTROL_PARTITIONS = 16
"""Of the control topic when `init` makes it: so many compactors can share the work."""
CONTROL_QUEUE_BYTES = MIB
MEMORY_DEFAULT_BYTES = 512 * MIB
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def load_settings(
    paths: Sequence[str], sets: Sequence[str], files: SecretFiles | None = None
) -> Settings:
    """Return the configuration in `paths`, laid over each other, with `sets` over all.

    `files` gets to know the files that it refers to.

    Raises:
        ConfigError: every problem at once.
    """
    sources = []
    problems = []
    for path in paths:
        try:
            sources.append(ConfigSource(path, Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            problems.append(f"{path}: cannot be read: {reason}")
    if problems:
        raise ConfigError(problems)
    files = SecretFiles() if files is None else files
    settings = load(sources, sets, env=os.environ, read_file=files.read)
    for key, path in settings.kafka.items():
        if key.endswith(".location"):  # certificates, keys and their stores: librdkafka reads them
            files.note(path)
    return settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What every command is made of."""

    settings: Settings
    telemetry: LogTelemetry
    log: Log

    @property
    def table_uri(self) -> str:
        """The table's URI as locks and messages name it: a local path is absolute."""
        uri = self.settings.table.uri
        return uri if "://" in uri else str(Path(uri).absolute())


def make_parts(settings: Settings, *, quiet: bool = False) -> Parts:
    """Return the parts for `settings`; `quiet` logs only what a person must act on."""
    clock = SystemClock()
    telemetry = LogTelemetry(
        sys.stderr,
        format=settings.logs.format,
        level="error" if quiet else settings.logs.level,
        sink=settings.name,
        clock=clock,
        secrets=_secrets(settings),
        is_colored=sys.stderr.isatty() and settings.logs.format == "human",
    )
    storage = settings.table.storage
    options = StorageOptions(
        endpoint_url=storage.endpoint_url,
        region=storage.region,
        access_key_id=storage.access_key_id,
        secret_access_key=_revealed(storage.secret_access_key),
        session_token=_revealed(storage.session_token),
        path_style=storage.path_style,
        allow_http=storage.allow_http,
        fsync=storage.fsync,
        request_timeout_ms=storage.request_timeout_ms,
    )
    store = MeteredStore(open_store(settings.table.uri, options, os.environ), telemetry, clock)
    log = Log(
        store=store,
        entries=ConditionalPutLog(store),
        clock=clock,
        entropy=SystemEntropy(),
        telemetry=telemetry,
        readback=storage.readback,
    )
    return Parts(settings, telemetry, log)


def _revealed(secret: object) -> str | None:
    reveal = getattr(secret, "get_secret_value", None)
    return None if reveal is None else str(reveal())


def _secrets(settings: Settings) -> list[str]:
    """Return every text that may stand in no log line."""
    storage = settings.table.storage
    found = [_revealed(storage.secret_access_key), _revealed(storage.session_token)]
    found += settings.kafka.secrets()
    if settings.control is not None:
        found += [_revealed(key) for key in settings.control.signing_keys.values()]
    return [secret for secret in found if secret]


def make_broker(parts: Parts) -> KafkaBroker:
    """Return the questions to the brokers."""
    from delta_sink.adapters.kafka_admin import KafkaBroker

    with_ids = parts.settings.source.topic_ids == "required"
    return KafkaBroker(parts.settings.kafka, with_ids, telemetry=parts.telemetry)


def make_source(parts: Parts) -> Source:
    """Return what the start of partitions is settled with."""
    return Source(parts.settings, parts.log, make_broker(parts), table_spec(parts.settings))


def make_leases(settings: Settings) -> LeaseStore:
    """Return the lock store. Raises FatalError where its library is not installed."""
    locks = settings.locks
    if locks.store == "sqlite":
        return SqliteLeases(locks.path)
    from delta_sink.adapters.dynamodb import DynamoLeases  # boto3 is an extra

    return DynamoLeases.connect(
        table_name=locks.table_name or "",
        region=locks.region,
        endpoint_url=locks.endpoint_url,
    )


def create_locks(settings: Settings) -> None:
    """Return once the lock table exists."""
    leases = make_leases(settings)
    if settings.locks.store == "dynamodb":
        leases.create_table()  # type: ignore[attr-defined]  # only this store has one


def create_topics(settings: Settings, telemetry: LogTelemetry) -> list[str]:
    """Return the topics that were created: those of dead letters and control, where missing."""
    from delta_sink.adapters.kafka_creation import ensure_topics

    wanted: dict[str, int] = {}
    if settings.errors.dead_letter_topic is not None:
        wanted[settings.errors.dead_letter_topic] = 1
    if settings.control is not None:
        wanted[settings.control.topic] = CONTROL_PARTITIONS
        wanted[settings.control.status_topic] = 1
    return ensure_topics(settings.kafka, wanted, telemetry=telemetry) if wanted else []


def make_control_client(parts: Parts) -> ControlClient:
    """Return what commands are sent and followed with; signed by the first key, if there is one.

    Raises:
        ConfigError: the configuration has no group `control`.
    """
    from delta_sink.adapters.kafka_admin import KafkaProducer
    from delta_sink.adapters.kafka_reader import read_offsets

    settings = parts.settings
    control = settings.control
    if control is None:
        raise ConfigError(["control: commands need this group, with the names of their topics"])
    signers = [
        Signer(name, key.get_secret_value().encode()) for name, key in control.signing_keys.items()
    ]

    def read(ranges: Mapping[TopicPartition, tuple[int, int]]) -> Iterator[Served]:
        return read_offsets(settings.kafka, ranges, with_values=True, telemetry=parts.telemetry)

    return ControlClient(
        broker=make_broker(parts),
        producer=KafkaProducer(settings.kafka, telemetry=parts.telemetry),
        read=read,
        clock=parts.log.clock,
        topic=control.topic,
        status_topic=control.status_topic,
        signer=signers[0] if signers else None,
    )


def probe_store(parts: Parts) -> None:
    """Return once the store has proved that it refuses to overwrite an object.

    Raises:
        StoreRefused: it does not: no commit on it would be safe.
        StoreUnavailable: it does not answer.
    """
    for attempt in range(PROBE_TRIES_MAX):
        try:
            probe_conditional_put(parts.log.store)
            return
        except StoreUnavailable as error:
            if attempt == PROBE_TRIES_MAX - 1:
                raise
            if attempt == 0:
                parts.telemetry.event("waiting", "warning", reason=str(error))
            parts.log.clock.sleep_ms(min(10_000, 250 << attempt))


def make_audit(parts: Parts, *, deep: bool) -> Audit:
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


def make_writer(parts: Parts, *, until_end: bool) -> tuple[Writer, ThreadJobs]:
    """Return a writer, ready to run, and the threads of its jobs."""
    from delta_sink.adapters.kafka import KafkaConsumer
    from delta_sink.adapters.kafka_columns import ConsumerColumns

    settings = parts.settings
    memory_bytes = memory_bytes_max(settings)
    problems = list(memory_problems(settings, memory_bytes))
    if problems:
        raise ConfigError(problems)
    budget = MemoryBudget.of(memory_bytes)
    dead_letters = _dead_letters(parts)
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
            _attendance(parts, make_leases(settings), "writer", log.entropy.unique_id()[:12]),
            asking,
        ),
    )
    return writer, jobs


def _attendance(parts: Parts, leases: LeaseStore, role: WorkerRole, worker: str) -> Attendance:
    log = parts.log
    presence = Presence(worker, role, os.uname().nodename, log.clock.wall_ms(), parts.table_uri)
    return Attendance(
        leases,
        log.clock,
        log.telemetry,
        presence,
        "writer" if role == "writer" else "maintenance",
    )


def make_maintainer(
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
        attendance=_attendance(parts, leases, role, worker),
        dead_letters=None if once else _dead_letters(parts),
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


def _dead_letters(parts: Parts) -> DeadLetterTarget | None:
    topic = parts.settings.errors.dead_letter_topic
    if topic is None:
        return None
    from delta_sink.adapters.kafka_admin import KafkaProducer

    return DeadLetterTarget(KafkaProducer(parts.settings.kafka, telemetry=parts.telemetry), topic)


def memory_bytes_max(settings: Settings) -> int:
    """Return what the process may occupy: as configured, or the cgroup's limit, or 512 MiB."""
    configured = settings.memory.bytes_max
    if configured != "auto":
        return configured
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # "max", or a number near 2^63, says that there is no limit.
        if text.isdigit() and int(text) < 1 << 50:
            return int(text)
    return MEMORY_DEFAULT_BYTES
