"""Follows one face through a clip: where it is in every frame, smoothed over time, how its head is turned, and where its mouth is
covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import CERTAIN_LOGIT, Face, FaceNet, Points, crop_of, plausible
from musetalk_agent.avatars.shots import cut_between, find_cuts, longest_shot, thumbnail
from musetalk_agent.avatars.trust import trust_of
from musetalk_agent.errors import NoFaceInAvatar
from musetalk_agent.media_types import Pixels

Track = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OneEuroFilter:
    """Casiez, Roussel and Vogel, "1 € Filter", CHI 2012: a first-order low pass whose cutoff rises with speed, so that a still
    point does not tremble and a moving one is not held back. Values are in the caller's unit, time in seconds.

    Args:
        min_cutoff_hz: cutoff at rest; lower is steadier.
        beta: how much the cutoff rises with speed (Hz per unit per second).
        speed_cutoff_hz: cutoff of the low pass over the speed itself.
    """

    min_cutoff_hz: float = 1.0
    beta: float = 0.0
    speed_cutoff_hz: float = 1.0

    def forward(self, values: Track, rate_hz: float) -> Track:
        """Filters float32 `[n, …]` causally at `rate_hz` samples per second, every column by itself."""
        smooth = np.array(values, np.float32)
        speed = np.zeros_like(smooth[0]) if len(smooth) else smooth
        speed_gain = _gain(self.speed_cutoff_hz, rate_hz)
        for k in range(1, len(smooth)):
            speed = speed + speed_gain * ((values[k] - smooth[k - 1]) * np.float32(rate_hz) - speed)
            cutoff = self.min_cutoff_hz + self.beta * np.abs(speed)
            angle = (2 * math.pi / rate_hz) * cutoff
            smooth[k] = smooth[k - 1] + angle / (angle + 1) * (values[k] - smooth[k - 1])
        return smooth

    def zero_phase(self, values: Track, rate_hz: float) -> Track:
        """Mean of the filter run forwards and backwards: their lags cancel, so that nothing trails behind what moves."""
        ahead = self.forward(values, rate_hz)
        behind = self.forward(np.ascontiguousarray(values[::-1]), rate_hz)[::-1]
        return ((ahead + behind) / 2).astype(np.float32)


def _gain(cutoff_hz: float, rate_hz: float) -> np.float32:
    angle = 2 * math.pi * cutoff_hz / rate_hz
    return np.float32(angle / (angle + 1))


NOSE_TIP = 1
TEMPLES = (127, 234), (356, 454)
TURN, NOD = 0.63, 0.46
"""How far the tip of the nose moves against the temples, in their distance, per tangent of the angle: measured on eight faces
whose mesh was turned by up to 40° and nodded by up to 28°."""


def head_angles(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far the head is turned and nodded in each frame, from points `[n, 468, 2]`: float32 `[n, 2]`, radians.

    A head that is turned to the image's right, or looks down, has positive angles. The nod's zero differs from face to face by
    some 15°; differences within a face are right to about a tenth.
    """
    left, right = (points[:, list(ids)].mean(1) for ids in TEMPLES)
    along = right - left
    apart = np.maximum(np.linalg.norm(along, axis=1), 1.0)
    along = along / apart[:, None]
    down = np.stack([-along[:, 1], along[:, 0]], 1)
    tip = points[:, NOSE_TIP] - (left + right) / 2
    turn, nod = (np.sum(tip * axis, axis=1) / apart for axis in (along, down))
    return np.asarray(np.stack([np.arctan(turn / TURN), np.arctan(nod / NOD)], 1), np.float32)


def head_reach(points: NDArray[np.float32]) -> tuple[float, float]:
    """How far a clip's head turns from the camera, and how far it nods to either side of its middle: radians, ≥ 0.

    The 2 % of frames at each end do not count.
    """
    low, high = np.percentile(head_angles(points), (2, 98), axis=0)
    return float(max(abs(low[0]), abs(high[0]))), float(high[1] - low[1]) / 2


MOUTH_CHECK_EVERY = 4
"""Frames from one check of the mouth to the next: a check costs twice as much as the mesh itself."""
_BARE = 50.0
"""Below this evidence a mouth counts as covered, whatever else is seen. For what was measured see docs/reference/avatars.md."""
_SHARE = 0.6
"""The same, as a share of what the clip's own mouth usually gives: talkers kept 0.62 and more of it."""
_MOST = 120.0
"""Above this evidence no mouth is covered, however clear it usually is."""
_NEAR = np.radians(12.0)
"""Evidence is compared with that of frames whose head direction is within this (radians): at 40° a visible mouth gives 0.41 to 0.7
of what it gives from the front, and 0.67 and more of what others in its direction give."""
_ALONE, _BARE_ALONE = 6.0, 70.0
"""In a single image, which cannot be compared with others: the weight of the mouth's evidence without the eyes, and the bar for
both together. Of 55 bare mouths, plain, grey, dimmed and under sunglasses, the least gave 86 but for one (56), which the evidence
with the eyes alone took for covered as well."""


