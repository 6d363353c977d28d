from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from musetalk_agent.avatar_protocol import core
from musetalk_agent.avatar_protocol.core import (
    AvatarProtocol,
    Begin,
    ClearBuffer,
    Close,
    Command,
    End,
    PushAudio,
    Refuse,
    RpcCall,
    Warn,
)
from musetalk_agent.protocol.messages import Cleared, PlaybackFinished, PlaybackStarted

SENDER = "agent-1"
PLAIN = {"sample_rate": "24000", "num_channels": "1"}
PCM = np.arange(-300, 300, dtype=np.int16)


def protocol(*streams: str, begun: int = 1, now: float = 0.0) -> AvatarProtocol:
    """With these streams arrived, the first of them being read."""
    made = AvatarProtocol(SENDER)
    for stream in streams:
        made.arrived(stream, SENDER, PLAIN, now)
    for stream in streams[:begun]:
        made.begin(stream, now)
    return made


def finished(number: int, position_s: float = 1.0, *, interrupted: bool = False) -> PlaybackFinished:
    return PlaybackFinished(segment=number, position_s=position_s, interrupted=interrupted)


def finished_call(position: float, *, interrupted: bool) -> RpcCall:
    return RpcCall(core.FINISHED_METHOD, json.dumps({"playback_position": position, "interrupted": interrupted}))


def kinds(acts: Sequence[Command]) -> list[type]:
    return [type(act) for act in acts]


def pushed(acts: Sequence[Command]) -> list[int]:
    return [int(sample) for act in acts if isinstance(act, PushAudio) for sample in act.samples]


def test_a_segment_from_its_header_to_its_acknowledgement() -> None:
    made = AvatarProtocol(SENDER)
    assert made.arrived("a", SENDER, PLAIN, 0) == []
    assert made.begin("a", 0) == [Begin(1, 24000)]
    assert pushed(made.data("a", PCM.tobytes(), 0.1)) == PCM.tolist()
    assert made.ended("a") == [End()]
    assert made.on_playback_event(PlaybackStarted(segment=1)) == [RpcCall(core.STARTED_METHOD)]
    assert made.on_playback_event(finished(1, 0.025)) == [finished_call(0.025, interrupted=False)]
    assert made.on_playback_event(finished(1, 0.025)) == [], "once"
    assert made.on_playback_event(PlaybackStarted(segment=1)) == []
    assert made.segments == 1


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 599, 1199])
def test_chunks_are_cut_anywhere(cut: int) -> None:
    made, data = protocol("a"), PCM.tobytes()
    acts = made.data("a", data[:cut], 0) + made.data("a", data[cut:], 0)
    assert pushed(acts) == PCM.tolist()


def test_two_channels_become_one() -> None:
    made = AvatarProtocol(SENDER)
    made.arrived("a", SENDER, {"sample_rate": "48000", "num_channels": "2"}, 0)
    assert made.begin("a", 0) == [Begin(1, 48000)]
    both = np.array([[100, 200], [-50, 50], [7, 7]], np.int16).tobytes()
    assert pushed(made.data("a", both[:3], 0) + made.data("a", both[3:], 0)) == [150, 0, 7]


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"sample_rate": "24000"},
        {"sample_rate": "4000", "num_channels": "1"},
        {"sample_rate": "24e3", "num_channels": "1"},
        {"sample_rate": "24000", "num_channels": "0"},
    ],
)
def test_sound_that_cannot_be_used_is_acknowledged_all_the_same(attributes: dict[str, str]) -> None:
    made = AvatarProtocol(SENDER)
    (warning,) = made.arrived("a", SENDER, attributes, 0)
    assert isinstance(warning, Warn) and SENDER in warning.message
    assert kinds(made.begin("a", 0)) == [Begin]
    assert made.data("a", PCM.tobytes(), 0) == []
    assert made.ended("a") == [End()]
    assert made.on_playback_event(finished(1, 0.0)) == [finished_call(0.0, interrupted=False)]


def test_others_are_not_listened_to() -> None:
    made = protocol("a")
    assert made.arrived("b", "somebody", PLAIN, 0) == [Refuse()]
    assert made.clear("somebody") is None
    assert made.data("b", PCM.tobytes(), 0) == [] == made.ended("b")
    assert made.begin("b", 0) == [Close("b")]
    assert made.segments == 1


@pytest.mark.parametrize("sender", ["somebody", SENDER])
def test_a_stream_with_the_id_of_one_that_is_read_does_not_end_that(sender: str) -> None:
    made = protocol("a")
    assert made.arrived("a", sender, PLAIN, 0) == [Refuse()]
    assert kinds(made.data("a", PCM.tobytes(), 0)) == [PushAudio]
    assert made.ended("a") == [End()]


@pytest.mark.parametrize(("streams", "begun"), [(["a"], 1), (["a"], 0), (["a", "b", "c"], 1), ([], 0)])
def test_a_clear_drops_what_was_read_and_what_was_not(streams: list[str], begun: int) -> None:
    made = protocol(*streams, begun=begun)
    acts = made.clear(SENDER)
    opened = [Begin(number + 1, 24000) for number in range(begun, len(streams))]
    assert acts == [*opened, ClearBuffer(), *(Close(stream) for stream in streams)]
    calls = [
        call
        for number in range(len(streams))
        for call in made.on_playback_event(finished(number + 1, interrupted=True))
    ]
    assert calls == [finished_call(1.0, interrupted=True)] * len(streams)
    for stream in streams:
        assert made.data(stream, PCM.tobytes(), 0) == [] == made.ended(stream)
    made.arrived("next", SENDER, PLAIN, 1)
    assert made.begin("next", 1) == [Begin(len(streams) + 1, 24000)]


