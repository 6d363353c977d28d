"""Finds a face and its 468 mesh points in single images: MediaPipe's networks on plain LiteRT.

Constants (anchors, scale of the crop, thresholds) are those of MediaPipe's graphs `face_detection_short_range`,
`face_detection_full_range` and `face_landmark` (Apache-2.0). Interpreters are not thread-safe: one `FaceNet` per thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import ModelStore

Points = NDArray[np.float32]

POINTS = 468
LEFT_EYE, RIGHT_EYE = 33, 263  # outer corners, as seen in the image
DETECTORS = ("face/face_detection_short_range.tflite", "face/face_detection_full_range.tflite")
MESH = "face/face_landmark.tflite"
_MESH_SIDE = 192
_CROP_SCALE = 1.5
_SETTLE_ROUNDS = 3
_MIN_LOGIT = 0.0  # a probability of one half
_OVERLAP = 0.3
FACE_LOGIT = 8.0
"""The mesh's logit from which on a detection counts as a face. Seen: 12 (a profile) to 60 on upright faces of people, 39 and more
on frontal ones, below 7 on hands, cloth and noise, up to 11 on faces that are read upside down."""
_INNER_LIPS = (13, 14)
_PAINTED = (0.34, 0.20), (0.40, 0.26)
"""Half axes, in eye distances, of what is painted over a mouth: lips and a little around them."""
_EYES = (33, 133, 362, 263)
_PAINTED_EYES = (0.75, 0.28)
"""The same over both eyes and their brows."""
_WEIGHT = 10.0
"""Of the logit's fall against the logit itself, by logistic regression: 103 faces of people, each also behind masks, fingers,
captions, cups and microphones."""
DRAWN_FACE_LOGIT = 4.0
"""The logit that is enough for one upright face where no other is found at all: painted ones have little more."""
CERTAIN_LOGIT = 20.0
"""Below this logit a face may be one that is read the wrong way round: turned copies of the image are searched as well."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A face as the detector sees it: centre and side of its square in pixels, angle of the eye line in radians, logit."""

    x: float
    y: float
    side: float
    angle: float
    score: float


@dataclass(frozen=True, slots=True)
class Face:
    """A face as the mesh network sees it: float32 `[468, 2]` points in pixels, and the logit of there being a face at all.

    `depths`, float32 `[468]` in pixels, is how much nearer to the viewer each point is than others; None unless it was asked for.
    """

    points: Points
    score: float
    depths: NDArray[np.float32] | None = None

    @property
    def width(self) -> float:
        """Width of the mesh along its own eye line, in pixels: a face that lies is as wide as one that stands."""
        along = self.points[RIGHT_EYE] - self.points[LEFT_EYE]
        across = self.points @ (along / max(float(np.linalg.norm(along)), 1e-6))
        return float(across.max() - across.min())


class _Network:
    """One TFLite graph with one thread: the images are small, and other sessions need the cores."""

    def __init__(self, path: str) -> None:
        self._net: Any = Interpreter(path, num_threads=1)
        self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        self._outputs = [o["index"] for o in self._net.get_output_details()]
        self.side = int(self._net.get_input_details()[0]["shape"][1])

    def run(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        self._net.set_tensor(self._input, image[None])
        self._net.invoke()
        return [self._net.get_tensor(index) for index in self._outputs]


class _Detector:
    def __init__(self, path: str) -> None:
        self._net = _Network(path)
        self._anchors = _anchors(self._net.side)

    def find(self, rgb: Pixels) -> list[Detection]:
        """All faces in an RGB image, best first."""
        side = self._net.side
        height, width = rgb.shape[:2]
        scale = side / max(height, width)
        small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:side, :side]
        square = np.zeros((side, side, 3), np.float32)
        square[: small.shape[0], : small.shape[1]] = small
        square[: small.shape[0], : small.shape[1]] /= 127.5
        square[: small.shape[0], : small.shape[1]] -= 1.0
        square[small.shape[0] :] = square[:, small.shape[1] :] = -1.0
        boxes, scores = self._net.run(square)
        return _decode(boxes.reshape(-1, 16), scores.reshape(-1), self._anchors, side, max(height, width))


