"""From the network's face to the patch of one session: smoothed, fitted in colour, given its detail back, joined to the frame.

The network loses pores, stubble and edges finer than its 256 pixels. On skin the detail comes from a frame of the clip itself whose
mouth is closed, laid where the face is; lips and teeth, which move on their own, are sharpened by themselves. As much is added as
is missing, measured on the skin.
"""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.quality_report import closed_mouth
from musetalk_agent.engines.musetalk.artefacts import SIDE, MuseTalkArtefacts
from musetalk_agent.engines.musetalk.picture.blending import multiband, poisson
from musetalk_agent.engines.musetalk.picture.colour import ColourFit
from musetalk_agent.engines.musetalk.picture.live_restoration import LiveRestoration
from musetalk_agent.engines.musetalk.picture.smoothing import STRENGTHS, FaceSmoother
from musetalk_agent.engines.warp.mouth_space import OUTER_LOWER, OUTER_UPPER
from musetalk_agent.media_types import Box, Patch, Pixels
from musetalk_agent.protocol.avatar_settings import AvatarSettings

STEADY = (33, 133, 362, 263, 168, 6, 195, 5, 4, 1, 2, 98, 327, 93, 323, 50, 280)
"""Mesh points that no mouth moves: corners of the eyes, bridge and wings of the nose, cheekbones, ears."""


def mouth_places(landmarks: NDArray[np.float32], artefacts: MuseTalkArtefacts) -> NDArray[np.float64]:
    """The first frame's mouth, carried to each frame by the similarity that fits the steady points best (least squares).

    Args:
        landmarks: float32 `[n, points, 2]`, of the bundle, pixels of the image.

    Returns:
        `[n, 2]`, x and y in pixels of the network's `[SIDE, SIDE]` picture.
    """
    points = np.asarray(landmarks[:, list(STEADY)], np.float64) @ (1, 1j)
    middles = points.mean(1, keepdims=True)
    first = points[0] - middles[0]
    turns = (points - middles) @ first.conj() / np.vdot(first, first)
    lips = np.asarray(landmarks[0, [*OUTER_UPPER, *OUTER_LOWER]], np.float64) @ (1, 1j)
    mouths = middles[:, 0] + turns * (lips.mean() - middles[0])
    places = np.stack([mouths.real, mouths.imag], 1)
    if artefacts.placements is None:
        boxes = artefacts.boxes.astype(np.float64)
        return np.asarray((places - boxes[:, :2]) * (SIDE / (boxes[:, 2:] - boxes[:, :2])))
    back = np.stack([cv2.invertAffineTransform(placement.astype(np.float64)) for placement in artefacts.placements])
    return np.asarray(np.einsum("nij,nj->ni", back[:, :, :2], places) + back[:, :, 2])


Floats = NDArray[np.float32]

FINEST = 1.0
"""Detail is what is finer than a Gaussian of so many of the network's pixels (sigma)."""
OWN = 0.6
"""How far lips and teeth are sharpened by themselves at `sharpen` 1, as a share of their own detail."""
MOST = 24
"""Levels that detail may add or take: more is an edge that lies elsewhere in the closed-mouth frame."""
MOST_OWN = 1.5
"""Skin of which the network has lost everything gets at most so much of the clip's detail."""


def detail(picture: Pixels, sigma: float) -> NDArray[np.int16]:
    """What is finer than a Gaussian of `sigma` pixels, int16 `[h, w, 3]`, at most `MOST` levels."""
    fine = cv2.subtract(picture, cv2.GaussianBlur(picture, (0, 0), sigma), dtype=cv2.CV_16S)
    return cast("NDArray[np.int16]", np.clip(fine, -MOST, MOST, out=fine))


def sharpened(patch: Pixels, clips: NDArray[np.int16], lips: Floats, sigma: float, amount: float) -> Pixels:
    """`patch`, uint8 BGR `[h, w, 3]`, with detail added.

    Args:
        clips: the clip's own `detail` at the same place, `[h, w, 3]`.
        lips: float32 `[h, w]`, 1 on lips and mouth, 0 on skin.
        sigma: of `detail`.
        amount: 0 … 1.
    """
    own = detail(patch, sigma)
    skin = lips < 0.05
    has, should = (float(np.abs(part[skin]).mean()) if skin.any() else 0.0 for part in (own, clips))
    missing = min(max(0.0, 1 - has / should), 1.0) * MOST_OWN if should > 0 else 0.0
    on_skin = cv2.cvtColor((1 - lips) * np.float32(amount * min(1.0, missing)), cv2.COLOR_GRAY2BGR)
    on_lips = cv2.cvtColor(lips * np.float32(amount * OWN), cv2.COLOR_GRAY2BGR)
    added = cv2.add(cv2.multiply(clips, on_skin, dtype=cv2.CV_32F), cv2.multiply(own, on_lips, dtype=cv2.CV_32F))
    return cast("Pixels", cv2.add(patch, added, dtype=cv2.CV_8U))


TOP = 112
"""First of the face's 256 rows that is smoothed: what a mask ever shows lies below."""
JUMP = 2
"""Idle frames that follow each other lie no further apart; after a wider step nothing is carried over."""
LIPS_GROWN = 1.25
"""The lips' outline is taken so much larger, about its middle, so that open lips are within it."""


