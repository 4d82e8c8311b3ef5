"""JSON values to Arrow: three paths, each for what the one before it leaves.

A chunk is cut into slices of a few MiB. The plain path (`native`, where it is compiled) takes all
values of a slice that are beyond doubt, one by one. What it leaves is decided by the others: is it
more than a few values, they go to the fast path together, which answers with rows for those that
it is sure of, or refuses. A refused slice is split: at the record that the parser blames if it
names one (a hint, which the exact path checks), else in halves, until few values are left; these
the exact path decides. Splitting has a budget in bytes, so that a slice full of bad records costs
a few passes and then goes to the exact path whole.

The fast path is a Protocol: another parser can take pyarrow's place if it keeps the promise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from msgspec import Struct
from msgspec.structs import replace

from delta_sink.decode import Decoded
from delta_sink.decode.columns import WHOLE, Indexes, Mode, convert, holds, is_readable, read_as
from delta_sink.decode.exact import ExactDecoder
from delta_sink.decode.native import native_decoder
from delta_sink.decode.packed import PackedValues, Positions
from delta_sink.decode.rows import DecodeSpec, Sure, Values, decode_chunk, in_order
from delta_sink.decode.scalars import INTEGER_BITS
from delta_sink.decode.screen import Screened, many_places, screen
from delta_sink.delta.types import ArrayType, DataType, Field, StructType, arrow_field
from delta_sink.errors import DataError
from delta_sink.model import Records

SLICE_BYTES_MAX = 4 * 1024 * 1024
"""What one native pass sees at most, unless a single value is larger. More is no faster: what a
pass leaves behind is then no longer in the processor's cache."""
EXACT_VALUES_MAX = 8
"""So few values are not worth another native pass (its fixed cost is that of 20 exact ones)."""
SPLIT_BUDGET = 4
"""A slice may be passed over so many times before the exact path takes what is left."""
FIXED_COST = 500
"""What a native pass costs apart from its values, in values."""
OBJECTS_MAX = 256
"""So many values are Python objects at one time: more wake the garbage collector for nothing."""
_MODES_MAX = 4
"""The first mode, and one more for each attribute of `Mode`."""
_NOWHERE: Positions = np.empty(0, np.int64)


class Refused(Struct, frozen=True):
    """The fast path decides nothing about these values; `suspect` may be the one at fault."""

    suspect: int | None = None


class FastPath(Protocol):
    """Decodes many values at once. It may refuse anything, but a row it gives is exact.

    Exact means: the row, and the number of unknown fields, that `ExactDecoder` would give, for
    values that it would take. One instance serves one call of the decoder and may learn from one
    slice to the next.
    """

    def __call__(self, values: Sequence[bytes]) -> Sure | Refused: ...


class JsonDecoder:
    """A `Decoder` for JSON objects. Holds nothing that changes; safe in several jobs at once."""

    def __init__(
        self, spec: DecodeSpec, fast: Callable[[DecodeSpec], FastPath] | None = None
    ) -> None:
        """Prepare for the table of `spec`; `fast` makes a fast path that takes the others' place."""
        self._spec = spec
        self._exact = ExactDecoder(spec)
        self._plain = native_decoder(spec) if fast is None else None
        self._fast = fast if fast is not None else ArrowFastPath

    def decode(self, chunk: Sequence[Records]) -> Decoded:
        """Return the rows and the outcomes of `chunk`."""
        return decode_chunk(self._spec, chunk, self._decode_values)

    def _decode_values(self, values: Sequence[bytes]) -> Values:
        packed = PackedValues.of(values)
        if self._plain is None:
            return self._decode_by_splitting(packed)
        work = _Work(cast("Sequence[bytes]", packed), self._exact)
        left = [_NOWHERE]
        for first, after in _slices(packed):
            left.append(work.take(self._plain.decode(packed, first, after), first, after))
        places = np.concatenate(left)
        if len(places) <= EXACT_VALUES_MAX:
            work.decide(places)
        else:
            others = PackedValues.of([packed[place] for place in places.tolist()])
            work.take_decided(self._decode_by_splitting(others), places)
        return work.result()

    def _decode_by_splitting(self, packed: PackedValues) -> Values:
        """Return the outcome of all values, by the fast path and the exact one."""
        work = _Work(cast("Sequence[bytes]", packed), self._exact)
        fast = self._fast(self._spec)
        for first, after in _slices(packed):
            work.split(fast, first, after)
        return work.result()


