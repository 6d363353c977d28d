"""From an articulation vector to the shape of the mouth that makes it.

All sizes are in eye distances; an adult's outer eye corners are about 92 mm apart, so 0.01 is close to a millimetre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.mouth_space import CHIN, IL, IU, LEVELS, OL, OU, Floats, MouthShape, S, ordered
from musetalk_agent.media_types import Feature

FEATURE_SIZE = 5
APERTURE = 0.12
"""Opening of the inner lips at jaw 1 as the face mesh reads it, by the contract with the feature extractor."""
READING = 0.62
"""What the mesh reads of a real opening: its inner lips stay closer together than those of the image. Seen on real talkers."""
OPENING = APERTURE / READING
"""How far the lips part at jaw 1."""
SOONER = 0.4
"""The mesh reads less of a small opening than of a wide one: half of the way reads as 0.39 (median of 22 clips of real
faces, drawn by this engine). With `jaw * (1 + SOONER * (1 - jaw))` it reads 0.51, and so on: in proportion to `jaw`."""
WIDTH = 0.12
PUCKER = 0.26
"""How much narrower the mouth is at rounding 1."""
UPPER_SHARE = 0.22
"""The upper lip's part of the opening; the lower lip and the jaw do the rest."""
JAW_SHARE = 0.5
"""How far the chin drops for an opening: less than the lip, which also curls down."""
LOWEST_CHIN = JAW_SHARE * OPENING
"""How far it drops at most."""
CHEEK_DROP = 0.65
"""How far the corners of the mouth and the cheeks beside them follow the chin down."""
NARROW = 0.51
"""Nearer than this to the mouth's middle, the face's outline has to be minded (eye distances)."""
ROOMY, CHEEK_LEAST = 0.15, 0.3
"""Corners whose cheek is narrower than this (eye distances) follow in proportion to it, down to this share."""
JAW_HINGE = 1.15
"""How far the jaw moves down at all, to the left and right of the mouth's middle, as a multiple of where the outline is."""
CHEEK_LIFT = 0.02
"""How far a spread mouth lifts them at width 1."""
LINE = 0.02
"""Thickness of the shadow line between closed lips."""
CUT_FROM = 0.03
"""An opening from which on all of that line is cut out of lips that meet (see `opened`)."""
TUCK_GAP = 0.034
"""Upper teeth seen above a tucked lower lip."""


@dataclass(frozen=True)
class Articulation:
    """What the mouth does: each 0 … 1, `width` −1 … 1. See `features.visemes` for their meaning."""

    jaw: float
    width: float
    rounding: float
    closure: float
    tuck: float

    @classmethod
    def of(cls, feature: Feature) -> Articulation:
        """From float32 `[5]`; values out of range are clipped, values that are no number count as rest."""
        jaw, width, rounding, closure, tuck = (0.0 if value != value else value for value in feature.tolist())
        clip = (min(max(value, 0.0), 1.0) for value in (jaw, rounding, closure, tuck))
        jaw, rounding, closure, tuck = clip
        return cls(jaw, min(max(width, -1.0), 1.0), rounding, closure, tuck)

    @property
    def parted(self) -> float:
        """How far the jaw alone parts the lips at the middle."""
        return OPENING * self.jaw * (1 + SOONER * (1 - self.jaw))

    @property
    def aperture(self) -> float:
        """How far the lips are apart at the middle."""
        return max(self.parted, TUCK_GAP * self.tuck) * (1 - self.closure)

    @property
    def drop(self) -> float:
        """How far the chin is below its rest: pressed lips hide most of the jaw's opening."""
        return JAW_SHARE * self.parted * (1 - 0.7 * self.closure)


def bump(reach: float, power: float) -> Floats:
    """1 in the mouth's middle, 0 from `|s| = reach` on."""
    return np.asarray(np.maximum(1 - (S / reach) ** 2, np.float32(0)) ** power, np.float32)


JAW_WINDOW = bump(2.3, 1.5)
INNER, BOW = bump(1.0, 0.5), bump(2.0, 1.0)
"""Where the lips' edges follow closure, tuck and rounding, and where the upper lip's bow flattens."""
CHEEKS = JAW_WINDOW - bump(1.0, 1.0)
"""Where cheeks move: most at the corners, less and less to the face's outline, and the lips' middle not at all."""


def rising(values: NDArray[np.floating]) -> Floats:
    """0 below 0, 1 above 1, and smooth in between."""
    part = np.clip(values, 0, 1)
    return np.asarray(part * part * (3 - 2 * part), np.float32)


def narrowness(sides: NDArray[np.floating] | np.floating) -> Floats:
    """How near the face's outline is to a mouth's middle: 0 from `NARROW` on, as in a face from the front; 1 a tenth below it."""
    return rising((np.float32(NARROW) - np.asarray(sides, np.float32)) * np.float32(10))


def _side_of(sides: Floats) -> Floats:
    """Of two values, for the left and the right, the one that counts at each of `S`."""
    left, right = np.asarray(sides, np.float32)
    return np.asarray(np.where(S < 0, left, right), np.float32)


def on_cheeks(shape: MouthShape, sides: Floats) -> Floats:
    """Where skin beside a mouth may move up and down, over `S`: 1 on the mouth and half way to the face's outline, 0 beyond it.

    `sides` are how far the outline is to the left and right of the mouth's middle. Where it is near the outline would be moved with
    the skin, and be seen to bend. Where it is far nothing changes.
    """
    side = _side_of(sides)
    room = np.maximum(side - np.float32(shape.half), np.float32(0.02))
    share = rising((side - np.abs(shape.places - np.float32(shape.centre))) / (np.float32(0.5) * room))
    share[np.abs(S) <= 1] = 1
    return 1 - _side_of(narrowness(sides)) * (1 - share)


