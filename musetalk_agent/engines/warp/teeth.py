"""Rows of teeth as small pictures in mouth space, drawn once per avatar: the person's own where a frame shows them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.engines.warp.geometry import Floats

PITCH = 0.003
"""Size of a tile's pixel (eye distances): a third of a millimetre."""
SIDE = 0.345
HEIGHT, BELOW = 0.13, 0.02
"""How far a tile reaches from the edge of the middle teeth towards the gum, and past the edge."""
COLUMNS = 2 * round(SIDE / PITCH) + 1
ROWS = round((HEIGHT + BELOW) / PITCH) + 1

# Adult teeth over the 92 mm between the outer eye corners, from the middle out: where each ends, as the camera sees them, and
# how much shorter than the middle ones it is.
UPPER_ENDS, UPPER_SHORT = (0.092, 0.163, 0.238, 0.295, 0.345), (0.0, 0.009, 0.002, 0.010, 0.014)
LOWER_ENDS, LOWER_SHORT = (0.058, 0.121, 0.189, 0.252, 0.310), (0.0, 0.001, -0.003, 0.004, 0.008)
UPPER_ARCH, LOWER_ARCH = 0.75, 0.45
"""How the edges curve towards the gum: by this times u²."""
CROWN = 0.105
"""From a middle tooth's edge to the gum."""
ROUND = 0.013
"""Radius of a tooth's corners."""


@dataclass(frozen=True)
class Row:
    """A row of teeth: float32 `[ROWS, COLUMNS, 4]`, BGR 0 … 255 and opacity 0 … 1.

    Columns lie `PITCH` apart over `u` in ±`SIDE`; rows over `v` from `HEIGHT` above the edge of the middle teeth to `BELOW`
    under it. A lower row is kept upside down.
    """

    tile: Floats

    def at(self, u: Floats, beyond: Floats) -> Floats:
        """Colour and opacity `[h, w, 4]` at `u` and at `beyond` the edge of the middle teeth (negative: on the teeth)."""
        x = (u + np.float32(SIDE)) * np.float32(1 / PITCH)
        y = (beyond + np.float32(HEIGHT)) * np.float32(1 / PITCH)
        return np.asarray(cv2.remap(self.tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), np.float32)


def drawn(colour: Floats, gum: Floats, soft: float, lower: bool) -> Row:
    """Teeth of `colour` under a `gum` (BGR); `soft` is half the blur of the picture's edges in eye distances."""
    ends, short, arch = (LOWER_ENDS, LOWER_SHORT, LOWER_ARCH) if lower else (UPPER_ENDS, UPPER_SHORT, UPPER_ARCH)
    u = np.linspace(-SIDE, SIDE, COLUMNS, dtype=np.float32)
    v = np.arange(ROWS, dtype=np.float32)[:, None] * PITCH - HEIGHT
    away = np.abs(u)
    starts = np.array((0.0, *ends[:-1]))
    index = np.clip(np.searchsorted(np.array(ends), away), 0, len(ends) - 1)
    left, right = starts[index], np.array(ends)[index]
    across = (away - (left + right) / 2) / ((right - left) / 2)  # −1 … 1 over a tooth
    edge = -np.array(short)[index] - arch * away**2
    corner = np.clip((np.abs(across) - 1) * (right - left) / 2 + ROUND, 0, ROUND)
    edge = edge - (ROUND - np.sqrt(np.maximum(ROUND**2 - corner**2, 0))) * 0.9
    beyond = (v - edge).astype(np.float32)
    depth = np.clip(-beyond / CROWN, 0, 1)  # 0 at the edge, 1 at the gum
    light = 1.0 - 0.13 * np.abs(across) ** 2.5 - 0.10 * depth**1.5
    light = light - 0.22 * np.exp(-(((1 - np.abs(across)) * (right - left) / 2 / 0.0035) ** 2)) * (
        0.55 + 0.45 * (1 - depth)
    )
    light = light - 0.10 * np.exp(-((beyond / 0.006) ** 2))  # enamel is thin and darker at its edge
    light = light * (1 - 0.8 * np.clip(away**2 / 0.10, 0, 1)) * (0.86 if lower else 1.0)
    tint = np.stack([1 - 0.10 * depth - 0.06 * (away > 0.163), 1 - 0.03 * depth, np.ones_like(depth)], -1)
    tooth = light[..., None] * tint * colour
    gums = np.clip((-beyond - CROWN + 0.02 * np.abs(across) ** 2) / 0.008, 0, 1)[..., None]
    picture = tooth + (gum * (1 - 0.8 * np.clip(away**2 / 0.085, 0, 1))[:, None] - tooth) * gums
    opacity = np.clip(-beyond / PITCH + 0.5, 0, 1) * np.clip((0.34 - away) / 0.10, 0, 1)
    tile = np.concatenate([picture, opacity[..., None]], -1).astype(np.float32)
    return Row(blurred(tile, soft))


def blurred(tile: Floats, soft: float) -> Floats:
    """The tile as soft as the picture is, its colour weighted with its opacity so that the dark beyond does not bleed in."""
    sigma = max(0.5 * soft / PITCH, 0.5)
    opacity = np.maximum(tile[..., 3:], 1e-3)
    weighted = cv2.GaussianBlur(np.concatenate([tile[..., :3] * opacity, opacity], -1), (0, 0), sigma)
    out = np.concatenate([weighted[..., :3] / weighted[..., 3:], weighted[..., 3:]], -1)
    return np.asarray(out, np.float32)
