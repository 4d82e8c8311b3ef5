"""Properties that are passed on: librdkafka's and Delta's, and which of them are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from delta_sink.forms import Form, Wrong, interval_text_ms, is_local, url_host
from delta_sink.references import Referenced, kind


def plain_text(value: object) -> str:
    """Return a value as librdkafka and Delta write it: true, false, digits, text.

    Raises:
        Wrong: the value is a list or a mapping.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise Wrong(f"expected text, a number, true or false, got {kind(value)}", quiet=True)


_SECRET_PROPERTY = re.compile(
    r"password|passphrase|secret|(^|\.)key\.pem$|private\.key\.pem|^sasl\.oauthbearer\.config$"
)


def is_secret_property(key: str) -> bool:
    """Say whether a librdkafka property of this name holds a secret."""
    return _SECRET_PROPERTY.search(key) is not None


class KafkaProperties(Mapping[str, str]):
    """The properties for librdkafka, all as text. Its `repr` hides secrets and references."""

    __slots__ = ("_hidden", "_values")

    def __init__(self, values: Mapping[str, str]) -> None:
        self._hidden = frozenset(
            key
            for key, value in values.items()
            if is_secret_property(key) or isinstance(value, Referenced)
        )
        self._values = {key: str(value) for key, value in values.items()}

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shown = {k: "**********" if k in self._hidden else v for k, v in self._values.items()}
        return f"KafkaProperties({shown!r})"

    def secrets(self) -> list[str]:
        """Return the values that may stand in no log line."""
        return [self._values[key] for key in sorted(self._hidden)]

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._read)

    @classmethod
    def _read(cls, value: object) -> KafkaProperties:
        try:
            return cls(_text_map(value))
        except Wrong as wrong:
            if isinstance(wrong.partial, dict):
                wrong.partial = cls(wrong.partial)
            raise


class _TextMap(Form):
    """Reads a mapping of text, numbers and truth values as a mapping of text."""

    def read(self, value: object) -> dict[str, str]:
        """Return the mapping. Raises Wrong with every entry that is not one value."""
        return _text_map(value)

    def describe(self) -> dict[str, object]:
        """Return an object of scalars."""
        return TEXT_MAP_SCHEMA


def _text_map(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a mapping, got {kind(value)}", quiet=True)
    found: list[tuple[tuple[str, ...], str]] = []
    result: dict[str, str] = {}
    for key, below in value.items():
        try:
            result[str(key)] = plain_text(below)
        except Wrong as wrong:
            found.append(((str(key),), str(wrong)))
            result[str(key)] = "?"  # something was written, so nothing says that it is missing
    if found:
        raise Wrong.together(found, partial=result)
    return result


TEXT_MAP_SCHEMA: dict[str, object] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}
TextMap = Annotated[Mapping[str, str], _TextMap()]

RETENTION_DEFAULTS = {
    "delta.logRetentionDuration": "interval 7 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
}


# --- what librdkafka is not given --------------------------------------------------------------

OWNED = {
    "group.id": "the consumer group is the sink's name",
    "enable.auto.commit": "the table's log keeps the offsets; the group gets them afterwards",
    "enable.auto.offset.store": "the table's log keeps the offsets",
    "auto.commit.interval.ms": "the table's log keeps the offsets",
    "offset.store.method": "the table's log keeps the offsets",
    "offset.store.path": "the table's log keeps the offsets",
    "auto.offset.reset": "where to begin is source.start, and a gap is source.on_offset_gap",
    "enable.partition.eof": "the sink finds the end of a partition itself",
    "allow.auto.create.topics": "a topic that does not exist is waited for",
    "metadata.broker.list": "write bootstrap.servers",
    "acks": "a dead letter counts only when all replicas have it",
    "request.required.acks": "a dead letter counts only when all replicas have it",
    "transactional.id": "dead letters are not written in transactions",
}
LOADS_CODE = {
    "plugin.library.paths": "it loads code",
    "interceptors": "it loads code",
    "ssl.engine.location": "it loads code",
    "ssl.providers": "it loads code",
    "sasl.kerberos.kinit.cmd": "it runs a command",
    "sasl.kerberos.kinit.command": "it runs a command",
    "sasl.jaas.config": "it loads code, and only Java clients know it; write sasl.username and "
    "sasl.password",
    "sasl.login.callback.handler.class": "it loads code, and only Java clients know it",
    "sasl.oauthbearer.assertion.file": "it reads any file; set the claims one by one",
    "sasl.oauthbearer.assertion.jwt.template.file": "it reads any file; set the claims one by one",
}
_OBJECTS = frozenset({"opaque", "logger", "on_delivery", "on_commit", "default.topic.config"})
_OBJECT_END = re.compile(r"[._](cb|callback|callback[._]data)$")
_CLASSIC_ONLY = ("partition.assignment.strategy", "session.timeout.ms", "heartbeat.interval.ms")


