"""A prepared avatar on disk: everything derived from the clip, in formats that cannot run code (never pickle).

It is written frame by frame into a folder of its own, and read back memory-mapped and checked.

Layout of a bundle's folder (written whole and renamed into place, see `cache`):

    bundle.json        schema version, key, size, rate, report
    frames.npy         uint8 [frames, height·3/2, width]: I420, BT.601 limited range
    landmarks.npy      float32 [frames, 468, 2]: mesh points in pixels of the frame, smoothed over time
    boxes.npy          int32 [frames, 4]: x0, y0, x1, y1 of the face window (even, one size for all frames)
    faces.npy          uint8 [frames, h, w, 3]: BGR pixels of the face window
    mouths.npy         float32 [frames]: how far a mouth may be drawn on the frame, 0 … 1
    trust.npy          float32 [frames]: how far the mouth may move there, 0 … 1; bundles of before have none
    relief.npy         float32 [468]: of a still picture, how much nearer than the temples each point is, in pixels
    alpha.npy          uint8 [frames, height, width]: the clip's own alpha, where it has some; `frames.npy` lies on white there
    mattes/<fingerprint>/…    the person without the background, once it was wanted: see `matte_files`
    engines/<fingerprint>/…   what an engine derived for itself
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays, damage_errors, load_array, map_array
from musetalk_agent.avatars.cutout import Cutout
from musetalk_agent.avatars.face import POINTS
from musetalk_agent.media_types import Box, Pixels
from musetalk_agent.protocol.avatar_settings import Mood
from musetalk_agent.protocol.http import AvatarReport

SCHEMA_VERSION = 6


@dataclass(frozen=True)
class Bundle:
    """A prepared avatar, memory-mapped read-only; shared by every session that shows it.

    Args:
        path: the bundle's folder.
        width, height: size of the published image, both even.
        fps: frames per second of the frames.
        frames: uint8 `[n, height·3/2, width]`, I420.
        landmarks: float32 `[n, 468, 2]`, pixels; the MediaPipe face mesh (x right, y down).
        boxes: int32 `[n, 4]`, the face window of each frame.
        faces: uint8 `[n, h, w, 3]`, BGR pixels of the face window.
        report: the quality report.
        mouths: float32 `[n]`, 0 … 1: 0 on frames that show no mouth (no face, a covered mouth), on which nothing is drawn; it
            rises to 1 over the frames beside them. None where every frame shows its mouth.
        cutout: what is shown behind the person; None for the clip as it is.
        relief: float32 `[468]`, of a still picture: how much nearer to the viewer than the temples the points of its mesh are, in
            pixels. Its frames are the picture with its eyes closed by degrees, from open to shut. None for a clip.
        mood: how the face of a still picture is set.
        trust: float32 `[n]`, 0 … 1: how far an engine that moves the mesh may move the mouth, less where the mesh is unsure of the
            face. None for all of its way.
    """

    path: Path
    width: int
    height: int
    fps: int
    frames: Pixels
    landmarks: NDArray[np.float32]
    boxes: NDArray[np.int32]
    faces: Pixels
    report: AvatarReport
    mouths: NDArray[np.float32] | None = None
    cutout: Cutout | None = None
    relief: NDArray[np.float32] | None = None
    mood: Mood = "neutral"
    trust: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    def box(self, idle_index: int) -> Box:
        """Face window of idle frame `idle_index`."""
        x0, y0, x1, y1 = (int(v) for v in self.boxes[idle_index])
        return Box(x0, y0, x1, y1)

    def mouth(self, idle_index: int) -> float:
        """How far a mouth may be drawn on idle frame `idle_index`, 0 … 1."""
        return 1.0 if self.mouths is None else float(self.mouths[idle_index])

    def trusted(self, idle_index: int) -> float:
        """How far the mouth of idle frame `idle_index` may move, 0 … 1."""
        return 1.0 if self.trust is None else float(self.trust[idle_index])

    def with_mouth(self) -> NDArray[np.int64]:
        """The frames that show their mouths best: those on which it is drawn whole, else any part of it, else all of them."""
        if self.mouths is None or not self.mouths.any():
            return np.arange(len(self))
        whole = np.flatnonzero(self.mouths >= 1)
        return whole if len(whole) else np.flatnonzero(self.mouths > 0)

    def engine_path(self, fingerprint: str) -> Path:
        """Where an engine keeps its artefacts."""
        return self.path / "engines" / fingerprint


HEAD_FILE = "bundle.json"
RELIEF_FILE = "relief.npy"
TRUST_FILE = "trust.npy"
ALPHA_FILE = "alpha.npy"


class DamagedBundle(Exception):
    """A bundle's folder is not what was written; it is to be thrown away and built anew."""


