from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.features.stress import MEMORY_S, StressMeter
from musetalk_agent.media_types import FEATURE_RATE, Pcm, frames_complete

FPS = 25


def murmur(seconds: float, level: float) -> Pcm:
    return np.asarray(np.random.default_rng(1).normal(0, level, round(seconds * FEATURE_RATE)), np.int16)


def heard(sound: Pcm, sizes: list[int] | None = None, fps: int = FPS) -> list[float]:
    meter, at = StressMeter(fps), 0
    for size in sizes or []:
        meter.push(sound[at : at + size])
        at += size
    meter.push(sound[at:])
    return [meter.take() for _ in range(frames_complete(len(sound), fps))]


SENTENCE = np.concatenate([murmur(0.6, 300), murmur(0.2, 3000), murmur(0.8, 300), murmur(0.2, 3000), murmur(0.5, 300)])


def test_a_syllable_that_rises_above_the_others_is_stressed() -> None:
    stress = heard(SENTENCE)
    assert [k for k, each in enumerate(stress) if each > 0] == [
        0,
        15,
        40,
    ]  # the beginning of the voice, and both syllables
    assert max(stress) <= 1


def test_silence_and_an_even_murmur_have_no_stress() -> None:
    assert not any(heard(np.zeros(FEATURE_RATE, np.int16)))
    assert not any(heard(murmur(2, 500))[1:])


@given(st.lists(st.integers(1, 4000), max_size=20), st.sampled_from([15, 25, 30, 60]))
def test_pieces_do_not_matter(sizes: list[int], fps: int) -> None:
    assert heard(SENTENCE, sizes, fps) == heard(SENTENCE, fps=fps)


@given(st.integers(0, 40))
def test_it_remembers_no_more_than_it_says(skipped: int) -> None:
    settled = round(MEMORY_S * FPS)
    rest = heard(SENTENCE[skipped * 640 :])
    assert rest[settled:] == heard(SENTENCE)[skipped:][settled:]


def test_a_frame_whose_audio_is_not_whole_has_none() -> None:
    meter = StressMeter(FPS)
    meter.push(murmur(0.039, 3000))
    assert meter.take() == 0
    meter.reset()
    meter.push(murmur(0.04, 3000))
    assert meter.take() > 0
