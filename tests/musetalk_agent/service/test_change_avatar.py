"""Another avatar in a running session: cancelled, failed, too late; and what is given back to the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import MonotonicClock
from musetalk_agent.engines.pattern import PatternSession, pattern_bundle
from musetalk_agent.errors import AvatarNotFound, EngineUnavailable, SessionEnded
from musetalk_agent.factory import Factory, OpenedAvatar
from musetalk_agent.protocol.http import (
    AgentActionRequest,
    AgentAvatarRequest,
    AgentStartRequest,
    AvatarSource,
    Picture,
)
from musetalk_agent.protocol.preparation_messages import AgentPrepareRequest
from musetalk_agent.publishers.base import NullPublisher
from musetalk_agent.service.live_sessions import LiveSessions
from musetalk_agent.session.session import Session
from tests.waiting import until

SIDE = 64


class Counted(PatternSession):
    """Counts how often it was closed."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


@dataclass
class World:
    """A session of the pattern engine, and avatars that are prepared when the test says so."""

    live: LiveSessions
    factory: Factory
    session: Session
    may_open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[AvatarSource] = field(default_factory=list)
    made: list[Counted] = field(default_factory=list)

    async def opened(self, shown: Bundle, engine: str, request: AgentAvatarRequest) -> OpenedAvatar:
        self.asked.append(request.avatar)
        await self.may_open.wait()
        if request.avatar.avatar_id == "none":
            raise AvatarNotFound("no such avatar")
        bundle = pattern_bundle(SIDE, SIDE, 25)
        self.made.append(Counted(bundle))
        return OpenedAvatar(engine, self.factory.engines.batcher(engine), bundle, self.made[-1])

    def change(self, name: str) -> asyncio.Task[Session]:
        request = AgentAvatarRequest(avatar=AvatarSource(avatar_id=name))
        return asyncio.create_task(self.live.change_avatar("s", request))


@asynccontextmanager
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    settings = AgentSettings(agent_api_key=SecretStr("k"), engine="pattern", cache_dir=tmp_path)
    factory = Factory(settings, publisher=lambda _, __: NullPublisher(MonotonicClock()))
    await factory.start()
    live = LiveSessions(factory)
    try:
        request = AgentStartRequest(
            session_id="s", room="r", livekit_url="ws://x", livekit_token="t", avatar=AvatarSource(), engine="pattern"
        )
        made = World(live, factory, await live.start(request))
        with pytest.raises(EngineUnavailable, match="shows no avatar"):
            await made.change("any")
        monkeypatch.setattr(factory, "other_avatar", made.opened)
        yield made
    finally:
        await live.aclose()
        await factory.aclose()


async def test_a_change_that_is_cancelled_or_fails_leaves_the_old_avatar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        before = made.session.bundle
        first = made.change("one")
        await until(lambda: made.asked)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        made.may_open.set()
        with pytest.raises(AvatarNotFound):
            await made.change("none")
        with pytest.raises(AvatarNotFound):
            await made.live.act("s", AgentActionRequest(avatar=AvatarSource(avatar_id="none")))
        assert made.session.bundle is before and made.made == []
        assert (await made.change("two")).bundle is not before


async def test_changes_come_in_order_and_every_avatar_is_given_back_once_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        changes = [made.change(name) for name in ("one", "two", "three")]
        made.may_open.set()
        await asyncio.gather(*changes)
        assert [source.avatar_id for source in made.asked] == ["one", "two", "three"]
        await until(lambda: [each.closed for each in made.made] == [1, 1, 0])
        wave = AgentActionRequest(avatar=AvatarSource(avatar_id="wave"), loop=True)
        await made.live.act("s", wave)
        await made.live.act("s", wave)
        assert len(made.made) == 4, "a clip is opened once"
        await made.live.act("s", AgentActionRequest(avatar=AvatarSource()))
        assert made.made[3].closed == 0
        await made.session.stop()
        assert all(each.closed for each in made.made)


async def test_a_session_that_ends_meanwhile_shows_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        late = made.change("late")
        await until(lambda: made.asked)
        await made.session.stop()
        made.may_open.set()
        with pytest.raises(SessionEnded):
            await late
        assert [each.closed for each in made.made] == [1]


async def test_a_clip_for_an_engine_that_draws_its_own_picture_has_the_avatars_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as made:
        avatar = AvatarSource(avatar_id="demo")
        picture = Picture(width=96, height=64)
        request = AgentPrepareRequest(avatar=AvatarSource(), clip_of=avatar, engine="pattern", picture=picture)
        clip = await made.factory.prepared(request)
        assert (clip.width, clip.height) == (96, 64)
