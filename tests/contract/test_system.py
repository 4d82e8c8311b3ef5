"""The machine's clock, chance and threads, and the log lines of a worker."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from delta_sink.adapters.logs import LogTelemetry
from delta_sink.adapters.system import SystemClock, SystemEntropy, ThreadJobs
from delta_sink.ports import Clock, Entropy, Jobs
from tests.contract.system_contract import (
    ClockContract,
    EntropyContract,
    JobsContract,
    TelemetryContract,
)


@pytest.fixture
def jobs():
    jobs = ThreadJobs(2)
    yield jobs
    assert jobs.close(5_000)


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self):
        return SystemClock()


class TestSystemEntropy(EntropyContract):
    @pytest.fixture
    def entropy(self):
        return SystemEntropy()


class TestThreadJobs(JobsContract):
    @pytest.fixture
    def clock(self):
        return SystemClock()


class TestLogTelemetry(TelemetryContract):
    @pytest.fixture
    def telemetry(self):
        self.lines = io.StringIO()
        return LogTelemetry(self.lines, format="json", clock=SystemClock())

    def events(self, telemetry):
        said = [json.loads(line) for line in self.lines.getvalue().splitlines()]
        return [(one["event"], one["level"], one) for one in said]

    def counted(self, telemetry, metric, **tags):
        return telemetry.snapshot().value(metric, **tags)

    def observed(self, telemetry, metric, **tags):
        found = telemetry.snapshot().histograms[metric, tuple(tags.items())]
        return found.count, found.sum


def test_they_are_what_the_ports_ask_for(jobs):
    clock: Clock = SystemClock()
    entropy: Entropy = SystemEntropy()
    port: Jobs = jobs
    assert clock
    assert entropy
    assert port


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="only Linux has CLOCK_BOOTTIME")
def test_elapsed_counts_suspended_time():
    assert abs(SystemClock().elapsed_ms() - time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) < 1_000


def wait_for(jobs, job):
    for _ in range(100):
        if job.is_done():
            return job
        jobs.wait_ms(100)
    raise AssertionError("the job did not end")


def test_the_wall_clock_is_that_of_the_machine():
    assert abs(SystemClock().wall_ms() - time.time() * 1000) < 1_000


def test_jobs_run_in_threads_and_in_order(jobs):
    job = wait_for(jobs, jobs.submit("who", threading.get_ident))
    assert job.result() != threading.get_ident()
    single = ThreadJobs(1)
    order = []
    last = [
        single.submit("in order", lambda number=number: order.append(number))
        for number in range(50)
    ][-1]
    wait_for(single, last)
    assert order == list(range(50))
    assert single.close(1_000)


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
from delta_sink.adapters.logs import LogTelemetry
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
