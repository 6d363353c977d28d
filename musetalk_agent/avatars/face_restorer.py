"""Restores small or blurred faces with a face restoration network: GFPGAN, or any other of its form, as ONNX.

Such a network takes an aligned face of 512×512 and returns it as a sharp one. Here: finding the file, running it by onnxruntime,
cutting the face out by five points, and laying it back with a soft edge. onnxruntime is the extra `[restore]`.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import POINTS
from musetalk_agent.errors import EngineUnavailable, WeightsInvalid
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import ModelStore

RESTORER = "restore/GFPGANv1.4.onnx"
"""The manifest's name of the weights."""
SIDE = 512
"""Pixels of a side of the aligned face, in and out."""
TEMPLATE = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
"""Where both eyes, the tip of the nose and the corners of the mouth lie in the aligned face: FFHQ's, which GFPGAN learnt from."""
_EYES, _NOSE, _MOUTH = ((33, 133), (362, 263)), 1, (61, 291)
"""The same five in MediaPipe's mesh; an eye is half-way between its corners."""
_EDGE = 40
"""Pixels of the aligned face over which it fades out towards its border."""
_CARD = "CUDAExecutionProvider"

Placement = NDArray[np.float64]


def five_points(mesh: NDArray[np.floating]) -> NDArray[np.float64]:
    """Eyes, nose and mouth, float64 `[5, 2]`, of a mesh `[468, 2]`."""
    points = np.asarray(mesh, np.float64)
    eyes = [points[list(corners)].mean(0) for corners in _EYES]
    return np.stack([*eyes, points[_NOSE], *points[list(_MOUTH)]])


def placement_of(mesh: NDArray[np.floating]) -> Placement:
    """From the picture to the aligned face, float64 `[2, 3]`: the similarity that fits the five points best (least squares)."""
    given, wanted = five_points(mesh) @ (1, 1j), TEMPLATE @ (1, 1j)
    at = given - given.mean()
    turn = np.vdot(at, wanted - wanted.mean()) / max(float(np.vdot(at, at).real), 1e-9)
    shift = wanted.mean() - turn * given.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def pixels_of(placement: Placement) -> float:
    """How many pixels of the picture the side of the aligned face is."""
    return SIDE / max(float(np.hypot(*placement[:, 0])), 1e-9)


