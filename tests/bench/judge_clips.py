"""Makes films wrong on purpose, each in one way: for the judge's table and its tests. Pictures are uint8 BGR `[n, h, w, 3]`."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, Points
from musetalk_agent.judge.picture_measures import OVAL
from musetalk_agent.measure.lip_measures import aperture_of
from musetalk_agent.media_types import Pcm, Pixels

_STEADY = (33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 2, 98, 327, 97, 326, 94, 129, 358)
"""Mesh points that speech does not move."""
_CORNERS = (61, 291, 13, 14)


def patch_mask(points: Points, shape: tuple[int, ...], soft: float = 0.12) -> np.ndarray:
    """Where an engine's patch would lie: an ellipse round the mouth, 0 … 1, float32 `[h, w, 1]`; `soft` in eye distances."""
    along = points[RIGHT_EYE] - points[LEFT_EYE]
    eyes = float(np.linalg.norm(along))
    x, y = points[list(_CORNERS)].mean(0)
    mask = np.zeros(shape[:2], np.float32)
    angle = math.degrees(math.atan2(float(along[1]), float(along[0])))
    centre = round(float(x)), round(float(y) + 0.2 * eyes)
    cv2.ellipse(mask, centre, (int(0.62 * eyes), int(0.42 * eyes)), angle, 0, 360, 1, -1)
    return (cv2.GaussianBlur(mask, (0, 0), max(0.6, soft * eyes)) if soft else mask)[..., None]


def blurred(frames: Pixels, meshes: list[Points], strength: float = 2.5) -> Pixels:
    """The patch blurred; `strength` is a standard deviation in 64ths of the eye distance."""
    out = []
    for frame, points in zip(frames, meshes, strict=True):
        eyes = float(np.linalg.norm(points[RIGHT_EYE] - points[LEFT_EYE]))
        soft = cv2.GaussianBlur(frame, (0, 0), strength * eyes / 64)
        out.append(_mixed(frame, soft, patch_mask(points, frame.shape)))
    return np.stack(out)


def tinted(frames: Pixels, meshes: list[Points], by: tuple[float, float, float]) -> Pixels:
    """The patch in another colour: `by` is added to blue, green and red, its edge is soft."""
    return np.stack([_added(f, patch_mask(p, f.shape) * np.array(by)) for f, p in zip(frames, meshes, strict=True)])


def edged(frames: Pixels, meshes: list[Points], by: float = 4.0) -> Pixels:
    """The patch brighter by some levels, with a hard edge."""
    return np.stack([_added(f, patch_mask(p, f.shape, 0.0) * by) for f, p in zip(frames, meshes, strict=True)])


def flickering(frames: Pixels, meshes: list[Points], by: float = 4.0, seed: int = 0) -> Pixels:
    """The patch brighter and darker from frame to frame, by a standard deviation of some levels."""
    rng = np.random.default_rng(seed)
    pairs = zip(frames, meshes, strict=True)
    return np.stack([_added(f, patch_mask(p, f.shape) * rng.normal(0, by)) for f, p in pairs])