def test_ten_clears_in_a_row_are_ten_acknowledgements() -> None:
    made, calls = AvatarProtocol(SENDER), 0
    for number in range(1, 11):
        made.arrived(f"s{number}", SENDER, PLAIN, number)
        made.begin(f"s{number}", number)
        for _ in range(2):  # the agent may ask twice
            assert ClearBuffer() in (made.clear(SENDER) or [])
            calls += len(made.on_playback_event(finished(number, interrupted=True)))
    assert calls == 10


@pytest.mark.parametrize(
    ("position_s", "interrupted", "reported_s"),
    [(0.01, True, 0.02), (0.02, True, 0.025), (0.0, True, 0.0), (0.025, False, 0.025), (0.03, True, 0.03)],
)
def test_what_is_under_way_when_the_sound_is_cut_is_heard(
    position_s: float, interrupted: bool, reported_s: float
) -> None:
    made = AvatarProtocol(SENDER, tail_s=0.01)
    made.arrived("a", SENDER, PLAIN, 0)
    made.begin("a", 0)
    made.data("a", PCM.tobytes(), 0)  # 25 ms
    assert made.on_playback_event(finished(1, position_s, interrupted=interrupted))[-1] == finished_call(
        reported_s, interrupted=interrupted
    )


def test_somebody_else_clears() -> None:
    """`POST …/interrupt`: the pipeline drops the segment while its stream is still being read."""
    made = protocol("a")
    assert made.on_playback_event(finished(1, 0.4, interrupted=True)) == [
        Close("a"),
        finished_call(0.4, interrupted=True),
    ]
    assert made.on_playback_event(Cleared(dropped_s=1)) == []
    assert made.data("a", PCM.tobytes(), 0) == []


def _newer(made: AvatarProtocol) -> None:
    made.arrived("b", SENDER, PLAIN, 0)


@pytest.mark.parametrize(
    ("how", "patience"),
    [(lambda _: None, core.IDLE_S), (_newer, core.SUPERSEDED_S)],
    ids=["nothing comes", "a newer stream"],
)
def test_a_lost_end_does_not_wedge(how: Callable[[AvatarProtocol], None], patience: float) -> None:
    made = protocol("a")
    made.data("a", PCM.tobytes(), 0.0)
    how(made)
    assert made.tick(patience - 0.01, (0, 0.0)) == []
    assert kinds(made.tick(patience + 0.01, (0, 0.0))) == [Warn, End, Close]
    assert made.ended("a") == [], "its end, should it come after all"


def test_a_stream_that_is_held_back_is_alive() -> None:
    made = protocol("a", "b")
    for tenth in range(50):
        made.data("a", b"", tenth / 10)
        assert made.tick(tenth / 10 + 0.05, (1, tenth / 10)) == []


def test_speech_that_is_stuck_is_dropped() -> None:
    made = protocol("a")
    made.data("a", PCM.tobytes(), 0.0)
    made.ended("a")
    assert made.tick(0.1, (0, 0.0)) == []
    assert made.tick(10.0, (1, 0.5)) == [], "it moves"
    assert made.tick(9.9 + core.STUCK_S, (1, 0.5)) == []
    assert kinds(made.tick(10.1 + core.STUCK_S, (1, 0.5))) == [Warn, ClearBuffer]
    assert made.on_playback_event(finished(1, 0.5, interrupted=True)) == [finished_call(0.5, interrupted=True)]
    assert made.tick(1000, (1, 0.5)) == [], "nothing waits"


def test_nothing_is_reported_once_the_agent_has_left() -> None:
    made = protocol("a", "b")
    made.ended("a")
    made.begin("b", 0)
    assert made.tick(core.ABSENT_S - 0.1, (0, 0.0), present=False) == []
    assert made.on_playback_event(PlaybackStarted(segment=1)) == [RpcCall(core.STARTED_METHOD)], (
        "it may be out of sight for a moment"
    )
    assert kinds(made.tick(core.ABSENT_S + 0.1, (0, 0.0), present=False)) == [Warn, End, Close], "its stream has no end"
    assert made.on_playback_event(finished(1)) == [] == made.on_playback_event(finished(2))
    made.arrived("b", SENDER, PLAIN, 5)
    assert made.begin("b", 5) == [Begin(3, 24000)] and made.ended("b") == [End()]
    assert made.on_playback_event(finished(3)) == [finished_call(1.0, interrupted=False)], "it came back"


def test_one_who_comes_back_says_that_it_still_has_the_speech() -> None:
    made = protocol("a")
    assert made.rejoined() == [RpcCall(core.STARTED_METHOD)]
    made.ended("a")
    assert made.on_playback_event(finished(1)) == [finished_call(1.0, interrupted=False)]
    assert made.rejoined() == []


def test_streams_that_wait_are_bounded_and_each_is_acknowledged() -> None:
    made = protocol(*(f"s{n}" for n in range(core.STREAMS_MOST)))
    warning, close, call = made.arrived("more", SENDER, PLAIN, 0)
    assert isinstance(warning, Warn) and close == Refuse() and call == finished_call(0.0, interrupted=True)
    assert made.segments == core.STREAMS_MOST
