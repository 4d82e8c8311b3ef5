"""Many values as one: their bytes behind each other, and how long each is.

A poll brings thousands of small `bytes` objects. Kept until they are decoded, each costs several
times its own bytes, and every later pass touches all of them. So they are joined while they are
still in the processor's cache; what comes after works on one buffer and on arrays of numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import cast, overload

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
"""Rising places of records in a chunk (or of values in a list of them)."""

_NO_NULLS: Positions = np.empty(0, np.int64)


class PackedValues(Sequence[bytes | None]):
    """A sequence of values (None is a tombstone) that holds no object for each of them.

    `lengths` has the bytes of each, 0 for a tombstone; `nulls` are the rising places of the
    tombstones. A slice copies its bytes; several put together do so when they are asked for.
    """

    __slots__ = ("_addresses", "_joined", "_parts", "_starts", "lengths", "nulls")

    def __init__(
        self, joined: bytes | None, lengths: Positions, nulls: Positions = _NO_NULLS
    ) -> None:
        self._joined = joined
        self._parts: Sequence[PackedValues] = ()
        self.lengths = lengths
        self.nulls = nulls
        self._starts: Positions | None = None
        self._addresses: Positions | None = None

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> PackedValues:
        """Return `values` packed; what is packed already comes back as it is."""
        if isinstance(values, PackedValues):
            return values
        try:
            return cls._of_all(cast("Sequence[bytes]", values), _NO_NULLS)
        except TypeError:  # asking all of them first would cost as much as joining them
            is_null = np.fromiter((value is None for value in values), np.bool_, len(values))
        nulls = np.flatnonzero(is_null)
        return cls._of_all([b"" if value is None else value for value in values], nulls)

    @classmethod
    def _of_all(cls, values: Sequence[bytes], nulls: Positions) -> PackedValues:
        return cls(b"\n".join(values), np.fromiter(map(len, values), np.int64, len(values)), nulls)

    @classmethod
    def concatenated(cls, parts: Sequence[Sequence[bytes | None]]) -> PackedValues:
        """Return the values of all `parts`, in order."""
        packed = [cls.of(part) for part in parts if len(part)]
        if len(packed) == 1:
            return packed[0]
        if not packed:
            return cls(b"", np.empty(0, np.int64))
        nulls = _NO_NULLS
        if any(len(part.nulls) for part in packed):
            first = np.cumsum([0, *map(len, packed[:-1])])
            nulls = np.concatenate([p.nulls + at for p, at in zip(packed, first, strict=True)])
        whole = cls(None, np.concatenate([part.lengths for part in packed]), nulls)
        whole._parts = packed
        return whole

    @property
    def joined(self) -> bytes:
        """The values with a newline between each two, a tombstone as nothing at all."""
        if self._joined is None:
            self._joined = b"\n".join([part.joined for part in self._parts])
        return self._joined

    @property
    def addresses(self) -> Positions:
        """Where each value lies in the memory of this process, for as long as this object lives.

        Parts that were put together are not moved for it.
        """
        if self._addresses is None:
            # For all parts at once: a chunk of small records has a hundred of them.
            parts = list(self._unmoved())
            counts = np.fromiter(map(len, parts), np.int64, len(parts))
            bases = np.array([_address(part.joined) for part in parts], np.int64)
            bases -= self.starts[np.cumsum(counts) - counts] if len(self) else 0
            self._addresses = self.starts + np.repeat(bases, counts)
        return self._addresses

    def _unmoved(self) -> Iterator[PackedValues]:
        """Yield what this was put together from, each in one piece of memory."""
        if self._joined is not None or not self._parts:
            yield self
            return
        for part in self._parts:
            yield from part._unmoved()

    @property
    def starts(self) -> Positions:
        """Where each value begins in `joined`."""
        if self._starts is None:
            starts = np.zeros(len(self.lengths), np.int64)
            if len(starts) > 1:
                np.cumsum(self.lengths[:-1] + 1, out=starts[1:])
            self._starts = starts
        return self._starts

    def without_nulls(self) -> PackedValues:
        """Return the same without its tombstones."""
        if not len(self.nulls):
            return self
        return PackedValues.of([value for value in self if value is not None])

    @property
    def size_bytes(self) -> int:
        """The bytes of all values together."""
        if self._joined is None:
            return sum(part.size_bytes for part in self._parts)
        return len(self._joined) - max(0, len(self.lengths) - 1)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, place: int) -> bytes | None: ...
    @overload
    def __getitem__(self, place: slice) -> PackedValues: ...
    def __getitem__(self, place: int | slice) -> bytes | PackedValues | None:
        if isinstance(place, slice):
            return self._slice(*place.indices(len(self)))
        place = range(len(self))[place]
        if len(self.nulls) and place in self.nulls:
            return None
        start = int(self.starts[place])
        return self.joined[start : start + int(self.lengths[place])]

    def _slice(self, first: int, after: int, step: int) -> PackedValues:
        assert step == 1, "only neighbours stay packed"
        if first >= after:
            return PackedValues(b"", np.empty(0, np.int64))
        low, high = int(self.starts[first]), int(self.starts[after - 1] + self.lengths[after - 1])
        nulls = self.nulls
        if len(nulls):
            nulls = nulls[(nulls >= first) & (nulls < after)] - first
        return PackedValues(self.joined[low:high], self.lengths[first:after], nulls)

    def __iter__(self) -> Iterator[bytes | None]:
        gone = frozenset(self.nulls.tolist())
        at = 0
        for place, length in enumerate(self.lengths.tolist()):
            yield None if place in gone else self.joined[at : at + length]
            at += length + 1

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, bytes | str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list: equal to lists, and in no set

    def __repr__(self) -> str:
        return f"PackedValues({len(self)} values, {self.size_bytes} bytes)"


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
