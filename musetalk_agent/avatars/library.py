"""Every avatar the agent knows: fetched, checked, prepared once, kept.

source (URL, id, upload) → bytes, kept by their sha256 → bundle, kept by bytes + settings → engine's artefacts in it
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from musetalk_agent.avatars.backgrounds import Backgrounds
from musetalk_agent.avatars.bundle import SCHEMA_VERSION, Bundle
from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.decoder_pool import DecoderCall, DecoderPools, Progress
from musetalk_agent.avatars.face import DETECTORS, MESH
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import PICTURES, VIDEOS, MediaKind, sniff_file
from musetalk_agent.avatars.sources import Fetcher, SourceWriter
from musetalk_agent.errors import AvatarError, AvatarNotFound, EngineFailed
from musetalk_agent.protocol.avatar_settings import Mood
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AvatarSource, AvatarWarning, Picture
from musetalk_agent.tasks import in_thread
from musetalk_agent.weights import ModelStore

log = logging.getLogger(__name__)

T = TypeVar("T")

DEMO_ASSET = Path(__file__).resolve().parent.parent / "assets" / "demo-avatar.png"
_AVATAR_ID = re.compile(r"sha256:([0-9a-f]{64})")
_DERIVERS = 2
DERIVE_S, DERIVE_FRAME_S = 120.0, 5.0
"""The time that an engine may take for an avatar, and more for each of its frames: MuseTalk on a CPU takes seconds for a frame."""
_CACHE_THREADS = 2
_PIECE_BYTES = 1 << 20
_ANY = frozenset({MediaKind.ZIP}) | VIDEOS | PICTURES
_ACCEPTED = {"frames_zip_url": frozenset({MediaKind.ZIP}) | PICTURES, "idle_video_url": VIDEOS | PICTURES}


@dataclass(frozen=True, slots=True)
class _Clip:
    """A source's bytes on disk, the sha256 of them, and the id they are called by."""

    path: Path
    digest: str
    avatar_id: str


