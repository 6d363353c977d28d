"""One frame to render: the mouth's target shape on an idle frame, and sampling of the source pixels."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, sqrt

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.enlarged import FINER_X, FINER_Y, EnlargedMouth
from musetalk_agent.engines.warp.field import Lattice
from musetalk_agent.engines.warp.mouth_space import CHIN, IL, IU, SAMPLES, Floats, MouthShape
from musetalk_agent.media_types import Box, Pixels

ROOM = 0.4
"""Share of the skin between a mouth's corner and the face's outline by which the corner may move."""


@dataclass(frozen=True)
class FrameTarget:
    """One frame to make: the idle frame `idle_index` with the mouth in the shape `mouth`.

    Args:
        eyes: pixels to one eye distance in this idle frame.
        gap: how far the lips of `mouth` are apart, in eye distances.
    """

    bundle: Bundle
    art: WarpArtefacts
    idle_index: int
    act: Articulation
    blend_weight: float
    mouth: MouthShape
    eyes: float
    gap: float

    @classmethod
    def of(
        cls, bundle: Bundle, art: WarpArtefacts, idle_index: int, act: Articulation, blend_weight: float
    ) -> FrameTarget:
        """The target is `blend_weight` of the way from the idle frame's own mouth to the driven one.

        In a face that is turned the cheek behind the mouth is narrow. It is not stretched by more than `ROOM` of its width: the
        mouth widens and rounds less.
        """
        rest = art.rests[idle_index]
        made = art.movements[idle_index].driven(act)
        room = ROOM * max(0.0, float(art.sides[idle_index].min()) - rest.half)
        half = min(max(made.half, rest.half - room), rest.half + room)
        made = MouthShape(made.centre, half, made.curves)
        mouth = art.idle_shapes[idle_index].towards(made, blend_weight)
        (a, b, _), (c, d, _) = art.frames[idle_index].tolist()
        eyes = sqrt(abs(a * d - b * c))
        gap = float((mouth.curves[IL] - mouth.curves[IU]).max())
        return cls(bundle, art, idle_index, act, blend_weight, mouth, eyes, gap)

    @property
    def rest(self) -> MouthShape:
        """The idle frame's mouth with the lips together."""
        return self.art.rests[self.idle_index]

    @property
    def reference(self) -> int:
        """The frame whose lips are shown."""
        return int(self.art.references[int(self.art.shown[self.idle_index])])

    @property
    def shape(self) -> MouthShape:
        """The reference's mouth."""
        return self.art.shapes[int(self.art.shown[self.idle_index])]

    @property
    def lent(self) -> EnlargedMouth:
        """The same of its pixels, enlarged."""
        return self.art.mouth(self.bundle, self.reference)

    def places(self, x: Floats, y: Floats, u: float = 0.0, v: float = 0.0) -> tuple[Floats, Floats]:
        """Places in mouth space of pixels of this idle frame, from (u, v) on: float32 `[h, w]`, for float32 `x` `[1, w]` and
        `y` `[h, 1]`."""
        (a, b, c), (d, e, f) = self.frame.tolist()
        whole = a * e - b * d
        x, y = x - np.float32(a * u + b * v + c), y - np.float32(d * u + e * v + f)
        across = x * np.float32(e / whole) - y * np.float32(b / whole)
        return across, y * np.float32(a / whole) - x * np.float32(d / whole)

    @property
    def sides(self) -> tuple[float, float]:
        """How far the face reaches to the left and right of the mouth's middle."""
        left, right = self.art.sides[self.idle_index].tolist()
        return left, right

    @property
    def lent_sides(self) -> tuple[float, float]:
        """The same of the reference."""
        left, right = self.art.sides[self.reference].tolist()
        return left, right

    @property
    def frame(self) -> Floats:
        """Mouth space to pixels of the image."""
        return np.asarray(self.art.frames[self.idle_index], np.float32)

    def bounds(self, top: float, below_chin: float, reach: float, within: Box) -> Box | None:
        """The even box of pixels around `v` from `top` to below the chin and `u` to `reach` of the mouth's middle.

        It is cut to `within`, inwards to even numbers: a patch may not reach beyond the window its pixels come from. None where
        nothing of it is left.
        """
        bottom = float(self.mouth.curves[CHIN][SAMPLES // 2]) + below_chin
        left, right = self.mouth.centre - reach, self.mouth.centre + reach
        (a, b, c), (d, e, f) = self.frame.tolist()
        xs, ys = (a * left, a * right, b * top, b * bottom), (d * left, d * right, e * top, e * bottom)
        x0, y0 = floor(min(xs[:2]) + min(xs[2:]) + c), floor(min(ys[:2]) + min(ys[2:]) + f)
        x1, y1 = ceil(max(xs[:2]) + max(xs[2:]) + c), ceil(max(ys[:2]) + max(ys[2:]) + f)
        x0, y0 = -(-max(x0, within.x0) // 2) * 2, -(-max(y0, within.y0) // 2) * 2
        x1, y1 = min(x1, within.x1) // 2 * 2, min(y1, within.y1) // 2 * 2
        return Box(x0, y0, x1, y1) if x1 - x0 >= 4 and y1 - y0 >= 4 else None


def fetch(source: Pixels, window: Box, mouth: EnlargedMouth, lattice: Lattice, shift: Floats) -> Pixels:
    """A lattice's box of the image with its pixels moved: uint8 `[h, w, 3]`. Pixels that do not move are copied.

    Args:
        source: the image's pixels within `window`, in which the box lies.
        mouth: the same, enlarged, of a part that holds the box and all that is moved into it.
        shift: float32 `[2, rows, cols]`, how far right and down of each of the lattice's nodes its pixels come from.
    """
    box = lattice.box
    left, above = box.x0 - window.x0, box.y0 - window.y0
    pixels = source[above : above + box.height, left : left + box.width].copy()
    part = lattice.moved(shift)
    if part is None:
        return pixels
    x, y = lattice.positions()
    right, down = mouth.offset
    x = shift[0] * np.float32(FINER_X) + (x * np.float32(FINER_X) + np.float32(right))
    y = shift[1] * np.float32(FINER_Y) + (y * np.float32(FINER_Y) + np.float32(down))
    x, y = lattice.enlarge((x, y), part)
    moved = cv2.remap(mouth.pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    place = pixels[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0]
    cv2.cvtColor(moved, cv2.COLOR_BGRA2BGR, place)
    return pixels
