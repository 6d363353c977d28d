"""What tells an agent that hangs from one that has nothing to do."""

from __future__ import annotations

import pytest

from musetalk_agent.protocol.messages import LinkAck
from orchestrator.session.agent_connection import LivenessMonitor


def test_items_that_are_not_taken_for_two_and_a_half_seconds() -> None:
    vitals = LivenessMonitor(0.0)
    assert vitals.hung(100.0, unacked=False, at_agent_s=0.0) is None, "nothing was asked of it"
    assert vitals.hung(102.5, unacked=True, at_agent_s=0.0) is None
    assert "taken nothing" in str(vitals.hung(102.51, unacked=True, at_agent_s=0.0))


def test_an_agent_that_takes_items_is_alive_although_more_are_on_their_way() -> None:
    vitals = LivenessMonitor(0.0)
    for second in range(20):
        vitals.acked(LinkAck(items=second + 1), float(second))
        assert vitals.hung(second + 0.9, unacked=True, at_agent_s=0.0) is None


@pytest.mark.parametrize(
    "change",
    [{"heard_s": 0.1}, {"segment": 2}, {"frames": 1}, {"position_s": 0.1}],
    ids=lambda change: next(iter(change)),
)
def test_speech_that_does_not_move_for_three_seconds(change: dict[str, float]) -> None:
    vitals = LivenessMonitor(0.0)
    still = LinkAck(items=5, segment=1)
    vitals.acked(still, 0.0)
    assert vitals.hung(2.9, unacked=False, at_agent_s=2.0) is None
    vitals.acked(still.model_copy(update=change), 2.9)
    vitals.acked(still.model_copy(update=change), 5.8)
    assert vitals.hung(5.85, unacked=False, at_agent_s=2.0) is None
    assert "have moved" in str(vitals.hung(6.0, unacked=False, at_agent_s=2.0))


def test_an_agent_that_waits_for_pcm_or_for_its_network_does_not_hang() -> None:
    vitals = LivenessMonitor(0.0)
    assert vitals.hung(10.0, unacked=False, at_agent_s=0.2) is None
    vitals.published("none", 10.0)
    assert vitals.hung(60.0, unacked=False, at_agent_s=5.0) is None
    vitals.published("rtmp", 60.0)
    assert vitals.hung(62.9, unacked=False, at_agent_s=5.0) is None
    assert vitals.hung(63.1, unacked=False, at_agent_s=5.0) is not None


def test_time_without_a_connection_is_not_held_against_it() -> None:
    vitals = LivenessMonitor(0.0)
    vitals.gone(10.0)
    assert vitals.hung(12.0, unacked=True, at_agent_s=5.0) is None
