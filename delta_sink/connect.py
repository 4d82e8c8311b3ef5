"""Whether a sink can reach what its configuration names: `check-config --connect` and `init`."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from delta_sink.claim import Source
from delta_sink.delta.commit import open_log
from delta_sink.delta.probe import probe_conditional_put
from delta_sink.delta.support import LOG_STORE_PROPERTY, refuse_log_store, refuse_unsupported
from delta_sink.errors import DeltaSinkError, SourceRefused
from delta_sink.ports import LeaseStore
from delta_sink.view import view_of


class Finding(Struct, frozen=True):
    """One thing that was tried, and what came of it in one sentence."""

    what: str
    ok: bool
    sentence: str


def connect_all(source: Source, leases: Callable[[], LeaseStore]) -> list[Finding]:
    """Return a finding for broker, topics, store, table and locks, in this order.

    Nothing is raised for what does not answer: the finding says so, and the rest is tried too.
    """
    brokers = _tried("brokers", lambda: _brokers(source))
    nobody = Finding("topics", ok=False, sentence="not looked for: the brokers did not answer")
    return [
        brokers,
        _tried("topics", lambda: _topics(source)) if brokers.ok else nobody,
        _tried("store", lambda: _store(source)),
        _tried("table", lambda: _table(source)),
        _tried("locks", lambda: _locks(source, leases)),
    ]


def _tried(what: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(what, ok=True, sentence=attempt())
    except DeltaSinkError as error:
        return Finding(what, ok=False, sentence=str(error))


def _brokers(source: Source) -> str:
    source.topics()  # whether they exist is the next finding
    return f"reached at {source.settings.kafka['bootstrap.servers']}"


def _topics(source: Source) -> str:
    settings = source.settings
    topics = source.topics()
    wanted = set(settings.source.topics or ())
    letters = settings.errors.dead_letter_topic
    if letters is not None:
        wanted.add(letters)
    found = {topic.name for topic in source.broker.topics(sorted(wanted), None)}
    missing = sorted(wanted - found)
    if missing:
        raise SourceRefused(f"topic '{missing[0]}' does not exist; a writer would wait for it")
    if not topics:
        raise SourceRefused("no topic matches source.topics_regex; a writer would wait for one")
    source.app_ids(topics.values())
    counts = ", ".join(f"{t.name} ({t.partitions} partitions)" for t in topics.values())
    return f"found {counts}"


def _store(source: Source) -> str:
    probe_conditional_put(source.log.store)
    return f"reached {source.settings.table.uri}; it refuses to overwrite a log entry"


def _table(source: Source) -> str:
    state = open_log(source.log)
    if state is None:
        if source.table is None:
            raise SourceRefused("there is no table yet and no table.schema to create it from")
        return "there is none yet; a writer or `delta-sink init` creates it"
    refuse_unsupported(state.protocol, state.metadata)
    view_of(source.settings, state)
    if LOG_STORE_PROPERTY not in state.metadata.configuration:
        return "it is as configured; run `delta-sink init` once before the first writer"
    refuse_log_store(state.metadata, source.log.entries.kind)
    return f"it is as configured, at version {state.version}"


def _locks(source: Source, leases: Callable[[], LeaseStore]) -> str:
    leases().get(f"sink/{source.settings.name}")
    return f"reached the {source.settings.locks.store} store"
