"""Bins that are rewritten side by side: none waits for another, and nothing is left running."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from delta_sink import compacting
from delta_sink.compacting import Tally
from delta_sink.delta.compaction import Rewritten
from delta_sink.errand import Begin, FirstOf, Interrupted, Rest
from tests.unit.steered import Job

AT_ONCE = 2
STEP_BYTES = 1_000


class Step(Rewritten, frozen=True):
    """A step of a bin, known by the bin's name."""

    name: str = ""

    @classmethod
    def of(cls, name):
        return cls((SimpleNamespace(size_bytes=STEP_BYTES),), (), 0, 0, None, None, name)


class Bench:
    """Runs `_rewrite_all` over bins that are lists of steps; jobs end in the order it is told."""

    def __init__(self, monkeypatch, bins, *, refused=(), bytes_per_s_max=None):
        self.jobs = []
        self.rests_ms = []
        self.now_ms = 0
        self.committed = []
        self.tally = Tally()
        self.stop = False
        clock = SimpleNamespace(elapsed_ms=lambda: self.now_ms)
        compaction = SimpleNamespace(bytes_per_s_max=bytes_per_s_max)
        upkeep = SimpleNamespace(
            log=SimpleNamespace(clock=clock), settings=SimpleNamespace(compaction=compaction)
        )

        def commit(_errand, _underway, step, _tally):
            self.committed.append(step.name)
            return step.name not in refused
            yield

        def begun(_upkeep, _plan, steps, _held, weight):
            return SimpleNamespace(steps=iter(steps), weight=weight)

        monkeypatch.setattr(compacting, "bins_at_once", lambda *_: AT_ONCE)
        monkeypatch.setattr(compacting, "_begun", begun)
        monkeypatch.setattr(compacting, "_commit", commit)
        plan = SimpleNamespace(policy=SimpleNamespace(target_file_bytes=1))
        errand = SimpleNamespace(upkeep=upkeep, go_on=self._go_on)
        pairs = [([Step.of(name) for name in steps], None) for steps in bins]
        self._steps = compacting._rewrite_all(errand, plan, pairs, self.tally)
        self.is_over = False
        self.error = None
        self._go()

    def _go_on(self):
        if self.stop:
            raise Interrupted("the worker was asked to stop")
        return
        yield

    def end(self, number):
        """Let the job that was begun as this one end."""
        self.jobs[number].is_ended = True
        if any(job.is_done() for job in self._waits_for):
            self._go()

    def _go(self):
        answer = None
        try:
            while True:
                wish = self._steps.send(answer)
                answer = None
                if isinstance(wish, Begin):
                    answer = Job(wish.task.name, wish.task.function)
                    self.jobs.append(answer)
                elif isinstance(wish, Rest):
                    self.rests_ms.append(wish.duration_ms)
                    self.now_ms += wish.duration_ms
                elif isinstance(wish, FirstOf):
                    self._waits_for = wish.jobs
                    if not any(job.is_done() for job in wish.jobs):
                        return
        except StopIteration:
            self.is_over = True
        except Interrupted as error:
            self.error = error


def test_a_slow_bin_keeps_no_other_waiting(monkeypatch):
    bench = Bench(monkeypatch, [["slow"], ["a1", "a2"], ["b1"]])
    assert len(bench.jobs) == AT_ONCE
    for number in (1, 2, 3, 4, 5):  # both steps of a and its end, the step of b and its end
        bench.end(number)
    assert bench.committed == ["a1", "a2", "b1"], "while the slow one is at its first"
    bench.end(0)
    bench.end(6)
    assert bench.is_over
    assert bench.committed == ["a1", "a2", "b1", "slow"]
    assert bench.tally.dropped == 0


def test_a_bin_whose_step_is_refused_goes_no_further(monkeypatch):
    bench = Bench(monkeypatch, [["a1", "a2"], ["b1"], ["c1"]], refused={"a1"})
    bench.end(0)
    assert len(bench.jobs) == 3, "the third bin has its place"
    for number in (1, 2, 3, 4):
        bench.end(number)
    assert bench.is_over
    assert sorted(bench.committed) == ["a1", "b1", "c1"]
    assert bench.tally.dropped == 1


def test_who_is_stopped_waits_for_what_still_runs(monkeypatch):
    """Leases are given back after it: nobody rewrites under a lease that is another's."""
    bench = Bench(monkeypatch, [["a1", "a2"], ["b1", "b2"]])
    bench.stop = True
    bench.end(0)
    assert bench.committed == ["a1"]
    assert bench.error is None, "b is being rewritten, and so is a's next step"
    bench.end(1)
    assert bench.error is None
    bench.end(2)
    assert isinstance(bench.error, Interrupted)
    assert len(bench.jobs) == 3, "nothing more was begun"


def test_the_budget_of_bytes_holds_for_all_bins_together(monkeypatch):
    bench = Bench(monkeypatch, [["a1", "a2"], ["b1"]], bytes_per_s_max=STEP_BYTES)
    bench.end(0)
    bench.end(1)
    assert bench.rests_ms == [1_000, 1_000], "two steps that began together take two seconds"


def test_a_pause_is_not_made_up_for(monkeypatch):
    bench = Bench(monkeypatch, [["a1", "a2", "a3"]], bytes_per_s_max=STEP_BYTES)
    bench.now_ms += 3_600_000
    bench.end(0)
    assert bench.rests_ms == []
    bench.end(1)
    bench.end(2)
    assert bench.rests_ms == [1_000, 1_000], "as much a second as without the pause"


@pytest.mark.parametrize("first", [0, 1])
def test_an_error_waits_for_the_others_too(monkeypatch, first):
    bench = Bench(monkeypatch, [["a1"], ["b1"]])
    bench.jobs[first].result = _raise
    bench.end(first)
    assert bench.error is None
    bench.end(1 - first)
    assert isinstance(bench.error, Interrupted)


def _raise():
    raise Interrupted("the store is away")
