"""Speech that an agent of livekit-agents sends through the room: byte streams in, calls back. `core.AvatarProtocol` decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from livekit import rtc
from livekit.rtc.data_stream import StreamError

from musetalk_agent.agent_metrics import AGENT_CALLS
from musetalk_agent.avatar_protocol import core
from musetalk_agent.clock import Clock
from musetalk_agent.media.pipeline import Pipeline
from musetalk_agent.protocol.messages import Event
from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

_TICK_S = 0.1
_CALLS_MOST = 64
_TRIES = 3
_AGAIN_S = 0.1
_ANSWER_S = 3.0
_SDK_S = 12.0
"""And no call is waited for longer than this: the SDK's own limits are `_ANSWER_S`, after up to 7 s for the call to be taken."""
_ROOM_S = 8.0
"""A call waits so long for the room to be joined again."""
_NOT_TAKEN = frozenset(
    {
        rtc.RpcError.ErrorCode.CONNECTION_TIMEOUT,
        rtc.RpcError.ErrorCode.RECIPIENT_NOT_FOUND,
        rtc.RpcError.ErrorCode.SEND_FAILED,
        rtc.RpcError.ErrorCode.UNSUPPORTED_METHOD,
    }
)
"""Errors after which the agent surely has not heard the call: only then may it be made again."""


