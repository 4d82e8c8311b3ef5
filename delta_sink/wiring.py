"""From a configuration to running parts: which adapter stands behind each port."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from delta_sink.adapters.logs import LogTelemetry
from delta_sink.adapters.metered import MeteredStore
from delta_sink.adapters.objectstore import StorageOptions, open_store
from delta_sink.adapters.secret_files import SecretFiles
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.adapters.system import SystemClock, SystemEntropy
from delta_sink.append import DeadLetterTarget
from delta_sink.attendance import Attendance
from delta_sink.claim import Source
from delta_sink.config import Source as ConfigSource
from delta_sink.config import load
from delta_sink.control_client import ControlClient
from delta_sink.control_message import Signer
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.delta.probe import probe_conditional_put
from delta_sink.errors import ConfigError, StoreUnavailable
from delta_sink.memory import MIB
from delta_sink.model import TopicPartition
from delta_sink.ports import LeaseStore
from delta_sink.presence import Presence, WorkerRole
from delta_sink.settings import Settings
from delta_sink.view import table_spec

if TYPE_CHECKING:
    # librdkafka is loaded where it is needed: a maintenance worker that runs `--once` needs none.
    from delta_sink.adapters.kafka_admin import KafkaBroker
    from delta_sink.adapters.kafka_reader import Served

PROBE_TRIES_MAX = 12
CONTROL_PARTITIONS = 16
"""Of the control topic when `init` makes it: so many compactors can share the work."""
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


class Parts(Struct, frozen=True):
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


def make_attendance(parts: Parts, leases: LeaseStore, role: WorkerRole, worker: str) -> Attendance:
    """Return the seat of a worker among those of its sink."""
    log = parts.log
    presence = Presence(worker, role, os.uname().nodename, log.clock.wall_ms(), parts.table_uri)
    return Attendance(
        leases,
        log.clock,
        log.telemetry,
        presence,
        "writer" if role == "writer" else "maintenance",
    )


def make_dead_letters(parts: Parts) -> DeadLetterTarget | None:
    """Return where bad records go, None where they stop the sink."""
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
