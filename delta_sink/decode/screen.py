"""What is known of values before a native parser sees them: size, edges, nesting, encoding.

Native parsers have died of deep nesting and of a bare `null`, lose the boundaries of records that
are joined, and take text that is no UTF-8. So a chunk is looked at first, all of it at once, and a
value that is not plainly harmless goes to the exact path instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from delta_sink.decode.packed import PackedValues

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_WHITESPACE = b" \t\r\n"


def nesting_of(value: bytes, enough: int) -> int:
    """Return how deep the brackets of `value` nest, strings left out; linear in its size.

    A value with at most `enough` opening brackets cannot nest deeper: their count is returned
    instead, which is not below the depth.
    """
    openers = value.count(b"[") + value.count(b"{")
    if openers <= enough:
        return openers
    bare = np.frombuffer(_STRING.sub(b"", value), np.uint8) | 0x20
    steps = (bare == 0x7B).astype(np.int64) - (bare == 0x7D)
    return int(np.cumsum(steps).max(initial=0))


class Screened(Struct, frozen=True):
    """Values that a native parser may see, joined by newlines.

    Each begins with `{` and ends with `}`. Hence a newline between two of them can only lie
    between two documents: inside a string it is a forbidden control character, and inside an
    object or array `}` newline `{` lacks a comma. Every value is then at least one document, and
    if a strict parser finds as many documents as there are values, each value is exactly one.
    """

    values: Sequence[bytes]
    joined: bytes
    taken: npt.NDArray[np.int64]

    def without(self, places: Iterable[int]) -> Screened:
        """Return the same without the values at `places` (of `values`, not of `taken`)."""
        drop = frozenset(places)
        if not drop:
            return self
        kept = [value for i, value in enumerate(self.values) if i not in drop]
        taken = np.delete(self.taken, np.fromiter(drop, np.int64, len(drop)))
        return Screened(kept, b"\n".join(kept), taken)


def screen(values: Sequence[bytes], *, record_bytes_max: int, nesting_max: int) -> Screened:
    """Return the harmless ones of `values`; `taken` says where they stood."""
    packed = PackedValues.of(values)
    joined, lengths, starts = packed.joined, packed.lengths, packed.starts
    wrong = (lengths == 0) | (lengths > record_bytes_max)
    if not joined:
        return Screened([], b"", np.empty(0, np.int64))
    bytes_ = np.frombuffer(joined, np.uint8)
    # Of an empty value any byte may be looked at: it is wrong already.
    first, last = bytes_[np.minimum(starts, len(joined) - 1)], bytes_[starts + lengths - 1]
    edges = (first != 0x7B) | (last != 0x7D)
    wrong |= _too_deep(packed, bytes_, nesting_max, braced=len(packed) - int(edges.sum()))
    if b"\0" in joined:
        wrong |= np.fromiter((b"\0" in value for value in values), np.bool_, len(values))
    if not joined.isascii() and not _is_utf8(joined):
        wrong |= np.fromiter((not _is_utf8(value) for value in values), np.bool_, len(values))
    if not wrong.any() and not edges.any():
        return Screened(values, joined, np.arange(len(values)))
    return _trimmed(values, wrong, edges)


FRACTION_DIGITS_MAX = 23
"""With these and nine for the exponent a number has at most 32 decimal places (see below)."""

_ESCAPED_NUMBER = re.compile(rb"\\u00(?:2[bBdDeE]|3[0-9]|[46]5)")
_SMALL = re.compile(rb"[\"\s:,\[][+-]?[0-9.]+[eE]-[0-9]{2}")


def many_places(screened: Screened) -> set[int]:
    """Return which of the values may hold a number with very many decimal places.

    pyarrow reads a decimal with more than 38 places too many past the end of a table of powers:
    `99e-39` becomes 0, and `1e-999999999` ends the process. So no decimal reader may see an
    exponent below -9, a fraction of more than `FRACTION_DIGITS_MAX` digits, or a string whose
    escapes could spell one. All of the text is looked at, strings too: there can be false alarms,
    and they only cost the exact path's time.
    """
    padded = np.frombuffer(b" " + screened.joined + b"   ", np.uint8)
    is_digit = (padded - 0x30) < 10
    found = [*_small_exponents(padded, is_digit), *_long_fractions(padded, is_digit)]
    if b"\\u00" in screened.joined:
        found += [match.start() + 1 for match in _ESCAPED_NUMBER.finditer(screened.joined)]
    if not found:
        return set()
    ends = np.cumsum(np.fromiter(map(len, screened.values), np.int64, len(screened.values)) + 1)
    suspects = np.unique(np.searchsorted(ends, np.array(found) - 1, side="right"))
    return {i for i in suspects.tolist() if _has_many_places(screened.values[i])}


def _small_exponents(
    padded: npt.NDArray[np.uint8], is_digit: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return where an `e-` stands between a digit (or point) and two digits."""
    at = np.flatnonzero(((padded[:-1] | 0x20) == 0x65) & (padded[1:] == 0x2D))
    after_digit = is_digit[at - 1] | (padded[at - 1] == 0x2E)
    found: npt.NDArray[np.int64] = at[after_digit & is_digit[at + 2] & is_digit[at + 3]]
    return found


