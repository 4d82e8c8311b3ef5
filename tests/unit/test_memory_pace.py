"""How many records a poll may take."""

from delta_sink.memory import POLL_RECORDS_MAX, PollPace
from delta_sink.model import Records, TopicPartition

MIB = 1 << 20


def polled(count, record_bytes):
    tp = TopicPartition("t", 0)
    return [
        Records(
            tp=tp,
            offset_next=count,
            offsets=list(range(count)),
            values=[b""] * count,
            timestamps_ms=[],
            keys=[],
            headers=[],
            size_bytes=count * record_bytes,
        )
    ]


def test_a_first_poll_takes_what_fits_whatever_the_records_are():
    assert PollPace(8 * MIB).records_max(100 * MIB) == 12
    assert PollPace(8 * MIB).records_max(MIB) == 1


def test_small_records_reach_full_polls_within_a_few():
    pace = PollPace(8 * MIB)
    polls = 0
    while (count := pace.records_max(100 * MIB)) < POLL_RECORDS_MAX:
        pace.note(polled(count, 100))
        polls += 1
        assert polls < 10
    assert count == POLL_RECORDS_MAX


def test_large_records_never_overrun_the_room():
    pace = PollPace(8 * MIB)
    pace.note(polled(12, 400_000))
    assert pace.records_max(10 * MIB) * 400_000 <= 10 * MIB
    assert pace.records_max(0) == 1


def test_silence_begins_again():
    pace = PollPace(8 * MIB)
    pace.note(polled(1000, 100))
    pace.note([])
    assert pace.records_max(100 * MIB) == 12
