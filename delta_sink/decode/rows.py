"""What every format shares: the spec, the records around the values, the columns beside them.

A format decodes the bytes of values and nothing else (`DecodeValues`). Tombstones, metadata
columns, derived columns, the check of table partition values and the outcome of each part are the
same for all of them and live here. All of it works on whole columns; a record is touched alone
only if it is bad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from delta_sink.decode import BadRecord, Decoded, PartOutcome
from delta_sink.decode.packed import PackedValues, Positions
from delta_sink.delta.hive import unusable
from delta_sink.delta.schema import METADATA_FIELDS, Derived, TableSchema
from delta_sink.delta.types import Field, type_text
from delta_sink.errors import DataError
from delta_sink.model import Records, runs_of

Reason = Literal[
    "bad_partition_value",
    "duplicate_key",
    "empty_value",
    "invalid_json",
    "invalid_utf8",
    "missing_field",
    "not_an_object",
    "not_exact",
    "out_of_range",
    "tombstone",
    "too_deep",
    "too_large",
    "type_mismatch",
    "unknown_field",
]
"""Why a record is bad: the bounded names that metrics and dead letters carry."""

TIMESTAMP_MIN_US = -62_135_596_800_000_000
TIMESTAMP_MAX_US = 253_402_300_799_999_999
"""The first microsecond of the year 1 and the last of the year 9999: what all engines can read."""

NESTING_LIMIT = 200
"""No spec may allow deeper values: the parsers recurse, and Python's stack ends near 1,000."""


class DecodeSpec(Struct, frozen=True):
    """What values are decoded into, and the operator's choices about them.

    Value columns are those of the table that are neither derived nor metadata columns.
    """

    schema: TableSchema
    derived: tuple[Derived, ...] = ()
    partition_by: tuple[str, ...] = ()
    metadata_columns: tuple[str, ...] = ()
    tombstones: Literal["skip", "dead_letter", "null_row"] = "skip"
    unknown_fields: Literal["ignore", "fail"] = "ignore"
    timestamp_format: Literal["iso8601", "epoch_s", "epoch_ms", "epoch_us"] = "iso8601"
    binary: Literal["base64", "hex"] = "base64"
    record_bytes_max: int = 16 * 1024 * 1024
    nesting_max: int = 64

    def __post_init__(self) -> None:
        assert 1 <= self.nesting_max <= NESTING_LIMIT, self.nesting_max
        assert self.record_bytes_max > 0, self.record_bytes_max
        assert set(self.metadata_columns) <= set(METADATA_FIELDS), self.metadata_columns

    @property
    def value_fields(self) -> tuple[Field, ...]:
        """The columns that come from the record's value, in the table's order."""
        beside = {d.column for d in self.derived}
        beside |= {METADATA_FIELDS[name].name for name in self.metadata_columns}
        return tuple(f for f in self.schema.fields if f.name not in beside)


class Values(Struct, frozen=True):
    """What a list of values became: `len(taken) + len(bad)` is the length of that list.

    `rows` has the value columns with their Arrow types; row i is the value at `taken[i]`.
    """

    rows: pa.Table
    taken: Positions
    bad: tuple[tuple[int, DataError], ...] = ()
    unknown_fields: int = 0


class Sure(Struct, frozen=True):
    """The rows that somebody vouches for, in order; who is not in `taken` is still undecided.

    `taken` are the places of the values, counted from the first one that was looked at.
    """

    rows: pa.Table
    taken: Positions
    unknown_fields: int = 0


DecodeValues = Callable[[Sequence[bytes]], Values]
"""One format: values to value columns. It gets no tombstones, but may get empty values.

What it gets is a `PackedValues`: going through it makes an object of each value, its columns do
not.
"""


def bad(reason: Reason, message: str, redacted: str) -> DataError:
    """Return the error of one record; position and record are put before it later."""
    return DataError(reason=reason, message=message, redacted=redacted)


