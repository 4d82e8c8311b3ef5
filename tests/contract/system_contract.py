"""What clocks, chance, jobs and telemetry must do, on the machine and in a world.

Time is measured by the clock of the same implementation, and nothing here starts a thread, so that
the same tests hold where the time is virtual.
"""

from __future__ import annotations

import re
import sys

import pytest

from delta_sink import telemetry as declared

HOUR_MS = 3_600_000
YEAR_2020_MS = 1_577_836_800_000


class ClockContract:
    """Give `clock` as a fixture."""

    def test_the_wall_clock_counts_milliseconds_since_1970(self, clock):
        assert YEAR_2020_MS < clock.wall_ms() < 4 * YEAR_2020_MS

    def test_elapsed_never_falls(self, clock):
        readings = [clock.elapsed_ms() for _ in range(1_000)]
        assert readings == sorted(readings)

    def test_a_sleep_lasts_at_least_as_long_as_it_is_told(self, clock):
        before_ms = clock.elapsed_ms()
        clock.sleep_ms(30)
        assert 30 <= clock.elapsed_ms() - before_ms < HOUR_MS

    def test_no_time_is_slept_at_once(self, clock):
        clock.sleep_ms(0)
        clock.sleep_ms(-5)


class EntropyContract:
    """Give `entropy` as a fixture."""

    def test_ids_are_unique_and_hexadecimal(self, entropy):
        ids = [entropy.unique_id() for _ in range(10_000)]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)

    def test_fractions_are_spread_over_the_unit_interval(self, entropy):
        fractions = [entropy.fraction() for _ in range(2_000)]
        assert all(0 <= one < 1 for one in fractions)
        assert min(fractions) < 0.05
        assert max(fractions) > 0.95


class JobsContract:
    """Give `jobs`, for two at a time, and `clock` as fixtures."""

    def ended(self, jobs, job):
        """Return the job once it has ended."""
        for _ in range(100):
            if job.is_done():
                return job
            jobs.wait_ms(100)
        raise AssertionError("the job did not end")

    def test_a_job_returns_its_value(self, jobs):
        job = self.ended(jobs, jobs.submit("answer", lambda: 42))
        assert job.result() == 42
        assert job.result() == 42

    def test_a_job_raises_what_it_raised(self, jobs):
        def fail():
            raise ValueError("no")

        job = self.ended(jobs, jobs.submit("fail", fail))
        with pytest.raises(ValueError, match="no"):
            job.result()

    def test_a_job_that_wants_to_exit_ends_nothing_but_itself(self, jobs):
        leaving = self.ended(jobs, jobs.submit("exit", sys.exit))
        with pytest.raises(SystemExit):
            leaving.result()
        assert self.ended(jobs, jobs.submit("after", lambda: 1)).result() == 1

    def test_a_result_before_the_end_is_a_programmers_error(self, jobs, clock):
        job = jobs.submit("slow", lambda: clock.sleep_ms(200))
        with pytest.raises(AssertionError, match=r"not done|before it is done"):
            job.result()
        self.ended(jobs, job)

    def test_two_jobs_run_side_by_side(self, jobs, clock):
        came: list[str] = []

        def meet(name):
            came.append(name)
            while len(came) < 2:
                clock.sleep_ms(1)
            return name

        both = [jobs.submit(name, lambda name=name: meet(name)) for name in ("a", "b")]
        assert [self.ended(jobs, job).result() for job in both] == ["a", "b"]

    def test_wait_ends_when_a_job_ends(self, jobs, clock):
        job = jobs.submit("slow", lambda: clock.sleep_ms(50))
        before_ms = clock.elapsed_ms()
        jobs.wait_ms(10_000)
        assert clock.elapsed_ms() - before_ms < 5_000
        assert job.is_done()

    def test_wait_ends_at_once_for_a_job_that_ended_between_two_waits(self, jobs, clock):
        job = jobs.submit("quick", lambda: None)
        while not job.is_done():
            clock.sleep_ms(1)
        clock.sleep_ms(50)
        before_ms = clock.elapsed_ms()
        jobs.wait_ms(10_000)
        assert clock.elapsed_ms() - before_ms < 5_000
        before_ms = clock.elapsed_ms()
        jobs.wait_ms(80)
        assert clock.elapsed_ms() - before_ms >= 79

    def test_no_end_is_ever_missed(self, jobs, clock):
        for number in range(500):
            job = jobs.submit("tick", lambda number=number: number)
            before_ms = clock.elapsed_ms()
            while not job.is_done():
                jobs.wait_ms(10_000)
            assert job.result() == number
            assert clock.elapsed_ms() - before_ms < 5_000

    def test_wait_lasts_as_long_as_it_is_told_when_nothing_ends(self, jobs, clock):
        before_ms = clock.elapsed_ms()
        jobs.wait_ms(60)
        assert 59 <= clock.elapsed_ms() - before_ms < 5_000
        jobs.wait_ms(0)

    def test_wake_ends_the_wait(self, jobs, clock):
        jobs.wake()
        before_ms = clock.elapsed_ms()
        jobs.wait_ms(10_000)
        assert clock.elapsed_ms() - before_ms < 5_000


class TelemetryContract:
    """Give `telemetry` as a fixture, and say what it has."""

    def events(self, telemetry):
        """Return every event so far: (name, level, fields)."""
        raise NotImplementedError

    def counted(self, telemetry, metric, **tags):
        """Return the value of a counter or a gauge."""
        raise NotImplementedError

    def observed(self, telemetry, metric, **tags):
        """Return how many observations there were, and their sum."""
        raise NotImplementedError

    def test_events_keep_their_order_and_their_fields(self, telemetry):
        telemetry.event(declared.REJOINED, "warning", reason="first")
        telemetry.event(declared.REJOINED, "warning", reason="second")
        said = [(level, fields["reason"]) for _, level, fields in self.events(telemetry)]
        assert said == [("warning", "first"), ("warning", "second")]

    def test_counters_add_up_by_tag(self, telemetry):
        for amount, topic in ((2, "a"), (3, "a"), (5, "b")):
            telemetry.count("delta_sink_consumed_records_total", amount, topic=topic)
        for topic, wanted in (("a", 5), ("b", 5)):
            assert (
                self.counted(telemetry, "delta_sink_consumed_records_total", topic=topic) == wanted
            )
        telemetry.count("delta_sink_rebalances_total")
        assert self.counted(telemetry, "delta_sink_rebalances_total") == 1

    def test_a_gauge_has_its_newest_value(self, telemetry):
        for value in (3, 7, 4):
            telemetry.gauge("delta_sink_table_version", value)
        assert self.counted(telemetry, "delta_sink_table_version") == 4

    def test_a_gauge_that_is_not_known_any_more_is_gone(self, telemetry):
        telemetry.gauge("delta_sink_table_version", 3)
        telemetry.gauge("delta_sink_table_version", None)
        telemetry.gauge("delta_sink_table_version", None)
        with pytest.raises(KeyError):
            self.counted(telemetry, "delta_sink_table_version")

    def test_every_observation_counts(self, telemetry):
        for value in (0.5, 0.25, 0.25):
            telemetry.observe("delta_sink_freshness_seconds", value, topic="a")
        assert self.observed(telemetry, "delta_sink_freshness_seconds", topic="a") == (3, 1.0)