class FaceNet:
    """The detectors and the mesh.

    Args:
        models: where the model files lie.

    Raises:
        WeightsMissing: a model file is not there.
    """

    def __init__(self, models: ModelStore) -> None:
        self._detectors = [_Detector(str(models.path(name))) for name in DETECTORS]
        self._mesh = _Network(str(models.path(MESH)))

    def faces(self, rgb: Pixels, *, thorough: bool = True) -> list[Face]:
        """Faces that detector and mesh agree on in an RGB image, widest first.

        The full-range detector is asked when the quick one shows no face that the mesh confirms. `thorough` asks both in any case;
        where they find no face or a doubtful one, turned copies of the image are searched, and without any face its quarters. A
        single face of which the mesh is less sure is taken when there is no other, as drawings are.
        """
        found: list[Face] = []
        for detector in self._detectors:
            found = _distinct([*found, *self._confirmed(rgb, detector.find(rgb))])
            if found and not thorough:
                return found
        if thorough and (not found or found[0].score < CERTAIN_LOGIT):
            found = _distinct([*found, *self._confirmed(rgb, self._turned(rgb))])
        if thorough and not found:
            found = _distinct(self._confirmed(rgb, self._search(rgb)))
        if thorough and not found:
            straight = [d for detector in self._detectors for d in detector.find(rgb)]
            found = _distinct(self._confirmed(rgb, straight, DRAWN_FACE_LOGIT))[:1]
        return found

    def _confirmed(self, rgb: Pixels, detections: list[Detection], least: float = FACE_LOGIT) -> list[Face]:
        """The detections that the mesh confirms: it sees a face, with a logit of at least `least`, in the detection's place."""
        seen = []
        for detection in detections:
            face = self.refine_mesh(rgb, detection)
            if face is not None and face.score >= least and plausible(face, rgb) and _coincide(detection, face):
                seen.append(face)
        return seen

    def _turned(self, rgb: Pixels) -> list[Detection]:
        """What the detectors see in copies of the image turned by quarters, in the image's own pixels and angles."""
        height, width = rgb.shape[:2]
        found = []
        for turns in (1, 2, 3):
            copy = np.ascontiguousarray(np.rot90(rgb, turns))
            for detector in self._detectors:
                for d in detector.find(copy):
                    x, y = ((width - 1 - d.y, d.x), (width - 1 - d.x, height - 1 - d.y), (d.y, height - 1 - d.x))[
                        turns - 1
                    ]
                    found.append(replace(d, x=x, y=y, angle=d.angle + turns * math.pi / 2))
        return found

    def _search(self, rgb: Pixels) -> list[Detection]:
        """Faces too small for the whole image: the full-range network over overlapping quarters of it."""
        height, width = rgb.shape[:2]
        side = max(height, width) // 2
        found = []
        for top in _offsets(height, side):
            for left in _offsets(width, side):
                tile = np.ascontiguousarray(rgb[top : top + side, left : left + side])
                found += [replace(d, x=d.x + left, y=d.y + top) for d in self._detectors[1].find(tile)]
        return found

    def refine_mesh(self, rgb: Pixels, crop: Detection) -> Face | None:
        """The mesh of a detected face. The crop follows the mesh for a few rounds: one pass alone is off by percents."""
        face: Face | None = None
        for _ in range(_SETTLE_ROUNDS):
            face = self.mesh(rgb, crop)
            if face is None:
                return None
            crop = crop_of(face.points)
        return face

    def mesh(self, rgb: Pixels, crop: Detection) -> Face | None:
        """The face in `crop`; None when the network sees none there."""
        patch, to_picture, shrink, corner = _patch(rgb, crop)
        seen = self._read(patch)
        if seen.score < _MIN_LOGIT:
            return None
        points = (seen.points @ to_picture[:, :2].T + to_picture[:, 2]) * shrink + corner
        scale = float(np.linalg.norm(to_picture[:, 0])) * shrink
        depths = None if seen.depths is None else (seen.depths * np.float32(scale))
        return Face(points.astype(np.float32), seen.score, depths)

    def mouth_evidence(self, rgb: Pixels, face: Face) -> float:
        """How much the network's belief in a refined face rests on its mouth: the logit, and how far it falls without one.

        The mouth is painted over as skin, narrowly and widely, and the larger fall counts. One that a mask, a hand or a caption
        hides can be painted over without a fall. docs/reference/avatars.md has what was measured.
        """
        patch, points = _refined_patch(rgb, face)
        least = min(self._read(_painted_over(patch, points, _INNER_LIPS, axes)).score for axes in _PAINTED)
        return face.score + _WEIGHT * (face.score - least)

    def mouth_without_eyes(self, rgb: Pixels, face: Face) -> float:
        """How far the logit of a refined face falls with its mouth when its eyes are painted over already.

        Where the eyes are seen, they can be enough for the network: some hidden mouths are missed then.
        """
        patch, points = _refined_patch(rgb, face)
        eyeless = _painted_over(patch, points, _EYES, _PAINTED_EYES)
        neither = _painted_over(eyeless, points, _INNER_LIPS, _PAINTED[-1])
        return self._read(eyeless).score - self._read(neither).score

    def _read(self, patch: NDArray[np.float32]) -> Face:
        """What the mesh network sees in its own image, float32 RGB `[192, 192, 3]` 0 … 255; points in pixels of it."""
        outputs = {out.size: out for out in self._mesh.run(patch / np.float32(255))}
        points = outputs[POINTS * 3].reshape(POINTS, 3).astype(np.float32)
        return Face(points[:, :2], float(outputs[1].reshape(())), -points[:, 2])


