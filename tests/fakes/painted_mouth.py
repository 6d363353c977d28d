"""A network that paints: a known mouth on a known face, with the faults that the real one has, each of a known size.

It blurs what it is shown, tints it, adds noise of its own to each face, and lets the lips tremble; the mouth's opening is reported.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels

SIDE = 256
LIP, INSIDE = (95, 90, 190), (25, 20, 40)
LIP_HEIGHT = 13
"""Of each lip, in the network's pixels."""


@dataclass(frozen=True)
class Faults:
    """What the painter does wrong.

    Args:
        trembling: standard deviation of the mouth's place and opening from face to face, in the network's pixels.
        noise: standard deviation of the noise in levels.
        tint: levels added (BGR), in the middle of the face and as a slope to the right and down over half of it.
        blur: sigma of the Gaussian that loses the detail, in the network's pixels.
    """

    trembling: float = 0.5
    noise: float = 3.0
    tint: tuple[tuple[float, float, float], ...] = ((7.0, -5.0, 6.0), (3.0, 2.0, -2.0), (-2.0, 3.0, 2.0))
    blur: float = 1.2


PERFECT = Faults(0, 0, ((0, 0, 0),) * 3, 0)


@dataclass
class Painter:
    """Paints faces, each with its own noise; the same seed paints the same ones."""

    faults: Faults = field(default_factory=Faults)
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def face(self, crop: Pixels, mouth: tuple[float, float, float], opening: float) -> Pixels:
        """uint8 BGR `[256, 256, 3]` of a crop of that size.

        Args:
            mouth: middle (x, y) and half width of the mouth in the crop.
            opening: pixels of the crop between the lips; 0 is closed.
        """
        faults = self.faults
        whole = cv2.GaussianBlur(crop, (0, 0), faults.blur) if faults.blur else crop.copy()
        dx, dy, wider = self._rng.normal(0, 1, 3) * faults.trembling
        x, y, half = mouth
        self._ellipse(whole, (x + dx, y + dy), (half * 1.1, LIP_HEIGHT + opening / 2), LIP)
        if opening > 0 and (tall := opening / 2 + wider / 2) > 0.3:
            self._ellipse(whole, (x + dx, y + dy), (half * 0.85, tall), INSIDE)
        out = whole + self._tint
        if faults.noise:
            noise = cv2.GaussianBlur(self._rng.standard_normal(out.shape, np.float32), (0, 0), 1.0)
            out += noise * (faults.noise / noise.std())
        return np.clip(np.rint(out, out=out), 0, 255, out=out).astype(np.uint8)

    @functools.cached_property
    def _tint(self) -> NDArray[np.float32]:
        middle, right, down = (np.array(part, np.float32) for part in self.faults.tint)
        along = np.linspace(-1, 1, SIDE, dtype=np.float32)
        return middle + along[None, :, None] * right + along[:, None, None] * down

    @staticmethod
    def _ellipse(
        picture: Pixels, at: tuple[float, float], axes: tuple[float, float], colour: tuple[int, int, int]
    ) -> None:
        place, size = ((round(a * 16), round(b * 16)) for a, b in (at, axes))
        cv2.ellipse(picture, place, size, 0, 0, 360, colour, -1, cv2.LINE_AA, 4)


@dataclass(frozen=True)
class Speech:
    """What a painted mouth says: its opening in each frame, which frames hold a vowel, and which are closures."""

    openings: NDArray[np.float64]
    holds: list[range]
    closures: list[range]


def speech(frames: int, seed: int = 0, hold: tuple[int, int] = (3, 9)) -> Speech:
    """Vowels of `hold` frames; before six of ten of them lips that meet for one or two frames, before the others one on the way."""
    rng = np.random.default_rng(seed)
    openings: list[float] = []
    holds: list[range] = []
    closures: list[range] = []
    while len(openings) < frames:
        wide, length = float(rng.uniform(10, 26)), int(rng.integers(*hold))
        if openings and rng.random() < 0.6:
            closures.append(range(len(openings), len(openings) + int(rng.integers(1, 3))))
            openings += [0.0] * len(closures[-1])
        elif openings:
            openings.append((openings[-1] + wide) / 2)
        holds.append(range(len(openings), len(openings) + length))
        openings += [wide] * length
    whole = [[part for part in parts if part.stop <= frames] for parts in (holds, closures)]
    return Speech(np.array(openings[:frames]), whole[0], whole[1])


def opening_of(face: Pixels, at: tuple[float, float], reach: float) -> float:
    """How far the mouth of a painted face or a composed frame is open, in its pixels, from the columns around its middle `at`.

    `reach` is how far up and down is looked, in its pixels: within the lips.
    """
    rows = slice(max(0, round(at[1] - reach)), round(at[1] + reach))
    column = face[rows, round(at[0]) - 8 : round(at[0]) + 8, 2].astype(np.float64).mean(1)
    inside, lip = INSIDE[2] + 25, LIP[2] - 30
    return float(np.clip((lip - column) / (lip - inside), 0, 1).sum())


def lag_frames(seen: NDArray[np.float64], reported: NDArray[np.float64]) -> float:
    """By how many frames a curve is later than another: the peak of their correlation, by a parabola through three."""
    a, b = seen - seen.mean(), reported - reported.mean()
    sums = [float(a[max(0, k) : len(a) + min(0, k)] @ b[max(0, -k) : len(b) - max(0, k)]) for k in range(-3, 4)]
    best = min(max(int(np.argmax(sums)), 1), 5)
    before, at, after = sums[best - 1 : best + 2]
    return best - 3 + (before - after) / (2 * (before - 2 * at + after))


def trembling(seen: NDArray[np.float64], holds: list[range], settled: int = 2) -> float:
    """Standard deviation of the change from frame to frame while a vowel is held, `settled` frames after it began."""
    return float(np.std(np.concatenate([np.diff(seen[hold.start + settled : hold.stop]) for hold in holds])))
