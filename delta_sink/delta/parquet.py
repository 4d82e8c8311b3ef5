"""Rows to data files: split by table partition, encoded as Parquet, described for the log.

Everything happens in memory and in the calling thread. What comes out is ready to be uploaded
under `DataFile.path` and then named by an `add` action; the name carries the file's tag.
"""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Struct

from delta_sink.delta.dictionaries import (
    DICTIONARY_BYTES_MAX,
    leaf_columns,
    repeating_columns,
)
from delta_sink.delta.hive import partition_path, partition_problems, partition_strings
from delta_sink.delta.schema import Field, TableSchema
from delta_sink.delta.statistics import COLUMNS_MAX, file_statistics
from delta_sink.errors import ConfigError

CODECS = ("zstd", "snappy", "gzip", "brotli", "lz4", "none")
_LEVELS = {"zstd": (1, 22), "gzip": (1, 9), "brotli": (0, 11)}
ROW_GROUP_ROWS = 262_144
BLOOM_FALSE_POSITIVES = 0.01


class FileLayout(Struct, frozen=True):
    """How the rows of a table become files.

    `dictionary` is "auto" (columns whose values repeat themselves), True or False for all columns,
    or the names of the columns that get one. `compression_level` None is the codec's
    own. `statistics_columns` is the table's `delta.dataSkippingNumIndexedCols`; -1 is all.

    Raises:
        ConfigError: the codec, the level, a column's name or a table partition column is none that
            can be written.
    """

    schema: TableSchema
    partition_by: tuple[str, ...] = ()
    compression: str = "zstd"
    compression_level: int | None = 1
    row_group_rows: int = ROW_GROUP_ROWS
    dictionary: Literal["auto"] | bool | tuple[str, ...] = "auto"
    bloom_filter_columns: tuple[str, ...] = ()
    statistics_columns: int = COLUMNS_MAX

    def __post_init__(self) -> None:
        problems = _codec_problems(self.compression, self.compression_level)
        if self.row_group_rows < 1:
            problems.append(f"row groups of {self.row_group_rows} rows, wanted at least 1")
        problems += partition_problems(self.schema, self.partition_by)
        problems += _bloom_problems(self)
        if isinstance(self.dictionary, tuple):
            problems += [
                f"there is no column {name!r} for a dictionary"
                for name in self.dictionary
                if name not in self.schema.names
            ]
        if problems:
            raise ConfigError([f"table: {problem}" for problem in problems])

    @property
    def file_fields(self) -> tuple[Field, ...]:
        """The columns that stand in the files: all but the table partition columns."""
        return tuple(f for f in self.schema.fields if f.name not in self.partition_by)


class DataFile(Struct, frozen=True, eq=False):
    """One Parquet file, and what its `add` action says of it.

    `path` is the object's path relative to the table (`hive.add_path` makes it `add.path`).
    `partition_values` has every table partition column, in order, as the log spells values.
    `stats` is JSON text.
    """

    path: str
    data: memoryview
    partition_values: dict[str, str | None]
    rows: int
    stats: str

    @property
    def size_bytes(self) -> int:
        """The size of the object."""
        return self.data.nbytes


def encode_files(
    rows: Sequence[pa.Table],
    layout: FileLayout,
    *,
    tag: int,
    unique_id: Callable[[], str],
) -> list[DataFile]:
    """Return one file for each table partition among `rows`, by their values, null last.

    Each of `rows` has exactly the columns of `layout.schema.arrow`; together they may be empty,
    which gives no file. Within a file rows keep their order. Where there is more than one table
    partition the rows are copied once; beside that, memory holds the files made so far.

    `tag` is the log version known now, before any upload; `unique_id` gives 32 hexadecimal
    digits that were never given before.
    """
    wanted = layout.schema.arrow
    for table in rows:
        assert table.schema.equals(wanted), f"rows have {table.schema}, wanted {wanted}"
    table = pa.concat_tables(rows) if rows else wanted.empty_table()
    if table.num_rows == 0:
        return []
    return [
        _encode_file(part, values, layout, tag=tag, unique_id=unique_id())
        for values, part in _split(table, layout.partition_by)
    ]


_NAME = re.compile(r"part-(\d{20})-[0-9a-f]{32}\.[a-z0-9]+\.parquet")


def file_name(tag: int, unique_id: str, compression: str) -> str:
    """Return the name of a data file; `tag_of` reads the tag from it."""
    name = f"part-{tag:020d}-{unique_id}.{compression}.parquet"
    assert _NAME.fullmatch(name), name
    return name


def tag_of(path: str) -> int | None:
    """Return the tag in a data file's path; None if this sink did not name the file."""
    match = _NAME.fullmatch(path.rpartition("/")[2])
    return None if match is None else int(match[1])


# --- table partitions ---------------------------------------------------------------------------


def _split(
    table: pa.Table, partition_by: tuple[str, ...]
) -> Iterator[tuple[tuple[str | None, ...], pa.Table]]:
    """Yield each table partition's values and its rows without the partition columns."""
    if not partition_by:
        yield (), table
        return
    group_of_row, groups = _groups(table, partition_by)
    rest = table.drop_columns(list(partition_by))
    if len(groups) == 1:
        yield groups[0], rest
        return
    rest = rest.take(pa.array(np.argsort(group_of_row, kind="stable")))
    first = 0
    for values, count in zip(groups, np.bincount(group_of_row), strict=True):
        yield values, rest.slice(first, int(count))
        first += int(count)


