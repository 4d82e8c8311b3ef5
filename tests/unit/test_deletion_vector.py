"""Deletion vectors are read as they were written, and damaged ones are refused by sentence."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink.delta.deletion_vector import (
    decode_positions,
    inline_positions,
    stored_positions,
    vector_path,
    vector_place,
)
from delta_sink.errors import TableRefused
from tests.unit.vectors import inline_vector, serialized, stored_vectors, z85

UUID = bytes(range(16))


def test_vectors_that_other_engines_wrote():
    """One by Spark's Delta that has stood in a log, one in its file, as descriptor and bytes."""
    inline = {
        "storageType": "i",
        "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
        "sizeInBytes": 44,
        "cardinality": 6,
    }
    assert inline_positions(inline).tolist() == [3, 4, 7, 11, 18, 29]
    stored = {
        "storageType": "u",
        "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA",
        "offset": 1,
        "sizeInBytes": 36,
        "cardinality": 2,
    }
    place = vector_place(stored)
    assert place.path == "deletion_vector_61d16c75-6994-46b7-a15b-8b538852e50e.bin"
    assert (place.offset, place.length) == (1, 44)


SETS = {
    "none": [],
    "one": [0],
    "array": list(range(0, 8_000, 2)),
    "bitmap": [n for n in range(30_000) if n % 3],
    "full container": list(range(65_536)),
    "over several containers": [5, 65_536, 65_537, 200_000, 300_000, 400_000, 2**31 - 1],
    "runs and gaps": [*range(100, 5_000), *range(70_000, 140_000), 400_000],
}


@pytest.mark.parametrize("with_runs", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_every_kind_of_container(name, with_runs):
    numbers = SETS[name]
    vector = inline_vector(numbers, with_runs=with_runs)
    assert inline_positions(vector).tolist() == numbers
    assert vector_path(vector) is None
    assert vector_place(vector) is None


@given(st.sets(st.integers(0, 400_000), max_size=300), st.booleans())
def test_any_set_comes_back(numbers, with_runs):
    data = serialized(sorted(numbers), with_runs=with_runs)
    assert decode_positions(data).tolist() == sorted(numbers)


def test_several_vectors_in_one_file():
    sets = [[1, 2, 3], [7], list(range(100_000))]
    path, content, vectors = stored_vectors(*sets, uuid=UUID, prefix="ab")
    assert path == "ab/deletion_vector_00010203-0405-0607-0809-0a0b0c0d0e0f.bin"
    for numbers, vector in zip(sets, vectors, strict=True):
        place = vector_place(vector)
        assert place.path == path
        data = content[place.offset : place.offset + place.length]
        assert stored_positions(vector, data).tolist() == numbers


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"storageType": "p", "pathOrInlineDv": "s3://b/x.bin"}, "outside of the table"),
        ({"storageType": "u", "pathOrInlineDv": "short"}, "no usable name"),
        ({"storageType": "u", "pathOrInlineDv": "../" + z85(UUID)}, "no usable name"),
        ({"pathOrInlineDv": None}, "without pathOrInlineDv"),
        ({"storageType": "u", "pathOrInlineDv": "~" * 20}, "'~' in its Z85"),
    ],
)
def test_descriptors_that_lead_nowhere(change, sentence):
    with pytest.raises(TableRefused, match=sentence):
        vector_path({**inline_vector([1]), **change})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cardinality": 2}, "has 1 rows, the log says 2"),
        ({"cardinality": None}, "cardinality is None"),
        ({"sizeInBytes": 400}, "bytes, wanted 400"),
        ({"pathOrInlineDv": "0000"}, "4 characters of Z85"),
        ({"pathOrInlineDv": "#####" * 9}, "a word is too large"),
        ({"pathOrInlineDv": "0" * 60}, "magic number 0"),
    ],
)
def test_vectors_in_the_log_that_are_damaged(change, sentence):
    with pytest.raises(TableRefused, match=sentence):
        inline_positions({**inline_vector([1]), **change})


def test_a_file_whose_checksum_or_length_does_not_fit():
    _, content, [vector] = stored_vectors([1, 2, 3], uuid=UUID)
    data = bytearray(content[1:])
    data[-6] ^= 1
    with pytest.raises(TableRefused, match="checksum does not fit"):
        stored_positions(vector, bytes(data))
    with pytest.raises(TableRefused, match="the log says"):
        stored_positions({**vector, "sizeInBytes": 20}, content[1:])
    with pytest.raises(TableRefused, match="the log says"):
        stored_positions(vector, content[1:-1])


def test_no_damage_goes_unseen_or_raises_anything_else():
    good = serialized([*range(5_000), 70_000], with_runs=True)
    dice = random.Random(3)
    refused = 0
    for _ in range(500):
        data = bytearray(good[: dice.randrange(len(good))] if dice.random() < 0.5 else good)
        if data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        try:
            positions = decode_positions(bytes(data))
        except TableRefused:
            refused += 1
        else:
            assert (positions[1:] > positions[:-1]).all()
    assert refused > 250
    with pytest.raises(TableRefused, match="bytes too many"):
        decode_positions(good + b"\0")
