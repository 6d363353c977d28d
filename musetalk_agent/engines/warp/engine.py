"""The CPU engine: artefacts once per bundle, one rendered patch per request.

An idle clip whose mouth hangs open or moves would go on talking silently after every utterance. Where the lips part in most
of its frames, or open and close, each idle frame gets a patch with the lips at rest, drawn once when the avatar is prepared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from musetalk_agent.arrays import DamagedArrays, open_arrays, save_arrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.interface import CompletedBatch, Engine, EngineSession, PatchRequest, Progress
from musetalk_agent.engines.warp.artefacts import WarpArtefacts
from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, Articulation
from musetalk_agent.engines.warp.mouth_space import IL, IU
from musetalk_agent.engines.warp.render import render
from musetalk_agent.features.extractor import FeatureExtractor
from musetalk_agent.media_types import Box, Feature, Patch
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings

log = logging.getLogger(__name__)

IDLE_PATCHES_FILE = "quiet.npz"
MOVES_OF_JAW = 3
"""The first values of a feature, which `mouth_gain` scales, and the mesh's trust: jaw, width, rounding."""
PARTED = 0.02
"""Median opening of a clip's lips, in eye distances, above which its idle mouth is closed: silent faces measured 0.000–0.002, the
same talkers 0.02–0.10."""
MOVES = 0.012
"""The same for the difference between the openings' tenth and ninetieth percentile: silent faces measured 0.000 and 0.001,
talkers whose median is small 0.020 … 0.045."""


class WarpSession(EngineSession):
    """A bundle and its artefacts. It keeps nothing from frame to frame, so the same request always gives the same patch.

    Args:
        idle_patches: one patch per idle frame when the clip's own mouth must be closed between speech, else none at all. None for
            a frame that shows no mouth.
        mouth_gain: how far jaw, width and rounding go; closures and tucks, which are whole or not at all, stay as they are.
    """

    def __init__(
        self,
        bundle: Bundle,
        artefacts: WarpArtefacts,
        idle_patches: tuple[Patch | None, ...] = (),
        mouth_gain: float = 1.0,
    ) -> None:
        self.bundle = bundle
        self.artefacts = artefacts
        self.idle_patches = idle_patches
        self.gains = np.array([mouth_gain] * MOVES_OF_JAW + [1.0] * (FEATURE_SIZE - MOVES_OF_JAW), np.float32)

    @property
    def rest(self) -> Feature:
        """Feature of a silent, closed mouth: float32 zeros `[5]`."""
        return np.zeros(FEATURE_SIZE, np.float32)

    def fade_to_silence(self, feature: Feature, amount: float) -> Feature:
        """The lips come together in a straight line."""
        return (feature * (1 - amount)).astype(np.float32)

    def idle(self, idle_index: int) -> Patch | None:
        """The closed lips of a clip that talks; None for one that is silent by itself."""
        return self.idle_patches[idle_index] if self.idle_patches else None


