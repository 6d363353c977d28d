"""One patch: the idle frame deformed, the reference's lips laid over it, and the inside of the mouth between them."""

from __future__ import annotations

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.field import Field, Lattice
from musetalk_agent.engines.warp.geometry import NECK, REACH, Floats
from musetalk_agent.engines.warp.mouth import lay_lips
from musetalk_agent.engines.warp.shot import Shot, fetch
from musetalk_agent.media import Box, Patch, Pixels

CELL = 0.035
"""Lattice cells of the whole patch (eye distances)."""
BORDER = 0.08
"""Width of the rim in which the deformation goes to zero (eye distances)."""


def render(bundle: Bundle, art: Artefacts, pose: int, act: Articulation, presence: float) -> Patch | None:
    """The patch of idle frame `pose` for articulation `act`; None where the mouth is outside the picture."""
    shot = Shot.of(bundle, art, pose, act, presence)
    box = shot.bounds(art.top - 0.02, NECK + 0.02, REACH, bundle.box(pose))
    if box is None:
        return None
    pixels = _skin(shot, box)
    lay_lips(shot, box, pixels)
    return Patch(box, pixels)


def _skin(shot: Shot, box: Box) -> Pixels:
    """The idle frame itself, its own mouth and chin moved to where the target's are."""
    art, frame, window = shot.art, shot.frame, shot.bundle.box(shot.pose)
    lattice = Lattice.over(box, frame, max(2.0, CELL * shot.eyes))
    field = Field.between(art.poses[shot.pose], shot.target, lattice, art.top, shot.sides)
    du, dv = field.du, field.through(lattice.v)
    rim = _rim(lattice, max(2.0, BORDER * shot.eyes))
    shift = np.stack([(frame[k, 0] * du + frame[k, 1] * dv) * rim for k in (0, 1)], -1).astype(np.float32)
    source = np.asarray(shot.bundle.faces[shot.pose])
    return fetch(source, lattice.enlarge(shift), box.x0 - window.x0, box.y0 - window.y0)


def _rim(lattice: Lattice, width: float) -> Floats:
    """0 at the box's edge, 1 from `width` pixels inwards: `[rows, cols]`."""
    rows, cols = lattice.u.shape
    box = lattice.box
    y = np.arange(rows) * (box.height / rows)
    x = np.arange(cols) * (box.width / cols)
    away_y = np.clip(np.minimum(y, y[::-1]) / width, 0, 1)
    away_x = np.clip(np.minimum(x, x[::-1]) / width, 0, 1)
    return np.asarray(away_y[:, None] * away_x, np.float32)