def frozen(frames: Pixels, meshes: list[Points]) -> Pixels:
    """The first frame's mouth on every frame, moved with the head."""
    steady = np.stack([points[list(_STEADY)] for points in meshes])
    steady = np.stack([steady[max(0, k - 1) : k + 2].mean(0) for k in range(len(steady))])
    out = []
    for frame, points, place in zip(frames, meshes, steady, strict=True):
        moved, _ = cv2.estimateAffinePartial2D(steady[0], place, method=cv2.LMEDS)
        size = (frame.shape[1], frame.shape[0])
        held = cv2.warpAffine(frames[0], moved, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        out.append(_mixed(frame, held, patch_mask(points, frame.shape, 0.08)))
    return np.stack(out)


def blackened(frames: Pixels, count: int = 4) -> Pixels:
    """Some black frames in the middle."""
    out = frames.copy()
    out[len(out) // 2 : len(out) // 2 + count] = 0
    return out


def swapped(
    frames: Pixels, meshes: list[Points], others: Pixels, other_meshes: list[Points], first: int | None = None
) -> Pixels:
    """From frame `first` on (default: the middle) another person's face, which moves as the first one's does, lips and all."""
    widest = int(np.argmax([aperture_of(points) for points in other_meshes]))
    face, mesh = others[widest], other_meshes[widest].astype(np.float64)
    triangles = _triangles(mesh, face.shape)
    out = frames.copy()
    for k in range(len(frames) // 2 if first is None else first, len(frames)):
        out[k] = _dressed(frames[k], meshes[k].astype(np.float64), face, mesh, triangles)
    return out


def write_film(path: Path, frames: Pixels, voice: Pcm | None, fps: int = 25) -> Path:
    """An MP4: H.264 of high quality, and AAC where there is a voice, int16 mono 16 kHz."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "12", "preset": "veryfast", "bf": "0"})
        video.height, video.width = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=16_000, layout="mono") if voice is not None else None
        for k, frame in enumerate(frames):
            shown = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(frame[: video.height, : video.width]), format="bgr24"
            )
            shown.pts, shown.time_base = k, Fraction(1, fps)
            container.mux(video.encode(shown))
        container.mux(video.encode(None))
        if audio is not None and voice is not None:
            sound = AudioFrame.from_ndarray(voice[None].astype(np.int16), format="s16", layout="mono")
            sound.sample_rate, sound.pts = 16_000, 0
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def shifted(voice: Pcm, late_ms: int) -> Pcm:
    """The voice so that the lips are late by `late_ms` (early where it is negative), as long as before.

    What is missing is filled with the recording's own first or last tenth of a second: digital silence before a noisy recording
    would be a fault of its own.
    """
    samples, room = abs(late_ms) * 16, 1600
    if late_ms >= 0:
        return np.concatenate([voice[samples:], np.resize(voice[-room:], samples)])
    return np.concatenate([np.resize(voice[:room], samples), voice[:-samples]])


def _mixed(frame: Pixels, other: Pixels, share: np.ndarray) -> Pixels:
    return (frame * (1 - share) + other * share).round().clip(0, 255).astype(np.uint8)


def _added(frame: Pixels, what: np.ndarray) -> Pixels:
    return (frame + what).round().clip(0, 255).astype(np.uint8)


def _triangles(mesh: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Delaunay triangles of a mesh as indices, int `[n, 3]`."""
    division = cv2.Subdiv2D((-shape[1], -shape[0], 3 * shape[1], 3 * shape[0]))
    places = {}
    for index, (x, y) in enumerate(mesh.astype(np.float32)):
        division.insert((float(x), float(y)))
        places[(round(float(x), 2), round(float(y), 2))] = index
    found = []
    for row in division.getTriangleList():
        corners = [places.get((round(float(row[k]), 2), round(float(row[k + 1]), 2))) for k in (0, 2, 4)]
        if None not in corners:
            found.append(corners)
    return np.array(found, np.int64)


def _dressed(frame: Pixels, mesh: np.ndarray, face: Pixels, other: np.ndarray, triangles: np.ndarray) -> Pixels:
    """A frame whose face is `face`, bent triangle by triangle from the mesh `other` to `mesh`, in the frame's own mean colour."""
    height, width = frame.shape[:2]
    owner = np.full((height, width), -1, np.int32)
    for number, corners in enumerate(triangles):
        cv2.fillConvexPoly(owner, np.round(mesh[corners]).astype(np.int32), number)
    ones = np.ones((len(triangles), 3, 1))
    here = np.concatenate([mesh[triangles], ones], 2)
    maps = np.linalg.solve(here + 1e-9 * np.eye(3), other[triangles])
    y, x = np.nonzero(owner >= 0)
    from_where = np.einsum("ni,nij->nj", np.stack([x, y, np.ones(len(x))], 1), maps[owner[y, x]])
    places = np.zeros((height, width, 2), np.float32)
    places[y, x] = from_where
    bent = cv2.remap(face, places[..., 0], places[..., 1], cv2.INTER_LINEAR)
    cover = np.zeros((height, width), np.uint8)
    cv2.fillPoly(cover, [np.round(mesh[list(OVAL)]).astype(np.int32)], 1)
    cover = cv2.erode(cover, np.ones((7, 7), np.uint8)) & (owner >= 0).astype(np.uint8)
    inside = cover > 0
    toned = bent.astype(np.float64) + frame[inside].mean(0) - bent[inside].mean(0)
    share = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), 2.0)[..., None] * inside[..., None]
    return _mixed(frame, toned.clip(0, 255), share)