class MouthPicture:
    """Makes the patches of one session, in the order of its frames. One thread at a time.

    Args:
        artefacts: of the avatar.
        bundle: its idle frames.
        settings: `smoothing`, `blend` and `sharpen` of them are used.

    Attributes:
        restoration: restores the faces that speak; None for none.
    """

    def __init__(self, artefacts: MuseTalkArtefacts, bundle: Bundle, settings: AvatarSettings) -> None:
        self._artefacts, self._bundle, self._settings = artefacts, bundle, settings
        strength = STRENGTHS[settings.smoothing]
        self._smoother = FaceSmoother(strength) if strength else None
        self._colour = ColourFit()
        self._places = mouth_places(bundle.landmarks, artefacts) if strength else None
        self._last: int | None = None
        self.restoration: LiveRestoration | None = None
        self._closed: NDArray[np.int64] = np.flatnonzero(closed_mouth(bundle.landmarks))

    def patch(self, idle_index: int, face: Pixels, blend_weight: float, *, speaking: bool) -> Patch:
        """The patch of a generated face, uint8 BGR `[256, 256, 3]`, which may be written to.

        Args:
            blend_weight: 0 … 1, scales the mask.
            speaking: it follows the session's last frame; False for the mouths of idle frames, which come at any time.
        """
        if speaking:
            self._follow(idle_index)
            if self._smoother is not None:
                face[TOP:] = self._smoother.smoothed(np.ascontiguousarray(face[TOP:]))
        laid = self._artefacts.patch(idle_index, face)
        mask = cast("Pixels", laid.mask)
        idle = self._idle(idle_index, laid.box)
        pixels = self._colour.fitted(idle_index, laid.pixels, idle, mask, steady=speaking)
        if self._settings.sharpen > 0:
            pixels = self._sharpened(idle_index, pixels, laid.box)
        if speaking and self.restoration is not None and self.restoration.note is None:
            pixels = self._restored(self.restoration, idle_index, pixels, mask, laid.box)
        if self._settings.blend == "multiband":
            pixels, mask = multiband(pixels, idle, mask), np.full_like(mask, 255)
        elif self._settings.blend == "poisson":
            pixels = poisson(pixels, idle, mask)
        if blend_weight < 1.0:
            mask = cast("Pixels", cv2.convertScaleAbs(mask, alpha=max(0.0, blend_weight)))
        return Patch(laid.box, pixels, mask)

    def _follow(self, idle_index: int) -> None:
        if self._last is None or abs(idle_index - self._last) > JUMP:
            self._colour.reset()
            if self._smoother is not None:
                self._smoother.reset()
        elif self._smoother is not None and self._places is not None and idle_index != self._last:
            self._smoother.follow(*(self._places[idle_index] - self._places[self._last]))
        self._last = idle_index

    def _idle(self, idle_index: int, box: Box) -> Pixels:
        """BGR pixels of the idle frame in `box`, which lies within the face window."""
        window = self._bundle.box(idle_index)
        face = self._bundle.faces[idle_index]
        return np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])

    def _restored(
        self, restoration: LiveRestoration, idle_index: int, pixels: Pixels, mask: Pixels, box: Box
    ) -> Pixels:
        """What the network of restoration makes of the patch: it is shown the whole face, of which the patch is kept."""
        window, face = self._bundle.box(idle_index), np.array(self._bundle.faces[idle_index])
        there = slice(box.y0 - window.y0, box.y1 - window.y0), slice(box.x0 - window.x0, box.x1 - window.x0)
        weight = np.asarray(mask * np.float32(1 / 255), np.float32)
        face[there] = cv2.blendLinear(pixels, np.ascontiguousarray(face[there]), weight, 1 - weight)
        mesh = np.asarray(self._bundle.landmarks[idle_index]) - np.array((window.x0, window.y0), np.float32)
        return np.ascontiguousarray(restoration.restored(face, mesh)[there])

    def _sharpened(self, idle_index: int, pixels: Pixels, box: Box) -> Pixels:
        x1, _, x2, _ = self._artefacts.boxes[idle_index]
        sigma = FINEST * float(x2 - x1) / SIDE
        if sigma * 3 < 1:  # a face of fewer pixels than the network makes lacks nothing
            return pixels
        outline = self._bundle.landmarks[idle_index, [*OUTER_UPPER, *OUTER_LOWER[::-1]]]
        middle = outline.mean(0)
        grown = (outline - middle) * LIPS_GROWN + middle - (box.x0, box.y0)
        lips = np.zeros((box.height, box.width), np.uint8)
        cv2.fillPoly(lips, [np.rint(grown).astype(np.int32)], (255,))
        soft = np.asarray(cv2.GaussianBlur(lips, (0, 0), 2 * sigma) * np.float32(1 / 255), np.float32)
        return sharpened(pixels, self._clips_detail(idle_index, box, sigma), soft, sigma, self._settings.sharpen)

    def _clips_detail(self, idle_index: int, box: Box, sigma: float) -> NDArray[np.int16]:
        """Detail of the nearest idle frame whose mouth is closed, laid where this frame's face is; of this one where none is."""
        if not len(self._closed) or idle_index in self._closed:
            return detail(self._idle(idle_index, box), sigma)
        nearest = int(self._closed[np.abs(self._closed - idle_index).argmin()])
        window = self._bundle.box(nearest)
        theirs, ours = (np.asarray(self._bundle.landmarks[k, STEADY], np.float32) for k in (nearest, idle_index))
        laid, _ = cv2.estimateAffinePartial2D(theirs - (window.x0, window.y0), ours - (box.x0, box.y0))
        if laid is None:
            return detail(self._idle(idle_index, box), sigma)
        return cast(
            "NDArray[np.int16]",
            cv2.warpAffine(
                detail(np.asarray(self._bundle.faces[nearest]), sigma),
                laid,
                (box.width, box.height),
                flags=cv2.INTER_LINEAR,
            ),
        )
