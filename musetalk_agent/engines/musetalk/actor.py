"""One avatar in one session of the MuseTalk engine: its latents on the card, its mouth at rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from musetalk_agent.engines.musetalk.avatars import Avatar, AvatarStore
from musetalk_agent.media_types import Feature, Patch


class MuseTalkActor:
    """An avatar for one session. It keeps nothing from frame to frame.

    Args:
        mouth: how far a mouth may be drawn on each idle frame, 0 … 1 (`Bundle.mouth`, and 0 where the face does not stand upright).
        talks: the clip's own mouth talks, so that idle frames get the mouth that the network makes of silence.
    """

    def __init__(
        self,
        store: AvatarStore,
        folder: Path,
        avatar: Avatar,
        rest: Feature,
        mouth: Callable[[int], float] = lambda _: 1.0,
        *,
        talks: bool = False,
    ) -> None:
        self._store, self._folder, self._rest = store, folder, rest
        self._closed = False
        self.avatar, self.mouth, self._talks = avatar, mouth, talks
        self._poses = tuple(pose for pose in range(len(avatar.artefacts)) if mouth(pose) > 0)

    @property
    def rest(self) -> Feature:
        """Feature of silence."""
        return self._rest

    def towards_rest(self, feature: Feature, amount: float) -> Feature:
        """The sound fades to silence where it is: the last row, which says where that is, stays (`features.whisper`)."""
        faded = (feature + (self._rest - feature) * np.float32(amount)).astype(np.float32)
        faded[-1] = feature[-1]
        return faded

    def idle(self, pose: int) -> Patch | None:
        """The closed mouth of a clip that talks, once all of its poses have one; None for the clip as it is."""
        return self.avatar.idle.get(pose) if self.rests else None

    @property
    def rests(self) -> bool:
        """Idle frames have their mouths closed."""
        return self._talks and len(self.avatar.idle) == len(self._poses)

    def idle_wanted(self) -> tuple[int, ...]:
        """The poses of a clip that talks for which nothing was made yet, by whichever session shows the avatar."""
        if not self._talks:
            return ()
        return tuple(pose for pose in self._poses if pose not in self.avatar.idle)

    def keep_idle(self, pose: int, patch: Patch) -> None:
        """Keeps it in memory as long as the avatar is in the store."""
        self.avatar.idle[pose] = Patch(patch.box, np.ascontiguousarray(patch.pixels), patch.mask)

    def close(self) -> None:
        """The last session's end leaves the latents on the card for a while (`AvatarStore`)."""
        if not self._closed:
            self._closed = True
            self._store.give_back(self._folder)
