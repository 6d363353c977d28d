"""One pass over the footage: cuts are found and faces followed. No frame is kept.

What was seen of half a minute or more, up to a cut, is put aside in files of its own, `seen/<first frame>.npz` and `.f32`. A worker
that goes on where another one died begins after the last of them: nothing is carried over a cut, so it sees the same.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.face_picture import cut_face
from musetalk_agent.avatars.face_track import MOUTH_CHECK_EVERY, head_angles
from musetalk_agent.avatars.identity import Descriptor, FaceDescriber, mean_descriptor
from musetalk_agent.avatars.shots import CutFinder, thumbnail
from musetalk_agent.judge import bars
from musetalk_agent.judge.following import FaceFollower, SeenFace
from musetalk_agent.measure.lip_measures import aperture_of
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.renders.dub.footage import Footage, FootageFrame
from musetalk_agent.renders.dub.footage_scan import COLUMNS, MESHES_FILE, FootageScan
from musetalk_agent.renders.film_parts import FilmClock

PUT_ASIDE_S = 30
_DESCRIBE_EVERY = 12
_DESCRIPTORS_MOST = 24
_LONGEST_FRAME_S = 10
"""What a file says of its last frame counts up to this."""


def look_at(
    footage: Footage, aside: Path, made: Path, net: FaceNet, describer: FaceDescriber, progress: Callable[[int], object]
) -> FootageScan:
    """Reads the footage through, and writes `look.npz` and `meshes.f32` into `made`. `progress` is called with the frames done, and
    may raise.

    Args:
        aside: a folder for what is done of it, which stays where this raises.

    Raises ProblemError `video_unreadable`, `video_too_long`; OSError.
    """
    aside.mkdir(mode=0o700, exist_ok=True)
    first = next(footage.frames(), None)
    if first is None:
        raise ProblemError(ErrorCode.VIDEO_UNREADABLE, "The video has no frame in it.", field="video_url")
    stamps = [stamp for part in _parts(aside) for stamp in part.stamps]
    going_on = _next_stamp(aside)
    if not stamps or going_on is not None:
        watch = _Watch(net, describer, aside, len(stamps))
        with closing(watch):
            for frame in footage.frames(len(stamps), [*stamps, going_on] if going_on is not None else ()):
                _check_length(frame.stamp - first.stamp, footage.limits.video_seconds)
                watch.push(frame)
                progress(watch.pushed)
            watch.finish()
    return _whole(aside, made, first)


def _check_length(seconds: Fraction, limit: float) -> None:
    if seconds > limit:
        text = f"The video lasts longer than {limit:g} s, which DUB_SECONDS of the agent allows; cut it, or raise that."
        raise ProblemError(ErrorCode.VIDEO_TOO_LONG, text, field="video_url", limit=limit)


@dataclass(frozen=True)
class _Part:
    """What was put aside: frames from a cut to another, or to the film's end. Faces are numbered from 0 in each."""

    stamps: list[Fraction]
    following: Fraction | None
    last_duration: Fraction
    arrays: dict[str, NDArray[Any]]


def _parts(aside: Path) -> Iterator[_Part]:
    """What was put aside, in order, as far as it goes without a gap."""
    at = 0
    while (path := aside / f"{at:09d}.npz").exists():
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored}
        stamps = [Fraction(int(one), int(other)) for one, other in arrays.pop("stamps")]
        following, last = (arrays.pop(name) for name in ("following", "last_duration"))
        yield _Part(
            stamps,
            Fraction(int(following[0]), int(following[1])) if following[1] else None,
            Fraction(int(last[0]), int(last[1])),
            arrays,
        )
        at += len(stamps)


def _next_stamp(aside: Path) -> Fraction | None:
    """The time of the first frame that was not put aside; None where nothing was, or all."""
    following = None
    for part in _parts(aside):
        following = part.following
    return following


def _whole(aside: Path, made: Path, first: FootageFrame) -> FootageScan:
    """Puts the parts together."""
    stamps: list[Fraction] = []
    arrays: dict[str, list[NDArray[Any]]] = {}
    numbers, last = 0, Fraction(0)
    with (made / MESHES_FILE).open("wb") as meshes:
        for part in _parts(aside):
            with (aside / f"{len(stamps):09d}.f32").open("rb") as stored:
                shutil.copyfileobj(stored, meshes)
            part.arrays["number"] += numbers
            numbers += len(part.arrays["described"])
            stamps += part.stamps
            last = part.last_duration
            for name, values in part.arrays.items():
                if len(values):
                    arrays.setdefault(name, []).append(values)
    joined = {name: np.concatenate(found) for name, found in arrays.items()}
    none: dict[str, Any] = {name: np.zeros(0, np.float32) for name in COLUMNS}
    none |= {name: np.zeros(0, np.int64) for name in ("frame", "number", "cuts")}
    none |= {"described": np.zeros((0, 1), np.float32)}
    look = FootageScan(
        clock=film_clock(stamps, last),
        start=stamps[0],
        size=first.size,
        aspect=first.aspect,
        colours=first.colours,
        **(none | joined),
    )
    look.save(made)
    return look


