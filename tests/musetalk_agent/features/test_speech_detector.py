"""Speech, loud, quiet and whispered, is distinguished from silence, hum, noise and key strokes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.features.mouth_network import STEP
from musetalk_agent.features.speech_detector import LevelDetector, SpeechDetector

RATE = 16_000
SPOKEN = Path(__file__).parents[2] / "data" / "spoken_joe.npz"
Sound = NDArray[np.float64]


def spoken() -> Sound:
    with np.load(SPOKEN) as stored:
        coded = stored["mulaw"] / 127.5 - 1
        return np.asarray(np.sign(coded) * (256 ** np.abs(coded) - 1) / 255)


def peak(sound: Sound, dbfs: float) -> NDArray[np.int16]:
    return np.round(sound / np.abs(sound).max() * 32767 * 10 ** (dbfs / 20)).astype(np.int16)


def rms(sound: Sound, dbfs: float) -> NDArray[np.int16]:
    return np.round(sound / np.sqrt(np.mean(sound**2)) * 32768 * 10 ** (dbfs / 20)).astype(np.int16)


def noise(seconds: float, slope: float = 0.0) -> Sound:
    n = round(seconds * RATE)
    spectrum = np.fft.rfft(np.random.default_rng(3).standard_normal(n))
    return np.fft.irfft(spectrum * np.maximum(np.fft.rfftfreq(n, 1 / RATE), 20) ** slope, n)


def hum(hz: float, seconds: float = 20.0) -> Sound:
    t = np.arange(round(seconds * RATE)) / RATE
    return np.asarray(sum(np.sin(2 * np.pi * hz * k * t + k) / k**1.3 for k in range(1, 12)))


def keys(seconds: float = 20.0) -> Sound:
    rng, sound, at = np.random.default_rng(5), np.zeros(round(seconds * RATE)), 0
    while at < len(sound) - RATE // 2:
        for after, gain in ((0, 1.0), (int(rng.uniform(0.06, 0.11) * RATE), 0.5)):
            d = int(rng.uniform(0.006, 0.02) * RATE)
            sound[at + after : at + after + d] += gain * rng.standard_normal(d) * np.exp(-4 * np.arange(d) / d)
        at += int(rng.uniform(0.08, 0.4) * RATE)
    return sound


def whispered(sound: Sound) -> Sound:
    """The same spectrum over time with noise for a voice."""
    rng, size, hop = np.random.default_rng(2), 512, 128
    out, window = np.zeros(len(sound) + size), np.hanning(size)
    for at in range(0, len(sound) - size, hop):
        shape = np.abs(np.fft.rfft(sound[at : at + size] * window))
        smooth = np.convolve(shape, np.ones(9) / 9, "same")
        out[at : at + size] += np.fft.irfft(smooth * np.exp(2j * np.pi * rng.random(len(shape)))) * window
    spectrum = np.fft.rfft(out[: len(sound)])
    spectrum[np.fft.rfftfreq(len(sound), 1 / RATE) < 300] = 0
    return np.fft.irfft(spectrum, len(sound))


def share(sound: NDArray[np.int16], after_s: float = 0.6) -> float:
    """Share of the time that counts as speech with a hold of half a second."""
    verdicts = SpeechDetector.shipped().push(sound)
    held = np.convolve(verdicts, np.ones(25))[: len(verdicts)] > 0
    return float(held[round(after_s * 50) :].mean())


def lost(sound: NDArray[np.int16]) -> float:
    """Share of the loud 20 ms (within 25 dB of the loudest) that do not count as speech; a beginning has 60 ms to be noticed."""
    verdicts = SpeechDetector.shipped().push(sound)
    held = np.convolve(verdicts, np.ones(25))[: len(verdicts)] > 0
    held |= np.append(held[3:], [True] * 3)
    levels = np.sqrt(np.mean(sound[: len(held) * STEP].reshape(-1, STEP).astype(float) ** 2, axis=1))
    return float(np.mean(~held[levels > levels.max() * 10 ** (-25 / 20)]))


@pytest.mark.parametrize("dbfs", [-3, -20, -42])
def test_speech_of_any_level_is_speech(dbfs: float) -> None:
    assert lost(peak(spoken(), dbfs)) < 0.01


def test_a_whisper_is_speech() -> None:
    assert lost(peak(whispered(spoken()), -20)) < 0.01
    assert lost(peak(whispered(spoken()), -36)) < 0.01


@pytest.mark.parametrize("dbfs", [-60, -50, -40, -30, -20])
@pytest.mark.parametrize("hz", [50, 60])
def test_hum_is_none(hz: float, dbfs: float) -> None:
    assert share(rms(hum(hz), dbfs)) < 0.02


@pytest.mark.parametrize("dbfs", [-60, -50, -40, -30])
@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_a_noise_floor_is_none(slope: float, dbfs: float) -> None:
    assert share(rms(noise(20, slope), dbfs)) < 0.06


@pytest.mark.parametrize("dbfs", [-30, -20, -10])
def test_key_strokes_are_none(dbfs: float) -> None:
    assert share(peak(keys(), dbfs)) < 0.06


def test_a_word_after_silence_is_noticed_within_the_look_ahead() -> None:
    """Features wait 60 ms for their look-ahead; a word noticed within them loses no frame."""
    speech = peak(spoken(), -6)
    levels = np.sqrt(np.mean(speech[: len(speech) // STEP * STEP].reshape(-1, STEP).astype(float) ** 2, axis=1))
    onset = int(np.argmax(levels > 300))  # about -40 dBFS
    for quiet in (np.zeros(2 * RATE, np.int16), rms(noise(2), -60)):
        verdicts = SpeechDetector.shipped().push(np.concatenate([quiet, speech]))
        assert 0 <= verdicts[len(quiet) // STEP + onset - 3 :].index(True) <= 3 + 2


@pytest.mark.parametrize(("dbfs", "within"), [(-60, 8), (-50, 25), (-40, 25)])
@pytest.mark.parametrize("before", [0, 1])
def test_noise_after_a_word_is_noise_soon(dbfs: float, within: int, before: int) -> None:
    """Also where digital silence came before the word, so that the noise lies far above the background."""
    word = peak(spoken()[RATE : 3 * RATE], -3)
    sound = np.concatenate([np.zeros(before * RATE, np.int16), word, rms(noise(6), dbfs)])
    verdicts = SpeechDetector.shipped().push(sound)
    assert sum(verdicts[50 * before + 100 + within :]) == 0


@pytest.mark.parametrize("dbfs", [-60, -35])
def test_the_network_sleeps_in_steady_sound(dbfs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = SpeechDetector._run_network
    monkeypatch.setattr(SpeechDetector, "_run_network", lambda self, window: asked.append(1) or run(self, window))
    for sound in (rms(hum(50), dbfs), rms(noise(20), dbfs), np.zeros(20 * RATE, np.int16)):
        asked.clear()
        SpeechDetector.shipped().push(sound)
        assert len(asked) < 60


def test_how_the_sound_is_cut_changes_nothing() -> None:
    sound = np.concatenate([np.zeros(RATE, np.int16), peak(spoken()[: 2 * RATE], -10), np.zeros(RATE, np.int16)])
    whole = SpeechDetector.shipped().push(sound)
    detector, pieces, at = SpeechDetector.shipped(), [], 0
    for size in np.random.default_rng(1).integers(1, 900, 200):
        pieces += detector.push(sound[at : at + size])
        at += int(size)
    assert at > len(sound) and pieces == whole and len(whole) == len(sound) // STEP


def test_loudness_alone() -> None:
    detector = LevelDetector()
    assert detector.push(rms(hum(440, 0.1), -54)[: 2 * STEP + 5]) == [True, True]
    assert detector.push(rms(noise(0.1), -58)[:STEP]) == [False]
