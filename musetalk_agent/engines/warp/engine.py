"""The CPU engine: artefacts once per bundle, one rendered patch per request.

An idle clip whose mouth hangs open or moves would go on talking without a sound after every utterance. Where the lips part in most
of its frames, or open and close, each idle frame gets a patch with the lips at rest, drawn once when the avatar is prepared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from musetalk_agent.arrays import DamagedArrays, open_arrays, save_arrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.interface import Landed, PatchRequest, Progress
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, Articulation
from musetalk_agent.engines.warp.mouth_space import IL, IU
from musetalk_agent.engines.warp.render import render
from musetalk_agent.features.extractor import FeatureExtractor
from musetalk_agent.media_types import Box, Feature, Patch

log = logging.getLogger(__name__)


class WarpActor:
    """A bundle and its artefacts. It keeps nothing from frame to frame, so the same request always gives the same patch.

    Args:
        quiet: one patch per idle frame when the clip's own mouth is to be closed between speech, else none at all. None for a
            frame that shows no mouth.
    """

    def __init__(self, bundle: Bundle, artefacts: Artefacts, quiet: tuple[Patch | None, ...] = ()) -> None:
        self.bundle = bundle
        self.artefacts = artefacts
        self.quiet = quiet

    @property
    def rest(self) -> Feature:
        """Feature of a silent, closed mouth: float32 zeros `[5]`."""
        return np.zeros(FEATURE_SIZE, np.float32)

    def towards_rest(self, feature: Feature, amount: float) -> Feature:
        """The lips come together in a straight line."""
        return (feature * (1 - amount)).astype(np.float32)

    def idle(self, pose: int) -> Patch | None:
        """The closed lips of a clip that talks; None for one that is silent by itself."""
        return self.quiet[pose] if self.quiet else None

    def idle_wanted(self) -> tuple[int, ...]:
        """None: `prepare` has drawn them."""
        return ()

    def keep_idle(self, pose: int, patch: Patch) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing to release: the bundle belongs to the cache."""


class WarpEngine:
    """Lip-sync on one CPU core: the idle frame's mouth deformed by an articulation vector (see `Articulation`)."""

    name = "warp"
    device = "cpu"
    fingerprint = "warp-6"
    batch_sizes: Sequence[int] = (1,)
    needs_face = True
    closing_frames = 4

    def __init__(self, features: FeatureExtractor) -> None:
        self._features = features

    @property
    def features(self) -> FeatureExtractor:
        """Extractor of articulation vectors, float32 `[5]`."""
        return self._features

    def prepare(self, bundle: Bundle, progress: Progress | None = None) -> None:
        """Derives the artefacts unless they are there. Raises OSError when the bundle's folder cannot be written."""
        self.open(bundle)
        if progress:
            progress(len(bundle), len(bundle))

    def open(self, bundle: Bundle) -> WarpActor:
        """Readies a bundle; prepares it first where `prepare` has not been called."""
        artefacts = self._artefacts(bundle)
        return WarpActor(bundle, artefacts, quiet_patches(bundle, artefacts, bundle.engine_path(self.fingerprint)))

    def _artefacts(self, bundle: Bundle) -> Artefacts:
        folder = bundle.engine_path(self.fingerprint)
        try:
            return Artefacts.load(folder)
        except FileNotFoundError:
            pass
        except DamagedArrays as error:
            log.warning("damaged artefacts are made again", extra={"engine": self.name, "error": str(error)})
        artefacts = Artefacts.of(bundle)
        artefacts.save(folder)
        return artefacts

    def warmup(self) -> None:
        """Nothing to warm: no device, no weights."""

    def launch(self, batch: Sequence[PatchRequest]) -> Landed:
        """Renders at once, on the batcher's thread."""
        return Landed(self.infer(batch))

    def figures(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    def capacity(self, fps: int) -> int | None:
        """No limit of its own: the processor's is the agent's `max_sessions`."""
        return None

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        """One patch per request. None where the idle frame is shown as it is: it shows no mouth, or presence is 0 and the clip is
        silent by itself.

        Raises TypeError for an actor of another engine, IndexError for a pose that the bundle does not have.
        """
        return [self._one(request) for request in batch]

    def _one(self, request: PatchRequest) -> Patch | None:
        actor = request.actor
        if not isinstance(actor, WarpActor):
            raise TypeError(f"the warp engine was given a {type(actor).__name__}; open the bundle with this engine")
        if not 0 <= request.pose < len(actor.bundle):
            raise IndexError(f"pose {request.pose} of a clip of {len(actor.bundle)} frames")
        presence, mouth = min(max(request.presence, 0.0), 1.0), actor.bundle.mouth(request.pose)
        feature = request.feature
        if actor.quiet:  # idle has the lips at rest: the way there is to open them less
            feature, presence = (feature * presence).astype(np.float32), 1.0
        presence *= mouth
        if presence == 0.0:
            return None
        return render(actor.bundle, actor.artefacts, request.pose, Articulation.of(feature), presence)

    def close(self) -> None:
        """Nothing to release."""


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
    with open_arrays(path) as stored:
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
