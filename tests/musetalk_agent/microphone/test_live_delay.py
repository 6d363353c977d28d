"""A live microphone on the virtual clock: its delay is held against drift, bursts and loss, and what is said is whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from musetalk_agent.media.segment import ROOM_RATE
from musetalk_agent.media_types import Pcm
from musetalk_agent.microphone import live_buffer, microphone_input
from musetalk_agent.microphone.microphone_input import MicrophoneInput
from musetalk_agent.protocol.messages import PlaybackFinished
from tests.musetalk_agent.stand import Stand, stand

BLOCK = ROOM_RATE // 100
FLOOR_S = live_buffer.SLACK_S + 0.013  # a block more may have come, and the drift of a word


def tone(seconds: float) -> Pcm:
    return (12_000 * np.sin(2 * np.pi * 500 * np.arange(round(seconds * ROOM_RATE)) / ROOM_RATE)).astype(np.int16)


def silence(seconds: float) -> Pcm:
    return np.random.default_rng(3).normal(0, 20, round(seconds * ROOM_RATE)).astype(np.int16)  # −64 dBFS


def words(count: int, spoken_s: float = 0.6, pause_s: float = 0.2) -> Pcm:
    return np.tile(np.concatenate([tone(spoken_s), silence(pause_s)]), count)


class Live:
    """A microphone that is held open into a pipeline; a block comes as its last sample is spoken."""

    def __init__(self, made: Stand) -> None:
        self.made = made
        self.microphone = MicrophoneInput(made.pipeline, "anna", made.clock)
        self.delays: list[float] = []

    async def say(self, pcm: Pcm, pace: float = 1.0) -> None:
        """`pace` is the microphone's clock by ours."""
        begun = self.made.clock.now()
        for at in range(0, len(pcm) // BLOCK * BLOCK, BLOCK):
            await self.made.clock.run(begun + (at + BLOCK) / ROOM_RATE / pace)
            self.microphone.push(pcm[at : at + BLOCK])
            self.delays.append(self.made.pipeline.player.buffered_s)

    def comes_at_once(self, pcm: Pcm) -> None:
        for at in range(0, len(pcm) // BLOCK * BLOCK, BLOCK):
            self.microphone.push(pcm[at : at + BLOCK])

    @property
    def target_s(self) -> float:
        return self.made.pipeline.player.live_delay_s

    def heard(self) -> Pcm:
        return np.concatenate([block for _, block in self.made.sound])

    def ms(self) -> tuple[int, int, int]:
        status = self.microphone.status()
        return status.left_out_ms, status.stretched_ms, status.late_ms


async def test_what_comes_in_time_is_said_as_it_came_with_its_lips(executor: ThreadPoolExecutor) -> None:
    said = np.concatenate([silence(1), words(10)])
    async with stand(executor) as made:
        live = Live(made)
        await live.say(said)
        await made.pass_time(0.3)
        assert live.ms() == (0, 0, 0)
        assert max(live.delays) <= live.target_s + FLOOR_S
        heard = live.heard()[len(microphone_input._LEAD) :]
        spoken = said[ROOM_RATE - microphone_input._BEFORE * BLOCK :]  # but for the silence before it
        assert len(heard) > len(spoken) - 2 * BLOCK and np.array_equal(heard, spoken[: len(heard)])
        assert len(made.whites()) == len(made.onsets()) == 10
        skews = [w - s for w, s in zip(made.whites(), made.onsets(), strict=True)]
        assert -1 / 25 < min(skews) <= max(skews) < 0.002  # the frame in which the word begins
        assert made.kinds() == ["playback.started"]


@pytest.mark.parametrize("pace", [1.008, 0.992])
async def test_a_clock_that_drifts_moves_the_delay_no_further_than_a_pause_mends(
    executor: ThreadPoolExecutor, pace: float
) -> None:
    """Half a minute, in which eight parts in a thousand are a quarter of a second: as a real clock's two make in two minutes."""
    said = np.concatenate([silence(1), words(38)])
    async with stand(executor) as made:
        live = Live(made)
        await live.say(said, pace)
        await made.pass_time(0.5)
        left_out, stretched, late = live.ms()
        assert max(live.delays) <= live.target_s + live_buffer.SLACK_S + live_buffer.BLOCK_S + 0.8 * abs(pace - 1)
        assert late == 0
        assert (left_out, stretched)[pace < 1] == pytest.approx(240, abs=80)
        assert (left_out, stretched)[pace > 1] <= 40
        assert made.pipeline.player.statistics.underruns == 0
        assert len(made.onsets()) == 38  # no word is torn
        loud = np.abs(live.heard().astype(int)) > 1000
        assert loud.sum() == (np.abs(said.astype(int)) > 1000).sum()  # nothing but silence was left out


async def test_the_delay_that_a_burst_leaves_ends_in_the_next_pauses(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        live = Live(made)
        await live.say(np.concatenate([silence(1), words(2)]))
        await made.pass_time(0.2)  # the network holds 200 ms back
        live.comes_at_once(tone(0.2))
        await live.say(tone(0.5))
        late_s = made.pipeline.player.buffered_s
        await live.say(silence(0.25))
        in_time_s = made.pipeline.player.buffered_s
        await live.say(words(1))
        assert late_s > live.target_s + 0.05
        assert in_time_s <= live.target_s + FLOOR_S
        left_out, _, late = live.ms()
        assert left_out >= 50 and late == 0


async def test_what_comes_far_too_late_is_not_said_and_holds_nothing_up(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        live = Live(made)
        await live.say(np.concatenate([silence(1), tone(1)]))
        await made.pass_time(0.7)
        live.comes_at_once(tone(0.7))
        assert made.pipeline.player.buffered_s <= live.target_s + live_buffer.LATE_S + 0.02
        assert live.ms()[2] > 200
        await live.say(tone(1))
        await live.say(silence(1))
        assert made.pipeline.player.buffered_s <= live.target_s + FLOOR_S


async def test_what_a_replay_would_make_old_is_dropped(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        live = Live(made)
        await live.say(np.concatenate([silence(1), tone(3)]))
        made.pipeline.rewind(round(0.5 * ROOM_RATE))  # two seconds and a half were not heard
        assert made.pipeline.player.buffered_s > 2
        await live.say(tone(0.05))
        assert made.pipeline.player.buffered_s < live.target_s + 0.1
        await live.say(tone(1))
        assert made.pipeline.player.buffered_s < live.target_s + live_buffer.LATE_S


async def test_loss_leaves_the_voice_in_step_and_in_time(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        live = Live(made)
        await live.say(np.concatenate([silence(1), words(2)]))
        for _ in range(6):
            await made.pass_time(0.3)  # nothing comes for so long, and it never will
            await live.say(words(1))
        await live.say(silence(1))
        assert made.pipeline.player.buffered_s <= live.target_s + FLOOR_S
        whites, onsets = made.whites(), made.onsets()
        assert len(whites) == len(onsets)
        assert max(abs(w - s) for w, s in zip(whites, onsets, strict=True)) < 1 / 25  # a frame's own grain


async def test_silence_rests_the_engine_and_the_first_20_ms_of_speech_are_heard(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        live = Live(made)
        await live.say(np.concatenate([silence(1), tone(0.8)]))
        begun = made.clock.now()
        await live.say(silence(2))
        patches = next(s.count for s in made.pipeline.stats.report() if s.stage == "patches")
        position_s = made.pipeline.player.position_s
        await live.say(silence(8))
        assert made.pipeline.player.position_s - position_s < live_buffer.ASLEEP_S - 1.5
        assert next(s.count for s in made.pipeline.stats.report() if s.stage == "patches") == patches
        rested = [at for at, speaking in made.spoken if not speaking]
        assert rested and rested[-1] - begun <= 0.65
        at, returned_at = len(live.heard()), made.clock.now()
        returned = tone(0.02)
        await live.say(np.concatenate([returned, silence(1)]))
        await made.pass_time(0.3)
        after = live.heard()[at - BLOCK * 20 :]
        loud = np.flatnonzero(np.abs(after.astype(int)) > 1000)
        assert loud[-1] - loud[0] == pytest.approx(0.02 * ROOM_RATE, abs=100)
        assert made.kinds() == ["playback.started", "playback.finished", "playback.started"]
        assert made.onsets()[-1] - returned_at <= live.target_s + FLOOR_S  # silence has made it no later


async def test_an_interrupt_drops_what_waits_and_the_microphone_goes_on(executor: ThreadPoolExecutor) -> None:
    async with stand(executor) as made:
        live = Live(made)
        await live.say(np.concatenate([silence(1), tone(1)]))
        cleared = made.pipeline.clear()
        for _, event in made.events:
            live.microphone.on_playback_event(event)
        assert 0 < cleared.dropped_s <= live.target_s + FLOOR_S
        await live.say(np.concatenate([silence(0.3), words(1)]))
        await made.pass_time(0.5)
        assert live.microphone.segments == 2
        assert [e.interrupted for _, e in made.events if isinstance(e, PlaybackFinished)] == [True]
        assert made.onsets()[-1] > made.events[-1][0]
