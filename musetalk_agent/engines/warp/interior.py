"""The inside of the mouth: upper teeth fixed to the skull, lower teeth and tongue that move with the jaw, and shade.

Rows of teeth are small images in mouth space, drawn once per avatar, in the person's own colour where a frame shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.inside_pose import FACING, InsidePose
from musetalk_agent.engines.warp.lips import sample
from musetalk_agent.engines.warp.mouth_space import IL, IU, OL, OU, Floats, MouthShape, S, smooth, unit
from musetalk_agent.media_types import Pixels

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

    def planes(self, u: Floats, beyond: Floats) -> Floats:
        """The same as planes `[4, h, w]`."""
        return np.ascontiguousarray(self.at(u, beyond).transpose(2, 0, 1))


def drawn(colour: Floats, gum: Floats, soft: float, lower: bool) -> Row:
    """Teeth of `colour` under a `gum` (BGR); `soft` is half the blur of the image's edges in eye distances."""
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
    image = tooth + (gum * (1 - 0.8 * np.clip(away**2 / 0.085, 0, 1))[:, None] - tooth) * gums
    opacity = np.clip(-beyond / PITCH + 0.5, 0, 1) * np.clip((0.34 - away) / 0.10, 0, 1)
    tile = np.concatenate([image, opacity[..., None]], -1).astype(np.float32)
    return Row(blurred(tile, soft))


def blurred(tile: Floats, soft: float) -> Floats:
    """The tile as soft as the image is, its colour weighted with its opacity so that the dark beyond does not bleed in."""
    sigma = max(0.5 * soft / PITCH, 0.5)
    opacity = np.maximum(tile[..., 3:], 1e-3)
    weighted = cv2.GaussianBlur(np.concatenate([tile[..., :3] * opacity, opacity], -1), (0, 0), sigma)
    out = np.concatenate([weighted[..., :3] / weighted[..., 3:], weighted[..., 3:]], -1)
    return np.asarray(out, np.float32)


UPPER_EDGE = 0.023
"""How far the upper incisors reach below the rest line of the lips."""
LOWER_EDGE = 0.016
"""How far the lower incisors' edge is below that line while the jaw is shut."""
LOWER_SHARE = 0.46
"""How far it goes down with an opening: the lower lip goes further, so wide vowels show these teeth."""
LOWER_HIDDEN = 0.045
"""Up to this opening the lower lip, 0.78 of the way down, is above the lower teeth's edge."""
SOFT = 0.008
"""Half the least blur of edges (eye distances)."""
LESS_RED = 0.10
"""By how much teeth are less red (log of red over green) than skin in the same light, at least: what is redder is a lip."""
LIGHT_ENOUGH = 0.85
"""Teeth that were seen in the lips' shadow are made as light as this share of those of another mouth in that light."""
OPEN_ENOUGH = 0.05
"""Lips this far apart may show teeth."""
GREY = np.array([0.114, 0.587, 0.299], np.float32)


@dataclass(frozen=True)
class Palette:
    """What is inside: the rows of teeth, and colours (BGR, 0 … 255) of tongue, the dark, and the shadow line of closed lips."""

    upper: Row
    lower: Row
    tongue: Floats
    dark: Floats
    line: Floats

    @classmethod
    def of(cls, image: Pixels, frame: Floats, shape: MouthShape, teeth: Floats | None) -> Palette:
        """Taken from the reference's lips and skin; `teeth` is their colour where one has been seen (see `teeth_seen`)."""
        lip = _lip_colour(image, frame, shape)
        skin = _skin_colour(image, frame, shape)
        off_white = _teeth_for(skin)
        if teeth is None or _redness(teeth) > _redness(skin) - LESS_RED:
            teeth = off_white
        teeth = teeth * max(1.0, LIGHT_ENOUGH * float(off_white @ GREY) / float(teeth @ GREY))
        light = float(skin @ GREY)
        tongue = lip * 0.66 + np.array([6, 2, 8], np.float32) * (light / 160)
        gum = lip * 0.75 + np.array([4, 0, 10], np.float32) * (light / 160)
        soft = softness(float(np.sqrt(abs(np.linalg.det(frame[:, :2])))))
        return cls(
            drawn(teeth, gum, soft, lower=False),
            drawn(teeth * 0.9, gum, soft, lower=True),
            tongue.astype(np.float32),
            (lip * [0.24, 0.20, 0.30]).astype(np.float32),
            (lip * 0.42).astype(np.float32),
        )

    @cached_property
    def mixed(self) -> Floats:
        """Colours of the dark, the tongue and the line, one a column: float32 `[3, 3]`."""
        return np.stack((self.dark, self.tongue, self.line), 1)

    def stored(self) -> tuple[Floats, Floats]:
        """Two arrays for `loaded`: rows of teeth, and colours."""
        return np.stack([self.upper.tile, self.lower.tile]), np.stack([self.tongue, self.dark, self.line])

    @classmethod
    def loaded(cls, teeth: Floats, colours: Floats) -> Palette:
        """From what `stored` gave. Raises ValueError where it is not whole."""
        upper, lower = teeth
        tongue, dark, line = colours
        return cls(Row(upper), Row(lower), tongue, dark, line)


