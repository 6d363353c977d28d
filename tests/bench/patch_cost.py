"""What a patch of `warp` costs beside the engine of an older commit, in one process and in turn, and how far its picture differs.

The old code is taken from the repository with `git archive` into a temporary folder and loaded under another name, what has been
renamed since by today's names (`RENAMED`). Both engines are
given the same bundle, the same features and the same mouth for them: today's `articulation.py`, for how far lips part is no cost.
Times are CPU time of the process, so that neighbours disturb them little.
"""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np

import musetalk_agent.engines.warp.engine as today
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engine_pool import make_warp
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp import lips
from musetalk_agent.media_types import Feature
from musetalk_agent.protocol.http import Picture
from tests.bench.engine import bundle_of, face_on_720p, speech
from tests.bench.figures import Figure

BASELINE = "6a1775a"
"""The commit before the engine was made cheaper (issue 12)."""
ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "musetalk_agent.engines.warp"
OLD = "warp_of_an_older_commit"
SHAPES = "articulation.py"
RENAMED = {
    "musetalk_agent.media import": "musetalk_agent.media_types import",
    "musetalk_agent.features.base import": "musetalk_agent.features.extractor import",
    "musetalk_agent.engines.base import": "musetalk_agent.engines.interface import",
    "musetalk_agent.avatars.head import": "musetalk_agent.avatars.face_track import",
    "stored_arrays": "open_arrays",
    "Landed": "CompletedBatch",
    "request.actor": "request.session",
    "request.pose": "request.idle_index",
    "request.presence": "request.blend_weight",
    f"{PACKAGE}.mouth_space": f"{OLD}.geometry",
    "MouthShape": "Shape",
    PACKAGE: OLD,
}
"""In the old files, and in today's `SHAPES`, which is copied to them."""
ROUNDS, FRAMES = 7, 100
SMALLEST = 133
"""`face_on_720p` of this makes the smallest face that is taken without a complaint."""
EXTREMES = [
    [1, 0, 0, 0, 0],
    [0, 0, 0, 0, 0],
    [0, 0, 0, 1, 0],
    [0, 0, 0, 0, 1],
    [0.5, 1, 0, 0, 0],
    [0.4, -1, 1, 0, 0],
    [1, 1, 1, 1, 1],
    [0.3, 0, 1, 0, 0],
]


async def patch_cost(baseline: str = "") -> list[Figure]:
    """Ratio of CPU time to `baseline` (a commit, by default `BASELINE`), and the pixels' differences, on three faces."""
    baseline = baseline or BASELINE
    made = await asyncio.to_thread(make_warp)
    stream, pcm = made.features.stream(25), speech()
    spoken = [one for at in range(0, len(pcm) - 640, 640) for one in stream.push(pcm[at : at + 640])]
    faces = {
        "720p": (Picture(), face_on_720p()),
        "512 px": (Picture(width=512, height=512), None),
        "720p, smallest face": (Picture(), face_on_720p(SMALLEST)),
    }
    figures = []
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with older(baseline) as then:
            for name, (picture, clip) in faces.items():
                with TemporaryDirectory() as folder:
                    bundle = await bundle_of(Path(folder), picture, clip)
                    old, new = (Side(code, made.features, bundle) for code in (then, today))
                    figures += _compared(old, new, spoken, f"{name}, face of {bundle.report.face_px} px", baseline)
    finally:
        cv2.setNumThreads(threads)
    return figures


class Side:
    """One of the two engines with its session of the bundle."""

    def __init__(self, code: Any, features: Any, bundle: Bundle) -> None:
        self.engine = code.WarpEngine(features)
        self.session = self.engine.open(bundle)
        self.idle_indices = len(bundle)

    def patch(self, pose: int, feature: Feature, blend_weight: float) -> Any:
        return self.engine.infer([PatchRequest(self.session, pose % self.idle_indices, feature, blend_weight)])[0]

    def milliseconds(self, spoken: list[Feature]) -> float:
        """CPU time of a patch, mean over the features, one pose after the other."""
        begun = time.process_time()
        for pose, feature in enumerate(spoken):
            self.patch(pose, feature, 1.0)
        return 1000 * (time.process_time() - begun) / len(spoken)