def kafka_refusals(kafka: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each property that the sink does not pass on, with the sentence that says why.

    Names that librdkafka does not know are its own to refuse, when a client is made.
    """
    for key in kafka:
        name = key.strip().lower()
        if name in OWNED:
            yield key, f"not yours to set: {OWNED[name]}"
        elif name in LOADS_CODE:
            yield key, f"refused: {LOADS_CODE[name]}"
        elif name.startswith("test.mock."):
            yield key, "refused: it replaces the brokers by a mock inside the process"
        elif name in _OBJECTS or _OBJECT_END.search(name):
            yield key, "refused: a callback is code, and a file holds none"
    if kafka.get("isolation.level", "read_committed") != "read_committed":
        yield (
            "isolation.level",
            "expected read_committed: a record of an aborted transaction was never there",
        )
    if not kafka.get("bootstrap.servers", "").strip():
        yield "bootstrap.servers", "missing; expected host:port, or several with commas between"
    if kafka.get("group.protocol", "").lower() == "consumer":
        for key in _CLASSIC_ONLY:
            if key in kafka:
                yield key, "only for group.protocol classic; with consumer the brokers decide it"
    token_url = kafka.get("sasl.oauthbearer.token.endpoint.url")
    if token_url is not None and not is_safe_url(token_url):
        yield "sasl.oauthbearer.token.endpoint.url", "expected https, because the host is not local"


def is_safe_url(url: str) -> bool:
    """Say whether nobody on the way can read what is sent there: https, or this machine."""
    scheme = url.partition(":")[0].lower()
    return scheme == "https" or (scheme == "http" and is_local(url_host(url)))


def bootstrap_hosts(kafka: Mapping[str, str]) -> list[str]:
    """Return the hosts of `bootstrap.servers`, without protocols and ports."""
    hosts: list[str] = []
    for server in kafka.get("bootstrap.servers", "").split(","):
        address = server.strip().rpartition("://")[2]
        if address:
            hosts.append(url_host(f"kafka://{address}") or address)
    return hosts


def kafka_warnings(kafka: Mapping[str, str]) -> Iterator[str]:
    """Yield what is allowed and yet lets others read or fake the records."""
    protocol = kafka.get("security.protocol", "plaintext").lower()
    far = [host for host in bootstrap_hosts(kafka) if not is_local(host)]
    if protocol in ("plaintext", "sasl_plaintext") and far:
        yield (
            f"kafka.security.protocol: records travel to '{far[0]}' as plain text; "
            "set SSL or SASL_SSL"
        )
    if kafka.get("enable.ssl.certificate.verification", "true").lower() in ("false", "0", "f"):
        yield "kafka.enable.ssl.certificate.verification: anybody can pose as the broker"
    if kafka.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        yield (
            "kafka.ssl.endpoint.identification.algorithm: a broker with any certificate of the "
            "CA can pose as another"
        )


# --- what a table's properties may not say -----------------------------------------------------

_FEATURES = {
    "delta.enablechangedatafeed": "the change data feed",
    "delta.enablerowtracking": "row tracking",
    "delta.enabledeletionvectors": "deletion vectors",
    "delta.enableincommittimestamps": "in-commit timestamps",
    "delta.enabletypewidening": "type widening",
    "delta.enableicebergcompatv1": "Iceberg compatibility",
    "delta.enableicebergcompatv2": "Iceberg compatibility",
    "delta.enableicebergcompatv3": "Iceberg compatibility",
    "delta.enableicebergwritercompatv1": "Iceberg compatibility",
    "delta.enableicebergwritercompatv3": "Iceberg compatibility",
    "delta.universalformat.enabledformats": "Iceberg and Hudi metadata",
    "delta.columnmapping.mode": "column mapping",
}
_OFF = frozenset({"", "false", "none"})
_REFUSED = {
    "delta.settransactionretentionduration": "Delta would forget how far Kafka was read, and "
    "records would be read again",
    "delta.minreaderversion": "the sink chooses the protocol from the columns",
    "delta.minwriterversion": "the sink chooses the protocol from the columns",
    "delta.columnmapping.maxcolumnid": "this sink does not create tables with column mapping",
}
_REFUSED_BEGINNINGS = {
    "delta.constraints.": "this sink cannot evaluate constraints",
    "delta.feature.": "the sink chooses the table's features from the columns",
    "delta-sink.": "the sink keeps properties of its own there",
}
_RETENTIONS = {"delta.logretentionduration", "delta.deletedfileretentionduration"}
_KNOWN = (
    "delta.appendOnly",
    "delta.autoOptimize.autoCompact",
    "delta.autoOptimize.optimizeWrite",
    "delta.checkpoint.writeStatsAsJson",
    "delta.checkpoint.writeStatsAsStruct",
    "delta.checkpointInterval",
    "delta.checkpointPolicy",
    "delta.columnMapping.mode",
    "delta.compatibility.symlinkFormatManifest.enabled",
    "delta.dataSkippingNumIndexedCols",
    "delta.dataSkippingStatsColumns",
    "delta.deletedFileRetentionDuration",
    "delta.enableChangeDataFeed",
    "delta.enableDeletionVectors",
    "delta.enableExpiredLogCleanup",
    "delta.enableFullRetentionAndCleanup",
    "delta.enableInCommitTimestamps",
    "delta.enableRowTracking",
    "delta.enableTypeWidening",
    "delta.isolationLevel",
    "delta.logRetentionDuration",
    "delta.parquet.compression.codec",
    "delta.parquet.format.version",
    "delta.randomizeFilePrefixes",
    "delta.randomPrefixLength",
    "delta.sampleRetentionDuration",
    "delta.targetFileSize",
    "delta.tuneFileSizesForRewrites",
)
LOG_RETENTION_MS_MIN = 24 * 3_600_000


def delta_refusals(properties: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each table property that a table of this sink may not have, and why.

    Names are compared as Delta does, without regard to case.
    """
    for key, value in properties.items():
        name, setting = key.lower(), value.strip().lower()
        beginning = next((b for b in _REFUSED_BEGINNINGS if name.startswith(b)), None)
        if name in _FEATURES and setting not in _OFF:
            yield key, f"this sink does not create tables with {_FEATURES[name]}"
        elif name in _REFUSED:
            yield key, f"refused: {_REFUSED[name]}"
        elif beginning is not None:
            yield key, f"refused: {_REFUSED_BEGINNINGS[beginning]}"
        elif name == "delta.checkpointpolicy" and setting != "classic":
            yield key, "expected classic: this sink writes no other checkpoints"
        elif name in _RETENTIONS:
            yield from ((key, problem) for problem in _retention_problems(name, value))


def _retention_problems(name: str, value: str) -> Iterator[str]:
    length_ms = interval_text_ms(value)
    if length_ms is None:
        yield "expected an interval of weeks to milliseconds, like 'interval 7 days'"
    elif name == "delta.logretentionduration" and length_ms < LOG_RETENTION_MS_MIN:
        yield "expected 24 hours or more: a shorter life of log entries makes commits unsafe"


def delta_warnings(properties: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each property that begins like Delta's and that Delta does not define."""
    known = {name.lower() for name in _KNOWN} | set(_FEATURES) | set(_REFUSED)
    for key in properties:
        name = key.lower()
        if name.startswith("delta.") and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.8)
            spelled = next((k for k in _KNOWN if near and k.lower() == near[0]), None)
            hint = "" if spelled is None else f"; did you mean '{spelled}'?"
            yield key, f"Delta defines no property of this name{hint}"