def softness(eyes: float) -> float:
    """Half the blur of edges (eye distances) where one is `eyes` pixels: skin has no sharper ones, and cameras none at all."""
    return max(0.8 / eyes, SOFT)


def _strip(shape: MouthShape, upper: int, lower: int, shares: tuple[float, ...], reach: float) -> tuple[Floats, Floats]:
    """Positions in a strip between two levels, within `|s| < reach`."""
    s = np.linspace(-reach, reach, 41, dtype=np.float32)
    a, b = (np.interp(s, S, shape.curves[k]) for k in (upper, lower))
    v = np.stack([a + (b - a) * share for share in shares]).astype(np.float32)
    return np.broadcast_to(shape.u_of_s(s), v.shape).astype(np.float32), v


def _lip_colour(image: Pixels, frame: Floats, shape: MouthShape) -> Floats:
    strips = [_strip(shape, OU, IU, (0.4, 0.6, 0.8), 0.6), _strip(shape, IL, OL, (0.2, 0.4, 0.6), 0.6)]
    pixels = np.concatenate([sample(image, frame, u, v).reshape(-1, 3) for u, v in strips])
    return np.asarray(np.median(pixels, 0), np.float32)


def _skin_colour(image: Pixels, frame: Floats, shape: MouthShape) -> Floats:
    u, v = np.meshgrid(np.linspace(-0.4, 0.4, 17), np.linspace(0.3, 0.5, 5))
    pixels = sample(image, frame, (u + shape.centre).astype(np.float32), v.astype(np.float32)).reshape(-1, 3)
    return np.asarray(np.median(pixels, 0), np.float32)


def teeth_seen(image: Pixels, frame: Floats, shape: MouthShape) -> Floats | None:
    """The colour of the teeth that the open mouth of an image shows (BGR), or None where it shows none for sure."""
    if float((shape.curves[IL] - shape.curves[IU]).max()) < OPEN_ENOUGH:
        return None
    u, v = _strip(shape, IU, IL, (0.3, 0.4, 0.5, 0.6, 0.7), 0.5)
    pixels = sample(image, frame, u, v).reshape(-1, 3).astype(np.float32)
    bright = pixels[pixels @ GREY >= np.percentile(pixels @ GREY, 65)]
    colour = np.median(bright, 0).astype(np.float32)
    lip = _lip_colour(image, frame, shape)
    if _redness(colour) > _redness(lip) - 0.08 or float(colour @ GREY) < 0.75 * float(lip @ GREY):
        return None
    return np.asarray(colour, np.float32)


def _redness(colour: Floats) -> float:
    return float(np.log((colour[2] + 6) / (colour[1] + 6)))


def _teeth_for(skin: Floats) -> Floats:
    """Off-white as bright as the light on this skin makes it, tinted a little by it."""
    light = float(np.clip(0.95 * float(skin @ GREY) + 30, 60, 225))
    tint = skin / max(1.0, float(skin @ GREY))
    neutral = np.array([0.9, 1.0, 1.04], np.float32)
    return np.asarray(light * (0.75 * neutral + 0.25 * tint), np.float32)


NOTHING_HIDDEN, NO_LINE = np.float32(1), np.float32(0)


@dataclass(frozen=True)
class Opening:
    """The pixels an opening may cover: all float32 `[h, w]`, in mouth space.

    Args:
        u, v: position, `u` from the mouth's middle, `v` from the lips' rest line in the middle.
        below, above: distance below the upper lip's edge, and above the lower lip's.
        rounding: 0 … 1; rounded lips stand before the teeth and shade them.
        aperture: the lips' opening in the middle.
        pose: how the inside is turned and lit.
    """

    u: Floats
    v: Floats
    below: Floats
    above: Floats
    rounding: float
    aperture: float
    pose: InsidePose = FACING


