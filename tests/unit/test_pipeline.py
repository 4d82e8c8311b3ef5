"""Batches on their way: what belongs to which, and that reading goes on beside them."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from delta_sink.buffer import Piece
from delta_sink.decode import BadRecord, Decoded, PartOutcome
from delta_sink.memory import BATCHES_HELD, MemoryBudget
from delta_sink.model import Records, TopicPartition
from delta_sink.pipeline import Pipeline
from tests.simulation.harness import settings_of
from tests.unit.steered import Job

P0 = TopicPartition("orders", 0)
BUDGET = MemoryBudget(queue_bytes=1 << 20, pipeline_bytes=30_000, chunk_bytes=3_000)
NO_HURRY = "flush: {interval_ms: 600000}"


class Bench:
    """A pipeline whose jobs end when the test says so; a record of 76 bytes occupies 100."""

    def __init__(self, *, row_bytes=8, is_bad=False):
        self.jobs = []
        self.encoded = []
        self.offset = 0
        clock = SimpleNamespace(elapsed_ms=lambda: 0)
        telemetry = SimpleNamespace(count=lambda *_, **__: None, is_tracing=False)
        entropy = SimpleNamespace(unique_id=lambda: "0" * 32)
        log = SimpleNamespace(clock=clock, telemetry=telemetry, entropy=entropy)
        self.view = SimpleNamespace(decoder=SimpleNamespace(decode=self._decode), layout=None)
        self._row_bytes = row_bytes
        self._is_bad = is_bad
        self.pipeline = Pipeline(settings_of(NO_HURRY), log, self, BUDGET, None, self._confirming)

    def submit(self, name, function):
        self.jobs.append(Job(name, function))
        return self.jobs[-1]

    def _confirming(self, ranges):
        self.encoded.append(sum(covered.records for covered in ranges))
        return lambda: None

    def _decode(self, records):
        parts = tuple(self._part(each) for each in records)
        rows = sum(part.rows for part in parts)
        column = pa.array([b"x" * self._row_bytes] * rows, pa.binary(self._row_bytes))
        return Decoded(pa.table({"a": column}), parts)

    def _part(self, records):
        if not self._is_bad:
            return PartOutcome(records.tp, len(records), (), ())
        bad = [BadRecord(o, n, "r", "m", "m") for n, o in enumerate(records.offsets)]
        return PartOutcome(records.tp, 0, tuple(bad), ())

    def add(self, count):
        first, self.offset = self.offset, self.offset + count
        values = [b"v" * 76] * count
        records = Records(P0, self.offset, range(first, self.offset), values, size_bytes=76 * count)
        self.pipeline.add(Piece(first, records), 0)

    def advance(self):
        self.pipeline.advance(self.view, tag=0, flush=False)

    def out(self, name):
        return [job for job in self.jobs if job.name == name and not job.is_ended]

    def end(self, name):
        for job in self.out(name):
            job.is_ended = True


def test_a_batch_ends_while_there_is_room_for_others():
    bench = Bench()
    for _ in range(BATCHES_HELD):
        assert not bench.pipeline.is_full
        bench.add(100)
        bench.advance()
    bench.end("decode")
    for _ in range(BATCHES_HELD):
        bench.advance()
    assert bench.encoded == [100, 100], "two are sealed, and there is a third"
    assert not bench.pipeline.is_full


@pytest.mark.parametrize("both_at_once", [True, False])
def test_what_is_decoded_behind_the_end_of_a_batch_is_of_the_next(both_at_once):
    bench = Bench()
    bench.add(100)
    bench.advance()
    bench.add(50)
    bench.advance()
    assert len(bench.out("decode")) == 2
    if both_at_once:
        bench.end("decode")
    else:
        bench.out("decode")[0].is_ended = True
    bench.advance()
    assert bench.encoded == [100]
    bench.end("decode")
    bench.advance()
    assert bench.encoded == [100]
    bench.add(50)
    bench.advance()
    bench.end("decode")
    bench.advance()
    assert bench.encoded == [100, 100]


def test_where_the_log_is_slow_a_batch_grows():
    """Two are on their way: a third one could not be sealed, so that it need not end yet."""
    bench = Bench()
    for _ in range(2):
        bench.add(100)
        bench.advance()
    bench.end("decode")
    for _ in range(2):
        bench.advance()
    for _ in range(2):
        bench.add(100)
        bench.advance()
    bench.end("decode")
    bench.advance()
    assert bench.encoded == [100, 100]
    for sealed in list(bench.pipeline._sealed):
        bench.pipeline.committed(sealed)
    bench.advance()
    bench.end("decode")
    bench.advance()
    assert bench.encoded == [100, 100, 200]


def test_rows_that_fill_the_memory_go_at_once_and_in_one_batch():
    """Rows may be larger than their records: then a batch goes before it has its share."""
    bench = Bench(row_bytes=600)
    bench.add(60)  # a chunk, and no batch yet
    bench.advance()
    bench.end("decode")
    bench.advance()
    assert bench.pipeline.is_full
    assert len(bench.out("decode")) == 1, "the mark of its end"
    for _ in range(3):
        bench.add(1)  # what a full pipeline still takes
        bench.advance()
    assert len(bench.out("decode")) == 1, "the batch is ended once, not at every record"
    bench.end("decode")
    bench.advance()
    assert bench.encoded == [60]


def test_bad_records_that_fill_the_memory_do_not_wait_for_a_row():
    """Without a row a batch waits a minute for company: not where nothing more can come in."""
    bench = Bench(is_bad=True)
    bench.add(100)
    bench.advance()
    bench.end("decode")
    bench.advance()
    assert bench.pipeline.is_full
    bench.advance()
    assert bench.encoded == [100]
