from __future__ import annotations

import math

import numpy as np
import pytest

from musetalk_agent.avatars.smoothing import OneEuro

FILTER = OneEuro(min_cutoff_hz=1.5, beta=30.0, speed_cutoff_hz=6.0)


def test_a_constant_stays_what_it_is() -> None:
    track = np.full((50, 3, 2), 7.25, np.float32)
    assert np.allclose(FILTER.both_ways(track, 25), track)


def test_first_step_follows_the_published_formula() -> None:
    """Casiez et al.: alpha = 1 / (1 + rate/(2π·cutoff)), cutoff = min_cutoff + beta·|filtered speed|."""
    values, rate = np.array([[0.0], [0.1]], np.float32), 25.0
    speed = 0.1 * rate / (1 + rate / (2 * math.pi * 6.0))
    cutoff = 1.5 + 30.0 * speed
    assert FILTER.forward(values, rate)[1, 0] == pytest.approx(0.1 / (1 + rate / (2 * math.pi * cutoff)), rel=1e-5)


def test_noise_at_rest_shrinks() -> None:
    noise = np.random.default_rng(0).normal(0, 0.001, (200, 1)).astype(np.float32)
    assert FILTER.both_ways(noise, 25).std() < 0.5 * noise.std()


def test_a_movement_is_neither_early_nor_late() -> None:
    """The middle of a symmetric bump stays where it was, and most of its height is kept; one way alone trails behind."""
    time = np.arange(60)
    bump = np.exp(-(((time - 30) / 3.0) ** 2)).astype(np.float32)[:, None] * 0.08
    smooth = FILTER.both_ways(bump, 25)
    assert np.argmax(smooth) == 30
    assert smooth.max() > 0.9 * bump.max()
    middle = (time * smooth[:, 0]).sum() / smooth.sum()
    late = FILTER.forward(bump, 25)[:, 0]
    assert abs(middle - 30) < 0.05
    assert (time * late).sum() / late.sum() > 30.2


def test_one_frame_passes() -> None:
    assert FILTER.both_ways(np.ones((1, 468, 2), np.float32), 25).shape == (1, 468, 2)
