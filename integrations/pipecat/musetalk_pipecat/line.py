"""A session's `/audio`: PCM and marks out, playback events in. A lost connection goes on where the session stands."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_pipecat.errors import AvatarError
from musetalk_pipecat.unconfirmed import BYTES_PER_SAMPLE, Chunk, Mark, Unconfirmed

AHEAD_S = 10.0
"""Speech handed over before it can have been heard; the session takes 120 s. Past it `push` waits."""
RETRY_S = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Waits between attempts, of which the sum outlives a restart of the orchestrator."""
CLOSED_FOR_GOOD = frozenset({1000, 1001, 1008})
REFUSED_FOR_GOOD = frozenset({401, 403, 404, 409, 422})

Hear = Callable[[Mapping[str, Any]], Awaitable[None]]


class AudioLine:
    """One session's line. `run` keeps it up; the other methods may be called at any time and keep their order."""

    def __init__(self, url: str, sample_rate: int, hear: Hear) -> None:
        self._url = f"{url}&sample_rate={sample_rate}"
        self._sample_rate = sample_rate
        self._hear = hear
        self._tail = Unconfirmed()
        self._socket: ClientConnection | None = None
        self._sending = asyncio.Lock()
        self._heard_at = 0.0
        """When all that was pushed can have been heard, on the monotonic clock."""
        self._error: AvatarError | None = None

    @property
    def unheard_s(self) -> float:
        """Seconds of speech that cannot have been heard yet."""
        return max(0.0, self._heard_at - time.monotonic())

    async def run(self) -> None:
        """Keeps the line up. Raises AvatarError when the session is over, or the orchestrator stays away. Cancelling closes it."""
        attempt = 0
        while True:
            try:
                async with connect(self._url, close_timeout=2) as socket:
                    attempt = await self._talk(socket, attempt)
            except InvalidStatus as refused:
                if refused.response.status_code in REFUSED_FOR_GOOD:
                    raise AvatarError("session_ended", "The session takes no more sound.") from refused
            except (OSError, InvalidHandshake, TimeoutError):
                pass
            finally:
                self._socket = None
            if attempt == len(RETRY_S):
                raise self._error or AvatarError("network", "The orchestrator cannot be reached any more.")
            await asyncio.sleep(RETRY_S[attempt])
            attempt += 1

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

    async def _put(self, item: Chunk | Mark) -> None:
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

    async def _talk(self, socket: ClientConnection, attempt: int) -> int:
        """Reads one connection to its end; the failed attempts so far. Raises AvatarError when it ended for good."""
        try:
            async for text in socket:
                message = json.loads(text)
                if message["type"] == "hello":
                    attempt = 0
                await self._receive(socket, message)
        except ConnectionClosed:
            pass
        if socket.close_code in CLOSED_FOR_GOOD:
            raise self._error or AvatarError("session_ended", "The session is over.")
        return attempt

    async def _receive(self, socket: ClientConnection, message: Mapping[str, Any]) -> None:
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
                self._error = AvatarError(message["code"], message["message"])
            case _:
                await self._hear(message)