def decode_chunk(spec: DecodeSpec, chunk: Sequence[Records], decode: DecodeValues) -> Decoded:
    """Return rows and outcomes of `chunk`, its values decoded by `decode` in one call."""
    values = PackedValues.concatenated([part.values for part in chunk])
    nulls = values.nulls
    present = np.delete(np.arange(len(values)), nulls) if len(nulls) else np.arange(len(values))
    decoded = decode(cast("Sequence[bytes]", values.without_nulls()))
    assert decoded.rows.num_rows == len(decoded.taken) or not spec.value_fields, "one place a row"
    assert len(decoded.taken) + len(decoded.bad) == len(present), "every value has one outcome"
    problems = {int(present[i]): error for i, error in decoded.bad}
    rows, places = decoded.rows, present[decoded.taken]
    if len(nulls) and spec.tombstones == "null_row":
        rows, places = _with_null_rows(spec, rows, places, nulls, problems)
    elif len(nulls) and spec.tombstones == "dead_letter":
        problems |= {int(i): _TOMBSTONE for i in nulls}
    bounds = _bounds(chunk)
    table = _table(spec, _Beside(chunk, bounds, places), rows)
    table, places = _without_unusable(spec, table, places, problems)
    skipped = nulls if spec.tombstones == "skip" else nulls[:0]
    parts = _outcomes(chunk, bounds, places, problems, skipped)
    return Decoded(table, parts, decoded.unknown_fields)


_TOMBSTONE = bad("tombstone", "no value (a tombstone)", "no value (a tombstone)")


def _with_null_rows(
    spec: DecodeSpec,
    rows: pa.Table,
    places: Positions,
    nulls: Positions,
    problems: dict[int, DataError],
) -> tuple[pa.Table, Positions]:
    """Return rows and places with one row of nulls a tombstone, unless a column forbids it."""
    required = [f for f in spec.value_fields if not f.nullable]
    if required:
        sentence = (
            f"field '{required[0].name}': expected {type_text(required[0].type)}, got a tombstone"
        )
        error = bad("missing_field", sentence, sentence)
        problems |= {int(i): error for i in nulls}
        return rows, places
    blank = pa.table(
        [pa.nulls(len(nulls), column.type) for column in rows.schema], schema=rows.schema
    )
    return in_order(pa.concat_tables([rows, blank]), np.concatenate([places, nulls]))


def in_order(rows: pa.Table, places: Positions) -> tuple[pa.Table, Positions]:
    """Return both sorted by place; each place must occur once."""
    order = np.argsort(places, kind="stable")
    return rows.take(pa.array(order)), places[order]


# --- the columns beside the value ---------------------------------------------------------------


def _table(spec: DecodeSpec, beside: _Beside, rows: pa.Table) -> pa.Table:
    """Return the table's columns in the table's order: from value, record, and other columns."""
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    for name in spec.metadata_columns:
        columns[METADATA_FIELDS[name].name] = getattr(beside, name)()
    for derived in spec.derived:
        wanted = spec.schema.arrow.field(derived.column).type
        columns[derived.column] = _derive(derived, columns[derived.source]).cast(wanted)
    names = spec.schema.arrow.names
    # A non-nullable column that holds nulls is dealt with next; until then the schema must wait.
    return pa.Table.from_arrays([columns[name] for name in names], names=names)


