"""Orchestrators with one store: whose a session is, and when another one takes it."""

from __future__ import annotations

import asyncio
import time

from orchestrator.recovery import LEASE_GRACE_S, LOOK_EVERY_S, SessionTakeover
from tests.fakes.memory_store import MemoryStore
from tests.fakes.stage import stage
from tests.orchestrator.session.world import world
from tests.servers.redis import redis_server
from tests.virtual_loop import passes, virtually
from tests.waiting import until


@virtually
async def test_another_ones_session_is_taken_when_its_lease_has_stayed_away_for_a_while() -> None:
    store = MemoryStore(shared=True, durable=True)
    async with world(agents=1, store=store) as here:
        own, other = await here.start(room="own"), await here.start(room="other")
        await passes(2.0)  # both are written down
        record = store.records[other.session_id]
        store.records[other.session_id] = record.model_copy(update={"owner": "another"})
        ends = time.monotonic() + 20.0
        store.leases[other.session_id] = "another", ends
        registry = here.sessions.registry
        looking = asyncio.create_task(SessionTakeover(here.sessions, here.journal, here.metrics).run())
        await passes(ends - time.monotonic() + LEASE_GRACE_S - 0.5)
        assert not registry.holds(other.session_id), "its owner may only have been unable to renew it"
        await passes(0.5 + 2 * LOOK_EVERY_S)
        taken = registry.get(other.session_id)
        assert taken is not other and taken.adopted and store.records[other.session_id].owner == here.journal.owner
        assert registry.get(own.session_id) is own and not own.adopted
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def test_what_another_one_has_is_refused_with_its_address() -> None:
    async with (
        redis_server() as redis,
        stage(redis_url=redis.url, public_url="https://one.example") as one,
        stage(redis_url=redis.url, agent_url=["http://127.0.0.1:9"]) as two,
    ):
        started = await one.start()
        path = f"/session/{started['session_id']}"
        assert (await two.http.get(path)).json()["avatar_identity"] == started["avatar_identity"]
        for verb in ("stop", "interrupt"):
            refused = await two.http.post(f"{path}/{verb}")
            assert (refused.status_code, refused.json()["code"]) == (421, "session_elsewhere")
            assert refused.json()["value"] == "https://one.example"

        async def vacant() -> bool:
            """The answer while no orchestrator holds the lease; its owner may just have renewed it."""
            context = one.app.state.context
            await context.journal.store.release(started["session_id"], context.journal.owner)
            refused = await two.http.post(f"{path}/stop")
            return (refused.status_code, refused.json()["code"]) == (409, "session_conflict")

        await until(vacant)
        assert (await one.http.get(path)).json()["state"] == "ready"