class FaceRestorer:
    """The network, on the card where onnxruntime has one, else on the processor. One thread at a time.

    Args:
        models: where the weights are.
        network: another file of the same form, which no manifest lists.

    Raises:
        EngineUnavailable: onnxruntime is not installed.
        WeightsMissing: the weights are not there.
        WeightsInvalid: the file is no such network.
    """

    def __init__(self, models: ModelStore, network: Path | None = None) -> None:
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            raise EngineUnavailable(
                "onnxruntime is not installed: install the extra [restore], or onnxruntime-gpu for a card.",
                field="restore",
            ) from error
        path = network or models.path(RESTORER)
        available = runtime.get_available_providers()
        providers = [name for name in (_CARD, "CPUExecutionProvider") if name in available]
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # a card that is not there shows in `on_card`
        try:
            self._session: Any = runtime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no public base: each becomes one with our code
            raise WeightsInvalid(f"{path} is no network that onnxruntime reads: {str(error)[:200]}") from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shapes = [list(one.shape[1:]) for one in (*inputs, *outputs)]
        if len(inputs) != 1 or not outputs or shapes[0] != [3, SIDE, SIDE]:
            raise WeightsInvalid(
                f"{path} takes {[one.shape for one in inputs]} and not one face of 3×{SIDE}×{SIDE}.", field="restore"
            )
        self._input, self._output = inputs[0].name, outputs[0].name

    @property
    def on_card(self) -> bool:
        """Whether a card computes it."""
        return _CARD in self._session.get_providers()

    def face(self, aligned: Pixels) -> Pixels:
        """The restored face of an aligned one, both uint8 BGR `[512, 512, 3]`. Raises `WeightsInvalid` for an answer of another
        shape."""
        blob = cv2.dnn.blobFromImage(aligned, 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True)
        made = np.asarray(self._session.run([self._output], {self._input: blob})[0])
        if made.shape != blob.shape:
            raise WeightsInvalid(
                f"the network of restoration answers {made.shape} and not {blob.shape}.", field="restore"
            )
        values = np.array(made[0], np.float32)
        if not np.isfinite(values.sum()):
            np.nan_to_num(values, copy=False)
        np.clip(values, -1, 1, out=values)
        levels = [cv2.convertScaleAbs(values[channel], alpha=127.5, beta=127.5) for channel in (2, 1, 0)]
        return np.asarray(cv2.merge(levels), np.uint8)

    def restored(self, picture: Pixels, mesh: NDArray[np.floating], strength: float = 1.0) -> Pixels:
        """A copy of a picture, uint8 BGR `[h, w, 3]`, whose face at `mesh` (`[468, 2]`, pixels of it) is restored.

        Args:
            strength: 0 … 1, how much of the restored face is taken.
        """
        placement = placement_of(mesh)
        aligned = cv2.warpAffine(
            picture, placement, (SIDE, SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        return laid_back(picture, self.face(cast("Pixels", aligned)), placement, strength)

    def seconds(self) -> float:
        """How long a face takes, cut and laid back: the fastest of three, after one that warms up."""
        grey, mesh = np.full((SIDE, SIDE, 3), 128, np.uint8), np.zeros((POINTS, 2), np.float32)
        mesh[[*_EYES[0], *_EYES[1], _NOSE, *_MOUTH]] = TEMPLATE[[0, 0, 1, 1, 2, 3, 4]]
        spent = []
        for _ in range(4):
            begun = time.perf_counter()
            self.restored(grey, mesh)
            spent.append(time.perf_counter() - begun)
        return min(spent[1:])


def laid_back(picture: Pixels, face: Pixels, placement: Placement, strength: float = 1.0) -> Pixels:
    """A copy of the picture with the aligned face laid where `placement` took it from, fading out over its edge."""
    height, width = picture.shape[:2]
    back = cv2.invertAffineTransform(placement)
    corners = np.array([(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)], np.float64) @ back[:, :2].T + back[:, 2]
    x0, y0 = np.clip(np.floor(corners.min(0)).astype(int), 0, (width, height))
    x1, y1 = np.clip(np.ceil(corners.max(0)).astype(int) + 1, 0, (width, height))
    out = picture.copy()
    if x1 <= x0 or y1 <= y0:
        return out
    size = (int(x1 - x0), int(y1 - y0))
    within = back.copy()
    within[:, 2] -= (x0, y0)
    side = int(np.clip(round(pixels_of(placement)), 8, SIDE))
    small = cv2.resize(
        face, (side, side), interpolation=cv2.INTER_AREA
    )  # a smaller face is averaged, or it would flicker
    step = SIDE / side
    enlarged = np.array([[step, 0, step / 2 - 0.5], [0, step, step / 2 - 0.5], [0, 0, 1]])
    there = (np.vstack([within, [0, 0, 1]]) @ enlarged)[:2]
    laid = cv2.warpAffine(small, there, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    soft = cv2.warpAffine(_faded(), within, size, flags=cv2.INTER_LINEAR)
    weight = np.asarray(soft * np.float32(strength), np.float32)
    out[y0:y1, x0:x1] = cv2.blendLinear(laid, np.ascontiguousarray(out[y0:y1, x0:x1]), weight, 1 - weight)
    return out


def _faded() -> NDArray[np.float32]:
    """The weight of the aligned face, float32 `[512, 512]`: 1 inside, 0 at its border."""
    ramp = np.clip((np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])) / _EDGE, 0, 1)
    smooth = (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)
    return np.minimum(smooth[:, None], smooth[None, :])
