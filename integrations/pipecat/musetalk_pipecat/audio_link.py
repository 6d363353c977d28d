"""A session's `/audio`: PCM and marks out, playback events in. A lost connection goes on where the session stands."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.retries import (
    LINK,
    SILENCE_S,
    RetryVerdict,
    Schedule,
    Tries,
    close_verdict,
    retry_after_s,
    verdict,
)
from musetalk_pipecat.session_client import OrchestratorError, problem
from musetalk_pipecat.unconfirmed import BYTES_PER_SAMPLE, Chunk, ControlMark, Unconfirmed

AHEAD_S = 10.0
"""Speech handed over before it can have been heard; the session takes 120 s. Past it `push` waits."""
_OVER = frozenset({"session_not_found", "session_ended", "http_404"})
"""Refusals that say the session is over: the service reports all of them as `session_ended`."""

Hear = Callable[[Mapping[str, Any]], Awaitable[None]]


class AudioLink:
    """One session's link. `run` keeps it up; the other methods may be called at any time and keep their order."""

    def __init__(
        self, url: str, sample_rate: int, hear: Hear, *, schedule: Schedule = LINK, silence_s: float = SILENCE_S
    ) -> None:
        """`silence_s`: a connection on which no greeting, or no answer to a ping, comes for so long is given up for another one."""
        self._schedule = schedule
        self._silence_s = silence_s
        self._url = f"{url}&sample_rate={sample_rate}"
        self._sample_rate = sample_rate
        self._hear = hear
        self._tail = Unconfirmed()
        self._socket: ClientConnection | None = None
        self._sending = asyncio.Lock()
        self._heard_at = 0.0
        """When all that was pushed can have been heard, on the monotonic clock."""
        self._error: OrchestratorError | None = None
        self._last_event = 0

    @property
    def unheard_s(self) -> float:
        """Seconds of speech that cannot have been heard yet."""
        return max(0.0, self._heard_at - time.monotonic())

    async def run(self) -> None:
        """Keeps the link up. Raises OrchestratorError when the session is over or the orchestrator stays away."""
        tries = Tries(self._schedule)
        while True:
            asked_s = None
            try:
                after = f"&last_event_id={self._last_event}" if self._last_event else ""
                async with connect(
                    self._url + after,
                    open_timeout=self._silence_s,
                    ping_interval=self._silence_s,
                    ping_timeout=self._silence_s,
                    close_timeout=2,
                ) as socket:
                    await self._talk(socket, tries)
            except InvalidStatus as refused:
                asked_s = _refused(refused)
            except (OSError, InvalidHandshake, TimeoutError):
                pass
            finally:
                self._socket = None
            wait_s = tries.next_wait_s(asked_s)
            if wait_s is None:
                raise self._error or OrchestratorError("network", "The orchestrator cannot be reached any more.")
            await asyncio.sleep(wait_s)

    async def push(self, pcm: bytes) -> None:
        """Sends 16-bit mono PCM. Waits while `AHEAD_S` are under way; cancelled in that wait, the PCM is sent all the same."""
        now = time.monotonic()
        self._heard_at = max(self._heard_at, now) + len(pcm) / BYTES_PER_SAMPLE / self._sample_rate
        async with self._sending:
            await self._put(self._tail.pcm(pcm))
        await asyncio.sleep(max(0.0, self._heard_at - now - AHEAD_S))

    async def mark(self, kind: str) -> None:
        """Sends `audio.start`, `audio.end` or `clear`."""
        if kind == "clear":
            self._heard_at = 0.0
        async with self._sending:
            await self._put(self._tail.mark(kind))

    async def _put(self, item: Chunk | ControlMark) -> None:
        """To the socket, if there is one; when it breaks `run` mends it, and the item waits for the next."""
        socket = self._socket
        if socket is None:
            return
        try:
            if isinstance(item, Chunk):
                await socket.send(item.pcm)
            else:
                await socket.send(json.dumps({"type": item.kind}))
                self._tail.pinged(item)
                await socket.send('{"type":"ping"}')
        except ConnectionClosed:
            self._socket = None

    async def _talk(self, socket: ClientConnection, tries: Tries) -> None:
        """Reads one connection to its end. Raises OrchestratorError when it ended for good, TimeoutError when no greeting came."""
        self._error = None
        try:
            async with asyncio.timeout(self._silence_s):
                first = json.loads(await socket.recv())
            if first["type"] == "hello":
                tries.succeeded()
            await self._receive(socket, first)
            async for text in socket:
                await self._receive(socket, json.loads(text))
        except ConnectionClosed:
            pass
        if close_verdict(socket.close_code, self._error.code if self._error else "") is RetryVerdict.FINAL:
            raise self._error or OrchestratorError("session_ended", "The session is over.")

    async def _receive(self, socket: ClientConnection, message: Mapping[str, Any]) -> None:
        if message.get("id", self._last_event + 1) <= self._last_event:
            return  # it came before
        self._last_event = message.get("id", self._last_event)
        match message["type"]:
            case "hello":
                async with self._sending:
                    self._socket = socket
                    for item in self._tail.greeted(message["received_samples"]):
                        await self._put(item)
            case "ack":
                self._tail.received(message["received_samples"])
            case "pong":
                self._tail.ponged()
            case "error":
                self._error = OrchestratorError(message["code"], message["message"])
            case _:
                await self._hear(message)


def _refused(refused: InvalidStatus) -> float | None:
    """The `Retry-After` of a handshake's refusal. Raises OrchestratorError when it would be refused again."""
    answer = refused.response
    code, detail = problem(answer.status_code, (answer.body or b"").decode(errors="replace"))
    if verdict(answer.status_code, code) is RetryVerdict.FINAL:
        if code in _OVER:
            code, detail = "session_ended", "The session takes no more sound."
        raise OrchestratorError(code, detail) from refused
    return retry_after_s(answer.headers.get("Retry-After"))
