"""Composes a frame with another background: lays the person onto it, as the last step.

Until then a frame is in two layers, so that what two clips share of a passage is mixed where it belongs: persons move towards each
other, and the background stays where it is.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from musetalk_agent.avatars.matte_files import alpha_planes
from musetalk_agent.media_types import Pixels, VideoFrame

_CHROMA_ZERO = 128
_AROUND = 31
"""Pixels over which colours are carried on."""
_FAINT = 8 / 255
"""Up to this share a colour times it is too few levels to be known from it."""
_AS_LUMA = np.rint(16 + np.arange(256) * (219 / 255)).astype(np.uint8)
"""Alpha as luma in limited range (BT.709-6, table 5)."""
_BLACK_LUMA = np.rint(np.arange(256) * (16 / 255)).astype(np.uint8)
_BLACK_CHROMA = np.rint(np.arange(256) * (_CHROMA_ZERO / 255)).astype(np.uint8)
"""Black's values times what a pixel has of the background."""


def laid(frame: VideoFrame) -> VideoFrame:
    """The frame as it is published: on its background, or with its alpha below it where it has none. One without layers stays."""
    if frame.alpha is None:
        return frame
    if frame.behind is None:
        return with_alpha_below(frame)
    return replace(frame, i420=_over(frame, frame.alpha, frame.behind), alpha=None, behind=None)


def on_black(frame: VideoFrame, *into: Pixels) -> None:
    """Writes the planes of a frame with alpha on black (its colours times its alpha), uint8, each into an array of its size."""
    assert frame.alpha is not None
    luma, quarter, half = (
        frame.width * frame.height,
        frame.width * frame.height // 4,
        (frame.height // 2, frame.width // 2),
    )
    shown, flat = np.invert(frame.alpha), frame.i420.reshape(-1)
    cv2.add(flat[:luma].reshape(shown.shape), cv2.LUT(shown, _BLACK_LUMA), dst=into[0].reshape(shown.shape))
    shown = cv2.LUT(cv2.resize(shown, half[::-1], interpolation=cv2.INTER_AREA), _BLACK_CHROMA)
    for index, plane in enumerate(into[1:]):
        begin = luma + index * quarter
        cv2.add(flat[begin : begin + quarter].reshape(half), shown, dst=plane.reshape(half))


def straight(frame: VideoFrame) -> tuple[Pixels, Pixels]:
    """The planes of a frame as they are without its alpha, uint8 `[h·w·3/2]`, and its alpha, `[h, w]`.

    Where nothing is seen the colours of what is near go on, so that a player that scales the picture mixes no black into its edges.
    """
    if frame.alpha is None:
        return frame.i420, np.full((frame.height, frame.width), 255, np.uint8)
    shares, made = alpha_planes(frame.alpha), np.empty_like(frame.i420)
    luma, quarter = frame.width * frame.height, frame.width * frame.height // 4
    for begin, end, width in (
        (0, luma, frame.width),
        (luma, luma + quarter, frame.width // 2),
        (luma + quarter, luma + 2 * quarter, frame.width // 2),
    ):
        share = shares[begin:end].reshape(-1, width).astype(np.float32) / np.float32(255)
        plane = frame.i420[begin:end].reshape(-1, width).astype(np.float32)
        window = (_AROUND * width // frame.width | 1,) * 2
        around = cv2.blur(share, window)
        near = cv2.blur(plane, window) / np.maximum(around, 1e-3)
        near = np.where(around < 1e-3, np.float32(_CHROMA_ZERO), near)
        own = np.where(share > _FAINT, plane / np.maximum(share, _FAINT), near)
        made[begin:end] = np.rint(np.clip(own, 0, 255)).astype(np.uint8).reshape(-1)
    return made, frame.alpha


def _over(frame: VideoFrame, alpha: Pixels, behind: Pixels) -> Pixels:
    shape = frame.height * 3 // 2, frame.width  # OpenCV takes a plain vector for a column, which is slower
    shown = cv2.multiply(behind.reshape(shape), alpha_planes(255 - alpha).reshape(shape), scale=1 / 255)
    return np.asarray(cv2.add(frame.i420.reshape(shape), shown), np.uint8).reshape(-1)


def with_alpha_below(frame: VideoFrame) -> VideoFrame:
    """A frame of twice the height: its colours on black, and below them its alpha as luma, 16 for nothing and 235 for all."""
    assert frame.alpha is not None
    luma, quarter = frame.width * frame.height, frame.width * frame.height // 4
    made = np.empty(3 * luma, np.uint8)
    chroma = made[2 * luma :].reshape(2, 2, quarter)
    chroma[:, 1] = _CHROMA_ZERO
    on_black(frame, made[:luma], chroma[0, 0], chroma[1, 0])
    cv2.LUT(frame.alpha, _AS_LUMA, dst=made[luma : 2 * luma].reshape(frame.alpha.shape))
    return replace(frame, i420=made, height=2 * frame.height, alpha=None)


def without_alpha_below(frame: VideoFrame) -> VideoFrame:
    """The upper half of a frame of `with_alpha_below`: its colours on black, without the alpha."""
    width, height = frame.width, frame.height // 2
    luma, quarter = width * height, width * height // 4
    flat = frame.i420.reshape(-1)
    begins = (0, luma), (2 * luma, quarter), (2 * luma + 2 * quarter, quarter)
    planes = np.concatenate([flat[begin : begin + count] for begin, count in begins])
    return replace(frame, i420=planes, height=height)
