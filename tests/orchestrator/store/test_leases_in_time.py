"""Leases of the SQLite store to the second: its clock is the test's."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from orchestrator.store.session_store import derive
from orchestrator.store.sqlite import MEMORY, SqliteStore
from tests.orchestrator.store.test_stores import KEEP_S, stored


class Clock:
    """Monotonic seconds of the store's module."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return time.time()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("orchestrator.store.sqlite.time", made)
    return made


@pytest.fixture
async def store() -> AsyncIterator[SqliteStore]:
    made = SqliteStore(MEMORY, KEEP_S)
    await made.open()
    yield made
    await made.aclose()


@pytest.mark.parametrize(("later_s", "holder"), [(0.0, "one"), (9.9, "one"), (10.0, None), (1e6, None)])
async def test_a_lease_ends_with_its_time(store: SqliteStore, clock: Clock, later_s: float, holder: str | None) -> None:
    assert await store.claim("ses_a", "one", 10.0)
    clock.now += later_s
    assert await store.holder("ses_a") == holder and await store.holders(["ses_a"]) == {"ses_a": holder}
    assert await store.claim("ses_a", "two", 10.0) is (holder is None)


async def test_one_that_renews_in_time_keeps_it_and_one_that_is_late_takes_it_again(
    store: SqliteStore, clock: Clock
) -> None:
    await store.save(stored())
    assert await store.claim("ses_a", "one", 10.0)
    for _ in range(20):
        clock.now += 9.0
        assert await store.renew(["ses_a"], "one", 10.0) == set()
    clock.now += 30.0
    assert await store.holder("ses_a") is None
    assert await store.renew(["ses_a"], "one", 10.0) == set(), "nobody took it meanwhile"
    clock.now += 30.0
    assert await store.claim("ses_a", "two", 10.0)
    assert await store.renew(["ses_a"], "one", 10.0) == {"ses_a"}


async def test_a_longer_lease_is_not_cut_short_by_another_ones_claim(store: SqliteStore, clock: Clock) -> None:
    assert await store.claim("ses_a", "one", 100.0)
    assert not await store.claim("ses_a", "two", 1.0)
    await store.release("ses_a", "two")
    clock.now += 99.0
    assert await store.holder("ses_a") == "one"


KEY = "7ee1b61698d7854b95b6ad14d90ab4f8b893125262052b6a27ccc3124226f21c"
"""`printf 'sessions\\0dep_1' | openssl dgst -sha256 -hmac secret`: records that an older program sealed must open for ever."""


@pytest.mark.parametrize(
    ("secret", "purpose", "deployment", "same"),
    [
        ("secret", "sessions", "dep_1", True),
        ("secret", "sessions", "dep_2", False),
        ("secret", "sessionsdep_1", "", False),
        ("", "sessions", "dep_1", False),
    ],
)
def test_a_key_is_for_one_purpose_of_one_deployment(secret: str, purpose: str, deployment: str, same: bool) -> None:
    assert (derive(secret, purpose, deployment).hex() == KEY) is same
