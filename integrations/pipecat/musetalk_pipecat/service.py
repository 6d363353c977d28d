"""The avatar as a Pipecat service: takes the bot's speech out of the pipeline and lets an avatar in the room say it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from loguru import logger
from pipecat.audio.utils import create_stream_resampler
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserAudioRawFrame,
    UserImageRawFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor, FrameProcessorSetup
from pipecat.services.ai_service import AIService
from pipecat.services.settings import ServiceSettings

from musetalk_pipecat.audio_link import AudioLink
from musetalk_pipecat.session_client import KINDS, OrchestratorError, SessionClient, StartedSession


class WithoutAvatar(FrameProcessor):
    """Drops audio and video of the bot's own participants, so that a bot does not listen to itself."""

    def __init__(self, is_own: Callable[[str], bool]) -> None:
        """`is_own` is asked at every frame with the participant's identity."""
        super().__init__()
        self._is_own = is_own

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Passes everything on but the avatar's."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, UserAudioRawFrame | UserImageRawFrame) or not self._is_own(frame.user_id):
            await self.push_frame(frame, direction)


RATES = range(8_000, 48_001)
FAREWELL_S = 5.0
"""How much longer than its length speech may take that is under way when the pipeline ends."""


class MuseTalkVideoService(AIService):
    """Sends the bot's speech to an avatar that joins the LiveKit transport's room; audio and video come from the avatar.

    Place it between TTS and `transport.output()`, and `without_avatar()` behind `transport.input()`. Speech frames end here, all
    others pass. `BotStartedSpeakingFrame` and `BotStoppedSpeakingFrame` follow what is really heard. An interruption silences
    the avatar. An `EndFrame` waits until what was said before it has been heard.

    Event handlers: `on_avatar_ready` (service, session_id), `on_avatar_state` (service, state, reason) with the states of
    `docs/protocol.md`, such as `recovering` while the session moves to another agent.
    """

    def __init__(
        self,
        *,
        url: str,
        api_key: str,
        room: str,
        avatar_id: str | None = None,
        idle_video_url: str | None = None,
        frames_zip_url: str | None = None,
        more: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        """One of the three sources is needed.

        Args:
            url: the orchestrator.
            api_key: a key of it that may start sessions.
            room: the transport's room.
            avatar_id: an avatar sent before, or `demo`.
            idle_video_url: a clip.
            frames_zip_url: a zip of frames.
            more: further fields of `POST /session/start`, such as `engine`, `fps`, `rtmp_url`.
            **kwargs: of the parent class.
        """
        super().__init__(settings=ServiceSettings(model=None), **kwargs)
        sources = {"avatar_id": avatar_id, "idle_video_url": idle_video_url, "frames_zip_url": frames_zip_url}
        self._order = {"room": room, **{name: value for name, value in sources.items() if value}, **(more or {})}
        self._sessions = SessionClient(url, api_key)
        self._session: StartedSession | None = None
        self._identities: frozenset[str] | None = None
        self._line: AudioLink | None = None
        self._running: asyncio.Task[None] | None = None
        self._sample_rate = 24_000
        self._resampler = create_stream_resampler()
        self._in_segment = False
        self._segments = 0
        """Opened and not reported finished; those before an interruption are in `_cut_off` instead."""
        self._cut_off = 0
        self._speaking = False
        self._silent = asyncio.Event()
        self._silent.set()
        for event in ("on_avatar_ready", "on_avatar_state"):
            self._register_event_handler(event)

    def can_generate_metrics(self) -> bool:
        """Time to first byte: from the speech's beginning to its first audio in the room."""
        return True

    @property
    def identities(self) -> frozenset[str]:
        """Participants whose audio is the bot's own; none before the session has started. Its last audio may come after its end."""
        return self._identities or frozenset()

    def is_own(self, identity: str) -> bool:
        """Whether a participant's audio is the bot's own. The avatar is in the room a moment before the start is answered with
        its identity: until then any avatar counts as it."""
        return identity.startswith(KINDS) if self._identities is None else identity in self._identities

    def without_avatar(self) -> FrameProcessor:
        """A processor for the place behind `transport.input()`, without which the bot would hear itself."""
        return WithoutAvatar(self.is_own)

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]  # as all of Pipecat's do
        """Notes the pipeline's rate of speech; the avatar is sent audio at this rate."""
        await super().setup(setup)
        self._sample_rate = min(max(setup.audio_out_sample_rate, RATES[0]), RATES[-1])

    async def start(self, frame: StartFrame) -> None:
        """Starts the session; the pipeline behind goes on when the avatar is in the room, or with an error."""
        await super().start(frame)
        try:
            self._session = await self._sessions.start(self._order)
        except OrchestratorError as error:
            self._identities = frozenset()
            await self.push_error(f"The avatar did not start: {error}", error, force_treat_as_permanent=True)
            return
        self._identities = self._session.identities
        self._line = AudioLink(self._session.audio_url, self._sample_rate, self._hear)
        self._running = self.create_task(self._keep(self._line))
        await self._call_event_handler("on_avatar_ready", self._session.session_id)

    async def stop(self, frame: EndFrame) -> None:
        """Lets the avatar finish what it says, then ends the session."""
        await super().stop(frame)
        if self._line is not None:
            await self._end_segment(self._line)
            try:
                async with asyncio.timeout(self._line.unheard_s + FAREWELL_S):
                    await self._silent.wait()
            except TimeoutError:
                await self.push_error("The avatar had not finished speaking when the pipeline ended.")
        await self._close()

    async def cancel(self, frame: CancelFrame) -> None:
        """Ends the session at once."""
        await super().cancel(frame)
        await self._close()

    async def cleanup(self) -> None:
        """Ends what is left."""
        await super().cleanup()  # type: ignore[no-untyped-call]  # Pipecat leaves it without annotations
        await self._close()
        await self._sessions.aclose()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Takes speech, passes everything else on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame):
            if self._line is not None:
                await self._speak(self._line, frame)
            return
        if self._line is not None:
            if isinstance(frame, InterruptionFrame):
                await self._interrupt(self._line)
            elif isinstance(frame, TTSStartedFrame):
                await self.start_ttfb_metrics()
            elif isinstance(frame, TTSStoppedFrame):
                await self._end_segment(self._line)
        await self.push_frame(frame, direction)

    async def act(self, name: str, *, loop: bool = False) -> None:
        """Plays a clip of the avatar (`wave` …) once, or with `loop` until something else is asked for; `idle` ends it. The mouth
        speaks over it. Without effect before the avatar is in the room. Raises OrchestratorError.
        """
        if self._session is not None:
            await self._sessions.act(self._session.session_id, name, loop=loop)

    async def show(self, avatar_id: str) -> None:
        """Shows another avatar of the library from now on, while it speaks. Without effect before the avatar is in the room.

        Raises OrchestratorError; the old avatar then stays.
        """
        if self._session is not None:
            await self._sessions.show(self._session.session_id, avatar_id)

    async def _speak(self, line: AudioLink, frame: TTSAudioRawFrame) -> None:
        if not self._in_segment:
            self._in_segment = True
            self._segments += 1
            self._silent.clear()
            await line.mark("audio.start")
        pcm = mono(frame.audio, frame.num_channels)
        pcm = await self._resampler.resample(pcm, frame.sample_rate, self._sample_rate)
        if pcm:
            await line.push(pcm)

    async def _end_segment(self, line: AudioLink) -> None:
        if not self._in_segment:
            return
        self._in_segment = False
        if rest := await self._resampler.flush():
            await line.push(rest)
        await line.mark("audio.end")

    async def _interrupt(self, line: AudioLink) -> None:
        self._in_segment = False
        await self._resampler.reset()  # type: ignore[no-untyped-call]  # Pipecat leaves it without annotations
        if not self._segments:
            return
        await line.mark("clear")
        self._cut_off += self._segments
        self._segments = 0
        await self._fall_silent()

    async def _keep(self, line: AudioLink) -> None:
        try:
            await line.run()
        except OrchestratorError as error:
            self._line = None
            self._segments = 0
            await self._fall_silent()
            await self.push_error(f"The avatar is gone: {error}", error, force_treat_as_permanent=True)

    async def _hear(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "playback.started":
                await self.stop_ttfb_metrics()
                if not self._speaking and not self._cut_off:
                    self._speaking = True
                    await self.broadcast_frame(BotStartedSpeakingFrame)
            case "playback.finished":
                await self._finished()
            case "session.state":
                await self._call_event_handler("on_avatar_state", message["state"], message.get("reason"))
            case "warning":
                logger.warning(f"{self}: {message['message']} ({message['code']})")

    async def _finished(self) -> None:
        """Segments end in the order of their beginnings, so those that were cut off come first."""
        if self._cut_off:
            self._cut_off -= 1
            return
        self._segments = max(0, self._segments - 1)
        if not self._segments:
            await self._fall_silent()

    async def _fall_silent(self) -> None:
        self._silent.set()
        if self._speaking:
            self._speaking = False
            await self.broadcast_frame(BotStoppedSpeakingFrame)

    async def _close(self) -> None:
        session, running = self._session, self._running
        self._session = self._line = self._running = None
        if running is not None:
            await self.cancel_task(running)
        if session is None:
            return
        try:
            await self._sessions.stop(session.session_id)
        except OrchestratorError as error:
            await self.push_error(f"The avatar's session was not ended: {error}; it will end by itself.", error)


def mono(pcm: bytes, channels: int) -> bytes:
    """The mean of interleaved 16-bit channels."""
    if channels == 1:
        return pcm
    mixed = np.frombuffer(pcm, np.int16).reshape(-1, channels).mean(axis=1)
    return bytes(mixed.astype(np.int16).tobytes())
