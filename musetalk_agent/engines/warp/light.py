"""The light on the face: by how much each idle frame differs from the one whose lips it shows, and what of it falls into the mouth.

All of it is a factor and no difference of levels: the same skin in half the light is half as bright in every channel. A difference
that is taken off dark red lips leaves them redder than they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.articulation import rising
from musetalk_agent.engines.warp.idle_shapes import SETTLE, Ints, over_time
from musetalk_agent.engines.warp.lips import sample
from musetalk_agent.engines.warp.mouth_space import OL, OU, Floats, MouthShape, S, in_window, to_mouth

LIGHT_MOST = 1.5
"""Factor by which the reference's skin is made lighter or darker at most."""
LIGHT_SEEN = 0.004
"""Factors as near to 1 as this are not laid on: half a level of a light skin."""
LIPS_AROUND = 0.03
"""How far around the lips nothing is compared (eye distances)."""
LIGHT_ROWS, LIGHT_COLS = 12, 16
LIGHT_AREA = (-0.6, 0.6, 0.3, 1.25)
"""Where light is compared between idle frames: u from, to; v from, to."""
FINE = 4
"""Places that are compared to one of the light's, along each axis."""
SOFT = 1.2
"""Standard deviation by which the light is smoothed, in its own places."""
ROUGH = 0.10
"""Places whose light varies by this share around them count by half: skin has half of it, beards have four times as much."""
ROUNDS, UNLIKE = 3, 0.15
"""How often the even light is fitted, each time with less weight on what is further off than this."""
EVEN = 0.10
"""Weight of the even light beside that of the places themselves, which is 1 on smooth skin."""
BLACK = 8.0
"""Levels that are added before a ratio is taken: nothing is learnt from the noise of the dark."""
SLOPE_MOST = 2.0
"""How much the light changes across the mouth at most, as a share per eye distance."""
SLOPES = 0.2, 0.6
"""Slopes up to the first count as none, and from the second on as they are: no face has two equal halves."""
PAIRS_LEAST = 24
"""Fewer pairs of places left and right of the mouth say nothing of the light from the side."""
BEARDED = 0.62, 1.0
"""Where down the face left and right are compared (`v`): from the cheeks to the chin."""


@dataclass(frozen=True)
class Light:
    """The light of a clip's idle frames.

    Args:
        gains: float32 `[n, LIGHT_ROWS, LIGHT_COLS, 3]`, how many times as bright as its reference each idle frame is (BGR).
        inside: float32 `[n, 4]`: how many times as bright as the first reference it is around the mouth (BGR), and by what share
            per eye distance the light grows to the image's right.
    """

    gains: Floats
    inside: Floats


def _grid() -> tuple[Floats, Floats]:
    u0, u1, v0, v1 = LIGHT_AREA
    rows, cols = LIGHT_ROWS * FINE, LIGHT_COLS * FINE
    u, v = np.meshgrid(np.linspace(u0, u1, cols, dtype=np.float32), np.linspace(v0, v1, rows, dtype=np.float32))
    return u, v


def _skin(bundle: Bundle, frame: Floats, idle_index: int, mouth: MouthShape) -> tuple[Floats, Floats]:
    """The colours of the grid's places, float32 `[rows, cols, 3]`, and which of them are skin, 0 or 1 `[rows, cols]`."""
    u, v = _grid()
    rows, cols = u.shape
    u0, u1, v0, v1 = LIGHT_AREA
    window = in_window(frame, bundle.boxes[idle_index, :2])
    seen = sample(np.asarray(bundle.faces[idle_index]), window, u, v).astype(np.float32)
    outline = cv2.convexHull(to_mouth(frame, bundle.landmarks[idle_index]))[:, 0]
    hull = (outline - (u0, v0)) * ((cols - 1) / (u1 - u0), (rows - 1) / (v1 - v0))
    face = np.zeros((rows, cols), np.uint8)
    cv2.fillConvexPoly(face, np.round(hull).astype(np.int32), 1)
    face = np.asarray(cv2.erode(face, np.ones((5, 5), np.uint8), borderValue=0), np.uint8)
    s = mouth.s_of_u(u[0])
    top, bottom = (np.interp(s, S, mouth.curves[k]) for k in (OU, OL))
    face[(np.abs(s) < 1.2) & (v > top - LIPS_AROUND) & (v < bottom + LIPS_AROUND)] = 0
    return seen, face.astype(np.float32)


