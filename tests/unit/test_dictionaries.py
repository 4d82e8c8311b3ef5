"""Which columns get a dictionary: those whose values come again and again within a row group."""

import io
import random

import pyarrow as pa
import pyarrow.parquet as pq

from delta_sink.delta.dictionaries import DICTIONARY_BYTES_MAX, repeating_columns
from delta_sink.delta.parquet import ROW_GROUP_ROWS


def table_of(values):
    return pa.table({"x": pa.array(values)})


def chosen(values, row_group_rows=ROW_GROUP_ROWS):
    return repeating_columns(table_of(values), row_group_rows)


def test_values_that_repeat_themselves_only_among_many_rows():
    """A thousand of them have hardly a value twice; forty thousand have each eight times."""
    chance = random.Random(7)
    some = [f"customer {chance.randrange(5_000)}" for _ in range(40_000)]
    assert chosen(some) == ["x"]
    assert chosen(some, row_group_rows=5_000) == []  # a dictionary ends with its row group
    texts = pa.list_(pa.field("element", pa.string()))
    pairs = pa.array([[text, text] for text in some[:20_000]], texts)
    assert repeating_columns(pa.table({"x": pairs}), ROW_GROUP_ROWS) == ["x.list.element"]
    few = [None if number % 4 else chance.randrange(1_000) for number in range(8_000)]
    assert chosen(few) == []  # two thousand values: each comes twice
    assert chosen(few * 4) == ["x"]


def test_values_that_do_not():
    assert chosen(range(40_000)) == []
    assert chosen([]) == []
    assert chosen([None] * 40_000) == []
    assert chosen([*range(20_000), *range(20_000)]) == []  # twice each is not enough
    assert chosen([number // 3 for number in range(40_000)]) == []  # neighbours, never again
    assert chosen([True, False] * 1_000) == []  # a bit each is less than any dictionary


def test_neighbours_that_are_alike_are_seen_in_one_sample():
    assert chosen([number // 8 for number in range(40_000)]) == ["x"]
    assert chosen(["a"] * 10) == ["x"]


def test_a_dictionary_that_the_writer_would_give_up_is_not_begun():
    chance = random.Random(7)
    long = [f"{chance.randrange(3_000):0500d}" for _ in range(30_000)]
    short = [text[-250:] for text in long]
    assert (chosen(long), chosen(short)) == ([], ["x"])

    def size(texts, limit):
        file = io.BytesIO()
        pq.write_table(table_of(texts), file, use_dictionary=True, dictionary_pagesize_limit=limit)
        return file.tell()

    assert size(short, DICTIONARY_BYTES_MAX) == size(short, 100 * DICTIONARY_BYTES_MAX)
    assert size(long, DICTIONARY_BYTES_MAX) > size(long, 100 * DICTIONARY_BYTES_MAX)
