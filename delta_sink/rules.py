"""What several keys of the configuration say together: contradictions, and what to be warned of.

Each rule looks at a `Settings` and yields `path: sentence` for what is wrong. A rule that needs a
value that is wrong itself is skipped (`problems_of`), so that one mistake gives one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from delta_sink.delta.schema import METADATA_FIELDS, DataType
from delta_sink.forms import is_local as is_local_host
from delta_sink.forms import size_text, url_host
from delta_sink.properties import (
    delta_refusals,
    delta_warnings,
    is_safe_url,
    kafka_refusals,
    kafka_warnings,
)
from delta_sink.settings import Settings
from delta_sink.start import StartGroup, StartOffsets

Problems = Iterator[str]
HMAC_KEY_BYTES_MIN = 16


def problems_of(settings: Settings, *, is_complete: bool) -> list[str]:
    """Return every contradiction in `settings`.

    With `is_complete` false, attributes that could not be read are absent from `settings` and the
    rules that need them say nothing.
    """
    problems: list[str] = []
    for rule in RULES:
        try:
            problems.extend(rule(settings))
        except AttributeError:
            if is_complete:
                raise
    return problems


# --- Kafka and the source ----------------------------------------------------------------------


def _kafka(settings: Settings) -> Problems:
    yield from (f"kafka.{key}: {sentence}" for key, sentence in kafka_refusals(settings.kafka))


def _kafka_queue(settings: Settings) -> Problems:
    queue_kib, memory = settings.kafka.get("queued.max.messages.kbytes", ""), settings.memory
    if not queue_kib.isdecimal() or not isinstance(memory.bytes_max, int):
        return
    if int(queue_kib) * 1024 * 2 > memory.bytes_max:
        yield (
            "kafka.queued.max.messages.kbytes: expected at most half of memory.bytes_max, "
            f"which is {size_text(memory.bytes_max)}"
        )


def _one_kind_of_topics(settings: Settings) -> Problems:
    topics, pattern = settings.source.topics, settings.source.topics_regex
    if topics is None and pattern is None:
        yield "source.topics: missing; expected a list of topics, or source.topics_regex"
    if topics is not None and pattern is not None:
        yield "source.topics_regex: expected either topics or topics_regex, got both"


def _topics(settings: Settings) -> Problems:
    topics = settings.source.topics
    if topics is not None and not topics:
        yield "source.topics: expected at least one topic"
    yield from _twice("source.topics", topics or ())


def _start_offsets(settings: Settings) -> Problems:
    start = settings.source.start
    if isinstance(start, StartOffsets):
        for topic in sorted({tp.topic for tp in start.offsets}):
            if not settings.reads_topic(topic):
                yield f"source.start.offsets.{topic}: the sink does not read this topic"


def _start_group(settings: Settings) -> Problems:
    start = settings.source.start
    if isinstance(start, StartGroup) and start.group == settings.name:
        yield (
            "source.start.group: expected another group; this one is the sink's own, "
            f"because the sink is named '{settings.name}'"
        )


# --- values and errors -------------------------------------------------------------------------


def _format(settings: Settings) -> Problems:
    if settings.value.format != "json":
        yield f"value.format: '{settings.value.format}' is not in this version; expected json"


def _dead_letters_have_a_topic(settings: Settings) -> Problems:
    if settings.errors.tolerance == "all" and settings.errors.dead_letter_topic is None:
        yield "errors.dead_letter_topic: missing; errors.tolerance 'all' needs a topic for bad records"


def _tombstones_have_a_topic(settings: Settings) -> Problems:
    if settings.value.tombstones == "dead_letter" and settings.errors.dead_letter_topic is None:
        yield "errors.dead_letter_topic: missing; value.tombstones 'dead_letter' needs a topic"


def _dead_letter_topic_is_not_read(settings: Settings) -> Problems:
    topic = settings.errors.dead_letter_topic
    if topic is not None and settings.reads_topic(topic):
        yield (
            f"errors.dead_letter_topic: the sink reads '{topic}' itself, and dead letters "
            "would come back for ever"
        )


def _null_rows_fit(settings: Settings) -> Problems:
    if settings.value.tombstones != "null_row":
        return
    for column in settings.table.schema or ():
        if column.get("nullable") is False:
            yield (
                "value.tombstones: null_row makes rows of nulls, and column "
                f"'{column.get('name')}' of table.schema is not nullable"
            )


# --- the table ---------------------------------------------------------------------------------


def _columns(settings: Settings) -> Problems:
    columns = settings.table.columns
    yield from () if columns is None else columns.problems


def _metadata_columns(settings: Settings) -> Problems:
    yield from _twice("table.metadata_columns", settings.table.metadata_columns)


def _types(settings: Settings) -> dict[str, DataType] | None:
    """Return the type of each column that the table would have; None if nothing is known."""
    parsed = settings.table.columns
    if parsed is None or parsed.problems:
        return None
    own = {field.name: field.type for field in parsed.fields}
    added = [METADATA_FIELDS[name] for name in settings.table.metadata_columns]
    return own | {field.name: field.type for field in added}


def _partition_by(settings: Settings) -> Problems:
    names, types = settings.table.partition_by, _types(settings)
    yield from _twice("table.partition_by", names)
    if types is None:
        return
    for name in names:
        if name not in types:
            yield f"table.partition_by: there is no column '{name}' in table.schema"
        elif not _is_primitive(types[name]):
            yield f"table.partition_by: column '{name}' is a struct, list or map"
    if names and set(types) <= set(names):
        yield "table.partition_by: at least one column must be left in the files"


def _is_primitive(data_type: DataType) -> bool:
    return isinstance(data_type, str) or type(data_type).__name__ == "Decimal"


def _parquet_columns(settings: Settings) -> Problems:
    types, parquet = _types(settings), settings.table.parquet
    lists = {"bloom_filter_columns": parquet.bloom_filter_columns}
    if isinstance(parquet.dictionary, tuple):
        lists["dictionary"] = parquet.dictionary
    for key, names in lists.items():
        yield from _twice(f"table.parquet.{key}", names)
        for name in names:
            if types is not None and name.split(".")[0] not in types:
                yield f"table.parquet.{key}: there is no column '{name}' in table.schema"


def _compression_level(settings: Settings) -> Problems:
    parquet = settings.table.parquet
    if parquet.compression == "gzip" and parquet.compression_level > 9:
        yield "table.parquet.compression_level: gzip has levels from 1 to 9"


def _properties(settings: Settings) -> Problems:
    for key, sentence in delta_refusals(settings.table.properties):
        yield f"table.properties.{key}: {sentence}"


def _log_store(settings: Settings) -> Problems:
    log_store = settings.table.log_store
    if log_store.type == "dynamodb":
        yield "table.log_store.type: dynamodb is not in this version; expected conditional_put"
    else:
        yield from _only_for_dynamodb(
            "table.log_store",
            table_name=log_store.table_name,
            region=log_store.region,
            endpoint_url=log_store.endpoint_url,
        )


def _credentials(settings: Settings) -> Problems:
    storage = settings.table.storage
    if storage.access_key_id is not None and storage.secret_access_key is None:
        yield "table.storage.secret_access_key: missing; access_key_id is of no use without it"
    if storage.secret_access_key is not None and storage.access_key_id is None:
        yield "table.storage.access_key_id: missing; secret_access_key is of no use without it"
    if storage.session_token is not None and storage.access_key_id is None:
        yield "table.storage.access_key_id: missing; session_token is of no use without it"


def _storage_http(settings: Settings) -> Problems:
    storage = settings.table.storage
    if not storage.allow_http and (storage.endpoint_url or "").startswith("http://"):
        yield "table.storage.endpoint_url: expected https, because allow_http is false"


# --- the rest ----------------------------------------------------------------------------------


def _memory(settings: Settings) -> Problems:
    if isinstance(settings.memory.bytes_max, int):
        yield from memory_problems(settings, settings.memory.bytes_max)


def memory_problems(settings: Settings, memory: int) -> Problems:
    """Yield what does not fit into `memory` bytes.

    With `memory.bytes_max: auto` only the worker knows the number; it asks here when it starts.
    """
    if settings.flush.bytes_max * 2 > memory:
        yield (
            "flush.bytes_max: expected at most half of memory.bytes_max, which is "
            f"{size_text(memory)}, got {size_text(settings.flush.bytes_max)}"
        )
    if settings.value.record_bytes_max * 8 > memory:
        yield (
            "value.record_bytes_max: expected at most an eighth of memory.bytes_max, which is "
            f"{size_text(memory)}, got {size_text(settings.value.record_bytes_max)}"
        )


def _locks(settings: Settings) -> Problems:
    locks = settings.locks
    if locks.store == "dynamodb":
        if locks.table_name is None:
            yield "locks.table_name: missing; locks.store 'dynamodb' needs the name of its table"
    else:
        yield from _only_for_dynamodb(
            "locks",
            table_name=locks.table_name,
            region=locks.region,
            endpoint_url=locks.endpoint_url,
        )


def _only_for_dynamodb(group: str, **values: str | None) -> Problems:
    for key, value in values.items():
        if value is not None:
            yield f"{group}.{key}: only for dynamodb, which is not chosen here"


def _registry(settings: Settings) -> Problems:
    registry = settings.registry
    if registry is None:
        return
    if not registry.insecure and not is_safe_url(registry.url):
        yield "registry.url: expected https, because the host is not local; or say insecure: true"
    if registry.basic_auth is not None and registry.bearer_token is not None:
        yield "registry.bearer_token: expected either basic_auth or bearer_token, got both"
    if registry.basic_auth is not None and ":" not in registry.basic_auth.get_secret_value():
        yield "registry.basic_auth: expected user:password"


def _control(settings: Settings) -> Problems:
    control = settings.control
    if control is None:
        return
    if control.topic == control.status_topic:
        yield "control.status_topic: expected another topic than control.topic"
    for key_id, key in control.signing_keys.items():
        if len(key.get_secret_value().encode()) < HMAC_KEY_BYTES_MIN:
            yield f"control.signing_keys.{key_id}: expected {HMAC_KEY_BYTES_MIN} bytes or more"


def _control_topics_are_not_read(settings: Settings) -> Problems:
    if settings.control is None:
        return
    topics = {"topic": settings.control.topic, "status_topic": settings.control.status_topic}
    for key, topic in topics.items():
        if settings.reads_topic(topic):
            yield f"control.{key}: the sink reads '{topic}' itself"
        if topic == settings.errors.dead_letter_topic:
            yield f"control.{key}: '{topic}' is the topic of the dead letters already"


def _vacuum(settings: Settings) -> Problems:
    vacuum = settings.vacuum
    hours = vacuum.retention_hours
    if hours is not None and hours < vacuum.retention_hours_min:
        yield (
            f"vacuum.retention_hours: expected {vacuum.retention_hours_min} or more, which is "
            f"vacuum.retention_hours_min, got {hours}"
        )


def cost_of(settings: Settings) -> tuple[int, int]:
    """Return how often a day one writer commits by time alone, and with how many PUTs at least.

    A commit is one PUT for the log's entry and one for each table partition that the batch has.
    """
    commits = 86_400_000 // settings.flush.interval_ms
    return commits, 2 * commits


def _twice(path: str, names: Sequence[str]) -> Problems:
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"{path}: '{name}' is there {names.count(name)} times"


RULES: tuple[Callable[[Settings], Problems], ...] = (
    _kafka,
    _kafka_queue,
    _one_kind_of_topics,
    _topics,
    _start_offsets,
    _start_group,
    _format,
    _dead_letters_have_a_topic,
    _tombstones_have_a_topic,
    _dead_letter_topic_is_not_read,
    _null_rows_fit,
    _columns,
    _metadata_columns,
    _partition_by,
    _parquet_columns,
    _compression_level,
    _properties,
    _log_store,
    _credentials,
    _storage_http,
    _memory,
    _locks,
    _registry,
    _control,
    _control_topics_are_not_read,
    _vacuum,
)


# --- warnings ----------------------------------------------------------------------------------

S3_INTERVAL_MS_MIN = 100
"""Below this a conditional PUT on S3, of about 60 ms, leaves no room for a second writer."""


def warnings_of(settings: Settings) -> list[str]:
    """Return what is allowed and yet deserves a second look, each `path: sentence`."""
    found = list(kafka_warnings(settings.kafka))
    table = settings.table
    if table.is_s3 and settings.flush.interval_ms < S3_INTERVAL_MS_MIN:
        found.append(
            f"flush.interval_ms: S3 takes about 15 commits a second on one table; below "
            f"{S3_INTERVAL_MS_MIN} ms records wait for the store, not for the interval"
        )
    if table.is_s3 and not table.storage.fsync:
        found.append("table.storage.fsync: it has no meaning for a table in an object store")
    if not table.is_s3 and not table.storage.fsync:
        found.append("table.storage.fsync: without it a power cut may take back a commit")
    addresses: Mapping[str, str | None] = {
        "table.storage.endpoint_url": table.storage.endpoint_url,
        "locks.endpoint_url": settings.locks.endpoint_url,
        "registry.url": settings.registry.url if settings.registry is not None else None,
    }
    for path, url in addresses.items():
        if url is not None and url.startswith("http://") and not is_local_host(url_host(url)):
            found.append(f"{path}: what is sent to '{url_host(url)}' travels as plain text")
    found += [f"table.properties.{key}: {say}" for key, say in delta_warnings(table.properties)]
    return found
