"""Moves the head of a picture by bending the picture: a field for each way it can move, and one resampling of the planes.

Angles are small, so a pose's displacement is the sum of its parts. By how much a turn moves a pixel depends on its depth, which the
mesh has: the tip of the nose goes furthest, the outline hardly moves, so there is nothing to tear. Around the head the motion fades
out; what is far from it, and the picture's border there, stands still.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.arrays import load_array, map_array
from musetalk_agent.avatars.bundle import RELIEF_FILE, Bundle
from musetalk_agent.avatars.face import Points
from musetalk_agent.compose.bent_planes import Field, FieldGrid, KeptPicture, bend, bend_plane, planes_of
from musetalk_agent.compose.head_motion import AS_IT_IS, Pose
from musetalk_agent.media_types import Box, Pixels, VideoFrame
from musetalk_agent.protocol.avatar_settings import Mood

_TEMPLES, _TOP, _CHIN = (234, 454), 10, 152
_PITCH = 0.73
"""How far a nod moves the tip of the nose against a turn by the same angle: 0.46 / 0.63 of `face_track.NOD` and `TURN`."""
_HAIR = 0.35
"""The head goes on above its mesh by this share of the mesh's height."""
_BEHIND = 0.5
"""Face widths from the mesh's edge outwards in which depth falls to nothing."""
_FADE = 0.9
"""Face widths around the head in which every motion fades out."""
_NECK = 0.35
"""The head tilts around a point this many face widths above the chin: the joint that carries it is between the ears' lobes."""
_AXIS = 0.25
"""The head turns and nods around an axis this many face widths in front of the temples: so far it shifts the eyes of talkers."""
_SMOOTH = 0.06
"""Sigma, in face widths, of the smoothing of the mesh's depth."""
_SEEN = 0.5
"""Points of the mesh within its smoothing, from which on a depth is the mesh's own."""
_NODES = 28
"""Nodes of the field in a face's width: an iris has three."""
_SHARP = 3
"""Pixels around a part that was changed, into which enlarging carries it, and one for rounding."""
_EYES = ((33, 133, 159, 145), (362, 263, 386, 374))
_BROWS = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107), (285, 295, 282, 283, 276, 300, 293, 334, 296, 336)
_GAZE_SIZE = (0.062, 0.045)
_BROW_SIZE = (0.06, 0.05)
_BROW_RISE = 0.012
"""Reach (sigmas, face widths) of what moves with an iris and with a brow, and how far a raised brow rises."""

_MOODS: dict[Mood, tuple[tuple[tuple[int, int], float, float, float], ...]] = {
    "warm": (((61, 291), 0.11, 0.010, 0.020), ((205, 425), 0.12, 0.0, 0.010), ((105, 334), 0.09, 0.0, 0.010)),
    "serious": (((61, 291), 0.10, -0.003, -0.010), ((55, 285), 0.07, -0.007, -0.013), ((105, 334), 0.08, 0.0, -0.008)),
}
"""Points left and right, sigma, and how far they go outwards and up, in face widths: corners of the mouth, cheeks, brows."""


@lru_cache(maxsize=16)
def face_warp(folder: Path, width: int, height: int) -> FaceWarp:
    """What moves the head of the still picture in a bundle's folder; made once (0.1 s of a core for a face of 200 px, 1 MB).

    Raises OSError and ValueError when the folder has gone.
    """
    landmarks = map_array(folder / "landmarks.npy")
    relief = load_array(folder / RELIEF_FILE)
    return FaceWarp(np.array(landmarks[0]), relief, (width, height), eyes=len(landmarks) > 1)


def warp_of(bundle: Bundle) -> FaceWarp | None:
    """What moves the head of a bundle of a still picture; None for a clip. Computes the first time: call it in a thread."""
    return None if bundle.relief is None else face_warp(bundle.path, bundle.width, bundle.height)


