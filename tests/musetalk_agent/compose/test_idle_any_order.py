"""The head never jumps: whatever is ordered, shown, dropped or cleared, ticks go forward and idle frames to a neighbour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.compose.idle import LoopCursor, PingPongLoop

ACTS = st.lists(st.sampled_from(["reserve", "reserve", "show", "drop", "idle", "idle", "release"]), max_size=120)


@given(ACTS, st.integers(0, 4))
def test_ticks_go_forward_and_reserved_ones_follow_one_another(acts: list[str], lead: int) -> None:
    cursor = LoopCursor(lead)
    reserved: list[int] = []
    shown = -1
    for act in acts:
        if act == "reserve":
            tick = cursor.reserve()
            assert tick == (reserved[-1] + 1 if reserved else shown + 1 + lead)
            reserved.append(tick)
        elif act in ("show", "drop") and reserved:
            tick = reserved.pop(0)
            cursor.show(tick)
            assert tick >= shown
            shown = tick
        elif act == "release":
            cursor.release()
            reserved.clear()
        elif act == "idle":
            expected = cursor.next_idle()
            tick = cursor.idle()
            assert tick == expected
            assert max(shown, 0) <= tick <= max(shown + 1, 0)  # the next one, or the last once more
            assert not reserved or tick < reserved[0] or tick == max(shown, 0)
            shown = tick
        assert cursor.next_idle() <= max(shown + 1, 0)


@given(st.integers(1, 200), st.integers(0, 10**9))
def test_neighbouring_ticks_are_neighbouring_poses_at_any_length(frames: int, tick: int) -> None:
    cycle = PingPongLoop(frames)
    one, next_one = cycle.idle_index(tick), cycle.idle_index(tick + 1)
    assert 0 <= one < frames and 0 <= next_one < frames
    assert abs(one - next_one) == (1 if frames > 1 else 0)
    assert cycle.idle_index(tick + max(1, 2 * (frames - 1))) == one


@given(st.integers(2, 200))
def test_a_turn_of_the_cycle_shows_each_end_once_and_the_rest_twice(frames: int) -> None:
    idle_indices = [PingPongLoop(frames).idle_index(tick) for tick in range(2 * (frames - 1))]
    assert idle_indices.count(0) == idle_indices.count(frames - 1) == 1
    assert all(idle_indices.count(idle_index) == 2 for idle_index in range(1, frames - 1))


def test_a_first_picture_that_is_nearer_than_usual_says_so() -> None:
    cursor = LoopCursor(lead=3)
    assert cursor.idle() == 0
    assert cursor.reserve(lead=1) == 2 and cursor.reserve() == 3
    with pytest.raises(ValueError, match="at least one frame"):
        PingPongLoop(-1)
