"""Waits between tries, whatever is asked for: never shorter than asked, never beyond the schedule; and any `Retry-After`."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol.retries import CALL, LINK, SPREAD, VOICE, Schedule, Tries, retry_after_s

SCHEDULES = st.sampled_from([LINK, CALL, VOICE, Schedule(0.5, 1.0, 0.5, 3.0)])
ASKED = st.lists(st.none() | st.floats(0, 200), min_size=1, max_size=40)


@given(SCHEDULES, ASKED, st.lists(st.floats(0, 1), min_size=1, max_size=5), st.floats(0, 3))
def test_each_wait_is_as_long_as_was_asked_and_all_end_with_the_schedule(
    schedule: Schedule, asked: list[float | None], spreads: list[float], took_s: float
) -> None:
    now, turn = 50.0, 0

    def spread() -> float:
        nonlocal turn
        turn += 1
        return spreads[turn % len(spreads)]

    tries, plain = Tries(schedule, clock=lambda: now, spread=spread), schedule.first_s
    for retry_after in asked:
        left = 50.0 + schedule.total_s - now
        wait = tries.next_wait_s(retry_after)
        if wait is None:
            assert left <= (retry_after or 0.0) + 1e-9
            return
        at_least = max(plain, retry_after or 0.0)
        assert min(at_least, left) - 1e-9 <= wait <= min(at_least * (1 + SPREAD), left) + 1e-9
        plain = min(schedule.longest_s, plain * schedule.factor)
        now += wait + took_s


@given(SCHEDULES)
def test_a_call_that_never_succeeds_is_given_up_after_the_schedule_s_time(schedule: Schedule) -> None:
    now, tries_made = 0.0, 0
    tries = Tries(schedule, clock=lambda: now, spread=lambda: 0.0)
    while (wait := tries.next_wait_s()) is not None:
        now += wait
        tries_made += 1
        assert tries_made < 500
    assert now == pytest.approx(schedule.total_s)


@given(st.integers(-(10**7), 10**8))
def test_a_date_is_so_many_seconds_from_now_and_one_that_is_past_none(seconds: int) -> None:
    now = datetime(2026, 11, 28, 20, 53, tzinfo=UTC)
    header = format_datetime(now + timedelta(seconds=seconds), usegmt=True)
    assert retry_after_s(header, now=now.timestamp) == max(0, seconds)


@given(
    st.one_of(
        st.text(max_size=30),
        st.integers().map(str),
        st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ [\d:+ -]{0,20}"),
    )
)
def test_no_header_breaks_the_reader(header: str) -> None:
    found = retry_after_s(header, now=lambda: 0.0)
    assert found is None or (found >= 0 and math.isfinite(found))
