"""Ways to join a generated face to the idle frame beside the feathered mask: by bands of detail, and by its gradients."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

Floats = NDArray[np.float32]

BANDS = 4
"""Bands of detail, each half as fine as the one before it: seams of up to 16 pixels are spread."""
SOFT = 4
"""The result fades to the idle frame where the mask is below 255/`SOFT`, so that nothing ends at the patch's border."""
SHRUNK = 4
"""The membrane is found on a picture so many times smaller: it is smooth."""
LEAP = 28.0
"""Levels that a difference along the border may be from their median: an edge that has moved is no difference of light."""
SWEEPS = 24
"""Rounds of relaxation after the pyramid's guess."""
BORDER = (2, 110)
"""Values of the mask, exclusive, of the border along which the pictures are to agree."""


def multiband(patch: Pixels, idle: Pixels, mask: Pixels) -> Pixels:
    """Each band of detail of the difference is weighted by the mask, blurred as much as the band is. Returns uint8 BGR
    `[h, w, 3]`, equal to `idle` where the mask is 0."""
    difference = cast("Floats", cv2.subtract(patch, idle, dtype=cv2.CV_32F))
    weight = cv2.cvtColor(mask, cv2.COLOR_GRAY2BGR).astype(np.float32)
    weight *= np.float32(1 / 255)
    full = np.minimum(weight * np.float32(SOFT), np.float32(1))
    bands: list[Floats] = []
    for _ in range(min(BANDS, int(np.log2(max(2, min(mask.shape)))) - 2)):
        smaller = cast("Floats", cv2.pyrDown(difference))
        size = difference.shape[1], difference.shape[0]
        bands.append((difference - cv2.pyrUp(smaller, dstsize=size)) * weight)
        difference, weight = smaller, cast("Floats", cv2.pyrDown(weight))
    joined = cast("Floats", difference * weight)
    for band in reversed(bands):
        joined = cast("Floats", cv2.pyrUp(joined, dstsize=(band.shape[1], band.shape[0])) + band)
    joined *= full
    return cast("Pixels", cv2.add(idle, joined, dtype=cv2.CV_8U))


def poisson(patch: Pixels, idle: Pixels, mask: Pixels) -> Pixels:
    """`patch` plus the membrane that makes it meet `idle` along the mask's border: its gradients stay, its light follows the frame.

    Differences far from the usual one are left out. Returns uint8 BGR `[h, w, 3]`, still to be blended by the mask.
    """
    size = max(4, mask.shape[1] // SHRUNK), max(4, mask.shape[0] // SHRUNK)
    shrunk = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in (patch, idle, mask)]
    border = (shrunk[2] > BORDER[0]) & (shrunk[2] < BORDER[1])
    if not border.any():
        return patch
    difference = cast("Floats", cv2.subtract(shrunk[1], shrunk[0], dtype=cv2.CV_32F))
    usual = np.median(difference[border], 0)
    border &= (np.abs(difference - usual) < LEAP).all(2)
    if not border.any():
        return patch
    membrane = _filled(difference, border.astype(np.float32))
    inside = ~border
    for _ in range(SWEEPS):  # Laplace's equation: each place the mean of its neighbours, the border held
        mean = cv2.filter2D(membrane, -1, _NEIGHBOURS, borderType=cv2.BORDER_REPLICATE)
        np.copyto(membrane, mean, where=inside[..., None])
    whole = cv2.resize(membrane, (mask.shape[1], mask.shape[0]), interpolation=cv2.INTER_LINEAR)
    return cast("Pixels", cv2.add(patch, whole, dtype=cv2.CV_8U))


_NEIGHBOURS = np.array([[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]], np.float32)


def _filled(values: Floats, known: Floats) -> Floats:
    """Values where they are known, elsewhere the mean of the known ones around, over as wide a circle as it takes."""
    sums, weights = [values * known[..., None]], [known]
    while min(weights[-1].shape) > 1:
        sums.append(np.atleast_3d(cv2.pyrDown(sums[-1])).astype(np.float32))
        weights.append(np.atleast_2d(cv2.pyrDown(weights[-1])).astype(np.float32))
    filled = sums[-1] / np.maximum(weights[-1], 1e-6)[..., None]
    for total, weight in zip(reversed(sums[:-1]), reversed(weights[:-1]), strict=True):
        coarse = cv2.resize(filled, (weight.shape[1], weight.shape[0]), interpolation=cv2.INTER_LINEAR)
        here = np.minimum(weight, 1)[..., None]
        filled = np.where(here > 1e-6, total / np.maximum(weight, 1e-6)[..., None], 0) * here + coarse * (1 - here)
    return np.asarray(filled, np.float32)
