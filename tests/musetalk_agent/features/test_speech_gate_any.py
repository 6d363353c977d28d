"""Whatever is said and however it is cut: each frame is decided once, a feature is that of its own sound, and rests are silent.

The extractor here is the plainest there is: a frame's feature is the sum of the samples that it may read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.features.extractor import HOLD_S, FeatureStream, SpeechGate, VoiceActivityDetector
from musetalk_agent.features.speech_detector import LevelDetector
from musetalk_agent.media_types import Cue, Feature, Pcm, frame_start, frames_begun

RATE = 16_000
STEP = RATE // 50


class SumStream:
    """Sums the samples of each frame and of the look-ahead behind it, as int64, which is exact."""

    def __init__(self, fps: int, lookahead: int) -> None:
        self._fps, self._lookahead = fps, lookahead
        self.reset()

    def reset(self) -> None:
        self._sound, self._frame = np.zeros(0, np.int64), 0
        self.cues: list[Cue] = []

    def cue(self, cues: Sequence[Cue]) -> None:
        self.cues += cues

    def push(self, samples: Pcm) -> list[Feature]:
        self._sound = np.concatenate([self._sound, samples])
        out = []
        while len(self._sound) >= frame_start(self._frame + 1, self._fps) + self._lookahead:
            out.append(self._next())
        return out

    def flush(self) -> list[Feature]:
        out = []
        while self._frame < frames_begun(len(self._sound), self._fps):
            out.append(self._next())
        return out

    def _next(self) -> Feature:
        first, end = frame_start(self._frame, self._fps), frame_start(self._frame + 1, self._fps) + self._lookahead
        self._frame += 1
        return np.array([self._sound[first:end].sum()], np.float64)  # type: ignore[return-value]  # sums are exact so


class SumFeatures:
    """Streams that sum; every 20 ms above a level are speech."""

    quick = True

    def __init__(self, lookahead_ms: int) -> None:
        self.lookahead_ms = lookahead_ms
        self.streams: list[SumStream] = []

    def detector(self) -> LevelDetector:
        return LevelDetector(-30)

    def stream(self, fps: int) -> SumStream:
        self.streams.append(SumStream(fps, self.lookahead_ms * RATE // 1000))
        return self.streams[-1]

    def begin(self, fps: int) -> tuple[LevelDetector, SumStream]:
        return self.detector(), self.stream(fps)

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        """They have no work in common."""


def said(stretches: list[tuple[bool, int]]) -> NDArray[np.int16]:
    """Speech and silence by turns, of so many samples; no two samples of speech are alike, and silence is not quite 0."""
    parts = []
    for number, (speech, samples) in enumerate(stretches):
        rng = np.random.default_rng(number)
        parts.append(rng.integers(4000, 20_000, samples) if speech else rng.integers(0, 3, samples))
    return np.concatenate([*parts, np.zeros(0)]).astype(np.int16)


def decided(
    extractor: SumFeatures, sound: NDArray[np.int16], fps: int, cuts: list[int], cues: Sequence[Cue] = ()
) -> list[Feature | None]:
    listening = SpeechGate(extractor, fps)
    listening.cue(cues)
    made: list[Feature | None] = []
    for part in np.split(sound, sorted(min(cut, len(sound)) for cut in cuts)):
        made += listening.push(part)
    return made + listening.flush()


STRETCHES = st.lists(st.tuples(st.booleans(), st.integers(1, 24_000)), max_size=5)
FPS = st.sampled_from([15, 23, 24, 25, 29, 30, 48, 50])
CUTS = st.lists(st.integers(0, 60_000), max_size=6)
LOOKAHEADS = st.sampled_from([0, 33, 60, 80, 200])


@given(STRETCHES, FPS, LOOKAHEADS, CUTS)
@settings(max_examples=60)
def test_each_frame_is_decided_once_and_its_feature_is_that_of_its_own_sound(
    stretches: list[tuple[bool, int]], fps: int, lookahead_ms: int, cuts: list[int]
) -> None:
    sound = said(stretches)
    made = decided(SumFeatures(lookahead_ms), sound, fps, cuts)
    assert len(made) == frames_begun(len(sound), fps)
    for frame, feature in enumerate(made):
        if feature is not None:
            first, end = frame_start(frame, fps), frame_start(frame + 1, fps) + lookahead_ms * RATE // 1000
            assert feature[0] == sound[first:end].sum(dtype=np.int64), frame


@given(STRETCHES, FPS, LOOKAHEADS, CUTS)
@settings(max_examples=40)
def test_how_it_is_cut_changes_neither_what_rests_nor_a_feature(
    stretches: list[tuple[bool, int]], fps: int, lookahead_ms: int, cuts: list[int]
) -> None:
    sound = said(stretches)
    whole = decided(SumFeatures(lookahead_ms), sound, fps, [])
    cut = decided(SumFeatures(lookahead_ms), sound, fps, cuts)
    assert [None if f is None else f[0] for f in cut] == [None if f is None else f[0] for f in whole]


@given(STRETCHES, FPS, LOOKAHEADS)
@settings(max_examples=60)
def test_what_rests_is_silent_and_speech_is_never_taken_for_rest(
    stretches: list[tuple[bool, int]], fps: int, lookahead_ms: int
) -> None:
    """A frame that rests has no speech in it, nor half a second before it; silence of more than that rests."""
    sound = said(stretches)
    made = decided(SumFeatures(lookahead_ms), sound, fps, [])
    whole = len(sound) // STEP
    loud = [bool(sound[at * STEP : (at + 1) * STEP].astype(float).std() > 1100) for at in range(whole)]
    hold = round(HOLD_S * RATE)
    for frame, feature in enumerate(made):
        first, end = frame_start(frame, fps), frame_start(frame + 1, fps)
        heard = [at for at in range(whole) if loud[at] and at * STEP < end and (at + 1) * STEP > first]
        if feature is None:
            assert not heard, f"frame {frame} speaks"
            assert first >= hold - STEP - (end - first) - lookahead_ms * 16, (
                "a segment counts as speech at its beginning"
            )
        recent = [
            at for at in range(whole) if loud[at] and first - 3 * hold < at * STEP < end + hold + lookahead_ms * 16
        ]
        if not recent and first > 3 * hold and end + lookahead_ms * 16 + STEP < len(sound):
            assert feature is None, f"frame {frame} does not rest"


@given(st.integers(1, 6), st.integers(400, 4000))
@settings(max_examples=20)
def test_a_sound_that_is_known_beforehand_wakes_the_stream_and_reaches_it_in_its_own_time(
    at_s: int, length: int
) -> None:
    extractor = SumFeatures(60)
    cue = Cue("a", at_s * RATE, at_s * RATE + length)
    made = decided(extractor, np.zeros((at_s + 2) * RATE, np.int16), 25, [], [cue])
    assert made[at_s * 25] is not None and made[at_s * 25 + length // 640] is not None
    if at_s < 2:
        return  # its beginning still counts as speech
    assert made[at_s * 25 - 8] is None
    waking = extractor.streams[-2]  # the last one was made for the next segment
    assert len(waking.cues) == 1
    begun = cue.start - waking.cues[0].start
    assert begun % 640 == 0 and at_s * RATE - 16_000 < begun <= at_s * RATE, "the stream began just before it"
    assert waking.cues[0].end - waking.cues[0].start == length
