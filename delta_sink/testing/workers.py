"""The production workers, put together on fakes: what `cli.py` does on real parts."""

from __future__ import annotations

from delta_sink.append import DeadLetterTarget
from delta_sink.claim import Source
from delta_sink.delta.commit import Log
from delta_sink.delta.logstore import ConditionalPutLog
from delta_sink.memory import MemoryBudget
from delta_sink.settings import Settings
from delta_sink.testing.fake_kafka import FakeKafka
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
