"""What the card keeps of each avatar: its latents, once, shared by all its sessions; and one session's view of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.device import Card, device_errors
from musetalk_agent.engines.musetalk.picture.mouth_picture import MouthPicture
from musetalk_agent.errors import EngineOutOfMemory, EngineUnavailable
from musetalk_agent.media_types import Feature, Patch
from musetalk_agent.protocol.avatar_settings import DEFAULTS, AvatarSettings, Blend

LOUDEST = np.float32(1.65)
"""Upper end of whisper's scaled mel values: a full-scale square wave gives 1.64 at most."""
DrawnWith = tuple[Blend, float]
"""The settings on which an idle mouth depends: `blend` and `sharpen`."""
SPARE_BYTES = 128 << 20
"""Latents kept of avatars without a session, in case they come back: 8,192 idle frames of 16 KiB."""


@dataclass(slots=True)
class Avatar:
    """Artefacts, and the latents `[n, 8, 32, 32]` float16 on the card."""

    artefacts: MuseTalkArtefacts
    latents: Tensor
    sessions: int = 0
    idle: dict[DrawnWith, dict[int, Patch]] = field(default_factory=dict)
    """Of a clip whose mouth moves while idle: its idle frames with the mouth that the network makes of silence, as far as they
    are made, for sessions of the same look."""

    @property
    def nbytes(self) -> int:
        """Bytes on the card."""
        return self.latents.numel() * self.latents.element_size()


class AvatarStore:
    """Avatars by their artefacts' folder; any thread. Those in use are never dropped, the others least recently used first."""

    def __init__(self, card: Card, spare_bytes: int = SPARE_BYTES) -> None:
        self._card, self._spare_bytes = card, spare_bytes
        self._avatars: dict[Path, Avatar] = {}  # in the order of their last use
        self._loading: dict[Path, threading.Event] = {}  # set when it is over
        self._cleared = False
        self._lock = threading.Lock()

    def take(self, folder: Path, load: Callable[[], MuseTalkArtefacts]) -> Avatar:
        """The avatar of `folder`, loaded by `load` when it is not here; give it back once. Other avatars do not wait for the load.

        Raises what `load` raises, `EngineOutOfMemory` when the card has no memory for it, `EngineUnavailable` when the store was
        cleared.
        """
        while True:
            with self._lock:
                if self._cleared:
                    raise EngineUnavailable("The engine is closing and takes no avatar.")
                avatar = self._avatars.pop(folder, None)
                if avatar is not None:
                    avatar.sessions += 1
                    self._avatars[folder] = avatar
                    return avatar
                elsewhere = self._loading.get(folder)
                if elsewhere is None:
                    over = self._loading[folder] = threading.Event()
            if elsewhere is None:
                self._load(folder, load, over)
            else:
                elsewhere.wait()  # then it is here; or its load failed, and this thread tries it

    def _load(self, folder: Path, load: Callable[[], MuseTalkArtefacts], over: threading.Event) -> None:
        try:
            avatar = self._loaded(load())
            with self._lock:
                if not self._cleared:
                    self._avatars[folder] = avatar
        finally:
            with self._lock:
                del self._loading[folder]
            over.set()

    def give_back(self, folder: Path) -> None:
        """Counts one session less. Does nothing after `clear`."""
        with self._lock:
            avatar = self._avatars.pop(folder, None)
            if avatar is None:
                return
            avatar.sessions -= 1
            self._avatars[folder] = avatar
            self._drop(self._spare_bytes)

    def allocated(self) -> int:
        """Bytes of latents on the card."""
        with self._lock:
            return sum(avatar.nbytes for avatar in self._avatars.values())

    def clear(self) -> None:
        """Drops all avatars, in use or not: the engine is closing."""
        with self._lock:
            self._cleared = True
            self._avatars.clear()

    def _loaded(self, artefacts: MuseTalkArtefacts) -> Avatar:
        latents = torch.from_numpy(np.array(artefacts.latents))  # a copy: what is mapped is read-only
        try:
            with device_errors():
                return Avatar(artefacts, latents.to(self._card.device))
        except torch.cuda.OutOfMemoryError:
            with self._lock:
                self._drop(0)
            self._card.empty_cache()
        try:
            with device_errors():
                return Avatar(artefacts, latents.to(self._card.device))
        except torch.cuda.OutOfMemoryError as error:
            raise EngineOutOfMemory("The card has no memory for another avatar.", value=latents.nbytes) from error

    def _drop(self, limit: int) -> None:
        spare = [(folder, avatar) for folder, avatar in self._avatars.items() if not avatar.sessions]
        total = sum(avatar.nbytes for _, avatar in spare)
        for folder, avatar in spare:
            if total <= limit:
                return
            total -= avatar.nbytes
            del self._avatars[folder]


