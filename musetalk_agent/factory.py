"""The composition root: names become engines, publishers and sessions here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.clock import Clock, MonotonicClock
from musetalk_agent.engines.base import Engine
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.pattern import PatternEngine, pattern_bundle
from musetalk_agent.errors import EngineUnavailable, EngineUnknown, WeightsMissing
from musetalk_agent.metrics import ENGINE_BUSY, ENGINE_QUEUE
from musetalk_agent.pipeline import Pipeline
from musetalk_agent.protocol.http import AgentStartRequest
from musetalk_agent.protocol.messages import Event
from musetalk_agent.publishers.base import Publisher
from musetalk_agent.session import Session
from musetalk_agent.settings import AgentSettings
from musetalk_agent.weights import Manifest, ModelStore

log = logging.getLogger(__name__)

ENGINES = ("auto", "warp", "pattern", "musetalk")
_PATTERN_SIDE = 512
_MEDIA_THREADS = 4  # features and composition of all sessions; numpy and OpenCV let the others run meanwhile


def make_warp() -> Engine:
    """The CPU engine with its own mouth network."""
    from musetalk_agent.engines.warp.engine import WarpEngine
    from musetalk_agent.features.visemes import VisemeFeatures

    return WarpEngine(VisemeFeatures.load())


_MAKERS: dict[str, Callable[[], Engine]] = {"warp": make_warp, "pattern": PatternEngine}


class Factory:
    """What all sessions of the process share: engines, avatars, threads.

    Call `start` before and `aclose` after use.
    """

    def __init__(self, settings: AgentSettings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock: Clock = clock or MonotonicClock()
        self.models = ModelStore(settings.models_dir, Manifest.load())
        self.library = AvatarLibrary(
            settings.cache_dir,
            models=self.models,
            allow_private_urls=settings.allow_private_urls,
            cache_bytes=settings.cache_bytes,
        )
        cv2.setNumThreads(1)  # its pool gains nothing on small remaps and takes the cores from other sessions
        self._executor = ThreadPoolExecutor(min(_MEDIA_THREADS, (os.cpu_count() or 1) + 1), "media")
        self._batchers: dict[str, Batcher] = {}
        self.default_engine = self._resolve(settings.engine)

    async def start(self) -> None:
        """Makes and warms every engine that can run here. Raises `EngineUnavailable` when the one asked for cannot."""
        for name in dict.fromkeys((self.default_engine, *_MAKERS)):
            batcher = Batcher(await asyncio.to_thread(_MAKERS[name]))
            await batcher.start()
            self._batchers[name] = batcher
            ENGINE_QUEUE.labels(name).set_function(lambda b=batcher: b.statistics().waiting)  # type: ignore[misc]
            ENGINE_BUSY.labels(name).set_function(lambda b=batcher: b.statistics().busy_s)  # type: ignore[misc]

    async def aclose(self) -> None:
        """Ends the engines' threads. Sessions must be over."""
        for batcher in self._batchers.values():
            await batcher.aclose()
        self._batchers.clear()
        self.library.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def device(self) -> str:
        """Where the default engine computes."""
        batcher = self._batchers.get(self.default_engine)
        return batcher.engine.device if batcher else "none"

    def engine_name(self, asked: str | None) -> str:
        """The engine of a session that asks for `asked`. Raises `EngineUnknown` or `EngineUnavailable`."""
        return self._resolve(asked or self.default_engine)

    async def session(self, request: AgentStartRequest) -> Session:
        """Prepares the avatar and builds the session, not yet started. Raises `AvatarError`s and engine errors."""
        name = self.engine_name(request.engine)
        batcher = self._batchers[name]
        bundle = await self._bundle(request, batcher.engine)
        actor = await asyncio.to_thread(batcher.engine.open, bundle)
        publisher = self._publisher(request, bundle.fps)

        def build(emit: Callable[[Event], None], speaking: Callable[[bool], None]) -> Pipeline:
            return Pipeline(publisher, batcher, actor, bundle, self.clock, self._executor, emit, speaking)

        return Session(request, bundle, name, publisher, build, actor.close)

    async def _bundle(self, request: AgentStartRequest, engine: Engine) -> Bundle:
        picture = request.picture
        if not engine.needs_face:
            width = (picture.width or _PATTERN_SIDE) // 2 * 2
            height = (picture.height or _PATTERN_SIDE) // 2 * 2
            return pattern_bundle(width, height, picture.fps)
        return await self.library.prepare(request.avatar, picture, derive=engine.prepare)

    def _publisher(self, request: AgentStartRequest, fps: int) -> Publisher:
        if not request.connect_livekit:
            from musetalk_agent.publishers.null import NullPublisher

            return NullPublisher(self.clock)
        from musetalk_agent.publishers.livekit import LiveKitOptions, LiveKitPublisher

        options = LiveKitOptions(request.livekit_url, request.livekit_token, request.room, fps)
        return LiveKitPublisher(options, self.clock)

    def _resolve(self, name: str) -> str:
        if name not in ENGINES:
            raise EngineUnknown(
                f"There is no engine {name!r}; this agent knows {', '.join(ENGINES)}.", field="engine", value=name
            )
        if name == "auto":
            log.info("engine auto: no CUDA engine in this build, using warp")
            return "warp"
        if name not in _MAKERS:
            missing = [f for f, state in self.models.state().items() if f.startswith(name) and not state.exists]
            if missing:
                raise WeightsMissing(
                    f"The engine {name!r} needs {', '.join(missing)}, not in {self.settings.models_dir}; use 'warp' or 'auto'.",
                    field="engine",
                    value=name,
                )
            raise EngineUnavailable(
                f"The engine {name!r} is not part of this build yet; use 'warp' or 'auto'.", field="engine", value=name
            )
        return name
