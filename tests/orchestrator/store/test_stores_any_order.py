"""Who may write what of a session, for any order of calls of several orchestrators: both stores against the contract's words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.http import SessionState
from orchestrator.store.redis_store import RedisStore
from orchestrator.store.session_store import SessionStore, StoredSession
from orchestrator.store.sqlite import MEMORY, SqliteStore
from tests.fakes.memory_store import MemoryStore
from tests.orchestrator.store.test_stores import KEEP_S, stored
from tests.servers.redis import RedisServer

OWNERS, IDS = ("one", "two", "three"), ("ses_a", "ses_b")
LONG_S = 3600.0
_ACTS = st.lists(
    st.tuples(
        st.sampled_from(["save", "save", "end", "give up", "claim", "claim", "renew", "release", "expire", "delete"]),
        st.sampled_from(OWNERS),
        st.sampled_from(IDS),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def redis() -> Iterator[tuple[asyncio.Runner, str]]:
    with asyncio.Runner() as runner:
        server = RedisServer()
        runner.run(server.start())
        try:
            yield runner, server.url
        finally:
            runner.run(server.stop())


@dataclass
class Model:
    """What the contract says is stored, and who holds what."""

    shared: bool
    """Whether the record counts where nobody holds the lease: only there can another orchestrator have written it."""
    records: dict[str, StoredSession] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)

    def may(self, owner: str, session: str) -> bool:
        holder, known = self.leases.get(session), self.records.get(session)
        if holder is not None or not self.shared:
            return holder in (None, owner)
        return known is None or known.owner == owner

    def over(self, session: str) -> bool:
        """It has ended, and nobody holds it: then nobody brings it back."""
        known = self.records.get(session)
        return self.shared and session not in self.leases and known is not None and known.ended


async def play(store: SessionStore, model: Model, acts: list[tuple[str, str, str]]) -> None:
    for number, (act, owner, session) in enumerate(acts):
        state = SessionState.STOPPED if act == "end" else SessionState.READY
        record = stored(session, owner=owner, moves=number, state=state)
        if act == "end":
            record = record.model_copy(update={"ended_at": record.created_at})
        may = model.may(owner, session)
        if act in ("save", "end"):
            may = may and (record.ended or not model.over(session))
            assert await store.save(record) == may, (act, owner, session)
            if may:
                model.records[session] = record
        elif act == "give up":
            record = record.model_copy(update={"owner": ""})
            may = may and not model.over(session)
            assert await store.give_up(record, owner) == may, (act, owner, session)
            if may:
                model.records[session] = record
                model.leases.pop(session, None)
        elif act == "claim":
            free = model.leases.get(session) in (None, owner)
            assert await store.claim(session, owner, LONG_S) == free
            if free:
                model.leases[session] = owner
        elif act == "renew":
            lost = {each for each in IDS if not model.may(owner, each) or model.over(each)}
            assert await store.renew(IDS, owner, LONG_S) == lost, (owner, model)
            model.leases |= dict.fromkeys(set(IDS) - lost, owner)
        elif act == "release":
            await store.release(session, owner)
            if model.leases.get(session) == owner:
                del model.leases[session]
        elif act == "expire":
            holder = model.leases.pop(session, None)
            if holder is not None:
                await store.release(session, holder)  # as an orchestrator that hangs loses it
        else:
            await store.delete(session)
            model.records.pop(session, None)
            model.leases.pop(session, None)
        for each in IDS:
            assert await store.load(each) == model.records.get(each)
            assert await store.holder(each) == model.leases.get(each)
    listed = {record.session_id: record for record in await store.sessions()}
    assert listed == model.records


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(acts=_ACTS)
def test_redis_keeps_the_contract(redis: tuple[asyncio.Runner, str], acts: list[tuple[str, str, str]]) -> None:
    runner, url = redis

    async def played() -> None:
        store = RedisStore(url, KEEP_S)
        await store.open()
        try:
            for each in IDS:
                await store.delete(each)
            await play(store, Model(shared=True), acts)
        finally:
            await store.aclose()

    runner.run(played())


@settings(max_examples=80, deadline=None)
@given(acts=_ACTS)
def test_sqlite_keeps_the_contract(acts: list[tuple[str, str, str]]) -> None:
    async def played() -> None:
        store = SqliteStore(MEMORY, KEEP_S)
        await store.open()
        try:
            await play(store, Model(shared=False), acts)
        finally:
            await store.aclose()

    asyncio.run(played())


@settings(max_examples=80)
@given(acts=_ACTS, shared=st.booleans())
def test_the_fake_keeps_the_contract_too(acts: list[tuple[str, str, str]], shared: bool) -> None:
    asyncio.run(play(MemoryStore(shared=shared), Model(shared=shared), acts))
