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
    ledger = SessionJournal(store, "secret", "https://here", Metrics())
    await ledger.open(on_lost)
    work = asyncio.gather(ledger.keep_leases(), ledger.write_behind())
    try:
        yield ledger
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await store.aclose()


class Life:
    """A session's record as it changes."""

    def __init__(self, ledger: SessionJournal, session_id: str = "ses_a") -> None:
        self.now = stored(session_id, owner=ledger.owner, owner_url=ledger.owner_url)

    def record(self) -> StoredSession:
        return self.now

    def turn(self, **fields: object) -> None:
        self.now = self.now.model_copy(update=fields)


def stored_is(ledger: SessionJournal, holds: Callable[[StoredSession], bool]) -> Callable[[], Awaitable[bool]]:
    """Whether the store has session `ses_a` so."""

    async def asked() -> bool:
        record = await ledger.store.load("ses_a")
        return record is not None and holds(record)

    return asked


async def test_a_change_is_written_and_the_end_too() -> None:
    async with kept(SqliteStore(MEMORY, 600)) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        assert await ledger.store.load("ses_a") == life.now
        assert await ledger.store.holder("ses_a") == ledger.owner
        life.turn(moves=3)
        ledger.note("ses_a")
        ledger.note("ses_never_entered")
        await until(stored_is(ledger, lambda record: record.moves == 3))
        assert [record.moves for record in await ledger.store.sessions()] == [3]
        life.turn(state=SessionState.STOPPED)
        ledger.leave("ses_a")
        await until(stored_is(ledger, lambda record: record.state is SessionState.STOPPED))
        assert (await ledger.elsewhere("ses_a") or life.now).state is SessionState.STOPPED
        assert await ledger.store.holder("ses_a") is None
        assert [one.session_id for one in await ledger.others(set())] == ["ses_a"]
        assert await ledger.others({"ses_a"}) == []


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
    async with kept(store := Held()) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        life.turn(state=SessionState.STOPPED)
        ledger.leave("ses_a")
        waiting = asyncio.create_task(ledger.stored("ses_a"))
        await asyncio.sleep(STORED_S / 2)
        assert not waiting.done() and store.records["ses_a"].state is not SessionState.STOPPED
        store.may.set()
        await waiting
        assert store.records["ses_a"].state is SessionState.STOPPED
        await ledger.stored("ses_a")
        await ledger.stored("ses_never_entered")


@virtually
async def test_a_store_that_hangs_or_fails_is_not_waited_for_longer() -> None:
    async with kept(store := Held()) as ledger:
        await ledger.enter("ses_a", Life(ledger).record)
        ledger.leave("ses_a")
        begun = time.monotonic()
        await ledger.stored("ses_a")
        assert time.monotonic() - begun == pytest.approx(STORED_S)  # of virtual time
        store.may.set()
        await ledger.stored("ses_a")
        store.failing = True
        await ledger.enter("ses_b", Life(ledger, "ses_b").record, known=True)
        ledger.leave("ses_b")
        begun = time.monotonic()
        await ledger.stored("ses_b")
        assert time.monotonic() == begun


async def test_what_is_handed_over_belongs_to_nobody() -> None:
    async with kept(SqliteStore(MEMORY, 600)) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        await ledger.hand_over("ses_a")
        left = await ledger.store.load("ses_a")
        assert left is not None and (left.owner, left.owner_url, left.ended) == ("", None, False)
        assert await ledger.store.claim("ses_a", "another", 10)


async def test_a_session_that_another_took_is_let_go() -> None:
    lost: list[str] = []
    async with redis_server() as server, kept(RedisStore(server.url, 600), lost.append) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        assert await ledger.owns("ses_a")
        redis: Redis = Redis.from_url(server.url)
        await redis.set("musetalk:lease:ses_a", "another", ex=3600)  # at once: a lease that is free is renewed
        await redis.aclose()
        theirs = stored("ses_a", owner="another", moves=1)
        assert await ledger.store.save(theirs)
        await until(lambda: lost == ["ses_a"])
        assert not await ledger.owns("ses_a")
        assert await ledger.store.load("ses_a") == theirs


