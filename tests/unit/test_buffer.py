"""What waits, when it is due, and that ranges chain: the pure part between poll and upload."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink.buffer import (
    IDLE_FLUSH_MS,
    RECORD_OVERHEAD_BYTES,
    RUNS_MAX,
    BadRecordRatio,
    DecodedChunk,
    FlushPolicy,
    Gathering,
    Intake,
    Piece,
    batch_of,
)
from delta_sink.decode import BadRecord, Decoded, PartOutcome
from delta_sink.model import OffsetRange, Records, TopicPartition, runs_count, runs_join, runs_of

P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
POLICY = FlushPolicy(interval_ms=1_000, rows_max=100, bytes_max=1_000, chunk_bytes=200)


def piece(first, count, *, tp=P0, next_=None, size=10, produced_first_ms=None, gone=()):
    """Return `count` records from `first` on, of `size` bytes each."""
    offsets = range(first, first + count)
    return Piece(
        first,
        Records(
            tp,
            first + count if next_ is None else next_,
            offsets,
            [b"x" * size] * count,
            size_bytes=size * count,
            produced_first_ms=produced_first_ms,
        ),
        gone,
    )


def decoded(chunk, *, bad=(), skipped=()):
    """Return the outcome of a chunk in which these offsets of each part are bad or skipped."""
    parts = []
    for held in chunk.pieces:
        offsets = list(held.records.offsets)
        wrong = [offset for offset in offsets if offset in bad]
        passed = [offset for offset in offsets if offset in skipped]
        parts.append(
            PartOutcome(
                held.records.tp,
                len(offsets) - len(wrong) - len(passed),
                tuple(BadRecord(o, o - offsets[0], "r", "m", "m") for o in wrong),
                runs_of(passed),
            )
        )
    rows = pa.table({"a": list(range(sum(part.rows for part in parts)))})
    return DecodedChunk.of(chunk, Decoded(rows, tuple(parts)))


def chunk_of(*pieces, ends_batch=True, now_ms=0):
    intake = Intake(POLICY)
    for held in pieces:
        intake.add(held, now_ms)
    chunk = intake.cut(ends_batch=True)
    assert chunk is not None
    return type(chunk)(chunk.pieces, chunk.size_bytes, chunk.held_bytes, chunk.since_ms, ends_batch)


# --- Intake ---------------------------------------------------------------------------------------


def test_nothing_waits():
    intake = Intake(POLICY)
    assert intake.is_empty
    assert intake.due_in_ms(5) is None
    assert intake.cut(ends_batch=True) is None
    assert intake.cut(ends_batch=False) is None


def test_a_batch_is_due_so_long_after_its_first_record():
    intake = Intake(POLICY)
    intake.add(piece(0, 1), 500)
    intake.add(piece(1, 1), 1_400)
    assert [intake.due_in_ms(now) for now in (500, 1_499, 1_500, 9_999)] == [1_000, 1, 0, 0]


@pytest.mark.parametrize(
    ("count", "size", "due"), [(99, 1, False), (100, 1, True), (9, 111, False), (10, 100, True)]
)
def test_a_batch_is_due_at_so_many_records_or_bytes(count, size, due):
    intake = Intake(POLICY)
    intake.add(piece(0, count, size=size), 0)
    assert (intake.due_in_ms(0) == 0) is due


def test_size_counts_over_the_chunks_of_a_batch():
    intake = Intake(POLICY)
    intake.add(piece(0, 60), 0)
    assert intake.cut(ends_batch=False) is not None
    intake.add(piece(60, 40), 10)
    assert intake.due_in_ms(10) == 0
    chunk = intake.cut(ends_batch=True)
    assert (chunk.since_ms, chunk.ends_batch) == (0, True)
    intake.add(piece(100, 60), 20)
    assert intake.due_in_ms(20) == 1_000


def test_what_a_batch_occupies_is_counted_from_its_first_chunk_on():
    intake = Intake(POLICY)
    intake.add(piece(0, 25), now_ms=0)
    assert intake.cut(ends_batch=False) is not None
    intake.add(piece(25, 5), now_ms=0)
    assert intake.batch_held_bytes == 30 * (10 + RECORD_OVERHEAD_BYTES)
    assert intake.cut(ends_batch=True) is not None
    assert intake.batch_held_bytes == 0


def test_a_chunk_is_cut_when_it_is_full_and_not_before():
    intake = Intake(POLICY)
    intake.add(piece(0, 19), 0)
    assert intake.cut(ends_batch=False) is None
    intake.add(piece(19, 1), 0)
    chunk = intake.cut(ends_batch=False)
    assert (len(chunk.pieces), chunk.size_bytes, chunk.ends_batch) == (2, 200, False)
    assert not intake.is_empty
    assert intake.held_bytes == 0


def test_the_end_of_a_batch_may_be_an_empty_chunk():
    intake = Intake(POLICY)
    intake.add(piece(0, 20), 0)
    intake.cut(ends_batch=False)
    end = intake.cut(ends_batch=True)
    assert (end.pieces, end.ends_batch) == ((), True)
    assert intake.is_empty


def test_offsets_without_records_start_the_clock_too():
    intake = Intake(POLICY)
    intake.add(piece(5, 0, next_=9), 100)
    assert intake.due_in_ms(100) == 1_000
    assert not intake.is_empty


def test_what_records_occupy_is_more_than_their_bytes():
    intake = Intake(POLICY)
    intake.add(piece(0, 3, size=7), 0)
    assert intake.held_bytes == 3 * 7 + 3 * RECORD_OVERHEAD_BYTES


def test_a_cleared_intake_is_a_new_one():
    intake = Intake(POLICY)
    intake.add(piece(0, 60), 0)
    intake.cut(ends_batch=False)
    intake.add(piece(60, 1), 0)
    intake.clear()
    assert intake.is_empty
    assert intake.held_bytes == 0
    assert intake.cut(ends_batch=True) is None


# --- Gathering ------------------------------------------------------------------------------------


def test_rows_are_due_at_once_when_their_batch_has_ended():
    gathering = Gathering(POLICY)
    gathering.add(decoded(chunk_of(piece(0, 5), ends_batch=False)))
    assert gathering.due_in_ms(0) is None
    assert gathering.take(0) is None
    gathering.add(decoded(chunk_of(piece(5, 2))))
    assert gathering.due_in_ms(0) == 0
    batch = gathering.take(0)
    assert (batch.rows_count, batch.ranges) == (7, (OffsetRange(P0, 0, 7, 7, 7),))
    assert gathering.is_empty


def test_batches_grow_while_nobody_takes_them():
    gathering = Gathering(POLICY)
    for number in range(4):
        gathering.add(decoded(chunk_of(piece(number * 5, 5, tp=P0), piece(number, 1, tp=P1))))
    batch = gathering.take(0)
    assert [(r.tp, r.offset_first, r.offset_next) for r in batch.ranges] == [
        (P0, 0, 20),
        (P1, 0, 4),
    ]


def test_nothing_but_offsets_waits_an_idle_minute():
    gathering = Gathering(POLICY)
    gathering.add(decoded(chunk_of(piece(0, 3), now_ms=500), skipped={0, 1, 2}))
    assert gathering.due_in_ms(500) == IDLE_FLUSH_MS
    assert gathering.take(500 + IDLE_FLUSH_MS - 1) is None
    batch = gathering.take(500 + IDLE_FLUSH_MS)
    assert (batch.rows_count, batch.tables, batch.ranges[0].skipped) == (0, (), ((0, 3),))


def test_offsets_go_along_with_the_first_row():
    gathering = Gathering(POLICY)
    gathering.add(decoded(chunk_of(piece(0, 3)), skipped={0, 1, 2}))
    gathering.add(decoded(chunk_of(piece(3, 1))))
    assert gathering.take(0).ranges == (OffsetRange(P0, 0, 4, 4, 1, (), ((0, 3),)),)


def test_many_runs_are_due_without_a_row():
    gathering = Gathering(POLICY)
    every_other = set(range(0, 2 * RUNS_MAX, 2))
    rest = set(range(1, 2 * RUNS_MAX, 2))
    chunk = chunk_of(piece(0, 2 * RUNS_MAX, size=0))
    gathering.add(decoded(chunk, skipped=every_other, bad=rest))
    assert gathering.due_in_ms(0) == 0


def test_one_run_however_long_is_one_run():
    gathering = Gathering(POLICY)
    gathering.add(decoded(chunk_of(piece(0, RUNS_MAX, size=0)), skipped=set(range(RUNS_MAX))))
    assert gathering.due_in_ms(0) == IDLE_FLUSH_MS


def test_many_bytes_are_due_without_a_row():
    gathering = Gathering(POLICY)
    gathering.add(decoded(chunk_of(piece(0, 10, size=100)), skipped=set(range(10))))
    assert gathering.due_in_ms(0) == 0


def test_what_is_forced_goes_at_once():
    gathering = Gathering(POLICY)
    assert gathering.take(0, force=True) is None
    gathering.add(decoded(chunk_of(piece(0, 1), ends_batch=False), skipped={0}))
    assert gathering.take(0, force=True).ranges == (OffsetRange(P0, 0, 1, 1, 0, (), ((0, 1),)),)


def test_a_cleared_gathering_is_a_new_one():
    gathering = Gathering(POLICY)
    gathering.add(decoded(chunk_of(piece(0, 1))))
    assert gathering.chunks_count == 1
    gathering.clear()
    assert (gathering.is_empty, gathering.held_bytes, gathering.chunks_count) == (True, 0, 0)
    assert gathering.due_in_ms(10**9) is None


# --- batches --------------------------------------------------------------------------------------


def test_gaps_at_the_tail_belong_to_the_range():
    batch = batch_of([decoded(chunk_of(piece(0, 2, next_=7), piece(7, 1)))])
    assert batch.ranges == (OffsetRange(P0, 0, 8, 3, 3),)


def test_what_kafka_no_longer_had_is_listed():
    held = piece(5, 2, next_=10, gone=((5, 8),))
    held = Piece(5, Records(P0, 10, [8, 9], [b"", b""]), ((5, 8),))
    assert batch_of([decoded(chunk_of(held))]).ranges[0].gone == ((5, 8),)


def test_a_piece_that_does_not_continue_the_one_before_is_a_mistake():
    with pytest.raises(AssertionError):
        batch_of([decoded(chunk_of(piece(0, 2), piece(3, 1)))])


def test_an_outcome_of_another_partition_is_a_mistake():
    chunk = chunk_of(piece(0, 1))
    outcome = Decoded(pa.table({"a": [1]}), (PartOutcome(P1, 1),))
    with pytest.raises(AssertionError):
        DecodedChunk.of(chunk, outcome)


def test_counts_that_do_not_add_up_are_a_mistake():
    chunk = chunk_of(piece(0, 2))
    outcome = Decoded(pa.table({"a": [1]}), (PartOutcome(P0, 1),))
    with pytest.raises(AssertionError):
        DecodedChunk.of(chunk, outcome)


def test_the_oldest_record_is_that_of_all_pieces():
    chunk = chunk_of(
        piece(0, 2, produced_first_ms=50), piece(0, 1, tp=P1, produced_first_ms=40), piece(2, 1)
    )
    assert batch_of([decoded(chunk)]).produced_first_ms == 40
    assert batch_of([decoded(chunk_of(piece(0, 1)))]).produced_first_ms is None


def test_letters_keep_the_record_and_let_the_others_go():
    chunk = chunk_of(piece(0, 3, size=4))
    [letter] = decoded(chunk, bad={1}).letters
    assert (letter.tp, letter.bad.offset, letter.value) == (P0, 1, b"xxxx")


@given(st.data())
def test_any_way_of_cutting_gives_the_same_ranges(data):
    """Pieces, chunks and batches are cut by time and size; what they cover is not."""
    counts = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=12))
    bad = data.draw(st.sets(st.integers(0, 80)))
    skipped = data.draw(st.sets(st.integers(0, 80))) - bad
    chunks, position, offsets = [], 0, []
    for count in counts:
        gap = data.draw(st.integers(0, 2))
        held = piece(position, count, next_=position + count + gap)
        offsets += held.records.offsets
        position += count + gap
        chunks.append(decoded(chunk_of(held, ends_batch=False), bad=bad, skipped=skipped))
    [covered] = batch_of(chunks).ranges
    assert (covered.offset_first, covered.offset_next) == (0, position)
    assert covered.records == len(offsets)
    assert covered.dead_letters == runs_of(sorted(bad & set(offsets)))
    assert covered.skipped == runs_of(sorted(skipped & set(offsets)))


@given(st.sets(st.integers(0, 60)), st.integers(0, 60))
def test_runs_join_as_if_they_were_made_together(offsets, cut):
    whole = runs_of(sorted(offsets))
    left = runs_of(sorted(o for o in offsets if o < cut))
    right = runs_of(sorted(o for o in offsets if o >= cut))
    assert runs_join(left, right) == whole
    assert runs_count(whole) == len(offsets)


# --- the share of bad records ---------------------------------------------------------------------


def ratio(**options):
    return BadRecordRatio(**({"ratio_max": 0.1, "window_records": 1_000} | options))


def test_the_share_counts_from_a_thousand_records_on():
    watch = ratio()
    assert watch.add(records=999, bad=999) is None
    assert watch.add(records=1, bad=0) == pytest.approx(0.999)


def test_exactly_the_limit_is_allowed():
    assert ratio().add(records=1_000, bad=100) is None
    assert ratio().add(records=1_000, bad=101) == pytest.approx(0.101)


def test_old_records_leave_the_window():
    watch = ratio()
    assert watch.add(records=500, bad=0) is None
    assert watch.add(records=500, bad=100) is None
    for _ in range(3):
        assert watch.add(records=500, bad=0) is None
    assert watch.add(records=500, bad=100) is None
    assert watch.add(records=500, bad=101) == pytest.approx(0.201)


def test_a_window_holds_at_least_one_chunk():
    watch = ratio(window_records=1_000)
    assert watch.add(records=50_000, bad=0) is None
    assert watch.add(records=2_000, bad=1_000) == pytest.approx(0.5)


def test_what_is_dropped_counts_no_more():
    watch = ratio()
    assert watch.add(records=900, bad=0) is None
    for _ in range(20):
        assert watch.add(records=100, bad=60) is None
        watch.forget(1)
    assert watch.add(records=100, bad=60) is None
    watch.forget(99)
    assert watch.add(records=999, bad=999) is None
