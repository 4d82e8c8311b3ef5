"""Which tables this sink may append to: an allow-list, with one sentence for each refusal.

What counts is what is in use, not what a legacy writer version implies or a feature list merely
names: a plain table of version (1,2) "supports" invariants without having any.

Source: Delta protocol, "Table Features", "Requirements for Writers".
"""

from __future__ import annotations

import re

from delta_sink.delta.actions import Metadata, Protocol
from delta_sink.errors import TableRefused

LOG_STORE_PROPERTY = "delta-sink.logStore"
"""The table property that says through which kind of log store the table is written."""

READER_VERSION_MAX = 3
WRITER_VERSION_MAX = 7
LOG_RETENTION_MIN_MS = 24 * 3_600_000

# Appending needs nothing more for these than what is checked below or what we do anyway:
# deletion vectors and change data concern only those who delete, V2 checkpoints only those who
# write checkpoints. deltalake lists variantType wherever it lists anything; a column of that type
# is refused where the schema is read.
_ALLOWED = frozenset(
    {
        "appendOnly",
        "invariants",
        "checkConstraints",
        "changeDataFeed",
        "generatedColumns",
        "identityColumns",
        "allowColumnDefaults",
        "columnMapping",
        "deletionVectors",
        "timestampNtz",
        "v2Checkpoint",
        "vacuumProtocolCheck",
        "inCommitTimestamp",
        "typeWidening",
        "typeWidening-preview",
        "variantType",
        "variantType-preview",
        "icebergCompatV1",
        "icebergCompatV2",
    }
)

# In use when the property has any value but these.
_OFF_VALUES = frozenset({None, "", "false", "none"})
_REFUSED_PROPERTIES = {
    "delta.columnMapping.mode": "column mapping",
    "delta.enableRowTracking": "row tracking",
    "delta.enableInCommitTimestamps": "in-commit timestamps",
    "delta.enableTypeWidening": "type widening",
    "delta.enableIcebergCompatV1": "Iceberg compatibility",
    "delta.enableIcebergCompatV2": "Iceberg compatibility",
    "delta.enableIcebergCompatV3": "Iceberg compatibility",
}
_REFUSED_FIELD_METADATA = {
    "delta.invariants": "an invariant",
    "delta.generationExpression": "a generated column",
    "delta.identity.start": "an identity column",
    "delta.typeChanges": "a widened type",
    "CURRENT_DEFAULT": "a default value",
}
_UNITS_MS = {
    "millisecond": 1,
    "second": 1_000,
    "minute": 60_000,
    "hour": 3_600_000,
    "day": 86_400_000,
    "week": 604_800_000,
}


def refuse_unsupported(protocol: Protocol, metadata: Metadata) -> None:
    """Return if this sink may append to such a table.

    Raises:
        TableRefused: it may not; the sentence names what is in the way.
    """
    if (
        protocol.min_reader_version > READER_VERSION_MAX
        or protocol.min_writer_version > WRITER_VERSION_MAX
    ):
        raise TableRefused(
            f"the table needs reader version {protocol.min_reader_version} and writer version "
            f"{protocol.min_writer_version}; this sink implements up to {READER_VERSION_MAX} "
            f"and {WRITER_VERSION_MAX}"
        )
    features = {*(protocol.writer_features or ()), *(protocol.reader_features or ())}
    unknown = sorted(features - _ALLOWED)
    if unknown:
        raise TableRefused(
            f"the table uses the feature '{unknown[0]}', which this sink does not implement"
        )
    _refuse_properties(metadata)
    for key, what in _REFUSED_FIELD_METADATA.items():
        # A schema string is JSON, so that a key appears in it only as a quoted name.
        if f'"{key}"' in metadata.schema_string:
            raise TableRefused(f"the table's schema has {what}, which this sink cannot evaluate")


def _refuse_properties(metadata: Metadata) -> None:
    properties = metadata.configuration
    for name, what in _REFUSED_PROPERTIES.items():
        if properties.get(name) not in _OFF_VALUES:
            raise TableRefused(
                f"the table uses {what} ({name}), which this sink does not implement"
            )
    for name in sorted(properties):
        if name.startswith("delta.constraints."):
            raise TableRefused(
                f"the table has the CHECK constraint '{name.removeprefix('delta.constraints.')}', "
                f"which this sink cannot evaluate"
            )
    if properties.get("delta.setTransactionRetentionDuration") is not None:
        raise TableRefused(
            "the table has delta.setTransactionRetentionDuration: Delta would forget how far "
            "Kafka was read, and records would be read again; remove the property"
        )
    retention = properties.get("delta.logRetentionDuration")
    if retention is not None and interval_ms(retention) < LOG_RETENTION_MIN_MS:
        raise TableRefused(
            f"the table has delta.logRetentionDuration '{retention}': log entries that live less "
            f"than 24 hours make commits unsafe; set 24 hours or more"
        )


def refuse_log_store(metadata: Metadata, kind: str) -> None:
    """Return if the table is written through the log store `kind`, as its property says.

    Raises:
        TableRefused: the property is missing or names another kind.
    """
    found = metadata.configuration.get(LOG_STORE_PROPERTY)
    if found is None:
        raise TableRefused(
            f"the table was not made by this sink and does not say how it is written: run "
            f"`delta-sink init` once, which records {LOG_STORE_PROPERTY}={kind} in it"
        )
    if found != kind:
        raise TableRefused(
            f"the table is written through the log store '{found}', this sink is configured for "
            f"'{kind}': both at once would lose commits; set table.log_store to '{found}'"
        )


def interval_ms(text: str) -> int:
    """Return the milliseconds of a Delta interval such as `interval 7 days`.

    Raises:
        TableRefused: it is none, or has months or years, whose length varies.
    """
    words = text.strip().lower().removeprefix("interval").split()
    pairs = list(zip(words[::2], words[1::2], strict=False))
    if not pairs or len(words) % 2:
        raise TableRefused(f"expected an interval such as 'interval 7 days', got '{text}'")
    total_ms = 0
    for number, unit in pairs:
        unit_ms = _UNITS_MS.get(unit.removesuffix("s"))
        if unit_ms is None or not re.fullmatch(r"\d+", number):
            raise TableRefused(f"expected an interval such as 'interval 7 days', got '{text}'")
        total_ms += int(number) * unit_ms
    return total_ms