class AvatarLibrary:
    """The agent's avatars.

    Args:
        cache_dir: folder of sources and bundles; made when it is not there, may be shared by processes.
        models: where the face models lie.
        allow_private_urls: whether avatars may be fetched from loopback and private addresses.
        limits: what an avatar may cost.
        cache_bytes: size that the folder is kept to, avatars in use excepted.
        fetcher: how addresses are fetched; by default one that follows the two settings above.
        decoders: processes that clips are decoded in, shared with others, who close them; by default its own.
    """

    def __init__(
        self,
        cache_dir: Path,
        models: ModelStore,
        *,
        allow_private_urls: bool = False,
        limits: AvatarLimits | None = None,
        cache_bytes: int = 4 << 30,
        fetcher: Fetcher | None = None,
        decoders: DecoderPools | None = None,
    ) -> None:
        self._limits = limits or AvatarLimits()
        self._models = models
        self._cache = AvatarCache(cache_dir, cache_bytes)
        self._fetcher = fetcher or Fetcher(self._limits, allow_private=allow_private_urls)
        self._single_flight = SingleFlight()
        self._decoders = decoders or DecoderPools(models.directory)
        self._own_decoders = decoders is None
        self._derivers = asyncio.Semaphore(_DERIVERS)
        self._lookups = ThreadPoolExecutor(_CACHE_THREADS, "avatar-cache")
        self._deriving: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._backgrounds = Backgrounds(
            self._cache, models, self._limits, self._fetcher, self._decoders, self._single_flight
        )

    def warm(self) -> None:
        """Starts the processes that prepare clips, in the background, so that the first clip does not wait for one."""
        self._decoders.builders.warm()

    async def prepare(
        self,
        source: AvatarSource,
        picture: Picture,
        derive: Callable[[Bundle], None] | None = None,
        progress: Progress | None = None,
        fingerprint: str | None = None,
        background: str = "keep",
        *,
        mood: Mood = "neutral",
        only_matte: bool = False,
    ) -> Bundle:
        """Returns the avatar at the size and rate asked for, prepared now or found in the cache (`report.cached`).

        `avatar_id` wins over the zip, the zip over the video. The video is tried when the zip cannot be used; a warning then says
        why. A URL is fetched each time. Everything after that is done once for the same bytes and settings, also for concurrent
        callers. The bundle stays on disk while the caller refers to it.

        Args:
            derive: runs in a worker thread on the finished bundle, one at a time for each. It is called for a cached bundle as well
                and must look at what is there already.
            fingerprint: the engine's, under which `derive` keeps what it made. A bundle that has it waits for no other clip.
            progress: called in worker threads.
            background: what is shown behind the person.
            mood: how the face of a still picture is set.
            only_matte: the bundle is not shown now; what it will need for a background is made, and no picture fetched.

        Cancelling does not disturb others who wait for the same avatar. When the last one leaves, the work is ended.

        Raises:
            AtCapacity: too many clips wait to be prepared.
            AvatarError: the avatar cannot be used; `field` names the request's field.
            DiskFull: it cannot be written; nothing of it is left.
            EngineFailed: `derive` did not return in time (`DERIVE_S`); its thread is left behind.
            WeightsMissing: a face model is not there.
        """
        warnings: list[AvatarWarning] = []
        with self._cache.writing():
            try:
                clip, bundle, cached = await self._found_or_built(source, _field(source), picture, progress)
            except AvatarError as failed:
                if not source.idle_video_url or failed.field != "frames_zip_url":
                    raise
                clip, bundle, cached = await self._from_video(source.idle_video_url, failed, picture, progress)
                warnings.append(_zip_failed(failed))
            if derive is not None:
                await self._derive(bundle, derive, fingerprint)
            if only_matte and background != "keep":
                await self._backgrounds.matte(bundle, progress)
            elif not only_matte:
                bundle = await self._backgrounds.shown(bundle, background, progress)
        warnings += bundle.report.warnings
        update = {"cached": cached, "avatar_id": clip.avatar_id, "warnings": warnings}
        return self._cache.hold(replace(bundle, report=bundle.report.model_copy(update=update), mood=mood))

    async def matte(self, bundle: Bundle) -> None:
        """Makes what a bundle of this library will need for another background, unless it is there. Cancelling is safe.

        Raises AvatarError, AtCapacity, DiskFull, WeightsMissing.
        """
        with self._cache.writing():
            await self._backgrounds.matte(bundle)

    async def _from_video(
        self, url: str, zip_failed: AvatarError, picture: Picture, progress: Progress | None
    ) -> tuple[_Clip, Bundle, bool]:
        """What `_found_or_built` makes of the video, in place of a zip that cannot be used."""
        log.warning(
            "the zip cannot be used, the video is tried", extra={"code": zip_failed.code, "reason": zip_failed.detail}
        )
        try:
            return await self._found_or_built(AvatarSource(idle_video_url=url), "idle_video_url", picture, progress)
        except AvatarError as error:
            both = f"{error.detail} The zip cannot be used either ({zip_failed.code}): {zip_failed.detail}"
            raise type(error)(both, field=error.field, limit=error.limit, value=error.value) from error

    async def _found_or_built(
        self,
        source: AvatarSource,
        field: str,
        picture: Picture,
        progress: Progress | None,
    ) -> tuple[_Clip, Bundle, bool]:
        """The clip, its bundle, and whether that was there already. An AvatarError gets the request's field."""
        try:
            clip = await self._clip(source, field)
            key = self._key(clip.digest, picture)
            bundle = await self._run(self._lookups, self._cached, clip.digest, picture)
            cached = bundle is not None
            if bundle is None:
                bundle = await self._single_flight.run(
                    ("build", key), lambda: self._built(clip, key, picture, progress)
                )
        except AvatarError as error:
            error.field = error.field or field
            raise
        self._cache.hold(bundle)
        return clip, bundle, cached

    async def add(self, data: AsyncIterator[bytes] | bytes, filename: str | None = None) -> str:
        """Takes an upload and returns its `avatar_id`; its images are checked by `prepare`. Cancelling is safe.

        Args:
            data: the file's bytes, whole or in pieces.
            filename: what the sender calls it, for error messages only.

        Raises:
            AvatarError: too large, or not a clip.
            DiskFull: it cannot be written; nothing of it is left.
        """
        self._decoders.builders.warm()  # a clip that is sent will be prepared
        name = repr((filename or "upload")[:120])
        with self._cache.writing():
            async with SourceWriter(self._cache, self._limits, name, _ANY) as receiver:
                if isinstance(data, bytes):
                    for at in range(0, len(data), _PIECE_BYTES):
                        await receiver.write(data[at : at + _PIECE_BYTES])
                else:
                    async for piece in data:
                        await receiver.write(piece)
                path, digest = await receiver.finish()
        await self._check_archive(path)
        return f"sha256:{digest}"

    async def fetch(self, url: str) -> str:
        """Takes a clip of any kind from an address and returns its `avatar_id`. Raises as `add` does. Cancelling is safe."""
        try:
            with self._cache.writing():
                async with SourceWriter(self._cache, self._limits, "the file at this address", _ANY) as receiver:
                    await self._fetcher.fetch(url, receiver.write)
                    path, digest = await receiver.finish()
            await self._check_archive(path)
        except AvatarError as error:
            error.field = error.field or "url"
            raise
        return f"sha256:{digest}"

    async def _check_archive(self, path: Path) -> None:
        if await self._run(self._lookups, sniff_file, path) is MediaKind.ZIP:
            request = {"do": "check_archive", "source": str(path), "limits": asdict(self._limits)}
            await self._decoders.checkers.run(lambda call: call(request), self._limits)

    async def source(self, avatar_id: str) -> Path:
        """The file with an avatar's own bytes, marked as used. Raises `AvatarNotFound`."""
        return (await self._run(self._lookups, self._known, avatar_id)).path

    def close(self) -> None:
        """Ends the processes within a tenth of a second; callers that wait are cancelled. Safe to call twice."""
        self._single_flight.abort()
        if self._own_decoders:
            self._decoders.close()
        for task in self._tasks:
            task.cancel()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def _run(self, threads: Executor, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, work, *args)

    async def _clip(self, source: AvatarSource, field: str) -> _Clip:
        if field == "avatar_id":
            return await self._run(self._lookups, self._known, source.avatar_id or "")
        url = source.frames_zip_url or source.idle_video_url or ""

        async def fetch() -> _Clip:
            async with SourceWriter(
                self._cache, self._limits, "the file at this address", _ACCEPTED[field]
            ) as receiver:
                await self._fetcher.fetch(url, receiver.write)
                path, digest = await receiver.finish()
            return _Clip(path, digest, f"sha256:{digest}")

        return await self._single_flight.run(("fetch", field, url), fetch)

    def _known(self, avatar_id: str) -> _Clip:
        if avatar_id == DEMO_AVATAR_ID:
            digest = hashlib.sha256(DEMO_ASSET.read_bytes()).hexdigest()
            return _Clip(DEMO_ASSET, digest, avatar_id)
        match = _AVATAR_ID.fullmatch(avatar_id)
        path = self._cache.source(match[1]) if match else None
        if match is None or path is None:
            raise AvatarNotFound(
                f"No avatar is known as {avatar_id!r}; send it again by URL or upload.", value=avatar_id[:128]
            )
        return _Clip(path, match[1], avatar_id)

    def _cached(self, digest: str, picture: Picture) -> Bundle | None:
        """The bundle, if it is there: for a size that was asked for also the one of the clip's own size, where that is the same."""
        bundle = self._cache.bundle(self._key(digest, picture))
        if bundle is None and picture.width is not None and picture.height is not None:
            own = self._cache.bundle(self._key(digest, Picture(fps=picture.fps)))
            if own is not None and (own.width, own.height) == (picture.width, picture.height):
                return own
        return bundle

    def _key(self, digest: str, picture: Picture) -> str:
        """Everything that changes the bundle: bytes, size, rate, layout on disk, face models."""
        nets = [self._models.manifest.entries[name].sha256 for name in (*DETECTORS, MESH)]
        parts = [digest, picture.fps, picture.width, picture.height, SCHEMA_VERSION, nets]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    async def _built(self, clip: _Clip, key: str, picture: Picture, progress: Progress | None) -> Bundle:
        begun = time.perf_counter()
        bundle = await self._decoders.builders.run(
            lambda call: self._build(call, clip, key, picture, progress), self._limits
        )
        seconds = time.perf_counter() - begun
        log.info(
            "avatar prepared",
            extra={"avatar_id": clip.avatar_id, "frames": len(bundle), "seconds": round(seconds, 3)},
        )
        return bundle

    def _build(self, call: DecoderCall, clip: _Clip, key: str, picture: Picture, progress: Progress | None) -> Bundle:
        for name in (*DETECTORS, MESH):
            self._models.path(name)  # raises WeightsMissing
        part = self._cache.part()
        request = {
            "do": "build",
            "source": str(clip.path),
            "avatar_id": clip.avatar_id,
            "key": key,
            "picture": picture.model_dump(),
            "limits": asdict(self._limits),
            "models": str(self._models.directory),
            "folder": str(part),
        }
        try:
            call(request, progress)
            return self._cache.keep_bundle(part, key)
        finally:
            self._cache.discard_part(part)

    async def _derive(self, bundle: Bundle, derive: Callable[[Bundle], None], fingerprint: str | None) -> None:
        """Runs `derive` to its end even if the caller leaves: a thread cannot be cancelled, and the lock must outlast it.

        One that does not return in time is left behind, so that the next start of the avatar does not wait for it.
        """
        within_s = DERIVE_S + DERIVE_FRAME_S * len(bundle)

        async def bounded() -> None:
            try:
                async with asyncio.timeout(within_s):
                    await in_thread(partial(derive, bundle), "avatar-derive")
            except TimeoutError as error:
                raise EngineFailed(f"The engine did not prepare the avatar within {within_s:g} s.") from error

        async def locked() -> None:
            lock = self._deriving.setdefault(str(bundle.path), asyncio.Lock())
            async with lock:
                if fingerprint is not None and bundle.engine_path(fingerprint).exists():
                    await self._run(self._lookups, derive, bundle)
                    return
                async with self._derivers:
                    await bounded()

        task = asyncio.create_task(locked(), name="avatar derive")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)