def _groups(
    table: pa.Table, partition_by: tuple[str, ...]
) -> tuple[npt.NDArray[np.int64], list[tuple[str | None, ...]]]:
    """Return the group of each row, and the values of each group; groups are in order."""
    group_of_row = np.zeros(table.num_rows, np.int64)
    groups: list[tuple[str | None, ...]] = [()]
    for name in partition_by:
        ranks, texts = _ranked(table[name])
        # Ranking anew after each column keeps the numbers below the count of rows.
        pairs, group_of_row = np.unique(group_of_row * len(texts) + ranks, return_inverse=True)
        groups = [(*groups[pair // len(texts)], texts[pair % len(texts)]) for pair in pairs]
    return group_of_row, groups


def _ranked(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """Return for each row the place of its value among the distinct values, and those, sorted."""
    encoded = column.combine_chunks().dictionary_encode()
    found = partition_strings(encoded.dictionary).to_pylist()
    texts: list[str | None] = [*sorted(set(found)), None]
    place = {text: rank for rank, text in enumerate(texts)}
    rank_of_code = np.array([place[text] for text in [*found, None]], np.int64)
    codes = pc.fill_null(encoded.indices, len(found)).to_numpy()
    return rank_of_code[codes], texts


# --- Parquet ------------------------------------------------------------------------------------


def _encode_file(
    table: pa.Table,
    values: tuple[str | None, ...],
    layout: FileLayout,
    *,
    tag: int,
    unique_id: str,
) -> DataFile:
    sink = pa.BufferOutputStream()
    with open_writer(sink, table, layout) as writer:
        writer.write_table(table, row_group_size=layout.row_group_rows)
    return DataFile(
        path=file_path(layout, values, tag=tag, unique_id=unique_id),
        data=memoryview(sink.getvalue()).cast("B"),
        partition_values=dict(zip(layout.partition_by, values, strict=True)),
        rows=table.num_rows,
        stats=file_statistics(layout.file_fields, table, columns_max=layout.statistics_columns),
    )


def file_path(
    layout: FileLayout, values: tuple[str | None, ...], *, tag: int, unique_id: str
) -> str:
    """Return where a data file of the table partition `values` lies, relative to the table."""
    folder = partition_path(layout.partition_by, values)
    name = file_name(tag, unique_id, layout.compression)
    return f"{folder}/{name}" if folder else name


def open_writer(
    sink: pa.NativeFile | io.RawIOBase, sample: pa.Table, layout: FileLayout
) -> pq.ParquetWriter:
    """Return a writer of rows like `sample` into `sink`, as `layout` has it.

    `sample` has the columns of the file; its rows decide which get a dictionary, and their number
    how large a row group's bloom filters are.
    """
    return pq.ParquetWriter(
        sink,
        sample.schema,
        compression=layout.compression,
        compression_level=layout.compression_level if layout.compression in _LEVELS else None,
        use_dictionary=_dictionary_columns(sample, layout),
        dictionary_pagesize_limit=DICTIONARY_BYTES_MAX,
        # No reader skips rows by what is in their lists and maps.
        write_statistics=[x.path for x in leaf_columns(sample.slice(0, 0)) if x.is_single] or False,
        # Readers of Delta take types from the log; Arrow's own copy would only cost bytes.
        store_schema=False,
        **_bloom_options(sample, layout),
    )


def _dictionary_columns(table: pa.Table, layout: FileLayout) -> bool | list[str]:
    """Return what ParquetWriter takes as `use_dictionary`: paths of leaf columns."""
    if isinstance(layout.dictionary, bool):
        return layout.dictionary
    if layout.dictionary == "auto":
        chosen = repeating_columns(table, layout.row_group_rows)
    else:
        named = [name for name in table.schema.names if name in layout.dictionary]
        chosen = [leaf.path for leaf in leaf_columns(table.slice(0, 0).select(named))]
    return chosen or False


# --- what a layout may ask for ------------------------------------------------------------------


def _codec_problems(compression: str, level: int | None) -> list[str]:
    if compression not in CODECS:
        return [f"unknown compression {compression!r}, wanted one of {', '.join(CODECS)}"]
    if level is None or compression not in _LEVELS:
        return []
    lowest, highest = _LEVELS[compression]
    if lowest <= level <= highest:
        return []
    return [f"{compression} has no level {level}, wanted {lowest} to {highest}"]


_BLOOM_TYPES = frozenset(
    {"string", "long", "integer", "float", "double", "binary", "date", "timestamp", "timestamp_ntz"}
)


def _bloom_problems(layout: FileLayout) -> list[str]:
    problems: list[str] = []
    if layout.bloom_filter_columns and not _has_bloom_filters():
        problems.append(f"pyarrow {pa.__version__} writes no bloom filters, wanted none or a newer")
    files = {f.name: f for f in layout.file_fields}
    for name in layout.bloom_filter_columns:
        if name not in files:
            problems.append(f"there is no column {name!r} in the files for a bloom filter")
        elif files[name].type not in _BLOOM_TYPES:
            problems.append(f"column {name!r} has a type that gets no bloom filter")
    return problems


def _has_bloom_filters() -> bool:
    return "bloom_filter_options" in inspect.signature(pq.ParquetWriter.__init__).parameters


def _bloom_options(table: pa.Table, layout: FileLayout) -> dict[str, object]:
    if not layout.bloom_filter_columns:
        return {}
    distinct_max = min(table.num_rows, layout.row_group_rows)
    options = {"ndv": distinct_max, "fpp": BLOOM_FALSE_POSITIVES}
    return {"bloom_filter_options": dict.fromkeys(layout.bloom_filter_columns, options)}
