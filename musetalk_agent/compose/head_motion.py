"""How the head of a still picture moves: drift, nods on stressed syllables, glances and blinks, for any position of a session.

Everything is a function of the session's seed, the position and the speech before it, so that frames can be made in any order and
by any worker. Real talkers are the measure (`docs/decisions/0033-living-pictures.md`): 137 clips of 16 talkers of the GRID corpus
(Cooke, Barker, Cunningham, Shao 2006, CC BY 4.0), 3 s each, tracked by MediaPipe's mesh, low-passed by a Gaussian of 48 ms.
Quartiles of the standard deviation within a clip:

    yaw    0.45, 0.62, 0.81 degrees       to the side  0.0039, 0.0061, 0.0086 face widths
    pitch  0.78, 1.07, 1.31 degrees       up and down  0.0044, 0.0058, 0.0077 face widths
    roll   0.26, 0.35, 0.46 degrees       nearer       0.0047, 0.0070, 0.0087 of the size

Of the power of yaw 0.32, 0.56, 0.71 is below 1 Hz, 0.22, 0.35, 0.55 from there to 2.5 Hz and 0.04, 0.07, 0.12 to 6 Hz; pitch and
roll are alike, shifts have 0.6 to 0.9 below 1 Hz. The mesh's own trembling is in all of these figures.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_left, bisect_right
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pose(NamedTuple):
    """Displacements from the picture as it is; all 0 is that picture.

    `yaw`, `pitch`, `roll` are radians: to the image's right, down, clockwise. `x`, `y` are widths of the face, right and down,
    `nearer` is a share of its size. `gaze_x`, `gaze_y` are widths of the face by which the irises move; `brows` how far the brows
    are raised, -1 … 1.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    x: float = 0.0
    y: float = 0.0
    nearer: float = 0.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    brows: float = 0.0


AS_IT_IS = Pose()

_DEGREE = math.pi / 180
_AXES = 7
"""Yaw, pitch, roll, x, y, nearer, brows: those that drift."""
_DRIFT = np.array([0.54 * _DEGREE, 1.25 * _DEGREE, 0.24 * _DEGREE, 0.0044, 0.0041, 0.0056, 0.12])
"""Standard deviations of the slow motion, which is always there."""
_LIVELY = np.array([0.42 * _DEGREE, 0.95 * _DEGREE, 0.17 * _DEGREE, 0.0003, 0.0003, 0.0046, 0.08])
"""Standard deviations of the quicker motion, which comes with speech."""
_DRIFT_HZ, _LIVELY_HZ = (0.12, 0.9), (0.9, 3.4)
_CALM_HZ = 12
"""Poses a second of a head at rest, at least. It drifts by a tenth of a pixel a frame; a frame that stays as it is costs nothing to
make and little to encode."""
_QUIET = 0.65
"""How much of the quicker motion is left in pauses."""
_WAVES = 14
"""Sines of random frequency and phase for each axis: their sum has no period that is seen."""
_RISE_S = 1.5
"""In which a session leaves the picture as it is."""

MEMORY_S = 1.2
"""Speech before a position that its pose depends on."""
_NOD_RISE_S, _NOD_FALL_S = 0.2, 0.55
_NOD_S = _NOD_RISE_S + _NOD_FALL_S
_NOD = 1.8 * _DEGREE
_NOD_Y = 0.0005
_NOD_ASIDE = 0.32 * _DEGREE
_NOD_BROWS = 0.8
"""A fully stressed syllable: pitch, sinking (face widths), yaw and roll to a random side at most, brows."""

_BLINK_EVERY_S = (1.4, 5.6)
"""Pauses between blinks are even between these: 17 a minute (people blink 10 to 25 times a minute in talk)."""
_BLINK_S = (0.12, 0.04, 0.16)
"""Time to close, to stay closed, to open."""
_GLANCE_EVERY_S, _GLANCE_S = (2.5, 7.0), (0.4, 1.4)
_GLANCE = (0.011, 0.005)
"""Widths of the face by which the irises move at most: 8 and 4 degrees of an eye whose radius is 0.085 of the face's width."""
_SACCADE_S = 0.06
_EYE_RADIUS = 0.085


