"""Whether the room can be reached again: tried hidden, under another identity, while media take another way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from livekit import rtc

from musetalk_agent.publishers.livekit.detached_connect import abandon
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

HEALTHY_S = 2.0
_EVERY_S = 1.0
_HTTP_TIMEOUT_S = 1.0
_CONNECT_TIMEOUT_S = 3.0
_JOIN_S = 75.0
"""No join is waited for longer: through blocked UDP it fails by itself after a minute."""


async def answers(livekit_url: str) -> bool:
    """Whether the SFU's HTTP side says anything, within a second."""
    parts = urlsplit(livekit_url)
    tls = parts.scheme in ("wss", "https")
    try:
        async with asyncio.timeout(_HTTP_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if tls else 80), ssl=tls)
            try:
                writer.write(f"HEAD / HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
                return (await reader.read(5)).startswith(b"HTTP")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, ValueError):  # ValueError: a port or a host name that cannot be
        return False


class Probe:
    """Tries until it is closed.

    A try looks whether the SFU answers over HTTP, then joins, which needs UDP both ways, and stays a while. A join through
    blocked UDP goes on for a minute, and succeeds at once when the way is free.

    Args:
        token: joins hidden; None leaves it at HTTP.
        tell: called with the outcome of every try.
        healthy_s: how long a join has to hold.
    """

    def __init__(self, url: str, token: str | None, tell: Callable[[bool], None], healthy_s: float) -> None:
        self._url, self._token, self._tell = url, token, tell
        self._healthy_s = healthy_s
        self._room: rtc.Room | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(supervise("probe", self._run), name="probe")

    async def aclose(self) -> None:
        """Ends it and leaves the room; a join under way is let go. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._leave()

    async def _run(self) -> None:
        while True:
            await self._leave()
            healthy = await answers(self._url) and await self._try()
            self._tell(healthy)
            await self._leave()
            await asyncio.sleep(_EVERY_S)

    async def _try(self) -> bool:
        if self._token is None:
            await asyncio.sleep(self._healthy_s)
            return await answers(self._url)
        try:
            self._room = room = rtc.Room()
            options = rtc.RoomOptions(auto_subscribe=False, connect_timeout=_CONNECT_TIMEOUT_S)
            self._connecting = asyncio.create_task(room.connect(self._url, self._token, options), name="probe-join")
            async with asyncio.timeout(_JOIN_S):
                await asyncio.shield(self._connecting)
        except Exception as error:  # noqa: BLE001 - the SDK raises bare Exceptions: this try has failed, the next one comes
            log.info("a probe did not join", extra={"error": type(error).__name__})  # its text quotes the token
            return False
        await asyncio.sleep(self._healthy_s)
        return room.connection_state == rtc.ConnectionState.CONN_CONNECTED

    async def _leave(self) -> None:
        """Leaves the room now, or in the background while it is still being joined."""
        room, self._room = self._room, None
        if room is not None and self._connecting is not None:
            self._leaving = abandon(room, self._connecting)
        if self._leaving is not None and self._connecting is not None and self._connecting.done():
            await asyncio.shield(self._leaving)
