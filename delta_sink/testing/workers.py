"""The production workers, put together on fakes: what `cli.py` does on real parts."""

from __future__ import annotations

from delta_sink.append import DeadLetterTarget
from delta_sink.attendance import Attendance
from delta_sink.claim import Source
from delta_sink.control_client import ControlClient
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.errand import Upkeep
from delta_sink.forms import normal_table_uri
from delta_sink.lease import Lessee
from delta_sink.maintenance import Maintainer, MaintenanceRole
from delta_sink.memory import MemoryBudget
from delta_sink.presence import Presence
from delta_sink.scheduler import schedule
from delta_sink.settings import Settings
from delta_sink.testing.fake_kafka import FakeKafka
from delta_sink.testing.fake_leases import FakeLeases
from delta_sink.testing.fake_store import FakeStore
from delta_sink.testing.host import Host
from delta_sink.view import table_spec
from delta_sink.writer import Writer

MEMORY_BYTES_MAX = 512 * 1024 * 1024


def make_log(host: Host, store: FakeStore) -> Log:
    """Return the table's log as `host` reaches it."""
    objects = store.client(host)
    return Log(
        store=objects,
        entries=ConditionalPutLog(objects),
        clock=host.clock,
        entropy=host.entropy,
        telemetry=host.telemetry,
    )


def make_writer(
    host: Host,
    settings: Settings,
    kafka: FakeKafka,
    store: FakeStore,
    *,
    memory: MemoryBudget | None = None,
    until_end: bool = False,
) -> Writer:
    """Return a writer on `host` that `world.spawn(host, writer.run)` starts.

    Addresses and credentials in `settings` are not looked at; everything else counts.
    """
    source = settings.source
    consumer = kafka.consumer(host, settings.name, source.topics or (), pattern=source.topics_regex)
    target = settings.errors.dead_letter_topic
    return Writer(
        Source(settings, make_log(host, store), kafka.broker(host), table_spec(settings)),
        consumer,
        host.jobs,
        budget=memory or MemoryBudget.of(MEMORY_BYTES_MAX),
        dead_letters=None if target is None else DeadLetterTarget(kafka.producer(host), target),
        until_end=until_end,
    )


def make_maintainer(
    host: Host,
    role: MaintenanceRole,
    settings: Settings,
    kafka: FakeKafka,
    store: FakeStore,
    leases: FakeLeases,
    *,
    schedules: bool = True,
    cores: int = 1,
) -> Maintainer:
    """Return a compactor or a vacuum on `host` that `world.spawn(host, maintainer.run)` starts.

    `settings.control` names the topics, which must exist. A compactor that `schedules` also asks
    for maintenance by its policies; it rewrites as many bins side by side as it has `cores`.
    """
    control = settings.control
    assert control is not None, "a maintenance worker follows a control topic"
    log = make_log(host, store)
    locks = leases.client(host)
    worker = host.entropy.unique_id()[:12]
    table_uri = normal_table_uri(settings.table.uri)
    upkeep = Upkeep(
        settings=settings,
        log=log,
        lessee=Lessee(locks, host.clock, host.entropy, worker, settings.locks.lease_ms),
        table_uri=table_uri,
        worker=worker,
        memory_bytes_max=MEMORY_BYTES_MAX,
        cores=cores,
        client=ControlClient(
            broker=kafka.broker(host),
            producer=kafka.producer(host),
            read=kafka.reader(host),
            clock=host.clock,
            topic=control.topic,
            status_topic=control.status_topic,
        ),
    )
    group = settings.compactor_group if role == "compactor" else settings.vacuum_group
    presence = Presence(worker, role, str(host), host.clock.wall_ms(), table_uri)
    return Maintainer(
        role,
        upkeep,
        host.jobs,
        consumer=kafka.consumer(host, group, [control.topic]),
        group=group,
        attendance=Attendance(locks, host.clock, host.telemetry, presence, "maintenance"),
        standing=(schedule,) if role == "compactor" and schedules else (),
    )
