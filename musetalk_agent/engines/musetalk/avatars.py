"""What the card keeps of each avatar: its latents once, shared by all its sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from musetalk_agent.engines.musetalk.artefacts import Artefacts
from musetalk_agent.engines.musetalk.graphs import Card
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.media_types import Patch

SPARE_BYTES = 128 << 20
"""Latents kept of avatars without a session, in case they come back: 8,192 poses of 16 KiB."""


@dataclass(slots=True)
class Avatar:
    """Artefacts, and the latents `[n, 8, 32, 32]` float16 on the card."""

    artefacts: Artefacts
    latents: Tensor
    sessions: int = 0
    idle: dict[int, Patch] = field(default_factory=dict)
    """Of a clip that talks by itself: its poses with the mouth that the network makes of silence, as far as they are made."""

    @property
    def nbytes(self) -> int:
        """Bytes on the card."""
        return self.latents.numel() * self.latents.element_size()


class AvatarStore:
    """Avatars by their artefacts' folder; any thread. Those in use are never dropped, the others least recently used first."""

    def __init__(self, card: Card, spare_bytes: int = SPARE_BYTES) -> None:
        self._card, self._spare_bytes = card, spare_bytes
        self._avatars: dict[Path, Avatar] = {}  # in the order of their last use
        self._cleared = False
        self._lock = threading.Lock()

    def take(self, folder: Path, load: Callable[[], Artefacts]) -> Avatar:
        """The avatar of `folder`, loaded by `load` when it is not here; give it back once.

        Raises what `load` raises, and `EngineUnavailable` when the card has no memory for it or the store was cleared.
        """
        with self._lock:
            if self._cleared:
                raise EngineUnavailable("The engine is closing and takes no avatar.")
            avatar = self._avatars.pop(folder, None) or self._loaded(load())
            avatar.sessions += 1
            self._avatars[folder] = avatar
            return avatar

    def give_back(self, folder: Path) -> None:
        """One session less. Nothing happens where the store was cleared meanwhile."""
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
        """Forgets all of them, in use or not: the engine is closing."""
        with self._lock:
            self._cleared = True
            self._avatars.clear()

    def _loaded(self, artefacts: Artefacts) -> Avatar:
        latents = torch.from_numpy(np.array(artefacts.latents))  # a copy: what is mapped is read-only
        try:
            return Avatar(artefacts, latents.to(self._card.device))
        except torch.cuda.OutOfMemoryError:
            self._drop(0)
            self._card.trim()
        try:
            return Avatar(artefacts, latents.to(self._card.device))
        except torch.cuda.OutOfMemoryError as error:
            raise EngineUnavailable("The card has no memory for another avatar.", value=latents.nbytes) from error

    def _drop(self, limit: int) -> None:
        spare = [(folder, avatar) for folder, avatar in self._avatars.items() if not avatar.sessions]
        total = sum(avatar.nbytes for _, avatar in spare)
        for folder, avatar in spare:
            if total <= limit:
                return
            total -= avatar.nbytes
            del self._avatars[folder]