def paint(
    opening: Opening, palette: Palette, cover: Floats | np.float32 = NOTHING_HIDDEN, line: Floats | np.float32 = NO_LINE
) -> Floats:
    """Colours of the inside, float32 `[3, h, w]` (BGR), of which `cover` is seen (0 … 1), and `line` of the line's colour more.

    All of it is a sum of colours, each with its share of every pixel: the shares are worked out first, one plane each.
    """
    size = min(opening.aperture / 0.06, 1.0)
    below, above = opening.below, opening.above
    rest = linear(np.minimum(below, above), 0.0, 0.014, 0.75, 1.0)
    rest *= cover
    shares = np.empty((3, *rest.shape), np.float32)  # of the dark, the tongue and the line
    np.multiply(rest, linear(below + above, 0.0, 0.035, 0.8, 0.0), out=shares[2])  # at its corners it is all lip
    rest -= shares[2]
    shares[2] += line
    across, down = opening.pose.on_teeth(opening.u, opening.v)
    teeth = palette.upper.planes(across, down - np.float32(UPPER_EDGE))
    colours = [_laid(teeth, rest, 1 - 0.75 * opening.rounding)]
    shade = 0.72 + 0.28 * size
    colours[0] *= linear(below, 0.0, 0.022, 0.66 * shade, 0.98 * shade)  # the upper lip's shadow
    if opening.aperture > LOWER_HIDDEN:
        edge = LOWER_EDGE + LOWER_SHARE * opening.aperture
        teeth = palette.lower.planes(across, np.float32(edge) - down)
        colours.append(_laid(teeth, rest, 0.9 * size))
        colours[1] *= linear(opening.v, 0.02, 0.09, 0.62, 1.0)  # the deeper down, the more light falls on them
    np.multiply(rest, _tongue(opening, size), out=shares[1])
    np.subtract(rest, shares[1], out=shares[0])
    made: Floats = (palette.mixed @ shares.reshape(3, -1)).reshape(shares.shape)
    for teeth in colours:
        made += teeth
    return opening.pose.lit(made, opening.u)


def _tongue(opening: Opening, size: float) -> Floats:
    """How much of the tongue lies on each pixel, 0 … 0.85: smooth over ±0.03 at its edge, and none 0.25 beside the middle."""
    parts = np.empty((2, *opening.u.shape), np.float32)
    steep = np.float32(0.5 / 0.03)
    across = opening.pose.on_tongue(opening.u)
    np.multiply(across, across, out=parts[0])
    np.subtract(opening.v, parts[0], out=parts[0])
    parts[0] *= steep
    parts[0] += np.float32(0.5 - (0.012 + 0.3 * opening.aperture) * float(steep))
    np.abs(across, out=parts[1])
    parts[1] *= np.float32(-1 / (0.25 - 0.07))
    parts[1] += np.float32(0.25 / (0.25 - 0.07))
    smooth(unit(parts))
    parts[0] *= parts[1]
    parts[0] *= np.float32(0.85 * size)
    return np.asarray(parts[0])


def _laid(teeth: Floats, rest: Floats, opacity: float) -> Floats:
    """A row of teeth `[4, h, w]` laid over what is left of each pixel: its colours' part `[3, h, w]`; `rest` loses it in place."""
    share = teeth[3]
    share *= np.float32(opacity)
    share *= rest
    rest -= share
    colours = teeth[:3]
    colours *= share
    return colours


def linear(values: Floats, start: float, length: float, first: float, last: float) -> Floats:
    """From `first` at `start` to `last` a `length` further, linear, and level outside."""
    steep = (last - first) / length
    out = np.asarray(values * np.float32(steep), np.float32)
    out += np.float32(first - start * steep)
    return out.clip(np.float32(min(first, last)), np.float32(max(first, last)), out=out)


def shadow_line(below: NDArray[np.float32], above: NDArray[np.float32], soft: float) -> Floats:
    """How much of the line between closed lips lies on each pixel: the lips' meeting is never lit."""
    distance = unit(np.maximum(np.abs(below), np.abs(above)) * np.float32(1 / (0.012 + soft)))
    distance *= distance
    np.subtract(np.float32(1), distance, out=distance)
    distance *= distance
    return distance
