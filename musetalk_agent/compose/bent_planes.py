"""Resamples the planes of a picture by a coarse field that says where its pixels come from.

The field is so smooth that four pixels beside each other go nearly the same way: over 1.5 pixels it changes by hundredths of one.
So a picture that is shown many times is kept with each pixel beside the three that follow it, and sampled four pixels at a time:
OpenCV samples a pixel of four channels in little more time than one of one channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Box, Pixels

Field = NDArray[np.float32]

_QUAD = 4
_PAD = 32
"""Pixels that go on beside what is kept, mirrored: a field may point beyond the picture's border."""
_CUBIC = 4
"""Pixels on each side from which on a cubic enlargement of a part is that of the whole, and one for rounding."""


class FieldGrid:
    """Nodes of a field over a box of a picture, and the maps that its pixels are sampled by.

    Args:
        box: what is resampled, even coordinates, its left side a multiple of 8.
        step: pixels between nodes, even.
    """

    def __init__(self, box: Box, step: int) -> None:
        self.box, self._step = box, step
        # Nodes beyond the box: enlarging stops half a node before the outermost. So many of them, and so many columns, that quads
        # of chroma, eight pixels of the picture, begin with a node.
        self._beside = 8 // math.gcd(step, 8)
        columns = math.ceil(box.width / (step * self._beside)) * self._beside
        rows = -(-box.height // step)
        x = np.float32(box.x0) + self._at(np.arange(-self._beside, columns + self._beside, dtype=np.float32))
        y = np.float32(box.y0) + self._at(np.arange(-1, rows + 1, dtype=np.float32))
        self.nodes: Field = np.stack(np.meshgrid(x, y), 2).astype(np.float32)
        """Float32 `[rows, columns, 2]`: where they are, in pixels of the picture."""

    def _at(self, node: Field) -> Field:
        return (node + np.float32(0.5)) * np.float32(self._step) - np.float32(0.5)

    def around(self, part: Box) -> tuple[slice, slice]:
        """Rows and columns of the nodes that a part of the box is enlarged from."""
        left, top = part.x0 - self.box.x0, part.y0 - self.box.y0
        step, beside = self._step, self._beside
        rows = slice(top // step, -(-(top + part.height) // step) + 2)
        return rows, slice(left // step + beside - 1, -(-(left + part.width) // step) + beside + 1)

    def maps(self, source: Field, part: Box, scale: int = 1) -> tuple[Field, Field]:
        """Where the pixels of a part of the box come from, x and y, in pixels of the picture.

        `source`: float32 `[2, rows, columns]`, the same of the nodes. Returns float32 `[part.height/scale, part.width/scale]` each.
        """
        rows, columns = self.around(part)
        step = self._step // scale
        # how far the part begins after the first node's own pixels
        left = (part.x0 - self.box.x0) // scale - (columns.start - self._beside) * step
        top = (part.y0 - self.box.y0) // scale - (rows.start - 1) * step
        size = (columns.stop - columns.start) * step, (rows.stop - rows.start) * step
        whole = (cv2.resize(each[rows, columns], size) for each in source)
        across, down = (
            np.asarray(one[top : top + part.height // scale, left : left + part.width // scale]) for one in whole
        )
        return across, down

    def quad_maps(self, source: Field, part: Box, scale: int = 1) -> tuple[Field, Field]:
        """The same of the middles of four pixels beside each other: float32 `[part.height/scale, part.width/scale/4]` each.

        The part has the box's left side and height, its width is a multiple of 8.
        """
        rows, columns = source.shape[1:]
        step = self._step // scale
        size = columns * self._step // (scale * _QUAD), rows * step
        left = self._beside * self._step // (scale * _QUAD)
        whole = (cv2.resize(each, size) for each in source)
        width, height = part.width // (scale * _QUAD), part.height // scale
        across, down = (np.asarray(one[step : step + height, left : left + width]) for one in whole)
        return across, down


class KeptPicture:
    """A picture that is shown many times, ready to be sampled four pixels at a time: some 18 bytes a pixel.

    Args:
        planes: its I420 planes, flat, which do not change.
        size: its width and height.
        grid: where it will be bent; of the grid's box up to 7 columns at its right are left over, so that quads are whole.
        alpha: its alpha, as large as the picture, if it has one.
    """

    def __init__(self, planes: Pixels, size: tuple[int, int], grid: FieldGrid, alpha: Pixels | None = None) -> None:
        box = grid.box
        self.box = Box(box.x0, box.y0, box.x1 - box.width % 8, box.y1)
        self._grid = grid
        luma, *chroma = planes_of(planes, size)
        box = self.box
        self._luma = _quads(twice(luma[box.y0 : box.y1, box.x0 : box.x1]), 2)
        self._chroma = [_quads(each[box.y0 // 2 : box.y1 // 2, box.x0 // 2 : box.x1 // 2], 1) for each in chroma]
        self._alpha = None if alpha is None else _quads(twice(alpha[box.y0 : box.y1, box.x0 : box.x1]), 2)

    def bend(self, source: Field, after: list[Pixels], alpha: Pixels | None = None) -> None:
        """Fills its box of the planes `after`, and of `alpha`, with what a field says; see `FieldGrid.maps`."""
        box = self.box
        # in pixels of what is kept, and of a quad's first pixel: 1.5 before its middle
        fine = _placed(source, 2.0, _PAD - 2.5 - 2 * box.x0, 0.5 - 2 * box.y0)
        maps = self._grid.quad_maps(fine, box)
        for kept, plane in ((self._luma, after[0]), (self._alpha, alpha)):
            if kept is not None and plane is not None:
                _sample(kept, maps, _as_quads(plane[box.y0 : box.y1, box.x0 : box.x1]))
        halved = _placed(source, 0.5, _PAD - 1.75 - box.x0 / 2, -0.25 - box.y0 / 2)
        maps = self._grid.quad_maps(halved, box, 2)
        for kept, plane in zip(self._chroma, after[1:], strict=True):
            _sample(kept, maps, _as_quads(plane[box.y0 // 2 : box.y1 // 2, box.x0 // 2 : box.x1 // 2]))


def bend(grid: FieldGrid, source: Field, before: list[Pixels], after: list[Pixels], part: Box, reach: int) -> None:
    """Fills a part (even coordinates) of I420 planes, pixel by pixel; what is seen there comes from at most `reach` pixels away."""
    bend_plane(grid, source, before[0], after[0], part, reach)
    maps = grid.maps(_placed(source, 0.5, -0.25, -0.25), part, 2)
    for one, other in zip(before[1:], after[1:], strict=True):
        _sample(one, maps, other[part.y0 // 2 : part.y1 // 2, part.x0 // 2 : part.x1 // 2])


def bend_plane(grid: FieldGrid, source: Field, before: Pixels, after: Pixels, part: Box, reach: int) -> None:
    """The same of one plane as large as the picture."""
    height, width = before.shape
    beside = reach + _CUBIC
    read = Box(part.x0 - beside, part.y0 - beside, part.x1 + beside, part.y1 + beside).even(width, height)
    fine = _placed(source, 2.0, 0.5 - 2 * read.x0, 0.5 - 2 * read.y0)
    enlarged = twice(before[read.y0 : read.y1, read.x0 : read.x1])
    _sample(enlarged, grid.maps(fine, part), after[part.y0 : part.y1, part.x0 : part.x1])


def planes_of(i420: Pixels, size: tuple[int, int]) -> list[Pixels]:
    """Views of the three planes of flat I420."""
    width, height = size
    flat, luma, quarter = i420.reshape(-1), width * height, width * height // 4
    chroma = flat[luma : luma + 2 * quarter].reshape(2, height // 2, width // 2)
    return [flat[:luma].reshape(height, width), *chroma]


def twice(plane: Pixels) -> Pixels:
    """Sampled linearly that is as sharp as cubic sampling of the plane, in half the time."""
    return np.asarray(cv2.resize(plane, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)


def _placed(source: Field, scale: float, x: float, y: float) -> Field:
    """Of a field in pixels of the picture the same in those of a plane."""
    return source * np.float32(scale) + np.array([[[x]], [[y]]], np.float32)


def _sample(before: Pixels, maps: tuple[Field, Field], after: Pixels) -> None:
    cv2.remap(before, *maps, cv2.INTER_LINEAR, after, cv2.BORDER_REFLECT_101)


def _quads(plane: Pixels, apart: int) -> Pixels:
    """Each pixel of a plane with the three that follow it, `apart` from each other: uint8 `[h, w + 2·_PAD, 4]`."""
    height, width = plane.shape
    width, last = width + 2 * _PAD, (_QUAD - 1) * apart
    padded = cv2.copyMakeBorder(plane, 0, 0, _PAD, _PAD + last, cv2.BORDER_REFLECT_101)
    made = np.empty((height, width, _QUAD), np.uint8)
    cv2.merge([padded[:, at : at + width] for at in range(0, last + 1, apart)], made)
    return made


def _as_quads(part: Pixels) -> Pixels:
    """A view of a part of a plane, whose width is a multiple of 4, as pixels of four channels."""
    height, width = part.shape
    return part.reshape(height, width // _QUAD, _QUAD)


def changed_box(before: list[Pixels], after: list[Pixels]) -> Box | None:
    """Where the planes of two I420 pictures differ, even coordinates; None where they are the same."""
    found = list(_differences(before, after))
    if not found:
        return None
    height, width = before[0].shape
    least, most = (np.array(found)[:, :2].min(0), np.array(found)[:, 2:].max(0))
    return Box(int(least[0]), int(least[1]), int(most[0]), int(most[1])).even(width, height)


def _differences(before: list[Pixels], after: list[Pixels]) -> Iterator[tuple[int, int, int, int]]:
    for one, other in zip(before, after, strict=True):
        scale = before[0].shape[0] // one.shape[0]
        x, y, width, height = cv2.boundingRect(cv2.absdiff(one, other))
        if width:
            yield x * scale, y * scale, (x + width) * scale, (y + height) * scale
