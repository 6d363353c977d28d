"""Takes a clip's bytes in as they come: counted, hashed, looked at, written to a file that is kept only when it is whole."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from types import TracebackType

from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.sniff import SNIFF_BYTES, VIDEOS_UNREAD, Kind, sniff
from musetalk_agent.errors import AvatarEmpty, AvatarTooLarge, AvatarUndecodable

_BLOCK_BYTES = 1 << 20


class Receiver:
    """An asynchronous context manager; leaving it removes whatever `finish` did not keep.

    Args:
        cache: where the file goes.
        limits: `source_bytes` is what it may have.
        name: what to call the file in an error message.
        accepted: what it may be.
    """

    def __init__(self, cache: AvatarCache, limits: AvatarLimits, name: str, accepted: frozenset[Kind]) -> None:
        self._cache = cache
        self._limit = limits.source_bytes
        self._name = name
        self._accepted = accepted
        self._digest = hashlib.sha256()
        self._folder: Path | None = None
        self._pending = bytearray()
        self._received = 0
        self._looked = False

    async def __aenter__(self) -> Receiver:
        self._folder = await asyncio.to_thread(self._cache.part)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            await asyncio.shield(asyncio.to_thread(self._cache.discard_part, self._folder))

    async def write(self, piece: bytes) -> None:
        """Takes the next bytes.

        Raises:
            AvatarTooLarge: more than the limit.
            AvatarUndecodable, AvatarEmpty: it does not begin like anything that is accepted.
        """
        self._received += len(piece)
        if self._received > self._limit:
            raise AvatarTooLarge(
                f"{self._sentence()} has more than {self._limit} bytes, the most that is allowed.", limit=self._limit
            )
        self._pending += piece
        if not self._looked and len(self._pending) >= SNIFF_BYTES:
            self._look()
        if len(self._pending) >= _BLOCK_BYTES:
            await self._flush()

    async def finish(self) -> tuple[Path, str]:
        """Keeps the file; returns where it lies and its sha256. Raises as `write` does."""
        if not self._looked:
            self._look()
        await self._flush()
        digest = self._digest.hexdigest()
        path = await asyncio.to_thread(self._cache.keep_source, self._file, digest)
        return path, digest

    @property
    def _file(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the receiver is not entered")
        return self._folder / "source"

    async def _flush(self) -> None:
        block, self._pending = bytes(self._pending), bytearray()
        await asyncio.to_thread(self._append, block)

    def _append(self, block: bytes) -> None:
        self._digest.update(block)
        with self._file.open("ab") as file:
            file.write(block)

    def _look(self) -> None:
        self._looked = True
        kind = sniff(bytes(self._pending[:SNIFF_BYTES]))
        if kind is Kind.EMPTY:
            raise AvatarEmpty(f"{self._sentence()} is empty (0 bytes).")
        if kind not in self._accepted:
            wanted = sorted(accepted.value for accepted in self._accepted)
            advice = " Export the video as MP4 (H.264)." if kind in VIDEOS_UNREAD else ""
            raise AvatarUndecodable(
                f"{self._sentence()} looks like {kind.value}; expected is {', '.join(wanted[:-1])} or {wanted[-1]}.{advice}",
                value=kind.value,
            )

    def _sentence(self) -> str:
        return self._name[0].upper() + self._name[1:]
