"""Every metric, event and trace of delta-sink, each declared once: name, kind, unit, sentence.

Code names them through the constants here (`telemetry.count(CONSUMED_RECORDS, 5, topic=topic)`),
so that a misspelt one is refused by mypy; a name, tag or field that is not declared is refused by
an assertion where it is recorded. `docs/metrics.md` is written from this module:

    python -m delta_sink.telemetry > docs/metrics.md

Tags are bounded: topics, and short lists of words. Nothing is tagged by table partition or by
worker, and no field ever holds a record's key or value.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct

Kind = Literal["counter", "gauge", "histogram"]
Level = Literal["debug", "info", "warning", "error"]

LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
"""From the least to the most pressing."""


class Metric(Struct, frozen=True):
    """One metric. `buckets` are the upper bounds of a histogram, rising, without the infinite."""

    name: str
    kind: Kind
    unit: str
    sentence: str
    tags: tuple[str, ...]
    buckets: tuple[float, ...] = ()


class Event(Struct, frozen=True):
    """One event. `fields` are those that it usually carries, in the order a person reads them."""

    name: str
    level: Level
    sentence: str
    fields: tuple[str, ...]


class TraceKind(Struct, frozen=True):
    """One kind of trace: the steps that it has, and the fields of the whole."""

    name: str
    sentence: str
    steps: str
    fields: tuple[str, ...]


_metrics: dict[str, Metric] = {}
_events: dict[str, Event] = {}

METRICS: Final[Mapping[str, Metric]] = MappingProxyType(_metrics)
EVENTS: Final[Mapping[str, Event]] = MappingProxyType(_events)

# fmt: off
LATENCY_BUCKETS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)
FRESHNESS_BUCKETS_S: Final = (
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
)
# fmt: on

TAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "topic": "the Kafka topic",
        "reason": "a short name of the cause, from a fixed list",
        "partition": "the Kafka partition; only of lag, only by the worker that holds it",
        "stage": "a step of the pipeline: poll, decode, encode, upload, commit",
        "state": "of a worker: starting, standing_by, working, stopping; of a command: accepted, started, progress, succeeded, refused, failed",
        "dependency": "broker, store, locks",
        "version": "a version of delta-sink",
        "size": "small (below the target of compaction), large",
        "lease": "compaction, checkpoint, scheduler, audit; vacuum, cleanup",
        "outcome": "committed, conflict (version taken, next one tried), fenced, unknown (no answer)",
        "verb": "put, put_if_absent, get, get_range, list, delete",
        "command": "compact, vacuum, checkpoint, cleanup-log, pause, resume",
        "direction": "read, written",
        "status": "ok, exists, missing, unavailable, refused",
    }
)


def _metric(
    name: str, kind: Kind, unit: str, sentence: str, *tags: str, buckets: tuple[float, ...] = ()
) -> str:
    assert name.startswith("delta_sink_"), name
    assert name not in _metrics, f"{name} is declared twice"
    assert (kind == "counter") == name.endswith("_total"), name
    assert all(tag in TAGS for tag in tags), (name, tags)
    assert bool(buckets) == (kind == "histogram"), name
    assert list(buckets) == sorted(set(buckets)), f"the buckets of {name} do not rise"
    _metrics[name] = Metric(name, kind, unit, sentence, tags, buckets)
    return name


# A table: name, kind and unit; the sentence; the tags.
# fmt: off
CONSUMED_RECORDS: Final = _metric(
    "delta_sink_consumed_records_total", "counter", "records",
    "Records received from Kafka, those included that were read again after a fence or a restart.",
    "topic",
)
CONSUMED_BYTES: Final = _metric(
    "delta_sink_consumed_bytes_total", "counter", "bytes",
    "Bytes of the keys, values and headers of the records received from Kafka.",
    "topic",
)
COMMITTED_RECORDS: Final = _metric(
    "delta_sink_committed_records_total", "counter", "records",
    "Records whose rows this worker has committed to the table.",
    "topic",
)
SKIPPED_RECORDS: Final = _metric(
    "delta_sink_skipped_records_total", "counter", "records",
    "Records that a commit lists as skipped by policy (tombstones, filtered).",
    "reason",
)
DEAD_LETTERS: Final = _metric(
    "delta_sink_dead_letters_total", "counter", "records",
    "Records sent to the dead-letter topic; those of a dropped plan are sent, and counted, again.",
    "stage", "reason",
)
UNKNOWN_FIELDS: Final = _metric(
    "delta_sink_unknown_fields_total", "counter", "fields",
    "Fields in records that the table has no column for and that were ignored.",
)
OFFSET_GAP_RECORDS: Final = _metric(
    "delta_sink_offset_gap_records_total", "counter", "offsets",
    "Offsets that Kafka no longer had and that were passed over because the operator allows it.",
    "topic",
)
REBALANCES: Final = _metric(
    "delta_sink_rebalances_total", "counter", "rebalances",
    "Changes of this worker's assignment by the consumer group.",
)
ASSIGNED_PARTITIONS: Final = _metric(
    "delta_sink_assigned_partitions", "gauge", "partitions",
    "Kafka partitions that this worker holds now.",
)
LAG_RECORDS: Final = _metric(
    "delta_sink_lag_records", "gauge", "records",
    "Offsets between what is committed (to the table; of a control topic, to the group) and the end.",
    "topic", "partition",
)
LAG_SECONDS: Final = _metric(
    "delta_sink_lag_seconds", "gauge", "seconds",
    "Age of the oldest record that is not in the table yet; 0 where nothing is missing.",
    "topic", "partition",
)
BUFFERED_BYTES: Final = _metric(
    "delta_sink_buffered_bytes", "gauge", "bytes",
    "Bytes of records that this worker holds and has not committed yet.",
)
BUFFER_AGE: Final = _metric(
    "delta_sink_buffer_age_seconds", "gauge", "seconds",
    "How long the oldest record that is not committed yet has been held.",
)
COMMIT_ATTEMPTS: Final = _metric(
    "delta_sink_commit_attempts_total", "counter", "attempts",
    "Log entries that this worker tried to write, by what came of it.",
    "outcome",
)
STAGE_DURATION: Final = _metric(
    "delta_sink_stage_duration_seconds", "histogram", "seconds",
    "How long one step of the pipeline took for one batch.",
    "stage", buckets=LATENCY_BUCKETS_S,
)
FRESHNESS: Final = _metric(
    "delta_sink_freshness_seconds", "histogram", "seconds",
    "Time from the Kafka timestamp of a commit's oldest record to the moment it was visible.",
    "topic", buckets=FRESHNESS_BUCKETS_S,
)
LAST_COMMIT_TIMESTAMP: Final = _metric(
    "delta_sink_last_commit_timestamp_seconds", "gauge", "seconds",
    "When this worker last committed, in seconds since 1970.",
)
TABLE_VERSION: Final = _metric(
    "delta_sink_table_version", "gauge", "version",
    "The newest version of the table, as the holder of the scheduler's lease last saw it.",
)
STORE_REQUESTS: Final = _metric(
    "delta_sink_store_requests_total", "counter", "requests",
    "Requests to the table's object store, by what the store answered.",
    "verb", "status",
)
STORE_REQUEST_DURATION: Final = _metric(
    "delta_sink_store_request_duration_seconds", "histogram", "seconds",
    "How long one request to the table's object store took.",
    "verb", buckets=LATENCY_BUCKETS_S,
)
GROUP_COMMIT_FAILURES: Final = _metric(
    "delta_sink_group_commit_failures_total", "counter", "failures",
    "Kafka group offsets that could not be committed; only lag tools read them.",
)
BUILD_INFO: Final = _metric(
    "delta_sink_build_info", "gauge", "info",
    "Always 1; the label says which version of delta-sink this is.",
    "version",
)
WORKER_STATE: Final = _metric(
    "delta_sink_worker_state", "gauge", "state",
    "1 for the state that the worker is in, 0 for the others.",
    "state",
)
DEPENDENCY_UP: Final = _metric(
    "delta_sink_dependency_up", "gauge", "up",
    "1 while the dependency answers, 0 while it does not; missing before it was asked.",
    "dependency",
)
MEMORY_LIMIT_BYTES: Final = _metric(
    "delta_sink_memory_limit_bytes", "gauge", "bytes",
    "What the process may occupy: memory.bytes_max, or what auto makes of it.",
)
TABLE_FILES: Final = _metric(
    "delta_sink_table_files", "gauge", "files",
    "Data files of the table, as the holder of the scheduler's lease last saw them.",
    "size",
)
TABLE_BYTES: Final = _metric(
    "delta_sink_table_bytes", "gauge", "bytes",
    "Bytes in the table's data files, as the holder of the scheduler's lease last saw them.",
)
COMMITS_SINCE_CHECKPOINT: Final = _metric(
    "delta_sink_commits_since_checkpoint", "gauge", "commits",
    "Log entries above the newest checkpoint, as the holder of the scheduler's lease last saw.",
)
CONTROL_COMMANDS: Final = _metric(
    "delta_sink_control_commands_total", "counter", "outcomes",
    "Outcomes of control commands that this worker has told.",
    "command", "state",
)
CONTROL_REFUSED: Final = _metric(
    "delta_sink_control_refused_total", "counter", "messages",
    "Messages of the control topic that may not be obeyed.",
    "reason",
)
MAINTENANCE_LAST_SUCCESS: Final = _metric(
    "delta_sink_maintenance_last_success_timestamp_seconds", "gauge", "seconds",
    "When this worker last carried out such a command, in seconds since 1970.",
    "command",
)
COMPACTION_BYTES: Final = _metric(
    "delta_sink_compaction_bytes_total", "counter", "bytes",
    "Bytes of data files that compactions have read, and written instead.",
    "direction",
)
VACUUM_DELETED_FILES: Final = _metric(
    "delta_sink_vacuum_deleted_files_total", "counter", "files",
    "Data files that nothing needed and that were deleted.",
)
VACUUM_DELETED_BYTES: Final = _metric(
    "delta_sink_vacuum_deleted_bytes_total", "counter", "bytes",
    "Bytes of data files that nothing needed and that were deleted.",
)
LEASE_HELD: Final = _metric(
    "delta_sink_lease_held", "gauge", "leases",
    "Leases of the kind that this worker holds now.",
    "lease",
)
TRACES_LOST: Final = _metric(
    "delta_sink_traces_lost_total", "counter", "traces",
    "Traces that the OTLP collector did not take, or that came faster than they could be sent.",
)
AUDIT_OK: Final = _metric(
    "delta_sink_audit_ok", "gauge", "ok",
    "1 if the last audit by the holder of the audit's lease found nothing wrong, 0 if it did.",
)
AUDIT_LAST_RUN: Final = _metric(
    "delta_sink_audit_last_run_timestamp_seconds", "gauge", "seconds",
    "When the last audit by the holder of the audit's lease ended, in seconds since 1970.",
)
# fmt: on

FIELDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "address": "where a server of this process listens",
        "attempt": "which try this is, from 1",
        "build": "the version of delta-sink",
        "bytes": "bytes of data files",
        "category": "what kind of message or warning a library logged",
        "column": "a column of the table",
        "commit_id": "the id that the commit carries in the log",
        "consumed": "records received from Kafka",
        "dead_letters": "records that went to the dead-letter topic",
        "dependency": "broker, store or locks",
        "duration_ms": "how long it took, in milliseconds",
        "error": "what went wrong, one sentence",
        "event_id": "the id of a control message",
        "exit_code": "the code that the process exits with",
        "files": "data files",
        "freshness_ms": "from the oldest record's Kafka timestamp to now, in milliseconds",
        "gone": "offsets that Kafka no longer has",
        "group": "the consumer group",
        "command": "compact, vacuum, checkpoint, cleanup-log, pause or resume",
        "id": "a command's id",
        "result": "the figures of an outcome",
        "state": "how far a command has come",
        "job": "decode, encode, put, settle, commit or patrol",
        "lease_token": "the token of the lease that it was done under",
        "logger": "the library's logger that the message came through",
        "offset": "an offset",
        "offset_expected": "the offset that the plan expected in the log",
        "offset_first": "the first offset covered",
        "offset_next": "the next offset to read",
        "partition": "a Kafka partition",
        "partitions": "Kafka partitions: how many, or which",
        "reason": "why, in a word or a sentence",
        "records": "records, whatever became of them",
        "role": "writer, compactor or vacuum",
        "rows": "rows of the table",
        "seed": "the seed of a simulation",
        "skipped": "records skipped by policy",
        "store": "where something is kept: the object store, the lock store",
        "table": "the table's URI",
        "table_partitions": "table partitions: how many",
        "topic": "a Kafka topic",
        "topics": "Kafka topics",
        "version": "a version of the table",
        "version_known": "the version that was known before",
        "worker": "the worker's id, new with each start",
    }
)


def _event(name: str, level: Level, sentence: str, *fields: str) -> str:
    assert name not in _events, f"{name} is declared twice"
    assert all(field in FIELDS for field in fields), (name, fields)
    _events[name] = Event(name, level, sentence, fields)
    return name


# fmt: off
WORKER_STARTED: Final = _event(
    "worker_started", "info", "A worker runs and is about to join its group.",
    "role", "worker", "build", "table", "topics", "group",
)
WORKER_STOPPED: Final = _event(
    "worker_stopped", "info", "A worker has ended as it was asked to.",
    "role", "worker", "reason", "duration_ms",
)
WORKER_FAILED: Final = _event(
    "worker_failed", "error", "A worker stops because a person must act.",
    "role", "worker", "error", "exit_code",
)
WAITING: Final = _event(
    "waiting", "warning", "Nothing is wrong yet, but nothing can be read either.",
    "reason",
)
PARTITIONS_ASSIGNED: Final = _event(
    "partitions_assigned", "info", "The group gave partitions to this worker.",
    "partitions",
)
PARTITIONS_REVOKED: Final = _event(
    "partitions_revoked", "info", "The group took partitions away; what was buffered is dropped.",
    "partitions", "reason",
)
OFFSETS_CLAIMED: Final = _event(
    "offsets_claimed", "info", "The start of partitions without one was written to the log.",
    "topic", "partitions", "version",
)
TABLE_CREATED: Final = _event(
    "table_created", "info", "The table did not exist and was made.",
    "table", "version",
)
TABLE_OPENED: Final = _event(
    "table_opened", "info", "The table's log was read up to its newest version.",
    "table", "version", "duration_ms",
)
TABLE_COMMITTED: Final = _event(
    "table_committed", "info", "A commit is in the table's log.",
    "version", "rows", "files", "bytes", "partitions", "table_partitions", "dead_letters", "skipped",
    "attempt", "freshness_ms", "duration_ms",
)
COMMIT_RETRIED: Final = _event(
    "commit_retried", "warning", "A commit had no usable answer and is sent again.",
    "version", "attempt", "error",
)
FENCED: Final = _event(
    "fenced", "warning", "Another worker moved an offset of this plan; the plan is dropped.",
    "topic", "partition", "offset_expected", "offset_next", "version", "reason",
)
RESYNCED: Final = _event(
    "resynced", "info", "A partition is read again from where the log says.",
    "topic", "partition", "offset_expected", "offset_next", "version", "reason",
)
DEAD_LETTERS_SENT: Final = _event(
    "dead_letters_sent", "warning", "Records that cannot become rows went to the dead-letter topic.",
    "topic", "records", "reason", "duration_ms",
)
OFFSET_GONE: Final = _event(
    "offset_gone", "warning", "Kafka no longer has an offset at which reading should go on.",
    "topic", "partition", "offset_expected", "offset_next", "gone",
)
PARTITION_HALTED: Final = _event(
    "partition_halted", "error", "A partition is not read any more until a person acts.",
    "topic", "partition", "error",
)
GROUP_COMMIT_FAILED: Final = _event(
    "group_commit_failed", "warning", "The group's offsets, which only lag tools read, are behind.",
    "error",
)
REJOINED: Final = _event(
    "rejoined", "warning", "This worker left its group and joined it again.",
    "reason",
)
SIGNAL_RECEIVED: Final = _event(
    "signal_received", "info", "The process was asked to stop.",
    "reason",
)
COMMAND_OUTCOME: Final = _event(
    "command_outcome", "info", "A control command has come so far.",
    "command", "id", "state", "reason", "result",
)
COMMAND_REFUSED: Final = _event(
    "command_refused", "warning", "A message of the control topic may not be obeyed.",
    "topic", "partition", "offset", "reason",
)
COMMAND_LEFT: Final = _event(
    "command_left", "info", "A command is left to other workers before its end.",
    "id", "reason",
)
COMMAND_SENT: Final = _event(
    "command_sent", "info", "A worker asks for maintenance by its policies.",
    "command", "id", "reason",
)
COMPACTION_DROPPED: Final = _event(
    "compaction_dropped", "info", "Files were changed by others while they were compacted.",
    "reason",
)
PAUSED: Final = _event("paused", "warning", "The worker stands still by command.", "role")
RESUMED: Final = _event("resumed", "info", "The worker goes on by command.", "role")
JOB_STARTED: Final = _event(
    "job_started", "debug", "A job beside the state thread begins.",
    "job",
)
JOB_ENDED: Final = _event(
    "job_ended", "debug", "A job beside the state thread has ended, well or not.",
    "job", "duration_ms",
)
SECRET_CHANGED: Final = _event(
    "secret_changed", "info", "A mounted file has changed: the worker stops, to begin with the new one.",
    "reason",
)
HTTP_LISTENING: Final = _event(
    "http_listening", "info", "Metrics, probes and status are served.",
    "address",
)
DEPENDENCY_LOST: Final = _event(
    "dependency_lost", "warning", "A dependency does not answer the health check.",
    "dependency", "error",
)
DEPENDENCY_FOUND: Final = _event(
    "dependency_found", "info", "A dependency that did not answer does again.",
    "dependency", "duration_ms",
)
AUDIT_FAILED: Final = _event(
    "audit_failed", "error", "A scheduled audit found something wrong: run `delta-sink audit`.",
    "version", "error",
)
EXPORT_FAILED: Final = _event(
    "export_failed", "warning", "Metrics or traces could not be sent to the OTLP collector.",
    "error",
)
LIBRARY_LOGGED: Final = _event(
    "library_logged", "debug", "A library logged a message or a warning.",
    "logger", "category", "error",
)
# fmt: on


BATCH_TRACE: Final = "batch"
COMMAND_TRACE: Final = "command"

TRACES: Final[Mapping[str, TraceKind]] = MappingProxyType(
    {
        BATCH_TRACE: TraceKind(
            BATCH_TRACE,
            "A batch of a writer, from its first record to its commit, or to the error that its "
            "commit met.",
            "`poll`, `decode` (both once for each chunk), `encode`, `upload` (up to four), `commit`",
            ("commit_id", "version", "rows", "files", "bytes"),
        ),
        COMMAND_TRACE: TraceKind(
            COMMAND_TRACE,
            "A control command, from the time it was issued to its outcome.",
            "`topic` (until a worker had read it), then each job that was done for it: `begin`, "
            "`lease`, `tell`, and those of the command",
            ("command", "id", "state"),
        ),
    }
)


def check_trace(name: str, fields: Collection[str]) -> None:
    """Assert that the trace and its fields are declared."""
    assert name in TRACES, f"trace {name} is not declared in delta_sink/telemetry.py"
    assert set(fields) <= set(TRACES[name].fields), f"trace {name}: fields {sorted(fields)}"


def check_metric(name: str, kind: Kind, tags: Collection[str]) -> Metric:
    """Return the metric's declaration; assert that name, kind and tags are as declared."""
    metric = METRICS.get(name)
    assert metric is not None, f"metric {name} is not declared in delta_sink/telemetry.py"
    assert metric.kind == kind, f"metric {name} is a {metric.kind}, recorded as a {kind}"
    assert set(tags) == set(metric.tags), f"metric {name}: tags {sorted(tags)}, not {metric.tags}"
    return metric