def _slices(values: PackedValues) -> list[tuple[int, int]]:
    """Return half-open ranges of values with at most `SLICE_BYTES_MAX` each, or one value."""
    sizes = np.cumsum(values.lengths)
    slices: list[tuple[int, int]] = []
    first, before = 0, 0
    while first < len(values):
        after = int(np.searchsorted(sizes, before + SLICE_BYTES_MAX, side="right"))
        after = max(after, first + 1)
        slices.append((first, after))
        first, before = after, int(sizes[after - 1])
    return slices


class _Work:
    """The rows gathered so far for one list of values, from both paths."""

    def __init__(self, values: Sequence[bytes], exact: ExactDecoder) -> None:
        self._values = values
        self._exact = exact
        self._tables: list[pa.Table] = []
        self._places: list[Positions] = []
        self._unknown = 0
        self._exact_rows: list[dict[str, object]] = []
        self._exact_places: list[int] = []
        self._bad: list[tuple[int, DataError]] = []

    def split(self, fast: FastPath, first: int, after: int) -> None:
        """Decide the values from `first` up to `after`: fast where possible, else one by one."""
        budget = SPLIT_BUDGET * (after - first)
        open_ranges = [(first, after)]
        while open_ranges:
            low, high = open_ranges.pop()
            if high - low <= EXACT_VALUES_MAX or budget < 0:
                self.decide(range(low, high))
                continue
            outcome = fast(self._values[low:high])
            if isinstance(outcome, Sure):
                self.decide(self.take(outcome, low, high))
                budget -= high - low + FIXED_COST
            elif outcome.suspect is not None and 0 <= outcome.suspect < high - low:
                suspect = low + outcome.suspect
                self.decide(range(suspect, suspect + 1))
                open_ranges += _growing(suspect + 1, high, outcome.suspect)
                open_ranges += _whole(low, suspect)
                budget -= outcome.suspect + FIXED_COST
            else:
                open_ranges += _halves(low, high)
                budget -= high - low + FIXED_COST

    def take(self, sure: Sure, low: int, high: int) -> Positions:
        """Take the rows of the values from `low` up to `high`; return the places left open."""
        self._tables.append(sure.rows)
        self._places.append(sure.taken + low)
        self._unknown += sure.unknown_fields
        if len(sure.taken) == high - low:
            return _NOWHERE
        left = np.ones(high - low, np.bool_)
        left[sure.taken] = False
        return np.flatnonzero(left) + low

    def take_decided(self, decided: Values, places: Positions) -> None:
        """Take the outcome of all values at `places`."""
        self._tables.append(decided.rows)
        self._places.append(places[decided.taken])
        self._unknown += decided.unknown_fields
        self._bad += [(int(places[i]), error) for i, error in decided.bad]

    def decide(self, places: Sequence[int] | Positions) -> None:
        """Let the exact path decide the values at `places`."""
        for place in places:
            try:
                row, unknown = self._exact.decode(self._values[place])
            except DataError as error:
                # A kept traceback would keep the frames, and with them the parsed value.
                error.__traceback__ = error.__context__ = None
                self._bad.append((int(place), error))
            else:
                self._exact_rows.append(row)
                self._exact_places.append(int(place))
                self._unknown += unknown

    def result(self) -> Values:
        """Return everything in the order of the values."""
        tables, places = self._tables, self._places
        if self._exact_rows or not tables:
            tables = [*tables, self._exact.table(self._exact_rows)]
            places = [*places, np.array(self._exact_places, np.int64)]
        rows, taken = pa.concat_tables(tables), np.concatenate(places)
        if (np.diff(taken) < 0).any():
            rows, taken = in_order(rows, taken)
        return Values(rows, taken, tuple(self._bad), self._unknown)


