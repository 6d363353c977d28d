"""The gain before the detector of speech, with made voices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.conversation.worker.speech_gain import HIGHEST, WANTED, SpeechGain

RATE = 16_000
FRAME_S = 0.03
FRAME = round(FRAME_S * RATE)


def noise(seconds: float, level: float) -> npt.NDArray[np.int16]:
    return np.random.default_rng(1).normal(0, level, round(seconds * RATE)).astype(np.int16)


def voice(seconds: float, level: float) -> npt.NDArray[np.int16]:
    """Syllables of a fifth of a second, with the same pause after each; `level` is the RMS of a syllable."""
    t = np.arange(round(seconds * RATE)) / RATE
    tone = np.sin(2 * np.pi * 140 * t) + np.sin(2 * np.pi * 700 * t)
    return np.asarray(tone * level * (t % 0.4 < 0.2)).astype(np.int16)


def passed(gain: SpeechGain, sound: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    return np.concatenate(
        [gain.apply(sound[at : at + FRAME], FRAME_S) for at in range(0, len(sound) - FRAME + 1, FRAME)]
    )


def rms(sound: npt.NDArray[np.int16]) -> float:
    return float(np.sqrt(np.mean(sound.astype(float) ** 2)))


@pytest.mark.parametrize("level", [200.0, 600.0, WANTED])
def test_a_quiet_voice_is_as_loud_as_it_should_be_from_its_third_frame_on(level: float) -> None:
    gain = SpeechGain()
    passed(gain, noise(2, 8))
    sound = voice(2, level)
    louder = passed(gain, sound)
    first = louder[2 * FRAME : 3 * FRAME]
    assert rms(first) == pytest.approx(WANTED, rel=0.2)
    assert rms(louder[: len(louder) // 2]) == pytest.approx(rms(louder[len(louder) // 2 :]), rel=0.2)


def test_a_loud_voice_stays_as_it_is() -> None:
    gain, sound = SpeechGain(), voice(1, 6000)
    passed(gain, noise(1, 8))
    assert np.array_equal(passed(gain, sound), sound[: len(sound) // FRAME * FRAME])


def test_noise_alone_is_made_no_louder_however_long_it_lasts() -> None:
    for level in (1.0, 8.0, 300.0):
        gain, sound = SpeechGain(), noise(30, level)
        assert np.array_equal(passed(gain, sound), sound[: len(sound) // FRAME * FRAME])


def test_a_whisper_gets_the_highest_gain_and_no_more() -> None:
    gain = SpeechGain()
    passed(gain, noise(1, 1))
    passed(gain, voice(2, 20))
    assert gain.factor == HIGHEST


def test_a_loud_word_after_quiet_ones_is_not_cut_off() -> None:
    gain = SpeechGain()
    passed(gain, noise(1, 8))
    passed(gain, voice(2, 150))
    loud = voice(0.4, 9000)
    louder = passed(gain, loud)
    assert np.abs(louder.astype(int)).max() < 32_000
    assert np.corrcoef(louder, loud[: len(louder)])[0, 1] > 0.95


def test_the_gain_follows_a_voice_that_becomes_quieter() -> None:
    gain = SpeechGain()
    passed(gain, noise(1, 4))
    passed(gain, voice(2, 2000))
    assert gain.factor == pytest.approx(1.0)
    passed(gain, voice(30, 300))
    assert gain.factor == pytest.approx(WANTED / 300, rel=0.1)


def test_silence_and_nothing_at_all_are_taken() -> None:
    gain = SpeechGain()
    assert not passed(gain, np.zeros(RATE, np.int16)).any()
    assert len(gain.apply(np.zeros(0, np.int16), 0.0)) == 0
    assert gain.factor == 1.0
