"""Refines a coarse mask of the person to a matte: edges follow the image's, and colours lose what was behind them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

Share = NDArray[np.float32]
"""How much of each pixel is the person, float32 `[h, w]`, 0 … 1."""

_SURE_FROM = 0.2, 0.75
"""What the network gives up to the first is background, and from the second on the person: most of its doubt is about furniture."""
_OWN = 0.5
"""The person is what hangs together with the face at this share: others in the picture go with the background."""
_GUIDE_SIDE = 360
"""Longer side at which the guided filter's coefficients are found; they are smooth."""
_RADIUS = 0.026
"""Of its windows, in longer sides."""
_EPSILON = 4e-4
"""Variance of the colours (0 … 1) below which an area counts as flat (He, Sun, Tang: Guided Image Filtering, 2013)."""
_SURE = 0.03
"""Where the coarse share is this near to 0 or 1 all around, it is right."""
_SURE_RADIUS = 0.02
_LEVELS = 0.12, 0.88
"""What the filter leaves at less or more than this is background or person."""
_COLOUR_SIDE = 256
"""Longer side at which the colours on both sides of an edge are averaged."""
_COLOUR_RADII = 0.06, 0.015
"""Of the windows for that, in longer sides: a wide one, then a narrow one."""


def own_share(seen: Share, at: tuple[int, int]) -> Share:
    """The share of the person whose face is at the pixel `at` (x, y), without others that stand apart from it."""
    low, high = _SURE_FROM
    share = np.asarray(np.clip((seen - np.float32(low)) / np.float32(high - low), 0, 1), np.float32)
    count, labels = cv2.connectedComponents((share > _OWN).astype(np.uint8), connectivity=4)
    x, y = min(max(at[0], 0), seen.shape[1] - 1), min(max(at[1], 0), seen.shape[0] - 1)
    own = labels[y, x]
    if count <= 2 or own == 0:
        return np.asarray(share, np.float32)
    others = ((labels > 0) & (labels != own)).astype(np.uint8)
    reach = cv2.dilate(others, np.ones((9, 9), np.uint8)) > 0
    near = cv2.dilate((labels == own).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    share[reach & ~near] = 0
    return np.asarray(share, np.float32)


def refined(coarse: Share, bgr: Pixels) -> Pixels:
    """The matte, uint8 `[h, w]`, 255 for the person.

    Args:
        coarse: the person's share, of any size.
        bgr: the picture, uint8 `[h, w, 3]`.
    """
    height, width = bgr.shape[:2]
    size = _within(width, height, _GUIDE_SIDE)
    guide = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    share = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_LINEAR), np.float32)
    slope, level = _guided(guide, share, max(2, round(_RADIUS * max(size))))
    kernel = np.ones((2 * max(2, round(_SURE_RADIUS * max(size))) + 1,) * 2, np.uint8)
    least, most = cv2.erode(share, kernel), cv2.dilate(share, kernel)
    across, above, least, most = (cv2.resize(each, (width, height)) for each in (slope, level, least, most))
    found = cv2.transform(cv2.multiply(across, bgr, dtype=cv2.CV_32F), np.full((1, 3), 1 / 255, np.float32)) + above
    low, high = _LEVELS
    matte = (found - np.float32(low)) * np.float32(255 / (high - low))
    matte[most < _SURE] = 0
    matte[least > 1 - _SURE] = 255
    return np.asarray(np.rint(np.clip(matte, 0, 255)), np.uint8)


