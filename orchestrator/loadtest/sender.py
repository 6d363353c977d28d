"""The speech of one session: its `/audio`, opened again after a drop at the sample where the session stands."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.retries import LINK, SILENCE_S, Tries, Verdict, close_verdict, retry_after_s, verdict
from orchestrator.loadtest.speech import BLOCK, RATE, Pcm

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
                if verdict(answer.status_code, _code(answer.body)) is Verdict.FINAL:
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
        socket = await connect(self._url + after, max_queue=None, open_timeout=SILENCE_S, close_timeout=1)
        try:
            async with asyncio.timeout(SILENCE_S):
                self._taken = json.loads(await socket.recv())["received_samples"]
        except BaseException:
            await socket.close()
            raise
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
        if close_verdict(code, self._error or "") is Verdict.FINAL:
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
        told = json.loads(body or b"")
    except (ValueError, RecursionError):
        return ""
    return str(told.get("code", "")) if isinstance(told, dict) else ""
