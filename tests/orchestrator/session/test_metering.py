"""Sessions of a public token on virtual time: they pay as they run, and end when nothing is left."""

from __future__ import annotations

import asyncio
import time

import pytest

from musetalk_agent.protocol.http import SessionState
from orchestrator.public_tokens import PublicGrant, new_id
from orchestrator.session.model import ManagedSession
from tests.fakes.memory_store import MemoryStore
from tests.orchestrator.session.world import World, world
from tests.virtual_loop import EPOCH_S, virtually

TOKEN_ID = new_id()


async def minted(here: World, **fields: object) -> None:
    known: dict[str, object] = {
        "token_id": TOKEN_ID,
        "key": "shop",
        "origins": ("https://shop.example",),
        "created_at": EPOCH_S,
        "expires_at": EPOCH_S + 3600,
        "minutes": 2,
        "sessions": 3,
        "starts_per_minute": 100,
        "sealed": "…",
    }
    await here.tokens.mint(PublicGrant.model_validate(known | fields))


async def started(here: World, room: str = "public-a") -> ManagedSession:
    await here.tokens.reserve(TOKEN_ID, room, 240)
    return await here.start(room=room, public_token=TOKEN_ID)


async def used(here: World) -> float:
    return (await here.tokens.find(TOKEN_ID)).used.seconds


async def ended(session: ManagedSession) -> None:
    assert session.owner is not None
    await asyncio.wait({session.owner})


@virtually
async def test_a_session_ends_with_its_minutes_and_its_reader_learns_why() -> None:
    async with world() as here:
        await minted(here)
        session = await started(here)
        begun = time.monotonic()
        await ended(session)
        assert time.monotonic() - begun == pytest.approx(120, abs=0.5)
        assert (session.base_state, session.end_reason) == (SessionState.STOPPED, "minutes_exhausted")
        reported = [(data["state"], data["reason"]) for data in here.events(session, "session.state")]
        assert reported[-2:] == [("draining", "minutes_exhausted"), ("stopped", "minutes_exhausted")]
        assert await used(here) == pytest.approx(120, abs=0.01)
        assert here.rooms.deleted == ["public-a"]


@virtually
async def test_two_sessions_share_the_minutes() -> None:
    async with world() as here:
        await minted(here)
        first, second = await started(here), await started(here, "public-b")
        begun = time.monotonic()
        await asyncio.gather(ended(first), ended(second))
        assert time.monotonic() - begun == pytest.approx(60, abs=21)  # to a slice
        assert first.end_reason == second.end_reason == "minutes_exhausted"
        assert await used(here) == pytest.approx(120, abs=0.01)


@virtually
async def test_a_session_that_is_stopped_pays_for_what_it_ran() -> None:
    async with world() as here:
        await minted(here)
        session = await started(here)
        await asyncio.sleep(33)
        await here.sessions.stop(session)
        assert await used(here) == pytest.approx(33, abs=0.5)
        assert (await here.tokens.find(TOKEN_ID)).used.places == {}


@virtually
async def test_a_start_that_fails_costs_nothing() -> None:
    async with world(agents=1) as here:
        await minted(here)
        here.rooms.broken = True
        await here.tokens.reserve(TOKEN_ID, "public-a", 240)
        with pytest.raises(Exception, match="LiveKit"):
            await here.start(room="public-a", public_token=TOKEN_ID)
        held = await here.tokens.find(TOKEN_ID)
        assert held.used.seconds == 0 and held.used.places == {}


@virtually
async def test_when_the_token_is_revoked_elsewhere_the_session_ends_within_a_slice() -> None:
    async with world() as here:
        await minted(here)
        session = await started(here)
        await here.tokens.revoke(TOKEN_ID)
        begun = time.monotonic()
        await ended(session)
        assert session.end_reason == "token_revoked" and time.monotonic() - begun <= 20


@virtually
async def test_while_the_store_fails_the_session_goes_on_and_pays_later() -> None:
    store = MemoryStore()
    async with world(store=store) as here:
        await minted(here)
        session = await started(here)
        store.failing = True
        await asyncio.sleep(60)
        assert session.base_state is SessionState.READY
        store.failing = False
        await asyncio.sleep(3)
        assert await used(here) == pytest.approx(80, abs=5)
        await ended(session)
        assert session.end_reason == "minutes_exhausted" and await used(here) == pytest.approx(120, abs=0.01)


@virtually
async def test_a_session_that_another_process_takes_over_goes_on_paying() -> None:
    store = MemoryStore(durable=True)
    async with world(store=store) as here:
        await minted(here)
        session = await started(here)
        await asyncio.sleep(10)
        here.sessions.hand_over(session.session_id)
        await ended(session)
        again = here.sessions.adopt(store.records[session.session_id])
        await asyncio.wait_for(again.started, 30)
        assert again.order.public_token == TOKEN_ID
        begun = time.monotonic()
        await ended(again)
        assert again.end_reason == "minutes_exhausted"
        assert time.monotonic() - begun == pytest.approx(110, abs=3)


@virtually
async def test_one_session_may_have_an_end_of_its_own() -> None:
    async with world() as here:
        await minted(here)
        await here.tokens.reserve(TOKEN_ID, "public-a", 240)
        session = await here.start(room="public-a", public_token=TOKEN_ID, max_s=30.0)
        await ended(session)
        assert session.end_reason == "expired" and await used(here) == pytest.approx(30, abs=1)


@virtually
async def test_a_session_whose_visitor_is_gone_ends_after_a_minute() -> None:
    async with world() as here:
        await minted(here)
        for agent in here.agents.values():
            agent.viewers = 0
        session, begun = await started(here), time.monotonic()
        await ended(session)
        assert session.end_reason == "no_viewers" and time.monotonic() - begun == pytest.approx(60, abs=6)


@virtually
async def test_a_store_that_comes_back_empty_gets_the_tokens_of_running_sessions_again() -> None:
    store = MemoryStore()
    async with world(store=store) as here:
        await minted(here)
        session = await started(here)
        await asyncio.sleep(30)
        store.documents.clear()
        await asyncio.sleep(20)
        assert await used(here) == pytest.approx(58, abs=2) and await here.tokens.knows_origin("https://shop.example")
        begun = time.monotonic()
        await ended(session)
        assert session.end_reason == "minutes_exhausted" and time.monotonic() - begun == pytest.approx(70, abs=1)
        store.documents.clear()
        assert (
            await here.tokens.pay(TOKEN_ID, "public-b", 20) is None
        )  # nothing of it is kept when its sessions are over
