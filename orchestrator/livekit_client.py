"""LiveKit's server API with a deadline for each call and a bound on each answer, whatever the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiohttp
from livekit import api

ANSWER_BYTES = 8 << 20
"""Largest answer that is read: the list of some 20,000 rooms."""
CLOSE_S = 2.0
_Answer = TypeVar("_Answer")


class LiveKitFailed(Exception):
    """A call failed. The message names the reason without addresses or tokens: LiveKit's own code, or the error's class.

    `code` and `detail` are LiveKit's, empty where it said nothing that can be read.
    """

    def __init__(self, reason: str, code: str = "", detail: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.detail = detail


class LiveKitClient:
    """One client of the server API. `open()` before use, `aclose()` after it.

    livekit-api passes `timeout=None` with each request, which switches the session's own time-out off; so the deadline is here.
    """

    def __init__(self, url: str, api_key: str, api_secret: str) -> None:
        self._url, self._api_key, self._api_secret = url, api_key, api_secret
        self._session: aiohttp.ClientSession | None = None
        self._api: api.LiveKitAPI | None = None

    async def open(self) -> None:
        """Prepares the client; does not connect yet."""
        self._session = aiohttp.ClientSession(response_class=_BoundedResponse)
        self._api = api.LiveKitAPI(self._url, self._api_key, self._api_secret, session=self._session, failover=False)

    async def aclose(self) -> None:
        """Closes the connections, in bounded time. Idempotent."""
        session, self._session, self._api = self._session, None, None
        if session is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await session.close()
            except TimeoutError:
                pass  # a TLS goodbye that is never answered; the sockets end with the process

    async def call(
        self, ask: Callable[[api.LiveKitAPI], Awaitable[_Answer]], within_s: float, *, idempotent: bool = True
    ) -> _Answer:
        """The answer of one call. Raises LiveKitFailed, at the latest after `within_s` seconds. Cancelling gives the call up.

        An idempotent call whose connection breaks before the answer is sent once more: a server closes idle connections, and
        a request may be under way on one at that moment.
        """
        if self._api is None:
            raise RuntimeError("LiveKitClient.open() was not called")
        try:
            async with asyncio.timeout(within_s):
                try:
                    return await ask(self._api)
                except aiohttp.ClientConnectorError:
                    raise  # there was no connection that could break
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    if not idempotent:
                        raise
                    return await ask(self._api)
        except api.TwirpError as error:
            raise LiveKitFailed(str(error.code), str(error.code), str(error.message)) from error
        except Exception as error:  # an answer that is no protobuf breaks livekit-api in its own ways
            raise LiveKitFailed(type(error).__name__) from error


class _BoundedResponse(aiohttp.ClientResponse):
    """A response whose body is read up to `ANSWER_BYTES`."""

    async def read(self) -> bytes:
        """The body. Raises ClientPayloadError for a larger one, and closes the connection."""
        if self._body is None:
            parts, size = [], 0
            async for part in self.content.iter_any():
                size += len(part)
                if size > ANSWER_BYTES:
                    self.close()
                    raise aiohttp.ClientPayloadError(f"an answer of more than {ANSWER_BYTES} bytes")
                parts.append(part)
            self._body = b"".join(parts)
        return await super().read()
