"""A bundle's matte on disk: made frame by frame from the bundle's own files, and read back memory-mapped and checked.

    mattes/<fingerprint>/alpha.npy     uint8 [frames, height, width]
    mattes/<fingerprint>/person.npy    uint8 [frames, height·3/2, width]: I420, see `cutout.Matte`
    mattes/<fingerprint>/blurred.npy   uint8 [frames, h, w]: I420 in small

Where the clip brought alpha of its own (`alpha.npy` of the bundle), that is the matte. Elsewhere it is a network's, whose trembling
is taken out along time: what does not move keeps its share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays, damage_errors, load_array, map_array
from musetalk_agent.avatars import framing, matting
from musetalk_agent.avatars.bundle import ALPHA_FILE, ArrayWriter, Bundle, DamagedBundle, map_rows, read_rows
from musetalk_agent.avatars.cutout import Matte
from musetalk_agent.avatars.person_net import SEGMENTER, PersonNet
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import Manifest

_VERSION = 1
_COARSE_SIDE = 320
"""Longer side of what is kept of the network's answers, in pixels."""
_KEEPS = 0.75
"""How much of its neighbour's share a pixel that does not move keeps."""
_MOVED = 6.0
"""Grey levels of difference over which that falls (one sigma)."""
_BLUR_PART = 8
"""The blurred background is so much smaller than the picture on each side."""
_BLUR_SIGMA = 0.025
"""Of the blur, in longer sides."""
_CHROMA_ZERO = 128
_WHITE = (235, _CHROMA_ZERO, _CHROMA_ZERO)
"""What alpha of the source was composited on (`picture_decoder`, `frame_conversion`), as Y, U, V."""

Step = Callable[[int, int], object]


def fingerprint(manifest: Manifest) -> str:
    """Changes whenever a matte made now would be another than one made before."""
    parts = [_VERSION, manifest.entries[SEGMENTER].sha256]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def matte_path(bundle: Bundle, manifest: Manifest) -> Path:
    """The folder of a bundle's matte, whether it is there or not."""
    return bundle.path / "mattes" / fingerprint(manifest)


def make_matte(bundle: Path, folder: Path, net: Callable[[], PersonNet], progress: Step) -> None:
    """Writes the matte of the bundle in the folder `bundle` into `folder`, which exists and is empty.

    Args:
        net: opens the network; called only where the clip has no alpha of its own.
        progress: called with how many frames are done, of how many, twice for each.

    Raises OSError, ValueError for a bundle that is damaged.
    """
    alpha = bundle / ALPHA_FILE
    if alpha.exists():
        _from_alpha(bundle, alpha, folder, progress)
        return
    faces = load_array(bundle / "landmarks.npy")
    _look(bundle, folder, faces, net(), progress)
    _steady(folder)
    coarse = _rows(folder / "steady.npy")
    with _Writers(folder) as writers:
        for k, frame in enumerate(read_rows(bundle / "frames.npy")):
            bgr = framing.to_bgr(frame)
            matte = matting.refined(np.asarray(coarse[k], np.float32) / np.float32(255), bgr)
            colours = framing.to_i420(matting.person_colours(bgr, matte))
            writers.append(matte, scaled_planes(colours, matte), _blurred(bgr, matte))
            progress(k + 1, len(coarse))
    for name in ("coarse.npy", "luma.npy", "steady.npy"):
        (folder / name).unlink()


def _look(bundle: Path, folder: Path, faces: NDArray[np.float32], net: PersonNet, progress: Step) -> None:
    """What the network says of every frame, and the frames' luma, both in small, into files: a clip's do not fit into memory."""
    with closing(ArrayWriter(folder / "coarse.npy")) as coarse, closing(ArrayWriter(folder / "luma.npy")) as lumas:
        for k, frame in enumerate(read_rows(bundle / "frames.npy")):
            height, width = frame.shape[0] * 2 // 3, frame.shape[1]
            scale = min(1.0, _COARSE_SIDE / max(width, height))
            size = max(8, round(width * scale)), max(8, round(height * scale))
            seen = net.person(framing.to_bgr(frame), faces[k], size)
            middle = faces[k].mean(0) * (size[0] / width)
            share = matting.own_share(seen, (round(float(middle[0])), round(float(middle[1]))))
            coarse.append(np.asarray(np.rint(share * 255), np.uint8))
            lumas.append(np.asarray(cv2.resize(frame[:height], size, interpolation=cv2.INTER_AREA), np.uint8))
            progress(k + 1, len(faces))


