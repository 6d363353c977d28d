"""The idle cycle never jumps."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.compose.idle import LoopCursor, PingPongLoop


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