class FaceWarp:
    """Bends frames of one still picture. Any thread may call it.

    Args:
        points: the face's mesh, float32 `[468, 2]` in pixels.
        relief: how much nearer to the viewer than the temples each point is, float32 `[468]` in pixels.
        size: width and height of the frames, both even.
        eyes: whether its eyes are seen, so that they can look elsewhere.
    """

    def __init__(
        self, points: Points, relief: NDArray[np.float32], size: tuple[int, int], *, eyes: bool = True
    ) -> None:
        self._size = size
        self._head = _Head(points, relief, eyes=eyes)
        step = max(2, round(self._head.width / _NODES / 2) * 2)
        low, high = self._head.reach
        left, top = max(0, int(low[0]) // 8 * 8), max(0, int(low[1]) // 2 * 2)
        right, bottom = (min(side, int(at + 2) // 2 * 2) for at, side in zip(high, size, strict=True))
        self._grid = FieldGrid(Box(left, top, max(left, right), max(top, bottom)), step)
        nodes = self._grid.nodes
        # planes of x and of y, which OpenCV enlarges and takes as maps in two thirds of the time that pairs take
        self._nodes = _planes(nodes)
        self._fields = _planes(self._head.fields(nodes))
        self._moods = {mood: _planes(self._head.mood(nodes, mood)) for mood in _MOODS}
        self._mesh = points, self._head.fields(points)

    def keep(self, planes: Pixels, alpha: Pixels | None = None) -> KeptPicture:
        """What `moved` needs of a picture to move it in half of the time; made once (3 ms of a core and 5 MB for 512×512, 9 with
        alpha)."""
        return KeptPicture(planes, self._size, self._grid, alpha)

    def moved(
        self,
        frame: VideoFrame,
        pose: Pose,
        mood: Mood = "neutral",
        kept: KeptPicture | None = None,
        changed: Sequence[Box] = (),
    ) -> VideoFrame:
        """The frame with its head in `pose` and its face in `mood`, in new memory; the frame itself for the picture as it is.

        `kept`: of the picture that the frame was made from, where there is one, with the frame's alpha; `changed`: the parts in
        which the frame's planes differ from that.
        """
        set_face, box = self._moods.get(mood), self._grid.box
        if (pose == AS_IT_IS and set_face is None) or box.width <= 0 or box.height <= 0:
            return frame
        goes = _sum(self._fields, pose)
        if set_face is not None:
            goes = goes + set_face
        source, made = self._nodes - goes, np.array(frame.i420).reshape(-1)
        before, after = planes_of(frame.i420, self._size), planes_of(made, self._size)
        alpha = None if frame.alpha is None else np.array(frame.alpha)
        reach = math.ceil(float(np.abs(goes).max()))
        left_over, parts = box, [box]
        if kept is not None:
            kept.bend(source, after, alpha)
            left_over = Box(kept.box.x1, box.y0, box.x1, box.y1)
            far = reach + _SHARP  # what was changed may be seen that far from its place
            parts = [Box(one.x0 - far, one.y0 - far, one.x1 + far, one.y1 + far) for one in changed]
            parts = [left_over, *(_common(part.even(*self._size), box) for part in parts)]
        for part in parts:
            if part.width > 0 and part.height > 0:
                bend(self._grid, source, before, after, part, reach)
        if alpha is not None and left_over.width:
            bend_plane(self._grid, source, np.asarray(frame.alpha), alpha, left_over, reach)
        return replace(frame, i420=made, alpha=alpha)

    def mesh(self, pose: Pose) -> Points:
        """The face's mesh in `pose`, float32 `[468, 2]` in pixels."""
        points, fields = self._mesh
        return np.asarray(points + _sum(fields, pose), np.float32)


def _common(one: Box, other: Box) -> Box:
    """What lies in both; no wider or higher than 0 where nothing does."""
    return Box(max(one.x0, other.x0), max(one.y0, other.y0), min(one.x1, other.x1), min(one.y1, other.y1))


def _planes(pairs: Field) -> Field:
    """`[…, rows, columns, 2]` as `[…, 2, rows, columns]`."""
    return np.ascontiguousarray(np.moveaxis(pairs, -1, -3))


def _sum(fields: Field, pose: Pose) -> Field:
    """The displacement of a pose, float32 of one dimension less, from a field for each of its parts."""
    flat = np.array(pose, np.float32) @ fields.reshape(len(fields), -1)
    return np.asarray(flat.reshape(fields.shape[1:]), np.float32)


class _Head:
    """The displacement of any point of the picture, in pixels, for one unit of each part of a pose."""

    def __init__(self, points: Points, relief: NDArray[np.float32], *, eyes: bool) -> None:
        self._points, self._eyes = points, eyes
        along = points[_TEMPLES[1]] - points[_TEMPLES[0]]
        self.width = max(float(np.linalg.norm(along)), float(np.ptp(points[:, 0])) / 2, 8.0)
        self._relief = relief - np.float32(_AXIS * self.width)
        along = along / max(float(np.linalg.norm(along)), 1e-6)
        self._along = along.astype(np.float32)
        self._down = np.array([-along[1], along[0]], np.float32)
        hair = points + _HAIR * (points[_TOP] - points[_CHIN])
        self._face = _hull(points)
        self._outline = _hull(np.concatenate([points, hair]))
        self._neck = points[_CHIN] - np.float32(_NECK * self.width) * self._down

    @property
    def reach(self) -> tuple[Points, Points]:
        """Corners of the part of the picture that moves."""
        fade = np.float32(_FADE * self.width)
        return self._outline.min(0) - fade, self._outline.max(0) + fade

    def fields(self, at: Field) -> Field:
        """For points float32 `[…, 2]`: float32 `[9, …, 2]`, in the order of `Pose`."""
        shape, flat = at.shape, np.ascontiguousarray(at.reshape(-1, 2))
        width = np.float32(self.width)
        moves = _fall(_outside(self._outline, flat), _FADE * self.width)
        depth = _fall(_outside(self._face, flat), _BEHIND * self.width)
        turns = depth > 0
        depth[turns] *= self._depth(flat[turns])
        middle = self._points.mean(0)
        right, down = self._along, self._down
        from_neck, from_middle = flat - self._neck, flat - middle
        parts = [
            depth[:, None] * right,
            np.float32(_PITCH) * depth[:, None] * down,
            moves[:, None] * np.stack([-from_neck[:, 1], from_neck[:, 0]], 1),
            (moves * width)[:, None] * right,
            (moves * width)[:, None] * down,
            moves[:, None] * from_middle,
            (self._iris(flat) * width)[:, None] * right,
            (self._iris(flat) * width)[:, None] * down,
            (-np.float32(_BROW_RISE) * width * self._brow(flat))[:, None] * down,
        ]
        return np.stack(parts).astype(np.float32).reshape(len(parts), *shape)

    def mood(self, at: Field, mood: Mood) -> Field:
        """The displacement of a mood, float32 `[…, 2]` in pixels, of points float32 `[…, 2]`."""
        flat = np.ascontiguousarray(at.reshape(-1, 2))
        moved = np.zeros_like(flat)
        for points, size, out, up in _MOODS[mood]:
            for side, point in zip((-1, 1), points, strict=True):
                near = self._near(flat, self._points[[point]], (size, size))
                moved += (
                    near * np.float32(self.width) * (np.float32(side * out) * self._along - np.float32(up) * self._down)
                )
        return moved.reshape(at.shape)

    def _depth(self, at: Field) -> NDArray[np.float32]:
        """That of the mesh, smoothed; beyond it that of the nearest point of its edge."""
        near = self._near(at, self._points, (_SMOOTH, _SMOOTH))
        total = near.sum(1)
        edge = np.unique(cv2.convexHull(np.ascontiguousarray(self._points, np.float32), returnPoints=False))
        nearest = edge[self._near(at, self._points[edge], (1.0, 1.0)).argmax(1)]
        share = np.minimum(total / np.float32(_SEEN), 1)
        seen = near @ self._relief / np.maximum(total, np.float32(1e-6))
        return np.asarray(share * seen + (1 - share) * self._relief[nearest], np.float32)

    def _iris(self, at: Field) -> NDArray[np.float32]:
        if not self._eyes:
            return np.zeros(len(at), np.float32)
        middles = np.stack([self._points[list(eye)].mean(0) for eye in _EYES])
        return np.asarray(self._near(at, middles, _GAZE_SIZE).max(1), np.float32)

    def _brow(self, at: Field) -> NDArray[np.float32]:
        points = np.concatenate([self._points[list(brow)] for brow in _BROWS])
        return np.asarray(self._near(at, points, _BROW_SIZE).max(1), np.float32)

    def _near(self, at: Field, points: Points, sigmas: tuple[float, float]) -> NDArray[np.float32]:
        """Gaussians around points, float32 `[n, points]`, wide along and across the face."""
        axes = np.stack([self._along / np.float32(sigmas[0]), self._down / np.float32(sigmas[1])], 1)
        scaled = axes / np.float32(self.width)
        one, other = (at - points[0]) @ scaled, (points - points[0]) @ scaled
        apart = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * (one @ other.T)
        return np.asarray(np.exp(np.float32(-0.5) * np.maximum(apart, 0)), np.float32)


def _hull(points: Points) -> Points:
    """Corners of the convex outline of points, float32 `[n, 2]`."""
    return np.asarray(cv2.convexHull(np.ascontiguousarray(points, np.float32)), np.float32).reshape(-1, 2)


def _outside(corners: Points, at: Field) -> NDArray[np.float32]:
    """How far points are outside of a convex outline, pixels ≥ 0."""
    edges = np.roll(corners, -1, 0) - corners
    from_corner = at[:, None] - corners[None]
    lengths = np.maximum((edges**2).sum(1), 1e-6)
    along = np.clip((from_corner * edges).sum(2) / lengths, 0, 1)
    away = np.sqrt(((from_corner - along[:, :, None] * edges) ** 2).sum(2)).min(1)
    cross = edges[:, 0] * from_corner[:, :, 1] - edges[:, 1] * from_corner[:, :, 0]
    inside = (cross >= 0).all(1) | (cross <= 0).all(1)
    return np.where(inside, 0, away).astype(np.float32)


def _fall(distance: NDArray[np.float32], reach: float) -> NDArray[np.float32]:
    """1 at 0, falling smoothly to 0 at `reach`."""
    share = np.minimum(distance / np.float32(reach), 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * share), np.float32)
