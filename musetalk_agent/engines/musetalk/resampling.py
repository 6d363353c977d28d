"""Pillow's resizing of 8-bit pictures, to the bit: upstream's masks go through it, and Pillow is no dependency of the product.

Pillow's way (`ImagingResample`): a filter that widens when shrinking, its weights as whole numbers of 2⁻²², first along the
rows, the result rounded and clipped to 8 bits, then along the columns. (From Pillow 13 a picture whose height shrinks more than
its width is done the other way round; upstream resizes only squares to squares, and so does this.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media import Pixels

_FRACTION_BITS = 32 - 8 - 2
"""A weight has so many bits after the point: 8 are the pixel's, 2 leave room for filters that overshoot."""

Filter = Literal["bilinear", "bicubic"]


def resize(square: Pixels, side: int, kind: Filter) -> Pixels:
    """`Image.fromarray(square).resize((side, side), kind)` of uint8 `[n, n]` or `[n, n, c]`; one of that size as it is.

    Raises ValueError for a picture that is not square.
    """
    if square.shape[0] != square.shape[1]:
        raise ValueError(f"a picture of {square.shape[1]}×{square.shape[0]} is not square")
    if square.shape[0] == side:
        return square
    rows = np.swapaxes(_along_first(np.swapaxes(square, 0, 1), side, kind), 0, 1)
    return _along_first(rows, side, kind)


def _along_first(picture: Pixels, size: int, kind: Filter) -> Pixels:
    """Resizes the first axis to `size`."""
    starts, weights = _weights(picture.shape[0], size, kind)
    column = (-1,) + (1,) * (picture.ndim - 1)
    total = np.full((size, *picture.shape[1:]), 1 << (_FRACTION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = picture[np.minimum(starts + tap, picture.shape[0] - 1)]  # past the end only with weight 0
        total += rows.astype(np.int32) * weights[:, tap].reshape(column)
    return (total >> _FRACTION_BITS).clip(0, 255).astype(np.uint8)


def _weights(source: int, size: int, kind: Filter) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the filter of each of `size` pixels begins among `source`, and its weights `[size, taps]`."""
    function, reach = _FILTERS[kind]
    scale = source / size
    stretch = max(scale, 1.0)
    support = reach * stretch
    starts = np.zeros(size, np.int64)
    weights = np.zeros((size, math.ceil(support) * 2 + 1), np.int32)
    for k in range(size):
        centre = (k + 0.5) * scale
        first = max(0, int(centre - support + 0.5))
        last = min(source, int(centre + support + 0.5))
        values = [function((x - centre + 0.5) * (1.0 / stretch)) for x in range(first, last)]
        total = 0.0
        for value in values:  # summed in order, as the last bit of the sum counts
            total += value
        starts[k] = first
        for tap, value in enumerate(values):
            share = (value / total if total else value) * (1 << _FRACTION_BITS)
            weights[k, tap] = int(share - 0.5 if share < 0 else share + 0.5)
    return starts, weights


def _triangle(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def _cubic(x: float) -> float:
    """Keys' kernel with a = -1/2, the products in Pillow's order."""
    a, x = -0.5, abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


_FILTERS: dict[Filter, tuple[Callable[[float], float], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
"""Each filter's function and how far it reaches."""
