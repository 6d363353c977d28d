"""Whether two faces are of one person: 128 numbers of a face by dlib's network where it is installed, else by its picture.

The network is `dlib_face_recognition_resnet_model_v1` (D. King, public domain; 99.4 % on LFW by its author), run by dlib itself:
`pip install 'musetalk-livekit[identity]'` and `musetalk-agent fetch-models identity`. Its input is dlib's own face chip, whose
constants are those of `get_face_chip_details` for five landmarks. Without it a plain descriptor is made of the upper face, which
separates people who are filmed alike, and no others.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import Points
from musetalk_agent.avatars.face_picture import HEIGHT, WIDTH, FacePicture
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import ModelStore

Descriptor = NDArray[np.float32]

NETWORK = "identity/dlib_face_recognition_resnet_model_v1.dat"
_CHIP = 150
_PADDING = 0.25
_CHIP_POINTS = (  # of the mesh, and where dlib's mean face has them, as shares of the chip without its padding
    (263, 0.8595674595992, 0.2134981538014),
    (362, 0.6460604764104, 0.2289674387677),
    (33, 0.1205750620789, 0.2137274526848),
    (133, 0.3340850613712, 0.2290642403242),
    (2, 0.4901123135679, 0.6277975316475),
)
_UPPER = (slice(16, 104), slice(24, 136))
"""The part of a cut-out that the plain descriptor reads: brows, eyes, nose; speech does not move it."""
_UPPER_SIZE = (28, 22)


class FaceDescriber(Protocol):
    """Makes a descriptor of a face.

    `same` is the cosine of two descriptors from which on they count as one person's.
    """

    name: str
    same: float

    def describe(self, bgr: Pixels, points: Points, picture: FacePicture) -> Descriptor:
        """float32 `[n]` of length 1, of the face with the mesh `points` in a frame, uint8 BGR, and its cut-out."""
        ...


def describer(store: ModelStore) -> FaceDescriber:
    """The network where dlib and its weights are there, else the plain descriptor."""
    path = store.location(NETWORK)
    if path.is_file() and importlib.util.find_spec("dlib") is not None:
        return NetworkDescriber(path)
    return PlainDescriber()


class NetworkDescriber:
    """dlib's network: some 30 ms of a core a face.

    Args:
        weights: the network's file.
    """

    name = "dlib"
    same = 0.95
    """22 clips of eight people: other people at most 0.911, clips of one person 0.992 and more (docs/reference/judge.md)."""

    def __init__(self, weights: Path) -> None:
        dlib: Any = importlib.import_module("dlib")
        self._net = dlib.face_recognition_model_v1(str(weights))

    def describe(self, bgr: Pixels, points: Points, picture: FacePicture) -> Descriptor:
        """See `FaceDescriber`."""
        chip = cv2.cvtColor(_chip(bgr, points), cv2.COLOR_BGR2RGB)
        return _unit(np.array(self._net.compute_face_descriptor(chip), np.float32))


class PlainDescriber:
    """The upper face's picture, small, without its mean and its slope of light."""

    name = "plain"
    same = 0.82
    """The same clips: other people at most 0.832 (95 of 100: 0.76), clips of one person 0.80 and more, one clip 0.96 and more."""

    def describe(self, bgr: Pixels, points: Points, picture: FacePicture) -> Descriptor:
        """See `FaceDescriber`."""
        assert picture.pixels.shape[:2] == (HEIGHT, WIDTH)
        part = cv2.resize(picture.pixels[_UPPER], _UPPER_SIZE, interpolation=cv2.INTER_AREA)
        grey = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY).astype(np.float32)
        y, x = np.mgrid[: grey.shape[0], : grey.shape[1]]
        light = np.stack([np.ones(grey.size), x.ravel(), y.ravel()], 1)
        flat = grey.ravel().astype(np.float64)
        flat = flat - light @ np.linalg.lstsq(light, flat, rcond=None)[0]
        return _unit(flat.astype(np.float32))


def mean_descriptor(found: list[Descriptor]) -> Descriptor:
    """The mean of descriptors of one face, of length 1."""
    return _unit(np.asarray(np.mean(found, axis=0), np.float32))


def cosine(one: Descriptor, other: Descriptor) -> float:
    """The cosine of two descriptors, -1 … 1."""
    return float(one @ other)


def _unit(values: Descriptor) -> Descriptor:
    return np.asarray(values / max(float(np.linalg.norm(values)), 1e-9), np.float32)


def _chip(bgr: Pixels, points: Points) -> Pixels:
    ours = points[[index for index, _, _ in _CHIP_POINTS]].astype(np.float32)
    theirs = np.array([(x, y) for _, x, y in _CHIP_POINTS], np.float32)
    theirs = (theirs + _PADDING) / (1 + 2 * _PADDING) * _CHIP
    moved, _ = cv2.estimateAffinePartial2D(ours, theirs, method=cv2.LMEDS)
    if moved is None:
        return np.zeros((_CHIP, _CHIP, 3), np.uint8)
    flags = cv2.INTER_AREA if abs(moved[0, 0]) < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.warpAffine(bgr, moved, (_CHIP, _CHIP), flags=flags), np.uint8)
