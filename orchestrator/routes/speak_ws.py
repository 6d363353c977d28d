"""`WS /session/{id}/speak`: text in as it is written, spoken sentence by sentence."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import ExitStack, suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from musetalk_agent.protocol.messages import CLOSE_GOING_AWAY, CLOSE_POLICY
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.throttle import TokenBucket
from orchestrator.routes.context import Context, admit, context
from orchestrator.routes.error_responses import invalid, problem_response
from orchestrator.session.model import ManagedSession
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.session.speech_queue import PAUSE_S, TextStream
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.speech_settings import SpeechSettings
from orchestrator.tts.synthesizer import SpeechChunk
from orchestrator.tts.voice_choice import VoiceChoice

router = APIRouter()
MESSAGE_BYTES = 16 << 10
TICK_S = 0.25
"""How often it is looked whether the speech broke, the text pauses or the session is over (s)."""
SEND_S = 2.0
"""A client that takes nothing for this long is closed."""
QUEUE_MESSAGES = 128
"""Messages that may wait for a slow reader; past it the connection closes."""
MESSAGES_PER_S = 2000.0
"""A language model writes about 200 tokens a second."""
BURST_MESSAGES = 65_536.0
"""That many may come at once: the longest text, letter by letter."""
_log = logging.getLogger(__name__)


@router.websocket("/session/{session_id}/speak")
async def speak(socket: WebSocket, session_id: str) -> None:
    """Texts for one session; see docs/protocol.md. Refused before the upgrade, with problem+json."""
    ctx = context(socket)
    with ExitStack() as held:
        try:
            session = await admit(ctx, socket, session_id, text=True)
            await ctx.voices.wait_open()
            live = session.speakable()
            ctx.sessions.admit()
            speech = _speech(ctx, socket, session)
            clips = await ctx.clips.names(session)
            live = session.speakable()  # it may have ended meanwhile
            ctx.access.quotas.connect(session_id, time.monotonic())
            held.enter_context(ctx.access.quotas.connection(session.order.key))
        except ProblemError as error:
            ctx.metrics.audio_errors.labels(code=error.code.value).inc()
            await socket.send_denial_response(problem_response(error))
            return
        ctx.access.audit.note(session.order.key, "speak", "ok", session_id=session_id)
        await socket.accept()
        with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # RuntimeError: Starlette's for a closed socket
            await _SpeakConnection(ctx, socket, session, live, speech, clips).run()


def _speech(ctx: Context, socket: WebSocket, session: ManagedSession) -> SpeechSettings:
    """How the query wants texts spoken, by a voice that can. Raises ProblemError."""
    query = socket.query_params
    try:
        asked = SpeechSettings.model_validate({name: query[name] for name in ("voice", "speed") if query.get(name)})
    except ValidationError as error:
        raise invalid(RequestValidationError(error.errors())) from None
    chosen = ctx.sessions.speech(session, asked)
    ctx.voices.check(chosen.voice)
    return chosen


class _SpeakConnection:
    """One accepted connection. No step of reading waits for the voice or for the client, so that a `clear`, a `ping` and the
    client's leaving are seen at any moment.
    """

    def __init__(
        self,
        ctx: Context,
        socket: WebSocket,
        session: ManagedSession,
        live: SpeechPipeline,
        speech: SpeechSettings,
        clips: tuple[str, ...],
    ) -> None:
        self._ctx = ctx
        self._socket = socket
        self._session = session
        self._live = live
        self._speech = speech
        self._clips = clips
        self._dictation: TextStream | None = None
        self._speaking: deque[TextStream] = deque()
        """Texts with a segment that are not over, in order: the client hears of each one that fails. `MAX_WAITING` at most."""
        self._heard_at = time.monotonic()
        self._bucket = TokenBucket(MESSAGES_PER_S, BURST_MESSAGES, self._heard_at)
        self._out: deque[str] = deque()
        self._out_ready = asyncio.Event()
        self._close_code: int | None = None

    async def run(self) -> None:
        """Until the client leaves, does what it may not, or the session is over."""
        writing = asyncio.create_task(self._send(), name="speak-write")
        reading = asyncio.create_task(self._read(writing), name="speak-read")
        try:
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done() and not writing.done():
                reading.result()
                await asyncio.wait({writing}, timeout=SEND_S)
        finally:
            self._end()
            reading.cancel()
            writing.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)
        for task in (reading, writing):
            if not task.cancelled():
                task.result()

    # --- in

    async def _read(self, writing: asyncio.Task[None]) -> None:
        receiving: asyncio.Task[Any] | None = None
        try:
            while self._session.live is self._live and self._close_code is None:
                receiving = receiving or asyncio.create_task(self._socket.receive(), name="speak-receive")
                await asyncio.wait({receiving}, timeout=TICK_S)
                self._look()
                if receiving.done():
                    message, receiving = receiving.result(), None
                    self._heard_at = time.monotonic()
                    if message["type"] == "websocket.disconnect":
                        writing.cancel()
                        return
                    self._take(message.get("text"))
            self._close(CLOSE_GOING_AWAY)
        except ProblemError as error:
            self._ctx.metrics.audio_errors.labels(code=error.code.value).inc()
            _log.info("text connection refused", extra={"session_id": self._live.session_id, "code": error.code.value})
            self._reply("error", code=error.code.value, message=error.detail)
            self._close(CLOSE_POLICY)
        finally:
            if receiving is not None:
                receiving.cancel()
                await asyncio.wait([receiving])

    def _look(self) -> None:
        dictation, quiet_s = self._dictation, time.monotonic() - self._heard_at
        if dictation is not None and quiet_s > PAUSE_S:
            self._end()
            self._reply("warning", code="segment_timeout", message=f"The text paused for {PAUSE_S:g} s and was ended.")
        if quiet_s > self._ctx.options.audio_idle_s:
            raise ProblemError(
                ErrorCode.IDLE_TIMEOUT, "Nothing came for too long: connect again when there is something to say."
            )
        while self._speaking and self._speaking[0].over.is_set():
            utterance = self._speaking.popleft().utterance
            if utterance is not None and utterance.failure is not None:
                self._reply("warning", code=utterance.failure.code.value, message=utterance.failure.detail)

    def _take(self, text: str | None) -> None:
        if not self._bucket.take(1, self._heard_at):
            raise ProblemError(
                ErrorCode.RATE_EXCEEDED,
                f"More than {MESSAGES_PER_S:g} messages a second: send longer pieces.",
                limit=MESSAGES_PER_S,
            )
        message = _parsed(text)
        match message["type"]:
            case "text":
                self._write(message.get("text"))
            case "end":
                self._end()
            case "clear":
                self._end()
                self._live.clear()
            case "ping":
                self._reply("pong")
            case unknown:
                known = "clear, end, ping, text"
                note = f"The type {unknown[:32]!r} is unknown and was ignored; known are {known}."
                self._reply("warning", code="unknown_type", message=note)

    def _write(self, piece: object) -> None:
        if not isinstance(piece, str):
            raise ProblemError(ErrorCode.INVALID_MESSAGE, 'A message of the type "text" has its text as a string.')
        if any("\ud800" <= c <= "\udfff" for c in piece):
            raise ProblemError(
                ErrorCode.INVALID_MESSAGE,
                "The text has half of a surrogate pair: send whole characters in each message.",
            )
        if self._dictation is None:
            self._session.speakable()
            self._ctx.sessions.admit()
            actions = self._ctx.clips.of_text(self._session, self._clips)
            self._dictation = dictation = TextStream(
                self._live.speech, lambda text: self._spoken(text, dictation), actions
            )
        dictation, new = self._dictation, self._dictation.utterance is None
        dictation.write(piece)
        if new and dictation.utterance is not None:
            self._speaking.append(dictation)
            self._reply("segment", segment=dictation.utterance.segment)

    def _spoken(self, text: GrowingText, dictation: TextStream) -> AsyncGenerator[SpeechChunk, None]:
        def report(choice: VoiceChoice) -> None:
            if dictation.utterance is not None:
                segment = dictation.utterance.segment
                self._reply("voice", segment=segment, voice=choice.voice, language=choice.language)

        return self._ctx.voices.stream(text, self._speech.voice, self._speech.options(), report)

    def _end(self) -> None:
        dictation, self._dictation = self._dictation, None
        if dictation is not None:
            dictation.end()

    # --- out

    def _reply(self, kind: str, **fields: Any) -> None:
        """Queues a message. A client that has fallen too far behind is closed instead."""
        if self._close_code is not None:
            return
        self._out.append(json.dumps({"type": kind, **fields}, ensure_ascii=False))
        if len(self._out) > QUEUE_MESSAGES:
            self._out.clear()
            self._close(CLOSE_POLICY)
        self._out_ready.set()

    def _close(self, code: int) -> None:
        """Closes once everything queued has been sent."""
        if self._close_code is None:
            self._close_code = code
        self._out_ready.set()

    async def _send(self) -> None:
        """Sends what is queued, then closes. Raises TimeoutError when the client takes nothing for `SEND_S`."""
        while self._out or self._close_code is None:
            while self._out:
                async with asyncio.timeout(SEND_S):
                    await self._socket.send_text(self._out.popleft())
            if self._close_code is None:
                self._out_ready.clear()
                await self._out_ready.wait()
        if self._socket.application_state is WebSocketState.CONNECTED:
            async with asyncio.timeout(SEND_S):
                await self._socket.close(self._close_code)


def _parsed(text: str | None) -> dict[str, Any]:
    """The message. Raises ProblemError `invalid_message`, `message_too_large`."""
    if text is not None and len(text.encode(errors="replace")) > MESSAGE_BYTES:
        raise ProblemError(
            ErrorCode.MESSAGE_TOO_LARGE,
            f"A message passes {MESSAGE_BYTES} bytes: send the text in pieces.",
            limit=MESSAGE_BYTES,
        )
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ProblemError(
            ErrorCode.INVALID_MESSAGE,
            'A message must be a JSON object with a "type", such as {"type":"text","text":"Hello."}.',
        )
    return value
