"""Another avatar on the same tracks: no beat is left out, speech goes on, and it comes in whatever the session does."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.pattern import PatternEngine, PatternSession, pattern_bundle
from musetalk_agent.media.segment import ROOM_RATE
from tests.musetalk_agent.stand import Stand, stand, tone

BRIGHT = 77
"""Luma of the other avatar's corner."""


def other() -> Bundle:
    bundle = pattern_bundle(64, 64, 25)
    frames = np.array(bundle.frames)
    frames[:, :8, :8] = BRIGHT
    return replace(bundle, frames=frames)


def show(made: Stand) -> PatternSession:
    bundle = other()
    session = PatternEngine().open(bundle)
    made.pipeline.show(bundle, session)
    return session


def changes(made: Stand) -> list[int]:
    """Numbers of the pictures at which another avatar is seen."""
    seen = [corner == BRIGHT for corner in made.corners]
    return [k for k, (now, before) in enumerate(zip(seen[1:], seen, strict=False), 1) if now != before]


async def test_it_is_seen_with_the_next_frame_of_an_idle_session(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        count = len(made.pictures)
        show(made)
        await made.pass_time(1)
        (at,) = changes(made)
        assert at <= count + 2
        assert np.allclose(np.diff([when for when, _ in made.pictures]), 0.04)


async def test_speech_goes_on_over_it_without_a_hole_and_in_step(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(0.6))
        made.pipeline.push(np.zeros(6_400, np.int16))
        made.pipeline.push(tone(0.6))
        made.pipeline.push(np.zeros(6_400, np.int16))
        made.pipeline.push(tone(0.6))
        made.pipeline.end()
        await made.pass_time(0.7)
        asked = made.clock.now()
        show(made)
        await made.pass_time(3)
        (at,) = changes(made)
        assert made.pictures[at][0] - asked <= 0.6, "what is ready ahead of time is still the old one"
        heard = np.concatenate([block for _, block in made.sound])
        assert len(heard) == round(2.6 * ROOM_RATE)
        starts = [when for when, _ in made.sound]
        lengths = [len(block) / ROOM_RATE for _, block in made.sound]
        assert np.allclose(np.diff(starts), lengths[:-1]), "no hole"
        assert len(made.whites()) == 3
        assert np.abs(np.array(made.whites()) - made.onsets()).max() <= 0.021, "lips are in step before and after"
        assert made.pipeline.player.report()["dropped"] == 0


@pytest.mark.parametrize("moment", ["cleared", "rewound"])
async def test_it_comes_in_through_a_clear_and_a_rewind(executor: ThreadPoolExecutor, moment: str) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(tone(2))
        await made.pass_time(0.5)
        show(made)
        if moment == "cleared":
            made.pipeline.clear()
        else:
            made.pipeline.rewind(0)
        await made.pass_time(1.5)
        assert len(changes(made)) == 1


async def test_of_two_at_once_the_last_one_stays(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        show(made)
        plain = pattern_bundle(64, 64, 25)
        begin = made.pipeline.show(plain, PatternEngine().open(plain))
        await made.pass_time(1)
        assert changes(made) == []
        assert await made.pipeline.shown(begin, 0)


async def test_waiting_for_what_is_not_shown_has_an_end(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        waiting = asyncio.create_task(made.pipeline.shown(10_000, 1.0))
        await made.pass_time(1.2)
        assert await waiting is False