def film_clock(stamps: Sequence[Fraction], last: Fraction) -> FilmClock:
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


class _Watch:
    """Finds cuts and follows faces from frame `begin` on, where a shot begins; a few frames wait until it is known whether they
    begin another one.
    """

    def __init__(self, net: FaceNet, describer: FaceDescriber, aside: Path, begin: int) -> None:
        self._net, self._describer, self._aside = net, describer, aside
        self._finder = CutFinder()
        self._waiting: deque[tuple[Pixels, Fraction, Fraction]] = deque()
        self._done = self.pushed = begin
        self._begin_part()

    def push(self, frame: FootageFrame) -> None:
        """Takes the next frame. Raises OSError, AvatarUndecodable."""
        bgr = frame.bgr()
        self._waiting.append((bgr, frame.stamp, frame.duration))
        self.pushed += 1
        for cut in self._finder.push(thumbnail(bgr)):
            self._take(cut)

    def finish(self) -> None:
        """Ends the film."""
        for cut in self._finder.flush():
            self._take(cut)
        self._put_aside(None)

    def close(self) -> None:
        """Drops what was not put aside. Safe to call twice."""
        self._meshes.close()
        self._spool.unlink(missing_ok=True)

    def _begin_part(self) -> None:
        self._begin = self._done
        self._spool = self._aside / f".{self._begin:09d}.{secrets.token_hex(4)}.f32"
        self._meshes = self._spool.open("wb")
        self._follower = FaceFollower(self._net)
        self._stamps: list[Fraction] = []
        self._last_duration = Fraction(0)
        self._cuts: list[int] = []
        self._rows: list[tuple[float, ...]] = []
        self._seen: dict[int, int] = {}
        self._descriptors: dict[int, list[Descriptor]] = {}

    def _take(self, cut: bool) -> None:
        bgr, stamp, duration = self._waiting.popleft()
        if cut and self._stamps and stamp - self._stamps[0] >= PUT_ASIDE_S:
            self._put_aside(stamp)
            self._begin_part()
        if cut:
            self._cuts.append(self._done)
        for seen in self._follower.push(bgr, cut):
            self._note(bgr, seen)
        self._stamps.append(stamp)
        self._last_duration = duration
        self._done += 1

    def _note(self, bgr: Pixels, seen: SeenFace) -> None:
        points, count = seen.face.points, self._seen.get(seen.number, 0)
        self._seen[seen.number] = count + 1
        known = self._descriptors.setdefault(seen.number, [])
        if count % _DESCRIBE_EVERY == 0 and len(known) < _DESCRIPTORS_MOST:
            known.append(self._describer.describe(bgr, points, cut_face(bgr, points)))
        evidence = math.nan
        if count % MOUTH_CHECK_EVERY == 0 and seen.face.width >= bars.FACE_LEAST_PX:
            evidence = self._net.mouth_evidence(np.ascontiguousarray(bgr[..., ::-1]), seen.face)
        turn, nod = (float(v) for v in head_angles(points[None])[0])
        self._rows.append((self._done, seen.number, aperture_of(points), seen.face.width, turn, nod, evidence))
        self._meshes.write(np.ascontiguousarray(points, np.float32).tobytes())

    def _put_aside(self, following: Fraction | None) -> None:
        rows = np.array(self._rows, np.float64).reshape(-1, 2 + len(COLUMNS))
        described = [mean_descriptor(self._descriptors[k]) for k in range(len(self._descriptors))]
        arrays: dict[str, NDArray[Any]] = {
            "stamps": np.array([(each.numerator, each.denominator) for each in self._stamps], np.int64),
            "following": np.array((0, 0) if following is None else (following.numerator, following.denominator)),
            "last_duration": np.array((self._last_duration.numerator, self._last_duration.denominator)),
            "cuts": np.array(self._cuts, np.int64),
            "frame": rows[:, 0].astype(np.int64),
            "number": rows[:, 1].astype(np.int64),
            "described": np.stack(described) if described else np.zeros((0, 1), np.float32),
            **{name: rows[:, 2 + k].astype(np.float32) for k, name in enumerate(COLUMNS)},
        }
        self._meshes.close()
        self._spool.replace(self._aside / f"{self._begin:09d}.f32")
        made = self._aside / f".{self._begin:09d}.{secrets.token_hex(4)}"
        try:
            with made.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
            made.replace(self._aside / f"{self._begin:09d}.npz")
        finally:
            made.unlink(missing_ok=True)
