"""Where MuseTalk looks and paints: the face box that becomes the 256×256 crop, and the square around it that masks are made in.

Upstream takes both from 68 points in dlib's order (numerics §3.4, §3.6). The bundle has MediaPipe's mesh, so the points that
matter are translated here:

- dlib 0 … 16, the jaw from temple to temple: the mesh's face oval below the temples.
- dlib 29, the third of four points down the bridge of the nose (27 between the eyes … 30 the tip).
- the lowest of the 68 points: the chin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.errors import NoFaceInAvatar

Boxes = NDArray[np.int32]
Floats = NDArray[np.float32]

# fmt: off
JAW = (127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)
# fmt: on
"""The face oval from temple over chin to temple, as seen in the picture from left to right."""
BRIDGE = (195, 5)
"""dlib 29 lies between these two (measured: `docs/explanation/blending.md`)."""
BETWEEN_EYES = 168
"""dlib 27, the top of the bridge."""
PARTED = 0.02
"""Median distance of a clip's inner lips, in outer eye distances, above which it talks: as measured for the `warp` engine."""
MOVES = 0.012
"""The same for the way between the tenth and the ninetieth percentile of that distance: four silent GRID talkers measured 0.002 …
0.004, the same four talking with a median under `PARTED` 0.018 … 0.044."""
_UPPER_LIP, _LOWER_LIP, _LEFT_EYE, _RIGHT_EYE = 13, 14, 33, 263
LYING = np.pi / 4
"""How far the eye line may be from level, in radians, before the face is none that this engine can draw."""
JAW_REACH = 0.035
"""The mesh's jaw ends above the visible edge of the chin by this share of the way down from the eyes (measured, as above)."""
MARGIN = 10
"""Pixels that v1.5 adds below the chin (`extra_margin`, numerics §3.4)."""
SLACK = 0.5
"""Pixels that a side may stray from its whole pixel before the box follows: a resting face's box stands still."""


def face_boxes(landmarks: Floats, width: int, height: int, bbox_shift: int = 0) -> Boxes:
    """The face box of every frame, int32 `[n, 4]`: x1, y1, x2, y2 in pixels, within the picture.

    Args:
        landmarks: float32 `[n, 468, 2]`, pixels of a picture of `width`×`height`.
        bbox_shift: pixels that the middle of the box is moved down: more of the face is repainted the smaller it is.

    Raises:
        NoFaceInAvatar: the face is outside the picture in every frame.
    """
    jaw = jaw_lines(landmarks)
    left, right = _whole(jaw[..., 0].min(1)), _whole(jaw[..., 0].max(1))
    bottom = _whole(jaw[..., 1].max(1))
    middle = _whole(landmarks[:, BRIDGE, 1].mean(1)) + bbox_shift
    boxes = np.stack(
        [
            np.maximum(left, 0),
            np.maximum(2 * middle - bottom, 0),
            np.minimum(right, width),
            np.minimum(bottom + MARGIN, height),
        ],
        axis=1,
    )
    return _with_neighbours(boxes.astype(np.int32))


def jaw_lines(landmarks: Floats) -> Floats:
    """dlib's jaw of every frame, float32 `[n, 23, 2]`, from temple over chin to temple, from meshes `[n, 468, 2]`."""
    jaw = landmarks[:, JAW, :].copy()
    jaw[..., 1] += np.float32(JAW_REACH) * np.maximum(0, jaw[..., 1] - landmarks[:, BETWEEN_EYES, 1, None])
    return jaw


def crop_box(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The square around a face box that masks are made in: 1.5 times its longer side; may reach out of the picture (§3.6)."""
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) // 2, (y1 + y2) // 2
    half = int(max(x2 - x1, y2 - y1) // 2 * 1.5)
    return x - half, y - half, x + half, y + half


def _whole(track: Floats) -> NDArray[np.int32]:
    """A track over the frames, cut to whole pixels as upstream cuts points, but only when it has left the last one by `SLACK`."""
    out = np.trunc(track).astype(np.int32)
    for k in range(1, len(out)):
        if out[k - 1] - SLACK <= track[k] < out[k - 1] + 1 + SLACK:
            out[k] = out[k - 1]
    return out


def _with_neighbours(boxes: Boxes) -> Boxes:
    """Empty boxes, of faces outside the picture, replaced by the nearest frame's that is not."""
    valid = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    if len(valid) == 0:
        raise NoFaceInAvatar("The face lies outside the picture in every frame.")
    frames = np.arange(len(boxes))
    nearest = valid[np.abs(frames[:, None] - valid).argmin(1)] if len(valid) < len(boxes) else frames
    return boxes[nearest]


def talks(landmarks: NDArray[np.float32]) -> bool:
    """Whether the lips of a clip, mesh points float32 `[n, 468, 2]`, are apart in most of its frames, or open and close."""
    gap = np.linalg.norm(landmarks[:, _UPPER_LIP] - landmarks[:, _LOWER_LIP], axis=1)
    eyes = np.linalg.norm(landmarks[:, _LEFT_EYE] - landmarks[:, _RIGHT_EYE], axis=1)
    low, middle, high = np.percentile(gap / np.maximum(eyes, 1e-6), (10, 50, 90))
    return bool(middle > PARTED or high - low > MOVES)


def upright(landmarks: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames of a clip, mesh points float32 `[n, 468, 2]`, show the face standing: bool `[n]`.

    The network knows no others: its boxes are cut along the picture's edges, and it was trained on faces that stand.
    """
    along = landmarks[:, _RIGHT_EYE] - landmarks[:, _LEFT_EYE]
    standing: NDArray[np.bool_] = np.abs(np.arctan2(along[:, 1], along[:, 0])) < LYING
    return standing
