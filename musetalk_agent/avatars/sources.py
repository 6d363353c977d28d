"""Receives a clip's bytes: fetched from an address that a stranger named, or uploaded; within limits, and kept only when whole.

Every hop's name is resolved once, all its addresses are checked, and the connection goes to a checked one: a name that
resolves differently after the check (DNS rebinding) changes nothing. httpcore is used directly because it follows no redirect,
reads no proxy from the environment, keeps no cookie and unpacks no content encoding.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from urllib.parse import urljoin

import httpcore

from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import SNIFF_BYTES, VIDEOS_UNREAD, MediaKind, sniff
from musetalk_agent.errors import AvatarEmpty, AvatarFetchFailed, AvatarTooLarge, AvatarUndecodable, AvatarUrlForbidden
from musetalk_agent.protocol.addresses import (
    AddressRefused,
    HostUnknown,
    Resolver,
    Target,
    checked_addresses,
    parse,
    system_resolver,
)

_BLOCK_BYTES = 1 << 20


class SourceWriter:
    """Counts, hashes and identifies a clip's bytes as they arrive, and writes them to a file.

    An asynchronous context manager; leaving it removes what `finish` did not keep.

    Args:
        cache: where the file goes.
        limits: `source_bytes` is what it may have.
        name: what to call the file in an error message.
        accepted: what it may be.
    """

    def __init__(self, cache: AvatarCache, limits: AvatarLimits, name: str, accepted: frozenset[MediaKind]) -> None:
        self._cache = cache
        self._limit = limits.source_bytes
        self._name = name
        self._accepted = accepted
        self._digest = hashlib.sha256()
        self._folder: Path | None = None
        self._pending = bytearray()
        self._received = 0
        self._kind_checked = False

    async def __aenter__(self) -> SourceWriter:
        self._folder = await asyncio.to_thread(self._cache.part)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            await asyncio.shield(asyncio.to_thread(self._cache.discard_part, self._folder))

    async def write(self, piece: bytes) -> None:
        """Takes the next bytes.

        Raises:
            AvatarTooLarge: more than the limit.
            AvatarUndecodable, AvatarEmpty: it does not begin like anything that is accepted.
        """
        self._received += len(piece)
        if self._received > self._limit:
            raise AvatarTooLarge(
                f"{self._subject()} has more than {self._limit} bytes, the most that is allowed.", limit=self._limit
            )
        self._pending += piece
        if not self._kind_checked and len(self._pending) >= SNIFF_BYTES:
            self._check_kind()
        if len(self._pending) >= _BLOCK_BYTES:
            await self._flush()

    async def finish(self) -> tuple[Path, str]:
        """Keeps the file; returns its path and its sha256. Raises as `write` does."""
        if not self._kind_checked:
            self._check_kind()
        await self._flush()
        digest = self._digest.hexdigest()
        path = await asyncio.to_thread(self._cache.keep_source, self._file, digest)
        return path, digest

    @property
    def _file(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the writer is not entered")
        return self._folder / "source"

    async def _flush(self) -> None:
        block, self._pending = bytes(self._pending), bytearray()
        await asyncio.to_thread(self._append, block)

    def _append(self, block: bytes) -> None:
        self._digest.update(block)
        with self._file.open("ab") as file:
            file.write(block)

    def _check_kind(self) -> None:
        self._kind_checked = True
        kind = sniff(bytes(self._pending[:SNIFF_BYTES]))
        if kind is MediaKind.EMPTY:
            raise AvatarEmpty(f"{self._subject()} is empty (0 bytes).")
        if kind not in self._accepted:
            wanted = sorted(accepted.value for accepted in self._accepted)
            advice = " Export the video as MP4 (H.264)." if kind in VIDEOS_UNREAD else ""
            raise AvatarUndecodable(
                f"{self._subject()} looks like {kind.value}; expected is {', '.join(wanted[:-1])} or {wanted[-1]}.{advice}",
                value=kind.value,
            )

    def _subject(self) -> str:
        return self._name[0].upper() + self._name[1:]


_PORTS = {"http": 80, "https": 443}


@contextmanager
def address_errors() -> Iterator[None]:
    """Turns what `protocol.addresses` refuses into errors of avatars.

    Raises:
        AvatarUrlForbidden: the address may not be fetched from.
        AvatarFetchFailed: its host's name does not resolve.
    """
    try:
        yield
    except HostUnknown as error:
        raise AvatarFetchFailed(error.detail, value=error.value) from error
    except AddressRefused as error:
        raise AvatarUrlForbidden(error.detail, value=error.value) from error


def _target(url: str) -> Target:
    with address_errors():
        return parse(url, _PORTS)


Write = Callable[[bytes], Awaitable[None]]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = [(b"User-Agent", b"musetalk-livekit"), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]


class Fetcher:
    """Fetches files over http(s) within limits.

    Args:
        limits: bytes, seconds, redirects and least rate.
        allow_private: whether loopback and private addresses may be fetched from.
        resolver: how names are resolved.
        ssl_context: trust of https; by default the public authorities.
    """

    def __init__(
        self,
        limits: AvatarLimits,
        *,
        allow_private: bool = False,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._backend = _PinnedBackend(resolver, allow_private)
        self._ssl_context = ssl_context

    async def fetch(self, url: str, write: Write) -> None:
        """Fetches a file and hands its bytes to `write` as they come. Cancelling is safe and closes the connection.

        Raises:
            AvatarUrlForbidden: the address, or one it redirects to, may not be fetched.
            AvatarFetchFailed: no answer, an error, too slow, or less than was promised.
            AvatarTooLarge: more bytes than allowed are promised.
        """
        target = _target(url)
        if self._ssl_context is None:
            self._ssl_context = await asyncio.to_thread(httpcore.default_ssl_context)
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                await self._follow(target, url, write)
        except TimeoutError as error:
            raise AvatarFetchFailed(
                f"{target.host} did not deliver the file within {self._limits.fetch_seconds:g} s.",
                limit=self._limits.fetch_seconds,
            ) from error

    async def _follow(self, target: Target, url: str, write: Write) -> None:
        for _ in range(self._limits.fetch_redirects + 1):
            location = await self._hop(target, write)
            if location is None:
                return
            try:
                url = urljoin(url, location)
            except ValueError as error:
                raise AvatarUrlForbidden(f"{target.host} redirects to something that is no address.") from error
            target = _target(url)
        raise AvatarFetchFailed(
            f"{target.host} redirects more than {self._limits.fetch_redirects} times.",
            limit=self._limits.fetch_redirects,
        )

    async def _hop(self, target: Target, write: Write) -> str | None:
        """One request. Returns where it redirects to, or None when the body was handed over."""
        address = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        timeouts = {
            "connect": self._limits.fetch_connect_seconds,
            "pool": self._limits.fetch_connect_seconds,
            "write": self._limits.fetch_connect_seconds,
            "read": self._limits.fetch_silence_seconds,
        }
        pool = httpcore.AsyncConnectionPool(
            self._ssl_context, max_connections=1, max_keepalive_connections=0, network_backend=self._backend
        )
        try:
            async with (
                pool,
                pool.stream("GET", address, headers=_HEADERS, extensions={"timeout": timeouts}) as response,
            ):
                location = _header(response, b"location")
                if response.status in _REDIRECTS and location:
                    return location
                self._check_head(target, response)
                await self._body(target, response, write)
        except httpcore.TimeoutException as error:
            raise AvatarFetchFailed(f"{target.host} did not answer in time.", value=target.host) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise AvatarFetchFailed(_broken(target, error), value=target.host) from error
        return None

    def _check_head(self, target: Target, response: httpcore.Response) -> None:
        if response.status != 200:
            raise AvatarFetchFailed(
                f"{target.host} answered {response.status} instead of the file.", value=response.status
            )
        encoding = _header(response, b"content-encoding") or "identity"
        if encoding.strip().lower() != "identity":
            raise AvatarFetchFailed(
                f"{target.host} sends the file with Content-Encoding {encoding[:40]!r}, which was not asked for.",
                value=encoding[:40],
            )
        length = _header(response, b"content-length") or "0"
        if length.isdecimal() and int(length) > self._limits.source_bytes:
            raise AvatarTooLarge(
                f"The file at {target.host} has {length} bytes; at most {self._limits.source_bytes} are allowed.",
                limit=self._limits.source_bytes,
                value=int(length),
            )

    async def _body(self, target: Target, response: httpcore.Response, write: Write) -> None:
        clock = asyncio.get_running_loop().time
        begun, received = clock(), 0
        async for piece in response.aiter_stream():
            received += len(piece)
            elapsed = clock() - begun
            least = self._limits.fetch_bytes_per_second * elapsed
            if elapsed > self._limits.fetch_grace_seconds and received < least:
                raise AvatarFetchFailed(
                    f"{target.host} is too slow: {received} bytes in {elapsed:.0f} s; at least "
                    f"{self._limits.fetch_bytes_per_second} bytes per second are needed.",
                    limit=self._limits.fetch_bytes_per_second,
                )
            await write(piece)


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever the name says a moment later."""

    def __init__(self, resolver: Resolver, allow_private: bool) -> None:
        self._resolver = resolver
        self._allow_private = allow_private
        self._tcp = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with address_errors():
            addresses = await checked_addresses(host, port, self._resolver, allow_private=self._allow_private)
        failure: httpcore.NetworkError | httpcore.TimeoutException | None = None
        for address in addresses:
            try:
                return await self._tcp.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.NetworkError, httpcore.TimeoutException) as error:
                failure = error
        raise failure or httpcore.ConnectError(host)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("local sockets are never fetched from")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _header(response: httpcore.Response, name: bytes) -> str | None:
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


def _broken(target: Target, error: Exception) -> str:
    if isinstance(error, httpcore.ConnectError):
        return f"{target.host} cannot be connected to at port {target.port}."
    if isinstance(error, httpcore.RemoteProtocolError):
        return f"{target.host} sent less than it promised, or something that is not HTTP."
    return f"The connection to {target.host} broke."
