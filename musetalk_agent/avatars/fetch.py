"""Fetches a clip from an address that a stranger named (work in progress)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarUrlForbidden


class Fetcher:
    def __init__(self, limits: AvatarLimits, *, allow_private: bool = False) -> None:
        self._limits = limits
        self._allow_private = allow_private

    async def fetch(self, url: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        raise AvatarUrlForbidden("Fetching is not there yet.")
