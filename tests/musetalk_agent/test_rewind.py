"""Rewinding: whatever was not heard is heard after all, every sample once, and nothing is reported twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from musetalk_agent.media.segment import GRAIN, KEPT_S, ROOM_RATE
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.messages import PlaybackFinished, PlaybackStarted
from musetalk_agent.resample import Resampler
from tests.musetalk_agent.stand import Stand, bursts, stand

FRAME_S = 1 / 25


def noise(seconds: float, rate: int, seed: int) -> Pcm:
    """Loud noise that is nowhere zero, so that added silence can be distinguished from it."""
    values = np.random.default_rng(seed).integers(100, 12_000, round(seconds * rate))
    return np.where(np.arange(len(values)) % 3, values, -values).astype(np.int16)


def at_room_rate(pcm: Pcm, rate: int) -> Pcm:
    """What the room gets of a segment, without the silence that fills it up."""
    resampler = Resampler(rate, ROOM_RATE)
    made = np.concatenate([resampler.push(pcm), resampler.flush()])
    return made[made != 0]


class Viewer:
    """What was heard in the end: rewinds cut off what was lost."""

    def __init__(self, made: Stand) -> None:
        self._made = made
        self._before: list[Pcm] = []
        self._settled = 0

    def rewind(self, position: int) -> None:
        """Nothing after `position` was heard; but what was before an earlier rewind is settled."""
        self._settled = max(position, self._settled)
        self._before = [self._all()[: self._settled]]
        self._made.sound.clear()
        self._made.pipeline.rewind(position)

    def heard(self) -> Pcm:
        """Every sample that is no silence."""
        everything = self._all()
        return everything[everything != 0]

    def _all(self) -> Pcm:
        return np.concatenate([np.zeros(0, np.int16), *self._before, *(block for _, block in self._made.sound)])


def position(made: Stand) -> int:
    return made.pipeline.player._publisher.playout.position()


def reported(made: Stand) -> list[tuple[str, int]]:
    events = [e for _, e in made.events if isinstance(e, PlaybackStarted | PlaybackFinished)]
    return [(e.type, e.segment) for e in events]


def once(numbers: Sequence[int]) -> list[tuple[str, int]]:
    return [(kind, n) for n in numbers for kind in ("playback.started", "playback.finished")]


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("back_s", [0.0, 0.0131, 0.3, 0.8])
async def test_in_the_middle_of_a_segment(executor: ThreadPoolExecutor, rate: int, back_s: float) -> None:
    speech = noise(2.0, rate, 1)
    async with stand(executor) as made:
        viewer = Viewer(made)
        made.pipeline.begin(1, rate)
        made.pipeline.push(speech)
        made.pipeline.end()
        await made.pass_time(1.0)
        before = made.pipeline.player.position_s
        viewer.rewind(position(made) - round(back_s * ROOM_RATE))
        assert made.pipeline.player.buffered_s == pytest.approx(2.0 - before + back_s, abs=1e-3)
        assert made.pipeline.player.position_s == before
        await made.pass_time(4)
    assert np.array_equal(viewer.heard(), at_room_rate(speech, rate))
    assert reported(made) == once([1])
    assert made.events[-1][1] == PlaybackFinished(segment=1, position_s=2.0, interrupted=False)
    assert made.pipeline.player.position_s == pytest.approx(2.0, abs=1e-3)


async def test_across_segments_that_were_reported_finished(executor: ThreadPoolExecutor) -> None:
    parts = [noise(0.4, 16_000, seed) for seed in range(5)]
    async with stand(executor) as made:
        viewer = Viewer(made)
        for number, part in enumerate(parts, 1):
            made.pipeline.begin(number, 16_000)
            made.pipeline.push(part)
            made.pipeline.end()
        await made.pass_time(1.5)
        assert reported(made)[-1] == ("playback.started", 4)
        assert made.pipeline.player.heard[0] == 4
        viewer.rewind(round(0.5 * ROOM_RATE))  # within the second
        assert made.pipeline.player.heard[0] == 4
        await made.pass_time(0.5)
        assert made.pipeline.player.heard[0] == 4  # it stands until the replay has caught up
        await made.pass_time(4)
    assert np.array_equal(viewer.heard(), np.concatenate([at_room_rate(p, 16_000) for p in parts]))
    assert reported(made) == once([1, 2, 3, 4, 5])
    assert made.pipeline.player.heard == (5, pytest.approx(0.4))
    assert made.pipeline.player.position_s == pytest.approx(2.0, abs=1e-3)


async def test_after_the_last_segment_and_at_its_boundary(executor: ThreadPoolExecutor) -> None:
    parts = [noise(0.4, 16_000, seed) for seed in range(2)]
    async with stand(executor) as made:
        viewer = Viewer(made)
        for number, part in enumerate(parts, 1):
            made.pipeline.begin(number, 16_000)
            made.pipeline.push(part)
            made.pipeline.end()
        await made.pass_time(2)
        assert reported(made) == once([1, 2])
        viewer.rewind(round(0.4 * ROOM_RATE))  # the first one was heard whole, the second not at all
        assert made.pipeline.player.open_segments == 1
        await made.pass_time(2)
        viewer.rewind(round(0.8 * ROOM_RATE))  # nothing was lost
        assert made.pipeline.player.open_segments == 0
        await made.pass_time(1)
    assert np.array_equal(viewer.heard(), np.concatenate([at_room_rate(p, 16_000) for p in parts]))
    assert reported(made) == once([1, 2])
    assert made.pipeline.player.position_s == pytest.approx(0.8, abs=1e-3)
    assert [speaking for _, speaking in made.spoken] == [True, False, True, False]


async def test_a_sender_at_real_time_pace_notices_nothing(executor: ThreadPoolExecutor) -> None:
    speech = noise(4.0, 16_000, 3)
    async with stand(executor) as made:
        viewer = Viewer(made)
        made.pipeline.begin(1, 16_000)
        await made.live(speech[:16_000])
        viewer.rewind(position(made) - 9_001)
        await made.live(speech[16_000:40_000])
        viewer.rewind(position(made) - 4_444)
        viewer.rewind(position(made))
        await made.live(speech[40_000:])
        made.pipeline.end()
        await made.pass_time(3)
    assert np.array_equal(viewer.heard(), at_room_rate(speech, 16_000))
    assert reported(made) == once([1])
    assert made.pipeline.player.heard == (1, pytest.approx(4.0))


async def test_lips_and_voice_are_together_again_after_it(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(bursts(8))
        made.pipeline.end()
        await made.pass_time(2.5)
        made.pipeline.rewind(position(made) // 48_000 * 48_000 - 48_000 + 1_919)
        at = made.clock.now()
        await made.pass_time(10)
    whites, onsets = ([t for t in times if t > at] for times in (made.whites(), made.onsets()))
    assert len(whites) == len(onsets) >= 6
    # the cut is no longer on the grid of frames: a burst begins anywhere within one
    assert max(abs(w - o) for w, o in zip(whites, onsets, strict=True)) <= FRAME_S


async def test_a_clear_right_after_it_tells_no_less_than_was_reported(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(noise(1.0, 16_000, 4))
        made.pipeline.end()
        made.pipeline.begin(2, 16_000)
        made.pipeline.push(noise(2.0, 16_000, 5))
        await made.pass_time(2.0)
        number, heard_s = made.pipeline.player.heard
        assert number == 2
        made.pipeline.rewind(round(0.9 * ROOM_RATE))
        cleared = made.pipeline.clear()
        assert cleared.dropped_s == pytest.approx(2.1, abs=1e-3)
        made.sound.clear()
        made.pipeline.rewind(0)  # a clear forgets: nothing is left to be said again
        await made.pass_time(1)
    assert not made.sound
    assert reported(made) == once([1, 2])
    finished = next(e for _, e in made.events if isinstance(e, PlaybackFinished) and e.segment == 2)
    assert finished.position_s == pytest.approx(heard_s, abs=1e-3) and finished.interrupted


async def test_what_is_kept_is_bounded(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        for number in range(1, 31):
            made.pipeline.begin(number, 48_000)
            made.pipeline.push(noise(1.0, 48_000, number))
            made.pipeline.end()
        await made.pass_time(31.5)
        made.sound.clear()
        made.pipeline.rewind(0)
        await made.pass_time(20)
    assert 10 * ROOM_RATE <= sum(len(b) for _, b in made.sound) <= (KEPT_S + 1) * ROOM_RATE
    assert reported(made) == once(range(1, 31))


async def test_a_segment_that_was_begun_elsewhere_counts_from_its_own_beginning(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(7, 16_000, heard_s=2.5)
        made.pipeline.push(noise(1.0, 16_000, 4))
        await made.pass_time(0.5)
        assert made.pipeline.player.heard == (7, pytest.approx(3.0, abs=0.05))
        made.pipeline.end()
        await made.pass_time(1)
    assert [e for _, e in made.events] == [PlaybackFinished(segment=7, position_s=3.5, interrupted=False)]


Step = tuple[str, float]
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.floats(0.02, 0.9)),
        st.tuples(st.just("wait"), st.floats(0.0, 0.8)),
        st.tuples(st.just("rewind"), st.floats(0.0, 1.5)),
        st.tuples(st.just("end"), st.just(0.0)),
    ),
    min_size=3,
    max_size=14,
)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(steps=_steps, rate=st.sampled_from([8_000, 16_000, 24_000, 48_000]))
def test_whatever_happens_every_sample_is_heard_once(steps: list[Step], rate: int) -> None:
    with ThreadPoolExecutor(2) as executor:
        asyncio.run(_play(executor, steps, rate))


async def _play(executor: ThreadPoolExecutor, steps: list[Step], rate: int) -> None:
    said: list[list[Pcm]] = []
    is_open = False
    seeds: Iterator[int] = iter(range(1000))
    positions: list[float] = []
    heard: list[tuple[int, float]] = []
    async with stand(executor) as made:
        viewer = Viewer(made)
        for action, amount in steps:
            if action == "say":
                if not is_open:
                    said.append([])
                    made.pipeline.begin(len(said), rate)
                    is_open = True
                said[-1].append(noise(amount, rate, next(seeds)))
                made.pipeline.push(said[-1][-1])
            elif action == "wait":
                await made.pass_time(amount)
            elif action == "end":
                made.pipeline.end()
                is_open = False
            else:
                viewer.rewind(max(0, position(made) - round(amount * ROOM_RATE)))
            positions.append(made.pipeline.player.position_s)
            heard.append(made.pipeline.player.heard)
        made.pipeline.end()
        await made.pass_time(20)
    expected = [at_room_rate(np.concatenate(parts), rate) for parts in said]
    assert np.array_equal(viewer.heard(), np.concatenate([np.zeros(0, np.int16), *expected]))
    assert reported(made) == once(range(1, len(said) + 1))
    assert positions == sorted(positions) and heard == sorted(heard)
    assert made.pipeline.player.buffered_s == 0
    lengths = [e.position_s for _, e in made.events if isinstance(e, PlaybackFinished)]
    assert lengths == pytest.approx([sum(len(p) for p in parts) / rate for parts in said], abs=1e-3)
    assert sum(len(b) for _, b in made.sound) % GRAIN == 0
