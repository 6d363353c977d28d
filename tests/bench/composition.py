"""What putting a generated face onto a 720p frame costs, beside upstream's way with Pillow on the same frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from PIL import Image

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.face_region import crop_box
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.http import Picture
from tests.bench.engine import bundle_of, face_on_720p
from tests.bench.figures import Figure, percentile

_FRAMES = 200


async def composition() -> list[Figure]:
    """Median time of one frame's composition: ours into I420 planes, upstream's into a BGR picture."""
    with TemporaryDirectory() as folder:
        bundle = await bundle_of(Path(folder), Picture(), face_on_720p(300))
        return _figures(bundle, MuseTalkArtefacts.of(bundle, _no_latents))


def _figures(bundle: Bundle, artefacts: MuseTalkArtefacts) -> list[Figure]:
    faces = np.random.default_rng(0).integers(0, 256, (8, 256, 256, 3), np.uint8)
    idle_indices = [k % len(bundle) for k in range(_FRAMES)]
    frames = {
        idle_index: framing.to_bgr(np.ascontiguousarray(bundle.frames[idle_index]))
        for idle_index in sorted(set(idle_indices))
    }
    patches = [artefacts.patch(idle_index, faces[k % 8]) for k, idle_index in enumerate(idle_indices)]
    compositor = Compositor(bundle)
    whole_masks = {idle_index: _whole_mask(artefacts, idle_index) for idle_index in frames}

    ours = _times(lambda k: compositor.compose(idle_indices[k], patches[k]))
    cut = _times(lambda k: artefacts.patch(idle_indices[k], faces[k % 8]))
    theirs = _times(
        lambda k: _pillow(
            frames[idle_indices[k]], faces[k % 8], artefacts.boxes[idle_indices[k]], whole_masks[idle_indices[k]]
        )
    )
    x1, y1, x2, y2 = (int(v) for v in artefacts.boxes[0])
    face = f"face box {x2 - x1}x{y2 - y1}, picture {bundle.width}x{bundle.height}, {_FRAMES} frames, called from one thread"
    median = {name: percentile(times, 50) or 0.0 for name, times in (("ours", ours), ("cut", cut), ("pillow", theirs))}
    return [
        Figure(
            "composition, 720p: copy, blend and I420, median",
            median["ours"],
            "ms",
            1,
            note=f"p95 {percentile(ours, 95):.2f}; {face}",
        ),
        Figure("resizing a generated face to its patch, median", median["cut"], "ms", note=face),
        Figure(
            "Pillow's way: resize, copy, crop, two pastes, back to BGR, median",
            median["pillow"],
            "ms",
            note=f"p95 {percentile(theirs, 95):.2f}; not counting the conversion to I420, which ours includes; {face}",
        ),
        Figure(
            "composition against Pillow's way, resizing included in both",
            median["pillow"] / (median["ours"] + median["cut"]),
            "times as fast",
            5,
            at_least=True,
            note=face,
        ),
    ]


def _pillow(frame: Pixels, face: Pixels, box: np.ndarray, mask: Pixels) -> Pixels:
    """Upstream's `process_frames` and `get_image_blending`."""
    x1, y1, x2, y2 = (int(v) for v in box)
    resized = cv2.resize(face, (x2 - x1, y2 - y1))
    crop = crop_box((x1, y1, x2, y2))
    body = Image.fromarray(frame.copy()[:, :, ::-1])
    large = body.crop(crop)
    large.paste(Image.fromarray(resized[:, :, ::-1]), (x1 - crop[0], y1 - crop[1]))
    body.paste(large, crop[:2], Image.fromarray(mask).convert("L"))
    return np.array(body)[:, :, ::-1]


def _whole_mask(artefacts: MuseTalkArtefacts, idle_index: int) -> Pixels:
    """The mask in the whole crop, in three channels, as upstream keeps it after a reload."""
    x1, y1, x2, y2 = (int(v) for v in artefacts.boxes[idle_index])
    xs, ys, xe, ye = crop_box((x1, y1, x2, y2))
    whole = np.zeros((ye - ys, xe - xs), np.uint8)
    left, top, right, bottom = (int(v) for v in artefacts.shown[idle_index])
    whole[top - ys : bottom - ys, left - xs : right - xs] = artefacts.mask(idle_index)
    return np.dstack([whole] * 3)


def _times(work: Callable[[int], object]) -> list[float]:
    """Milliseconds of each call, after a few that are not counted."""
    for k in range(10):
        work(k)
    spent = []
    for k in range(_FRAMES):
        begun = time.perf_counter()
        work(k)
        spent.append(1000 * (time.perf_counter() - begun))
    return spent


def _no_latents(crops: Pixels) -> np.ndarray:
    return np.zeros((len(crops), 8, 32, 32), np.float16)
