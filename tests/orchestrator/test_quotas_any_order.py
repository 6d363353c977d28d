"""Rates and quotas over any course of time: what is let through never passes the limit, and what must wait may come then."""

from __future__ import annotations

import ipaddress
from contextlib import ExitStack

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol import throttle
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import Failures, TokenBucket, network
from orchestrator import quotas
from orchestrator.keys import Caller, KeyLimits, Scope
from orchestrator.quotas import REQUEST_BURST_S, Quotas

_gaps = st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=60)
_rate = st.floats(0.01, 50, allow_nan=False)


def refused(problem: ProblemError) -> int:
    assert problem.code is ErrorCode.RATE_LIMITED and problem.retry_after_s is not None
    return problem.retry_after_s


@settings(max_examples=300)
@given(rate=_rate, burst=st.floats(1, 40), calls=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 50)), max_size=60))
def test_a_bucket_gives_no_more_than_its_burst_and_its_rate_in_any_window(
    rate: float, burst: float, calls: list[tuple[float, float]]
) -> None:
    bucket, now, taken = TokenBucket(rate, burst, 0.0), 0.0, list[tuple[float, float]]()
    for gap, amount in calls:
        now += gap
        if bucket.take(amount, now):
            taken.append((now, amount))
        elif amount <= burst:
            wait_s = bucket.wait_s(amount)
            assert wait_s > 0
            now += wait_s * (1 + 1e-9) + 1e-9
            assert bucket.take(amount, now), "after the wait that it asked for it gives"
            taken.append((now, amount))
    for begin in range(len(taken)):
        for end in range(begin, len(taken)):
            window = taken[end][0] - taken[begin][0]
            assert sum(amount for _, amount in taken[begin : end + 1]) <= burst + rate * window + 1e-6


@settings(max_examples=200)
@given(rate=_rate, gaps=_gaps)
def test_requests_of_a_key_keep_within_its_rate_and_come_again_after_retry_after(
    rate: float, gaps: list[float]
) -> None:
    held, caller, now, let = (
        Quotas(),
        Caller("k", Scope.VIEWER, KeyLimits(requests_per_second=rate)),
        5.0,
        list[float](),
    )
    for gap in gaps:
        now += gap
        try:
            held.request(caller, now)
        except ProblemError as problem:
            now += refused(problem)
            held.request(caller, now)
        let.append(now)
    burst = max(1.0, rate * REQUEST_BURST_S)
    for begin, first in enumerate(let):
        assert len(let) - begin <= burst + rate * (let[-1] - first) + 1e-6


@settings(max_examples=200)
@given(
    per_minute=st.integers(1, 30),
    most=st.integers(1, 5),
    acts=st.lists(st.tuples(st.booleans(), st.floats(0, 40)), max_size=60),
)
def test_starts_keep_within_both_limits(per_minute: int, most: int, acts: list[tuple[bool, float]]) -> None:
    held, now, running, let = Quotas(), 0.0, 0, list[float]()
    caller = Caller("k", Scope.STARTER, KeyLimits(max_sessions=most, starts_per_minute=per_minute))
    for starts, gap in acts:
        now += gap
        if not starts:
            running = max(0, running - 1)
            continue
        try:
            held.start(caller, running, now)
        except ProblemError as problem:
            assert problem.code is (ErrorCode.QUOTA_EXCEEDED if running >= most else ErrorCode.RATE_LIMITED)
            if running < most:
                now += refused(problem)
                held.start(caller, running, now)
                running += 1
                let.append(now)
        else:
            running += 1
            let.append(now)
        assert running <= most
    for begin, first in enumerate(let):
        assert len(let) - begin <= per_minute + per_minute * (let[-1] - first) / 60 + 1e-6


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e-9])
def test_a_rate_of_almost_nothing_is_a_long_wait_and_no_crash(rate: float) -> None:
    """`KeyEntry` takes whatever is above zero."""
    held, caller = Quotas(), Caller("k", Scope.STARTER, KeyLimits(requests_per_second=rate, starts_per_minute=rate))
    held.request(caller, 0.0)
    held.start(caller, 0, 0.0)
    for call in (lambda: held.request(caller, 60.0), lambda: held.start(caller, 0, 60.0)):
        with pytest.raises(ProblemError) as caught:
            call()
        assert refused(caught.value) == throttle.LONGEST_WAIT_S


@given(first=st.integers(1, 20), then=st.integers(1, 20))
def test_a_limit_that_was_changed_counts_at_once(first: int, then: int) -> None:
    held = Quotas()
    for rate in (first, then):
        caller = Caller("k", Scope.VIEWER, KeyLimits(requests_per_second=rate))
        for _ in range(round(max(1, rate * REQUEST_BURST_S))):
            held.request(caller, 0.0)
        assume(first != then)
        with pytest.raises(ProblemError):
            held.request(caller, 0.0)


@given(opened=st.lists(st.sampled_from("ab"), max_size=12))
def test_connections_are_counted_for_each_caller_and_given_back(opened: list[str]) -> None:
    held, count = Quotas(), {"a": 0, "b": 0}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(quotas, "CONNECTIONS_PER_CALLER", 3)
        for name in opened:
            if count[name] < 3:
                stack.enter_context(held.connection(name))
                count[name] += 1
            else:
                with pytest.raises(ProblemError) as caught, held.connection(name):
                    pass
                assert caught.value.code is ErrorCode.QUOTA_EXCEEDED
        assert held._open == {name: many for name, many in count.items() if many}
    assert held._open == {}


@settings(max_examples=150)
@given(
    tries=st.lists(st.tuples(st.booleans(), st.floats(0, 4)), max_size=80),
    addresses=st.sampled_from([["10.0.0.1"], ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:1"]]),
)
def test_an_address_guesses_no_faster_than_it_may_and_who_was_let_in_stays_let_in(
    tries: list[tuple[bool, float]], addresses: list[str]
) -> None:
    failures, now, wrong, known = Failures(), 0.0, list[float](), False
    for number, (right, gap) in enumerate(tries):
        now += gap
        try:
            failures.admit(addresses[number % len(addresses)], "shop" if right else None, now)
        except ProblemError as problem:
            assert refused(problem) >= 1 and not (right and known)
        else:
            known = known or right
            wrong += [] if right else [now]
    for begin, first in enumerate(wrong):
        assert len(wrong) - begin <= throttle.FAILURES_BURST + throttle.FAILURES_PER_S * (wrong[-1] - first) + 1e-6


@given(first=st.ip_addresses(v=6), second=st.ip_addresses(v=6), host=st.integers(0, 2**64 - 1))
def test_a_customer_has_one_network_however_many_addresses(
    first: ipaddress.IPv6Address, second: ipaddress.IPv6Address, host: int
) -> None:
    neighbour = ipaddress.IPv6Address((int(first) >> 64 << 64) | host)
    assume(first.ipv4_mapped is None and neighbour.ipv4_mapped is None and second.ipv4_mapped is None)
    assert network(str(neighbour)) == network(str(first))
    assert (network(str(first)) == network(str(second))) == (int(first) >> 64 == int(second) >> 64)


@given(address=st.ip_addresses(v=4))
def test_an_ipv4_address_stands_for_itself(address: ipaddress.IPv4Address) -> None:
    assert network(str(address)) == str(address)
    assert network(f"::ffff:{address}") == f"::ffff:{address}"
