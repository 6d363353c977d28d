"""What is measured of a face's picture, frame by frame: sharpness, colour, flicker, and the gradients in which a seam shows.

Each compares the part of the face that engines draw (around the mouth) with the part that none draws (cheeks, nose, eyes) of the
same frame, so that a camera, a codec or a light that is bad everywhere is no fault of the mouth.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, Points
from musetalk_agent.avatars.face_picture import EYE_LINE, EYES, HEIGHT, WIDTH, FacePicture, cut_face
from musetalk_agent.engines.warp.mouth_space import OUTER_LOWER, OUTER_UPPER
from musetalk_agent.media_types import Pixels

OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152),
    *(148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
"""The face's outline, of the 468 mesh points (MediaPipe's `FACEMESH_FACE_OVAL`)."""
_NOSE_BASE, _NOSE_TIP = 2, 1
_ASIDE = 0.6
"""How far to either side of the nose the skin around the mouth reaches, in eye distances: not every patch is as wide as the jaw."""
_LIPS = (*OUTER_UPPER, *OUTER_LOWER[-2:0:-1])

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Regions:
    """Parts of a face as masks, bool `[176, 160]`.

    Args:
        mouth: the lips and what is between them, and a little skin.
        inside: the skin around the mouth, which every engine draws anew: between nose and chin.
        around: the skin that none draws: cheeks and nose above the nose's base, under the eyes.
        upper: all of the face above the nose's base, eyes and brows too.
    """

    mouth: Mask
    inside: Mask
    around: Mask
    upper: Mask


def regions(points: Points) -> Regions:
    """The parts of a face by its mesh in a cut-out's pixels, float32 `[468, 2]`."""
    face = cv2.erode(_filled(points[list(OVAL)]), np.ones((9, 9), np.uint8)) > 0
    lips = _filled(points[list(_LIPS)])
    rows = np.arange(HEIGHT)[:, None]
    base, tip, eyes = float(points[_NOSE_BASE, 1]), float(points[_NOSE_TIP, 1]), EYE_LINE
    under_eyes = eyes + 0.28 * EYES
    mouth, near = (cv2.dilate(lips, np.ones((side, side), np.uint8)) > 0 for side in (7, 11))
    aside = np.abs(np.arange(WIDTH)[None] - float(points[_NOSE_BASE, 0]))
    inside = face & (rows > base + 2) & (aside < _ASIDE * EYES) & ~near
    around = face & (rows > under_eyes) & (rows < max(tip - 0.05 * EYES, under_eyes + 8))
    return Regions(mouth, inside, around, face & (rows < base))


def _filled(polygon: Points) -> Pixels:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(mask, [np.round(polygon).astype(np.int32)], 1)
    return mask


Levels = NDArray[np.float32]

_SHARP_EYES = 160.0
"""Eye distance, in pixels, at which sharpness is looked at: the frame's own, but not more than this."""
_SHARP_EVERY = 3
"""Every how many frames sharpness is measured: it changes slowly, and large faces cost most here."""
_FINE, _COARSE = 1.0, 3.0
"""Standard deviations, in pixels, between which a picture's detail is `fine` and `coarse`."""
_LOW = 2.0
"""Standard deviation, in pixels, of the low pass before flicker: grain and a codec's noise are none."""
_FEWEST = 200
"""Pixels that a part of a face needs, to be measured."""


@dataclass(frozen=True, slots=True)
class FrameMeasures:
    """What one frame says of a face; NaN where it could not be measured.

    Args:
        sharpness: fine against coarse detail in the mouth, over the same above it: about 1.
        colour: float32 `[3]`, mean L, a, b (levels of OpenCV's 8 bit Lab) of the skin around the mouth less that of the cheeks.
        flicker: mean change since the last frame in levels, motion taken off, of the skin around the mouth.
        around: the same of cheeks and nose.
        mouth_motion: mean size of the change since the last frame in levels, nothing taken off, of lips and what is between them.
        motion: the same of cheeks and nose.
    """

    sharpness: float
    colour: Levels
    flicker: float
    around: float
    mouth_motion: float
    motion: float


