"""Where MuseTalk looks and paints: the face box that becomes the 256×256 crop, and the mask that blends it back into the frame.

A mask starts from a region: of the mesh (`region_of_mesh`), or of the parsing network's classes by upstream's `jaw` recipe
(`region_of_classes`). The rest is upstream's for both: nothing above the middle of the face box, nothing outside
it, edges softened with a Gaussian.

Upstream takes box and crop from 68 points in dlib's order. The bundle has MediaPipe's mesh, so the points
that matter are translated here:

- dlib 0 … 16, the jaw from temple to temple: the mesh's face oval below the temples.
- dlib 29, the third of four points down the bridge of the nose (27 between the eyes … 30 the tip).
- the lowest of the 68 points: the chin.
"""

from __future__ import annotations

from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from musetalk_agent.errors import NoFaceInAvatar
from musetalk_agent.media_types import Pixels

Boxes = NDArray[np.int32]
Floats = NDArray[np.float32]

# fmt: off
JAW = (127, 234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454, 356)
# fmt: on
"""The face oval from temple over chin to temple, as seen in the image from left to right."""
BRIDGE = (195, 5)
"""dlib 29 lies between these two (measured: `docs/explanation/blending.md`)."""
BETWEEN_EYES = 168
"""dlib 27, the top of the bridge."""
PARTED = 0.02
"""Median distance of a clip's inner lips, in outer eye distances, above which it talks: as measured for the `warp` engine."""
MOVES = 0.012
"""The same for the way between the tenth and the ninetieth percentile of that distance: four silent GRID talkers measured 0.002 …
0.004, the same four talking with a median under `PARTED` 0.018 … 0.044."""
_MESH_UPPER_LIP, _MESH_LOWER_LIP, _LEFT_EYE, _RIGHT_EYE = 13, 14, 33, 263
LYING = np.pi / 4
"""How far the eye line may be from level, in radians, before the face is none that this engine can draw."""
JAW_REACH = 0.035
"""The mesh's jaw ends above the visible edge of the chin by this share of the way down from the eyes (measured, as above)."""
MARGIN = 10
"""Pixels that v1.5 adds below the chin (`extra_margin`)."""
LOCK = 1.12
"""How much larger than the face a box of locked size may be: from nose to chin four GRID talkers changed by 7 … 12 % in speech."""
LOCKED_AT = 90
"""Percentile of the clip's sizes at which the size is locked."""
SLACK = 0.5
"""Pixels that a side may stray from its whole pixel before the box follows: a resting face's box stands still."""


def face_boxes(landmarks: Floats, width: int, height: int, bbox_shift: int = 0) -> Boxes:
    """The face box of every frame, int32 `[n, 4]`: x1, y1, x2, y2 in pixels, within the image.

    Args:
        landmarks: float32 `[n, 468, 2]`, pixels of an image of `width`×`height`.
        bbox_shift: pixels that the middle of the box is moved down: more of the face is repainted the smaller it is.

    Raises:
        NoFaceInAvatar: the face is outside the image in every frame.
    """
    jaw = jaw_lines(landmarks)
    left, right = jaw[..., 0].min(1), jaw[..., 0].max(1)
    spare = (locked(right - left) - (right - left)) / 2
    left, right = _whole(left - spare), _whole(right + spare)
    high = landmarks[:, BRIDGE, 1].mean(1)
    bottom = _whole(high + locked(jaw[..., 1].max(1) - high))
    middle = _whole(high) + bbox_shift
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


def locked(sizes: Floats) -> Floats:
    """A size of a clip's boxes, float32 `[n]`, held still: that of its large frames, while the face has at least `1/LOCK` of it.

    It is never smaller than the face, or the mask would end above the chin; a face that comes closer or goes away takes it along.
    """
    held = np.clip(np.percentile(sizes, LOCKED_AT), sizes, sizes * LOCK)
    return np.asarray(held, np.float32)