def _whole(low: int, high: int) -> list[tuple[int, int]]:
    return [(low, high)] if high > low else []


def _growing(low: int, high: int, gap: int) -> list[tuple[int, int]]:
    """Return ranges that grow from a few times `gap`: the next bad value is likely as far away."""
    ranges: list[tuple[int, int]] = []
    size = 4 * gap + 64
    while low < high:
        ranges.append((low, min(low + size, high)))
        low, size = low + size, size * 2
    return ranges[::-1]


def _halves(low: int, high: int) -> list[tuple[int, int]]:
    middle = (low + high) // 2
    return _whole(middle, high) + _whole(low, middle)


# --- pyarrow's parser as the fast path ----------------------------------------------------------


class ArrowFastPath:
    """`pyarrow.json` with explicit schema, never inferred, on one block and the calling thread.

    A pass that lets no unknown field through has seen every key of every object, so that it found
    every duplicate too. If there are unknown fields, a second parser (msgspec) goes over the
    slice: it refuses wrong JSON in them, its objects give their count, and writing them out again
    gives fewer colons than the slice has exactly if a key stood twice in one object.
    """

    def __init__(self, spec: DecodeSpec) -> None:
        self._spec = spec
        self._fields = spec.value_fields
        self._has_decimals = any(holds(f.type, frozenset({"decimal"})) for f in self._fields)
        self._usable = bool(self._fields) and all(is_readable(f.type) for f in self._fields)
        self._schema = pa.schema([arrow_field(f) for f in self._fields])
        self._count = _counter(self._fields)
        self._mode = Mode()

    def __call__(self, values: Sequence[bytes]) -> Sure | Refused:
        """Return the rows of the values that are plainly right, or refuse them all."""
        if not self._usable:
            return Refused()
        spec = self._spec
        screened = screen(
            values, record_bytes_max=spec.record_bytes_max, nesting_max=spec.nesting_max
        )
        for _ in range(_MODES_MAX):
            if self._mode.numbers is not None or self._has_decimals:
                screened = screened.without(many_places(screened))
            if not screened.values:
                return Sure(self._schema.empty_table(), screened.taken)
            try:
                return self._parse(screened)
            except pa.ArrowException as error:
                following = self._next_mode(str(error))
                if following == self._mode:
                    return Refused(_suspect(str(error), screened))
                self._mode = following
        raise AssertionError("a mode changes at most once for each of its attributes")

    def _parse(self, screened: Screened) -> Sure | Refused:
        rows = self._read_mode(screened.joined)
        if rows.num_rows != len(screened.values):
            return Refused()
        unknown: Indexes | None = None
        if self._mode.others:
            unknown = self._unknown_fields(screened)
            if unknown is None:
                return Refused()
        return self._checked(rows, screened, unknown)

    def _next_mode(self, message: str) -> Mode:
        """Return the mode for the next try. A message that is not known changes nothing."""
        if "unexpected field" in message and self._spec.unknown_fields == "ignore":
            return replace(self._mode, others=True)
        if "Failed to convert JSON to int" in message or "JSON to decimal" in message:
            return replace(self._mode, numbers=WHOLE)
        if "Failed to convert JSON to timestamp" in message:
            return replace(self._mode, texts=True)
        return self._mode

    def _read_mode(self, joined: bytes) -> pa.Table:
        if self._mode.numbers is None:
            return self._read(joined, self._mode, self._fields)
        # As doubles first: pyarrow takes strings for decimals, and a string is no integer.
        rows = self._read(joined, replace(self._mode, numbers=pa.float64()), self._fields)
        whole = [f for f in self._fields if holds(f.type, self._whole_kinds())]
        if not whole:
            return rows
        exact = self._read(joined, replace(self._mode, numbers=WHOLE, others=True), whole)
        for field in whole:
            rows = rows.set_column(
                rows.schema.get_field_index(field.name), field.name, exact[field.name]
            )
        return rows

    def _whole_kinds(self) -> frozenset[str]:
        kinds = frozenset(INTEGER_BITS)
        if self._spec.timestamp_format == "iso8601":
            return kinds
        return kinds | {"timestamp", "timestamp_ntz"}

    def _read(self, joined: bytes, mode: Mode, fields: Sequence[Field]) -> pa.Table:
        schema = pa.schema([(f.name, read_as(f.type, self._spec, mode)) for f in fields])
        rows = pj.read_json(
            pa.BufferReader(joined),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(joined) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema,
                unexpected_field_behavior="ignore" if mode.others else "error",
            ),
        )
        if rows.schema != schema:
            raise pa.ArrowInvalid("the parser gave other columns than were asked for")
        return rows

    def _unknown_fields(self, screened: Screened) -> Indexes | None:
        """Return how many unknown fields each value has; None if a value is not plainly right."""
        if b"\\u003a" in screened.joined or b"\\u003A" in screened.joined:
            return None  # An escaped colon is written out as a plain one: the counts would lie.
        counts: list[int] = []
        colons = 0
        for first in range(0, len(screened.values), OBJECTS_MAX):
            values = screened.values[first : first + OBJECTS_MAX]
            try:
                objects = _LOOSE.decode(b"[" + b",".join(values) + b"]")
                colons += _WRITER.encode(objects).count(b":")
            except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
                return None
            counts += map(self._count, objects)
        if colons != screened.joined.count(b":") or len(counts) != len(screened.values):
            return None
        return np.array(counts, np.int64)

    def _checked(self, rows: pa.Table, screened: Screened, unknown: Indexes | None) -> Sure:
        """Convert the columns; leave out values that only the exact path may decide."""
        sure = np.ones(rows.num_rows, np.bool_)
        columns = []
        for field in self._fields:
            column, doubtful = convert(_flat(rows[field.name]), field, self._spec, self._mode)
            sure[doubtful] = False
            columns.append(column)
        table = pa.table(columns, names=[f.name for f in self._fields])
        taken = screened.taken
        if not sure.all():
            table, taken = table.filter(pa.array(sure)), taken[sure]
            unknown = None if unknown is None else unknown[sure]
        return Sure(table.cast(self._schema), taken, 0 if unknown is None else int(unknown.sum()))