def _field(source: AvatarSource) -> str:
    if source.avatar_id:
        return "avatar_id"
    if source.frames_zip_url:
        return "frames_zip_url"
    if source.idle_video_url:
        return "idle_video_url"
    raise AvatarNotFound("No avatar is named; give frames_zip_url, idle_video_url or avatar_id.", field="avatar_id")


def _zip_failed(error: AvatarError) -> AvatarWarning:
    message = f"The video is shown, because frames_zip_url cannot be used ({error.code}): {error.detail}"
    return AvatarWarning(code="frames_zip_failed", message=message)


@dataclass
class _SharedTask(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight:
    """Runs each key once at a time: callers who want the same thing at the same time share one task.

    The task is cancelled when its last caller leaves. The length is the number of tasks that run.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, _SharedTask[Any]] = {}
        self._cancelled: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """Returns the result of `work` for `key`, shared with all who ask while it runs.

        Cancelling ends this caller's wait only. When the last caller leaves, the work is cancelled.
        """
        shared = cast("_SharedTask[T] | None", self._running.get(key))
        if shared is None:
            shared = _SharedTask(asyncio.create_task(_call(work), name=f"avatar {key}"))
            self._running[key] = shared
            shared.task.add_done_callback(lambda _: self._on_done(key, shared))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.waiting == 0 and not shared.task.done():
                self._cancel(key, shared)

    def abort(self) -> None:
        """Cancels all work and forgets it."""
        for key, shared in list(self._running.items()):
            self._cancel(key, shared)

    def _cancel(self, key: Hashable, shared: _SharedTask[Any]) -> None:
        """Cancels a task. It is no longer found under its key: a later caller must not join work that is being cancelled."""
        self._forget(key, shared)
        self._cancelled.add(shared.task)
        shared.task.cancel()

    def _on_done(self, key: Hashable, shared: _SharedTask[Any]) -> None:
        self._forget(key, shared)
        self._cancelled.discard(shared.task)
        if not shared.task.cancelled():
            shared.task.exception()  # retrieved, so that asyncio does not report an error that no caller waited for

    def _forget(self, key: Hashable, shared: _SharedTask[Any]) -> None:
        if self._running.get(key) is shared:
            del self._running[key]


async def _call(work: Callable[[], Awaitable[T]]) -> T:
    return await work()
