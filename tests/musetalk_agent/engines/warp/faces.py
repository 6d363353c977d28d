"""Faces to work on: the demo avatar with its mesh, and drawn ones whose mouth is known exactly."""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.framing import face_windows
from musetalk_agent.avatars.library import DEMO_ASSET
from musetalk_agent.engines.warp import WarpEngine
from musetalk_agent.engines.warp.engine import WarpSession
from musetalk_agent.engines.warp.idle_shapes import CHIN_FALLS
from musetalk_agent.engines.warp.mouth_space import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from musetalk_agent.features.extractor import FeatureStream, VoiceActivityDetector
from musetalk_agent.media_types import Box, Patch, Pixels
from musetalk_agent.protocol.http import AvatarReport

Points = NDArray[np.float32]
SKIN, LIP, TEETH, DARK = (150, 175, 215), (95, 90, 190), (225, 235, 240), (25, 20, 40)
SHADED_TEETH = (130, 140, 150)
BEHIND = (90, 110, 90)


class NoFeatures:
    """The tests bring their own articulation vectors: no test of the engine asks for features, and one that did would fail here."""

    lookahead_ms = 0
    quick = True

    def detector(self) -> VoiceActivityDetector:
        raise NotImplementedError

    def stream(self, fps: int) -> FeatureStream:
        raise NotImplementedError(fps)

    def begin(self, fps: int) -> tuple[VoiceActivityDetector, FeatureStream]:
        raise NotImplementedError(fps)

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        raise NotImplementedError  # the engine shares nothing: the speech gate does


def demo_points() -> Points:
    """The mesh of the demo avatar, `[468, 2]`."""
    return np.asarray(np.load(Path(__file__).with_name("demo-landmarks.npy")), np.float32)


def demo_picture() -> Pixels:
    """A copy of the demo avatar, BGR."""
    return _demo_picture().copy()


@functools.cache
def _demo_picture() -> Pixels:
    picture = cv2.imread(str(DEMO_ASSET))
    assert picture is not None
    return np.asarray(picture, np.uint8)


