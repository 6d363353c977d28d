"""Captions through the pipeline, on a virtual clock: each word comes with its sound."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import pytest

from musetalk_agent.media.segment import Caption, Word
from tests.musetalk_agent.stand import Stand, bursts, stand

FRAME_S = 1 / 25
Shown = list[tuple[float, Caption]]


@asynccontextmanager
async def reading(executor: ThreadPoolExecutor) -> AsyncIterator[tuple[Stand, Shown]]:
    """A pipeline, and what a viewer reads when."""
    shown: Shown = []

    def show(caption: Caption) -> None:
        shown.append((made.clock.now(), caption))

    async with stand(executor, show_caption=show) as made:
        yield made, shown


def text(shown: Shown, line: str) -> str:
    return "".join(caption.text for _, caption in shown if caption.line == line)


async def test_a_word_comes_within_a_picture_of_its_sound(executor: ThreadPoolExecutor) -> None:
    async with reading(executor) as (made, shown):
        made.pipeline.begin(3, 16_000)
        made.pipeline.caption([Word(f"burst{k} ", 0.48 + k) for k in range(3)])
        made.pipeline.push(bursts(3))
        made.pipeline.end()
        await made.pass_time(5)
    lags = [at - sound for (at, _), sound in zip(shown, made.onsets(), strict=False)]
    assert [caption.text for _, caption in shown] == ["burst0 ", "burst1 ", "burst2 ", ""]
    assert all(-0.001 <= lag <= FRAME_S + 0.001 for lag in lags), lags
    assert shown[-1][1] == Caption("3", final=True)


async def test_a_clear_cuts_the_line_where_the_voice_stops(executor: ThreadPoolExecutor) -> None:
    async with reading(executor) as (made, shown):
        made.pipeline.begin(1, 16_000)
        made.pipeline.caption([Word("heard ", 0.1), Word("unheard", 2.0)])
        made.pipeline.push(bursts(4))
        await made.pass_time(1.0)
        made.pipeline.clear()
        await made.pass_time(3.0)
    assert [caption for _, caption in shown] == [Caption("1", "heard "), Caption("1", final=True)]


async def test_what_was_not_heard_is_read_again_in_a_line_of_its_own(executor: ThreadPoolExecutor) -> None:
    async with reading(executor) as (made, shown):
        made.pipeline.begin(2, 16_000)
        made.pipeline.caption([Word("one ", 0.1), Word("two ", 0.5), Word("three", 1.5)])
        made.pipeline.push(bursts(3))
        made.pipeline.end()
        await made.pass_time(1.2)
        assert text(shown, "2") == "one two "
        made.pipeline.rewind(round(0.3 * 48_000))
        await made.pass_time(5.0)
    assert text(shown, "2") == "one two " and text(shown, "2+0.300") == "two three"
    assert [caption.line for _, caption in shown if caption.final] == ["2", "2+0.300"]


async def test_a_segment_that_goes_on_here_names_its_line_so(executor: ThreadPoolExecutor) -> None:
    async with reading(executor) as (made, shown):
        made.pipeline.begin(7, 16_000, heard_s=2.0)
        made.pipeline.caption([Word("meanwhile ", 1.5), Word("again ", 2.25)])
        made.pipeline.push(np.full(16_000, 4000, np.int16))
        made.pipeline.end()
        await made.pass_time(3.0)
    assert [caption.text for _, caption in shown if caption.line == "7+2.000"] == ["meanwhile ", "again ", ""]
    begun = made.sound[0][0]
    assert [at - begun for at, _ in shown[:2]] == pytest.approx([0.0, 0.25], abs=FRAME_S + 0.001)