class _Beside:
    """The metadata columns of the records at `places`, each made for all of them at once."""

    def __init__(self, chunk: Sequence[Records], bounds: Positions, places: Positions) -> None:
        self._chunk = chunk
        self._bounds = bounds
        self._places = places
        self._all = len(places) == bounds[-1]

    def _pick(self, array: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return array if self._all else array[self._places]

    def _repeated(self, numbers: Sequence[int]) -> npt.NDArray[np.int32]:
        """One number a part, repeated for each of its rows."""
        return np.repeat(np.array(numbers, np.int32), _rows_a_part(self._bounds, self._places))

    def topic(self) -> pa.Array:
        topics = [part.tp.topic for part in self._chunk]
        names = sorted(set(topics))
        if len(names) == 1:
            return pa.repeat(names[0], len(self._places))
        places = self._repeated([names.index(topic) for topic in topics])
        return pa.array(names, pa.string()).take(pa.array(places))

    def partition(self) -> pa.Array:
        return pa.array(self._repeated([part.tp.partition for part in self._chunk]), pa.int32())

    def offset(self) -> pa.Array:
        return pa.array(self._pick(self._numbers("offsets")), pa.int64())

    def timestamp(self) -> pa.Array:
        """Kafka's timestamps; null where Kafka has none (-1) or no engine could read it."""
        millis = self._pick(self._numbers("timestamps_ms"))
        absent = (
            (millis == -1)
            | (millis < TIMESTAMP_MIN_US // 1000)
            | (millis > TIMESTAMP_MAX_US // 1000)
        )
        micros = np.where(absent, 0, millis) * 1000
        return pa.array(micros, pa.int64(), mask=absent).view(pa.timestamp("us", tz="UTC"))

    def key(self) -> pa.Array:
        return pa.array(self._listed("keys"), pa.binary())

    def headers(self) -> pa.Array:
        """A list of (key, value) a record, in Kafka's order; empty where it has none."""
        lists = self._listed("headers")
        starts = np.zeros(len(lists) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, lists), np.int32, len(lists)), out=starts[1:])
        flat = list(chain.from_iterable(lists))
        pairs = pa.StructArray.from_arrays(
            [
                pa.array([name for name, _ in flat], pa.string()),
                pa.array([value for _, value in flat], pa.binary()),
            ],
            names=["key", "value"],
        )
        return pa.ListArray.from_arrays(pa.array(starts), pairs).cast(_HEADERS)

    def _listed(self, name: str) -> Sequence[Sequence[tuple[str, bytes | None]]]:
        """The column `name` of all parts, only the rows' records."""
        columns = [getattr(part, name) for part in self._chunk]
        self._check(name, columns)
        listed = columns[0] if len(columns) == 1 else list(chain.from_iterable(columns))
        return listed if self._all else [listed[i] for i in self._places]

    def _numbers(self, name: str) -> npt.NDArray[np.int64]:
        """The column `name` of all parts as one array."""
        columns = [_as_array(getattr(part, name)) for part in self._chunk]
        self._check(name, columns)
        return np.concatenate(columns) if columns else np.empty(0, np.int64)

    def _check(self, name: str, columns: Sequence[Sequence[object] | Positions]) -> None:
        found = np.fromiter(map(len, columns), np.int64, len(columns))
        assert (found == np.diff(self._bounds)).all(), f"{name} were not read from Kafka"


_HEADERS = TableSchema((METADATA_FIELDS["headers"],)).arrow.field(0).type


def _as_array(numbers: Sequence[int]) -> npt.NDArray[np.int64]:
    if isinstance(numbers, range):  # numpy would ask it for each of its numbers
        return np.arange(numbers.start, numbers.stop, numbers.step, dtype=np.int64)
    return np.asarray(numbers, np.int64)


def _derive(derived: Derived, source: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return the part of a timestamp that the column holds, in UTC; null stays null."""
    # The zone is UTC or none: the wall clock is the same, and no zone database is asked.
    wall = source.cast(pa.timestamp("us"))
    match derived.function:
        case "date":
            return pc.floor_temporal(wall, unit="day").cast(pa.date32())
        case "year":
            return pc.year(wall)
        case "month":
            return pc.month(wall)
        case "day":
            return pc.day(wall)
        case "hour":
            return pc.hour(wall)


# --- what cannot stand in the table -------------------------------------------------------------


def _without_unusable(
    spec: DecodeSpec, table: pa.Table, places: Positions, problems: dict[int, DataError]
) -> tuple[pa.Table, Positions]:
    """Return only rows that the table can hold; the others are added to `problems`."""
    drop = np.zeros(len(places), np.bool_)
    for name in spec.partition_by:
        mask = _flags(unusable(table[name], name))
        for row in np.flatnonzero(mask & ~drop):
            problems[int(places[row])] = _bad_partition_value(name, table[name][int(row)])
        drop |= mask
    for field in spec.schema.fields:
        if not field.nullable and table[field.name].null_count:
            mask = _flags(table[field.name].is_null())
            error = missing_field(field.name, field)
            problems |= {int(places[row]): error for row in np.flatnonzero(mask & ~drop)}
            drop |= mask
    if drop.any():
        table, places = table.filter(pa.array(~drop)), places[~drop]
    # Nothing is null any more that may not be, and the types were right before.
    return pa.Table.from_arrays(table.columns, schema=spec.schema.arrow), places


def _flags(mask: pa.BooleanArray | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    flat = mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask
    flags: npt.NDArray[np.bool_] = flat.fill_null(False).to_numpy(zero_copy_only=False)
    return flags


def _bad_partition_value(name: str, value: pa.Scalar) -> DataError:
    wanted = f"field '{name}': expected a table partition value that can be part of a path"
    shown = shortened(repr(value.as_py()))
    return bad("bad_partition_value", f"{wanted}, got {shown}", f"{wanted}, got another")


def missing_field(path: str, field: Field) -> DataError:
    """Return the error of a null or absent field that may not be null."""
    sentence = f"field '{path}': expected {type_text(field.type)}, got null or nothing"
    return bad("missing_field", sentence, sentence)


SHOWN_MAX = 120
"""How much of a bad value stands in the dead letter's sentence, in characters."""


def shortened(text: str) -> str:
    """Return `text`, cut to what fits a sentence."""
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"


# --- the outcome of each part -------------------------------------------------------------------


def _bounds(chunk: Sequence[Records]) -> npt.NDArray[np.int64]:
    """Return where each part begins in the chunk, and where the last one ends."""
    bounds = np.zeros(len(chunk) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, chunk), np.int64, len(chunk)), out=bounds[1:])
    return bounds


