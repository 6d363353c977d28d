"""Whether an agent hangs, for any course of signs of life: one that moves never does, one that stands does in time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import LinkAck
from orchestrator.session.agent_connection import SILENT_S, SPEECH_S, STILL_S, LivenessMonitor

_gap = st.floats(0, 1.0, allow_nan=False)


def ack(items: int, place: int) -> LinkAck:
    return LinkAck(items=items, buffered_s=9.0, segment=1, heard_s=place / 10, frames=0, resting=False)


@settings(max_examples=300)
@given(steps=st.lists(st.tuples(_gap, st.booleans(), st.booleans(), st.floats(0, 3)), max_size=40))
def test_the_verdict_is_what_the_last_sign_of_life_says(steps: list[tuple[float, bool, bool, float]]) -> None:
    now = taken_at = moved_at = 10.0
    liveness, items, place = LivenessMonitor(now), 0, 0
    for number, (gap, takes, moves, at_agent_s) in enumerate(steps):
        now += gap
        items, place = items + takes, place + moves
        liveness.acked(ack(items, place), now)
        taken_at = now if takes else taken_at
        moved_at = now if moves or number == 0 else moved_at  # the first acknowledgement names the segment
        verdict = liveness.hung(now, unacked=True, at_agent_s=at_agent_s)
        if at_agent_s < SPEECH_S:
            moved_at = now
        if now - taken_at <= SILENT_S and now - moved_at <= STILL_S:
            assert verdict is None, "it was well a moment ago"
        elif now - taken_at > SILENT_S:
            assert verdict is not None and "taken nothing" in verdict


@settings(max_examples=200)
@given(quiet_s=st.floats(0, 60), unacked=st.booleans(), at_agent_s=st.floats(0, 60))
def test_silence_is_a_fault_only_while_something_is_to_be_said_or_taken(
    quiet_s: float, unacked: bool, at_agent_s: float
) -> None:
    liveness = LivenessMonitor(0.0)
    liveness.acked(ack(0, 1), 0.0)
    liveness.hung(0.0, unacked=unacked, at_agent_s=at_agent_s)
    hung = liveness.hung(quiet_s, unacked=unacked, at_agent_s=at_agent_s) is not None
    assert hung == ((unacked and quiet_s > SILENT_S) or (at_agent_s >= SPEECH_S and quiet_s > STILL_S))


@given(away_s=st.floats(0, 1000), at_agent_s=st.floats(1, 60))
def test_a_publisher_without_a_network_and_a_link_that_is_down_are_no_fault(away_s: float, at_agent_s: float) -> None:
    liveness = LivenessMonitor(0.0)
    liveness.published("none", 0.0)
    assert liveness.hung(away_s, unacked=False, at_agent_s=at_agent_s) is None
    liveness.published("livekit", away_s)
    assert liveness.hung(away_s + STILL_S / 2, unacked=False, at_agent_s=at_agent_s) is None
    assert liveness.hung(away_s + STILL_S + 0.1, unacked=False, at_agent_s=at_agent_s) is not None
    liveness.gone(away_s + 50)
    assert liveness.hung(away_s + 51, unacked=True, at_agent_s=at_agent_s) is None
