"""Between two clips: the head goes over, what is far from it stays, and no step is larger than the others."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest

from musetalk_agent.compose.crossfade import Crossfade
from musetalk_agent.media_types import VideoFrame

SIDE = 128
MESH = np.stack(np.meshgrid(np.linspace(44, 84, 26), np.linspace(40, 90, 18)), -1).reshape(-1, 2).astype(np.float32)


def frame(aside: int, light: int = 0) -> VideoFrame:
    """A head with two eyes on a grey ground, so many pixels aside."""
    luma = np.full((SIDE, SIDE), 90 + light, np.uint8)
    cv2.ellipse(luma, (64 + aside, 64), (24, 32), 0, 0, 360, (170,), -1)
    for eye in (54, 74):
        cv2.circle(luma, (eye + aside, 56), 4, (30,), -1)
    return VideoFrame(np.concatenate([luma.reshape(-1), np.full(SIDE * SIDE // 2, 128, np.uint8)]), SIDE, SIDE, aside)


def luma(made: VideoFrame) -> np.ndarray:
    return made.i420[: SIDE * SIDE].reshape(SIDE, SIDE).astype(np.int16)


def test_the_head_moves_from_one_place_to_the_other() -> None:
    old, new, fade = frame(0), frame(8), Crossfade()
    middle = luma(fade.between(old, new, 0.5, MESH, MESH + np.float32([8, 0])))
    eyes = np.argwhere(middle[50:62] < 60)[:, 1]
    assert len(eyes) > 40, "one pair of sharp eyes, not two pale ones"
    assert abs(eyes.mean() - 68) < 1.5


@pytest.mark.parametrize("aside", [0, 8])
def test_every_step_is_small_and_the_ends_are_the_clips(aside: int) -> None:
    old, new, fade = frame(0), frame(aside, light=20), Crossfade()
    shares = np.linspace(0, 1, 9)
    steps = [luma(fade.between(old, new, float(share), MESH, MESH + np.float32([aside, 0]))) for share in shares]
    assert np.abs(steps[0] - luma(old)).mean() < 1 and np.abs(steps[-1] - luma(new)).mean() < 1
    apart = np.abs(luma(new) - luma(old)).mean()
    assert max(np.abs(b - a).mean() for a, b in pairwise(steps)) < 0.35 * apart


def test_the_frame_is_the_new_clips() -> None:
    made = Crossfade().between(frame(0), replace(frame(8), spoken=True), 0.25, MESH, MESH + np.float32([8, 0]))
    assert (made.idle_index, made.spoken, made.i420.shape) == (8, True, frame(0).i420.shape)
