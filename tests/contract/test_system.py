"""The machine's clock, chance and threads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from delta_sink.adapters.system import SystemClock, SystemEntropy, ThreadJobs
from delta_sink.ports import Clock, Entropy, Jobs


@pytest.fixture
def jobs():
    jobs = ThreadJobs(2)
    yield jobs
    assert jobs.close(5_000)


def test_they_are_what_the_ports_ask_for(jobs):
    clock: Clock = SystemClock()
    entropy: Entropy = SystemEntropy()
    port: Jobs = jobs
    assert clock
    assert entropy
    assert port


def test_wall_clock_is_in_milliseconds_of_utc():
    assert abs(SystemClock().wall_ms() - time.time() * 1000) < 1_000


def test_elapsed_never_falls_and_moves_with_time():
    clock = SystemClock()
    readings = [clock.elapsed_ms() for _ in range(1_000)]
    assert readings == sorted(readings)
    before = clock.elapsed_ms()
    clock.sleep_ms(30)
    assert 30 <= clock.elapsed_ms() - before < 5_000
    clock.sleep_ms(0)
    clock.sleep_ms(-5)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has CLOCK_BOOTTIME")
def test_elapsed_counts_suspended_time():
    assert abs(SystemClock().elapsed_ms() - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < 1_000


def test_ids_are_unique_and_hexadecimal():
    entropy = SystemEntropy()
    ids = [entropy.unique_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_fractions_are_spread_over_the_unit_interval():
    entropy = SystemEntropy()
    fractions = [entropy.fraction() for _ in range(2_000)]
    assert all(0 <= one < 1 for one in fractions)
    assert min(fractions) < 0.05
    assert max(fractions) > 0.95


def wait_for(jobs, job):
    for _ in range(100):
        if job.is_done():
            return job
        jobs.wait_ms(100)
    raise AssertionError("the job did not end")


def test_a_job_returns_its_value(jobs):
    main = threading.get_ident()
    job = jobs.submit("answer", lambda: (42, threading.get_ident()))
    value, thread = wait_for(jobs, job).result()
    assert value == 42
    assert thread != main
    assert job.result() == (42, thread)


def test_a_job_raises_what_it_raised(jobs):
    def fail():
        raise ValueError("no")

    job = wait_for(jobs, jobs.submit("fail", fail))
    with pytest.raises(ValueError, match="no"):
        job.result()
    leaving = wait_for(jobs, jobs.submit("exit", sys.exit))
    with pytest.raises(SystemExit):
        leaving.result()
    assert wait_for(jobs, jobs.submit("after", lambda: 1)).result() == 1


def test_a_result_before_the_end_is_a_programmers_error(jobs):
    go = threading.Event()
    job = jobs.submit("slow", lambda: go.wait(10))
    with pytest.raises(AssertionError, match="job slow is not done"):
        job.result()
    go.set()
    wait_for(jobs, job)


def test_jobs_run_side_by_side_and_in_order(jobs):
    barrier = threading.Barrier(2)
    both = [jobs.submit("meet", lambda: barrier.wait(10)) for _ in range(2)]
    assert sorted(wait_for(jobs, job).result() for job in both) == [0, 1]
    single = ThreadJobs(1)
    order = []
    last = [
        single.submit("in order", lambda number=number: order.append(number))
        for number in range(50)
    ][-1]
    wait_for(single, last)
    assert order == list(range(50))
    assert single.close(1_000)


def test_wait_ends_when_a_job_ends(jobs):
    go = threading.Event()
    job = jobs.submit("slow", lambda: go.wait(10))
    threading.Timer(0.05, go.set).start()
    before = time.monotonic()
    jobs.wait_ms(10_000)
    assert time.monotonic() - before < 5
    assert job.is_done()


def test_wait_ends_at_once_for_a_job_that_ended_between_two_waits(jobs):
    job = jobs.submit("quick", lambda: None)
    while not job.is_done():
        time.sleep(0.001)
    time.sleep(0.05)
    before = time.monotonic()
    jobs.wait_ms(10_000)
    assert time.monotonic() - before < 5
    before = time.monotonic()
    jobs.wait_ms(80)
    assert time.monotonic() - before >= 0.079


def test_no_end_is_ever_missed(jobs):
    for number in range(500):
        job = jobs.submit("tick", lambda number=number: number)
        before = time.monotonic()
        while not job.is_done():
            jobs.wait_ms(10_000)
        assert job.result() == number
        assert time.monotonic() - before < 5


def test_wait_lasts_as_long_as_it_is_told_when_nothing_ends(jobs):
    before = time.monotonic()
    jobs.wait_ms(60)
    assert 0.059 <= time.monotonic() - before < 5
    jobs.wait_ms(0)


def test_wake_ends_the_wait(jobs):
    jobs.wake()
    before = time.monotonic()
    jobs.wait_ms(10_000)
    assert time.monotonic() - before < 5


def test_a_signal_handler_may_wake(jobs):
    seen = []

    def handle(*_):
        seen.append(True)
        jobs.wake()

    previous = signal.signal(signal.SIGUSR1, handle)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        before = time.monotonic()
        jobs.wait_ms(10_000)
        assert time.monotonic() - before < 5
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert seen


def test_values_are_let_go_of(jobs):
    import weakref

    class Large:
        pass

    job = wait_for(jobs, jobs.submit("large", Large))
    gone = weakref.ref(job.result())
    del job
    assert gone() is None


def test_close_does_not_wait_for_a_stuck_job():
    jobs = ThreadJobs(2)
    go = threading.Event()
    begun = threading.Barrier(3)
    stuck = jobs.submit("stuck", lambda: (begun.wait(10), go.wait(30)))
    also = jobs.submit("stuck too", lambda: (begun.wait(10), go.wait(30)))
    begun.wait(10)
    never = jobs.submit("never begun", lambda: pytest.fail("ran after close"))
    before = time.monotonic()
    assert not jobs.close(100)
    assert 0.09 < time.monotonic() - before < 5
    go.set()
    while not (stuck.is_done() and also.is_done()):
        time.sleep(0.001)
    assert not never.is_done()
    assert jobs.close(5_000)
    with pytest.raises(AssertionError, match="after close"):
        jobs.submit("late", lambda: None)


@pytest.mark.process
def test_a_process_ends_although_a_job_is_stuck():
    script = """
import threading
from delta_sink.adapters.system import ThreadJobs
jobs = ThreadJobs(1)
jobs.submit("stuck", threading.Event().wait)
jobs.wait_ms(20)
print(jobs.close(20))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
