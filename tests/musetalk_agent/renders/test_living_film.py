"""A film of one picture: its head moves, parts that are made apart join, and another film moves otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.factory import OpenedAvatar
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource
from musetalk_agent.renders.talking_frames import Talker
from tests.musetalk_agent.avatars.clips import encoded, face

from .test_render_job import Bench, bursts, worked

SOUND = bursts(6).astype(np.int16)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worked(tmp_path, "warp") as made:
        yield made


async def opened(bench: Bench, **settings: object) -> OpenedAvatar:
    source = AvatarSource(avatar_id=await bench.jobs.factory.library.add(encoded(face(160))))
    order = AgentStartRequest(
        session_id="film", room="film", livekit_url="", livekit_token="", avatar=source, connect_livekit=False,
        avatar_settings=AvatarSettings.model_validate(settings),
    )  # fmt: skip
    return await bench.jobs.factory.opened(order)


def read(begin: int, end: int) -> Pcm:
    return SOUND[begin:end]


async def planes(avatar: OpenedAvatar, stretch: range, seed: int = 1) -> np.ndarray:
    talker = Talker(avatar.batcher, avatar.engine_session, avatar.bundle, seed=seed)
    await talker.close_idle_mouths()
    return np.stack([frame.i420 async for frame in talker.frames(stretch, read)]).astype(int)


async def test_parts_that_are_made_apart_join(bench: Bench) -> None:
    avatar = await opened(bench)
    whole = await planes(avatar, range(100, 140))
    assert np.array_equal(await planes(avatar, range(120, 140)), whole[20:])
    assert (np.abs(np.diff(whole, axis=0)).mean(1) > 0).all(), "the head stands still in no frame"
    assert not np.array_equal(await planes(avatar, range(138, 140), seed=2), whole[-2:])


async def test_a_film_begins_with_the_picture_as_it_is_in_its_mood(bench: Bench) -> None:
    plain, warm = await opened(bench), await opened(bench, mood="warm")
    first = (await planes(plain, range(1)))[0]
    luma = 160 * 160
    upper = slice(0, luma // 2)  # the mouth speaks already
    assert np.array_equal(first[upper], plain.bundle.frames[0].reshape(-1)[upper])
    apart = np.abs((await planes(warm, range(1)))[0] - first)
    assert 0.05 < apart.mean() < 3
