"""Planar YUV with alpha on white: every sample to a level, whatever the depth, range and layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from musetalk_agent.avatars.upright import Aperture, Upright
from musetalk_agent.avatars.yuva import is_yuva, laid_on_white

FORMATS = ["yuva420p", "yuva422p", "yuva444p", "yuva420p10le", "yuva444p12le"]
Samples = NDArray[np.unsignedinteger[Any]]


def samples(plane: VideoPlane, bits: int) -> Samples:
    lines = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
    return lines[:, : plane.width]


def depth(frame: VideoFrame) -> int:
    return int(frame.format.components[0].bits)


def made(name: str, width: int, height: int, color_range: ColorRange = ColorRange.MPEG) -> VideoFrame:
    """Noise with an opaque, a transparent and a half transparent part, whose borders lie across strips and samples."""
    frame = VideoFrame(width, height, name)
    frame.color_range = color_range
    numbers = np.random.default_rng(1)
    top = (1 << depth(frame)) - 1
    for plane in frame.planes:
        noise = numbers.integers(0, top + 1, (plane.height, plane.width))
        samples(plane, depth(frame))[...] = noise
    alpha = samples(frame.planes[3], depth(frame))
    alpha[: height // 3] = top
    alpha[:, : width // 5] = 0
    return frame


def exact(frame: VideoFrame) -> list[NDArray[np.float64]]:
    """The planes laid on white: v·a + w·(1 - a), with the mean alpha of the pixels that a sample is of."""
    top = (1 << depth(frame)) - 1
    white = top if frame.color_range == ColorRange.JPEG else 235 * (top + 1) // 256
    alpha = samples(frame.planes[3], depth(frame)).astype(np.float64) / top
    found = []
    for index, plane in enumerate(frame.planes[:3]):
        down, across = round(frame.height / plane.height), round(frame.width / plane.width)
        padding = (0, plane.height * down - frame.height), (0, plane.width * across - frame.width)
        padded = np.pad(alpha, padding, mode="edge")
        mean = padded.reshape(plane.height, down, plane.width, across).mean((1, 3))
        behind = white if index == 0 else (top + 1) // 2
        values = samples(plane, depth(frame)).astype(np.float64)
        found.append(values * mean + behind * (1 - mean))
    return found


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("size", [(96, 200), (75, 133)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_sample_lies_on_white_by_its_alpha(name: str, size: tuple[int, int], color_range: ColorRange) -> None:
    frame = made(name, *size, color_range)
    before = [samples(plane, depth(frame)).copy() for plane in frame.planes]
    white = laid_on_white(frame, size)
    assert white.format.name == name.replace("yuva", "yuv") and (white.width, white.height) == size
    assert white.color_range == color_range
    for plane, expected in zip(white.planes, exact(frame), strict=True):
        assert np.abs(samples(plane, depth(frame)) - expected).max() <= 1.5
    for plane, kept in zip(frame.planes, before, strict=True):
        assert np.array_equal(samples(plane, depth(frame)), kept), "a decoder may refer to the frame's planes"


@pytest.mark.parametrize("name", FORMATS)
def test_half_the_size_is_the_mean_of_four(name: str) -> None:
    frame = made(name, 128, 200)
    white = laid_on_white(frame, (64, 70))
    assert (white.width, white.height) == (64, 100)
    for plane, whole in zip(white.planes, exact(frame), strict=True):
        expected = whole.reshape(plane.height, 2, plane.width, 2).mean((1, 3))
        assert np.abs(samples(plane, depth(frame)) - expected).max() <= 2


@pytest.mark.parametrize("size", [(64, 101), (65, 100)], ids=str)
def test_no_side_becomes_smaller_than_it_is_wanted(size: tuple[int, int]) -> None:
    white = laid_on_white(made("yuva420p", 128, 200), size)
    assert (white.width, white.height) == (128, 200)


def test_an_aperture_is_of_the_whole_frame() -> None:
    """What is cut out is black on the left and transparent, over green, on the right, also where it is shown at half its size."""
    frame = VideoFrame(128, 128, "yuva420p")
    for plane, value in zip(frame.planes, (16, 128, 128, 255), strict=True):
        samples(plane, 8)[...] = value
    for plane, value in zip(frame.planes, (145, 54, 34, 0), strict=True):
        samples(plane, 8)[:, plane.width // 2 :] = value
    pixels = Upright(aperture=Aperture(32, 32, 64, 64)).picture(frame, (32, 32))
    assert pixels.shape == (32, 32, 3)
    assert pixels[:, :15].max() <= 2 and pixels[:, 17:].min() >= 253


def test_other_frames_are_none_of_these() -> None:
    assert [
        name for name in ("yuv420p", "gbrap", "rgba", "yuva420p10be", "ya8") if is_yuva(VideoFrame(8, 8, name))
    ] == []
