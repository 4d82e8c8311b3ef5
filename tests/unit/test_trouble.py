"""Failures in a row: waits grow up to a limit, each reason is told once, success ends it."""

from __future__ import annotations

from delta_sink.trouble import RETRY_FIRST_MS, RETRY_MAX_MS, Trouble


def test_waits_grow_up_to_a_limit():
    trouble = Trouble()
    waits = []
    for _ in range(12):
        trouble.failed("no answer", 1_000)
        waits.append(trouble.retry_at_ms - 1_000)
    assert waits[:3] == [RETRY_FIRST_MS, 2 * RETRY_FIRST_MS, 4 * RETRY_FIRST_MS]
    assert waits[-1] == RETRY_MAX_MS


def test_a_reason_is_told_once_and_another_again():
    trouble = Trouble()
    told = [trouble.failed(reason, 0) for reason in ("a", "a", "b", "b", "a")]
    assert told == [True, False, True, False, True]


def test_it_has_lasted_since_the_first_failure_until_it_is_over():
    trouble = Trouble()
    assert trouble.lasted_ms(500) == 0
    trouble.failed("a", 1_000)
    trouble.failed("a", 5_000)
    assert trouble.lasted_ms(6_000) == 5_000
    trouble.is_over()
    assert trouble.lasted_ms(7_000) == 0
    assert trouble.failed("a", 8_000)
    assert trouble.retry_at_ms == 8_000 + RETRY_FIRST_MS