async def test_redis_that_comes_back_empty_is_filled_again_and_no_session_begins_without_it() -> None:
    lost: list[str] = []
    async with redis_server() as server, kept(RedisStore(server.url, 600), lost.append) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        await server.stop()
        await until(lambda: ledger.failing)
        with pytest.raises(ProblemError, match="does not answer") as refused:
            await ledger.enter("ses_b", Life(ledger, "ses_b").record)
        assert refused.value.code == "store_unavailable" and refused.value.status == 503
        assert await ledger.owns("ses_a")
        assert await ledger.others(set()) == []
        with pytest.raises(ProblemError):
            await ledger.elsewhere("ses_a")
        await server.start()
        await until(lambda: not ledger.failing)
        assert await ledger.store.load("ses_a") == life.now
        assert await ledger.store.holder("ses_a") == ledger.owner
        assert lost == []
        errors = ledger._metrics.registry.get_sample_value("avatar_store_errors_total")
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
    async with kept(store) as ledger:
        lives = [Life(ledger, f"ses_{n}") for n in range(200)]
        for life in lives:
            await ledger.enter(life.now.session_id, life.record)
        store.writable.clear()
        for life in lives:
            ledger.note(life.now.session_id)
        await until(lambda: store.writes > 0 and not store.writable.is_set())
        seen = len(store.renewals)
        await until(lambda: len(store.renewals) >= seen + 5)
        assert store.renewals[-5:] == [200] * 5, "all of them in one call"
        writes = store.writes
        lives[7].turn(moves=9)
        ledger.note("ses_7")
        store.writable.set()
        await until(lambda: not ledger._dirty)
        assert {one.moves for one in await store.sessions() if one.session_id == "ses_7"} == {9}
        assert store.writes - writes <= 20, "in batches, not one by one"


async def test_a_session_that_ended_elsewhere_is_not_brought_back_by_who_slept() -> None:
    lost: list[str] = []
    async with redis_server() as server, kept(RedisStore(server.url, 600), lost.append) as ledger:
        store = ledger.store
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
    async with redis_server() as server, kept(RedisStore(server.url, 600)) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        await ledger.store.release("ses_a", ledger.owner)
        assert await ledger.owns("ses_a")
        assert await ledger.store.holder("ses_a") == ledger.owner


async def test_a_session_that_another_has_meanwhile_is_not_entered() -> None:
    async with kept(SqliteStore(MEMORY, 600)) as ledger:
        assert await ledger.store.claim("ses_a", "another", 30)
        assert not await ledger.enter("ses_a", Life(ledger).record, known=True)
        assert await ledger.store.load("ses_a") is None


async def test_a_record_that_cannot_be_made_is_its_own_sessions_trouble() -> None:
    def broken() -> StoredSession:
        raise OverflowError("a figure of its agent")

    async with kept(SqliteStore(MEMORY, 600)) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        await ledger.enter("ses_b", Life(ledger, "ses_b").record)
        ledger._held["ses_b"] = broken
        life.turn(moves=3)
        ledger.note("ses_b")
        ledger.note("ses_a")
        await until(lambda: not ledger._dirty)
        await until(stored_is(ledger, lambda record: record.moves == 3))
        ledger.leave("ses_b")
        await ledger.hand_over("ses_a")
        assert ledger._metrics.registry.get_sample_value("avatar_store_skipped_total") or 0 >= 2


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
    async with kept(SqliteStore(str(small_disk / "o.db"), 600)) as ledger:
        life = Life(ledger)
        await ledger.enter("ses_a", life.record)
        assert not ledger.failing
        with pytest.raises(OSError, match="space"), ballast.open("wb") as file:
            while True:
                file.write(bytes(1024))
                file.flush()
        life.turn(view={"room": "x" * 50_000})
        ledger.note("ses_a")
        await until(lambda: ledger.failing)
        other = Life(ledger, "ses_b")
        other.turn(view={"room": "x" * 50_000})
        await ledger.enter("ses_b", other.record)  # it begins all the same
        ballast.unlink()
        await until(lambda: not ledger.failing)
        assert await ledger.store.load("ses_a") == life.now
        assert await ledger.store.load("ses_b") == other.now
