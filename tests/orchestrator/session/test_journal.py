"""What is written of sessions, and what happens when the store does not take it."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.problems import ProblemError
from orchestrator.metrics import Metrics
from orchestrator.session.journal import STORED_S, SessionJournal
from orchestrator.store.redis_store import RedisStore
from orchestrator.store.session_store import SessionStore, StoredSession
from orchestrator.store.sqlite import MEMORY, SqliteStore
from tests.fakes.memory_store import MemoryStore
from tests.orchestrator.store.test_stores import stored
from tests.servers.redis import redis_server
from tests.virtual_loop import virtually
from tests.waiting import until


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.session.journal.RENEW_S", 0.1)
    monkeypatch.setattr("orchestrator.session.journal.RETRY_S", 0.05)


@asynccontextmanager
async def kept(store: SessionStore, on_lost: Callable[[str], object] = lambda _: None) -> AsyncIterator[SessionJournal]:
    """A ledger at work on a store."""
    journal = SessionJournal(store, "secret", "https://here", Metrics())
    await journal.open(on_lost)
    work = asyncio.gather(journal.keep_leases(), journal.write_behind())
    try:
        yield journal
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await store.aclose()


class Life:
    """A session's record as it changes."""

    def __init__(self, journal: SessionJournal, session_id: str = "ses_a") -> None:
        self.now = stored(session_id, owner=journal.owner, owner_url=journal.owner_url)

    def record(self) -> StoredSession:
        return self.now

    def turn(self, **fields: object) -> None:
        self.now = self.now.model_copy(update=fields)


def stored_is(journal: SessionJournal, holds: Callable[[StoredSession], bool]) -> Callable[[], Awaitable[bool]]:
    """Whether the store has session `ses_a` so."""

    async def asked() -> bool:
        record = await journal.store.load("ses_a")
        return record is not None and holds(record)

    return asked


async def test_a_change_is_written_and_the_end_too() -> None:
    async with kept(SqliteStore(MEMORY, 600)) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        assert await journal.store.load("ses_a") == life.now
        assert await journal.store.holder("ses_a") == journal.owner
        life.turn(moves=3)
        journal.note("ses_a")
        journal.note("ses_never_entered")
        await until(stored_is(journal, lambda record: record.moves == 3))
        assert [record.moves for record in await journal.store.sessions()] == [3]
        life.turn(state=SessionState.STOPPED)
        journal.leave("ses_a")
        await until(stored_is(journal, lambda record: record.state is SessionState.STOPPED))
        assert (await journal.elsewhere("ses_a") or life.now).state is SessionState.STOPPED
        assert await journal.store.holder("ses_a") is None
        assert [one.session_id for one in await journal.others(set())] == ["ses_a"]
        assert await journal.others({"ses_a"}) == []


class Held(MemoryStore):
    """Does not take the end of a session before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def give_up(self, session: StoredSession, owner: str) -> bool:
        await self.may.wait()
        return await super().give_up(session, owner)


@virtually
async def test_who_waits_for_a_stored_end_has_it_when_it_is_written() -> None:
    async with kept(store := Held()) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        life.turn(state=SessionState.STOPPED)
        journal.leave("ses_a")
        waiting = asyncio.create_task(journal.stored("ses_a"))
        await asyncio.sleep(STORED_S / 2)
        assert not waiting.done() and store.records["ses_a"].state is not SessionState.STOPPED
        store.may.set()
        await waiting
        assert store.records["ses_a"].state is SessionState.STOPPED
        await journal.stored("ses_a")
        await journal.stored("ses_never_entered")


@virtually
async def test_a_store_that_hangs_or_fails_is_not_waited_for_longer() -> None:
    async with kept(store := Held()) as journal:
        await journal.enter("ses_a", Life(journal).record)
        journal.leave("ses_a")
        begun = time.monotonic()
        await journal.stored("ses_a")
        assert time.monotonic() - begun == pytest.approx(STORED_S)  # of virtual time
        store.may.set()
        await journal.stored("ses_a")
        store.failing = True
        await journal.enter("ses_b", Life(journal, "ses_b").record, known=True)
        journal.leave("ses_b")
        begun = time.monotonic()
        await journal.stored("ses_b")
        assert time.monotonic() == begun


async def test_what_is_handed_over_belongs_to_nobody() -> None:
    async with kept(SqliteStore(MEMORY, 600)) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        await journal.hand_over("ses_a")
        left = await journal.store.load("ses_a")
        assert left is not None and (left.owner, left.owner_url, left.ended) == ("", None, False)
        assert await journal.store.claim("ses_a", "another", 10)


async def test_a_session_that_another_took_is_let_go() -> None:
    lost: list[str] = []
    async with redis_server() as server, kept(RedisStore(server.url, 600), lost.append) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        assert await journal.owns("ses_a")
        redis: Redis = Redis.from_url(server.url)
        await redis.set("musetalk:lease:ses_a", "another", ex=3600)  # at once: a lease that is free is renewed
        await redis.aclose()
        theirs = stored("ses_a", owner="another", moves=1)
        assert await journal.store.save(theirs)
        await until(lambda: lost == ["ses_a"])
        assert not await journal.owns("ses_a")
        assert await journal.store.load("ses_a") == theirs


async def test_redis_that_comes_back_empty_is_filled_again_and_no_session_begins_without_it() -> None:
    lost: list[str] = []
    async with redis_server() as server, kept(RedisStore(server.url, 600), lost.append) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        await server.stop()
        await until(lambda: journal.failing)
        with pytest.raises(ProblemError, match="does not answer") as refused:
            await journal.enter("ses_b", Life(journal, "ses_b").record)
        assert refused.value.code == "store_unavailable" and refused.value.status == 503
        assert await journal.owns("ses_a")
        assert await journal.others(set()) == []
        with pytest.raises(ProblemError):
            await journal.elsewhere("ses_a")
        await server.start()
        await until(lambda: not journal.failing)
        assert await journal.store.load("ses_a") == life.now
        assert await journal.store.holder("ses_a") == journal.owner
        assert lost == []
        errors = journal._metrics.registry.get_sample_value("avatar_store_errors_total")
        assert errors is not None and errors >= 4


class Slow(SqliteStore):
    """A store whose writes wait for the test, and that counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(MEMORY, 600)
        self.writable = asyncio.Event()
        self.writes = 0
        self.renewals: list[int] = []

    async def save_all(self, sessions: Sequence[StoredSession]) -> set[str]:
        self.writes += 1
        await self.writable.wait()
        return await super().save_all(sessions)

    async def renew(self, session_ids: Collection[str], owner: str, ttl_s: float) -> set[str]:
        self.renewals.append(len(session_ids))
        return await super().renew(session_ids, owner, ttl_s)


