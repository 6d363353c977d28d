"""Bundles on disk: written frame by frame into a folder of their own, read back memory-mapped and checked. Never pickle."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays, damaged
from musetalk_agent.avatars.bundle import SCHEMA_VERSION, Bundle
from musetalk_agent.avatars.face import POINTS
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.http import AvatarReport

HEAD = "bundle.json"


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
    (folder / HEAD).write_text(json.dumps(head, indent=1), "utf-8")


def load_bundle(folder: Path, key: str) -> Bundle:
    """Opens a bundle, memory-mapped read-only.

    Raises:
        DamagedBundle: a file is missing, cut short, of another shape, or was written for something else.
    """
    try:
        with damaged(folder.name):
            head: dict[str, Any] = json.loads((folder / HEAD).read_text("utf-8"))
            if head["schema"] != SCHEMA_VERSION or head["key"] != key:
                raise DamagedBundle("written for another clip or by another version")
            report = AvatarReport.model_validate(head["report"])
            bundle = Bundle(
                path=folder,
                width=int(head["width"]),
                height=int(head["height"]),
                fps=int(head["fps"]),
                frames=_map(folder / "frames.npy"),
                landmarks=cast("NDArray[np.float32]", np.load(folder / "landmarks.npy", allow_pickle=False)),
                boxes=cast("NDArray[np.int32]", np.load(folder / "boxes.npy", allow_pickle=False)),
                faces=_map(folder / "faces.npy"),
                report=report,
                mouths=cast("NDArray[np.float32]", np.load(folder / "mouths.npy", allow_pickle=False)),
            )
            _check(bundle)
    except (FileNotFoundError, DamagedArrays) as error:
        raise DamagedBundle(str(error)) from error
    return bundle


def _map(path: Path) -> Pixels:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
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