def _patch(rgb: Pixels, crop: Detection) -> tuple[NDArray[np.float32], NDArray[np.float64], int, NDArray[np.int64]]:
    """The mesh network's image of a crop, and how its pixels lead back: an affine map, then a factor, then an offset."""
    picture, offset = _shrunk(rgb, crop)
    shrink = offset[2]
    side = crop.side / shrink
    x, y = (crop.x - offset[0]) / shrink, (crop.y - offset[1]) / shrink
    cos, sin = math.cos(crop.angle) * side / _MESH_SIDE, math.sin(crop.angle) * side / _MESH_SIDE
    half = _MESH_SIDE / 2
    to_picture = np.array([[cos, -sin, x - half * (cos - sin)], [sin, cos, y - half * (sin + cos)]])
    patch = cv2.warpAffine(picture, to_picture, (_MESH_SIDE, _MESH_SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return patch.astype(np.float32), to_picture, shrink, np.array(offset[:2])


def _refined_patch(rgb: Pixels, face: Face) -> tuple[NDArray[np.float32], Points]:
    """The mesh network's image of a refined face, and its points in pixels of that."""
    patch, to_picture, shrink, corner = _patch(rgb, crop_of(face.points))
    inverse = np.linalg.inv(to_picture[:, :2])
    return patch, (((face.points - corner) / shrink - to_picture[:, 2]) @ inverse.T).astype(np.float32)


def _painted_over(
    patch: NDArray[np.float32], points: Points, what: tuple[int, ...], size: tuple[float, float]
) -> NDArray[np.float32]:
    """A face without a part: an ellipse of `size` around the points `what` in the median colour around it, its edge soft."""
    along = points[RIGHT_EYE] - points[LEFT_EYE]
    eyes = float(np.linalg.norm(along))
    x, y = points[list(what)].mean(0)
    axes = max(1, int(size[0] * eyes)), max(1, int(size[1] * eyes))
    cover = np.zeros(patch.shape[:2], np.uint8)
    angle = math.degrees(math.atan2(float(along[1]), float(along[0])))
    cv2.ellipse(cover, (round(float(x)), round(float(y))), axes, angle, 0, 360, 255, -1)
    ring = patch[(cv2.dilate(cover, np.ones((9, 9), np.uint8)) > 0) & (cover == 0)]
    if not len(ring):
        return patch
    share = cv2.GaussianBlur(cover, (0, 0), 3.0).astype(np.float32)[..., None] / np.float32(255)
    return np.asarray(patch + (np.median(ring, 0).astype(np.float32) - patch) * share, np.float32)


def crop_of(points: Points) -> Detection:
    """The crop that the next image's mesh is read from."""
    low, high = points.min(0), points.max(0)
    eyes = points[RIGHT_EYE] - points[LEFT_EYE]
    centre = (low + high) / 2
    return Detection(
        float(centre[0]),
        float(centre[1]),
        float((high - low).max()) * _CROP_SCALE,
        math.atan2(float(eyes[1]), float(eyes[0])),
        0.0,
    )


def plausible(face: Face, rgb: Pixels) -> bool:
    """Whether a mesh lies in its image and has a size: one that has left it or shrunk to nothing is none, whatever its score."""
    points = face.points
    height, width = rgb.shape[:2]
    low, high = points.min(0), points.max(0)
    eyes = float(np.linalg.norm(points[RIGHT_EYE] - points[LEFT_EYE]))
    inside = (min(high[0], width) - max(low[0], 0)) * (min(high[1], height) - max(low[1], 0))
    area = float((high - low).prod())
    return bool(high[0] > 0 and high[1] > 0 and low[0] < width and low[1] < height and eyes > 4 and inside > 0.4 * area)


def _coincide(detection: Detection, face: Face) -> bool:
    """Whether a mesh lies where its detection is: its middle within the square, its own size not far from it."""
    seen = crop_of(face.points)
    near = max(abs(seen.x - detection.x), abs(seen.y - detection.y)) < detection.side / 2
    return near and 0.4 < seen.side / max(detection.side, 1e-6) < 2.5


def _distinct(faces: list[Face]) -> list[Face]:
    """One face for each place, the one with the best score, widest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.score):
        if all(_overlap(crop_of(face.points), crop_of(other.points)) < _OVERLAP for other in kept):
            kept.append(face)
    return sorted(kept, key=lambda f: -f.width)


def _shrunk(rgb: Pixels, crop: Detection) -> tuple[Pixels, tuple[int, int, int]]:
    """The part of the image around a crop, shrunk by a whole factor when it is far larger than the network's input.

    A bilinear warp from a large face skips pixels, and points read from such a crop tremble. Returns the part and where it
    came from: left, top, factor.
    """
    factor = int(crop.side / _MESH_SIDE)
    if factor < 2:
        return rgb, (0, 0, 1)
    reach = crop.side * 0.75
    height, width = rgb.shape[:2]
    x0, y0 = max(0, int(crop.x - reach)), max(0, int(crop.y - reach))
    x1, y1 = min(width, int(crop.x + reach)), min(height, int(crop.y + reach))
    columns, rows = (x1 - x0) // factor, (y1 - y0) // factor
    if columns < 1 or rows < 1:
        return rgb, (0, 0, 1)
    part = rgb[y0 : y0 + rows * factor, x0 : x0 + columns * factor]
    return cast("Pixels", cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)), (x0, y0, factor)


def _offsets(whole: int, side: int) -> list[int]:
    """Where tiles of `side` begin, half overlapping, the last one at the end."""
    return [*range(0, max(1, whole - side), max(1, side // 2)), max(0, whole - side)]


def _anchors(side: int) -> NDArray[np.float32]:
    """Centres of the detector's anchors in 0 … 1: strides 8 and 16 with 2 and 6 each (128), stride 4 with 1 (192)."""
    layers = ((16, 2), (8, 6)) if side == 128 else ((48, 1),)
    return np.array(
        [
            ((column + 0.5) / cells, (row + 0.5) / cells)
            for cells, per_cell in layers
            for row in range(cells)
            for column in range(cells)
            for _ in range(per_cell)
        ],
        np.float32,
    )


def _decode(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], anchors: NDArray[np.float32], side: int, pixels: int
) -> list[Detection]:
    found: list[Detection] = []
    for k in np.argsort(-scores):
        if scores[k] < _MIN_LOGIT:
            break
        x, y = (boxes[k, :2] / side + anchors[k]) * pixels
        eyes = boxes[k, 4:8].reshape(2, 2)
        angle = math.atan2(float(eyes[1, 1] - eyes[0, 1]), float(eyes[1, 0] - eyes[0, 0]))
        face = Detection(float(x), float(y), float(boxes[k, 2]) / side * pixels * _CROP_SCALE, angle, float(scores[k]))
        if all(_overlap(face, other) < _OVERLAP for other in found):
            found.append(face)
    return found


def _overlap(one: Detection, other: Detection) -> float:
    """Intersection over union of two squares."""
    width = min(one.x + one.side / 2, other.x + other.side / 2) - max(one.x - one.side / 2, other.x - other.side / 2)
    height = min(one.y + one.side / 2, other.y + other.side / 2) - max(one.y - one.side / 2, other.y - other.side / 2)
    shared = max(0.0, width) * max(0.0, height)
    return shared / (one.side**2 + other.side**2 - shared)
