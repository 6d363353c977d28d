"""The engine: artefacts once per bundle, one rendered patch per request."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from musetalk_agent.arrays import DamagedArrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.base import Landed, PatchRequest, Progress
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, Articulation
from musetalk_agent.engines.warp.quiet import quiet_patches
from musetalk_agent.engines.warp.render import render
from musetalk_agent.features.extractor import FeatureExtractor
from musetalk_agent.media_types import Feature, Patch

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
