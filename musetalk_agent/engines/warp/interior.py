"""The inside of the mouth: upper teeth fixed to the skull, tongue and lower teeth that move with the jaw, and shade."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.geometry import IL, IU, OL, OU, Floats, S, Shape
from musetalk_agent.engines.warp.lips import sample
from musetalk_agent.media import Pixels

# Sizes of adult teeth over the 92 mm between the outer eye corners: half widths from the middle out.
TOOTH_EDGES = (0.0, 0.092, 0.163, 0.243, 0.315)
UPPER_EDGE = 0.018
"""How far the upper incisors reach below the rest line of the lips."""
LOWER_EDGE = 0.018
"""How far the lower incisors' edge is below that line while the jaw is shut."""
LOWER_SHARE = 0.5
"""How far it goes down with an opening: the lower lip goes further, so wide vowels show these teeth."""
ARCH = 1.1
"""How the teeth's edges curve upwards and into the dark: v = edge − ARCH·u²."""
OPEN_ENOUGH = 0.05
"""Lips this far apart may show teeth."""
GREY = np.array([0.114, 0.587, 0.299], np.float32)


CROWNS_REACH = 0.34


def _crown_light() -> Floats:
    """Light on the teeth across the arch, over `u` in ±CROWNS_REACH: each tooth a little darker towards its neighbours."""
    positions = np.linspace(-CROWNS_REACH, CROWNS_REACH, 681, dtype=np.float32)
    light = np.ones_like(positions)
    for edge in TOOTH_EDGES:
        for side in (-edge, edge):
            light = np.minimum(light, 1 - 0.10 * np.exp(-(((positions - side) / 0.009) ** 2)))
    light.flags.writeable = False
    return light


CROWNS = _crown_light()


@dataclass(frozen=True)
class Palette:
    """Colours of the inside (BGR, 0 … 255): teeth, tongue, the dark, and the shadow line between closed lips."""

    teeth: Floats
    tongue: Floats
    dark: Floats
    line: Floats

    @classmethod
    def of(cls, picture: Pixels, frame: Floats, shape: Shape, teeth: Floats | None) -> Palette:
        """Taken from the reference's lips and skin; `teeth` is their colour where one has been seen (see `teeth_seen`)."""
        lip = _lip_colour(picture, frame, shape)
        skin = _skin_colour(picture, frame, shape)
        if teeth is None:
            teeth = _teeth_for(skin)
        light = float(skin @ GREY)
        tongue = lip * 0.66 + np.array([6, 2, 8], np.float32) * (light / 160)
        return cls(
            teeth,
            tongue.astype(np.float32),
            (lip * [0.24, 0.20, 0.30]).astype(np.float32),
            (lip * 0.42).astype(np.float32),
        )


def _strip(shape: Shape, upper: int, lower: int, shares: tuple[float, ...], reach: float) -> tuple[Floats, Floats]:
    """Positions in a strip between two levels, within `|s| < reach`."""
    s = np.linspace(-reach, reach, 41, dtype=np.float32)
    a, b = (np.interp(s, S, shape.curves[k]) for k in (upper, lower))
    v = np.stack([a + (b - a) * share for share in shares]).astype(np.float32)
    return np.broadcast_to(shape.u_of_s(s), v.shape).astype(np.float32), v


def _lip_colour(picture: Pixels, frame: Floats, shape: Shape) -> Floats:
    strips = [_strip(shape, OU, IU, (0.4, 0.6, 0.8), 0.6), _strip(shape, IL, OL, (0.2, 0.4, 0.6), 0.6)]
    pixels = np.concatenate([sample(picture, frame, u, v).reshape(-1, 3) for u, v in strips])
    return np.asarray(np.median(pixels, 0), np.float32)


def _skin_colour(picture: Pixels, frame: Floats, shape: Shape) -> Floats:
    u, v = np.meshgrid(np.linspace(-0.4, 0.4, 17), np.linspace(0.3, 0.5, 5))
    pixels = sample(picture, frame, (u + shape.centre).astype(np.float32), v.astype(np.float32)).reshape(-1, 3)
    return np.asarray(np.median(pixels, 0), np.float32)


