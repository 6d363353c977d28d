"""The composition root: requests become sessions here and nowhere else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import cv2

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.clock import Clock, MonotonicClock
from musetalk_agent.engine_pool import EnginePool
from musetalk_agent.engines.base import Engine
from musetalk_agent.engines.pattern import pattern_bundle
from musetalk_agent.pipeline import Pipeline
from musetalk_agent.protocol.http import AgentStartRequest, VoiceSource
from musetalk_agent.protocol.messages import Event
from musetalk_agent.publishers.base import Publisher
from musetalk_agent.session import Session
from musetalk_agent.settings import AgentSettings
from musetalk_agent.weights import Manifest, ModelStore

if TYPE_CHECKING:
    from musetalk_agent.avatar_protocol.speech import RoomSpeech  # loads the SDK, which not every session needs

_PATTERN_SIDE = 512
_MEDIA_THREADS = 4  # features and composition of all sessions; numpy and OpenCV let the others run meanwhile

MakePublisher = Callable[[AgentStartRequest, int], Publisher]


class Factory:
    """What all sessions of the process share: engines, avatars, threads.

    Call `start` before and `aclose` after use.

    Args:
        clock: None for the monotonic one.
        publisher: makes the publisher of a session, given its request and its frames per second; None for one that goes to the
            room and where else the request says.
    """

    def __init__(
        self, settings: AgentSettings, clock: Clock | None = None, publisher: MakePublisher | None = None
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or MonotonicClock()
        self._make_publisher = publisher
        self.models = ModelStore(settings.models_dir, Manifest.load())
        self.library = AvatarLibrary(
            settings.cache_dir,
            models=self.models,
            allow_private_urls=settings.allow_private_urls,
            cache_bytes=settings.cache_bytes,
        )
        cv2.setNumThreads(1)  # its pool gains nothing on small remaps and takes the cores from other sessions
        self._executor = ThreadPoolExecutor(min(_MEDIA_THREADS, (os.cpu_count() or 1) + 1), "media")
        self.engines = EnginePool(settings, self.models)

    async def start(self) -> None:
        """Makes and warms every engine that can run here. Raises `EngineUnavailable` when the one asked for cannot."""
        await self.engines.start()

    async def aclose(self) -> None:
        """Ends the engines' threads. Sessions must be over."""
        await self.engines.aclose()
        self.library.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def session(self, request: AgentStartRequest) -> Session:
        """Prepares the avatar and builds the session, not yet started. Raises `AvatarError`s and engine errors."""
        name = self.engines.resolve(request.engine)
        batcher = self.engines.batcher(name)
        bundle = await self._bundle(request, batcher.engine)
        actor = await asyncio.to_thread(batcher.engine.open, bundle)
        make, speech = self._make_publisher, self._speech(request)
        publisher = make(request, bundle.fps) if make else await self._publisher(request, bundle.fps, speech)

        def build(emit: Callable[[Event], None], speaking: Callable[[bool], None]) -> Pipeline:
            return Pipeline(publisher, batcher, actor, bundle, self.clock, self._executor, emit, speaking)

        note = self.engines.note(request.engine)
        return Session(request, bundle, name, publisher, build, actor.close, engine_note=note, speech=speech)

    def _speech(self, request: AgentStartRequest) -> RoomSpeech | None:
        if request.livekit_agent is None:
            return None
        from musetalk_agent.avatar_protocol.speech import RoomSpeech
        from musetalk_agent.publishers.livekit import SOUND_PATH_S

        return RoomSpeech(request.livekit_agent, request.backlog_s, self.clock, tail_s=SOUND_PATH_S)

    async def _bundle(self, request: AgentStartRequest, engine: Engine) -> Bundle:
        picture = request.picture
        if not engine.needs_face:
            width = (picture.width or _PATTERN_SIDE) // 2 * 2
            height = (picture.height or _PATTERN_SIDE) // 2 * 2
            return pattern_bundle(width, height, picture.fps)
        return await self.library.prepare(request.avatar, picture, derive=engine.prepare)

    async def _publisher(self, request: AgentStartRequest, fps: int, speech: RoomSpeech | None) -> Publisher:
        """Raises `RtmpUrlForbidden`. An ingress is the orchestrator's own, wherever it is."""
        rtmp = request.rtmp
        if not request.connect_livekit and rtmp is None:
            from musetalk_agent.publishers.null import NullPublisher

            return NullPublisher(self.clock)
        from musetalk_agent.publishers.failover import FailoverPublisher
        from musetalk_agent.publishers.livekit import LiveKitOptions
        from musetalk_agent.publishers.outlets import OutletOptions
        from musetalk_agent.publishers.rtmp_address import check_rtmp

        room = LiveKitOptions(
            request.livekit_url,
            request.livekit_token,
            request.room,
            fps,
            sound=request.voice is VoiceSource.AGENT,
            on_joined=speech.attach if speech is not None else None,
        )
        options = OutletOptions(
            room,
            address=await check_rtmp(rtmp.url, rtmp.ingress or self.settings.allow_private_urls) if rtmp else None,
            ingress=rtmp is not None and rtmp.ingress,
            beside=rtmp is not None and rtmp.beside and not rtmp.ingress,
            joins=request.connect_livekit,
            probe_token=request.probe_token,
        )
        return FailoverPublisher(options, request.publisher_mode, self.clock)
