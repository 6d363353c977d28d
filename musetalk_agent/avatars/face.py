"""Finds a face and its 468 mesh points in single pictures: MediaPipe's networks on plain LiteRT.

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

from musetalk_agent.media import Pixels
from musetalk_agent.weights import ModelStore

Points = NDArray[np.float32]

POINTS = 468
LEFT_EYE, RIGHT_EYE = 33, 263  # outer corners, as seen in the picture
DETECTORS = ("face/face_detection_short_range.tflite", "face/face_detection_full_range.tflite")
MESH = "face/face_landmark.tflite"
_MESH_SIDE = 192
_CROP_SCALE = 1.5
_SETTLE_ROUNDS = 3
_MIN_LOGIT = 0.0  # a probability of one half
_OVERLAP = 0.3


@dataclass(frozen=True, slots=True)
class Detection:
    """A face as the detector sees it: centre and side of its square in pixels, angle of the eye line in radians, logit."""

    x: float
    y: float
    side: float
    angle: float
    score: float


class _Network:
    """One TFLite graph with one thread: the pictures are small, and other sessions need the cores."""

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
        """All faces in an RGB picture, best first."""
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

    def detect(self, rgb: Pixels) -> list[Detection]:
        """Faces in an RGB picture, largest first; the full-range network is asked only when the quick one sees none."""
        for detector in self._detectors:
            if found := detector.find(rgb):
                return sorted(found, key=lambda d: -d.side)
        return []

    def search(self, rgb: Pixels) -> list[Detection]:
        """Faces too small for `detect`, largest first: the full-range network over overlapping quarters of the picture."""
        height, width = rgb.shape[:2]
        side = max(height, width) // 2
        found = []
        for top in _offsets(height, side):
            for left in _offsets(width, side):
                tile = np.ascontiguousarray(rgb[top : top + side, left : left + side])
                found += [replace(d, x=d.x + left, y=d.y + top) for d in self._detectors[1].find(tile)]
        return sorted(found, key=lambda d: -d.side)

    def settle(self, rgb: Pixels, face: Detection) -> Points | None:
        """Mesh of a detected face: the crop follows the mesh a few rounds, as one pass alone is off by percents."""
        points: Points | None = None
        for _ in range(_SETTLE_ROUNDS):
            points = self.mesh(rgb, face)
            if points is None:
                return None
            face = crop_of(points)
        return points

    def mesh(self, rgb: Pixels, crop: Detection) -> Points | None:
        """468 points, float32 `[468, 2]` in pixels, of the face in `crop`; None when the network sees no face there."""
        picture, offset = _shrunk(rgb, crop)
        shrink = offset[2]
        side = crop.side / shrink
        x, y = (crop.x - offset[0]) / shrink, (crop.y - offset[1]) / shrink
        cos, sin = math.cos(crop.angle) * side / _MESH_SIDE, math.sin(crop.angle) * side / _MESH_SIDE
        half = _MESH_SIDE / 2
        to_picture = np.array([[cos, -sin, x - half * (cos - sin)], [sin, cos, y - half * (sin + cos)]])
        patch = cv2.warpAffine(
            picture, to_picture, (_MESH_SIDE, _MESH_SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        outputs = {out.size: out for out in self._mesh.run(patch.astype(np.float32) / np.float32(255))}
        if float(outputs[1].reshape(())) < _MIN_LOGIT:
            return None
        flat = outputs[POINTS * 3].reshape(POINTS, 3)[:, :2]
        points = (flat @ to_picture[:, :2].T + to_picture[:, 2]) * shrink + np.array(offset[:2])
        return cast("Points", points.astype(np.float32))


def crop_of(points: Points) -> Detection:
    """The crop that the next picture's mesh is read from."""
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


def _shrunk(rgb: Pixels, crop: Detection) -> tuple[Pixels, tuple[int, int, int]]:
    """The part of the picture around a crop, shrunk by a whole factor when it is far larger than the network's input.

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