def check_event(name: str, fields: Collection[str]) -> Event:
    """Return the event's declaration; assert that the name and the fields are declared."""
    event = EVENTS.get(name)
    assert event is not None, f"event {name} is not declared in delta_sink/telemetry.py"
    for field in fields:
        assert field in FIELDS, f"event {name}: field {field} is not in FIELDS"
    return event


def graver(one: str, other: str) -> Level:
    """Return the more pressing of two levels. Asserts that both are levels."""
    ranks = [index for index, level in enumerate(LEVELS) if level in (one, other)]
    assert len(ranks) == len({one, other}), (one, other)
    return LEVELS[ranks[-1]]


def document() -> str:
    """Return `docs/metrics.md`: the tables of metrics, tags, events and fields."""
    lines = [
        "# Metrics, traces and events",
        "",
        "Written by `python -m delta_sink.telemetry`; change the declarations there, not this file.",
        "Every metric also carries the label `sink`, the name from the configuration file.",
        "",
        "## Metrics",
        "",
        "| name | kind | unit | labels | what it says |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{m.name}` | {m.kind} | {m.unit} | {_codes(m.tags)} | {m.sentence} |"
        for m in METRICS.values()
    ]
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    lines += [f"| `{name}` | {sentence} |" for name, sentence in TAGS.items()]
    lines += ["", "## Traces", "", "| trace | what it is | steps | fields |", "|---|---|---|---|"]
    lines += [
        f"| `{t.name}` | {t.sentence} | {t.steps} | {_codes(t.fields)} |" for t in TRACES.values()
    ]
    lines += ["", "## Events", "", "| event | level | what it says | fields |", "|---|---|---|---|"]
    lines += [
        f"| `{e.name}` | {e.level} | {e.sentence} | {_codes(e.fields)} |" for e in EVENTS.values()
    ]
    lines += ["", "## Fields", "", "| field | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {sentence} |" for name, sentence in FIELDS.items()]
    return "\n".join([*lines, ""])


def _codes(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    sys.stdout.write(document())
