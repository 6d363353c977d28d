"""What the footage shows: shots, and every face that is seen, frame by frame.

It lies in the render's folder: `look.npz`, some fifty bytes a frame and face, and `meshes.f32`, the meshes one after the other,
which are read back for the stretch that a worker makes. `scanning` makes both.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import POINTS
from musetalk_agent.renders.film_parts import Colours, FilmClock

LOOK_FILE, MESHES_FILE = "look.npz", "meshes.f32"
COLUMNS = ("aperture", "width", "turn", "nod", "evidence")

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FootageScan:
    """What the footage shows.

    Args:
        clock: when its frames are shown, from 0 on.
        start: time of the first frame in the file, seconds.
        size: width and height of the frames, even.
        aspect: width of a pixel by its height.
        colours: of the planes of the first frame.
        cuts: frames at which shots begin, ascending, 0 first.
        frame: int64 `[m]`, the frame of each face that was seen, ascending.
        number: int64 `[m]`, which face: the same one keeps its number within a shot.
        aperture, width, turn, nod, evidence: float32 `[m]`: how far the mouth is open (eye distances), how wide the face is
            (pixels), how far it is turned and nodded (radians), and the evidence of a seen mouth where it was measured, else NaN.
        described: float32 `[numbers, n]`, the mean descriptor of each number.
    """

    clock: FilmClock
    start: Fraction
    size: tuple[int, int]
    aspect: Fraction
    colours: Colours
    cuts: Ints
    frame: Ints
    number: Ints
    aperture: Floats
    width: Floats
    turn: Floats
    nod: Floats
    evidence: Floats
    described: Floats

    @property
    def frames(self) -> int:
        """Frames of the footage."""
        return len(self.clock.ticks)

    @property
    def times(self) -> NDArray[np.float64]:
        """When each frame begins to be shown, float64 `[frames]`, seconds from 0 on."""
        return np.asarray(self.clock.ticks, np.float64) * float(self.clock.base)

    @property
    def rate(self) -> int:
        """Frames per second, whole, 15 … 60: the usual distance of frames decides."""
        steps = np.diff(np.asarray(self.clock.ticks, np.int64))
        usual = float(np.median(steps)) * float(self.clock.base) if len(steps) else 0.04
        return min(60, max(15, round(1 / usual)))

    @property
    def stamps(self) -> list[Fraction]:
        """Time of each frame in the file."""
        return [self.start + tick * self.clock.base for tick in self.clock.ticks]

    def shot_of(self, frames: Ints) -> Ints:
        """The shot, from 0, that each frame belongs to."""
        return np.asarray(np.searchsorted(self.cuts, frames, side="right") - 1, np.int64)

    def meshes(self, folder: Path, rows: Ints) -> Floats:
        """The meshes of some rows, float32 `[n, 468, 2]`, in pixels of the footage. Raises OSError."""
        stored = np.memmap(folder / MESHES_FILE, np.float32, "r", shape=(len(self.frame), POINTS, 2))
        return np.array(stored[rows])

    def save(self, folder: Path) -> None:
        """Writes `look.npz`, whole. Raises OSError."""
        made = folder / f".{LOOK_FILE}"
        with made.open("wb") as file:
            np.savez(
                file,
                base=_pair(self.clock.base),
                ticks=np.asarray(self.clock.ticks, np.int64),
                end=np.array(self.clock.end),
                start=_pair(self.start),
                size=np.array(self.size),
                aspect=_pair(self.aspect),
                colours=np.array(
                    (self.colours.matrix, self.colours.range, self.colours.primaries, self.colours.transfer)
                ),
                **{name: getattr(self, name) for name in _ARRAYS},
            )
        made.replace(folder / LOOK_FILE)

    @classmethod
    def load(cls, folder: Path) -> FootageScan:
        """Raises FileNotFoundError where nothing was saved."""
        with np.load(folder / LOOK_FILE, allow_pickle=False) as stored:
            clock = FilmClock(_fraction(stored["base"]), stored["ticks"].tolist(), int(stored["end"]))
            width, height = (int(v) for v in stored["size"])
            return cls(
                clock,
                _fraction(stored["start"]),
                (width, height),
                _fraction(stored["aspect"]),
                Colours(*(int(v) for v in stored["colours"])),
                **{name: stored[name] for name in _ARRAYS},
            )


_ARRAYS = ("cuts", "frame", "number", *COLUMNS, "described")


def _pair(value: Fraction) -> Ints:
    return np.array((value.numerator, value.denominator), np.int64)


def _fraction(pair: Ints) -> Fraction:
    return Fraction(int(pair[0]), int(pair[1]))
