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

from musetalk_agent.media_types import Box, Pixels

_FRACTION_BITS = 32 - 8 - 2
"""A weight has so many bits after the point: 8 are the pixel's, 2 leave room for filters that overshoot."""

Filter = Literal["bilinear", "bicubic"]
_Doubles = NDArray[np.float64]


def resize(square: Pixels, side: int, kind: Filter, part: Box | None = None) -> Pixels:
    """`Image.fromarray(square).resize((side, side), kind)` of uint8 `[n, n]` or `[n, n, c]`; one of that size as it is.

    With `part`, only that part of the result is made. Raises ValueError for a picture that is not square.
    """
    source = square.shape[0]
    if source != square.shape[1]:
        raise ValueError(f"a picture of {square.shape[1]}×{square.shape[0]} is not square")
    part = part or Box(0, 0, side, side)
    if source == side:
        return square[part.y0 : part.y1, part.x0 : part.x1]
    starts, weights = _weights(source, side, kind)
    rows, columns = slice(part.y0, part.y1), slice(part.x0, part.x1)
    top, bottom = int(starts[rows].min()), int(starts[rows].max()) + weights.shape[1]
    across = np.ascontiguousarray(np.swapaxes(square[top:bottom], 0, 1))
    narrow = np.swapaxes(_along_first(across, starts[columns], weights[columns]), 0, 1)
    return _along_first(np.ascontiguousarray(narrow), starts[rows] - top, weights[rows])


def _along_first(picture: Pixels, starts: NDArray[np.int64], weights: NDArray[np.int32]) -> Pixels:
    """Makes each row from those that follow its start, weighted."""
    column = (-1,) + (1,) * (picture.ndim - 1)
    total = np.full((len(starts), *picture.shape[1:]), 1 << (_FRACTION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = picture[np.minimum(starts + tap, picture.shape[0] - 1)]  # past the end only with weight 0
        total += np.multiply(rows, weights[:, tap].reshape(column), dtype=np.int32)
    total >>= _FRACTION_BITS
    return np.clip(total, 0, 255, out=total).astype(np.uint8)


def _weights(source: int, size: int, kind: Filter) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the filter of each of `size` pixels begins among `source`, and its weights `[size, taps]`, those at the end 0."""
    function, reach = _FILTERS[kind]
    scale = source / size
    stretch = max(scale, 1.0)
    support = reach * stretch
    centres = (np.arange(size) + 0.5) * scale
    starts = np.maximum(0, np.trunc(centres - support + 0.5)).astype(np.int64)
    ends = np.minimum(source, np.trunc(centres + support + 0.5)).astype(np.int64)
    pixels = starts[:, None] + np.arange(math.ceil(support) * 2 + 1)
    shares = function((pixels - centres[:, None] + 0.5) * (1.0 / stretch))
    shares[pixels >= ends[:, None]] = 0.0
    total = np.zeros(size)
    for column in shares.T:  # one after the other: the last bit of the sum counts
        total += column
    scaled = shares / np.where(total == 0, 1.0, total)[:, None] * (1 << _FRACTION_BITS)
    return starts, np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)


def _triangle(x: _Doubles) -> _Doubles:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: _Doubles) -> _Doubles:
    """Keys' kernel with a = -1/2, the products in Pillow's order."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_FILTERS: dict[Filter, tuple[Callable[[_Doubles], _Doubles], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}
"""Each filter's function and how far it reaches."""
