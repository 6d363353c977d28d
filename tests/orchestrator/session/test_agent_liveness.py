"""What tells an agent that hangs from one that has nothing to do."""

from __future__ import annotations

import pytest

from musetalk_agent.protocol.messages import LinkAck
from orchestrator.session.agent_connection import LivenessMonitor


def test_items_that_are_not_taken_for_two_and_a_half_seconds() -> None:
    liveness = LivenessMonitor(0.0)
    assert liveness.hung(100.0, unacked=False, at_agent_s=0.0) is None, "nothing was asked of it"
    assert liveness.hung(102.5, unacked=True, at_agent_s=0.0) is None
    assert "taken nothing" in str(liveness.hung(102.51, unacked=True, at_agent_s=0.0))


def test_an_agent_that_takes_items_is_alive_although_more_are_on_their_way() -> None:
    liveness = LivenessMonitor(0.0)
    for second in range(20):
        liveness.acked(LinkAck(items=second + 1), float(second))
        assert liveness.hung(second + 0.9, unacked=True, at_agent_s=0.0) is None


@pytest.mark.parametrize(
    "change",
    [{"heard_s": 0.1}, {"segment": 2}, {"frames": 1}, {"position_s": 0.1}],
    ids=lambda change: next(iter(change)),
)
def test_speech_that_does_not_move_for_three_seconds(change: dict[str, float]) -> None:
    liveness = LivenessMonitor(0.0)
    still = LinkAck(items=5, segment=1)
    liveness.acked(still, 0.0)
    assert liveness.hung(2.9, unacked=False, at_agent_s=2.0) is None
    liveness.acked(still.model_copy(update=change), 2.9)
    liveness.acked(still.model_copy(update=change), 5.8)
    assert liveness.hung(5.85, unacked=False, at_agent_s=2.0) is None
    assert "have moved" in str(liveness.hung(6.0, unacked=False, at_agent_s=2.0))


def test_an_agent_that_waits_for_pcm_or_for_its_network_does_not_hang() -> None:
    liveness = LivenessMonitor(0.0)
    assert liveness.hung(10.0, unacked=False, at_agent_s=0.2) is None
    liveness.published("none", 10.0)
    assert liveness.hung(60.0, unacked=False, at_agent_s=5.0) is None
    liveness.published("rtmp", 60.0)
    assert liveness.hung(62.9, unacked=False, at_agent_s=5.0) is None
    assert liveness.hung(63.1, unacked=False, at_agent_s=5.0) is not None


def test_time_without_a_connection_is_not_held_against_it() -> None:
    liveness = LivenessMonitor(0.0)
    liveness.gone(10.0)
    assert liveness.hung(12.0, unacked=True, at_agent_s=5.0) is None
