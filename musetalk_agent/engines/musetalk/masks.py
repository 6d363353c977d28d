"""Blend masks: which pixels of the face box show the generated face, and how strongly.

A region is found first: from the mesh (`region_of_mesh`), or from the parsing network's classes by upstream's `jaw` recipe
(`region_of_classes`). The rest is upstream's for both (numerics §3.6): nothing above the middle of the face box, nothing
outside it, edges softened with a Gaussian.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.musetalk.geometry import crop_box, jaw_lines
from musetalk_agent.engines.musetalk.resampling import resize
from musetalk_agent.media_types import Box, Pixels

FaceBox = tuple[int, int, int, int]

_SIDE = 512
_BLUR = 0.1
"""The Gaussian's width as a share of the crop's (upstream's real-time path)."""
_SKIN, _NOSE, _INNER, _UPPER_LIP, _LOWER_LIP = 1, 10, 11, 12, 13
_CHEEK = 90
"""How far the strip that is not narrowed reaches to each side of the middle, of 512 (`left_cheek_width`, `right_cheek_width`)."""
_NOSE_OUTLINE = (195, 48, 129, 64, 98, 97, 2, 326, 327, 294, 358, 278)
"""Mesh points around the lower nose; their hull is left alone."""
_NARROW = 34 / _SIDE
_DROP = 6 / _SIDE
"""What upstream's recipe does to a face's outline, in sides of the crop: cheeks come in, the chin's edge goes down."""
_SUBPIXEL_BITS = 4


def blend_mask(region: Pixels, box: FaceBox) -> Pixels:
    """The mask over the face box, uint8 `[h, w]`, of a region over the lower part of it, uint8 `[y2 - middle, w]`.

    Equal to the part in the face box of the mask that upstream makes in the whole crop, whose edge is too far away to matter.
    """
    x1, y1, x2, y2 = box
    side = crop_box(box)[2] - crop_box(box)[0]
    size = int(_BLUR * side // 2 * 2) + 1
    reach = size // 2
    canvas = np.zeros((y2 - y1 + 2 * reach, x2 - x1 + 2 * reach), np.uint8)
    canvas[reach + middle(box) - y1 : reach + y2 - y1, reach : reach + x2 - x1] = region
    soft = cv2.GaussianBlur(canvas, (size, size), 0)
    return np.ascontiguousarray(soft[reach : reach + y2 - y1, reach : reach + x2 - x1])


def middle(box: FaceBox) -> int:
    """First row of the picture that the mask may show before it is softened: the middle of the face box."""
    return (box[1] + box[3]) // 2


def region_of_mesh(points: NDArray[np.float32], box: FaceBox) -> Pixels:
    """The lower face without the nose from mesh points, float32 `[468, 2]` in pixels of the picture.

    Returns uint8 0 … 255, `[y2 - middle, w]`, edges antialiased so that they move less than a pixel when the points do. Its outline
    is the one that upstream's recipe gives a well parsed face: the jaw's, cheeks narrowed, the chin's edge a little lower.
    """
    x1, _, x2, y2 = box
    top = middle(box)
    side = crop_box(box)[2] - crop_box(box)[0]
    outline = jaw_lines(points[None])[0].astype(np.float64)
    centre = (x1 + x2) / 2
    away = outline[:, 0] - centre
    strip = _CHEEK / _SIDE * side
    narrowed = np.minimum(np.abs(away), np.maximum(strip, np.abs(away) - _NARROW * side))
    outline[:, 0] = centre + np.sign(away) * narrowed
    outline[:, 1] += _DROP * side
    nose = cv2.convexHull(points[_NOSE_OUTLINE, :].astype(np.float32)).reshape(-1, 2)
    region = np.zeros((y2 - top, x2 - x1), np.uint8)
    for polygon, value in ((outline, 255), (nose, 0)):
        shifted = np.rint((polygon - (x1, top)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(region, [shifted], (value,), cv2.LINE_AA, _SUBPIXEL_BITS)
    return region


def region_of_classes(classes: Pixels, box: FaceBox) -> Pixels:
    """Upstream's `jaw` recipe on the classes uint8 `[512, 512]` of the crop around `box`; returns uint8 `[y2 - middle, w]`."""
    x1, _, x2, y2 = box
    left, top, right, _ = crop_box(box)
    part = Box(x1 - left, middle(box) - top, x2 - left, y2 - top)
    return resize(_jaw(classes), right - left, "bicubic", part)


def _jaw(classes: Pixels) -> Pixels:
    """Skin grown upwards into gaps, narrowed where the cheeks are, and the mouth; 0 or 255."""
    skin = np.where(classes == _SKIN, 255, 0).astype(np.uint8)
    grown = cv2.dilate(skin, _house())
    narrowed = cv2.erode(grown, _bar(), iterations=2)
    columns = np.arange(classes.shape[1])
    cheeks = (columns <= _SIDE // 2 - _CHEEK) | (columns >= _SIDE // 2 + _CHEEK)
    shown = np.where(cheeks, narrowed, grown) == 255
    mouth = (classes == _INNER) | (classes == _UPPER_LIP) | (classes == _LOWER_LIP)
    return np.where((shown & (classes != _NOSE)) | mouth, 255, 0).astype(np.uint8)


def _house() -> Pixels:
    """The 33×33 dilation kernel: a gable of rows 10 … 20 over a block of columns 6 … 26 (373 ones)."""
    rows, columns = np.mgrid[:33, :33]
    return cast("Pixels", ((rows >= 10) & (np.abs(columns - 16) <= np.minimum(rows - 10, 10))).astype(np.uint8))


def _bar() -> Pixels:
    """The erosion kernel that upstream asks OpenCV for as an ellipse of 35×3: a row of 35 with one pixel above and below."""
    kernel = np.zeros((3, 35), np.uint8)
    kernel[1], kernel[:, 17] = 1, 1
    return kernel
