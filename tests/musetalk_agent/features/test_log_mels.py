"""Log-mels and the remembered level, beside the plain formulas: a Fourier sum, triangles in mel, one frame after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.features import mouth_network
from musetalk_agent.features.mouth_network import BANDS, FLOOR_DB, HOP, RATE, WINDOW, Normaliser


def to_mel(hz: float) -> float:
    return 2595 * math.log10(1 + hz / 700)


def to_hz(mel: float) -> float:
    return 700 * (10 ** (mel / 2595) - 1)


CENTRES = [to_hz(to_mel(60) + (to_mel(7600) - to_mel(60)) * (band + 1) / (BANDS + 1)) for band in range(BANDS)]


def plain_levels(window: NDArray[np.float32]) -> list[float]:
    """Band levels of one window in dB, written out."""
    n = np.arange(WINDOW)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / WINDOW)
    edges = [to_hz(to_mel(60) + (to_mel(7600) - to_mel(60)) * at / (BANDS + 1)) for at in range(BANDS + 2)]
    powers = [abs(np.sum(window * hann * np.exp(-2j * np.pi * k * n / 512))) ** 2 for k in range(257)]
    levels = []
    for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False):
        total = 0.0
        for k, power in enumerate(powers):
            hz = k * RATE / 512
            total += power * max(0.0, min((hz - low) / (mid - low), (high - hz) / (high - mid)))
        levels.append(10 * math.log10(max(total * 4 / (512 * WINDOW), 1e-12)))
    return levels


def tone(hz: float, size: float = 1.0) -> NDArray[np.float32]:
    return (size * np.sin(2 * np.pi * hz * np.arange(WINDOW) / RATE)).astype(np.float32)[None]


@pytest.mark.parametrize("seed", range(3))
def test_band_levels_are_those_of_the_formulas(seed: int) -> None:
    window = np.random.default_rng(seed).normal(0, 0.2, WINDOW).astype(np.float32)
    np.testing.assert_allclose(mouth_network.band_levels(window[None])[0], plain_levels(window), atol=2e-3)


@pytest.mark.parametrize("band", [3, 10, 20, 30, 39])
def test_a_full_scale_tone_is_about_0_db_in_its_band_and_falls_with_its_size(band: int) -> None:
    loud, quiet = (mouth_network.band_levels(tone(CENTRES[band], size))[0] for size in (1.0, 0.01))
    assert int(loud.argmax()) == band and -8 < float(loud[band]) < 1
    assert float(loud[band] - quiet[band]) == pytest.approx(40, abs=0.1)


def test_silence_reads_the_floor_and_nothing_reads_less() -> None:
    for window in (np.zeros((1, WINDOW), np.float32), tone(1000, 1e-9)):
        np.testing.assert_allclose(mouth_network.band_levels(window), np.full((1, BANDS), -120.0), atol=1e-4)
    assert mouth_network.band_levels(np.zeros((0, WINDOW), np.float32)).shape == (0, BANDS)


def test_the_power_of_a_full_scale_square_wave_is_1_and_of_a_sine_a_half() -> None:
    square = np.where(np.arange(WINDOW) % 40 < 20, 1, -1).astype(np.float32)[None]
    assert mouth_network.frame_powers(square)[0] == pytest.approx(1.0)
    assert mouth_network.frame_powers(tone(400))[0] == pytest.approx(0.5, abs=1e-3)


POWERS = st.lists(st.floats(0, 1, width=32), max_size=60)


@given(POWERS, st.lists(st.integers(0, 60), max_size=4))
def test_the_remembered_level_is_the_same_however_the_frames_come(powers: list[float], cuts: list[int]) -> None:
    whole, parts = Normaliser(), Normaliser()
    given_at_once = whole.levels(np.array(powers, np.float32))
    pieces = np.split(np.array(powers, np.float32), sorted(min(cut, len(powers)) for cut in cuts))
    np.testing.assert_array_equal(np.concatenate([parts.levels(piece) for piece in pieces]), given_at_once)
    smoothed, level = 0.0, FLOOR_DB
    for power, reported in zip(powers, given_at_once, strict=True):
        smoothed = 0.7 * smoothed + 0.3 * power
        level = max(10 * math.log10(smoothed) if smoothed > 1e-12 else -120, level - 0.03, FLOOR_DB)
        assert reported == pytest.approx(level, abs=1e-3)


def test_the_level_rises_within_frames_falls_3_db_a_second_and_stops_at_the_floor() -> None:
    normaliser = Normaliser()
    assert normaliser.levels(np.full(20, 0.01, np.float32))[-1] == pytest.approx(-20, abs=0.1)
    later = normaliser.levels(np.zeros(100, np.float32))
    assert later[-1] == pytest.approx(-23, abs=0.2)
    assert normaliser.levels(np.zeros(2000, np.float32))[-1] == FLOOR_DB


def test_a_click_of_one_frame_moves_the_level_by_a_third_of_its_power() -> None:
    quiet = Normaliser()
    quiet.levels(np.full(50, 1e-5, np.float32))
    assert quiet.levels(np.array([1.0], np.float32))[0] == pytest.approx(10 * math.log10(0.3), abs=0.01)


def test_what_lies_70_db_below_the_level_is_cut_off_and_the_middle_is_0() -> None:
    bands = np.array([[-20.0, -55.0, -90.0, -120.0] + [-20.0] * 36], np.float32)
    made = mouth_network.network_input(bands, np.array([-20.0], np.float32))[0]
    assert made[:4].tolist() == [1.75, 0.0, -1.75, -1.75]


@given(st.integers(0, 3000))
@settings(max_examples=30)
def test_a_recording_has_a_frame_for_each_whole_hop_and_each_reads_the_25_ms_before_its_end(samples: int) -> None:
    sound = np.random.default_rng(1).integers(-9000, 9000, samples).astype(np.int16)
    made, powers = mouth_network.log_mels(sound)
    assert made.shape == (samples // HOP, BANDS) and powers.shape == (samples // HOP,)
    before = np.concatenate([np.zeros(WINDOW - HOP), sound]) / 32768
    for frame in range(samples // HOP):
        window = before[frame * HOP : frame * HOP + WINDOW]
        assert powers[frame] == pytest.approx(float(np.mean(window**2)), rel=1e-4)


def test_loudness_does_not_matter_above_the_floor() -> None:
    rng = np.random.default_rng(2)
    sound = rng.normal(0, 3000, RATE // 2)
    loud, quiet = (mouth_network.log_mels((sound * gain).astype(np.int16))[0] for gain in (2.0, 0.5))
    np.testing.assert_allclose(loud[20:], quiet[20:], atol=0.02)
