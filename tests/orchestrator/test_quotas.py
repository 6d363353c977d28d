from __future__ import annotations

import pytest

from musetalk_agent.protocol import throttle
from musetalk_agent.protocol.problems import ProblemError
from musetalk_agent.protocol.throttle import Failures, network
from orchestrator import quotas
from orchestrator.keys import Caller, KeyLimits, Scope
from orchestrator.quotas import Quotas


def caller(name: str = "shop", **limits: float) -> Caller:
    return Caller(name, Scope.STARTER, KeyLimits(**limits))  # type: ignore[arg-type]


def test_requests_fill_up_again_by_time() -> None:
    held, shop = Quotas(), caller(requests_per_second=2)
    for _ in range(4):  # two seconds' worth
        held.request(shop, 10.0)
    with pytest.raises(ProblemError) as caught:
        held.request(shop, 10.0)
    error = caught.value
    assert (error.code, error.status, error.limit, error.retry_after_s) == ("rate_limited", 429, 2, 1)
    held.request(caller("other", requests_per_second=2), 10.0)
    held.request(shop, 10.5)
    with pytest.raises(ProblemError):
        held.request(shop, 10.5)


def test_without_a_limit_there_is_none() -> None:
    held = Quotas()
    for _ in range(10_000):
        held.request(caller(), 0.0)
        held.start(caller(), 10_000, 0.0)


def test_limits_that_were_changed_count_at_once() -> None:
    held = Quotas()
    held.request(caller(requests_per_second=0.5), 0.0)
    with pytest.raises(ProblemError):
        held.request(caller(requests_per_second=0.5), 0.0)
    held.request(caller(requests_per_second=5), 0.0)


def test_starts_and_sessions() -> None:
    held, shop = Quotas(), caller(max_sessions=2, starts_per_minute=3)
    for _ in range(3):
        held.start(shop, 1, 0.0)
    with pytest.raises(ProblemError) as caught:
        held.start(shop, 2, 0.0)
    assert (caught.value.code, caught.value.limit, caught.value.value) == ("quota_exceeded", 2, 2)
    with pytest.raises(ProblemError) as caught:
        held.start(shop, 1, 0.0)
    assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 20)
    held.start(shop, 1, 20.0)
    with pytest.raises(ProblemError) as caught:
        held.start(caller("none", max_sessions=0), 0, 0.0)
    assert caught.value.code == "quota_exceeded"


def test_connections_are_counted_while_they_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "CONNECTIONS_PER_CALLER", 2)
    held = Quotas()
    with held.connection("shop"), held.connection("shop"):
        with held.connection("other"), pytest.raises(ProblemError) as caught, held.connection("shop"):
            raise AssertionError
        assert caught.value.code == "quota_exceeded"
    with held.connection("shop"):
        pass


def test_an_audio_that_is_opened_in_a_loop_is_slowed_down() -> None:
    held = Quotas()
    for _ in range(quotas.CONNECTS_BURST):
        held.connect("ses_a", 0.0)
    with pytest.raises(ProblemError):
        held.connect("ses_a", 0.0)
    held.connect("ses_b", 0.0)
    held.connect("ses_a", 1.0)


def test_an_address_that_tries_keys_is_refused_whatever_it_sends() -> None:
    failures, friend, stranger = Failures(), caller("friend"), caller("stranger")
    failures.admit("192.0.2.1", friend.name, 0.0)
    for _ in range(throttle.FAILURES_BURST):
        failures.admit("192.0.2.1", None, 0.0)
    for each in (None, stranger.name):
        with pytest.raises(ProblemError) as caught:
            failures.admit("192.0.2.1", each, 0.0)
        assert (caught.value.code, caught.value.retry_after_s) == ("rate_limited", 2)
    failures.admit("192.0.2.1", friend.name, 0.0)  # who came before is not locked out by a neighbour
    failures.admit("192.0.2.2", stranger.name, 0.0)
    failures.admit("192.0.2.1", stranger.name, 2.0)
    with pytest.raises(ProblemError):
        for _ in range(3):
            failures.admit("192.0.2.1", None, 2.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "", False),
    ],
)
def test_whom_an_address_belongs_to(one: str, other: str, same: bool) -> None:
    assert (network(one) == network(other)) is same


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttle, "REMEMBERED", 8)
    failures = Failures()
    for number in range(100):
        failures.admit(f"192.0.2.{number}", None, 0.0)
    assert len(failures._wrong) == 8
