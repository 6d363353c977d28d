"""The interface of lip-sync engines: a bundle and features in, mouth patches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.features.extractor import FeatureExtractor
from musetalk_agent.media_types import Feature, Patch
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings

Progress = Callable[[int, int], None]
"""Called with (done, total) during a long preparation."""


@dataclass(frozen=True, slots=True)
class PatchRequest:
    """One frame to make.

    Args:
        session: what `Engine.open` returned for the session.
        idle_index: index of the idle frame, `0 … bundle.frames-1`, that the patch will lie on.
        feature: the frame's feature, as the engine's own extractor made it.
        blend_weight: 0 … 1; how far speech has taken over the mouth from the idle clip. Rises over the first frames of a segment
            and falls over the frames after it, so that the mouth glides between idle and speech.
    """

    session: EngineSession
    idle_index: int
    feature: Feature
    blend_weight: float = 1.0


class EngineSession(Protocol):
    """An avatar made ready for one session by an engine; opaque to everything else.

    Holds per-session state, if the engine has any (smoothing from frame to frame). Methods with a body suit an engine whose idle
    frames need no patch.
    """

    @property
    def rest(self) -> Feature:
        """Feature of a silent, closed mouth."""
        ...

    def fade_to_silence(self, feature: Feature, amount: float) -> Feature:
        """A feature `amount` (0 … 1) of the way from `feature` to silence, for the frames after a segment."""
        ...

    def idle(self, idle_index: int) -> Patch | None:
        """The patch over an idle frame outside speech; None shows the clip as it is. Called on the event loop: no work."""
        return None

    def missing_idle_patches(self) -> Sequence[int]:
        """Idle frames whose patch must still be made, from `rest` at blend weight 1, because the clip's own mouth moves."""
        return ()

    def store_idle_patch(self, idle_index: int, patch: Patch) -> None:
        """Stores the patch of one of `missing_idle_patches`; `idle` returns them once none is missing."""
        return

    def close(self) -> None:
        """Releases what the session holds. Safe to call twice."""
        return


class InFlightBatch(Protocol):
    """A batch under way. The batcher calls `wait`, then `patches`, once each, on a thread other than the one that launched
    it, but for a `CompletedBatch`."""

    def wait(self) -> None:
        """Blocks until the device has finished the batch. Raises `EngineFailed` when the device failed."""
        ...

    def patches(self) -> list[Patch | None]:
        """After `wait`: does the host's work and returns one patch per request, in order.

        None where the idle frame is to be shown as it is: blend weight 0, or a patch that the engine found unfit to be shown.
        """
        ...


@dataclass(frozen=True, slots=True)
class CompletedBatch:
    """The batch of an engine that computes in `launch`."""

    completed: list[Patch | None]

    def wait(self) -> None:
        """Returns at once."""

    def patches(self) -> list[Patch | None]:
        """The patches that `launch` made."""
        return self.completed


class Engine(Protocol):
    """Turns features into patches for every session of the process.

    `launch` runs on the batcher's own thread, and nothing else does; `prepare`, `open` and `warmup` run on worker threads, never on
    the event loop, and beside `launch`. Methods with a body suit an engine without device, weights and artefacts.
    """

    @property
    def name(self) -> str:
        """Name of the engine in requests and answers."""
        ...

    @property
    def device(self) -> str:
        """The device: `cpu`, `cuda:0` …"""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever the artefacts it writes into a bundle change."""
        ...

    def fingerprint_with(self, settings: AvatarSettings) -> str:
        """`fingerprint` of the artefacts for these settings; the same for settings on which no artefact depends."""
        return self.fingerprint

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Efficient batch sizes, ascending; the last is the largest that `launch` takes. May shrink while the engine runs."""
        ...

    @property
    def features(self) -> FeatureExtractor:
        """The extractor whose output `launch` reads."""
        ...

    @property
    def needs_face(self) -> bool:
        """False for engines that draw their own frames and take no avatar."""
        ...

    @property
    def fade_out_frames(self) -> int:
        """Frames after a segment over which the mouth glides back to the idle clip (their `blend_weight` falls to 0)."""
        ...

    def prepare(self, bundle: Bundle, progress: Progress | None = None, settings: AvatarSettings = DEFAULTS) -> None:
        """Derives the engine's artefacts once and stores them in the bundle under `fingerprint_with`. Idempotent."""
        return

    def open(self, bundle: Bundle, settings: AvatarSettings = DEFAULTS) -> EngineSession:
        """Readies a prepared bundle for one session; what the engine cannot do of the settings it leaves out."""
        ...

    def warmup(self) -> None:
        """Runs one batch at production shape, so that the first session does not wait for it."""
        return

    def launch(self, batch: Sequence[PatchRequest]) -> InFlightBatch:
        """Starts a batch and returns without waiting for the device.

        Raises `EngineFailed` when the device failed, which ends the batcher; anything else fails this batch only.
        """
        ...

    def capacity(self, fps: int) -> int | None:
        """Sessions that may all speak at once at `fps`, as measured in `warmup`; None where the engine sets no limit."""
        return None

    def batch_seconds(self) -> Mapping[int, float]:
        """Seconds that a batch of each size takes, as measured in `warmup`; empty where that was not measured."""
        return {}

    def took(self, size: int, seconds: float, *, queued: bool) -> None:
        """Called by the batcher on its collecting thread: the device was busy for so long with a batch of this size. `queued`: it
        began as the batch before it ended, so that nothing but the device's time is in it."""
        return

    def probe(self) -> None:
        """Blocks until the device has done a smallest piece of work. Raises `EngineFailed` when it cannot; may never return."""
        return

    def stats(self) -> dict[str, Any]:
        """The engine's own measurements for `/debug`: JSON values. Called on the event loop: no work."""
        return {}

    def close(self) -> None:
        """Releases the device. Safe to call twice."""
        return