def covered_frames(
    total: int, looked: dict[int, float], angles: NDArray[np.float32], alone: float | None = None
) -> NDArray[np.bool_]:
    """Which frames of a clip of `total` have their mouths covered: bool `[total]`.

    Args:
        looked: evidence by frame, of the frames that were checked.
        angles: the head's direction in each frame, float32 `[total, 2]` in radians, from `head_angles`.
        alone: `FaceNet.mouth_without_eyes` of the first frame, which decides where there is no other.

    Where several frames were checked, a single one decides nothing: two neighbours must agree. Frames between a covered and a
    visible one count as covered.
    """
    out = np.zeros(total, bool)
    if not looked:
        return out
    frames = np.array(sorted(looked))
    evidence = np.array([looked[int(frame)] for frame in frames])
    if total == 1 and alone is not None:
        return np.array([evidence[0] + _ALONE * alone < _BARE_ALONE])
    low = evidence < np.clip(_SHARE * _usual(evidence, angles[frames]), _BARE, _MOST)
    if len(low) > 1:
        beside = np.concatenate([[False], low, [False]])
        low &= beside[:-2] | beside[2:]
    after = np.clip(np.searchsorted(frames, np.arange(total)), 0, len(frames) - 1)
    before = np.clip(np.searchsorted(frames, np.arange(total), side="right") - 1, 0, len(frames) - 1)
    covered: NDArray[np.bool_] = low[after] | low[before]
    return covered