def _compared(old: Side, new: Side, spoken: list[Feature], what: str, baseline: str) -> list[Figure]:
    levels, boxes = differences(old, new, cases(spoken))
    share = np.cumsum(levels) / max(int(levels.sum()), 1)
    p99, worst = int(np.searchsorted(share, 0.99)), int(np.flatnonzero(levels).max(initial=0))
    rounds = []
    for number in range(ROUNDS + 1):
        order = (old, new) if number % 2 else (new, old)
        spent = {side: side.milliseconds(spoken[:FRAMES]) for side in order}
        rounds.append((spent[old], spent[new]))
    times = np.array(rounds[1:])  # the first one also fills what is kept
    before, after = np.median(times, 0)
    note = f"{what}; {before:.2f} ms at {baseline}, {after:.2f} ms now; median of {ROUNDS} rounds of {FRAMES} frames of speech"
    differ = f"{what}; against {baseline}; {boxes} patches have another box"
    return [
        Figure(
            "warp: CPU of a patch, ratio to the baseline",
            float(np.median(times[:, 1] / times[:, 0])),
            "",
            0.35,
            note=note,
        ),
        Figure("warp: difference of a patch's pixels, 99th percentile", p99, "levels", 1, note=differ),
        Figure("warp: difference of a patch's pixels, worst", worst, "levels", note=differ),
    ]


def cases(spoken: list[Feature]) -> list[tuple[Feature, float]]:
    """Articulations to compare, with their blend weights: some of a speech, extremes, and any."""
    chance = np.random.default_rng(1)
    made = [np.array(one, np.float32) for one in EXTREMES]
    made += [np.float32([chance.random(), 2 * chance.random() - 1, *chance.random(3)]) for _ in range(40)]
    whole = [(one, 1.0) for one in (*spoken[:300:3], *made)]
    return whole + [(one, 0.3) for one in made[::4]] + [(one, 0.7) for one in made[1::4]]


def differences(old: Side, new: Side, compared: list[tuple[Feature, float]]) -> tuple[np.ndarray, int]:
    """How many values differ by each number of levels, and how many patches lie elsewhere (their values are not compared)."""
    levels, boxes = np.zeros(256, np.int64), 0
    for number, (feature, blend_weight) in enumerate(compared):
        a, b = (side.patch(7 * number, feature, blend_weight) for side in (old, new))
        if a is None or b is None or a.box != b.box:
            boxes += (a is None) != (b is None) or (a is not None and a.box != b.box)
            continue
        apart = np.abs(a.pixels.astype(np.int16) - b.pixels)
        levels += np.bincount(apart.ravel(), minlength=256)
    return levels, boxes


@contextmanager
def older(commit: str) -> Iterator[Any]:
    """The module `engine` of `warp` as it was at `commit`.

    Raises subprocess.CalledProcessError where the repository lacks the commit (a shallow clone, or no repository at all).
    """
    path = PACKAGE.replace(".", "/")
    packed = subprocess.run(["git", "archive", commit, path], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    with TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x"], cwd=folder, check=True, input=packed)
        (Path(folder) / path).rename(Path(folder) / OLD)
        copyfile(ROOT / path / SHAPES, Path(folder) / OLD / SHAPES)
        for file in (Path(folder) / OLD).glob("*.py"):
            text = file.read_text()
            for old, new in RENAMED.items():
                text = text.replace(old, new)
            file.write_text(text)
        sys.path.insert(0, folder)
        try:
            engine = importlib.import_module(f"{OLD}.engine")
            # what is compared is the patch: among equally good edges of the lips both take the same
            importlib.import_module(f"{OLD}.lips")._best_interval = lips._best_interval
            yield engine
        finally:
            sys.path.remove(folder)
            for name in [one for one in sys.modules if one.partition(".")[0] == OLD]:
                del sys.modules[name]
