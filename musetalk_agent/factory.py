"""The composition root: requests become sessions here and nowhere else."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import cv2

from musetalk_agent.agent_metrics import PREPARE_SECONDS
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.decoder_pool import Progress
from musetalk_agent.avatars.identity import describer
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.likeness import check_clip
from musetalk_agent.clock import Clock, MonotonicClock
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.face_warp import warp_of
from musetalk_agent.compose.head_motion import seed_of
from musetalk_agent.compose.idle_frames import load_first
from musetalk_agent.engine_pool import EnginePool, OnLost
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import Engine, EngineSession
from musetalk_agent.engines.pattern import pattern_bundle
from musetalk_agent.errors import EngineFailed, EngineUnavailable
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.media.player import PlayerOutputs
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import AgentAvatarRequest, AgentStartRequest, Picture, VoiceSource
from musetalk_agent.protocol.preparation_messages import AgentPrepareRequest
from musetalk_agent.publishers.base import Publisher
from musetalk_agent.session.session import LEAVE_S, RELEASE_S, Session
from musetalk_agent.tasks import Step, in_thread, tear_down
from musetalk_agent.weights import Manifest, ModelStore

if TYPE_CHECKING:
    from musetalk_agent.session.session import RoomSpeech

_PATTERN_SIDE = 512
_MEDIA_THREADS = 4  # features and composition of all sessions; numpy and OpenCV let the others run meanwhile

OPEN_WITHIN_S = 60.0
"""For the engine to open a prepared avatar: a second or so, unless its device hangs."""

MakePublisher = Callable[[AgentStartRequest, int], Publisher]


@dataclass(frozen=True, slots=True)
class OpenedAvatar:
    """An avatar at its engine: the engine's name, what makes its patches, the prepared clip, and the engine's part for it."""

    engine: str
    batcher: Batcher
    bundle: Bundle
    engine_session: EngineSession


@contextmanager
def _device_of(batcher: Batcher) -> Iterator[None]:
    """A device that fails outside any batch is broken for the sessions that run, too."""
    try:
        yield
    except EngineFailed as error:
        batcher.fail(error)
        raise


class Factory:
    """What all sessions of the process share: engines, avatars, threads.

    Call `start` before and `aclose` after use.

    Args:
        clock: None for the monotonic one.
        publisher: makes the publisher of a session, given its request and its frames per second; None for one that goes to the
            room and to the other destinations of the request.
        on_engine_lost: `on_lost` of the `EnginePool`.
    """

    def __init__(
        self,
        settings: AgentSettings,
        clock: Clock | None = None,
        publisher: MakePublisher | None = None,
        on_engine_lost: OnLost = lambda: None,
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
        self.engines = EnginePool(settings, self.models, on_lost=on_engine_lost)

    async def start(self) -> None:
        """Makes and warms every engine that can run here. Raises `EngineUnavailable` when the one asked for cannot."""
        await self.engines.start()
        with suppress(EngineFailed):  # it failed at once, and is being made again
            if self.engines.batcher(self.engines.default).engine.needs_face:
                self.library.warm()

    async def aclose(self) -> None:
        """Ends the engines' threads. Sessions must be over. Cancelling ends the rest all the same, which takes no time."""
        try:
            await self.engines.aclose()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self.library.close()

    async def session(self, request: AgentStartRequest) -> Session:
        """Prepares the avatar and builds the session, not yet started.

        Raises `AvatarError`s and engine errors; `EngineFailed` when the device fails meanwhile. Nothing of the session is left when
        it raises or is cancelled.
        """
        opened = await self.opened(request)
        name, batcher, bundle, engine_session = opened.engine, opened.batcher, opened.bundle, opened.engine_session
        publisher: Publisher | None = None
        session: Session | None = None
        try:
            batcher.check()
            loop = asyncio.get_running_loop()
            first = await loop.run_in_executor(self._executor, load_first, Compositor(bundle, engine_session.idle))
            batcher.check()
            make = self._make_publisher
            publisher = make(request, bundle.fps) if make else await self._publisher(request, bundle.fps)
            batcher.check()

            def build(outputs: PlayerOutputs) -> Pipeline:
                offset_ms = request.avatar_settings.av_offset_ms
                return Pipeline(
                    publisher,
                    batcher,
                    engine_session,
                    bundle,
                    self.clock,
                    self._executor,
                    outputs,
                    first,
                    offset_ms,
                    seed_of(request.session_id),
                )

            note = self.engines.note(request.engine)
            make_speech = self._speech_maker(request)
            session = Session(
                request, bundle, name, publisher, build, engine_session.close, note, make_speech, batcher.check
            )
            return session
        finally:
            if session is None:
                steps = [Step("engine", partial(in_thread, engine_session.close, "engine-release"), RELEASE_S)]
                if publisher is not None:
                    steps.insert(0, Step("publisher", publisher.aclose, LEAVE_S))
                await tear_down(f"start of session {request.session_id}", steps)

    async def opened(self, request: AgentStartRequest) -> OpenedAvatar:
        """Prepares the avatar and opens it at its engine; the caller closes it. Raises as `session` does."""
        name = self.engines.resolve(request.engine)
        batcher = self.engines.batcher(name)
        with _device_of(batcher):
            bundle = await self._bundle(request, batcher.engine)
        batcher.check()
        return OpenedAvatar(name, batcher, bundle, await self._opened(batcher, bundle, request.avatar_settings))

    async def other_avatar(self, shown: Bundle, engine: str, request: AgentAvatarRequest) -> OpenedAvatar:
        """Another avatar at the size and rate of the one that is shown, opened at the same engine; the caller closes it.

        Raises `AvatarError`s and engine errors. Cancelling leaves nothing open.
        """
        batcher = self.engines.batcher(engine)
        if not batcher.engine.needs_face:
            text = (
                f"The engine {engine!r} draws its own picture and shows no avatar; start a session with another engine."
            )
            raise EngineUnavailable(text, field="engine", value=engine)
        picture = Picture(fps=shown.fps, width=shown.width, height=shown.height)
        wanted = AgentPrepareRequest(avatar=request.avatar, picture=picture, avatar_settings=request.avatar_settings)
        with _device_of(batcher):
            bundle = await self._bundle(wanted, batcher.engine)
        batcher.check()
        return OpenedAvatar(engine, batcher, bundle, await self._opened(batcher, bundle, request.avatar_settings))

    async def discard(self, opened: OpenedAvatar) -> None:
        """Closes an avatar that is not shown after all."""
        close = Step("engine", partial(in_thread, opened.engine_session.close, "engine-release"), RELEASE_S)
        await tear_down("another avatar", [close])

    async def opened_bundle(self, engine: str | None, bundle: Bundle, settings: AvatarSettings) -> OpenedAvatar:
        """Opens a prepared clip that no other session uses; the caller closes it.

        Raises engine errors, and AvatarErrors of a face that the engine cannot use.
        """
        name = self.engines.resolve(engine)
        batcher = self.engines.batcher(name)
        with _device_of(batcher):
            await in_thread(partial(batcher.engine.prepare, bundle, settings=settings), "engine-prepare")
        batcher.check()
        return OpenedAvatar(name, batcher, bundle, await self._opened(batcher, bundle, settings))

    async def _opened(self, batcher: Batcher, bundle: Bundle, settings: AvatarSettings) -> EngineSession:
        """Opens the avatar in a thread. A caller that is cancelled, or an engine that takes too long, leaves nothing open."""
        engine = batcher.engine
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                with _device_of(batcher):
                    return await in_thread(
                        partial(_open, engine, bundle, settings), "engine-open", give_back=lambda late: late.close()
                    )
        except TimeoutError as error:
            text = f"The engine {engine.name!r} did not open the avatar within {OPEN_WITHIN_S:g} s."
            failure = EngineFailed(text, retry_after_s=5)
            if not await self.engines.answers(engine):
                batcher.fail(failure)
            raise failure from error

    def _speech_maker(self, request: AgentStartRequest) -> Callable[[Pipeline], RoomSpeech] | None:
        """For speech that comes through the room. Its modules load the SDK, which not every session needs."""
        if request.microphone_of is not None:
            from musetalk_agent.microphone.microphone_input import MicrophoneInput

            participant = request.microphone_of
            return lambda pipeline: MicrophoneInput(pipeline, participant, self.clock)
        agent = request.livekit_agent
        if agent is None:
            return None
        from musetalk_agent.avatar_protocol.speech import DataStreamAudioInput
        from musetalk_agent.publishers.livekit.publisher import AUDIO_PATH_S

        return lambda pipeline: DataStreamAudioInput(
            pipeline, agent, request.backlog_s, self.clock, tail_s=AUDIO_PATH_S
        )

    def needs_face(self, engine: str | None) -> bool:
        """Whether an engine, None for the usual one, shows avatars. Raises `EngineUnavailable`."""
        return self.engines.batcher(self.engines.resolve(engine)).engine.needs_face

    async def prepared(self, request: AgentPrepareRequest, progress: Progress | None = None) -> Bundle:
        """Prepares an avatar for sessions to come: the engine's artefacts too, as a start with these settings has them made.

        `progress` is called in worker threads. Raises `AvatarError`s and engine errors. Cancelling is safe.
        """
        batcher = self.engines.batcher(self.engines.resolve(request.engine))
        with _device_of(batcher):
            if request.clip_of is None:
                return await self._bundle(request, batcher.engine, progress, shown=False)
            avatar = await self._bundle(
                request.model_copy(update={"avatar": request.clip_of}), batcher.engine, shown=False
            )
            picture = Picture(fps=avatar.fps, width=avatar.width, height=avatar.height)
            of_its_size = request.model_copy(update={"picture": picture})
            clip = await self._bundle(of_its_size, batcher.engine, progress, shown=False)
        if batcher.engine.needs_face:
            await asyncio.to_thread(check_clip, avatar, clip, describer(self.models))
        return clip

    async def _bundle(
        self,
        request: AgentStartRequest | AgentPrepareRequest,
        engine: Engine,
        progress: Progress | None = None,
        *,
        shown: bool = True,
    ) -> Bundle:
        picture = request.picture
        if not engine.needs_face:
            if request.avatar_settings.background == "transparent":
                text = (
                    f"The engine {engine.name!r} draws its own picture, which is not transparent; give another engine."
                )
                raise EngineUnavailable(text, field="engine", value=engine.name)
            width = (picture.width or _PATTERN_SIDE) // 2 * 2
            height = (picture.height or _PATTERN_SIDE) // 2 * 2
            return pattern_bundle(width, height, picture.fps)
        begun = time.monotonic()
        bundle = await self.library.prepare(
            request.avatar,
            picture,
            derive=partial(engine.prepare, settings=request.avatar_settings),
            progress=progress,
            fingerprint=engine.fingerprint_with(request.avatar_settings),
            background=request.avatar_settings.background,
            mood=request.avatar_settings.mood,
            only_matte=not shown,
        )
        PREPARE_SECONDS.observe(time.monotonic() - begun)
        return bundle

    async def _publisher(self, request: AgentStartRequest, fps: int) -> Publisher:
        """Raises `RtmpUrlForbidden`. An ingress is the orchestrator's own, wherever it is."""
        rtmp = request.rtmp
        if not request.connect_livekit and rtmp is None:
            from musetalk_agent.publishers.base import NullPublisher

            return NullPublisher(self.clock)
        from musetalk_agent.publishers.failover.publisher import FailoverPublisher
        from musetalk_agent.publishers.failover.transports import TransportOptions
        from musetalk_agent.publishers.livekit.publisher import LiveKitOptions
        from musetalk_agent.publishers.livekit.video_track import VideoEncoding
        from musetalk_agent.publishers.rtmp.address import check_rtmp

        room = LiveKitOptions(
            request.livekit_url,
            request.livekit_token,
            request.room,
            fps,
            publishes_audio=request.voice is VoiceSource.AGENT,
            video=VideoEncoding(request.video_codec, request.simulcast),
        )
        options = TransportOptions(
            room,
            address=await check_rtmp(rtmp.url, rtmp.ingress or self.settings.allow_private_urls) if rtmp else None,
            ingress=rtmp is not None and rtmp.ingress,
            beside=rtmp is not None and rtmp.beside and not rtmp.ingress,
            joins=request.connect_livekit,
            probe_token=request.probe_token,
        )
        return FailoverPublisher(options, request.publisher_mode, self.clock)


def _open(engine: Engine, bundle: Bundle, settings: AvatarSettings) -> EngineSession:
    """Opens a bundle at its engine; what moves a still picture is ready then, too."""
    warp_of(bundle)
    return engine.open(bundle, settings)
