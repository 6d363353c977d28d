"""HTTP POST to addresses that strangers named, without SSRF: each name is resolved once, and only a checked IP address is
connected to."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpcore

from musetalk_agent.protocol.addresses import HostUnknown, Resolver, Target, checked_addresses, parse

RESOLVE_S = 5.0
FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, TimeoutError)
"""What `CheckedPosts.post` raises when the other side fails."""


@dataclass(frozen=True)
class PostAnswer:
    """What came back. `body` is cut one byte past what was asked for; `encoding` is its `Content-Encoding`."""

    status: int
    body: bytes = field(repr=False)
    encoding: str = ""


class _Connections(httpcore.AnyIOBackend):
    """Closes what it connected. httpcore leaves a connection whose handshake is cancelled to the garbage collector."""

    def __init__(self) -> None:
        self._made: list[httpcore.AsyncNetworkStream] = []

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        made = await super().connect_tcp(*args, **options)
        self._made.append(made)
        return made

    async def aclose(self) -> None:
        """Idempotent."""
        for each in self._made:
            await each.aclose()


class CheckedPosts:
    """Posts over fresh connections. Redirects are not followed, no proxy is used.

    Args:
        ports: the schemes allowed, with their usual ports.
        allow_private: whether loopback and private addresses may be posted to.
        resolver, ssl_context: how names are resolved, and whom https trusts; by default the public authorities.
    """

    def __init__(
        self,
        ports: Mapping[str, int],
        *,
        allow_private: bool,
        resolver: Resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._ports = ports
        self._allow_private = allow_private
        self._resolver = resolver
        self._ssl_context = ssl_context

    async def check(self, url: str) -> None:
        """Returns when the address could be posted to now. Raises AddressRefused."""
        target = parse(url, self._ports)
        try:
            async with asyncio.timeout(RESOLVE_S):
                await self._checked(target)
        except TimeoutError as error:
            detail = f"The name {target.host} was not found in {RESOLVE_S:g} s."
            raise HostUnknown(detail, target.host) from error

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, answer_bytes: int = 0) -> PostAnswer:
        """One try, without a time limit of its own. At most `answer_bytes` + 1 bytes of the answer are read; with 0, none.

        Raises AddressRefused, and one of `FAILURES`.
        """
        target = parse(url, self._ports)
        addresses = await self._checked(target)
        if self._ssl_context is None:
            self._ssl_context = await asyncio.to_thread(httpcore.default_ssl_context)
        all_headers = {"Host": self._host(target), "User-Agent": "musetalk-livekit", **headers}
        sent = [(name.encode(), value.encode()) for name, value in all_headers.items()]
        failure: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            scheme, path = target.scheme.encode(), target.path.encode()
            where = httpcore.URL(scheme=scheme, host=address.encode(), port=target.port, target=path)
            extensions = {"sni_hostname": target.host}
            connections = _Connections()
            pool = httpcore.AsyncConnectionPool(
                self._ssl_context, max_connections=1, max_keepalive_connections=0, network_backend=connections
            )
            try:
                async with (
                    contextlib.aclosing(connections),
                    pool,
                    pool.stream("POST", where, headers=sent, content=body, extensions=extensions) as answer,
                ):
                    encoding = dict(answer.headers).get(b"content-encoding", b"").decode("latin-1")
                    return PostAnswer(answer.status, await _read(answer, answer_bytes), encoding)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _checked(self, target: Target) -> list[str]:
        return await checked_addresses(target.host, target.port, self._resolver, allow_private=self._allow_private)

    def _host(self, target: Target) -> str:
        host = f"[{target.host}]" if ":" in target.host else target.host
        return host if target.port == self._ports[target.scheme] else f"{host}:{target.port}"


async def _read(answer: httpcore.Response, most: int) -> bytes:
    body = b""
    if most:
        async for block in answer.aiter_stream():
            body += block
            if len(body) > most:
                break
    return body[: most + 1]