def light_of(
    bundle: Bundle,
    frames: Floats,
    idle_shapes: tuple[MouthShape, ...],
    shapes: tuple[MouthShape, ...],
    references: Ints,
    shown: Ints,
) -> Light:
    """Compares each idle frame with its reference, the lips left out and filled from around, and its left with its right.

    Only what is skin in both counts: beside a turned face lies what is behind it.
    """
    u, v = _grid()
    first = int(references[0])
    middle = float(to_mouth(frames[first], bundle.landmarks[first, 0])[1]) + 0.06
    beside = np.clip(np.hypot(u / 0.4, (v - middle) / 0.24) * 4 - 4, 0.002, 1).astype(np.float32)
    bases = [_skin(bundle, frames[int(k)], int(k), shape) for k, shape in zip(references, shapes, strict=True)]
    gains = np.ones((len(bundle), LIGHT_ROWS, LIGHT_COLS, 3), np.float32)
    inside = np.ones((len(bundle), 4), np.float32)
    for k in range(len(bundle)):
        seen, own = _skin(bundle, frames[k], k, idle_shapes[k])
        if k != references[shown[k]]:
            base, skin = bases[int(shown[k])]
            small = cv2.resize(
                _apart(seen, base, beside * skin * own), (LIGHT_COLS, LIGHT_ROWS), interpolation=cv2.INTER_AREA
            )
            gains[k] = np.exp(np.clip(small, -np.log(LIGHT_MOST), np.log(LIGHT_MOST)))
        both = (own * bases[0][1] > 0) & (beside > 0.5)
        if both.any():
            apart = np.log((seen[both] + BLACK) / (bases[0][0][both] + BLACK))
            inside[k, :3] = np.exp(np.clip(np.median(apart, 0), -np.log(LIGHT_MOST), np.log(LIGHT_MOST)))
        inside[k, 3] = _slope(seen, own, idle_shapes[k].centre)
    inside[:, 3] = _filled(inside[:, 3])
    return Light(gains, over_time(inside, SETTLE))


def _apart(seen: Floats, base: Floats, weight: Floats) -> Floats:
    """Logarithm of how many times as bright `seen` is as `base`, BGR `[rows, cols, 3]`, smooth; places count by `weight`.

    It is what a light that changes evenly over the face does, and what lies smoothly beside the lips says more than that. Hair lies
    otherwise in every frame: rough places hardly count.
    """
    rough = sum(_roughness(picture) for picture in (seen, base)) / np.float32(ROUGH)
    weight = weight / (1 + rough * rough)
    apart = np.log((seen + BLACK) / (base + BLACK))
    u, v = _grid()
    design = np.stack([np.ones_like(u), u, v - v.mean()], -1).reshape(-1, 3).astype(np.float64)
    values, counts = apart.reshape(-1, 3).astype(np.float64), weight.reshape(-1, 1).astype(np.float64)
    ridge = np.diag([1e-3, 1.0, 1.0])
    even = np.zeros((3, 3))
    for _ in range(ROUNDS):
        off = np.abs(values - design @ even).mean(1, keepdims=True)
        trusted = counts * np.minimum(1, UNLIKE / np.maximum(off, 1e-6))
        even = np.linalg.solve(design.T @ (design * trusted) + ridge, design.T @ (values * trusted))
    plane = (design @ even).reshape(apart.shape).astype(np.float32)
    more = cv2.GaussianBlur((apart - plane) * weight[..., None], (0, 0), SOFT * FINE)
    counted = cv2.GaussianBlur(weight, (0, 0), SOFT * FINE) + np.float32(EVEN)
    return np.asarray(plane + more / counted[..., None], np.float32)


def _roughness(picture: Floats) -> Floats:
    """Standard deviation of the light around each place, as a share of it."""
    light = picture.mean(2)
    mean, square = cv2.blur(light, (5, 5)), cv2.blur(light * light, (5, 5))
    return np.asarray(np.sqrt(np.maximum(square - mean * mean, 0)) / (mean + np.float32(BLACK)), np.float32)


def _filled(slopes: Floats) -> Floats:
    """The slopes with those that are not known (no number) taken from the frames beside them; 0 where none is known."""
    known = np.flatnonzero(np.isfinite(slopes))
    if not len(known):
        return np.zeros_like(slopes)
    kept = np.interp(np.arange(len(slopes)), known, slopes[known].clip(-SLOPE_MOST, SLOPE_MOST))
    return np.asarray(kept, np.float32)


def _slope(seen: Floats, skin: Floats, centre: float) -> float:
    """By what share per eye distance the light grows to the right, by places at the same distance left and right of the mouth.

    A beard or a shadow under the lip is on both sides and cancels out. No number where too little of one side is seen.
    """
    u, v = _grid()
    rows = (v[:, 0] > BEARDED[0]) & (v[:, 0] < BEARDED[1])
    light = np.log(seen[rows].mean(2) + BLACK)
    step = float(u[0, 1] - u[0, 0])
    position = (centre - float(u[0, 0])) / step
    found, ways = [], []
    for away in range(3, u.shape[1] // 2):
        left, right = round(position - away), round(position + away)
        if left < 0 or right >= u.shape[1]:
            break
        both = skin[rows][:, left] * skin[rows][:, right] > 0
        found.append((light[:, right] - light[:, left])[both] / (2 * away * step))
        ways.append(np.full(int(both.sum()), away))
    if not found or sum(map(len, found)) < PAIRS_LEAST:
        return np.nan
    values, weights = np.concatenate(found), np.concatenate(ways)
    order = np.argsort(values)
    half = np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)
    slope = float(values[order][min(int(half), len(values) - 1)])
    return slope * float(rising(np.array((abs(slope) - SLOPES[0]) / (SLOPES[1] - SLOPES[0]))))
