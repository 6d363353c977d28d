"""One session of a run: a viewer joins, the session starts, speaks, is interrupted now and then, and always stops.

The sender opens `/audio` again after a drop, at the sample where the session stands.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.retries import LINK, SILENCE_S, RetryVerdict, Tries, close_verdict, retry_after_s, verdict
from musetalk_tools.loadtest.deployment import CallError, Deployment
from musetalk_tools.loadtest.plan import PATTERN, Plan
from musetalk_tools.loadtest.speech_source import BLOCK, RATE, Pcm, SpeechSource, SpokenClip
from musetalk_tools.loadtest.viewer_messages import Left, Link
from musetalk_tools.loadtest.viewer_metrics import INTERRUPT_WINDOW_S, Tallies, ViewerMetrics
from musetalk_tools.loadtest.viewer_pool import ViewerLost, ViewerPool, Watch

_SCHEDULE = replace(LINK, total_s=30.0)
"""A service that is away for longer has failed the load test, though its clients would wait on."""
Message = dict[str, Any]


class SenderLost(Exception):
    """The session takes no more speech. `code` is the service's own, or `closed_CODE`, `refused_STATUS`, `unreachable`."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Sender:
    """Speaks into a session.

    Args:
        url: `audio_url`.
        on_message: called with every text message of the session; must not block.
    """

    def __init__(self, url: str, on_message: Callable[[Message], None]) -> None:
        self.reconnects = 0
        self._url, self._on_message = url, on_message
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._sent = 0  # samples since the session began
        self._taken = 0  # samples that the session had when the connection was made
        self._error: str | None = None
        self._last_event = 0

    async def open(self) -> None:
        """Connects. Raises SenderLost."""
        tries = Tries(_SCHEDULE)
        while True:
            asked_s = None
            try:
                self._socket = await self._greeted()
                self._reader = asyncio.create_task(self._read(self._socket), name="loadtest-audio")
                return
            except InvalidStatus as error:
                answer = error.response
                if verdict(answer.status_code, _code(answer.body)) is RetryVerdict.FINAL:
                    raise SenderLost(f"refused_{answer.status_code}") from error
                asked_s = retry_after_s(answer.headers.get("Retry-After"))
            except (OSError, InvalidHandshake, ConnectionClosed, TimeoutError):
                pass  # it is away for a moment
            wait_s = tries.next_wait_s(asked_s)
            if wait_s is None:
                raise SenderLost("unreachable")
            await asyncio.sleep(wait_s)

    async def _greeted(self) -> ClientConnection:
        """A connection whose greeting has come; one that does not come in `SILENCE_S` is a TimeoutError."""
        after = f"&last_event_id={self._last_event}" if self._last_event else ""
        connecting = connect(self._url + after, max_queue=None, open_timeout=SILENCE_S, close_timeout=1)
        async with contextlib.AsyncExitStack() as undo:  # closes a socket that the caller never gets
            socket = await undo.enter_async_context(connecting)
            async with asyncio.timeout(SILENCE_S):
                self._taken = json.loads(await socket.recv())["received_samples"]
            undo.pop_all()
        return socket

    async def send(self, pcm: Pcm, *, paced: bool = True, on_block: Callable[[int, float], None] | None = None) -> None:
        """Sends speech, in real time or at once. Cancelling leaves a part of it unsent.

        Args:
            on_block: called with the past-the-last sample of each block and the moment it was sent.

        Raises:
            SenderLost: the session is over.
        """
        loop = asyncio.get_running_loop()
        begun, base, at = loop.time(), self._sent, 0
        while at < len(pcm):
            end = min(at + BLOCK, len(pcm))
            if paced:
                await asyncio.sleep(max(0.0, begun + end / RATE - loop.time()))
            try:
                assert self._socket is not None
                sent = loop.time()
                await self._socket.send(pcm[at:end].astype("<i2").tobytes())
            except ConnectionClosed as error:
                await self._again(error)
                at = max(0, min(at, self._taken - base))
                continue
            at, self._sent = end, base + end
            if on_block is not None:
                on_block(end, sent)

    async def say(self, kind: str) -> None:
        """Sends a control message. Raises SenderLost."""
        while True:
            try:
                assert self._socket is not None
                await self._socket.send(json.dumps({"type": kind}))
                return
            except ConnectionClosed as error:
                await self._again(error)

    async def aclose(self) -> None:
        """Closes the connection."""
        if self._socket is not None:
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                async with asyncio.timeout(5):
                    await self._socket.close()
        await self._end_reader()

    async def _again(self, closed: ConnectionClosed) -> None:
        await self._end_reader()
        code = closed.rcvd.code if closed.rcvd else 1006
        if close_verdict(code, self._error or "") is RetryVerdict.FINAL:
            raise SenderLost(self._error or f"closed_{code}")
        self._error = None
        self.reconnects += 1
        await self.open()

    async def _end_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, socket: ClientConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for text in socket:
                message = json.loads(text)
                self._last_event = message.get("id", self._last_event)
                if message["type"] == "error":
                    self._error = message["code"]
                self._on_message(message)


