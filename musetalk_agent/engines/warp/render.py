"""One patch: the idle frame deformed, the reference's lips laid over it, and the inside of the mouth between them."""

from __future__ import annotations

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.field import Field, Lattice
from musetalk_agent.engines.warp.geometry import NECK, REACH, Floats, unit
from musetalk_agent.engines.warp.mouth import lent_shape, lips_over
from musetalk_agent.engines.warp.shot import Shot, fetch
from musetalk_agent.media_types import Patch

CELL = 0.025
"""Lattice cells (eye distances)."""
BORDER = 0.08
"""Width of the rim in which the deformation goes to zero (eye distances)."""


def render(bundle: Bundle, art: Artefacts, pose: int, act: Articulation, presence: float) -> Patch | None:
    """The patch of idle frame `pose` for articulation `act`; None where the mouth is outside the picture."""
    shot = Shot.of(bundle, art, pose, act, presence)
    box = shot.bounds(art.top - 0.02, NECK + 0.02, REACH, bundle.box(pose))
    if box is None:
        return None
    lattice = Lattice.over(box, shot.frame, max(2, round(CELL * shot.eyes)))
    own, lent = Field.between((art.poses[pose], lent_shape(shot)), shot.target, lattice, art.top, shot.sides)
    pixels = _skin(shot, lattice, own)
    if lips := lips_over(shot, box, lattice, lent):
        lips.lay(pixels)
    # cubic interpolation undershoots, and what follows takes magnitudes
    cv2.threshold(pixels, 0, 0, cv2.THRESH_TOZERO, pixels)
    return Patch(box, np.asarray(cv2.convertScaleAbs(pixels), np.uint8))


def _skin(shot: Shot, lattice: Lattice, field: Field) -> Floats:
    """The idle frame itself, its own mouth and chin moved to where the target's are: float32 `[h, w, 3]`."""
    dv = field.through(lattice.v)
    (a, b, _), (c, d, _) = shot.frame.tolist()
    moved = np.zeros((*dv.shape, 4), np.float32)  # four channels are turned twice as fast as two
    np.add(field.du * np.float32(a), dv * np.float32(b), out=moved[..., 0])
    np.add(field.du * np.float32(c), dv * np.float32(d), out=moved[..., 1])
    shift = lattice.turned(moved)
    shift *= _rim(lattice, max(2.0, BORDER * shot.eyes))[..., None]
    return fetch(np.asarray(shot.bundle.faces[shot.pose]), shot.bundle.box(shot.pose), lattice, shift)


def _rim(lattice: Lattice, width: float) -> Floats:
    """0 at the box's edge, 1 from `width` pixels inwards: `[rows, cols]`."""
    cell, box = lattice.cell, lattice.box
    line = np.arange(-cell, (max(lattice.rows, lattice.cols) - 1) * cell, cell, dtype=np.float32)
    y, x = line[: lattice.rows], line[: lattice.cols]
    steep = np.float32(1 / width)
    rows = unit(np.minimum(y, np.float32(box.height - cell) - y) * steep)
    return rows[:, None] * unit(np.minimum(x, np.float32(box.width - cell) - x) * steep)
