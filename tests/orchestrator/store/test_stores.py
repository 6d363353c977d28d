"""What every store promises, with the real ones: SQLite in memory and in a file, and a redis-server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from musetalk_agent.protocol.http import SessionState
from orchestrator.store.redis_store import RedisStore
from orchestrator.store.session_store import SessionStore, StoredSession, StoreError
from orchestrator.store.sqlite import MEMORY, SqliteStore
from tests.servers.redis import redis_server
from tests.waiting import until

KEEP_S = 600.0
Open = Callable[[], Awaitable[SessionStore]]


def stored(session_id: str = "ses_a", **fields: object) -> StoredSession:
    """A record of a running session of the orchestrator `one`."""
    known: dict[str, object] = {
        "session_id": session_id,
        "identity": f"avatar-{session_id}",
        "room": "r",
        "sealed": "…",
        "created_at": time.time(),
        "expires_at": time.time() + 3600,
        "state": SessionState.READY,
        "owner": "one",
    }
    return StoredSession.model_validate(known | fields)


@pytest.fixture(params=["memory", "file", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionStore]:
    async with AsyncExitStack() as stack:
        made: SessionStore
        if request.param == "redis":
            made = RedisStore((await stack.enter_async_context(redis_server())).url, KEEP_S)
        else:
            made = SqliteStore(MEMORY if request.param == "memory" else str(tmp_path / "state" / "o.db"), KEEP_S)
        await made.open()
        stack.push_async_callback(made.aclose)
        yield made


async def test_a_record_comes_back_as_it_was(store: SessionStore) -> None:
    session = stored(
        agent_url="http://agent",
        ingress_id="IN_1",
        moves=2,
        progress={"segments": 7, "unfinished": {"6": True}, "events_seen": 11},
        view={"a": ["ä"]},
    )
    assert await store.save(session)
    assert await store.load("ses_a") == session
    assert await store.load("ses_b") is None
    later = session.model_copy(update={"state": SessionState.RECOVERING, "moves": 3})
    assert await store.save(later)
    assert await store.sessions() == [later]
    await store.delete("ses_a")
    await store.delete("ses_a")
    assert await store.load("ses_a") is None and await store.sessions() == []


async def test_records_are_listed_oldest_first_and_ended_ones_for_as_long_as_they_are_kept(store: SessionStore) -> None:
    now = time.time()
    ended = {"state": SessionState.STOPPED}
    await store.save(stored("ses_c", created_at=now))
    await store.save(stored("ses_b", created_at=now - 10, ended_at=now - 5, **ended))
    await store.save(stored("ses_a", created_at=now - 1000, ended_at=now - KEEP_S - 1, **ended))

    async def listed() -> list[str] | None:
        ids = [session.session_id for session in await store.sessions()]
        return None if "ses_a" in ids else ids  # Redis keeps it for the least there is, a millisecond

    assert await until(listed) == ["ses_b", "ses_c"]


async def test_one_holds_the_lease_until_it_expires_or_is_given_back(store: SessionStore) -> None:
    assert await store.claim("ses_a", "one", 30)
    assert not await store.claim("ses_a", "two", 30)
    assert await store.claim("ses_a", "one", 0.05)  # prolonged, and shortened here
    assert await store.claim("ses_b", "two", 30)

    async def free() -> bool:
        return await store.holder("ses_a") is None

    await until(free)
    assert await store.claim("ses_a", "two", 30)
    assert await store.holder("ses_a") == "two"
    await store.release("ses_a", "one")  # no longer its business
    assert await store.holder("ses_a") == "two"
    await store.release("ses_a", "two")
    assert await store.claim("ses_a", "one", 30)


async def test_a_record_is_written_and_its_lease_taken_in_one_step(store: SessionStore) -> None:
    assert await store.save(stored(), 30) and await store.save(stored(moves=1), 30)
    assert await store.holder("ses_a") == "one"
    assert not await store.save(stored(owner="two", moves=2), 30)
    assert await store.holder("ses_a") == "one" and (await store.sessions())[0].moves == 1
    assert await store.save(stored("ses_b"), 0.05)

    async def free() -> bool:
        return await store.holder("ses_b") is None

    await until(free)


async def test_ten_who_claim_at_once_are_one_who_gets_it(store: SessionStore) -> None:
    for session_id in ("ses_a", "ses_b", "ses_c"):
        won = await asyncio.gather(*(store.claim(session_id, f"o{n}", 30) for n in range(10)))
        assert won.count(True) == 1


async def test_who_lost_the_lease_writes_nothing(store: SessionStore) -> None:
    await store.save(stored())
    assert await store.claim("ses_a", "two", 30)
    assert not await store.save(stored(moves=9))
    assert (await store.sessions())[0].moves == 0
    assert await store.save(stored(owner="two", moves=1))
    assert (await store.sessions())[0].owner == "two"


@pytest.mark.parametrize("store", ["redis"], indirect=True)
async def test_a_late_write_of_a_running_session_does_not_bring_an_ended_one_back(store: SessionStore) -> None:
    assert await store.claim("ses_a", "one", 30) and await store.save(stored())
    ended = stored(state=SessionState.STOPPED, ended_at=time.time())
    assert await store.give_up(ended, "one")
    assert not await store.save(stored(moves=9))  # sent earlier, over a connection that stood still
    assert await store.load("ses_a") == ended
    assert await store.save(ended.model_copy(update={"ingress_id": None}))


async def test_a_file_remembers_and_belongs_to_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.sqlite._LOCK_WAIT_S", 0.1)
    path = tmp_path / "deep" / "o.db"
    first = SqliteStore(str(path), KEEP_S)
    await first.open()
    await first.save(stored())
    second = SqliteStore(str(path), KEEP_S)
    with pytest.raises(StoreError, match=r"another orchestrator uses it.*REDIS_URL"):
        await second.open()
    await first.aclose()
    again = SqliteStore(str(path), KEEP_S)
    await again.open()
    try:
        assert [session.session_id for session in await again.sessions()] == ["ses_a"]
        assert again.deployment_id == first.deployment_id and again.deployment_id.startswith("dep_")
        assert all(file.stat().st_mode & 0o077 == 0 for file in path.parent.iterdir())
    finally:
        await again.aclose()
        await second.aclose()
    with pytest.raises(StoreError, match="closed"):
        await again.sessions()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be taken for one" * 20, b"SQLite format 3\0" + b"\xff" * 4096]
)
async def test_a_file_that_is_no_database_is_reported(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "o.db"
    path.write_bytes(content)
    store = SqliteStore(str(path), KEEP_S)
    with pytest.raises(StoreError, match=str(path)):
        await store.open()
    await store.aclose()
    assert path.read_bytes() == content


async def test_redis_gone_and_back_empty_is_the_same_deployment() -> None:
    async with redis_server() as server:
        store = RedisStore(server.url, KEEP_S)
        await store.open()
        deployment = store.deployment_id
        await store.save(stored())
        await server.stop()
        for call in (store.sessions(), store.save(stored()), store.claim("ses_a", "one", 5), store.holder("ses_a")):
            with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1"):
                await call
        await server.start()
        assert await store.sessions() == []
        assert await store.save(stored())
        other = RedisStore(server.url, KEEP_S)
        await other.open()
        assert other.deployment_id == deployment
        await other.aclose()
        await store.aclose()


async def test_a_document_is_changed_only_by_who_knows_what_it_was(store: SessionStore) -> None:
    assert await store.document("a") is None
    assert await store.swap_document("a", None, b"one", 600)
    assert not await store.swap_document("a", None, b"two", 600)
    assert not await store.swap_document("a", b"no", b"two", 600)
    assert await store.document("a") == b"one"
    won = await asyncio.gather(*(store.swap_document("a", b"one", b"%d" % n, 600) for n in range(10)))
    assert won.count(True) == 1 and await store.document("a") == b"%d" % won.index(True)
    assert await store.document("b") is None and await store.sessions() == []


async def test_a_document_goes_at_its_time(store: SessionStore) -> None:
    assert await store.swap_document("a", None, b"one", 0.05)

    async def gone() -> bool:
        return await store.document("a") is None

    await until(gone)
    assert await store.swap_document("a", None, b"two", 600)
    assert await store.document("a") == b"two"


async def test_a_file_keeps_documents_over_a_restart(tmp_path: Path) -> None:
    first = SqliteStore(str(tmp_path / "o.db"), KEEP_S)
    await first.open()
    await first.swap_document("a", None, b"one", 600)
    await first.aclose()
    second = SqliteStore(str(tmp_path / "o.db"), KEEP_S)
    await second.open()
    try:
        assert await second.document("a") == b"one"
    finally:
        await second.aclose()