def jaw_lines(landmarks: Floats) -> Floats:
    """dlib's jaw of every frame, float32 `[n, 23, 2]`, from temple over chin to temple, from meshes `[n, 468, 2]`."""
    jaw = landmarks[:, JAW, :].copy()
    jaw[..., 1] += np.float32(JAW_REACH) * np.maximum(0, jaw[..., 1] - landmarks[:, BETWEEN_EYES, 1, None])
    return jaw


def crop_box(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The square around a face box that masks are made in: 1.5 times its longer side; may reach out of the image (§3.6)."""
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
    """Empty boxes, of faces outside the image, replaced by the nearest frame's that is not."""
    valid = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
    if len(valid) == 0:
        raise NoFaceInAvatar("The face lies outside the picture in every frame.")
    frames = np.arange(len(boxes))
    nearest = valid[np.abs(frames[:, None] - valid).argmin(1)] if len(valid) < len(boxes) else frames
    return boxes[nearest]


def talks(landmarks: NDArray[np.float32]) -> bool:
    """Whether the lips of a clip, mesh points float32 `[n, 468, 2]`, are apart in most of its frames, or open and close."""
    gap = np.linalg.norm(landmarks[:, _MESH_UPPER_LIP] - landmarks[:, _MESH_LOWER_LIP], axis=1)
    eyes = np.linalg.norm(landmarks[:, _LEFT_EYE] - landmarks[:, _RIGHT_EYE], axis=1)
    low, middle, high = np.percentile(gap / np.maximum(eyes, 1e-6), (10, 50, 90))
    return bool(middle > PARTED or high - low > MOVES)


def upright(landmarks: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames of a clip, mesh points float32 `[n, 468, 2]`, show the face standing: bool `[n]`.

    The network knows no others: its boxes are cut along the image's edges, and it was trained on faces that stand.
    """
    standing: NDArray[np.bool_] = np.abs(rolls(landmarks)) < LYING
    return standing


def rolls(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each frame's head leans, float32 `[n]` in radians: the angle of the eyes, positive where the right one is lower."""
    along = landmarks[:, _RIGHT_EYE] - landmarks[:, _LEFT_EYE]
    return np.asarray(np.arctan2(along[:, 1], along[:, 0]), np.float32)


FaceBox = tuple[int, int, int, int]
Filter = Literal["bilinear", "bicubic"]

_SIDE = 512
_BLUR = 0.1
"""The Gaussian's width as a share of the crop's (upstream's real-time path)."""
_SKIN, _NOSE, _INNER, _UPPER_LIP, _LOWER_LIP = 1, 10, 11, 12, 13
_CHEEK = 90
"""How far the strip that is not narrowed reaches to each side of the middle, of 512 (`left_cheek_width`, `right_cheek_width`)."""
_NOSE_OUTLINE = (195, 48, 129, 64, 98, 97, 2, 326, 327, 294, 358, 278)
"""Mesh points around the lower nose; their hull is left alone."""
_NARROW = 34 / _SIDE
_DROP = 6 / _SIDE
"""What upstream's recipe does to a face's outline, in sides of the crop: cheeks come in, the chin's edge goes down."""
_SUBPIXEL_BITS = 4


def blend_mask(region: Pixels, box: FaceBox) -> Pixels:
    """The mask over the face box, uint8 `[h, w]`, of a region over the lower part of it, uint8 `[y2 - middle, w]`.

    Equal to the part in the face box of the mask that upstream makes in the whole crop, whose edge is too far away to matter.
    """
    x1, y1, x2, y2 = box
    side = crop_box(box)[2] - crop_box(box)[0]
    size = int(_BLUR * side // 2 * 2) + 1
    reach = size // 2
    canvas = np.zeros((y2 - y1 + 2 * reach, x2 - x1 + 2 * reach), np.uint8)
    canvas[reach + middle(box) - y1 : reach + y2 - y1, reach : reach + x2 - x1] = region
    soft = cv2.GaussianBlur(canvas, (size, size), 0)
    return np.ascontiguousarray(soft[reach : reach + y2 - y1, reach : reach + x2 - x1])


def middle(box: FaceBox) -> int:
    """First row of the image that the mask may show before it is softened: the middle of the face box."""
    return (box[1] + box[3]) // 2


def resize(square: Pixels, side: int, kind: Filter) -> Pixels:
    """A uint8 image `[n, n]` or `[n, n, c]` at another size, by Pillow as upstream does it.

    Raises ValueError for an image that is not square: Pillow 13 resizes along the axes of others in another order than earlier
    versions, with other roundings.
    """
    if square.shape[0] != square.shape[1]:
        raise ValueError(f"an image of {square.shape[1]}×{square.shape[0]} is not square")
    return np.array(Image.fromarray(square).resize((side, side), Image.Resampling[kind.upper()]), np.uint8)


def region_of_mesh(points: NDArray[np.float32], box: FaceBox) -> Pixels:
    """The lower face without the nose from mesh points, float32 `[468, 2]` in pixels of the image.

    Returns uint8 0 … 255, `[y2 - middle, w]`, edges antialiased so that they move less than a pixel when the points do. Its outline
    is the one that upstream's recipe gives a well parsed face: the jaw's, cheeks narrowed, the chin's edge a little lower.
    """
    x1, _, x2, y2 = box
    top = middle(box)
    side = crop_box(box)[2] - crop_box(box)[0]
    outline = jaw_lines(points[None])[0].astype(np.float64)
    centre = (x1 + x2) / 2
    away = outline[:, 0] - centre
    strip = _CHEEK / _SIDE * side
    narrowed = np.minimum(np.abs(away), np.maximum(strip, np.abs(away) - _NARROW * side))
    outline[:, 0] = centre + np.sign(away) * narrowed
    outline[:, 1] += _DROP * side
    nose = cv2.convexHull(points[_NOSE_OUTLINE, :].astype(np.float32)).reshape(-1, 2)
    region = np.zeros((y2 - top, x2 - x1), np.uint8)
    for polygon, value in ((outline, 255), (nose, 0)):
        shifted = np.rint((polygon - (x1, top)) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        cv2.fillPoly(region, [shifted], (value,), cv2.LINE_AA, _SUBPIXEL_BITS)
    return region


def region_of_classes(classes: Pixels, box: FaceBox) -> Pixels:
    """Upstream's `jaw` recipe on the classes uint8 `[512, 512]` of the crop around `box`; returns uint8 `[y2 - middle, w]`."""
    x1, _, x2, y2 = box
    left, top, right, _ = crop_box(box)
    whole = resize(_jaw(classes), right - left, "bicubic")
    return whole[middle(box) - top : y2 - top, x1 - left : x2 - left]


def _jaw(classes: Pixels) -> Pixels:
    """Skin grown upwards into gaps, narrowed where the cheeks are, and the mouth; 0 or 255."""
    skin = np.where(classes == _SKIN, 255, 0).astype(np.uint8)
    grown = cv2.dilate(skin, _house())
    narrowed = cv2.erode(grown, _bar(), iterations=2)
    columns = np.arange(classes.shape[1])
    cheeks = (columns <= _SIDE // 2 - _CHEEK) | (columns >= _SIDE // 2 + _CHEEK)
    shown = np.where(cheeks, narrowed, grown) == 255
    mouth = (classes == _INNER) | (classes == _UPPER_LIP) | (classes == _LOWER_LIP)
    return np.where((shown & (classes != _NOSE)) | mouth, 255, 0).astype(np.uint8)


def _house() -> Pixels:
    """The 33×33 dilation kernel: a gable of rows 10 … 20 over a block of columns 6 … 26 (373 ones)."""
    rows, columns = np.mgrid[:33, :33]
    return cast("Pixels", ((rows >= 10) & (np.abs(columns - 16) <= np.minimum(rows - 10, 10))).astype(np.uint8))


def _bar() -> Pixels:
    """The erosion kernel that upstream asks OpenCV for as an ellipse of 35×3: a row of 35 with one pixel above and below."""
    kernel = np.zeros((3, 35), np.uint8)
    kernel[1], kernel[:, 17] = 1, 1
    return kernel