async def test_leases_are_renewed_however_long_writing_takes_and_how_much_there_is() -> None:
    store = Slow()
    store.writable.set()
    async with kept(store) as journal:
        lives = [Life(journal, f"ses_{n}") for n in range(200)]
        for life in lives:
            await journal.enter(life.now.session_id, life.record)
        store.writable.clear()
        for life in lives:
            journal.note(life.now.session_id)
        await until(lambda: store.writes > 0 and not store.writable.is_set())
        seen = len(store.renewals)
        await until(lambda: len(store.renewals) >= seen + 5)
        assert store.renewals[-5:] == [200] * 5, "all of them in one call"
        writes = store.writes
        lives[7].turn(moves=9)
        journal.note("ses_7")
        store.writable.set()
        await until(lambda: not journal._dirty)
        assert {one.moves for one in await store.sessions() if one.session_id == "ses_7"} == {9}
        assert store.writes - writes <= 20, "in batches, not one by one"


async def test_a_session_that_ended_elsewhere_is_not_brought_back_by_who_slept() -> None:
    lost: list[str] = []
    async with redis_server() as server, kept(RedisStore(server.url, 600), lost.append) as journal:
        store = journal.store
        work = RedisStore(server.url, 600)
        await work.open()
        ours = stored("ses_a", owner="sleeper")
        assert await store.claim("ses_a", "sleeper", 30) and await store.save(ours)
        await store.release("ses_a", "sleeper")  # its lease expires while it sleeps
        assert await work.claim("ses_a", "another", 30)
        over = stored("ses_a", owner="another", state=SessionState.STOPPED, ended_at=time.time())
        assert await work.give_up(over, "another")
        assert await store.renew(["ses_a"], "sleeper", 30) == {"ses_a"}
        assert not await store.save(ours) and await store.save_all([ours]) == {"ses_a"}
        assert not await store.give_up(ours, "sleeper")
        assert await store.load("ses_a") == over and await store.holder("ses_a") is None
        await work.aclose()


async def test_a_lease_that_expired_is_taken_again_where_nobody_else_took_the_session() -> None:
    async with redis_server() as server, kept(RedisStore(server.url, 600)) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        await journal.store.release("ses_a", journal.owner)
        assert await journal.owns("ses_a")
        assert await journal.store.holder("ses_a") == journal.owner


async def test_a_session_that_another_has_meanwhile_is_not_entered() -> None:
    async with kept(SqliteStore(MEMORY, 600)) as journal:
        assert await journal.store.claim("ses_a", "another", 30)
        assert not await journal.enter("ses_a", Life(journal).record, known=True)
        assert await journal.store.load("ses_a") is None


async def test_a_record_that_cannot_be_made_is_its_own_sessions_trouble() -> None:
    def broken() -> StoredSession:
        raise OverflowError("a figure of its agent")

    async with kept(SqliteStore(MEMORY, 600)) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        await journal.enter("ses_b", Life(journal, "ses_b").record)
        journal._held["ses_b"] = broken
        life.turn(moves=3)
        journal.note("ses_b")
        journal.note("ses_a")
        await until(lambda: not journal._dirty)
        await until(stored_is(journal, lambda record: record.moves == 3))
        journal.leave("ses_b")
        await journal.hand_over("ses_a")
        assert journal._metrics.registry.get_sample_value("avatar_store_skipped_total") or 0 >= 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


async def test_a_full_disk_ends_nothing_and_is_made_up_for(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    async with kept(SqliteStore(str(small_disk / "o.db"), 600)) as journal:
        life = Life(journal)
        await journal.enter("ses_a", life.record)
        assert not journal.failing
        with pytest.raises(OSError, match="space"), ballast.open("wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
        life.turn(view={"room": "x" * 50_000})
        journal.note("ses_a")
        await until(lambda: journal.failing)
        other = Life(journal, "ses_b")
        other.turn(view={"room": "x" * 50_000})
        await journal.enter("ses_b", other.record)  # it begins all the same
        ballast.unlink()
        await until(lambda: not journal.failing)
        assert await journal.store.load("ses_a") == life.now
        assert await journal.store.load("ses_b") == other.now