def placed(
    points: Points, centre: tuple[float, float], eyes: float, angle: float = 0.0, squeeze: float = 1.0
) -> Points:
    """The mesh moved: mouth at `centre`, outer eye corners `eyes` pixels apart, turned by `angle`, narrowed by `squeeze`."""
    mouth = points[[13, 14]].mean(0)
    scale = eyes / float(np.linalg.norm(points[33] - points[263]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = (points - mouth) * scale * (squeeze, 1.0)
    return np.asarray(moved @ turn.T + centre, np.float32)


def opened(points: Points, gap: float) -> Points:
    """The mesh with its lips `gap` eye distances apart in the middle, the lower lip and chin moved down."""
    out = points.copy()
    eyes = points[263] - points[33]
    down = np.array([-eyes[1], eyes[0]])
    middle, half = points[[61, 291]].mean(0), float(np.linalg.norm(points[291] - points[61])) / 2
    for index in (*INNER_LOWER, *OUTER_LOWER):
        across = float((points[index] - middle) @ eyes) / float(np.linalg.norm(eyes)) / half
        out[index] += down * gap * max(0.0, 1 - across * across)
    out[[152, 148, 377, 176, 400]] += down * gap * CHIN_FALLS
    return np.asarray(out, np.float32)


def turned(points: Points, turn: float, nod: float) -> Points:
    """The mesh of an upright face, turned to the picture's right and nodded down, in degrees, about an axis between the ears.

    Its depth is that of an ellipsoid with a nose, since the mesh has none of its own.
    """
    eyes = float(np.linalg.norm(points[33] - points[263]))
    middle = (points[234] + points[454]) / 2
    u, v = ((points - middle) / eyes).T
    depth = 1.0 * np.sqrt(np.clip(1 - (u / 0.9) ** 2 - (v / 1.9) ** 2, 0, 1))
    depth += 0.3 * np.exp(-(((points - points[1]) / eyes / 0.12) ** 2).sum(1))
    a, b = np.radians(turn), np.radians(nod)
    across, depth = u * np.cos(a) + depth * np.sin(a), depth * np.cos(a) - u * np.sin(a)
    down = v * np.cos(b) + depth * np.sin(b)
    return np.asarray(np.stack([across, down], 1) * eyes + middle, np.float32)


def drawn(points: Points, size: tuple[int, int], teeth: bool = False) -> Pixels:
    """A flat face: skin, lips by the mesh's outlines, and teeth or the dark between them."""
    picture = np.full((size[1], size[0], 3), BEHIND, np.uint8)

    def fill(outline: NDArray[np.float32], colour: tuple[int, int, int]) -> None:
        cv2.fillPoly(picture, [np.round(outline * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)

    fill(cv2.convexHull(points)[:, 0], SKIN)
    fill(points[[*OUTER_UPPER, *OUTER_LOWER[::-1]]], LIP)
    inside = points[[*INNER_UPPER, *INNER_LOWER[::-1]]]
    if float(np.linalg.norm(points[13] - points[14])) > 1.5:
        fill(inside, TEETH if teeth else DARK)
    else:
        cv2.polylines(picture, [np.round(inside * 16).astype(np.int32)], True, (60, 55, 110), 1, cv2.LINE_AA, 4)
    return picture


def with_rows_of_teeth(picture: Pixels, points: Points, row: str) -> Pixels:
    """The drawn open mouth with teeth in the shade of the lips: the "upper" row, the "lower" one, or "both"."""
    inside = points[[*INNER_UPPER, *INNER_LOWER[::-1]]]
    opening = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillPoly(opening, [np.round(inside * 16).astype(np.int32)], 255, cv2.LINE_8, 4)
    tall = round(0.07 * float(np.linalg.norm(points[33] - points[263])))
    teeth = np.zeros(opening.shape, np.bool_)
    for name, down in (("upper", tall), ("lower", -tall)):
        if row in (name, "both"):
            teeth |= (opening > 0) & (np.roll(opening, down, 0) == 0)
    out = picture.copy()
    out[teeth] = SHADED_TEETH
    return out


def bundle_of(folder: Path, pictures: list[Pixels], points: list[Points]) -> Bundle:
    """A bundle as `avatars` would make it."""
    height, width = pictures[0].shape[:2]
    landmarks = np.stack(points)
    boxes = face_windows(landmarks, width, height)
    faces = np.stack([p[y0:y1, x0:x1] for p, (x0, y0, x1, y1) in zip(pictures, boxes, strict=True)])
    planes = np.stack([cv2.cvtColor(p, cv2.COLOR_BGR2YUV_I420) for p in pictures])
    report = AvatarReport(avatar_id="drawn", frames=len(pictures), width=width, height=height, fps=25)
    return Bundle(folder, width, height, 25, planes, landmarks, boxes, faces, report)


def opened_with(folder: Path, pictures: list[Pixels], points: list[Points]) -> tuple[WarpEngine, WarpSession]:
    """An engine, and the session of a bundle made from these pictures."""
    engine = WarpEngine(NoFeatures())
    return engine, engine.open(bundle_of(folder, pictures, points))


def composed(picture: Pixels, patch: Patch | None) -> Pixels:
    """The picture with the patch on it."""
    out = picture.copy()
    if patch is not None:
        out[patch.box.y0 : patch.box.y1, patch.box.x0 : patch.box.x1] = patch.pixels
    return out


def idle(session: WarpSession, idle_index: int, box: Box) -> Pixels:
    """The idle frame's pixels of `box`."""
    window = session.bundle.box(idle_index)
    face = session.bundle.faces[idle_index]
    return np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])


def inside_pixels(picture: Pixels, points: Points, lip: int = 45) -> int:
    """How many pixels near a drawn mouth's middle column are neither skin nor, by `lip` levels, lip: the opening."""
    x = round(float(points[[13, 14], 0].mean()))
    reach = float(np.linalg.norm(points[33] - points[263])) * 0.4
    y = float(points[[13, 14], 1].mean())
    column = picture[int(max(0, y - reach)) : int(y + reach), x].astype(int)
    unlike = [np.abs(column - np.array(colour)).max(1) > most for colour, most in ((SKIN, 45), (LIP, lip))]
    return int((unlike[0] & unlike[1]).sum())
