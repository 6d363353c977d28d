"""The orchestrator with agents in containers: it leaves one that drains, and its successor finds every place again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agent_server import FakeAgent
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import Stage, stage
from tests.fakes.sticky_router import StickyRouter, router_server
from tests.waiting import until

QUIET: dict[str, Any] = {"connect_livekit": False}


@asynccontextmanager
async def containers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[StickyRouter, dict[str, FakeAgent]]]:
    """Two fake agents behind the router, and a server of Modal's that leads to it."""
    async with AsyncExitStack() as stack:
        agents: dict[str, FakeAgent] = {}
        for _ in range(2):
            agent = FakeAgent()
            agent.pace = 2.0
            agents[await stack.enter_async_context(serving(plain_config(agent.app)))] = agent
        router = StickyRouter(list(agents))
        url = await stack.enter_async_context(router.running())
        server = await stack.enter_async_context(router_server(url, monkeypatch))
        monkeypatch.setattr("modal.Server.from_name", lambda app, name: server)
        yield router, agents


def at_modal(**settings: Any) -> Any:
    return stage(agent_pool="modal", agent_url=[], **settings)


async def given_back(running: Stage) -> None:
    await running.app.state.context.pool.aclose()


async def test_a_session_leaves_a_container_of_the_old_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async with containers(monkeypatch) as (router, agents), at_modal() as running:
        started = await running.start(**QUIET)
        async with running.audio(started["audio_url"]) as line:
            await line.wait("hello")
            (old,) = (agent for agent in agents.values() if agent.sessions)
            (new,) = (agent for agent in agents.values() if not agent.sessions)
            old.draining = True
            await line.wait("session.state", count=2)
            assert [message.get("reason") for message in line.of("session.state")] == ["draining", "moved"]
            assert list(new.sessions) == old.stopped == [started["session_id"]]
            again = await running.start(**QUIET)
            assert again["session_id"] in new.sessions, "new ones go to the new version"
        for each in (started, again):
            assert (await running.http.post(f"/session/{each['session_id']}/stop")).json()["state"] == "stopped"
        await given_back(running)
        (new_url,) = (url for url, agent in agents.items() if agent is new)
        assert router.of(new_url) == []


async def test_the_next_orchestrator_finds_the_place_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with containers(monkeypatch) as (router, agents):
        store = str(tmp_path / "sessions.db")
        async with at_modal(store_path=store) as running:
            started = await running.start(**QUIET)
            (token,) = router.places
        assert router.ended == [], "it is left for the next one"
        assert token.encode() not in Path(store).read_bytes()
        async with at_modal(store_path=store) as running:
            path = f"/session/{started['session_id']}"
            reported = (await running.http.get(path)).json()
            assert (reported["state"], reported["moves"]) == ("ready", 0)
            assert list(router.places) == [token]
            assert (await running.http.post(f"{path}/stop")).json()["state"] == "stopped"
            await given_back(running)
            assert router.ended == [token] and not router.places
        assert sum(len(agent.stopped) for agent in agents.values()) == 1


async def test_an_upload_has_a_place_until_it_is_through(monkeypatch: pytest.MonkeyPatch) -> None:
    async with containers(monkeypatch) as (router, agents), at_modal() as running:
        answer = await running.http.post("/avatars", content=b"clip", headers={"X-Filename": "a.mp4"})
        assert answer.status_code == 201, answer.text
        assert [("a.mp4", 4)] in [agent.avatars.uploads[:1] for agent in agents.values()]
        path = f"/avatars/{answer.json()['avatar_id']}"

        async def ready() -> bool:
            return str((await running.http.get(path)).json()["state"]) == "ready"

        await until(ready)
        await given_back(running)
        assert router.places == {} and router.refused == 0


async def test_health_is_well_while_nobody_has_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    async with containers(monkeypatch), at_modal(agent_sessions_max=60) as running:
        answer = await running.http.get("/health")
        assert answer.status_code == 200 and answer.json()["capacity"] == {"sessions": 0, "sessions_max": 60}
