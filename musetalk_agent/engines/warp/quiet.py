"""Idle clips of somebody who talks: while nobody speaks, their lips are shown closed.

A clip whose mouth hangs open or moves would go on talking without a sound after every utterance. Where the lips part in most of the
frames, or open and close, each idle frame gets a patch with the lips at rest, drawn once when the avatar is prepared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from musetalk_agent.arrays import DamagedArrays, save_arrays, stored_arrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, Articulation
from musetalk_agent.engines.warp.geometry import IL, IU
from musetalk_agent.engines.warp.render import render
from musetalk_agent.media_types import Box, Patch

FILE = "quiet.npz"
PARTED = 0.02
"""Median opening of a clip's lips, in eye distances, above which its idle mouth is closed: silent faces measured 0.000–0.002, the
same talkers 0.02–0.10."""
MOVES = 0.012
"""The same for the way between the openings' tenth and ninetieth percentile: silent faces measured 0.000 and 0.001, talkers whose
median is small 0.020 … 0.045."""


def parted(bundle: Bundle, artefacts: Artefacts) -> bool:
    """Whether the clip's own lips are mostly apart, or open and close."""
    openings = [
        float((artefacts.poses[k].curves[IL] - artefacts.poses[k].curves[IU]).max()) for k in bundle.with_mouth()
    ]
    low, middle, high = np.percentile(openings, (10, 50, 90))
    return bool(middle > PARTED or high - low > MOVES)


def quiet_patches(bundle: Bundle, artefacts: Artefacts, folder: Path) -> tuple[Patch | None, ...]:
    """A patch per idle frame (None for one that shows no mouth), or none at all when the clip's lips are closed anyway. Stored in
    `folder`, whole or not at all.

    Raises OSError when the folder cannot be written.
    """
    if not parted(bundle, artefacts):
        return ()
    try:
        return _load(folder / FILE, len(bundle))
    except (FileNotFoundError, DamagedArrays):
        rest = Articulation.of(np.zeros(FEATURE_SIZE, np.float32))
        patches = tuple(
            render(bundle, artefacts, pose, rest, mouth) if (mouth := bundle.mouth(pose)) > 0 else None
            for pose in range(len(bundle))
        )
        if any(patch is None and bundle.mouth(pose) > 0 for pose, patch in enumerate(patches)):
            return ()  # a face too small or too far out of the picture to draw on
        _save(folder, patches)
        return patches


def _save(folder: Path, patches: tuple[Patch | None, ...]) -> None:
    """No patch is an empty box."""
    boxes = np.array([(p.box.x0, p.box.y0, p.box.x1, p.box.y1) if p else (0, 0, 0, 0) for p in patches], np.int32)
    pixels = np.concatenate([p.pixels.reshape(-1) for p in patches if p] or [np.empty(0, np.uint8)])
    save_arrays(folder / FILE, {"boxes": boxes, "pixels": pixels})


def _load(path: Path, count: int) -> tuple[Patch | None, ...]:
    with stored_arrays(path) as stored:
        boxes, pixels = stored["boxes"], stored["pixels"]
        if len(boxes) != count:
            raise ValueError(f"{len(boxes)} patches for {count} frames")
        patches: list[Patch | None] = []
        at = 0
        for x0, y0, x1, y1 in boxes.tolist():
            box = Box(x0, y0, x1, y1)
            size = box.width * box.height * 3
            if size == 0:
                patches.append(None)
                continue
            patches.append(Patch(box, pixels[at : at + size].reshape(box.height, box.width, 3)))
            at += size
    return tuple(patches)