class MuseTalkSession:
    """An avatar for one session. From frame to frame only its `picture` keeps anything.

    Args:
        mouth: how far a mouth may be drawn on each idle frame, 0 … 1 (`Bundle.mouth`, and 0 where the face does not stand upright).
        talks: the clip's own mouth talks, so that idle frames get the mouth that the network makes of silence.
        settings: `mouth_gain` says how far the network hears the audio away from silence, see `heard`.

    Attributes:
        picture: makes the session's patches; None for upstream's, which are resized and masked and no more.
        ended: called once, when the session is closed.
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
        settings: AvatarSettings = DEFAULTS,
    ) -> None:
        self._store, self._folder, self._rest = store, folder, rest
        self._closed = False
        self._mouth_gain = settings.mouth_gain
        self.picture: MouthPicture | None = None
        self.ended: Callable[[], None] = lambda: None
        look = settings.blend, settings.sharpen
        self._idle_patches = avatar.idle.setdefault(look, {})
        self.avatar, self.mouth, self._talks = avatar, mouth, talks
        self._idle_indices = tuple(idle_index for idle_index in range(len(avatar.artefacts)) if mouth(idle_index) > 0)

    @property
    def rest(self) -> Feature:
        """Feature of silence."""
        return self._rest

    def fade_to_silence(self, feature: Feature, amount: float) -> Feature:
        """Fades the mel columns to silence; the last row, which holds their position, stays (`features.whisper_features`)."""
        faded = (feature + (self._rest - feature) * np.float32(amount)).astype(np.float32)
        faded[-1] = feature[-1]
        return faded

    def heard(self, feature: Feature) -> Feature:
        """The feature as the network gets it: `mouth_gain` times as far from silence, but no louder than any mel value can be."""
        if self._mouth_gain == 1.0:
            return feature
        return np.minimum(self.fade_to_silence(feature, 1.0 - self._mouth_gain), np.maximum(feature, LOUDEST))

    def idle(self, idle_index: int) -> Patch | None:
        """The closed mouth of a clip that talks, once all of its idle frames have one; None for the clip as it is."""
        return self._idle_patches.get(idle_index) if self.rests else None

    @property
    def rests(self) -> bool:
        """Idle frames have their mouths closed."""
        return self._talks and len(self._idle_patches) == len(self._idle_indices)

    def missing_idle_patches(self) -> tuple[int, ...]:
        """The idle frames of a clip that talks for which nothing was made yet, by whichever session shows the avatar."""
        if not self._talks:
            return ()
        return tuple(idle_index for idle_index in self._idle_indices if idle_index not in self._idle_patches)

    def store_idle_patch(self, idle_index: int, patch: Patch) -> None:
        """Keeps it in memory as long as the avatar is in the store."""
        self._idle_patches[idle_index] = Patch(patch.box, np.ascontiguousarray(patch.pixels), patch.mask)

    def close(self) -> None:
        """The last session's end leaves the latents on the card for a while (`AvatarStore`)."""
        if not self._closed:
            self._closed = True
            self.ended()
            self._store.give_back(self._folder)
