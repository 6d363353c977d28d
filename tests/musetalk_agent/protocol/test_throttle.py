"""How much a sender may do: the bucket beside exact arithmetic, the memory of callers, and wrong keys."""

from __future__ import annotations

import math
from collections import OrderedDict
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.protocol import throttle
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import (
    FAILURES_BURST,
    FAILURES_PER_S,
    REMEMBERED,
    Failures,
    Recent,
    TokenBucket,
    limited,
    network,
)

EIGHTHS = st.integers(0, 400).map(lambda n: n / 8)
"""Numbers that floats hold exactly, so that the arithmetic can be compared exactly."""
TAKES = st.lists(st.tuples(EIGHTHS, EIGHTHS), max_size=40)


@given(st.sampled_from([0.0, 0.125, 0.5, 2.0, 16.0]), EIGHTHS, TAKES)
def test_a_bucket_grants_what_exact_arithmetic_grants(
    rate: float, burst: float, takes: list[tuple[float, float]]
) -> None:
    bucket, now, level = TokenBucket(rate, burst, 100.0), 100.0, Fraction(burst)
    for pause, amount in takes:
        now += pause
        level = min(Fraction(burst), level + Fraction(pause) * Fraction(rate))
        granted = bucket.take(amount, now)
        assert granted == (amount <= level), "and what is refused costs nothing"
        level -= Fraction(amount) if granted else 0
        missing = Fraction(amount) - level
        wanted = 0.0 if missing <= 0 else float(missing / Fraction(rate)) if rate else math.inf
        assert bucket.wait_s(amount) == pytest.approx(wanted)


@given(st.integers(1, 50), st.integers(1, 100), st.lists(st.integers(0, 3000), min_size=1, max_size=60))
def test_no_pattern_of_asking_gets_more_than_the_burst_and_the_rate(rate: int, burst: int, pauses: list[int]) -> None:
    bucket, now, granted = TokenBucket(rate, burst, 0.0), 0, 0
    for pause in pauses:
        now += pause
        while granted < 10**6 and bucket.take(1, now / 1000):
            granted += 1
        assert granted <= burst + rate * now / 1000 + 1e-6


@given(st.floats(0.01, 100), st.floats(1, 100), st.floats(1, 50))
def test_after_the_wait_that_was_named_the_amount_is_there(rate: float, burst: float, amount: float) -> None:
    bucket = TokenBucket(rate, burst + amount, 5.0)
    assert bucket.take(burst, 5.0)
    bucket.take(0, 5.0)
    wait_s = bucket.wait_s(amount)
    assert bucket.take(amount, 5.0 + wait_s * (1 + 1e-9) + 1e-9)


@pytest.mark.parametrize("now", [196.79260443782076, 1e5 / 3, 1e7 / 7])
def test_rounding_of_the_clock_takes_nothing_from_who_waits(now: float) -> None:
    """A minute after the last one it may start again, whatever `(now + 60) - now` is in floats."""
    bucket = TokenBucket(1 / 60, 1.0, 0.0)
    for _ in range(100):
        assert bucket.take(1, now)
        assert not bucket.take(1, now + 59.9)
        now += 60


@given(st.lists(st.tuples(st.sampled_from(["get", "find", "put"]), st.integers(0, 6)), min_size=15, max_size=80))
def test_the_memory_is_that_of_the_lately_used(acts: list[tuple[str, int]]) -> None:
    kept: Recent[int] = Recent()
    model: OrderedDict[str, int] = OrderedDict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throttle, "REMEMBERED", 4)
        for made, (act, number) in enumerate(acts):
            name = str(number)
            if act == "find":
                assert kept.find(name) == model.get(name)
            elif act == "put" and name in model:
                assert kept.put(name, made) == made
                model[name] = made
            elif act == "get":
                assert kept.get(name, lambda made=made: made) == model.setdefault(name, made)
                model.move_to_end(name)
                if len(model) > 4:
                    model.popitem(last=False)
            assert len(kept) == len(model) <= 4
            assert [kept.find(str(one)) for one in range(10)] == [model.get(str(one)) for one in range(10)]


