"""What is asked of a store for many sessions in one call, with the real ones: one refusal is nobody else's."""

from __future__ import annotations

import asyncio
import time

import pytest

from musetalk_agent.protocol.http import SessionState
from orchestrator.store.session_store import SessionStore
from tests.orchestrator.store.test_stores import KEEP_S, store, stored
from tests.waiting import until

__all__ = ["store"]
MANY = 200


async def test_many_records_are_written_in_one_call_and_listed_by_their_age(store: SessionStore) -> None:
    now = time.time()
    records = [stored(f"ses_{n:03}", created_at=now - n, moves=n) for n in range(MANY)]
    assert await store.save_all(records) == set()
    assert [one.session_id for one in await store.sessions()] == [f"ses_{n:03}" for n in reversed(range(MANY))]
    assert await store.load("ses_007") == records[7]
    assert await store.save_all([]) == set()


async def test_those_that_another_one_holds_are_named_and_the_others_written(store: SessionStore) -> None:
    records = [stored(f"ses_{n}") for n in range(6)]
    await store.save_all(records)
    for n in (1, 4):
        assert await store.claim(f"ses_{n}", "two", 30)
    later = [one.model_copy(update={"moves": 9}) for one in records]
    assert await store.save_all(later) == {"ses_1", "ses_4"}
    assert {one.session_id: one.moves for one in await store.sessions()} == {
        f"ses_{n}": 0 if n in (1, 4) else 9 for n in range(6)
    }


async def test_the_last_of_two_records_of_one_session_counts(store: SessionStore) -> None:
    assert await store.save_all([stored(moves=1), stored(moves=2)]) == set()
    (record,) = await store.sessions()
    assert record.moves == 2


async def test_holders_of_many_are_reported_in_one_call_also_of_those_that_nobody_holds(store: SessionStore) -> None:
    ids = [f"ses_{n}" for n in range(MANY)]
    for n, one in enumerate(ids):
        if n % 2:
            assert await store.claim(one, f"owner {n % 3}", 30)
    holders = await store.holders(ids)
    assert holders == {one: f"owner {n % 3}" if n % 2 else None for n, one in enumerate(ids)}
    assert await store.holders([]) == {}


async def test_renewing_many_names_the_lost_ones_and_keeps_the_others(store: SessionStore) -> None:
    ids = [f"ses_{n}" for n in range(20)]
    await store.save_all([stored(one) for one in ids])
    assert await store.renew(ids, "one", 30) == set()
    for one in ids[:5]:
        await store.release(one, "one")
        assert await store.claim(one, "two", 30)
    assert await store.renew(ids, "one", 30) == set(ids[:5])
    assert await store.renew([], "one", 30) == set()
    assert await store.holders(ids) == {one: "two" if one in ids[:5] else "one" for one in ids}


async def test_ten_who_renew_one_session_at_once_are_one_who_has_it(store: SessionStore) -> None:
    assert await store.claim("ses_a", "o3", 30)
    lost = await asyncio.gather(*(store.renew(["ses_a"], f"o{n}", 30) for n in range(10)))
    assert [n for n, each in enumerate(lost) if not each] == [3]


async def test_giving_up_writes_the_record_and_frees_the_lease_in_one_step(store: SessionStore) -> None:
    await store.save(stored())
    assert await store.claim("ses_a", "one", 30)
    last = stored(owner="", moves=3)
    assert not await store.give_up(last, "two"), "it is another's"
    assert await store.holder("ses_a") == "one"
    assert await store.give_up(last, "one")
    assert await store.load("ses_a") == last and await store.holder("ses_a") is None
    assert await store.claim("ses_a", "two", 30), "another one takes it at once"


@pytest.mark.parametrize("state", [SessionState.STOPPED, SessionState.FAILED])
async def test_an_ended_session_is_kept_with_all_that_is_to_be_read_of_it(
    store: SessionStore, state: SessionState
) -> None:
    ended = stored(state=state, ended_at=time.time(), view={"end_reason": "idle", "playback": {"position_s": 1.5}})
    assert await store.claim("ses_a", "one", 30) and await store.give_up(ended, "one")
    assert await store.load("ses_a") == ended and await store.sessions() == [ended]


async def test_one_that_ended_too_long_ago_is_no_longer_listed(store: SessionStore) -> None:
    await store.save(stored("ses_new"))
    await store.save(stored("ses_old", state=SessionState.STOPPED, ended_at=time.time() - KEEP_S - 60))

    async def listed() -> bool:
        return [one.session_id for one in await store.sessions()] == ["ses_new"]

    await until(listed)  # Redis keeps it for the least there is, a millisecond


@pytest.mark.parametrize(
    "room", ["", "ä ö 漢字 🙂", "'; DROP TABLE sessions; --", "*", "a" * 4000, "line\nbreak", "nul\x00"]
)
async def test_any_name_comes_back_as_it_was(store: SessionStore, room: str) -> None:
    record = stored(room=room, key=room, view={"room": room})
    await store.save(record)
    assert await store.load("ses_a") == record and await store.sessions() == [record]
