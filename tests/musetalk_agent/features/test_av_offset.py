"""Lips moved against the voice: each frame has the feature of the sound that lies so far from it, however the sound is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.features.av_offset import OffsetGate
from musetalk_agent.features.extractor import SpeechGate
from musetalk_agent.media_types import Cue, Feature, frame_start, frames_begun, frames_complete
from tests.musetalk_agent.features.test_speech_gate_any import SumFeatures, said

RATE = 16_000
LOOKAHEAD_MS = 80


def gate(offset_ms: int, fps: int) -> OffsetGate:
    return OffsetGate(SpeechGate(SumFeatures(LOOKAHEAD_MS), fps), fps, offset_ms)


@given(
    st.integers(0, 20_000),
    st.sampled_from([15, 25, 30, 50]),
    st.integers(-200, 200),
    st.lists(st.integers(0, 20_000), max_size=6),
)
@settings(max_examples=80)
def test_a_frame_has_the_sound_of_another_time(samples: int, fps: int, offset_ms: int, cuts: list[int]) -> None:
    sound = said([(True, samples)])
    shifted, decided = gate(offset_ms, fps), []
    for part in np.split(sound, sorted(min(cut, len(sound)) for cut in cuts)):
        decided += shifted.push(part)
        assert len(decided) <= frames_complete(len(sound), fps)
    decided += shifted.flush()
    assert len(decided) == frames_begun(len(sound), fps)
    padded = np.concatenate([np.zeros(RATE, np.int16), sound, np.zeros(RATE, np.int16)]).astype(np.float64)
    by = RATE - offset_ms * RATE // 1000
    for frame, feature in enumerate(decided):
        if feature is not None:
            first, end = frame_start(frame, fps), frame_start(frame + 1, fps) + LOOKAHEAD_MS * RATE // 1000
            assert float(feature[0]) == padded[by + first : by + end].sum(), frame


@pytest.mark.parametrize("offset_ms", [-120, 120])
def test_the_next_segment_is_shifted_again(offset_ms: int) -> None:
    sound = said([(True, 8000)])
    shifted = gate(offset_ms, 25)
    first: list[Feature | None] = shifted.push(sound) + shifted.flush()
    again: list[Feature | None] = shifted.push(sound) + shifted.flush()
    assert [float(f[0]) for f in first if f is not None] == [float(f[0]) for f in again if f is not None] != []


def test_known_phonemes_move_with_their_sound() -> None:
    class Heard(SpeechGate):
        cues: tuple[Cue, ...] = ()

        def cue(self, cues: object) -> None:
            self.cues = tuple(cues)  # type: ignore[arg-type]  # the test's own call

    inner = Heard(SumFeatures(LOOKAHEAD_MS), 25)
    OffsetGate(inner, 25, -100).cue([Cue("a", 0, 1600), Cue("p", 800, 2400), Cue("o", 3200, 4800)])
    assert inner.cues == (Cue("p", 0, 800), Cue("o", 1600, 3200))
    OffsetGate(inner, 25, 50).cue([Cue("a", 0, 1600)])
    assert inner.cues == (Cue("a", 800, 2400),)


@pytest.mark.parametrize(("offset_ms", "at_first"), [(0, True), (80, False), (-80, True)])
def test_the_silence_that_a_later_mouth_begins_with_is_counted(offset_ms: int, at_first: bool) -> None:
    made = gate(offset_ms, 25)
    assert made.is_quick(640) is at_first
    made.push(np.full(640, 9_000, np.int16))
    assert made.is_quick(640)
