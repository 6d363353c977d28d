"""The engine: artefacts once per bundle, one rendered patch per request."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence

import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.base import PatchRequest, Progress
from musetalk_agent.engines.warp.artefacts import Artefacts
from musetalk_agent.engines.warp.articulation import FEATURE_SIZE, Articulation
from musetalk_agent.engines.warp.render import render
from musetalk_agent.features.base import FeatureExtractor
from musetalk_agent.media import Feature, Patch

log = logging.getLogger(__name__)


class WarpActor:
    """A bundle and its artefacts. It keeps nothing from frame to frame, so the same request always gives the same patch."""

    def __init__(self, bundle: Bundle, artefacts: Artefacts) -> None:
        self.bundle = bundle
        self.artefacts = artefacts

    @property
    def rest(self) -> Feature:
        """Feature of a silent, closed mouth: float32 zeros `[5]`."""
        return np.zeros(FEATURE_SIZE, np.float32)

    def close(self) -> None:
        """Nothing to release: the bundle belongs to the cache."""


class WarpEngine:
    """Lip-sync on one CPU core: the idle frame's mouth deformed by an articulation vector (see `Articulation`)."""

    name = "warp"
    device = "cpu"
    fingerprint = "warp-1"
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
        self._artefacts(bundle)
        if progress:
            progress(len(bundle), len(bundle))

    def open(self, bundle: Bundle) -> WarpActor:
        """Readies a bundle; prepares it first where `prepare` has not been called."""
        return WarpActor(bundle, self._artefacts(bundle))

    def _artefacts(self, bundle: Bundle) -> Artefacts:
        folder = bundle.engine_path(self.fingerprint)
        try:
            return Artefacts.load(folder)
        except FileNotFoundError:
            pass
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("damaged artefacts are made again", extra={"engine": self.name, "error": str(error)})
        artefacts = Artefacts.of(bundle)
        artefacts.save(folder)
        return artefacts

    def warmup(self) -> None:
        """Nothing to warm: no device, no weights."""

    def infer(self, batch: Sequence[PatchRequest]) -> list[Patch | None]:
        """One patch per request. None where presence is 0: the idle frame as it is.

        Raises TypeError for an actor of another engine, IndexError for a pose that the bundle does not have.
        """
        return [self._one(request) for request in batch]

    def _one(self, request: PatchRequest) -> Patch | None:
        actor = request.actor
        if not isinstance(actor, WarpActor):
            raise TypeError(f"the warp engine was given a {type(actor).__name__}; open the bundle with this engine")
        if not 0 <= request.pose < len(actor.bundle):
            raise IndexError(f"pose {request.pose} of a clip of {len(actor.bundle)} frames")
        presence = min(max(request.presence, 0.0), 1.0)
        if presence == 0.0:
            return None
        return render(actor.bundle, actor.artefacts, request.pose, Articulation.of(request.feature), presence)

    def close(self) -> None:
        """Nothing to release."""
