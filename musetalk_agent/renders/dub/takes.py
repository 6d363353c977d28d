"""Takes: a face in a stretch of the footage, made into a clip that an engine opens like an avatar's, and its mouth put back.

A clip is the part of the picture around the face's whole way, so that nothing in it moves by itself. The engine's mouth comes back
in BGR; only blocks of 2×2 pixels that it changed are written into the footage's planes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.arrays import load_array, map_array
from musetalk_agent.avatars import framing
from musetalk_agent.avatars.build import write_faces
from musetalk_agent.avatars.bundle import ArrayWriter, Bundle
from musetalk_agent.avatars.face_track import eased_mouths, filled, smoothed
from musetalk_agent.compose.compositor import paste
from musetalk_agent.media_types import Box, Patch, Pixels
from musetalk_agent.protocol.http import AvatarReport
from musetalk_agent.renders.dub.footage import FootageFrame, native_planes
from musetalk_agent.renders.dub.footage_scan import FootageScan, Ints
from musetalk_agent.renders.film_parts import Colours

_AROUND = 12
"""Frames before and after a stretch whose meshes smooth those at its ends."""
_BESIDE = 0.5
"""Room around the face's way, in face widths: engines cut squares that are larger than the face."""
_GAP = 50
"""A face that is away for more frames comes back as a new take."""


@dataclass(frozen=True)
class Take:
    """Where a face is in a stretch.

    Args:
        number: of the look.
        frames: the footage's frames, one after the other; in those between two that show it, it is on the way.
        points: float32 `[n, 468, 2]`, smoothed, in pixels of the footage.
        mouths: float32 `[n]`, how far its mouth may be drawn, 0 … 1.
        box: the part of the picture that holds its way, even.
    """

    number: int
    frames: range
    points: NDArray[np.float32]
    mouths: NDArray[np.float32]
    box: Box


def takes_of(look: FootageScan, folder: Path, speaks: NDArray[np.bool_], stretch: range) -> list[Take]:
    """The takes of a stretch of frames: those of faces that speak in it. Raises OSError."""
    found: list[Take] = []
    low, high = np.searchsorted(look.frame, (stretch.start - _AROUND, stretch.stop + _AROUND))
    near = np.arange(low, high)
    shots = look.shot_of(look.frame[near])
    for number in np.unique(look.number[near]):
        for shot in np.unique(shots[look.number[near] == number]):
            rows = near[(look.number[near] == number) & (shots == shot)]
            for part in np.split(rows, np.flatnonzero(np.diff(look.frame[rows]) > _GAP) + 1):
                inside = (look.frame[part] >= stretch.start) & (look.frame[part] < stretch.stop)
                if speaks[part[inside]].any():
                    found.append(_take(look, folder, speaks, part, stretch))
    return found


def _take(look: FootageScan, folder: Path, speaks: NDArray[np.bool_], rows: Ints, stretch: range) -> Take:
    seen = look.frame[rows]
    first, count = int(seen[0]), int(seen[-1] - seen[0]) + 1
    points = smoothed(filled(look.meshes(folder, rows), seen - first, count), float(look.rate))
    bare = np.ones(count, bool)
    bare[seen[speaks[rows]] - first] = False
    begin, end = max(first, stretch.start), min(first + count, stretch.stop)
    mouths = _eased_at_ends(look, bare, first)
    inside = slice(begin - first, end - first)
    points = points[inside]
    return Take(int(look.number[rows[0]]), range(begin, end), points, mouths[inside], _box(points, look.size))


def _eased_at_ends(look: FootageScan, bare: NDArray[np.bool_], first: int) -> NDArray[np.float32]:
    """How far the mouth may be drawn; a face that comes or goes within its shot comes and goes softly."""
    shot_begins = first in set(look.cuts.tolist())
    shot_ends = first + len(bare) in {*look.cuts.tolist(), look.frames}
    padded = np.concatenate([[not shot_begins], bare, [not shot_ends]])
    return eased_mouths(padded)[1:-1]


def _box(points: NDArray[np.float32], size: tuple[int, int]) -> Box:
    low, high = points.min((0, 1)), points.max((0, 1))
    room = _BESIDE * float((points[:, :, 0].max(1) - points[:, :, 0].min(1)).max())
    x0, y0, x1, y1 = (int(v) for v in (*(low - room), *(high + room + 1)))
    return Box(max(0, x0), max(0, y0), max(2, x1), max(2, y1)).even(*size)


def write_clips(
    takes: Sequence[Take], frames: Iterable[FootageFrame], start: int, fps: int, folder: Path
) -> list[Bundle]:
    """Cuts the clips of takes out of the frames from number `start` on, into folders of `folder`. Raises OSError, ProblemError."""
    folders = [folder / f"{k}-{take.number}" for k, take in enumerate(takes)]
    with ExitStack() as files:
        writers = []
        for path in folders:
            path.mkdir(parents=True)
            writers.append(files.enter_context(closing(ArrayWriter(path / "frames.npy"))))
        for number, frame in enumerate(frames, start):
            inside = [k for k, take in enumerate(takes) if number in take.frames]
            if not inside and all(number >= take.frames.stop for take in takes):
                break
            bgr = frame.bgr() if inside else None
            for k in inside:
                box = takes[k].box
                assert bgr is not None
                part = np.ascontiguousarray(bgr[box.y0 : box.y1, box.x0 : box.x1])
                writers[k].append(framing.to_i420(part))
    return [_bundle(take, path, fps) for take, path in zip(takes, folders, strict=True)]


def _bundle(take: Take, folder: Path, fps: int) -> Bundle:
    size = take.box.width, take.box.height
    points = take.points - np.array([take.box.x0, take.box.y0], np.float32)
    write_faces(folder, points, size)
    report = AvatarReport(
        avatar_id="dub", frames=len(points), width=size[0], height=size[1], fps=fps, cached=False, still=False
    )
    return Bundle(
        path=folder,
        width=size[0],
        height=size[1],
        fps=fps,
        frames=map_array(folder / "frames.npy"),
        landmarks=points,
        boxes=load_array(folder / "boxes.npy"),
        faces=map_array(folder / "faces.npy"),
        report=report,
        mouths=take.mouths,
    )


def put_mouth(planes: Pixels, colours: Colours, take: Take, bundle: Bundle, index: int, patch: Patch) -> bool:
    """Writes a patch over frame `index` of a take into the footage's planes, I420 uint8 `[h·3/2, w]`; whether it changed any."""
    box, window = patch.box, bundle.box(index)
    face = bundle.faces[index]
    background = np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])
    mixed = patch.pixels if patch.mask is None else paste(background, patch.pixels, patch.mask)
    differs = (mixed != background).any(2)
    blocks = differs.reshape(box.height // 2, 2, box.width // 2, 2).any((1, 3))
    if not blocks.any():
        return False
    made = native_planes(np.ascontiguousarray(mixed), colours)
    height = planes.shape[0] * 2 // 3
    x0, y0 = take.box.x0 + box.x0, take.box.y0 + box.y0
    luma = planes[y0 : y0 + box.height, x0 : x0 + box.width]
    np.copyto(luma, made[: box.height], where=blocks.repeat(2, 0).repeat(2, 1))
    chroma = planes[height:].reshape(2, height // 2, -1)
    new = made[box.height :].reshape(2, box.height // 2, box.width // 2)
    part = chroma[:, y0 // 2 : (y0 + box.height) // 2, x0 // 2 : (x0 + box.width) // 2]
    np.copyto(part, new, where=blocks[None])
    return True