def wrong(failures: Failures, address: str, now: float, times: int = 1) -> None:
    for _ in range(times):
        failures.admit(address, None, now)


def test_so_many_wrong_keys_are_let_through_and_the_next_call_is_refused_with_a_time() -> None:
    failures = Failures()
    wrong(failures, "192.0.2.1", 0.0, FAILURES_BURST)
    for caller in (None, "a newcomer"):
        with pytest.raises(
            ProblemError, match=r"Too many wrong keys came from your address\. Try again in 2 s\."
        ) as no:
            failures.admit("192.0.2.1", caller, 0.0)
        assert (no.value.code, no.value.status, no.value.retry_after_s) == (ErrorCode.RATE_LIMITED, 429, 2)
        assert no.value.limit == FAILURES_PER_S
    failures.admit("192.0.2.2", None, 0.0)


def test_after_the_time_that_was_named_one_more_is_let_through() -> None:
    failures = Failures()
    wrong(failures, "192.0.2.1", 0.0, FAILURES_BURST)
    wrong(failures, "192.0.2.1", 2.0)
    with pytest.raises(ProblemError):
        wrong(failures, "192.0.2.1", 2.0)
    wrong(failures, "192.0.2.1", 1000.0, FAILURES_BURST)


def test_a_caller_that_was_let_in_before_stays_in_whatever_its_neighbours_try() -> None:
    failures = Failures()
    failures.admit("192.0.2.1", "ada", 0.0)
    wrong(failures, "192.0.2.1", 0.0, FAILURES_BURST)
    for _ in range(100):
        failures.admit("192.0.2.1", "ada", 0.0)
    with pytest.raises(ProblemError):
        failures.admit("192.0.2.1", "bob", 0.0)
    wrong(failures, "192.0.2.2", 0.0, FAILURES_BURST)
    with pytest.raises(ProblemError):  # ada is known at the other address only
        failures.admit("192.0.2.2", "ada", 0.0)


def test_right_keys_cost_nothing() -> None:
    failures = Failures()
    for number in range(10 * FAILURES_BURST):
        failures.admit("192.0.2.1", f"caller {number}", 0.0)
    wrong(failures, "192.0.2.1", 0.0, FAILURES_BURST)


def test_a_crowd_of_addresses_is_forgotten_from_its_quietest_on() -> None:
    failures = Failures()
    wrong(failures, "192.0.2.1", 0.0, FAILURES_BURST)
    for number in range(REMEMBERED):
        wrong(failures, f"10.0.{number >> 8}.{number & 255}", 0.0)
    wrong(failures, "192.0.2.1", 0.0)  # a new bucket


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.1"),
        ("::1", "::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("", ""),
    ],
)
def test_an_address_belongs_to_itself_and_one_of_ipv6_to_its_network(address: str, place: str) -> None:
    assert network(address) == place


def test_wrong_keys_of_one_ipv6_customer_count_together() -> None:
    failures = Failures()
    for number in range(FAILURES_BURST):
        wrong(failures, f"2001:db8::{number:x}", 0.0)
    with pytest.raises(ProblemError):
        wrong(failures, "2001:db8::ffff", 0.0)
    wrong(failures, "2001:db8:0:1::1", 0.0)


@pytest.mark.parametrize(
    ("wait_s", "reported"),
    [(0.0, 1), (0.2, 1), (1.0, 1), (1.01, 2), (59.5, 60), (86_400, 86_400), (86_401, 86_400), (math.inf, 86_400)],
)
def test_the_time_of_a_refusal_is_whole_seconds_at_least_one_and_a_day_at_most(wait_s: float, reported: int) -> None:
    refusal = limited("The key 'a' is slow.", 0.5, wait_s)
    assert refusal.retry_after_s == reported and refusal.limit == 0.5
    assert str(refusal) == f"The key 'a' is slow. Try again in {reported} s."
