"""What is kept of one face of a film: a few numbers a frame, sums, and a descriptor every half second. No pictures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face_picture import HEIGHT, WIDTH
from musetalk_agent.avatars.identity import Descriptor, FaceDescriber, cosine, mean_descriptor
from musetalk_agent.judge.picture_measures import FaceMeasures
from musetalk_agent.measure.lip_measures import aperture_of
from musetalk_agent.media_types import Pixels

Series = NDArray[np.float64]

_DESCRIBE_EVERY = 12
_CORNERS = (61, 291, 13, 14)
_GROUPS = 8
"""Stretches of a face's time that are compared with each other, at most."""
_COLUMNS = 13
TIME, APERTURE, SHARPNESS, LIGHTNESS, RED, BLUE, INSIDE, AROUND, MOUTH, MOTION, X, Y, SIZE = range(_COLUMNS)
"""Columns of `FaceRecord.rows`: time (s), opening (eye distances), the fields of `FrameMeasures` (three of colour), then the face's
middle and width in the frame's pixels."""


@dataclass
class FaceRecord:
    """Fills up while a face is followed.

    Args:
        shot: where it was seen first.
    """

    shot: int
    _rows: list[tuple[float, ...]] = field(default_factory=list)
    descriptors: list[Descriptor] = field(default_factory=list)
    gradients: Series = field(default_factory=lambda: np.zeros((HEIGHT, WIDTH, 2)))
    mouth: Series = field(default_factory=lambda: np.zeros(2))
    _measures: FaceMeasures | None = field(default_factory=FaceMeasures)
    _last_frame: int = -2

    def push(self, bgr: Pixels, points: NDArray[np.float32], frame: int, time: float, describer: FaceDescriber) -> None:
        """Takes the face's mesh, float32 `[468, 2]`, in the film's frame number `frame`, uint8 BGR."""
        assert self._measures is not None
        found, picture = self._measures.push(bgr, points, follows=frame == self._last_frame + 1)
        self._last_frame = frame
        if len(self._rows) % _DESCRIBE_EVERY == 0:
            self.descriptors.append(describer.describe(bgr, points, picture))
        self.mouth += picture.points[list(_CORNERS)].mean(0)
        low, high = points.min(0), points.max(0)
        x, y = (low + high) / 2
        colour = (float(value) for value in found.colour)
        changes = (found.flicker, found.around, found.mouth_motion, found.motion)
        self._rows.append(
            (time, aperture_of(points), found.sharpness, *colour, *changes, float(x), float(y), float(high[0] - low[0]))
        )

    def close(self) -> None:
        """Ends it: sums stay, pictures go."""
        if self._measures is not None:
            self.gradients += self._measures.gradients
            self._measures = None

    @property
    def frames(self) -> int:
        """How many frames show it."""
        return len(self._rows)

    @property
    def rows(self) -> Series:
        """float64 `[frames, 13]`, in order of time; see `TIME` and the others."""
        return np.array(sorted(self._rows), np.float64).reshape(-1, _COLUMNS)

    @property
    def mean_gradients(self) -> Series:
        """For `seam`."""
        return self.gradients / max(1, self.frames)

    @property
    def mean_mouth(self) -> Series:
        """The mouth's middle in the cut-out, float64 `[2]`."""
        return self.mouth / max(1, self.frames)

    def groups(self) -> list[Descriptor]:
        """Mean descriptors of stretches of its time, in order; the first and the last are of different times where it can be."""
        count = min(_GROUPS, max(1, len(self.descriptors) // 2))
        return [
            mean_descriptor([self.descriptors[k] for k in part])
            for part in np.array_split(np.arange(len(self.descriptors)), count)
        ]

    def join(self, other: FaceRecord) -> None:
        """Takes over another record of the same person, which is closed."""
        self._rows += other._rows
        self.descriptors += other.descriptors
        self.gradients += other.gradients
        self.mouth += other.mouth


def joined(records: list[FaceRecord], same: float) -> list[FaceRecord]:
    """One record a person, in order: those of several shots whose descriptors have a cosine of `same` and more are joined."""
    kept: list[FaceRecord] = []
    shots: list[set[int]] = []
    for record in records:
        mean = mean_descriptor(record.descriptors)
        likeness = [
            -2.0 if record.shot in seen else cosine(mean, mean_descriptor(one.descriptors))
            for one, seen in zip(kept, shots, strict=True)
        ]
        best = int(np.argmax(likeness)) if likeness else -1
        if best >= 0 and likeness[best] >= same:
            kept[best].join(record)
            shots[best].add(record.shot)
        else:
            kept.append(record)
            shots.append({record.shot})
    return kept
