"""The idle cycle never jumps."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.compose.idle import LoopCursor, PingPongLoop, VariedLoop, idle_loop


def test_ping_pong_without_doubled_ends() -> None:
    assert [PingPongLoop(4).idle_index(t) for t in range(13)] == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0]
    assert [PingPongLoop(1).idle_index(t) for t in range(3)] == [0, 0, 0]
    assert [PingPongLoop(2).idle_index(t) for t in range(4)] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="at least one"):
        PingPongLoop(0)


@pytest.mark.parametrize("frames", [2, 3, 75])
def test_neighbouring_ticks_are_neighbouring_frames(frames: int) -> None:
    cycle = PingPongLoop(frames)
    steps = np.abs(np.diff([cycle.idle_index(t) for t in range(4 * frames)]))
    assert set(steps.tolist()) == {1}


@pytest.mark.parametrize("frames", [2, 3, 40, 88, 3000])
def test_a_varied_loop_never_jumps_and_begins_with_the_whole_clip(frames: int) -> None:
    loop = VariedLoop(frames)
    length = len(loop._order)
    shown = np.array([loop.idle_index(t) for t in range(length + 2)])
    assert shown[:frames].tolist() == list(range(frames))
    assert set(np.abs(np.diff(shown)).tolist()) == {1}, "over the end of the round too"
    assert (shown.min(), shown.max()) == (0, frames - 1)


def test_a_varied_loop_turns_elsewhere_each_time_but_near_the_ends() -> None:
    shown = np.array([VariedLoop(88).idle_index(t) for t in range(8000)])
    step = np.diff(shown)
    turns = shown[1:-1][step[1:] != step[:-1]]
    assert len(turns) > 90 and len(set(turns.tolist())) > 14
    assert ((turns <= 8) | (turns >= 79)).all()
    after = shown[88 : 88 + 3000]
    repeats = [lag for lag in range(50, 2000) if (after[: 3000 - lag] == after[lag:]).mean() > 0.9]
    assert repeats == [], "a minute and more without a period"


def test_short_clips_have_no_room_for_other_ends() -> None:
    assert isinstance(idle_loop(39), PingPongLoop) and isinstance(idle_loop(40), VariedLoop)
    assert [idle_loop(1).idle_index(t) for t in range(3)] == [0, 0, 0]


def test_speech_takes_the_ticks_that_follow_and_idle_goes_on_after_it() -> None:
    cursor = LoopCursor(lead=1)
    assert [cursor.idle() for _ in range(3)] == [0, 1, 2]
    reserved = [cursor.reserve() for _ in range(3)]
    assert reserved == [4, 5, 6]
    assert cursor.idle() == 3
    assert cursor.idle() == 3  # speech is late: idle waits for it instead of running past
    for tick in reserved:
        cursor.show(tick)
    assert cursor.idle() == 7


def test_a_clear_voids_reservations() -> None:
    cursor = LoopCursor()
    cursor.idle()
    for tick in [cursor.reserve() for _ in range(5)][:2]:
        cursor.show(tick)
    cursor.release()
    assert cursor.idle() == 4