def _rows_a_part(bounds: Positions, places: Positions) -> Positions:
    counts: Positions = np.diff(np.searchsorted(places, bounds))
    return counts


def _outcomes(
    chunk: Sequence[Records],
    bounds: Positions,
    places: Positions,
    problems: dict[int, DataError],
    skipped: Positions,
) -> tuple[PartOutcome, ...]:
    rows = _rows_a_part(bounds, places)
    if not problems and not len(skipped):
        assert (rows == np.diff(bounds)).all(), "every record has one outcome"
        return tuple(map(PartOutcome, (part.tp for part in chunk), rows.tolist()))
    ordered = sorted(problems)
    bad_at = np.searchsorted(np.array(ordered, np.int64), bounds)
    skipped_at = np.searchsorted(skipped, bounds)
    parts = []
    for i, part in enumerate(chunk):
        first = int(bounds[i])
        here = ordered[bad_at[i] : bad_at[i + 1]]
        gone = skipped[skipped_at[i] : skipped_at[i + 1]]
        outcome = PartOutcome(
            part.tp,
            int(rows[i]),
            tuple(_bad_record(part, place - first, problems[place]) for place in here),
            runs_of(part.offsets[int(place) - first] for place in gone),
        )
        assert outcome.rows + len(outcome.bad) + len(gone) == len(part), part.tp
        parts.append(outcome)
    return tuple(parts)


def _bad_record(part: Records, index: int, error: DataError) -> BadRecord:
    offset = int(part.offsets[index])
    where = f"{part.tp}@{offset}: "
    return BadRecord(offset, index, error.reason, where + error.message, where + error.redacted)