class WarpEngine(Engine):
    """Lip-sync on one CPU core: the idle frame's mouth deformed by an articulation vector (see `Articulation`)."""

    name = "warp"
    device = "cpu"
    fingerprint = "warp-11"
    batch_sizes: Sequence[int] = (1,)
    needs_face = True
    fade_out_frames = 4

    def __init__(self, features: FeatureExtractor) -> None:
        self._features = features

    @property
    def features(self) -> FeatureExtractor:
        """Extractor of articulation vectors, float32 `[5]`."""
        return self._features

    def prepare(self, bundle: Bundle, progress: Progress | None = None, settings: AvatarSettings = DEFAULTS) -> None:
        """Derives the artefacts unless they are there. Raises OSError when the bundle's folder cannot be written."""
        self.open(bundle)
        if progress:
            progress(len(bundle), len(bundle))

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> WarpSession:
        """Readies a bundle; prepares it first where `prepare` has not been called. Of the settings it uses `mouth_gain`."""
        artefacts = self._artefacts(bundle)
        idle_patches = closed_mouth_patches(bundle, artefacts, bundle.engine_path(self.fingerprint))
        return WarpSession(bundle, artefacts, idle_patches, settings.mouth_gain)

    def _artefacts(self, bundle: Bundle) -> WarpArtefacts:
        folder = bundle.engine_path(self.fingerprint)
        try:
            return WarpArtefacts.load(folder)
        except FileNotFoundError:
            pass
        except DamagedArrays as error:
            log.warning("damaged artefacts are made again", extra={"engine": self.name, "error": str(error)})
        return WarpArtefacts.of(bundle).save(bundle, folder)

    def launch(self, batch: Sequence[PatchRequest]) -> CompletedBatch:
        """Renders at once, on the batcher's thread."""
        return CompletedBatch(self.infer(batch))

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        """One patch per request. None where the idle frame is shown as it is: it shows no mouth, or the blend weight is 0 and the
        clip is silent by itself.

        Raises TypeError for a session of another engine, IndexError for an idle frame that the bundle does not have.
        """
        return [self._one(request) for request in batch]

    def _one(self, request: PatchRequest) -> Patch | None:
        session = request.session
        if not isinstance(session, WarpSession):
            raise TypeError(f"the warp engine was given a {type(session).__name__}; open the bundle with this engine")
        if not 0 <= request.idle_index < len(session.bundle):
            raise IndexError(f"idle frame {request.idle_index} of a clip of {len(session.bundle)} frames")
        blend_weight, mouth = min(max(request.blend_weight, 0.0), 1.0), session.bundle.mouth(request.idle_index)
        feature = (request.feature * session.gains).astype(np.float32)
        feature[:MOVES_OF_JAW] *= np.float32(session.bundle.trusted(request.idle_index))
        if session.idle_patches:  # the idle frames show closed lips: fade by opening the mouth less
            feature, blend_weight = (feature * blend_weight).astype(np.float32), 1.0
        blend_weight *= mouth
        if blend_weight == 0.0:
            return None
        return render(session.bundle, session.artefacts, request.idle_index, Articulation.of(feature), blend_weight)


def parted(bundle: Bundle, artefacts: WarpArtefacts) -> bool:
    """Whether the clip's own lips are mostly apart, or open and close."""
    openings = [
        float((artefacts.idle_shapes[k].curves[IL] - artefacts.idle_shapes[k].curves[IU]).max())
        for k in bundle.with_mouth()
    ]
    low, middle, high = np.percentile(openings, (10, 50, 90))
    return bool(middle > PARTED or high - low > MOVES)


def closed_mouth_patches(bundle: Bundle, artefacts: WarpArtefacts, folder: Path) -> tuple[Patch | None, ...]:
    """A patch per idle frame (None for one that shows no mouth), or none at all when the clip's lips are closed anyway. Stored in
    `folder`, whole or not at all.

    Raises OSError when the folder cannot be written.
    """
    if not parted(bundle, artefacts):
        return ()
    try:
        return _load(folder / IDLE_PATCHES_FILE, len(bundle))
    except (FileNotFoundError, DamagedArrays):
        rest = Articulation.of(np.zeros(FEATURE_SIZE, np.float32))
        patches = tuple(
            render(bundle, artefacts, idle_index, rest, mouth) if (mouth := bundle.mouth(idle_index)) > 0 else None
            for idle_index in range(len(bundle))
        )
        if any(patch is None and bundle.mouth(idle_index) > 0 for idle_index, patch in enumerate(patches)):
            return ()  # a face too small or too far out of the image to draw on
        _save(folder, patches)
        return patches


def _save(folder: Path, patches: tuple[Patch | None, ...]) -> None:
    """No patch is an empty box."""
    boxes = np.array([(p.box.x0, p.box.y0, p.box.x1, p.box.y1) if p else (0, 0, 0, 0) for p in patches], np.int32)
    pixels = np.concatenate([p.pixels.reshape(-1) for p in patches if p] or [np.empty(0, np.uint8)])
    save_arrays(folder / IDLE_PATCHES_FILE, {"boxes": boxes, "pixels": pixels})


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
