"""What is asked of the renderer for one frame, and how pixels are fetched for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import Articulation, driven
from musetalk_agent.engines.warp.geometry import CHIN, IL, IU, SAMPLES, Floats, Shape
from musetalk_agent.media import Box, Pixels

ROOM = 0.4
"""Share of the skin between a mouth's corner and the face's outline by which the corner may move."""


@dataclass(frozen=True)
class Shot:
    """One frame to make: the idle frame `pose` with the mouth in the shape `target`.

    Args:
        eyes: pixels to one eye distance in this pose.
        gap: how far the lips of `target` are apart, in eye distances.
    """

    bundle: Bundle
    art: Artefacts
    pose: int
    act: Articulation
    presence: float
    target: Shape
    eyes: float
    gap: float

    @classmethod
    def of(cls, bundle: Bundle, art: Artefacts, pose: int, act: Articulation, presence: float) -> Shot:
        """The target is `presence` of the way from the idle frame's own mouth to the driven one.

        In a face that is turned the cheek behind the mouth is narrow. It is not stretched by more than `ROOM` of its width: the
        mouth widens and rounds less.
        """
        rest = art.rests[pose]
        made = driven(rest, act)
        room = ROOM * max(0.0, float(art.sides[pose].min()) - rest.half)
        made = replace(made, half=min(max(made.half, rest.half - room), rest.half + room))
        target = art.poses[pose].towards(made, presence)
        eyes = float(np.sqrt(abs(np.linalg.det(art.frames[pose][:, :2]))))
        gap = float((target.curves[IL] - target.curves[IU]).max())
        return cls(bundle, art, pose, act, presence, target, eyes, gap)

    @property
    def rest(self) -> Shape:
        """The pose's mouth with the lips together."""
        return self.art.rests[self.pose]

    @property
    def reference(self) -> int:
        """The frame whose lips are shown."""
        return int(self.art.references[int(self.art.shown[self.pose])])

    @property
    def shape(self) -> Shape:
        """The reference's mouth."""
        return self.art.shapes[int(self.art.shown[self.pose])]

    @property
    def sides(self) -> tuple[float, float]:
        """How far the face reaches to the left and right of the mouth's middle."""
        left, right = self.art.sides[self.pose].tolist()
        return left, right

    @property
    def lent_sides(self) -> tuple[float, float]:
        """The same of the reference."""
        left, right = self.art.sides[self.reference].tolist()
        return left, right

    @property
    def frame(self) -> Floats:
        """Mouth space to pixels of the picture."""
        return np.asarray(self.art.frames[self.pose], np.float32)

    def bounds(self, top: float, below_chin: float, reach: float, within: Box) -> Box | None:
        """The even box of pixels around `v` from `top` to below the chin and `u` to `reach` of the mouth's middle.

        It is cut to `within`, inwards to even numbers: a patch may not reach beyond the window its pixels come from. None where
        nothing of it is left.
        """
        bottom = float(self.target.curves[CHIN][SAMPLES // 2]) + below_chin
        corners = [(self.target.centre + side * reach, v) for side in (-1, 1) for v in (top, bottom)]
        pixels = np.array(corners, np.float32) @ self.frame[:, :2].T + self.frame[:, 2]
        low, high = np.floor(pixels.min(0)), np.ceil(pixels.max(0))
        x0, y0 = (int(-(-max(low[k], (within.x0, within.y0)[k]) // 2) * 2) for k in (0, 1))
        x1, y1 = (int(min(high[k], (within.x1, within.y1)[k]) // 2 * 2) for k in (0, 1))
        return Box(x0, y0, x1, y1) if x1 - x0 >= 4 and y1 - y0 >= 4 else None


def fetch(source: Pixels, shift: Floats, x0: int, y0: int) -> Pixels:
    """`source` sampled at `(x0 + column + shift_x, y0 + row + shift_y)` for float32 shifts `[h, w, 2]`, which are overwritten.

    Bicubic, the only interpolation that a pixel goes through.
    """
    height, width = shift.shape[:2]
    shift[..., 0] += np.arange(x0, x0 + width, dtype=np.float32)
    shift[..., 1] += np.arange(y0, y0 + height, dtype=np.float32)[:, None]
    pixels = cv2.remap(source, shift[..., 0], shift[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(pixels, np.uint8)