class ArrayWriter:
    """Writes a `.npy` of uint8 rows one by one, without knowing how many will come.

    numpy reserves room in the header for the first axis to grow, so that the count is filled in at the end.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b")
        self._row: tuple[int, ...] | None = None
        self.rows = 0

    def append(self, row: Pixels) -> None:
        """Appends uint8 `[…]`; every row has the first one's shape."""
        if self._row is None:
            self._row = row.shape
            self._write_header()
        elif row.shape != self._row:
            raise ValueError(f"row of shape {row.shape} in an array of {self._row}")
        self._file.write(np.ascontiguousarray(row).data)
        self.rows += 1

    def close(self) -> None:
        """Fills the count in. Safe to call twice."""
        if self._file.closed:
            return
        try:
            if self._row is not None:
                self._file.seek(0)
                self._write_header()
        finally:
            self._file.close()

    def _write_header(self) -> None:
        shape = (self.rows, *(self._row or ()))
        npy.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def read_rows(path: Path, start: int = 0, count: int | None = None) -> Iterator[Pixels]:
    """Rows of a `.npy` of uint8 one after the other, `count` from `start` on, or all that follow. They are read and not mapped:
    what a process has mapped counts as its memory until the kernel wants it back.

    Raises:
        ValueError: it is no such file, or cut short.
    """
    with path.open("rb") as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{path.name} is not of version 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(file)
        if fortran or dtype != np.uint8:
            raise ValueError(f"{path.name} has other rows")
        size = math.prod(shape[1:])
        file.seek(start * size, os.SEEK_CUR)
        for _ in range(shape[0] - start if count is None else count):
            data = file.read(size)
            yield np.frombuffer(data, np.uint8).reshape(shape[1:])


def read_size(folder: Path) -> tuple[int, int]:
    """Width and height of a bundle's image. Raises OSError, ValueError."""
    head = json.loads((folder / HEAD_FILE).read_text("utf-8"))
    return int(head["width"]), int(head["height"])


def write_head(folder: Path, key: str, bundle_fps: int, report: AvatarReport) -> None:
    """Writes `bundle.json`, the last file of a bundle: without it there is none."""
    head = {
        "schema": SCHEMA_VERSION,
        "key": key,
        "fps": bundle_fps,
        "width": report.width,
        "height": report.height,
        "report": report.model_dump(),
    }
    (folder / HEAD_FILE).write_text(json.dumps(head, indent=1), "utf-8")


def load_bundle(folder: Path, key: str) -> Bundle:
    """Opens a bundle, memory-mapped read-only.

    Raises:
        DamagedBundle: a file is missing, cut short, of another shape, or was written for something else.
    """
    try:
        with damage_errors(folder.name):
            head: dict[str, Any] = json.loads((folder / HEAD_FILE).read_text("utf-8"))
            if head["schema"] != SCHEMA_VERSION or head["key"] != key:
                raise DamagedBundle("written for another clip or by another version")
            report = AvatarReport.model_validate(head["report"])
            bundle = Bundle(
                path=folder,
                width=int(head["width"]),
                height=int(head["height"]),
                fps=int(head["fps"]),
                frames=map_rows(folder / "frames.npy"),
                landmarks=cast("NDArray[np.float32]", load_array(folder / "landmarks.npy")),
                boxes=cast("NDArray[np.int32]", load_array(folder / "boxes.npy")),
                faces=map_rows(folder / "faces.npy"),
                report=report,
                mouths=cast("NDArray[np.float32]", load_array(folder / "mouths.npy")),
                relief=_relief(folder) if report.still else None,
                trust=_trust(folder, report.frames),
            )
            _check(bundle)
    except (FileNotFoundError, DamagedArrays) as error:
        raise DamagedBundle(str(error)) from error
    return bundle


def _relief(folder: Path) -> NDArray[np.float32]:
    relief = cast("NDArray[np.float32]", load_array(folder / RELIEF_FILE))
    if relief.shape != (POINTS,) or relief.dtype != np.float32 or not np.isfinite(relief).all():
        raise DamagedBundle(f"{RELIEF_FILE} has the wrong shape")
    return relief


def _trust(folder: Path, count: int) -> NDArray[np.float32] | None:
    try:
        trust = cast("NDArray[np.float32]", load_array(folder / TRUST_FILE))
    except FileNotFoundError:
        return None
    if trust.shape != (count,) or trust.dtype != np.float32 or not ((trust >= 0) & (trust <= 1)).all():
        raise DamagedBundle(f"{TRUST_FILE} has the wrong shape or values")
    return trust


def map_rows(path: Path) -> Pixels:
    """A `.npy` of rows, memory-mapped read-only. Raises DamagedBundle for one that is cut short, and what numpy raises."""
    array = map_array(path)
    if path.stat().st_size != array.nbytes + array.offset:
        raise DamagedBundle(f"{path.name} has the wrong size")
    return cast("Pixels", array)


def _check(bundle: Bundle) -> None:
    count = bundle.report.frames
    window = bundle.boxes[0, 2:] - bundle.boxes[0, :2] if bundle.boxes.shape == (count, 4) and count else (0, 0)
    expected = (
        (bundle.frames, (count, bundle.height * 3 // 2, bundle.width), np.uint8),
        (bundle.landmarks, (count, POINTS, 2), np.float32),
        (bundle.boxes, (count, 4), np.int32),
        (bundle.faces, (count, int(window[1]), int(window[0]), 3), np.uint8),
        (np.asarray(bundle.mouths), (count,), np.float32),
    )
    if count < 1 or any(a.shape != shape or a.dtype != dtype for a, shape, dtype in expected):
        raise DamagedBundle("an array has the wrong shape")
    low, high = bundle.boxes[:, :2], bundle.boxes[:, 2:]
    outside = (low < 0).any() or (high > (bundle.width, bundle.height)).any() or (high <= low).any()
    if outside or not np.isfinite(bundle.landmarks).all():
        raise DamagedBundle("landmarks or face windows lie outside the picture")
    if bundle.mouths is not None and not ((bundle.mouths >= 0) & (bundle.mouths <= 1)).all():
        raise DamagedBundle("a share of a mouth is not in 0 … 1")