def person_colours(bgr: Pixels, matte: Pixels) -> Pixels:
    """The person's own colours, uint8 BGR `[h, w, 3]`: at the edges without what shone through (Forte: Approximate Fast Foreground
    Colour Estimation, 2021). Meaningless where the matte is 0.
    """
    height, width = matte.shape
    edge = np.nonzero((matte > 0) & (matte < 255))
    if not len(edge[0]):
        return bgr
    size = _within(width, height, _COLOUR_SIDE)
    seen = np.asarray(cv2.resize(bgr, size, interpolation=cv2.INTER_AREA), np.float32)
    share = cv2.resize(matte, size, interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / np.float32(255)
    person, behind = seen, seen
    for radius in _COLOUR_RADII:
        window = 2 * max(2, round(radius * max(size))) + 1
        near, behind = _averaged(person, share, window), _averaged(behind, 1 - share, window)
        person = np.asarray(np.clip(near + share * (seen - share * near - (1 - share) * behind), 0, 255), np.float32)
    one, other = (cv2.resize(each, (width, height))[edge] for each in (near, behind))
    part = matte[edge].astype(np.float32)[:, None] / np.float32(255)
    own = one + part * (bgr[edge] - part * one - (1 - part) * other)
    made = bgr.copy()
    made[edge] = np.rint(np.clip(own, 0, 255))
    return made


def blurred(bgr: Pixels, matte: Pixels, size: tuple[int, int], sigma: float) -> Pixels:
    """The background at `size` (width, height), smaller than the picture, blurred there by `sigma` pixels, uint8 BGR `[h, w, 3]`.

    The person is left out of it, so that nothing of it shines around its edges.
    """
    small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    share = 1 - cv2.resize(matte, size, interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
    share = np.asarray(cv2.erode(share, np.ones((3, 3), np.uint8)), np.float32)
    made = np.zeros_like(small)
    left = np.ones(share.shape, np.float32)
    for wider in (1, 3, 9, 27):  # behind the middle of the person only far pixels are known
        weight = cv2.GaussianBlur(share, (0, 0), sigma * wider)
        mean = cv2.GaussianBlur(small * share[..., None], (0, 0), sigma * wider) / np.maximum(weight, 1e-6)[..., None]
        taken = left * np.minimum(1, weight / np.float32(0.2))
        made += mean * taken[..., None]
        left -= taken
    made += small * left[..., None]
    return np.asarray(np.rint(np.clip(made, 0, 255)), np.uint8)


def _within(width: int, height: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(8, round(width * scale)), max(8, round(height * scale))


def _averaged(colours: NDArray[np.float32], share: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """Means of colours by their shares, float32 `[h, w, 3]`."""
    weight = cv2.boxFilter(share, -1, (window, window)).reshape(*colours.shape[:2], 1)
    mean = cv2.boxFilter(colours * share, -1, (window, window))
    return np.asarray(mean / np.maximum(weight, 1e-4), np.float32)


def _guided(guide: NDArray[np.float32], share: Share, radius: int) -> tuple[NDArray[np.float32], Share]:
    """The guided filter's coefficients with a picture of three colours: `share ≈ slope · colour + level` in every window."""

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.boxFilter(values, -1, (2 * radius + 1,) * 2), np.float32)

    colour, known = mean(guide), mean(share)
    across = mean(guide * share[..., None]) - colour * known[..., None]
    pairs = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    flat = [np.float32(_EPSILON) if i == j else np.float32(0) for i, j in pairs]
    var = [
        mean(guide[..., i] * guide[..., j]) - colour[..., i] * colour[..., j] + eps
        for (i, j), eps in zip(pairs, flat, strict=True)
    ]
    slope = _solved(var, across)
    level = known - (slope * colour).sum(-1)
    return mean(slope), mean(np.asarray(level, np.float32))


def _solved(var: list[NDArray[np.float32]], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Solves the symmetric 3×3 system of every pixel by its cofactors. `var` are the upper triangle's rows one after the other."""
    a, b, c, d, e, f = var
    co = d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e, a * d - b * b
    det = a * co[0] + b * co[1] + c * co[2]
    x, y, z = right[..., 0], right[..., 1], right[..., 2]
    rows = co[0] * x + co[1] * y + co[2] * z, co[1] * x + co[3] * y + co[4] * z, co[2] * x + co[4] * y + co[5] * z
    return np.asarray(np.stack(rows, -1) / det[..., None], np.float32)
