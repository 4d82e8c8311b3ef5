"""The configuration as typed values: one frozen class for each group of the file.

Attributes are named as the keys of the file. A `Settings` comes from `config.load` and nowhere
else: the forms of single values are checked by the annotations, what several keys say together by
`rules`. Secrets are `SecretStr`, or stand in a `KafkaProperties`, and no `repr` shows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, SecretStr, WithJsonSchema
from pydantic.dataclasses import dataclass

from delta_sink.delta.schema import ParsedColumns, parse_columns
from delta_sink.forms import (
    MIB,
    NAME,
    TOPIC,
    Cron,
    Flag,
    FlagOrColumns,
    Fraction,
    Pattern,
    Size,
    SizeOrAuto,
    TableUri,
    Text,
    Url,
    Whole,
)
from delta_sink.properties import RETENTION_DEFAULTS, TEXT_MAP_SCHEMA, KafkaProperties, TextMap
from delta_sink.start import StartAt, StartEarliest, StartForm

_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

Bool = Annotated[bool, Flag()]
Name = Annotated[str, NAME]
TopicName = Annotated[str, TOPIC]
FreeText = Annotated[str, Text()]
Address = Annotated[str, Url()]
CronText = Annotated[str, Cron()]
PositiveMs = Annotated[int, Whole(1, 31 * 86_400_000)]
DurationMs = Annotated[int, Whole(0, 31 * 86_400_000)]
Count = Annotated[int, Whole(1)]


# --- the groups --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class SourceSettings:
    """Which topics are read, and from where."""

    topics: tuple[TopicName, ...] | None = Field(
        default=None, description="Topics to read; either these or topics_regex."
    )
    topics_regex: Annotated[str, Pattern()] | None = Field(
        default=None, description="Regular expression that the whole name of a topic matches."
    )
    topic_ids: Literal["required", "none"] = Field(
        default="required",
        description="Whether topic ids are part of the app ids; none for brokers without ids.",
    )
    start: Annotated[StartAt, StartForm()] = Field(
        default_factory=StartEarliest,
        description="Where to begin the first time, by default earliest; later the log decides.",
    )
    on_offset_gap: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do about records that Kafka deleted before they were read.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ValueSettings:
    """How the bytes of a record become a row."""

    format: Literal["json", "json_schema", "avro", "protobuf", "string", "bytes"] = Field(
        description="Format of the record values; this version reads json."
    )
    unknown_fields: Literal["ignore", "fail"] = Field(
        default="ignore",
        description="Whether a field without a column is counted or makes a bad record.",
    )
    tombstones: Literal["skip", "dead_letter", "null_row"] = Field(
        default="skip", description="What becomes of a record without a value."
    )
    binary: Literal["base64", "hex"] = Field(
        default="base64", description="How the text for a binary column is encoded."
    )
    timestamp_format: Literal["iso8601", "epoch_s", "epoch_ms", "epoch_us"] = Field(
        default="iso8601",
        description="How a timestamp is written: ISO 8601 text or a number since 1970.",
    )
    record_bytes_max: Annotated[int, Size(1024, 256 * MIB)] = Field(
        default=8 * MIB, description="Largest value in bytes; a larger one is a bad record (8MiB)."
    )
    nesting_max: Annotated[int, Whole(1, 200)] = Field(
        default=64,
        description="Deepest nesting of a value in levels; a deeper one is a bad record (64).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class RegistrySettings:
    """The schema registry, for formats whose schemas live there."""

    url: Address = Field(description="Address of the registry; https unless the host is local.")
    basic_auth: SecretStr | None = Field(
        default=None, description="User and password as user:password, by default none."
    )
    bearer_token: SecretStr | None = Field(
        default=None, description="Bearer token instead of basic_auth, by default none."
    )
    ca_path: FreeText | None = Field(
        default=None, description="PEM file of the registry's CA, by default the system's."
    )
    insecure: Bool = Field(
        default=False, description="Whether http to a host that is not local is accepted (false)."
    )
    request_timeout_ms: PositiveMs = Field(
        default=10_000, description="Time in milliseconds that one request may take (10000)."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class StorageSettings:
    """How the object store is reached; what is left out comes from the usual AWS chain."""

    endpoint_url: Address | None = Field(
        default=None, description="Address of an S3 service that is not AWS, by default AWS's own."
    )
    region: FreeText | None = Field(
        default=None, description="Region of the bucket, by default from the AWS chain."
    )
    access_key_id: FreeText | None = Field(
        default=None, description="Access key, by default from the AWS chain."
    )
    secret_access_key: SecretStr | None = Field(
        default=None, description="Secret of the access key, by default from the AWS chain."
    )
    session_token: SecretStr | None = Field(
        default=None, description="Session token of temporary credentials, by default none."
    )
    path_style: Bool = Field(
        default=True,
        description="Whether the bucket stands in the path and not in the host name (true).",
    )
    allow_http: Bool = Field(
        default=True, description="Whether an endpoint_url with http:// may be used (true)."
    )
    fsync: Bool = Field(
        default=True, description="Whether a commit to a local disk waits for fsync (true)."
    )
    readback: Bool = Field(
        default=False, description="Whether each commit is read back before it counts (false)."
    )
    request_timeout_ms: Annotated[int, Whole(100, 30_000)] = Field(
        default=10_000,
        description="Time in milliseconds that one request may take (10000, at most 30000).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class LogStoreSettings:
    """How a version of the table is claimed."""

    shorthand: ClassVar[str] = "type"

    type: Literal["conditional_put", "dynamodb"] = Field(
        default="conditional_put",
        description="Who decides which writer gets a version: the store itself, or DynamoDB.",
    )
    table_name: FreeText | None = Field(
        default=None, description="DynamoDB table of the log entries; only for dynamodb."
    )
    region: FreeText | None = Field(
        default=None, description="Region of that table, by default from the AWS chain."
    )
    endpoint_url: Address | None = Field(
        default=None, description="Address of a DynamoDB service that is not AWS."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ParquetSettings:
    """How data files are encoded."""

    compression: Literal["zstd", "snappy", "gzip", "none"] = Field(
        default="zstd", description="Compression of the data files."
    )
    compression_level: Annotated[int, Whole(1, 22)] = Field(
        default=1,
        description="Level of zstd (1 to 22) or gzip (1 to 9); snappy and none have no levels (1).",
    )
    row_group_rows: Annotated[int, Whole(1_000)] = Field(
        default=1_000_000, description="Most rows in a row group (1000000)."
    )
    dictionary: Annotated[Literal["auto"] | bool | tuple[str, ...], FlagOrColumns()] = Field(
        default="auto",
        description="Columns with dictionary encoding: auto looks at the data, true and false mean all and none, or a list.",
    )
    bloom_filter_columns: tuple[FreeText, ...] = Field(
        default=(), description="Columns that get a bloom filter, by default none."
    )


_COLUMNS_SCHEMA: dict[str, object] = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["name", "type"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "type": {"type": ["string", "object"]},
            "nullable": {"type": "boolean", "default": True},
            "comment": {"type": "string"},
            "from": {"type": "string", "pattern": r"^ *(date|year|month|day|hour) *\(.+\) *$"},
        },
    },
}
MetadataColumn = Literal["topic", "partition", "offset", "timestamp", "key", "headers"]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class TableSettings:
    """The Delta table: where it is, and how it is made if it does not exist."""

    uri: Annotated[str, TableUri()] = Field(
        description="Where the table is: s3://bucket/path or a path on a local disk."
    )
    storage: StorageSettings = Field(
        default=StorageSettings(), description="How the object store is reached."
    )
    log_store: LogStoreSettings = Field(
        default=LogStoreSettings(),
        description="How a version is claimed: conditional_put, or a mapping with a type.",
    )
    schema: Annotated[tuple[Mapping[str, object], ...] | None, WithJsonSchema(_COLUMNS_SCHEMA)] = (
        Field(
            default=None,
            description="Columns of the table; needed if it does not exist, else they must agree.",
        )
    )
    partition_by: tuple[FreeText, ...] = Field(
        default=(), description="Columns that divide the table into folders, by default none."
    )
    properties: TextMap = Field(
        default_factory=dict,
        description="Properties of a table that is created; both retentions are 7 days by default.",
    )
    metadata_columns: tuple[MetadataColumn, ...] = Field(
        default=("topic", "partition", "offset", "timestamp"),
        description="What of a record, beside its value, becomes a column named _kafka_….",
    )
    comment: FreeText | None = Field(
        default=None, description="Description of a table that is created, by default none."
    )
    parquet: ParquetSettings = Field(
        default=ParquetSettings(), description="How data files are encoded."
    )

    @property
    def is_s3(self) -> bool:
        """Whether the table is in an object store and not on a local disk."""
        return self.uri.startswith("s3://")

    @property
    def columns(self) -> ParsedColumns | None:
        """The columns of `schema` in Delta's types, without metadata columns; None without it."""
        if self.schema is None:
            return None
        return parse_columns(self.schema, "table.schema", self.metadata_columns)

    @property
    def creation_properties(self) -> dict[str, str]:
        """The properties of a table that this sink creates: our defaults below the user's."""
        return {**RETENTION_DEFAULTS, **self.properties}


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class FlushSettings:
    """When a batch is due: whichever limit is met first."""

    interval_ms: Annotated[int, Whole(1, 86_400_000)] = Field(
        default=1_000,
        description="Longest time in milliseconds that a record waits for its commit (1000).",
    )
    rows_max: Count = Field(default=500_000, description="Rows at which a batch is due (500000).")
    bytes_max: Annotated[int, Size(1024)] = Field(
        default=64 * MIB,
        description="Bytes of record values at which a batch is due, if memory.bytes_max has room for three of them (64MiB).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class MemorySettings:
    """What the process may occupy."""

    bytes_max: Annotated[int | Literal["auto"], SizeOrAuto(256 * MIB)] = Field(
        default="auto",
        description="Memory of the process in bytes, at least 256MiB; auto takes the cgroup's limit, else 512MiB.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ErrorsSettings:
    """What becomes of records that cannot become rows."""

    tolerance: Literal["none", "all"] = Field(
        default="none",
        description="Whether a bad record stops the worker or becomes a dead letter.",
    )
    dead_letter_topic: TopicName | None = Field(
        default=None, description="Topic for dead letters; needed when tolerance is all."
    )
    ratio_max: Annotated[float, Fraction()] = Field(
        default=0.05,
        description="Share of bad records in the window above which the worker stops (0.05).",
    )
    ratio_window_records: Annotated[int, Whole(1_000, 100_000_000)] = Field(
        default=10_000,
        description="Records over which the share is counted, at least 1000 (10000).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class LocksSettings:
    """Where leases and shared state are kept."""

    store: Literal["sqlite", "dynamodb"] = Field(
        default="sqlite",
        description="Kind of lock store: a file for one machine, or a DynamoDB table.",
    )
    path: FreeText = Field(default="locks.db", description="File of the sqlite store (locks.db).")
    table_name: FreeText | None = Field(
        default=None, description="DynamoDB table of the locks; needed for dynamodb."
    )
    region: FreeText | None = Field(
        default=None, description="Region of that table, by default from the AWS chain."
    )
    endpoint_url: Address | None = Field(
        default=None, description="Address of a DynamoDB service that is not AWS."
    )
    lease_ms: Annotated[int, Whole(1_000, 600_000)] = Field(
        default=30_000,
        description="Time in milliseconds after which a silent worker's lease is over (30000).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ControlSettings:
    """The topics through which maintenance is asked for and answers."""

    topic: TopicName = Field(default="delta-sink.control", description="Topic of the commands.")
    status_topic: TopicName = Field(
        default="delta-sink.status", description="Topic of the outcomes."
    )
    signing_keys: Mapping[str, SecretStr] = Field(
        default_factory=dict,
        description="Keys by id; with any, commands must be signed by one of them.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class CompactionSettings:
    """When small files are worth rewriting, and into what."""

    target_file_bytes: Annotated[int, Size(MIB)] = Field(
        default=128 * MIB, description="Size in bytes of the files that compaction makes (128MiB)."
    )
    small_files_max: Count = Field(
        default=100, description="Small files of a table partition that ask for a compaction (100)."
    )
    small_bytes_max: Annotated[int, Size(MIB)] = Field(
        default=256 * MIB, description="Bytes in small files that ask for a compaction (256MiB)."
    )
    age_max_ms: PositiveMs = Field(
        default=600_000,
        description="Age in milliseconds of a small file that asks for one (600000).",
    )
    quiet_ms: DurationMs = Field(
        default=60_000,
        description="Files younger than this, in milliseconds, are left alone (60000).",
    )
    cron: CronText | None = Field(
        default=None,
        description="Times, in UTC, at which a compaction is asked for, by default none.",
    )
    threads_max: Count = Field(
        default=4,
        description="Bins that a compactor rewrites at once, as cores and memory allow (4).",
    )
    bytes_per_s_max: Annotated[int, Size(1)] | None = Field(
        default=None,
        description="Bytes a second that a compactor reads at most, by default without limit.",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class VacuumSettings:
    """When files that nothing references are deleted."""

    retention_hours: Annotated[int, Whole(0, 24 * 3650)] | None = Field(
        default=None,
        description="Age in hours at which an unreferenced file may be deleted; by default what "
        "the table says (delta.deletedFileRetentionDuration), else 168.",
    )
    retention_hours_min: Annotated[int, Whole(0, 24 * 3650)] = Field(
        default=168, description="Lowest retention in hours that any command may ask for (168)."
    )
    cron: CronText | None = Field(
        default=None, description="Times, in UTC, at which a vacuum is asked for, by default none."
    )
    deletes_per_s_max: Count | None = Field(
        default=None, description="Files deleted a second at most, by default without limit."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class CheckpointSettings:
    """When the compactor writes a checkpoint."""

    commits_max: Count = Field(default=100, description="Commits after which one is written (100).")
    age_max_ms: PositiveMs = Field(
        default=600_000,
        description="Age in milliseconds of the newest one after which one is written (600000).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class HttpSettings:
    """The server of metrics, probes and status."""

    host: FreeText = Field(
        default="0.0.0.0",  # noqa: S104  # probes and scrapers come from outside of the pod
        description="Address to listen on; by default all of them.",
    )
    port: Annotated[int, Whole(0, 65_535)] = Field(
        default=8080, description="Port to listen on; 0 takes a free one (8080)."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class TelemetrySettings:
    """Where metrics and traces are sent."""

    otlp_endpoint: Address | None = Field(
        default=None, description="Address of an OTLP collector, by default none."
    )
    traces: bool = Field(
        default=True,
        description="Whether traces are sent to it beside the metrics (true).",
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class ShutdownSettings:
    """How a worker stops."""

    grace_ms: Annotated[int, Whole(0, 3_600_000)] = Field(
        default=25_000, description="Time in milliseconds for work in flight after SIGTERM (25000)."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class LogsSettings:
    """How logs are written."""

    format: Literal["human", "json"] = Field(default="human", description="Form of a log line.")
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is written."
    )


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Settings:
    """One sink: one consumer group, one or more topics, one table."""

    name: Name = Field(
        description="Name of the sink; consumer group, app ids and lease keys derive from it."
    )
    kafka: Annotated[KafkaProperties, WithJsonSchema(TEXT_MAP_SCHEMA)] = Field(
        description="Properties for librdkafka, passed on as they are."
    )
    source: SourceSettings = Field(description="Which topics are read, and from where.")
    value: ValueSettings = Field(description="How the bytes of a record become a row.")
    registry: RegistrySettings | None = Field(
        default=None, description="The schema registry, for formats whose schemas live there."
    )
    table: TableSettings = Field(description="The Delta table.")
    flush: FlushSettings = Field(default=FlushSettings(), description="When a batch is due.")
    memory: MemorySettings = Field(
        default=MemorySettings(), description="What the process may occupy."
    )
    errors: ErrorsSettings = Field(
        default=ErrorsSettings(),
        description="What becomes of records that cannot become rows.",
    )
    locks: LocksSettings = Field(
        default=LocksSettings(), description="Where leases and shared state are kept."
    )
    control: ControlSettings | None = Field(
        default=None,
        description="The topics for maintenance; without this group there are no commands.",
    )
    compaction: CompactionSettings = Field(
        default=CompactionSettings(), description="When small files are rewritten."
    )
    vacuum: VacuumSettings = Field(
        default=VacuumSettings(), description="When unreferenced files are deleted."
    )
    checkpoint: CheckpointSettings = Field(
        default=CheckpointSettings(), description="When a checkpoint is written."
    )
    http: HttpSettings | None = Field(
        default=None,
        description="The server of metrics and probes; without this group there is none.",
    )
    telemetry: TelemetrySettings = Field(
        default=TelemetrySettings(), description="Where metrics and traces are sent."
    )
    shutdown: ShutdownSettings = Field(
        default=ShutdownSettings(), description="How a worker stops."
    )
    logs: LogsSettings = Field(default=LogsSettings(), description="How logs are written.")

    @property
    def consumer_group(self) -> str:
        """The consumer group of the writers: the sink's name."""
        return self.name

    @property
    def compactor_group(self) -> str:
        """The consumer group of the compactors on the control topic."""
        return f"{self.name}.compactor"

    @property
    def vacuum_group(self) -> str:
        """The consumer group of the vacuum workers on the control topic."""
        return f"{self.name}.vacuum"

    def reads_topic(self, topic: str) -> bool:
        """Say whether `topic` is one of the topics that this sink reads."""
        pattern = self.source.topics_regex
        if pattern is not None:
            return re.fullmatch(pattern, topic) is not None
        return topic in (self.source.topics or ())

    def warnings(self) -> list[str]:
        """Return what is allowed and yet deserves a second look, each `path: sentence`."""
        from delta_sink.rules import warnings_of  # the rules are about this class and import it

        return warnings_of(self)
