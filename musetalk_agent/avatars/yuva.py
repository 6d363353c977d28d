"""Planar YUV with alpha is laid on white as it is: a frame of 4096×4096 as BGRA takes 67 MB and half a second of CPU.

YUV is a linear map of R'G'B', so that the mixture with white is the same in both. What is opaque is then scaled as any other frame.
"""

from __future__ import annotations

import re
from typing import Any

import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

Samples = NDArray[np.unsignedinteger[Any]]

_FORMATS = re.compile(r"yuva(4(?:20|22|44)p(?:\d+le)?)")
_WHITE_LUMA = 235
"""Of 8 bits in limited range (BT.709-6, table 5)."""
_STRIP_ROWS = 64
"""So many rows are worked on at a time, which stay in the processor's cache. A multiple of four: chroma and picture are halved."""


def is_yuva(frame: VideoFrame) -> bool:
    """Whether `laid_on_white` takes frames of this pixel format."""
    return _FORMATS.fullmatch(frame.format.name) is not None


def laid_on_white(frame: VideoFrame, size: tuple[int, int]) -> VideoFrame:
    """The frame on white, without alpha. The frame itself stays as it is: a decoder may still refer to its planes.

    Args:
        frame: of a pixel format that `is_yuva` knows.
        size: width and height that are wanted of it. What is made has the frame's own, or half of it where that is enough.
    """
    halve = all(
        side % 4 == 0 and 2 * wanted <= side for side, wanted in zip((frame.width, frame.height), size, strict=True)
    )
    found = _FORMATS.fullmatch(frame.format.name)
    assert found is not None
    made = VideoFrame(frame.width >> halve, frame.height >> halve, "yuv" + found[1])
    made.colorspace, made.color_range = frame.colorspace, frame.color_range
    made.color_trc, made.color_primaries = frame.color_trc, frame.color_primaries
    bits = frame.format.components[0].bits
    opaque = (1 << bits) - 1
    white = opaque if frame.color_range == ColorRange.JPEG else _WHITE_LUMA << (bits - 8)
    *planes, alpha = (_samples(plane, bits) for plane in frame.planes)
    for whole, plane in zip(planes, made.planes, strict=True):
        _fill(_samples(plane, bits), whole, alpha, white if whole is planes[0] else (opaque + 1) // 2, opaque)
    return made


def _samples(plane: VideoPlane, bits: int) -> Samples:
    """The plane's values `[h, w]`, to be written to."""
    kind = np.dtype(np.uint8 if bits <= 8 else np.uint16)
    lines = np.frombuffer(memoryview(plane), kind).reshape(plane.height, -1)
    return lines[:, : plane.width]


def _fill(made: Samples, whole: Samples, alpha: Samples, behind: int, opaque: int) -> None:
    """Writes a plane's values on `behind`, strip by strip.

    Args:
        made: where to, of the plane's size or half of it.
        whole: the plane.
        alpha: of the picture's size, which is that of the plane or twice that.
        behind: the plane's value of white.
        opaque: the highest alpha.
    """
    coarse_y, coarse_x = alpha.shape[0] > whole.shape[0], alpha.shape[1] > whole.shape[1]
    halved = made.shape != whole.shape
    for top in range(0, len(whole), _STRIP_ROWS):
        values = whole[top : top + _STRIP_ROWS]
        over = alpha[top << coarse_y : (top + _STRIP_ROWS) << coarse_y]
        if over.min() < opaque:
            values = _mixed(values, _averaged(over, values.shape, coarse_y, coarse_x), behind, opaque)
        if halved:
            values = _resized(values, (values.shape[0] // 2, values.shape[1] // 2))
        made[top >> halved : (top + _STRIP_ROWS) >> halved] = values


def _averaged(alpha: Samples, shape: tuple[int, ...], coarse_y: bool, coarse_x: bool) -> Samples:
    """Means of the alpha over the pixels that share a value of the plane."""
    down, right = (shape[0] << coarse_y) - alpha.shape[0], (shape[1] << coarse_x) - alpha.shape[1]
    if down or right:
        alpha = np.asarray(cv2.copyMakeBorder(alpha, 0, down, 0, right, cv2.BORDER_REPLICATE), alpha.dtype)
    return _resized(alpha, shape) if coarse_y or coarse_x else alpha


def _resized(values: Samples, shape: tuple[int, ...]) -> Samples:
    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_AREA), values.dtype)


def _mixed(values: Samples, alpha: Samples, behind: int, opaque: int) -> Samples:
    """Values on `behind`: (v·a + behind·(opaque - a)) / opaque. Either difference is positive, so that none wraps around."""
    above = cv2.multiply(np.maximum(values, behind) - behind, alpha, scale=1 / opaque)
    below = cv2.multiply(behind - np.minimum(values, behind), alpha, scale=1 / opaque)
    return np.asarray(behind + above - below, values.dtype)