def jaw_share(shape: MouthShape, sides: Floats) -> Floats:
    """How much of the jaw's way the face's lower edge goes, over `S`: all of it to half of the way to its hinge, and none there."""
    reach = _side_of(sides) * np.float32(JAW_HINGE)
    share = rising((reach - np.abs(shape.places - np.float32(shape.centre))) / (np.float32(0.5) * reach))
    return 1 - _side_of(narrowness(sides)) * (1 - share)


def closed(shape: MouthShape) -> MouthShape:
    """The rest shape of a face whose reference shows `shape`: lips together, chin up, a wide smile relaxed a little."""
    gap = shape.curves[IL] - shape.curves[IU]
    opening = float(gap.max())
    smile = min(max(opening - 0.03, 0) / 0.05, 1) * max(0.0, shape.half - 0.31)
    out = shape.curves.copy()
    line = out[IU] + 0.35 * gap
    middle = np.abs(S) < 1.3
    smooth = np.polyval(np.polyfit(S[middle], line[middle], 4), S)  # lips that were apart meet in a simple curve
    out[IU] = out[IL] = line + (smooth - line) * bump(1.3, 0.3) * min(opening / 0.03, 1.0)
    out[OU] += 0.12 * gap
    out[OL] -= 0.50 * gap
    out[CHIN] -= 0.45 * opening * JAW_WINDOW
    return MouthShape(shape.centre, shape.half - 0.3 * smile, ordered(out))


@dataclass(frozen=True)
class Movements:
    """How a mouth at rest moves, worked out once for it.

    Args:
        shape: the mouth at rest.
        grin: half of its width beyond an unsmiling mouth's. Corners must not drag the folds beside them along: the opening narrows
            instead.
        moves: float32 `[5, LEVELS · SAMPLES]`, how far the curves move down for 1 of: the cheeks' drop, the bow's flattening, the
            tuck, the pout, the chin's drop.
    """

    shape: MouthShape
    grin: float
    moves: Floats

    @classmethod
    def of(cls, rest: MouthShape, sides: Floats | None = None) -> Movements:
        """Of any mouth whose lips are together, in a face whose outline is `sides` to the left and right of it, or far away."""
        curves = rest.curves
        cheeks, bow, tuck, pout, chin = moves = np.zeros((5, *curves.shape), np.float32)
        cheeks[:CHIN] = CHEEKS
        bow[:CHIN] = -np.clip(curves[IU] - curves[IU][S.size // 2], -0.12, 0.12) * BOW
        thick_u, thick_l = (curves[IU] - curves[OU]) * INNER, (curves[OL] - curves[IL]) * INNER
        tuck[OU], tuck[IU], tuck[IL], tuck[OL] = -0.008 * INNER, -0.016 * INNER, -0.016 * INNER, -0.3 * thick_l
        tuck[CHIN] = -0.006 * JAW_WINDOW
        pout[OU], pout[OL] = -0.5 * thick_u, thick_l
        chin[CHIN] = JAW_WINDOW
        if sides is not None and float(sides.min()) < NARROW:
            room = 1 - narrowness(sides) * (1 - np.clip((sides - np.float32(rest.half)) / ROOMY, CHEEK_LEAST, 1))
            cheeks[:CHIN] *= on_cheeks(rest, sides) * _side_of(room)
            chin[CHIN] *= jaw_share(rest, sides)
        return cls(rest, max(0.0, rest.half - 0.30), moves.reshape(5, -1))

    def driven(self, act: Articulation) -> MouthShape:
        """The rest shape as `act` deforms it."""
        rest, aperture = self.shape, act.aperture
        pucker = PUCKER * max(0.4, 1 - 10 * self.grin)
        half = rest.half * (1 + WIDTH * act.width - pucker * act.rounding - 0.10 * aperture / OPENING)
        cheeks = CHEEK_DROP * act.drop - CHEEK_LIFT * max(act.width, 0.0)
        flat = 0.6 * act.rounding + 0.4 * aperture / OPENING
        pout = 0.22 * act.rounding - 0.18 * act.closure
        by = np.array((cheeks, flat, act.tuck, pout, act.drop), np.float32)
        out: Floats = (by @ self.moves).reshape(rest.curves.shape)
        out += rest.curves
        if aperture > 0:
            out += PARTING * (bump(0.88 - (0.16 + 2.5 * self.grin) * act.rounding, 0.7) * np.float32(aperture))
        return MouthShape(rest.centre, half, ordered(out))


PARTING = np.zeros((LEVELS, 1), np.float32)
PARTING[[OU, IU, IL, OL], 0] = -0.8 * UPPER_SHARE, -UPPER_SHARE, 1 - UPPER_SHARE, 0.9 - UPPER_SHARE
"""How far the lips' edges go down for an opening of 1."""


def driven(rest: MouthShape, act: Articulation) -> MouthShape:
    """The rest shape as `act` deforms it."""
    return Movements.of(rest).driven(act)


def opened(shape: MouthShape, gap: float) -> MouthShape:
    """Where to cut a reference whose lips meet, when they are to be `gap` apart: the line between them is not part of the lips."""
    share = min(gap / CUT_FROM, 1.0)
    out = shape.curves.copy()
    cut = np.maximum(LINE / 2 * share - (out[IL] - out[IU]) / 2, 0) * INNER
    out[IU] -= cut
    out[IL] += cut
    return MouthShape(shape.centre, shape.half, ordered(out))