def teeth_seen(picture: Pixels, frame: Floats, shape: Shape) -> Floats | None:
    """The colour of the teeth that the open mouth of a picture shows (BGR), or None where it shows none for sure."""
    if float((shape.curves[IL] - shape.curves[IU]).max()) < OPEN_ENOUGH:
        return None
    u, v = _strip(shape, IU, IL, (0.3, 0.4, 0.5, 0.6, 0.7), 0.5)
    pixels = sample(picture, frame, u, v).reshape(-1, 3).astype(np.float32)
    bright = pixels[pixels @ GREY >= np.percentile(pixels @ GREY, 65)]
    colour = np.median(bright, 0).astype(np.float32)
    lip = _lip_colour(picture, frame, shape)
    redness = float(np.log((colour[2] + 6) / (colour[1] + 6)) - np.log((lip[2] + 6) / (lip[1] + 6)))
    if redness > -0.08 or float(colour @ GREY) < 0.75 * float(lip @ GREY):
        return None
    return np.asarray(colour, np.float32)


def _teeth_for(skin: Floats) -> Floats:
    """Off-white as bright as the light on this skin makes it, tinted a little by it."""
    light = float(np.clip(0.95 * float(skin @ GREY) + 30, 60, 225))
    tint = skin / max(1.0, float(skin @ GREY))
    neutral = np.array([0.9, 1.0, 1.04], np.float32)
    return np.asarray(light * (0.75 * neutral + 0.25 * tint), np.float32)


@dataclass(frozen=True)
class Opening:
    """The pixels an opening may cover: all float32 `[h, w]`, in mouth space.

    Args:
        u, v: position, `u` from the mouth's middle, `v` from the lips' rest line in the middle.
        below, above: distance below the upper lip's edge, and above the lower lip's.
        rounding: 0 … 1; rounded lips stand before the teeth and shade them.
        aperture: the lips' opening in the middle.
    """

    u: Floats
    v: Floats
    below: Floats
    above: Floats
    rounding: float
    aperture: float


def paint(opening: Opening, palette: Palette, soft: float) -> Floats:
    """Colours `[h, w, 3]` of the inside. `soft` is half the blur of its edges (eye distances): never sharper than the picture."""
    u2 = opening.u * opening.u
    size = min(opening.aperture / 0.06, 1.0)
    upper = _step(UPPER_EDGE - ARCH * u2 - opening.v, soft) * _fall(opening.u, 0.13, 0.27)
    lower = _step(opening.v - (LOWER_EDGE + LOWER_SHARE * opening.aperture) - 0.5 * ARCH * u2, soft) * _fall(
        opening.u, 0.09, 0.20
    )
    tongue_top = 0.012 + 0.3 * opening.aperture + 1.0 * u2
    tongue = _step(opening.v - tongue_top, 0.03) * _fall(opening.u, 0.07, 0.25)
    colour = palette.dark + (palette.tongue - palette.dark) * (tongue * 0.85 * size)[..., None]
    colour = colour + (palette.teeth * 0.72 * _crowns(opening.u * 1.5)[..., None] - colour) * (lower * 0.7)[..., None]
    teeth_light = _crowns(opening.u) * (1 - 0.8 * np.clip(u2 / 0.075, 0, 1))
    shade = 0.68 + 0.30 * np.clip(opening.below / 0.022, 0, 1)  # the upper lip's shadow
    shade *= 0.7 + 0.3 * size
    upper = upper * (1 - 0.75 * opening.rounding)
    colour = colour + ((teeth_light * shade)[..., None] * palette.teeth - colour) * upper[..., None]
    narrow = 0.8 * np.clip(1 - (opening.below + opening.above) / 0.035, 0, 1)  # at its corners it is all lip
    colour = colour + (palette.line - colour) * narrow[..., None]
    rim = 0.75 + 0.25 * np.clip(np.minimum(opening.below, opening.above) / 0.014, 0, 1)
    return np.asarray(colour * rim[..., None], np.float32)


def _step(distance: Floats, soft: float) -> Floats:
    """0 on one side, 1 on the other, smooth over ±`soft`."""
    t = np.clip(distance * (0.5 / soft) + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _fall(u: Floats, full: float, none: float) -> Floats:
    t = np.clip((none - np.abs(u)) / (none - full), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _crowns(u: Floats) -> Floats:
    index = np.clip((u + CROWNS_REACH) * ((CROWNS.size - 1) / (2 * CROWNS_REACH)), 0, CROWNS.size - 1).astype(np.intp)
    return np.asarray(np.take(CROWNS, index), np.float32)


def shadow_line(below: NDArray[np.float32], above: NDArray[np.float32], soft: float) -> Floats:
    """How much of the line between closed lips lies on each pixel: the lips' meeting is never lit."""
    distance = np.clip(np.maximum(np.abs(below), np.abs(above)) / (0.012 + soft), 0, 1)
    return np.asarray((1 - distance * distance) ** 2, np.float32)
