"""A writer's view of its table: what its schema means for decoding and for files."""

from __future__ import annotations

from msgspec import Struct

from delta_sink.decode import Decoder
from delta_sink.decode.json import JsonDecoder
from delta_sink.decode.rows import DecodeSpec
from delta_sink.delta.parquet import FileLayout
from delta_sink.delta.plan import SameTable
from delta_sink.delta.schema import METADATA_FIELDS, TableSchema, differences
from delta_sink.delta.state import LogState
from delta_sink.delta.table import TableSpec
from delta_sink.errors import TableRefused
from delta_sink.settings import Settings


class TableView(Struct, frozen=True):
    """Decoder and file layout for the table as `same` has it; made anew when that changes."""

    same: SameTable
    decoder: Decoder
    layout: FileLayout


def table_spec(settings: Settings) -> TableSpec | None:
    """Return the table that the configuration asks for, or None without `table.schema`."""
    table = settings.table
    columns = table.columns
    if columns is None:
        return None
    metadata = tuple(METADATA_FIELDS[name] for name in table.metadata_columns)
    return TableSpec(
        schema=TableSchema((*columns.fields, *metadata)),
        partition_by=tuple(table.partition_by),
        properties=table.creation_properties,
        comment=table.comment,
    )


def view_of(settings: Settings, state: LogState) -> TableView:
    """Return the view of the table at `state`.

    Raises:
        TableRefused: table and configuration disagree; the sentence lists where.
    """
    schema = TableSchema.from_json(state.metadata.schema_string)
    partition_by = state.metadata.partition_columns
    _refuse_disagreement(settings, schema, partition_by)
    table, value = settings.table, settings.value
    columns = table.columns
    spec = DecodeSpec(
        schema=schema,
        derived=columns.derived if columns is not None else (),
        partition_by=partition_by,
        metadata_columns=tuple(table.metadata_columns),
        tombstones=value.tombstones,
        unknown_fields=value.unknown_fields,
        timestamp_format=value.timestamp_format,
        binary=value.binary,
        record_bytes_max=value.record_bytes_max,
        nesting_max=value.nesting_max,
    )
    layout = file_layout(settings, schema, partition_by)
    return TableView(SameTable.of(state), JsonDecoder(spec), layout)


def file_layout(
    settings: Settings, schema: TableSchema, partition_by: tuple[str, ...]
) -> FileLayout:
    """Return how data files of such a table are written, as the configuration says.

    Raises:
        ConfigError: a column that it names is not in the table.
    """
    parquet = settings.table.parquet
    return FileLayout(
        schema=schema,
        partition_by=partition_by,
        compression=parquet.compression,
        compression_level=parquet.compression_level,
        row_group_rows=parquet.row_group_rows,
        dictionary=parquet.dictionary,
        bloom_filter_columns=tuple(parquet.bloom_filter_columns),
    )


def _refuse_disagreement(
    settings: Settings, found: TableSchema, partition_by: tuple[str, ...]
) -> None:
    """Refuse a table that is not the one that the configuration describes."""
    table = settings.table
    wrong: list[str] = []
    wanted = table_spec(settings)
    if wanted is not None:
        wrong += differences(wanted.schema, found)
        if wanted.partition_by != partition_by:
            wrong.append(
                f"table.partition_by is {list(wanted.partition_by)}, the table has "
                f"{list(partition_by)}"
            )
    else:
        missing = [
            METADATA_FIELDS[name].name
            for name in table.metadata_columns
            if METADATA_FIELDS[name].name not in found.names
        ]
        if missing:
            wrong.append(
                f"the table has no column {missing[0]}: add it, or take it out of "
                f"table.metadata_columns (`[]` for none)"
            )
    if wrong:
        raise TableRefused(f"{table.uri} is not as configured: {'; '.join(wrong)}")