def _long_fractions(
    padded: npt.NDArray[np.uint8], is_digit: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Return where more than `FRACTION_DIGITS_MAX` digits follow a point."""
    runs = is_digit
    for width in (1, 2, 4, 8):  # Runs of 2, 4, 8, 16 digits: each is two of the last.
        runs = runs[:-width] & runs[width:]
        if not runs.any():
            return np.empty(0, np.int64)
    runs = runs[:-8] & runs[8:]  # two runs of 16 that overlap by half: 24 digits
    at = np.flatnonzero(runs)
    found: npt.NDArray[np.int64] = at[padded[at - 1] == 0x2E]
    return found


_LONG_FRACTION = re.compile(rb"\.[0-9]{%d}" % (FRACTION_DIGITS_MAX + 1))


def _has_many_places(value: bytes) -> bool:
    return any(
        pattern.search(value) is not None for pattern in (_SMALL, _LONG_FRACTION, _ESCAPED_NUMBER)
    )


def _too_deep(
    values: PackedValues, bytes_: npt.NDArray[np.uint8], nesting_max: int, *, braced: int
) -> npt.NDArray[np.bool_]:
    """Count opening brackets of every value at once; scan only values that have many.

    `braced` values begin with one: whatever the others are, no value has more than what is left
    of the sum when each of these has had its own.
    """
    deep = np.zeros(len(values), np.bool_)
    is_opener = (bytes_ | 0x20) == 0x7B
    if np.count_nonzero(is_opener) - braced + 1 <= nesting_max:
        return deep
    openers = np.flatnonzero(is_opener)
    counts = np.diff(np.append(np.searchsorted(openers, values.starts), len(openers)))
    for i in np.flatnonzero(counts > nesting_max).tolist():
        deep[i] = nesting_of(values[i] or b"", nesting_max) > nesting_max
    return deep


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _trimmed(
    values: Sequence[bytes], wrong: npt.NDArray[np.bool_], edges: npt.NDArray[np.bool_]
) -> Screened:
    """Leave out what is wrong; whitespace around a document is harmless and is cut off."""
    taken: list[int] = []
    kept: list[bytes] = []
    for i, value in enumerate(values):
        if wrong[i]:
            continue
        if edges[i]:
            bare = value.strip(_WHITESPACE)
            if not (bare.startswith(b"{") and bare.endswith(b"}")):
                continue
            kept.append(bare)
        else:
            kept.append(value)
        taken.append(i)
    return Screened(kept, b"\n".join(kept), np.array(taken, np.int64))