def seed_of(name: str) -> int:
    """The seed of what has this name (a session, a render): the same one each time."""
    return zlib.crc32(name.encode())


class HeadMotion:
    """The motion of one session. Not thread-safe: it belongs to the event loop.

    Args:
        seed: sessions with other seeds move otherwise; the same one moves the same way.
        fps: positions per second.
    """

    def __init__(self, seed: int, fps: int) -> None:
        random = np.random.default_rng(seed)
        self._fps, self._seed = fps, seed
        self._drift = _Waves(random, _DRIFT, _DRIFT_HZ)
        self._lively = _Waves(random, _LIVELY, _LIVELY_HZ)
        self._blinks = _Moments(Random(f"{seed} blinks"), _BLINK_EVERY_S)
        self._glances = _Moments(Random(f"{seed} glances"), _GLANCE_EVERY_S)
        count = round(MEMORY_S * fps)
        self._shares = [(1 - math.cos(2 * math.pi * (k + 0.5) / count)) / count for k in range(count)]
        self._spoken: dict[int, float] = {}
        self._stressed: list[int] = []
        self._known: tuple[int, Pose] | None = None  # asked for last: an idle frame's is asked for four times

    def speak(self, position: int, stress: float = 0.0) -> None:
        """The avatar speaks at this position. `stress` is 0 … 1, above 0 where a stressed syllable begins.

        Positions may come in any order, but before their own pose is asked for.
        """
        self._known = None
        if self._spoken.get(position, 0.0) <= 0.0 < stress:
            self._stressed.insert(bisect_left(self._stressed, position), position)
        self._spoken[position] = stress

    def drop_after(self, position: int) -> None:
        """What was to be spoken after this position is not spoken after all (a clear)."""
        self._known = None
        self._spoken = {at: stress for at, stress in self._spoken.items() if at <= position}
        self._stressed = [at for at in self._stressed if at <= position]

    def forget(self, position: int) -> None:
        """Positions before this one are not asked for again."""
        first = position - math.ceil(MEMORY_S * self._fps) - 1
        if self._spoken and next(iter(self._spoken)) < first - self._fps:
            self._spoken = {at: stress for at, stress in self._spoken.items() if at >= first}
            self._stressed = [at for at in self._stressed if at >= first]

    def pose(self, position: int) -> Pose:
        """The pose at `position` (≥ 0). It goes on smoothly whether one speaks or not, but for the eyes, which jump as eyes do."""
        if self._known is None or self._known[0] != position:
            self._known = position, self._posed(position)
        return self._known[1]

    def _posed(self, position: int) -> Pose:
        seconds = position / self._fps
        lively = _QUIET + (1 - _QUIET) * self._speech(position)
        moved = self._drift.at(seconds) + lively * self._lively.at(seconds)
        first = bisect_left(self._stressed, position - math.ceil(_NOD_S * self._fps))
        for at in self._stressed[first : bisect_right(self._stressed, position)]:
            moved += self._nod(at) * _nod_shape((position - at) / self._fps)
        moved *= _eased(seconds / _RISE_S)
        yaw, pitch, roll, x, y, nearer, brows = (float(value) for value in moved)
        gaze_x, gaze_y = self._gaze(seconds)
        # the eyes hold on to whom they look at while the head turns
        return Pose(
            yaw,
            pitch,
            roll,
            x,
            y,
            nearer,
            gaze_x - _EYE_RADIUS * yaw,
            gaze_y - _EYE_RADIUS * pitch,
            min(max(brows, -1.0), 1.0),
        )

    def live_pose(self, position: int) -> Pose:
        """The same for a live session: at rest, with the eyes on the viewer, a pose stays as it is until the next of `_CALM_HZ`."""
        if self._speech(position) == 0.0 and self._gaze(position / self._fps) == (0.0, 0.0):
            position -= position % max(1, self._fps // _CALM_HZ)
        return self.pose(position)

    def closure(self, position: int) -> float:
        """How far the eyes are closed at `position`, 0 … 1."""
        seconds = position / self._fps
        return max(_closure(seconds - at) for at, _ in self._blinks.around(seconds))

    def _speech(self, position: int) -> float:
        """How much of the last second was spoken, 0 … 1, the middle of it counting most."""
        return sum(share for k, share in enumerate(self._shares) if position - k in self._spoken)

    def _nod(self, at: int) -> NDArray[np.float64]:
        """The axes of a whole nod that begins at this position."""
        return self._spoken.get(at, 0.0) * _whole_nod(f"{self._seed} {at}")

    def _gaze(self, seconds: float) -> tuple[float, float]:
        """Mostly at the viewer; now and then a short glance aside."""
        for at, share in self._glances.around(seconds):
            lasts, aside, down = _glance(share)
            away = _eased((seconds - at) / _SACCADE_S) - _eased((seconds - at - lasts) / _SACCADE_S)
            if away > 0:
                return away * aside, away * down
        return 0.0, 0.0


@lru_cache(maxsize=1024)
def _whole_nod(seed: str) -> NDArray[np.float64]:
    """The axes of a nod with a stress of 1, read-only. A seed takes 20 µs, and a nod is asked for some 30 times."""
    random = Random(seed)
    aside, tilt, size = random.uniform(-1, 1), random.uniform(-1, 1), random.uniform(0.6, 1.15)
    brows = _NOD_BROWS if random.random() < 0.5 else 0.0
    made = size * np.array([aside * _NOD_ASIDE, _NOD, tilt * _NOD_ASIDE, 0.0, _NOD_Y, 0.0, brows])
    made.flags.writeable = False
    return made


@lru_cache(maxsize=1024)
def _glance(seed: float) -> tuple[float, float, float]:
    """How long a glance lasts, in seconds, and how far aside and down it goes."""
    random = Random(seed)
    lasts, angle, far = random.uniform(*_GLANCE_S), random.uniform(0, 2 * math.pi), random.uniform(0.5, 1.0)
    return lasts, _GLANCE[0] * far * math.cos(angle), _GLANCE[1] * far * math.sin(angle)


class _Waves:
    """Band-limited noise on each axis: float64 of given standard deviations, from sines between two frequencies."""

    def __init__(self, random: np.random.Generator, size: NDArray[np.float64], band: tuple[float, float]) -> None:
        low, high = np.log(band[0]), np.log(band[1])
        steps = (np.arange(_WAVES) + random.random((_AXES, _WAVES))) / _WAVES
        self._turns = 2 * math.pi * np.exp(low + (high - low) * steps)
        self._phases = 2 * math.pi * random.random((_AXES, _WAVES))
        self._size = size * math.sqrt(2 / _WAVES)

    def at(self, seconds: float) -> NDArray[np.float64]:
        return np.asarray(self._size * np.sin(self._turns * seconds + self._phases).sum(1))


class _Moments:
    """Moments with uneven pauses between them, each with a random number of its own; the first comes after a pause."""

    def __init__(self, random: Random, pauses: tuple[float, float]) -> None:
        self._random, self._pauses = random, pauses
        self._at: list[float] = [0.0]
        self._own: list[float] = [0.0]

    def around(self, seconds: float) -> list[tuple[float, float]]:
        """The last moment before `seconds` and the next one, as (second, number)."""
        while self._at[-1] <= seconds:
            self._at.append(self._at[-1] + self._random.uniform(*self._pauses))
            self._own.append(self._random.random())
        after = max(1, bisect_right(self._at, seconds))
        return [(self._at[k], self._own[k]) for k in (after - 1, after) if k > 0]


def _eased(share: float) -> float:
    """0 up to 0, 1 from 1 on, smooth between."""
    share = min(max(share, 0.0), 1.0)
    return share * share * (3 - 2 * share)


def _nod_shape(seconds: float) -> float:
    """A nod's share at a time from its beginning: down and, more slowly, up again."""
    return _eased(seconds / _NOD_RISE_S) - _eased((seconds - _NOD_RISE_S) / _NOD_FALL_S)


def _closure(seconds: float) -> float:
    """How far the lids are closed, 0 … 1, at a time from the middle of a blink."""
    close, hold, reopen = _BLINK_S
    begun = seconds + hold / 2
    return _eased(1 + begun / close) - _eased((begun - hold) / reopen)
