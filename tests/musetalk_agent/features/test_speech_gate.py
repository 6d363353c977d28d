"""Which frames of a segment rest, and that the features after a rest are those of the sound around them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.features.extractor import HOLD_S, FeatureExtractor, SpeechGate
from musetalk_agent.features.phonemes import CLOSURE, JAW
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.features.whisper_features import TARGET, WhisperFeatures
from musetalk_agent.media_types import Cue, Feature, frames_begun
from tests.musetalk_agent.features.test_speech_detector import peak, spoken

RATE = 16_000
EXTRACTORS = {"warp": VisemeFeatures.load(), "musetalk": WhisperFeatures()}


def decided(
    extractor: FeatureExtractor,
    sound: NDArray[np.int16],
    fps: int = 25,
    block: int = 640,
    cues: list[Cue] | None = None,
) -> list[Feature | None]:
    listening = SpeechGate(extractor, fps)
    listening.cue(cues or [])
    out: list[Feature | None] = []
    for at in range(0, len(sound), block):
        out += listening.push(sound[at : at + block])
    return out + listening.flush()


def between(seconds: float) -> NDArray[np.int16]:
    """A word, so much silence, a word."""
    word = peak(spoken()[RATE // 2 : RATE * 3 // 2], -6)
    return np.concatenate([word, np.zeros(round(seconds * RATE), np.int16), word])


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("fps", [15, 23, 25, 29, 30, 50, 60])
def test_every_frame_is_decided_once_and_silence_rests(name: str, fps: int) -> None:
    sound = between(3)
    made = decided(EXTRACTORS[name], sound, fps)
    assert len(made) == frames_begun(len(sound), fps)
    rest = [k for k, feature in enumerate(made) if feature is None]
    assert rest == list(range(rest[0], rest[-1] + 1))
    assert 1 + HOLD_S - 0.3 < rest[0] / fps < 1 + HOLD_S + 0.1
    assert 4 - 0.14 < (rest[-1] + 1) / fps <= 4 + 0.06


@pytest.mark.parametrize("name", EXTRACTORS)
def test_how_the_sound_is_cut_changes_nothing(name: str) -> None:
    sound = between(2)
    one, other = decided(EXTRACTORS[name], sound, block=640), decided(EXTRACTORS[name], sound, block=3331)
    assert [f is None for f in one] == [f is None for f in other]
    for a, b in zip(one, other, strict=True):
        if a is not None and b is not None:
            np.testing.assert_array_equal(a, b)


def test_after_a_rest_the_mouth_is_that_of_a_stream_that_never_rested() -> None:
    features, sound = EXTRACTORS["warp"], between(3)
    stream = features.stream(25)
    steady = np.array(stream.push(sound) + stream.flush())
    made = decided(features, sound)
    returned = next(k for k in range(60, len(made)) if made[k] is not None)
    again = np.array([f for f in made[returned:] if f is not None])
    assert np.abs(steady[returned : returned + 25, JAW]).max() > 0.3  # the word is there
    assert np.abs(again[:25, JAW] - steady[returned : returned + 25, JAW]).mean() < 0.03


def test_after_a_rest_whisper_hears_the_silence_before_the_word() -> None:
    made = decided(EXTRACTORS["musetalk"], between(3))
    returned = next(k for k in range(60, len(made)) if made[k] is not None)
    first = made[returned]
    assert first is not None
    window = first[:-1][2 * TARGET.start - 12 : 2 * TARGET.start]  # 120 ms before the frame's own
    assert np.ptp(window) < 0.2 * np.ptp(first[:-1])  # the silence, and not the mirror image of the word


def test_what_is_known_beforehand_is_speech() -> None:
    sound = np.zeros(4 * RATE, np.int16)
    made = decided(
        EXTRACTORS["warp"],
        sound,
        cues=[Cue("a", 2 * RATE, 2 * RATE + 3200), Cue("b", 2 * RATE + 3200, 2 * RATE + 4800)],
    )
    assert made[40] is None and made[80] is None
    word = made[50:58]
    assert all(feature is not None for feature in word)
    assert max(float(f[JAW]) for f in word if f is not None) > 0.5
    assert max(float(f[CLOSURE]) for f in word if f is not None) == 1.0


def test_a_short_pause_does_not_rest() -> None:
    assert all(feature is not None for feature in decided(EXTRACTORS["warp"], between(0.35)))


def test_the_next_segment_begins_anew() -> None:
    listening = SpeechGate(EXTRACTORS["warp"], 25)
    listening.push(np.zeros(2 * RATE, np.int16))
    assert listening.resting
    listening.flush()
    assert not listening.resting
    assert listening.push(np.zeros(RATE // 5, np.int16))[0] is not None


def test_a_gate_is_quick_with_little_of_speech_that_is_under_way() -> None:
    listening = SpeechGate(EXTRACTORS["warp"], 25)
    assert listening.is_quick(640) and not listening.is_quick(641)
    listening.push(np.zeros(2 * RATE, np.int16))
    assert listening.resting and not listening.is_quick(640)  # with the word it reads back what came before
    listening.push(between(0))
    assert listening.is_quick(640)
    assert not SpeechGate(EXTRACTORS["musetalk"], 25).is_quick(640)