def _steady(folder: Path) -> None:
    """Takes the trembling out of the coarse shares: forwards and backwards along time, so that nothing is late."""
    coarse, luma = _rows(folder / "coarse.npy"), _rows(folder / "luma.npy")
    count = len(coarse)
    with closing(ArrayWriter(folder / "forward.npy")) as writer:
        kept = coarse[0].astype(np.float32)
        for k in range(count):
            kept = _kept(coarse[k], kept, luma[k], luma[max(0, k - 1)])
            writer.append(np.asarray(np.rint(kept), np.uint8))
    forward = _rows(folder / "forward.npy")
    steady = npy.open_memmap(folder / "steady.npy", "w+", np.uint8, coarse.shape)
    kept = coarse[count - 1].astype(np.float32)
    for k in range(count - 1, -1, -1):
        kept = _kept(coarse[k], kept, luma[k], luma[min(count - 1, k + 1)])
        steady[k] = np.rint((kept + forward[k]) / 2)
    steady.flush()
    (folder / "forward.npy").unlink()


def _kept(now: Pixels, before: NDArray[np.float32], luma: Pixels, luma_before: Pixels) -> NDArray[np.float32]:
    moved = cv2.boxFilter(cv2.absdiff(luma, luma_before).astype(np.float32), -1, (5, 5)) / np.float32(_MOVED)
    keep = np.float32(_KEEPS) * np.exp(-(moved**2) / 2, dtype=np.float32)
    return np.asarray(now + keep * (before - now), np.float32)


def _from_alpha(bundle: Path, alpha: Path, folder: Path, progress: Step) -> None:
    """The matte that the clip brought. Its frames lie on white, which is taken out of their edges."""
    mattes = _rows(alpha)
    with _Writers(folder) as writers:
        for k, (frame, matte) in enumerate(zip(read_rows(bundle / "frames.npy"), read_rows(alpha), strict=True)):
            white = scaled_planes(_white(frame.shape), 255 - matte)
            person = np.maximum(frame, white) - white
            height, width = matte.shape
            size = _blurred_size(width, height)
            writers.append(matte, person, _white((size[1] * 3 // 2, size[0])))
            progress(k + 1, len(mattes))


def _white(shape: tuple[int, ...]) -> Pixels:
    made = np.full(shape, _CHROMA_ZERO, np.uint8)
    made[: shape[0] * 2 // 3] = _WHITE[0]
    return made


def _blurred_size(width: int, height: int) -> tuple[int, int]:
    return max(8, width // _BLUR_PART // 2 * 2), max(8, height // _BLUR_PART // 2 * 2)


def _blurred(bgr: Pixels, matte: Pixels) -> Pixels:
    size = _blurred_size(bgr.shape[1], bgr.shape[0])
    return framing.to_i420(matting.blurred(bgr, matte, size, max(1.0, _BLUR_SIGMA * max(size))))


def scaled_planes(i420: Pixels, alpha: Pixels) -> Pixels:
    """I420 uint8 `[h·3/2, w]` times `alpha` uint8 `[h, w]` (255 is one), rounded."""
    return cast("Pixels", cv2.multiply(i420, alpha_planes(alpha).reshape(i420.shape), scale=1 / 255))


def alpha_planes(alpha: Pixels) -> Pixels:
    """The shares of an I420 picture's values, uint8 `[h·w·3/2]`: of luma, and of chroma the means of four pixels."""
    height, width = alpha.shape
    made = np.empty(width * height * 3 // 2, np.uint8)
    made[: width * height] = alpha.reshape(-1)
    half = made[width * height :].reshape(2, height // 2, width // 2)
    cv2.resize(alpha, (width // 2, height // 2), dst=half[0], interpolation=cv2.INTER_AREA)
    half[1] = half[0]
    return made


class _Writers:
    """The three files in the making."""

    def __init__(self, folder: Path) -> None:
        self._writers = [ArrayWriter(folder / f"{name}.npy") for name in ("alpha", "person", "blurred")]

    def __enter__(self) -> _Writers:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers:
            writer.close()

    def append(self, *rows: Pixels) -> None:
        for writer, row in zip(self._writers, rows, strict=True):
            writer.append(row)


def load_matte(folder: Path, bundle: Bundle) -> Matte:
    """Opens a bundle's matte, memory-mapped read-only.

    Raises:
        DamagedBundle: a file is missing, cut short or of another shape.
    """
    try:
        with damage_errors(folder.name):
            matte = Matte(*(map_rows(folder / f"{name}.npy") for name in ("alpha", "person", "blurred")))
    except (FileNotFoundError, DamagedArrays) as error:
        raise DamagedBundle(str(error)) from error
    count, width, height = len(bundle), bundle.width, bundle.height
    small = _blurred_size(width, height)
    expected = (count, height, width), (count, height * 3 // 2, width), (count, small[1] * 3 // 2, small[0])
    found = matte.alpha, matte.person, matte.blurred
    if any(array.shape != shape or array.dtype != np.uint8 for array, shape in zip(found, expected, strict=True)):
        raise DamagedBundle("a matte has the wrong shape")
    return matte


def _rows(path: Path) -> Pixels:
    return cast("Pixels", map_array(path))