class FaceMeasures:
    """Measures one face, whose frames come in order. Keeps one cut-out, and sums of gradients."""

    def __init__(self) -> None:
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._last: tuple[Levels, Pixels] | None = None
        self._count = 0
        self.gradients = np.zeros((HEIGHT, WIDTH, 2), np.float64)
        """Sum over frames of the picture's gradients, in levels a pixel of the cut-out."""
        self.frames = 0
        """Frames in that sum."""

    def push(self, bgr: Pixels, points: Points, *, follows: bool) -> tuple[FrameMeasures, FacePicture]:
        """Measures the face in the next frame, uint8 BGR `[h, w, 3]`, by its mesh. `follows` says that the frame before this one
        showed it too. Returns the cut-out as well."""
        picture = cut_face(bgr, points)
        parts = regions(picture.points)
        lab = cv2.cvtColor(picture.pixels, cv2.COLOR_BGR2LAB).astype(np.float32)
        low = np.asarray(cv2.GaussianBlur(lab[..., 0], (0, 0), _LOW), np.float32)
        grey = np.asarray(lab[..., 0], np.uint8)
        changes = self._changes(low, grey, parts) if follows else (np.nan,) * 4
        self._last = (low, grey)
        self._add_gradients(lab[..., 0])
        sharp = _sharpness(bgr, points, picture, parts) if self._count % _SHARP_EVERY == 0 else np.nan
        self._count += 1
        return FrameMeasures(sharp, _step(lab, parts), *changes), picture

    def _changes(self, low: Levels, grey: Pixels, parts: Regions) -> tuple[float, float, float, float]:
        """How the low-passed frame differs from the last one: moved by the optical flow, inside and around; then as it was, in the
        mouth and around."""
        if self._last is None:
            return np.nan, np.nan, np.nan, np.nan
        before, before_grey = self._last
        flow = self._flow.calc(grey, before_grey, np.zeros((HEIGHT, WIDTH, 2), np.float32))
        flow = cv2.GaussianBlur(flow, (0, 0), _COARSE)
        y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
        moved = cv2.remap(before, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        change, plain = low - moved, np.abs(low - before)
        motions = _mean_size(plain, parts.mouth), _mean_size(plain, parts.around)
        return _mean_size(change, parts.inside), _mean_size(change, parts.around), *motions

    def _add_gradients(self, luminance: Levels) -> None:
        soft = cv2.GaussianBlur(luminance, (0, 0), 0.7)
        for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
            self.gradients[..., axis] += cv2.Sobel(soft, cv2.CV_32F, dx, dy, ksize=3) / 8
        self.frames += 1


def _mean_size(change: Levels, part: Mask) -> float:
    return abs(float(change[part].mean())) if part.sum() >= _FEWEST else float("nan")


def _step(lab: Levels, parts: Regions) -> Levels:
    if parts.inside.sum() < _FEWEST or parts.around.sum() < _FEWEST:
        return np.full(3, np.nan, np.float32)
    return np.asarray(lab[parts.inside].mean(0) - lab[parts.around].mean(0), np.float32)


def _sharpness(bgr: Pixels, points: Points, picture: FacePicture, parts: Regions) -> float:
    eyes = min(_SHARP_EYES, float(np.linalg.norm(points[RIGHT_EYE] - points[LEFT_EYE])))
    zoom = max(1.0, eyes / EYES)
    pixels = picture.pixels if zoom < 1.1 else cut_face(bgr, points, zoom).pixels
    size = (pixels.shape[1], pixels.shape[0])
    masks = [
        cv2.resize(part.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        for part in (parts.mouth, parts.upper)
    ]
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), np.float32)
    soft, softer = (cv2.GaussianBlur(grey, (0, 0), sigma) for sigma in (_FINE, _COARSE))
    fine, coarse = np.abs(grey - soft), np.abs(soft - softer)
    if min(mask.sum() for mask in masks) < _FEWEST:
        return float("nan")
    shares = [float(fine[mask].mean()) / max(float(coarse[mask].mean()), 1e-3) for mask in masks]
    return shares[0] / max(shares[1], 1e-3)
