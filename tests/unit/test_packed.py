"""Values packed into one buffer: in all that can be seen, the list that they came from."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink.decode.packed import PackedValues

VALUES = st.lists(st.none() | st.binary(max_size=6) | st.sampled_from([b"", b"\n", b"\n\n"]))


@given(VALUES)
def test_it_is_the_list_it_came_from(values):
    packed = PackedValues.of(values)
    assert len(packed) == len(values)
    assert list(packed) == values
    assert [packed[place] for place in range(len(values))] == values
    assert packed == values
    assert packed.size_bytes == sum(len(value or b"") for value in values)
    assert packed.lengths.tolist() == [len(value or b"") for value in values]
    assert packed.nulls.tolist() == [i for i, value in enumerate(values) if value is None]
    assert PackedValues.of(packed) is packed


@given(VALUES, st.integers(-8, 8), st.integers(-8, 8))
def test_a_slice_is_the_list_s_slice(values, first, after):
    assert list(PackedValues.of(values)[first:after]) == values[first:after]


@given(st.lists(VALUES))
def test_parts_are_joined_in_order(parts):
    whole = PackedValues.concatenated(parts)
    assert list(whole) == [value for part in parts for value in part]
    assert whole.nulls.tolist() == [i for i, value in enumerate(whole) if value is None]
    assert whole.size_bytes == sum(len(value or b"") for part in parts for value in part)


@given(st.lists(VALUES))
def test_addresses_are_where_the_values_lie(parts):
    whole = PackedValues.concatenated(parts)
    for _ in range(2):  # asking for the bytes as one moves nothing
        found = zip(whole.addresses.tolist(), whole.lengths.tolist(), strict=True)
        assert [ctypes.string_at(at, size) for at, size in found] == [
            value or b"" for part in parts for value in part
        ]
        assert whole.joined == b"\n".join(value or b"" for part in parts for value in part)


@given(VALUES)
def test_without_tombstones(values):
    left = PackedValues.of(values).without_nulls()
    assert list(left) == [value for value in values if value is not None]
    assert not len(left.nulls)


@given(VALUES)
def test_starts_point_into_the_buffer(values):
    packed = PackedValues.of(values)
    found = [
        packed.joined[start : start + length]
        for start, length in zip(packed.starts.tolist(), packed.lengths.tolist(), strict=True)
    ]
    assert found == [value or b"" for value in values]


def test_a_place_outside_is_an_error():
    packed = PackedValues.of([b"a", b"b"])
    assert packed[-1] == b"b"
    for place in (2, -3):
        with pytest.raises(IndexError):
            packed[place]


def test_it_differs_from_what_is_not_the_same():
    packed = PackedValues.of([b"a\nb"])
    assert packed != [b"a", b"b"]
    assert packed != [None]
    assert packed != b"a\nb"
    assert np.array_equal(packed.lengths, [3])
    assert repr(packed) == "PackedValues(1 values, 3 bytes)"