def _code(body: bytes | bytearray | None) -> str:
    """The problem's code in a refusal; empty where it is no problem+json."""
    try:
        answered = json.loads(body or b"")
    except (ValueError, RecursionError):
        return ""
    return str(answered.get("code", "")) if isinstance(answered, dict) else ""


FIRST_PICTURE_S = 30.0
"""After this long without a frame the session has failed: `no_picture`."""
_INTERRUPTED_AFTER_S = 1.2
_SPREAD = 0.618  # golden ratio: sessions speak spread over the pause, not all at once
_POLL_S = 0.02
_Result = TypeVar("_Result")


@dataclass
class Counts:
    """What happened in all sessions together. `warnings` are the service's own."""

    utterances: int = 0
    finished: int = 0
    interrupts: int = 0
    audio_reconnects: int = 0
    viewer_reconnects: int = 0
    moves: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)


class _Stopped(Exception):
    """The run is over."""


@dataclass
class Shared:
    """What the sessions of a run have in common."""

    plan: Plan
    speech: SpeechSource
    deployment: Deployment
    crowd: ViewerPool
    stop: asyncio.Event
    tallies: Tallies = field(default_factory=Tallies)
    counts: Counts = field(default_factory=Counts)


class LoadSession:
    """Runs once. `error` is the code of what ended it early, `detail` its sentence."""

    def __init__(self, shared: Shared, index: int) -> None:
        self.index = index
        self.session_id: str | None = None
        self.engine: str | None = None
        self.fps = 25
        self.start_s: float | None = None
        self.first_picture_s: float | None = None
        self.error: str | None = None
        self.detail: str | None = None
        self.moves = 0
        self.active = False
        self.left = Left(name=str(index))
        self.sight = ViewerMetrics(shared.tallies, shared.speech.window_s)
        self._shared = shared
        self._lost: str | None = None
        self._recovering_at: float | None = None

    async def run(self) -> None:
        """The whole life; ends soon after the run's `stop` is set. Raises nothing of the service's."""
        watch = Watch(str(self.index), self.sight.take, self._on_link)
        try:
            await self._within(self._live(watch))
        except _Stopped:
            pass
        except (CallError, SenderLost) as error:
            self._fail(error.code, str(error))
        except ViewerLost as error:
            self._fail("viewer_lost", str(error))
        finally:
            self.active = False
            await self._end(watch)

    def settle(self, now: float) -> None:
        """Takes figures that are old enough."""
        self.sight.settle(now)

    async def _live(self, watch: Watch) -> None:
        shared, plan = self._shared, self._shared.plan
        body = plan.body(self.index)
        ticket = await shared.deployment.token(body["room"], f"loadtest-viewer-{self.index}")
        await shared.crowd.join(watch, ticket["livekit_url"], ticket["token"])
        asked = time.monotonic()
        started = await shared.deployment.start(body)
        self.start_s = time.monotonic() - asked
        self.session_id, self.engine, self.fps = started["session_id"], started["engine"], started["fps"]
        shared.tallies.start_s.add(self.start_s)
        self.sight.pattern = self.engine == PATTERN and shared.speech.tones
        self.active = True
        sender = Sender(started["audio_url"], self._on_message)
        try:
            await sender.open()
            await self._first_picture(asked)
            await self._speak(sender)
        finally:
            shared.counts.audio_reconnects += sender.reconnects
            await sender.aclose()

    async def _first_picture(self, asked: float) -> None:
        deadline = time.monotonic() + FIRST_PICTURE_S
        while self.sight.first is None:
            if time.monotonic() > deadline:
                raise CallError("no_picture", f"no picture within {FIRST_PICTURE_S:.0f} s")
            self._check_viewer()
            await asyncio.sleep(_POLL_S)
        self.first_picture_s = self.sight.first - asked
        self._shared.tallies.first_picture_s.add(self.first_picture_s)

    async def _speak(self, sender: Sender) -> None:
        plan, speech = self._shared.plan, self._shared.speech
        await asyncio.sleep(plan.pause_s * (self.index * _SPREAD % 1))
        count = 0
        while True:
            self._check_viewer()
            count += 1
            if plan.interrupt_every and count % plan.interrupt_every == 0:
                await self._interrupt(sender, speech.interrupted[count % len(speech.interrupted)])
            else:
                await self._utter(sender, speech.utterances[count % len(speech.utterances)])
            await asyncio.sleep(plan.pause_s)

    async def _utter(self, sender: Sender, utterance: SpokenClip) -> None:
        marks = list(utterance.marks)

        def sent(end: int, at: float) -> None:
            while marks and marks[0] < end:
                marks.pop(0)
                self.sight.spoke(at)

        await sender.say("audio.start")
        self._shared.counts.utterances += 1
        await sender.send(utterance.pcm, on_block=sent)
        await sender.say("audio.end")

    async def _interrupt(self, sender: Sender, utterance: SpokenClip) -> None:
        """All of it is sent at once, as a TTS does, so that there is something to drop."""
        counts = self._shared.counts
        assert self.session_id is not None
        await sender.say("audio.start")
        counts.utterances += 1
        await sender.send(utterance.pcm, paced=False)
        await sender.say("audio.end")
        await asyncio.sleep(_INTERRUPTED_AFTER_S)
        counts.interrupts += 1
        self.sight.interrupted(time.monotonic())
        await self._shared.deployment.interrupt(self.session_id)
        await asyncio.sleep(INTERRUPT_WINDOW_S)

    async def _within(self, life: Coroutine[Any, Any, _Result]) -> _Result:
        """Runs it until the run stops. Raises _Stopped then."""
        task = asyncio.create_task(life, name=f"loadtest-{self.index}")
        stop = asyncio.create_task(self._shared.stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise _Stopped
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _end(self, watch: Watch) -> None:
        """The viewer goes first: WebRTC forgets its counts with the tracks."""
        try:
            self.left = await self._shared.crowd.leave(watch)
        finally:
            if self.session_id is not None:
                try:
                    await self._shared.deployment.stop(self.session_id)
                except CallError as error:
                    self._shared.counts.errors[error.code] += 1

    def _fail(self, code: str, detail: str) -> None:
        self.error, self.detail = code, detail
        self._shared.counts.errors[code] += 1

    def _check_viewer(self) -> None:
        if self._lost is not None:
            raise ViewerLost(self._lost)

    def _on_link(self, link: Link) -> None:
        if link.state == "reconnecting":
            self._shared.counts.viewer_reconnects += 1
        elif link.state == "disconnected":
            self._lost = f"disconnected: {link.reason}"

    def _on_message(self, message: Message) -> None:
        counts = self._shared.counts
        if message["type"] == "playback.finished":
            counts.finished += 1
        elif message["type"] == "warning":
            counts.warnings[message["code"]] += 1
        elif message["type"] == "session.state":
            self._on_state(message["state"])

    def _on_state(self, state: str) -> None:
        if state == "recovering":
            self._recovering_at = time.monotonic()
        elif state == "ready" and self._recovering_at is not None:
            self._shared.tallies.move_s.add(time.monotonic() - self._recovering_at)
            self._recovering_at = None
            self.moves += 1
            self._shared.counts.moves += 1
