"""Backgrounds of avatars: mattes, made once for each bundle, and the images behind the person."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from musetalk_agent.arrays import load_array
from musetalk_agent.avatars.bundle import Bundle, DamagedBundle
from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.cutout import Cutout, Matte, Scenery, plain
from musetalk_agent.avatars.decoder_pool import DecoderCall, DecoderPools, Progress
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.matte_files import load_matte, matte_path
from musetalk_agent.avatars.media_probe import PICTURES
from musetalk_agent.avatars.person_net import SEGMENTER
from musetalk_agent.avatars.sources import Fetcher, SourceWriter
from musetalk_agent.errors import AvatarError
from musetalk_agent.protocol.avatar_settings import background_choice
from musetalk_agent.tasks import in_thread
from musetalk_agent.weights import ModelStore

log = logging.getLogger(__name__)

FIELD = "avatar_settings.background"
MATTE_FRAME_S = 0.5
"""Real time that a matte may take for each frame, beside the time of a preparation: on a free core it is a tenth of a second."""
T = TypeVar("T")


class Once(Protocol):
    """Runs work once at a time for each key (`library.SingleFlight`)."""

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T: ...


class Backgrounds:
    """Shows bundles with a background.

    Args:
        cache, models, limits, fetcher, decoders: the library's own.
        once: callers who want the same at the same time share the work.
    """

    def __init__(
        self,
        cache: AvatarCache,
        models: ModelStore,
        limits: AvatarLimits,
        fetcher: Fetcher,
        decoders: DecoderPools,
        once: Once,
    ) -> None:
        self._cache, self._models, self._limits = cache, models, limits
        self._fetcher, self._decoders, self._once = fetcher, decoders, once
        self._pictures: weakref.WeakValueDictionary[tuple[str, int, int], Scenery] = weakref.WeakValueDictionary()

    async def shown(self, bundle: Bundle, background: str, progress: Progress | None = None) -> Bundle:
        """The bundle as it is shown with a background, which must be a checked one; the bundle itself for `keep`.

        The matte is made the first time that a bundle needs one. A picture that a session shows is not fetched again.
        Cancelling does not disturb others who wait for the same.

        Raises:
            AtCapacity: too many clips wait to be prepared.
            AvatarError: the picture cannot be used; `field` is `FIELD`.
            DiskFull: the matte cannot be written.
            WeightsMissing: the network for it is not there.
        """
        choice = background_choice(background)
        if choice.kind == "keep":
            return bundle
        scenery: Scenery | None = None
        if choice.kind == "image":
            scenery = await self._picture(choice.url, bundle.width, bundle.height)
        elif choice.kind == "colour":
            scenery = plain(choice.colour, bundle.width, bundle.height)
        matte = await self.matte(bundle, progress)
        return replace(bundle, cutout=Cutout(matte, scenery, transparent=choice.kind == "transparent"))

    async def matte(self, bundle: Bundle, progress: Progress | None = None) -> Matte:
        """The bundle's matte, made now unless it is there. Raises as `shown` does."""
        folder = matte_path(bundle, self._models.manifest)
        found = await in_thread(lambda: self._found(folder, bundle), "matte-load")
        if found is not None:
            return found
        return await self._once.run(("matte", str(folder)), lambda: self._made(bundle, folder, progress))

    def _found(self, folder: Path, bundle: Bundle) -> Matte | None:
        if not folder.exists():
            return None
        try:
            return load_matte(folder, bundle)
        except DamagedBundle as error:
            log.warning("a matte is damaged, making it anew", extra={"folder": str(folder), "reason": str(error)})
            self._cache.discard_matte(folder)
            return None

    async def _made(self, bundle: Bundle, folder: Path, progress: Progress | None) -> Matte:
        begun = time.perf_counter()

        def make(call: DecoderCall) -> Matte:
            self._models.path(SEGMENTER)  # raises WeightsMissing
            part = self._cache.part()
            try:
                call(self._request("matte", part, bundle=str(bundle.path)), progress)
                self._cache.keep_matte(part, folder)
                return load_matte(folder, bundle)
            finally:
                self._cache.discard_part(part)

        within_s = self._limits.decoder_seconds + MATTE_FRAME_S * len(bundle)
        with self._cache.writing():
            matte = await self._decoders.builders.run(make, replace(self._limits, decoder_seconds=within_s))
        seconds = round(time.perf_counter() - begun, 3)
        log.info("matte made", extra={"folder": str(folder), "frames": len(bundle), "seconds": seconds})
        return matte

    async def _picture(self, url: str, width: int, height: int) -> Scenery:
        key = url, width, height
        shown = self._pictures.get(key)
        if shown is not None:
            return shown
        try:
            fetched = await self._once.run(("background", *key), lambda: self._fetched(url, width, height))
        except AvatarError as error:
            error.field = FIELD
            raise
        return self._pictures.setdefault(key, fetched)

    async def _fetched(self, url: str, width: int, height: int) -> Scenery:
        def decode(call: DecoderCall) -> Scenery:
            part = self._cache.part()
            try:
                call(self._request("scenery", part, source=str(path), width=width, height=height))
                planes = load_array(part / "scenery.npy")
            finally:
                self._cache.discard_part(part)
            return Scenery(planes)

        with self._cache.writing():
            async with SourceWriter(self._cache, self._limits, "the background at this address", PICTURES) as receiver:
                await self._fetcher.fetch(url, receiver.write)
                path, _ = await receiver.finish()
            return await self._decoders.builders.run(decode, self._limits)

    def _request(self, do: str, folder: Path, **more: Any) -> dict[str, Any]:
        limits, models = asdict(self._limits), str(self._models.directory)
        return {"do": do, "limits": limits, "models": models, "folder": str(folder), **more}
