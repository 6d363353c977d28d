"""Follows every face of a film, frame by frame, through its shots. Nothing of a frame is kept but a thumbnail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from musetalk_agent.avatars.face import Face, FaceNet, crop_of, plausible
from musetalk_agent.avatars.shots import PLAIN, cut_between, thumbnail
from musetalk_agent.media_types import Pixels

_LOOK_EVERY = 12
"""Frames from one search for new faces to the next (half a second at 25 fps), as in `avatars.face_track`."""
_HELD = 4.0
"""The mesh's logit down to which a face that is followed stays one, as in `avatars.face_track`."""
_AWAY_FRAMES = 50
"""A face that comes back at its place within so many frames of the same shot is the same one (two seconds at 25 fps)."""
_FACES_MOST = 8
"""Faces that are followed at once; further ones are left alone."""


@dataclass(frozen=True, slots=True)
class SeenFace:
    """A face of one frame: its number in the film, from 0, and its mesh."""

    number: int
    face: Face


@dataclass
class _Lost:
    number: int
    face: Face
    since: int


class FaceFollower:
    """Takes a film's frames one after the other.

    `shot` is the number of the shot that the last frame belongs to, from 0. A face keeps its number within a shot; the same person
    in another shot has another one.

    Args:
        net: the face networks; the follower uses them from the caller's thread alone.
    """

    def __init__(self, net: FaceNet) -> None:
        self._net = net
        self._live: list[SeenFace] = []
        self._lost: list[_Lost] = []
        self._picture: Pixels | None = None
        self._frame = self._next = 0
        self.shot = 0

    def push(self, bgr: Pixels, cut: bool | None = None) -> list[SeenFace]:
        """The faces of the next frame, uint8 BGR `[h, w, 3]`, widest first. `cut`: whether another shot begins with it,
        where that is known; else a certain cut is found here."""
        rgb = cast("Pixels", cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
        if cut is None:
            self._look_for_cut(thumbnail(bgr))
        elif cut:
            self._begin_shot()
            self._frame = 0  # all faces are looked for at once
        kept = self._followed(rgb)
        if not kept or self._frame % _LOOK_EVERY == 0:
            for face in self._net.faces(rgb, thorough=self._frame % _LOOK_EVERY == 0):
                if len(kept) < _FACES_MOST and not any(_same_place(face, seen.face) for seen in kept):
                    kept.append(SeenFace(self._number(face), face))
        self._live = sorted(kept, key=lambda seen: -seen.face.width)
        self._frame += 1
        return list(self._live)

    def _look_for_cut(self, picture: Pixels) -> None:
        if float(picture.std()) < PLAIN:
            return
        if self._picture is not None and cut_between(self._picture, picture):
            self._begin_shot()
        self._picture = picture

    def _begin_shot(self) -> None:
        self.shot += 1
        self._live, self._lost = [], []

    def _followed(self, rgb: Pixels) -> list[SeenFace]:
        """The live faces that are still there; the others are remembered as lost."""
        kept: list[SeenFace] = []
        for seen in self._live:
            face = self._net.mesh(rgb, crop_of(seen.face.points))
            there = face is not None and face.score >= _HELD and plausible(face, rgb)
            if face is not None and there and not any(_same_place(face, other.face) for other in kept):
                kept.append(SeenFace(seen.number, face))
            else:
                self._lost.append(_Lost(seen.number, seen.face, self._frame))
        self._lost = [lost for lost in self._lost if self._frame - lost.since <= _AWAY_FRAMES]
        return kept

    def _number(self, face: Face) -> int:
        """The number of a found face: of a lost one at its place, else a new one."""
        for lost in self._lost:
            if _same_place(face, lost.face):
                self._lost.remove(lost)
                return lost.number
        self._next += 1
        return self._next - 1


def _same_place(one: Face, other: Face) -> bool:
    apart = float(np.linalg.norm(one.points.mean(0) - other.points.mean(0)))
    return apart < 0.5 * max(one.width, other.width)
