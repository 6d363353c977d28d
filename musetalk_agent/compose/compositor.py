"""Puts a patch onto its idle frame: one copy of the frame's I420 planes, then work on the patch's box only."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face import Points
from musetalk_agent.avatars.framing import crop_i420, to_i420
from musetalk_agent.avatars.matte_files import alpha_planes
from musetalk_agent.compose.bent_planes import KeptPicture, changed_box, planes_of
from musetalk_agent.compose.face_warp import FaceWarp, warp_of
from musetalk_agent.compose.head_motion import AS_IT_IS, Pose
from musetalk_agent.media_types import Box, Patch, Pixels, Tag, VideoFrame

OPAQUE = 255


def paste(background: Pixels, patch: Pixels, mask: Pixels) -> Pixels:
    """`background` and `patch` uint8 `[h, w, 3]`, `mask` uint8 `[h, w]`; returns uint8 `[h, w, 3]`.

    Per channel `t = bg·(255-m) + fg·m + 128`, `out = ((t >> 8) + t) >> 8` (Pillow's BLEND; verified over all 65,536
    combinations in a reference implementation). Sixteen bits hold every step: `t` is at most 255·255 + 128 = 65,153, and with
    `t >> 8` added 65,407.
    """
    weight = cv2.cvtColor(
        mask, cv2.COLOR_GRAY2BGR
    )  # numpy multiplies equal shapes far faster than it broadcasts to threes
    mixed = np.multiply(patch, weight, dtype=np.uint16)
    mixed += np.multiply(background, np.invert(weight, out=weight), dtype=np.uint16)
    mixed += np.uint16(128)
    shifted = mixed >> 8
    shifted += mixed
    shifted >>= 8
    blended: Pixels = shifted.astype(np.uint8)
    return blended


def _changed(person: Pixels, before: Pixels, after: Pixels, share: Pixels) -> Pixels:
    """`person + share · (after - before)`: all uint8 of one shape, `share` 255 for one."""
    change = cv2.subtract(after, before, dtype=cv2.CV_16S)
    change = cv2.multiply(change, share, scale=1 / OPAQUE, dtype=cv2.CV_16S)
    return np.asarray(cv2.add(person, change, dtype=cv2.CV_8U), np.uint8)


class Compositor:
    """Composes frames of one bundle; it keeps nothing of a frame that was composed, so any thread may call it. Poses are for still
    pictures: a clip passes them over.

    Args:
        idle_patch: the patch over each idle frame outside speech, by index; None for none.
    """

    def __init__(self, bundle: Bundle, idle_patch: Callable[[int], Patch | None] = lambda _: None) -> None:
        self._bundle = bundle
        self._idle_patch = idle_patch
        self._cutout = bundle.cutout
        self._width, self._height = bundle.width, bundle.height
        self._known_warp: FaceWarp | None = None
        self._known_picture: KeptPicture | None = None
        self._closed: dict[
            int, Box | None
        ] = {}  # by frame of a picture, whose eyes close: where it differs from the first

    @property
    def fps(self) -> int:
        """Frames per second."""
        return self._bundle.fps

    @property
    def lives(self) -> bool:
        """Whether it composes a still picture, whose head it moves."""
        return self._bundle.relief is not None

    def idle(self, idle_index: int, pose: Pose = AS_IT_IS) -> VideoFrame:
        """The idle frame; without a patch over it or a pose no copy is made, so its planes are read-only."""
        patch = self._idle_patch(idle_index)
        return self._posed(self._frame(idle_index, patch), pose, patch)

    def compose(
        self, idle_index: int, patch: Patch | None, tag: Tag | None = None, pose: Pose = AS_IT_IS
    ) -> VideoFrame:
        """Idle frame `idle_index` with `patch` on it, its head in `pose`; without a patch, the idle frame."""
        if patch is None:
            return self.idle(idle_index, pose)
        return self._posed(self._frame(idle_index, patch, spoken=True, tag=tag), pose, patch)

    def face(self, idle_index: int, pose: Pose = AS_IT_IS) -> Points:
        """The mesh of the face in an idle frame, float32 `[468, 2]` in pixels."""
        warp = self._warp
        return np.asarray(self._bundle.landmarks[idle_index]) if warp is None else warp.mesh(pose)

    @property
    def _warp(self) -> FaceWarp | None:
        """Kept from the first frame on: the bundle's folder may go while it is shown."""
        if self._known_warp is None:
            self._known_warp = warp_of(self._bundle)
        return self._known_warp

    def _posed(self, frame: VideoFrame, pose: Pose, patch: Patch | None) -> VideoFrame:
        warp = self._warp
        if warp is None:
            return frame
        mood, index = self._bundle.mood, frame.idle_index
        if self._cutout is not None and index != 0:
            return warp.moved(
                frame, pose, mood
            )  # a blink: a person and its alpha differ all over, not by the eyes alone
        if self._known_picture is None:
            self._known_picture = warp.keep(self._planes(0), frame.alpha)
        changed = [self._closed_eyes(index), None if patch is None else patch.box]
        return warp.moved(frame, pose, mood, self._known_picture, [box for box in changed if box is not None])

    def _closed_eyes(self, idle_index: int) -> Box | None:
        if idle_index not in self._closed:
            first, frame = (planes_of(self._planes(index), (self._width, self._height)) for index in (0, idle_index))
            self._closed[idle_index] = changed_box(first, frame)
        return self._closed[idle_index]

    def _planes(self, idle_index: int) -> Pixels:
        """Of an idle frame, or of its person."""
        frames = self._bundle.frames if self._cutout is None else self._cutout.matte.person
        return np.asarray(frames[idle_index].reshape(-1))

    def _frame(
        self, idle_index: int, patch: Patch | None, *, spoken: bool = False, tag: Tag | None = None
    ) -> VideoFrame:
        cutout = self._cutout
        planes = self._planes(idle_index)
        if patch is not None:
            planes = np.array(planes)
            self._patch(planes, idle_index, patch)
        alpha = behind = None
        if cutout is not None:
            alpha, behind = np.asarray(cutout.matte.alpha[idle_index]), cutout.behind(idle_index)
        return VideoFrame(
            planes, self._width, self._height, idle_index, spoken=spoken, tag=tag, alpha=alpha, behind=behind
        )

    def _patch(self, planes: Pixels, idle_index: int, patch: Patch) -> None:
        """Lays a patch on the planes of an idle frame; of a person's, a pixel changes by the share that the person has of it."""
        pixels, box = patch.pixels, patch.box
        if patch.mask is not None:
            pixels = paste(self._background(idle_index, box), pixels, patch.mask)
        made = to_i420(np.ascontiguousarray(pixels))
        if self._cutout is not None:
            share = self._cutout.matte.alpha[idle_index, box.y0 : box.y1, box.x0 : box.x1]
            if share.min() < OPAQUE:
                size = self._width, self._height
                before = crop_i420(self._bundle.frames[idle_index], size, box)
                person = crop_i420(self._cutout.matte.person[idle_index], size, box)
                made = _changed(person, before, made, alpha_planes(np.ascontiguousarray(share)).reshape(made.shape))
        self._write(planes, box, made.reshape(-1))

    def _background(self, idle_index: int, box: Box) -> Pixels:
        """BGR pixels of the idle frame in `box`, which lies within the face window."""
        window = self._bundle.box(idle_index)
        face = self._bundle.faces[idle_index]
        return np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])

    def _write(self, planes: Pixels, box: Box, converted: Pixels) -> None:
        """Writes I420 of `box` (even coordinates) into the three planes."""
        w, h = self._width, self._height
        bw, bh = box.width, box.height
        luma, quarter = bw * bh, bw * bh // 4
        y = planes[: w * h].reshape(h, w)
        y[box.y0 : box.y1, box.x0 : box.x1] = converted[:luma].reshape(bh, bw)
        for index in range(2):
            start = w * h + index * (w * h // 4)
            plane = planes[start : start + w * h // 4].reshape(h // 2, w // 2)
            part = converted[luma + index * quarter : luma + (index + 1) * quarter].reshape(bh // 2, bw // 2)
            plane[box.y0 // 2 : box.y1 // 2, box.x0 // 2 : box.x1 // 2] = part