class DataStreamAudioInput:
    """Feeds a session's pipeline from the room. `attach` belongs to each room that the session joins.

    `run` belongs to the session's tasks; streams that come before it are read when it runs. The calls of the agent are answered
    without waiting for anything.

    Args:
        pipeline: where the speech goes.
        sender: identity of the agent.
        tail_s: see `core.AvatarProtocol`.
        backlog_s: with so much speech in hand no more is read; what the agent sends meanwhile waits in the SDK.
    """

    def __init__(self, pipeline: Pipeline, sender: str, backlog_s: int, clock: Clock, tail_s: float) -> None:
        self.sender = sender
        self.last_audio_at: float | None = None  # `time.time()`
        self._backlog_s, self._clock = backlog_s, clock
        self._core = core.AvatarProtocol(sender, tail_s)
        self._room: rtc.Room | None = None
        self._joined = asyncio.Event()
        self._attached = False
        self._pipeline = pipeline
        self._readers: asyncio.Queue[rtc.ByteStreamReader] = asyncio.Queue()  # bounded by `core.STREAMS_MOST`
        self._reading: tuple[str, asyncio.Task[None]] | None = None
        self._calls: asyncio.Queue[core.RpcCall] = asyncio.Queue(_CALLS_MOST)

    @property
    def segments(self) -> int:
        """Streams that came so far."""
        return self._core.segments

    @property
    def present(self) -> bool:
        """The agent is in the room; the last known while the room is being joined again."""
        return self._room is None or self.sender in self._room.remote_participants

    def on_room_joined(self, room: rtc.Room) -> None:
        """Listens in a room that was just joined, instead of the one before. Call it before anything is published there."""
        again, self._attached = self._attached, True
        self._room = room
        self._joined.set()
        room.register_byte_stream_handler(core.AUDIO_TOPIC, self._on_stream)
        room.local_participant.register_rpc_method(core.CLEAR_METHOD, self._on_clear)
        room.on("disconnected", lambda _: self._detach(room))
        room.on("reconnected", self._on_rejoined)
        if again:
            self._on_rejoined()

    def on_playback_event(self, event: Event) -> None:
        """A playback event of the pipeline."""
        self._carry_out(self._core.on_playback_event(event))

    def status(self) -> None:
        """There is no microphone."""

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for name, loop in (("read", self._read), ("tell", self._make_calls), ("watch", self._watch)):
                    group.create_task(supervise(f"speech-{name}", loop), name=f"speech-{name}")
        finally:
            await self._stop_reading()

    # --- what comes from the room

    def _on_stream(self, reader: rtc.ByteStreamReader, sender: str) -> None:
        attributes = reader.info.attributes or {}
        acts = self._core.arrived(reader.info.stream_id, sender, attributes, self._clock.now())
        if core.Refuse() in acts:
            log.warning("a stream was refused", extra={"sender": sender, "expected": self.sender})
            _close(reader)
        else:
            self._readers.put_nowait(reader)
        self._carry_out(acts)

    def _on_clear(self, call: rtc.RpcInvocationData) -> str:
        acts = self._core.clear(call.caller_identity)
        if acts is None:
            return "reject"
        self._carry_out(acts)
        return "ok"

    def _on_rejoined(self) -> None:
        self._carry_out(self._core.rejoined())

    def _detach(self, room: rtc.Room) -> None:
        if room is self._room:
            self._room = None
            self._joined.clear()

    # --- tasks

    async def _read(self) -> None:
        """One stream after the other."""
        while True:
            reader = await self._readers.get()
            stream = reader.info.stream_id
            acts = self._core.begin(stream, self._clock.now())
            self._carry_out(acts)
            if not any(isinstance(act, core.Close) for act in acts):
                task = asyncio.create_task(self._consume(reader), name="speech-stream")
                self._reading = stream, task
                await asyncio.wait({task})
                self._reading = None
            _close(reader)

    async def _consume(self, reader: rtc.ByteStreamReader) -> None:
        stream = reader.info.stream_id
        try:
            with sdk_errors(StreamError):
                async for chunk in reader:
                    self.last_audio_at = time.time()
                    self._carry_out(self._core.data(stream, chunk, self._clock.now()))
                    while self._pipeline.player.buffered_s > self._backlog_s:
                        await asyncio.sleep(_TICK_S)
                        self._carry_out(self._core.data(stream, b"", self._clock.now()))
        except StreamError:
            log.info("a stream was cut off: what came of it is said", extra={"stream": stream})
        except (SdkError, TimeoutError):  # one stream that breaks must not end the session
            log.exception("a stream broke: what came of it is said", extra={"stream": stream})
        self._carry_out(self._core.ended(stream))

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading[1].cancel()
            await asyncio.gather(self._reading[1], return_exceptions=True)
        while not self._readers.empty():
            _close(self._readers.get_nowait())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            heard, now = self._pipeline.player.heard, self._clock.now()
            self._carry_out(self._core.tick(now, heard, present=self.present))

    async def _make_calls(self) -> None:
        """Makes the calls, in order and one at a time, so that the agent hears of a beginning before its end."""
        while True:
            call = await self._calls.get()
            outcome = await self._perform(call)
            AGENT_CALLS.labels(call.method, outcome).inc()
            if outcome != "ok":
                log.warning("a call to the agent failed", extra={"method": call.method, "outcome": outcome})

    async def _perform(self, call: core.RpcCall) -> str:
        outcome = "no_room"
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_AGAIN_S)
            await self._wait_for_sender()
            room = self._room
            if room is None or not self.present:
                return "no_room" if room is None else "agent_absent"
            try:
                with sdk_errors(rtc.RpcError):
                    async with asyncio.timeout(_SDK_S):
                        await room.local_participant.perform_rpc(
                            destination_identity=self.sender,
                            method=call.method,
                            payload=call.payload,
                            response_timeout=_ANSWER_S,
                        )
                return "ok"
            except rtc.RpcError as error:
                outcome = f"error_{error.code}"
                if error.code not in _NOT_TAKEN:
                    break
            except (SdkError, TimeoutError) as error:  # the agent may have heard the call: it is not made again
                log.warning("a call to the agent failed in the SDK", extra={"error": repr(error)})
                outcome = "error_sdk"
                break
        return outcome

    async def _wait_for_sender(self) -> None:
        """Until the room is joined and the agent in sight, or for as long as either may stay away."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ROOM_S):
                await self._joined.wait()
        until = self._clock.now() + core.ABSENT_S
        while not self.present and self._clock.now() < until:  # noqa: ASYNC110 - the room has no event for both
            await asyncio.sleep(_TICK_S)

    # --- what is to be done

    def _carry_out(self, acts: Sequence[core.Command]) -> None:
        pipeline = self._pipeline
        for act in acts:
            match act:
                case core.Begin(number, rate):
                    pipeline.begin(number, rate)
                case core.PushAudio():
                    pipeline.push(act.samples)
                case core.End():
                    pipeline.end()
                case core.ClearBuffer():
                    pipeline.clear()
                case core.Close(stream):
                    if self._reading is not None and self._reading[0] == stream:
                        self._reading[1].cancel()
                case core.Refuse():
                    pass  # `_on_stream` has closed its reader
                case core.RpcCall():
                    self._queue(act)
                case core.Warn(message):
                    log.warning(message)

    def _queue(self, call: core.RpcCall) -> None:
        if self._calls.full():
            dropped = self._calls.get_nowait()
            AGENT_CALLS.labels(dropped.method, "overrun").inc()
        self._calls.put_nowait(call)


def _close(reader: rtc.ByteStreamReader) -> None:
    try:
        with sdk_errors():
            reader.close()
    except (SdkError, TimeoutError) as error:  # nothing is read from it any more
        log.info("a stream was not closed cleanly", extra={"error": repr(error)})
