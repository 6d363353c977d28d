"""How the inside of the mouth turns with the head, and how much light reaches it.

Teeth stand in an arch behind the lips. In a head that turns they move against the lips, since they lie deeper; the half that is
turned away is seen narrower, and its last teeth hide behind the others; the near half is seen wider. In a head that nods they go up
behind the upper lip. What a map of the face's plane does to all alike, foreshortening and lean, is in the idle frames' own maps
already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musetalk_agent.engines.warp.articulation import rising
from musetalk_agent.engines.warp.idle_shapes import explained
from musetalk_agent.engines.warp.mouth_space import Floats, MouthShape, to_mouth

BEHIND = 0.04
"""How far the middle teeth are behind the lips' inner edges (eye distances)."""
ARCH = 2.2
"""How much deeper teeth lie to the sides: this times u². Canines, 17 mm from the middle, lie 7 mm behind the middle ones."""
ARCH_NODS = 1.1
"""The same for a nod: the lips' corners, which hide the teeth's, lie deeper too."""
TONGUE_BEHIND = 0.12
"""How far the tongue is behind the lips (eye distances)."""
TURNS = np.radians(45.0)
"""Heads turned further are drawn as at this angle."""
NODS = np.radians(20.0)
"""The same for nods, to either side of the clip's own middle: what is level differs from face to face."""
LIPS_MIDDLE = (0, 13, 14)
"""Mesh points in the middle of the lips."""
LEVEL, CENTRED, EVEN = 0.02, 0.004, 0.05
"""Turns, shifts and light up to these are not drawn."""
FACES = 0.05, 0.20
"""Tangents of turns and nods up to the first count as none, and from the second on as they are: 3° and 11°. A face that looks into
the camera is drawn as from the front, whatever the angle's error."""


@dataclass(frozen=True)
class InsidePose:
    """One idle frame's.

    Args:
        middle: how far the lips' middle is to the right of the middle between the corners (eye distances).
        turn, nod: tangents of the head's angles, to the image's right and down.
        blue, green, red: how many times as bright as in the first reference it is.
        slope: by what share per eye distance the light grows to the right.
    """

    middle: float
    turn: float
    nod: float
    blue: float = 1.0
    green: float = 1.0
    red: float = 1.0
    slope: float = 0.0

    def on_teeth(self, u: Floats, v: Floats) -> tuple[Floats, Floats]:
        """Which places of the rows of teeth, seen from the front, are seen at `u` and `v` `[h, w]`."""
        across, down = u, v
        if abs(self.middle) > CENTRED or abs(self.turn) > LEVEL:
            across = u + np.float32(BEHIND * self.turn - self.middle)
        if abs(self.turn) > LEVEL:
            root = across * np.float32(-4 * ARCH * self.turn)
            root += np.float32(1)
            hidden = np.minimum(root, np.float32(0))
            np.subtract(root, hidden, out=root)
            np.sqrt(root, out=root)
            root += np.float32(1)
            hidden *= np.float32(-10)
            hidden += np.float32(1)
            across *= np.float32(2)
            across /= root
            across *= hidden  # beyond the last tooth that is seen
        if abs(self.nod) > LEVEL:
            depth = across * across
            depth *= np.float32(ARCH_NODS * self.nod)
            depth += v
            depth += np.float32(BEHIND * self.nod)
            down = depth
        return across, down

    def on_tongue(self, u: Floats) -> Floats:
        """The same for the tongue."""
        shift = TONGUE_BEHIND * self.turn - self.middle
        return u + np.float32(shift) if abs(shift) > CENTRED else u

    def lit(self, colours: Floats, u: Floats) -> Floats:
        """Colours `[3, h, w]` at `u` `[h, w]` in this idle frame's light, in place."""
        levels = self.blue, self.green, self.red
        if max(abs(level - 1) for level in levels) > EVEN:
            colours *= np.array(levels, np.float32)[:, None, None]
        if abs(self.slope) > EVEN:
            share = u * np.float32(self.slope)
            share += np.float32(1)
            colours *= share.clip(np.float32(0.5), np.float32(1.5), out=share)
        return colours


FACING = InsidePose(0.0, 0.0, 0.0)


def poses_of(frames: Floats, landmarks: Floats, idle_shapes: tuple[MouthShape, ...], angles: Floats) -> Floats:
    """The first three values of each idle frame's `InsidePose`, float32 `[n, 3]`.

    Args:
        angles: float32 `[n, 2]`, how far the head is turned and nodded (radians).
    """
    lips = landmarks[:, list(LIPS_MIDDLE)].mean(1)
    middles = [to_mouth(frame, point)[0] - s.centre for frame, point, s in zip(frames, lips, idle_shapes, strict=True)]
    rows = np.array(middles, np.float32)[:, None]
    middle = np.median(rows) + explained(rows, angles)[:, 0]  # a crooked word is no movement of the skull
    turn = np.tan(np.clip(angles[:, 0], -TURNS, TURNS))
    nod = np.tan(np.clip(angles[:, 1] - np.median(angles[:, 1]), -NODS, NODS))
    sure = [rising((np.abs(one) - FACES[0]) / (FACES[1] - FACES[0])) for one in (turn, nod)]
    return np.stack([middle * sure[0], turn * sure[0], nod * sure[1]], 1).astype(np.float32)