_LOOSE = msgspec.json.Decoder(list[dict[str, object]])
_WRITER = msgspec.json.Encoder()
_ROW = re.compile(r" in row ([0-9]+)\s*$")


def _suspect(message: str, screened: Screened) -> int | None:
    """Return the value that pyarrow blames. Only a hint: the exact path will look at it."""
    match = _ROW.search(message)
    if match is None or int(match[1]) >= len(screened.taken):
        return None
    return int(screened.taken[int(match[1])])


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as one array that begins at its buffers' beginning."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array if array.offset == 0 else pa.concat_arrays([array])


def _counter(fields: Sequence[Field]) -> Callable[[object], int]:
    """Return a function that counts the fields of an object that the table does not have."""
    known = frozenset(f.name for f in fields)
    nested = [(f.name, inner) for f in fields if (inner := _inner_counter(f.type)) is not None]

    def count(value: object) -> int:
        if not isinstance(value, dict):
            return 0
        found = len(value.keys() - known)
        for name, inner in nested:
            if name in value:
                found += inner(value[name])
        return found

    return count


def _inner_counter(data_type: DataType) -> Callable[[object], int] | None:
    match data_type:
        case StructType(fields):
            return _counter(fields)
        case ArrayType(element):
            inner = _inner_counter(element)
            if inner is None:
                return None
            return lambda value: sum(map(inner, value)) if isinstance(value, list) else 0
        case _:
            return None
