"""Speech that a film gets from the orchestrator sounds as it was said, whatever its rate."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.audio.heard_speech import HeardPcm
from orchestrator.recording.film_joiner import AAC_FRAME, FilmJoiner
from orchestrator.recording.speech_encoder import encode_speech
from tests.fakes.film_parts import RATE, part, watch


def tone(rate: int, seconds: float, start: int = 0, hz: float = 1000) -> HeardPcm:
    """A tone in the segment 1, from its sample `start` on."""
    times = (start + np.arange(round(seconds * rate))) / rate
    return HeardPcm(1, rate, start, (12_000 * np.sin(2 * np.pi * hz * times)).astype("<i2").tobytes())


def said(*speech: HeardPcm) -> np.ndarray:
    """What is heard of it in a film, behind 0.8 s of a part."""
    made, joiner = part(), FilmJoiner()
    film = joiner.begin(made.header) + b"".join(map(joiner.add, made.fragments[:10]))
    begins = joiner.state.audio_end
    pcm = watch(film + joiner.say(encode_speech(speech))).pcm
    return pcm[-(-begins // AAC_FRAME) * AAC_FRAME :]


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 48_000])
def test_a_tone_is_as_long_and_as_high_as_it_was(rate: int) -> None:
    pcm = said(*(tone(rate, 0.1, round(0.1 * rate) * n) for n in range(8)))
    loud = np.flatnonzero(np.abs(pcm) > 0.1)
    assert (loud[-1] - loud[0]) / RATE == pytest.approx(0.8, abs=0.03)
    middle = pcm[len(pcm) // 2 - 8192 : len(pcm) // 2 + 8192] * np.hanning(16_384)
    power = np.abs(np.fft.rfft(middle)) ** 2
    peak = int(power.argmax())
    assert peak * RATE / 16_384 == pytest.approx(1000, abs=4)
    assert power[peak - 4 : peak + 5].sum() > 0.999 * power.sum(), "a seam is heard"


def test_speech_of_two_rates_follows_on_each_other() -> None:
    pcm = said(tone(16_000, 0.5), tone(24_000, 0.5))
    loud = np.flatnonzero(np.abs(pcm) > 0.1)
    assert (loud[-1] - loud[0]) / RATE == pytest.approx(1.0, abs=0.03)


def test_no_speech_is_nothing() -> None:
    assert len(encode_speech([])) <= 1
