"""One pass over the footage: shots, and every face that is seen, frame by frame. No frame is kept.

What is found lies in the render's folder: `look.npz`, some fifty bytes a frame and face, and `meshes.f32`, the meshes one after the
other, which are read back for the stretch that a worker makes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import POINTS, FaceNet
from musetalk_agent.avatars.face_track import MOUTH_CHECK_EVERY, head_angles
from musetalk_agent.avatars.shots import CutFinder, thumbnail
from musetalk_agent.judge import bars
from musetalk_agent.judge.face_picture import cut_face
from musetalk_agent.judge.following import FaceFollower, SeenFace
from musetalk_agent.judge.identity import Descriptor, FaceDescriber, mean_descriptor
from musetalk_agent.measure.lip_measures import aperture_of
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.renders.dub.footage import Footage, FootageFrame
from musetalk_agent.renders.film_parts import Colours, FilmClock

_DESCRIBE_EVERY = 12
_DESCRIPTORS_MOST = 24
_LONGEST_FRAME_S = 10
"""What a file says of its last frame counts up to this."""
LOOK_FILE, MESHES_FILE = "look.npz", "meshes.f32"

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
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
    def load(cls, folder: Path) -> Look:
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


_COLUMNS = ("aperture", "width", "turn", "nod", "evidence")
_ARRAYS = ("cuts", "frame", "number", *_COLUMNS, "described")


def _pair(value: Fraction) -> Ints:
    return np.array((value.numerator, value.denominator), np.int64)


def _fraction(pair: Ints) -> Fraction:
    return Fraction(int(pair[0]), int(pair[1]))


def look_at(
    footage: Footage, folder: Path, net: FaceNet, describer: FaceDescriber, progress: Callable[[int], object]
) -> Look:
    """Reads the footage through, and keeps in `folder` what it finds. `progress` is called with the frames done, and may raise.

    Raises ProblemError `video_unreadable`, `video_too_long`; OSError.
    """
    limit = footage.limits.video_seconds
    stamps: list[Fraction] = []
    first: FootageFrame | None = None
    last_duration = Fraction(0)
    with (folder / MESHES_FILE).open("wb") as meshes:
        watch = _Watch(net, describer, meshes)
        for frame in footage.frames():
            first = first or frame
            stamps.append(frame.stamp)
            last_duration = frame.duration
            if frame.stamp - first.stamp > limit:
                text = f"The video lasts longer than {limit:g} s, which DUB_SECONDS of the agent allows; cut it, or raise that."
                raise ProblemError(ErrorCode.VIDEO_TOO_LONG, text, field="video_url", limit=limit)
            watch.push(frame.bgr())
            progress(len(stamps))
        watch.finish()
    if first is None:
        raise ProblemError(ErrorCode.VIDEO_UNREADABLE, "The video has no frame in it.", field="video_url")
    found = Look(
        _clock(stamps, last_duration),
        stamps[0],
        first.size,
        first.aspect,
        first.colours,
        np.array(watch.cuts, np.int64),
        np.array(watch.frame, np.int64),
        np.array(watch.number, np.int64),
        **dict(zip(_COLUMNS, (np.array(column, np.float32) for column in watch.columns), strict=True)),
        described=watch.described(),
    )
    found.save(folder)
    return found


def _clock(stamps: Sequence[Fraction], last: Fraction) -> FilmClock:
    """The frames' times from 0 on, in the coarsest unit that holds them all."""
    unit = math.lcm(*(stamp.denominator for stamp in stamps))
    whole = [int((stamp - stamps[0]) * unit) for stamp in stamps]
    steps = np.diff(np.array(whole, np.int64))
    usual = Fraction(int(np.median(steps)), unit) if len(steps) else Fraction(1, 25)
    if not 0 < last <= _LONGEST_FRAME_S:
        last = usual
    unit_of_last = math.lcm(unit, last.denominator)
    ticks = [value * (unit_of_last // unit) for value in whole]
    end = ticks[-1] + int(last * unit_of_last)
    step = math.gcd(*ticks, end)
    return FilmClock(Fraction(step, unit_of_last), [tick // step for tick in ticks], end // step)


@dataclass
class _Watch:
    """Finds cuts and follows faces; a few frames wait until it is known whether they begin a shot."""

    net: FaceNet
    describer: FaceDescriber
    file: BinaryIO
    cuts: list[int] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    columns: tuple[list[float], ...] = field(default_factory=lambda: tuple([] for _ in range(5)))

    def __post_init__(self) -> None:
        self._finder, self._follower = CutFinder(), FaceFollower(self.net)
        self._waiting: deque[Pixels] = deque()
        self._done = 0
        self._seen: dict[int, int] = {}
        self._descriptors: dict[int, list[Descriptor]] = {}

    def push(self, bgr: Pixels) -> None:
        self._waiting.append(bgr)
        for cut in self._finder.push(thumbnail(bgr)):
            self._take(self._waiting.popleft(), cut)

    def finish(self) -> None:
        for cut in self._finder.flush():
            self._take(self._waiting.popleft(), cut)

    def described(self) -> Floats:
        if not self._descriptors:
            return np.zeros((0, 1), np.float32)
        return np.stack([mean_descriptor(self._descriptors[k]) for k in range(len(self._descriptors))])

    def _take(self, bgr: Pixels, cut: bool) -> None:
        if cut:
            self.cuts.append(self._done)
        for seen in self._follower.push(bgr, cut):
            self._note(bgr, seen)
        self._done += 1

    def _note(self, bgr: Pixels, seen: SeenFace) -> None:
        points, count = seen.face.points, self._seen.get(seen.number, 0)
        self._seen[seen.number] = count + 1
        known = self._descriptors.setdefault(seen.number, [])
        if count % _DESCRIBE_EVERY == 0 and len(known) < _DESCRIPTORS_MOST:
            known.append(self.describer.describe(bgr, points, cut_face(bgr, points)))
        evidence = math.nan
        if count % MOUTH_CHECK_EVERY == 0 and seen.face.width >= bars.FACE_LEAST_PX:
            evidence = self.net.mouth_evidence(np.ascontiguousarray(bgr[..., ::-1]), seen.face)
        turn, nod = (float(v) for v in head_angles(points[None])[0])
        self.frame.append(self._done)
        self.number.append(seen.number)
        values = (aperture_of(points), seen.face.width, turn, nod, evidence)
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)
        self.file.write(np.ascontiguousarray(points, np.float32).tobytes())
