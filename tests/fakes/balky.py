"""A service that stops answering as it should: it says nothing, trickles, floods, or answers with what is none of its protocol."""

from __future__ import annotations

import asyncio
from enum import StrEnum

from starlette.types import ASGIApp, Receive, Scope, Send

PART = bytes(64 << 10)


class Mode(StrEnum):
    """What each HTTP request meets. `WELL`: the service itself."""

    WELL = "well"
    SILENT = "silent"
    TRICKLE = "trickle"
    FLOOD = "flood"
    GARBAGE = "garbage"


class Balky:
    """Wraps the ASGI app of a fake. `mode` counts from the next request on; `asked` and `sent_bytes` count in every other mode."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.mode = Mode.WELL
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.sent_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.mode is Mode.WELL:
            await self._app(scope, receive, send)
            return
        self.asked += 1
        self.was_asked.set()
        gone = asyncio.create_task(_gone(receive))
        try:
            await self._misbehave(send, gone)
        finally:
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _misbehave(self, send: Send, gone: asyncio.Task[None]) -> None:
        if self.mode is Mode.SILENT:
            await asyncio.wait([gone])
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        if self.mode is Mode.GARBAGE:
            await send({"type": "http.response.body", "body": b"\xff" * 100})
            return
        body, pause_s = (b"\n", 0.02) if self.mode is Mode.TRICKLE else (PART, 0.0)
        while not gone.done():
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self.sent_bytes += len(body)
            await asyncio.sleep(pause_s)


async def _gone(receive: Receive) -> None:
    """Returns when the caller has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