def _usual(evidence: NDArray[np.float64], angles: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each check the median evidence of the checks with the head in about the same direction, float64 `[n]`."""
    away = np.linalg.norm(angles[:, None] - angles[None], axis=2)
    return np.array([np.median(evidence[near]) for near in away <= _NEAR])


_COUNT_EVERY = 12
"""Every how many frames all faces are counted, and a small or lying one is searched for while none is seen: both cost time."""
_SECOND_FACE = 0.35
"""A face is another one in the image when it is at least this much of the followed one's size."""
_HELD = 4.0
"""The mesh's logit down to which a face that is followed stays one; a new one needs `face.FACE_LOGIT`."""
_BETTER = 10.0
"""A newly detected face replaces a followed one of a doubtful score when its logit is higher by this."""
_FADED = 0.7
"""Below this share of the usual contrast, in the face and in the whole image, a face counts as faded out: the mesh still sees
it, but lips from another frame show on it. A head that turns changes the face's contrast alone."""
_EASE = 4
"""Frames over which the drawn mouth comes and goes beside frames on which none is drawn."""
_SMOOTHING = OneEuroFilter(min_cutoff_hz=1.5, beta=30.0, speed_cutoff_hz=6.0)
"""For points in units of the face's width: steadies a resting face to the mesh's noise floor, passes a closing mouth."""
_RESIZED = 1.6
"""A face does not grow or shrink by more than this from one frame to the next, or within half a second out of sight."""
_LISTED = 12


@dataclass(frozen=True, slots=True)
class FrameObservation:
    """What one frame shows: its followed face, if any, that face's contrast in levels, and the frame's thumbnail.

    `mouth` is the evidence of a visible mouth in the frames where it was measured, `alone` that without the eyes, in the first one.
    """

    face: Face | None
    contrast: float
    picture: Pixels
    mouth: float | None = None
    alone: float | None = None


@dataclass
class FaceTracker:
    """Takes a clip's frames one after the other and follows its largest face."""

    net: FaceNet
    observations: list[FrameObservation] = field(default_factory=list)
    several: int = 0
    counted: int = 0
    apart: dict[int, float] = field(default_factory=dict)
    _last: Face | None = None
    _place: Face | None = None
    _seen: Pixels | None = None
    _unlooked: int = 0

    @property
    def meshes(self) -> list[Points | None]:
        """The mesh of each frame so far, None where no face is seen."""
        return [None if frame.face is None else frame.face.points for frame in self.observations]

    def push(self, bgr: Pixels) -> None:
        """Takes the next frame, uint8 BGR `[h, w, 3]`. The same array again means the same image."""
        if bgr is self._seen:
            self.observations.append(self.observations[-1])
            return
        self._seen = bgr
        rgb = cast("Pixels", cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        picture = thumbnail(bgr)
        if self.observations and cut_between(self.observations[-1].picture, picture):
            self._last = self._place = None
        face = self.net.mesh(rgb, crop_of(self._last.points)) if self._last is not None else None
        if face is not None and (face.score < _HELD or not plausible(face, rgb)):
            face = None
        if len(self.observations) % _COUNT_EVERY == 0:
            face = self._count(rgb, face)
        elif face is None:
            face = self._nearest(self.net.faces(rgb, thorough=False))
        self._last = face
        self._place = face or self._place
        if face is None:
            self.observations.append(FrameObservation(None, 0.0, picture))
            return
        mouth = self.net.mouth_evidence(rgb, face) if self._unlooked % MOUTH_CHECK_EVERY == 0 else None
        alone = self.net.mouth_without_eyes(rgb, face) if self._unlooked == 0 else None
        self._unlooked += 1
        self.observations.append(FrameObservation(face, _contrast(rgb, face.points), picture, mouth, alone))

    def _count(self, rgb: Pixels, followed: Face | None) -> Face | None:
        """Counts the faces; returns the followed one, or what is found in its place where it is lost or doubtful."""
        faces = self.net.faces(rgb)
        self.counted += 1
        if followed is not None:
            others = [face for face in faces if face.width >= _SECOND_FACE * followed.width]
            self.several += len(others) > 1
            if others:
                new = min(others, key=lambda face: _distance(face, followed))
                away = float(np.linalg.norm(new.points - followed.points, axis=1).mean())
                self.apart[len(self.observations)] = away / max(1.0, followed.width)
            if followed.score >= CERTAIN_LOGIT or not faces or faces[0].score < followed.score + _BETTER:
                return followed
        else:
            self.several += len(faces) > 1 and faces[1].width >= _SECOND_FACE * faces[0].width
        return self._nearest(faces)

    def _nearest(self, faces: list[Face]) -> Face | None:
        """The face at the place where the followed one was seen last, else the widest."""
        if self._place is None or not faces:
            return faces[0] if faces else None
        place = self._place
        near = [face for face in faces if _distance(face, place) < place.width]
        return min(near, key=lambda face: _distance(face, place)) if near else faces[0]


@dataclass(frozen=True)
class FaceTrack:
    """The followed face, in one shot of the clip.

    Args:
        points: float32 `[n, 468, 2]` in the clip's pixels, smoothed.
        missing: frames of the shot without a face, whose points are their neighbours'.
        covered: frames whose mouth is covered.
        several: share of looked-at frames that show more than one face.
        start: the clip's frame at which the shot begins.
        cuts: frames of the clip at which another shot begins.
        total: frames of the clip.
        trust: float32 `[n]`, how far the mouth may move on each frame (see `trust`); None for all of its way.
    """

    points: NDArray[np.float32]
    missing: list[int]
    several: float
    covered: list[int] = field(default_factory=list)
    start: int = 0
    cuts: tuple[int, ...] = ()
    total: int = 0
    trust: NDArray[np.float32] | None = None

    @property
    def end(self) -> int:
        """The clip's frame after the shot's last one."""
        return self.start + len(self.points)

    def mouths(self) -> NDArray[np.float32]:
        """How far the mouth may be drawn on each frame, float32 `[n]`, 0 … 1 (`Bundle.mouths`)."""
        bare = np.zeros(len(self.points), bool)
        bare[self.missing + self.covered] = True
        return eased_mouths(bare)


def finish_track(tracker: FaceTracker, fps: int) -> FaceTrack:
    """Takes the longest shot, fills the gaps and smooths over time.

    Raises:
        NoFaceInAvatar: fewer than half of the frames show a face.
    """
    observations = tracker.observations
    total = len(observations)
    frames = np.flatnonzero(_shows_face(observations)).astype(np.int64)
    at = sorted({*find_cuts([frame.picture for frame in observations], frames), *_jumps(observations, frames)})
    start, end = longest_shot(total, frames, at)
    seen = frames[(frames >= start) & (frames < end)]
    missing = sorted(set(range(start, end)) - set(seen.tolist()))
    if len(seen) < (end - start) / 2 or not len(seen):
        raise NoFaceInAvatar(
            f"{len(missing)} of {end - start} frames show no face (frames {_listed(missing)}); use a clip in which one face is "
            "seen from the front, at least 96 pixels wide.",
            value=len(missing),
        )
    known = np.stack([face.points for k in seen if (face := observations[k].face)])
    raw = filled(known, seen - start, end - start)
    smooth = smoothed(raw, float(fps))
    several = tracker.several / max(1, tracker.counted)
    shot = observations[start:end]
    looked = {
        k: frame.mouth
        for k, frame in enumerate(shot)
        if frame.mouth is not None and (k == 0 or frame is not shot[k - 1])
    }
    covered = covered_frames(end - start, looked, head_angles(smooth), shot[0].alone)
    covered[[k - start for k in missing]] = False
    scores = np.array([np.nan if frame.face is None else frame.face.score for frame in shot], np.float32)
    apart = {k - start: away for k, away in tracker.apart.items() if start <= k < end}
    return FaceTrack(
        smooth,
        [k - start for k in missing],
        several,
        np.flatnonzero(covered).tolist(),
        start=start,
        cuts=tuple(at),
        total=total,
        trust=trust_of(scores, raw, head_angles(smooth)[:, 0], apart),
    )


def eased_mouths(bare: NDArray[np.bool_]) -> NDArray[np.float32]:
    """0 on the frames that are `bare`, bool `[n]`, rising to 1 over `_EASE` frames on both sides: float32 `[n]`."""
    away = np.full(len(bare), float(_EASE), np.float32)
    for k in np.flatnonzero(bare):
        reach = slice(max(0, k - _EASE), k + _EASE + 1)
        away[reach] = np.minimum(away[reach], np.abs(np.arange(len(bare))[reach] - k))
    return np.asarray(away / np.float32(_EASE), np.float32)


def smoothed(raw: NDArray[np.float32], fps: float) -> NDArray[np.float32]:
    """Meshes of frames that follow each other, float32 `[n, 468, 2]` in pixels, smoothed over time."""
    width = float(np.median(raw[:, :, 0].max(1) - raw[:, :, 0].min(1)))
    return _SMOOTHING.zero_phase(raw / np.float32(width), fps) * np.float32(width)


def filled(known: NDArray[np.float32], seen: NDArray[np.int64], total: int) -> NDArray[np.float32]:
    """Points of every frame: between two frames that show the face they go along the straight line."""
    frames = np.arange(total)
    after = np.clip(np.searchsorted(seen, frames), 0, len(seen) - 1)
    before = np.clip(np.searchsorted(seen, frames, side="right") - 1, 0, len(seen) - 1)
    gap = seen[after] - seen[before]
    share = np.where(gap > 0, (frames - seen[before]) / np.maximum(gap, 1), 0.0).astype(np.float32)[:, None, None]
    filled: NDArray[np.float32] = known[before] * (1 - share) + known[after] * share
    return filled


def _shows_face(observations: list[FrameObservation]) -> NDArray[np.bool_]:
    """Which frames show a face that is not faded out: bool `[n]`."""
    seen = np.array([frame.face is not None for frame in observations], bool)
    contrasts = np.array([(frame.contrast, float(frame.picture.std())) for frame in observations]).reshape(-1, 2)
    usual = np.median(contrasts[seen], axis=0) if seen.any() else np.zeros(2)
    clear: NDArray[np.bool_] = seen & (contrasts >= _FADED * usual).any(1)
    return clear


def _jumps(observations: list[FrameObservation], frames: NDArray[np.int64]) -> list[int]:
    """Frames at which another face is followed than before: one that is a face's width away at once, or of quite another size.

    After a longer stretch without a face it may be the same that has moved.
    """
    found = []
    for before, after in pairwise(frames.tolist()):
        one, other = observations[before].face, observations[after].face
        if one is None or other is None or one is other or after - before > _COUNT_EVERY:
            continue
        size = max(one.width, other.width) / max(1.0, min(one.width, other.width))
        if _distance(one, other) > one.width or size > _RESIZED:
            found.append(after)
    return found


def _distance(one: Face, other: Face) -> float:
    return float(np.linalg.norm(one.points.mean(0) - other.points.mean(0)))


def _contrast(rgb: Pixels, points: Points) -> float:
    """Standard deviation of the green in the face's box, in levels."""
    x0, y0 = np.maximum(points.min(0), 0).astype(int)
    x1, y1 = points.max(0).astype(int) + 1
    step = max(1, (x1 - x0) // 64)
    return float(rgb[y0:y1:step, x0:x1:step, 1].std())


def _listed(frames: list[int]) -> str:
    """`0–3, 7, 9` for frame numbers, at most `_LISTED` ranges."""
    ranges: list[list[int]] = []
    for frame in frames:
        if ranges and ranges[-1][1] == frame - 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    parts = [str(a) if a == b else f"{a}–{b}" for a, b in ranges[:_LISTED]]
    return ", ".join(parts) + (" …" if len(ranges) > _LISTED else "")
