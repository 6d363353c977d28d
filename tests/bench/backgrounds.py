"""What a background costs a live frame, and how still the edges of its matte are: `python -m tests.bench.backgrounds CLIP…`.

The cost is thread time of composing the same spoken frames with a background, less that of the frames as they are, in turn, the
least of some rounds for each frame.
An edge is still when pixels in which the picture does not move do not change their share either: of those with a share between
nothing and all, by how much it changes from one frame to the next, in levels of 255.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.cutout import Matte
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.head_motion import HeadMotion
from musetalk_agent.compose.layers import laid
from musetalk_agent.engine_pool import make_warp
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.media_types import Patch
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore, default_models_dir
from tests.bench.engine import speech
from tests.bench.figures import Figure, percentile

SIZES = (512, 512), (1280, 720)
BACKGROUNDS = "#336699", "blur", "transparent"
BAR_MS = 1.0
FRAMES, ROUNDS = 60, 5
_STILL = 3
"""Levels of luma by which a pixel that does not move changes at most, all around."""


async def backgrounds(clips: list[Path], sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Figure]:
    """The figures of each clip at each size, and of the edges at the clip's own size."""
    cv2.setNumThreads(1)
    found: list[Figure] = []
    with TemporaryDirectory() as folder:
        library = AvatarLibrary(Path(folder), ModelStore(default_models_dir(), Manifest.load()))
        try:
            for clip in clips:
                avatar = AvatarSource(avatar_id=await library.add(clip.read_bytes(), clip.name))
                for width, height in sizes:
                    found += await _costs(library, avatar, Picture(width=width, height=height), clip.stem)
                own = await library.prepare(avatar, Picture(), background="blur")
                assert own.cutout is not None
                found += _stillness(own, own.cutout.matte, clip.stem)
        finally:
            library.close()
    return found


async def _costs(library: AvatarLibrary, avatar: AvatarSource, picture: Picture, name: str) -> list[Figure]:
    engine = await asyncio.to_thread(make_warp)
    plain = await library.prepare(avatar, picture, derive=engine.prepare)
    session, living = engine.open(plain), plain.relief is not None
    indices = [0 if living else k % len(plain) for k in range(FRAMES)]
    features = engine.features.stream(plain.fps).push(speech()[: 640 * (FRAMES + 10)])[:FRAMES]
    requests = [PatchRequest(session, index, feature) for index, feature in zip(indices, features, strict=True)]
    patches = [engine.launch([request]).patches()[0] for request in requests]
    shown = {"keep": plain}
    for background in BACKGROUNDS:
        begun = time.perf_counter()
        shown[background] = await library.prepare(avatar, picture, background=background)
        if background == BACKGROUNDS[0]:
            waited = time.perf_counter() - begun
    times = {each: np.full(FRAMES, np.inf) for each in shown}
    for _ in range(ROUNDS):
        for each, bundle in shown.items():
            times[each] = np.minimum(times[each], _composed(Compositor(bundle, session.idle), indices, patches))
    middle = {each: float(np.median(values)) for each, values in times.items()}
    box = patches[0].box if patches[0] is not None else None
    note = f"{name}, {plain.width}x{plain.height}, {'picture' if living else 'clip'}, mouth's box {box}, keep {middle['keep']:.2f}"
    made = Figure(f"matte, made for {len(plain)} frames", waited, "s", note=note)
    costs = {each: middle[each] - middle["keep"] for each in BACKGROUNDS}
    return [made] + [
        Figure(f"background {each}: a live frame", ms, "ms", BAR_MS, note=note) for each, ms in costs.items()
    ]


def _composed(compositor: Compositor, indices: list[int], patches: list[Patch | None]) -> NDArray[np.float64]:
    """Milliseconds of thread time for each frame."""
    motion, times = HeadMotion(1, compositor.fps), []
    for k, (index, patch) in enumerate(zip(indices, patches, strict=True)):
        pose = motion.pose(k + 2 * compositor.fps)
        begun = time.thread_time_ns()
        laid(compositor.compose(index, patch, pose=pose))
        times.append((time.thread_time_ns() - begun) / 1e6)
    return np.array(times)


def _stillness(bundle: Bundle, matte: Matte, name: str) -> list[Figure]:
    steps: list[float] = []
    moving: list[float] = []
    for k in range(1, len(bundle)):
        before, after = (np.asarray(bundle.frames[at][: bundle.height]) for at in (k - 1, k))
        apart = cv2.dilate(cv2.blur(cv2.absdiff(before, after), (5, 5)), np.ones((5, 5), np.uint8))
        shares = [np.asarray(matte.alpha[at]).astype(int) for at in (k - 1, k)]
        edge = (shares[0] > 8) & (shares[0] < 247)
        change = np.abs(shares[1] - shares[0])
        if (still := edge & (apart < _STILL)).any():
            steps.append(float(change[still].mean()))
        if (other := edge & (apart >= _STILL)).any():
            moving.append(float(change[other].mean()))
    found = []
    for kind, values in (("still", steps), ("moving", moving)):
        if values:
            note = f"{name}, p95 {percentile(values, 95):.1f}"
            found.append(Figure(f"matte: change of {kind} edges", float(np.mean(values)), "levels a frame", note=note))
    return found


def main() -> int:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(prog="backgrounds", description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    options = parser.parse_args()
    for figure in asyncio.run(backgrounds(options.clips)):
        print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
