"""`WS /audio`: receives PCM, sends playback events."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from musetalk_agent.protocol.messages import (
    CLIENT_TYPES,
    CLOSE_INTERNAL,
    CLOSE_POLICY,
    AudioEnd,
    AudioStart,
    Clear,
    ErrorEvent,
    Pong,
    WarningEvent,
    client_message,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.ingest import SAMPLE_RATES, AudioFormat, PcmDecoder
from orchestrator.audio.segments import DEFAULT_RATE
from orchestrator.routes.context import Context, admit, context
from orchestrator.routes.error_responses import problem_response
from orchestrator.routes.session_events import event_number
from orchestrator.session.event_outbox import ClientQueue
from orchestrator.session.model import ManagedSession
from orchestrator.session.speech_pipeline import SpeechPipeline

router = APIRouter()
FLUSH_S = 2.0
"""How long a closing connection may take to read what is queued for it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioSocket:
    """One accepted connection."""

    socket: WebSocket
    live: SpeechPipeline
    connection: ClientQueue
    decoder: PcmDecoder
    sample_rate: int


@router.websocket("/audio")
async def audio(socket: WebSocket) -> None:
    """PCM of one session; see docs/protocol.md. Refused before the upgrade, with problem+json: see `_admit`."""
    ctx = context(socket)
    with ExitStack() as held:
        try:
            session, audio_format, sample_rate, last_event_id = await _admit(ctx, socket)
            live = session.running()
            held.enter_context(ctx.access.quotas.connection(session.order.key))
            connection = live.connect(sample_rate, last_event_id)  # nothing was awaited since the session was looked at
        except ProblemError as error:
            ctx.metrics.audio_errors.labels(code=error.code.value).inc()
            _log.info("audio connection refused", extra={"code": error.code.value})
            await socket.send_denial_response(problem_response(error))
            return
        held.callback(live.outbox.detach, connection)
        ctx.access.audit.note(session.order.key, "audio", "ok", session_id=session.session_id)
        await socket.accept()
        await _serve(ctx, AudioSocket(socket, live, connection, PcmDecoder(audio_format), sample_rate))


async def _serve(ctx: Context, line: AudioSocket) -> None:
    live = line.live
    ctx.metrics.audio_connections.inc()
    writer = asyncio.create_task(_write(line), name=f"audio-write-{live.session_id}")
    reader = asyncio.create_task(_read(ctx, line), name=f"audio-read-{live.session_id}")
    try:
        await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
        if line.connection.closing and not writer.done():
            await asyncio.wait({writer}, timeout=FLUSH_S)
    finally:
        live.outbox.detach(line.connection)
        ctx.metrics.audio_connections.dec()
        writer.cancel()
        reader.cancel()
        for failure in await asyncio.gather(writer, reader, return_exceptions=True):
            if isinstance(failure, Exception):
                _log.error("an audio connection broke", exc_info=failure, extra={"session_id": live.session_id})
        await _close(line)


async def _admit(ctx: Context, socket: WebSocket) -> tuple[ManagedSession, AudioFormat, int, int | None]:
    """The session, and the connection's format, sample rate (Hz) and last event seen.

    Raises ProblemError with status 401, 403, 404, 409, 421, 422, 429 or 503.
    """
    query = socket.query_params
    session_id = query.get("session_id", "")
    session = await admit(ctx, socket, session_id)
    live = session.speakable()
    audio_format = _format(query.get("format", AudioFormat.S16LE.value))
    sample_rate = _rate(query.get("sample_rate", str(live.effective_rate)))
    live.ingest.check_rate(sample_rate)
    last_event_id = event_number(query.get("last_event_id") or socket.headers.get("last-event-id"))
    ctx.access.quotas.connect(session_id, time.monotonic())
    return session, audio_format, sample_rate, last_event_id


def _format(text: str) -> AudioFormat:
    try:
        return AudioFormat(text)
    except ValueError:
        known = ", ".join(AudioFormat)
        raise ProblemError(
            ErrorCode.INVALID_REQUEST, f"format: {text[:32]!r} is none of {known}.", field="format", value=text[:32]
        ) from None


def _rate(text: str) -> int:
    low, high = SAMPLE_RATES
    if not (text.isascii() and text.isdigit() and len(text) < 8 and low <= int(text) <= high):
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            f"sample_rate: {text[:32]!r} is not a whole number from {low} to {high}, default {DEFAULT_RATE}.",
            field="sample_rate",
            value=text[:32],
        )
    return int(text)


async def _read(ctx: Context, line: AudioSocket) -> None:
    """Takes messages until the sender leaves, is replaced, or does what it may not."""
    while True:
        try:
            async with asyncio.timeout(ctx.options.audio_idle_s):
                message = await line.socket.receive()
        except TimeoutError:
            _refuse(ctx, line, _idle(ctx.options.audio_idle_s))
            return
        if message["type"] == "websocket.disconnect":
            return
        if line.connection.closing:
            continue  # whatever it still sends is not taken, and received_samples says so
        try:
            if message.get("bytes") is not None:
                line.live.ingest.push(message["bytes"], line.decoder, line.sample_rate)
            else:
                _take_text(line, message.get("text") or "")
        except ProblemError as error:
            _refuse(ctx, line, error)


def _refuse(ctx: Context, line: AudioSocket, error: ProblemError) -> None:
    """Sends the reason, and closes."""
    ctx.metrics.audio_errors.labels(code=error.code.value).inc()
    extra = {"session_id": line.live.session_id, "code": error.code.value}
    _log.warning("audio connection ended by an error", extra=extra)
    line.connection.put(ErrorEvent(code=error.code, message=error.detail))
    line.connection.close(CLOSE_POLICY)


def _idle(idle_s: float) -> ProblemError:
    return ProblemError(
        ErrorCode.IDLE_TIMEOUT,
        f"Nothing came for {idle_s:g} s: connect again when there is something to say, or send a ping now and then.",
        limit=idle_s,
    )


def _take_text(line: AudioSocket, text: str) -> None:
    line.live.ingest.admit(len(text.encode(errors="replace")), time.monotonic())
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise ProblemError(
            ErrorCode.INVALID_MESSAGE,
            'A text message must be a JSON object with a "type", such as {"type":"audio.end"}.',
        )
    if body["type"] not in CLIENT_TYPES:
        known = ", ".join(sorted(CLIENT_TYPES))
        message = f"The type {body['type'][:32]!r} is unknown and was ignored; known are {known}."
        line.connection.put(WarningEvent(code="unknown_type", message=message))
        return
    try:
        command = client_message.validate_python(body)
    except ValidationError as error:
        raise ProblemError(ErrorCode.INVALID_MESSAGE, f"The message {body['type']} is malformed.") from error
    if isinstance(command, AudioStart):
        line.live.audio_start()
        line.decoder.reset()
    elif isinstance(command, AudioEnd):
        line.live.audio_end()
        line.decoder.reset()
    elif isinstance(command, Clear):
        line.live.clear()
        line.decoder.reset()
    else:
        line.connection.put(Pong())


async def _write(line: AudioSocket) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # Starlette's RuntimeError: the socket closed under the send
        while (message := await line.connection.take()) is not None:
            await line.socket.send_text(message.model_dump_json(exclude_none=True))


async def _close(line: AudioSocket) -> None:
    if line.socket.application_state is not WebSocketState.CONNECTED:
        return
    code = line.connection.close_code or CLOSE_INTERNAL
    reason = "reads too slowly" if line.connection.overrun else ""
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        async with asyncio.timeout(FLUSH_S):
            await line.socket.close(code, reason)
