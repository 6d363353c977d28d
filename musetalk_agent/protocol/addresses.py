"""Protection against SSRF: which addresses a service may connect to when a stranger named them, and the look-up of their names.
Standard library only.

Guards against a URL that reaches what only this machine can see. Look-ups run in threads of their own, so that a name server that
does not answer delays no other look-up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

THREADS = 32
"""Look-ups that may be under way, all together."""
THREADS_PER_DOMAIN = 2
"""Those of one domain: the last two labels of a name."""
WAITING = 1024
"""Names that may wait for a thread; past it a look-up fails at once."""
WITHIN_S = 5.0
"""Longest wait for one look-up. It goes on in its thread, and who asks for the same name meanwhile waits for it too."""
_Name = tuple[str, int]
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[list[str]]"]


class NameResolver:
    """A `Resolver`. One for each process; may be used from several event loops."""

    def __init__(
        self, threads: int = THREADS, per_domain: int = THREADS_PER_DOMAIN, within_s: float = WITHIN_S
    ) -> None:
        self._threads, self._per_domain, self._within_s = threads, per_domain, within_s
        self._lock = threading.Lock()
        self._running: dict[_Name, list[_Waiter]] = {}
        self._waiting: dict[_Name, list[_Waiter]] = {}  # in the order in which they came

    @property
    def running(self) -> int:
        """Look-ups under way."""
        return len(self._running)

    async def __call__(self, host: str, port: int) -> list[str]:
        """Addresses of the host as text. Raises OSError when there are none, when it takes too long, or when too many wait already.

        Cancelling gives up the waiting; a look-up under way ends by itself.
        """
        answer = self._ask((host, port), asyncio.get_running_loop())
        async with asyncio.timeout(self._within_s):
            return await answer

    def _ask(self, wanted: _Name, loop: asyncio.AbstractEventLoop) -> asyncio.Future[list[str]]:
        answer: asyncio.Future[list[str]] = loop.create_future()
        with self._lock:
            for known in (self._running, self._waiting):
                if wanted in known:
                    known[wanted].append((loop, answer))
                    return answer
            if len(self._waiting) >= WAITING:
                raise OSError(f"{WAITING} look-ups wait already")
            self._waiting[wanted] = [(loop, answer)]
            self._begin()
        return answer

    def _begin(self) -> None:
        """Gives threads to those who wait and may have one. The lock is held."""
        for wanted in list(self._waiting):
            if all(answer.done() for _, answer in self._waiting[wanted]):
                del self._waiting[wanted]  # all of them have given up
                continue
            if len(self._running) >= self._threads:
                return
            if sum(_domain(host) == _domain(wanted[0]) for host, _ in self._running) < self._per_domain:
                self._running[wanted] = self._waiting.pop(wanted)
                try:
                    threading.Thread(target=self._look_up, args=(wanted,), name="resolver", daemon=True).start()
                except RuntimeError:  # the machine has no more threads; those who wait give up at their deadline
                    del self._running[wanted]

    def _look_up(self, wanted: _Name) -> None:
        found: list[str] = []
        failure: OSError | None = OSError("the look-up broke")
        try:
            entries = socket.getaddrinfo(*wanted, type=socket.SOCK_STREAM)
            found, failure = list(dict.fromkeys(str(entry[4][0]) for entry in entries)), None
        except OSError as error:
            failure = error
        except (ValueError, OverflowError) as error:  # a host that IDNA refuses or that has a NUL, a port out of range
            failure = OSError(f"{type(error).__name__}: {error}")
        finally:  # those who wait are answered whatever broke
            with self._lock:
                waiters = self._running.pop(wanted)
                self._begin()
            for loop, answer in waiters:
                with suppress(RuntimeError):  # its event loop has ended
                    loop.call_soon_threadsafe(_set_answer, answer, found, failure)


def _set_answer(answer: asyncio.Future[list[str]], found: list[str], failure: Exception | None) -> None:
    if answer.done():
        return
    if failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(found)


def _domain(host: str) -> str:
    return ".".join(host.lower().rstrip(".").split(".")[-2:])


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Addresses (as text) of a host name at a port; raises OSError when there are none."""

_ENDS_IN_NUMBER = re.compile(r"(^|\.)([0-9]+|0[xX][0-9a-fA-F]*)\.?$")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:.]*:[0-9a-f:.]*")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
"""What different parsers read differently: controls, backslashes."""
_PATH_SAFE = "%/:=&?~+!$,;'@()*[]|"
_PRIVATE = tuple(
    ipaddress.ip_network(block)
    for block in ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
"""Loopback, RFC 1918 and RFC 4193: what `allow_private` opens, and nothing else."""
_METADATA = tuple(
    ipaddress.ip_network(block)
    for block in (
        "169.254.0.0/16",
        "fe80::/10",
        "fd00:ec2::/32",
        "fd20:ce::/32",
        "168.63.129.16/32",
        "100.100.100.200/32",
    )
)
"""Link-local, and where clouds hand out credentials: AWS, Google, Azure, Alibaba. Never connected to."""
_RESERVED = tuple(
    ipaddress.ip_network(block)
    for block in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4")
)
"""Special blocks (RFC 6890) of which some Python versions hold parts to be global."""
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(Exception):
    """An address that is not connected to. `detail` is a sentence, `value` the part at fault, without anything secret."""

    def __init__(self, detail: str, value: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.value = value


class HostUnknown(AddressRefused):
    """The host's name leads nowhere."""


@dataclass(frozen=True, slots=True)
class Target:
    """An address taken apart. `host` is without brackets, in ASCII; `path` has the query with it."""

    scheme: str
    host: str
    port: int
    path: str


def parse(url: str, ports: Mapping[str, int]) -> Target:
    """Takes a URL apart and refuses what is never connected to. `ports` are the schemes allowed, with their usual ports.

    Raises:
        AddressRefused: not of these schemes, no host, credentials in it, or a number that is no plain address.
    """
    schemes = " and ".join(f"{scheme}://" for scheme in ports)
    url = url.strip()
    try:
        if _FORBIDDEN.search(url):
            raise ValueError
        parts = urlsplit(url)
        host, given_port = _ascii(parts.hostname or ""), parts.port
    except ValueError:
        raise AddressRefused(f"This is not a valid address; only {schemes} are allowed.") from None
    if parts.scheme not in ports:
        named = f"{parts.scheme[:20]}:" if parts.scheme else "a relative path"
        raise AddressRefused(f"Only {schemes} are allowed, not {named}.", parts.scheme[:20])
    if not host:
        raise AddressRefused("The address names no host.")
    port = ports[parts.scheme] if given_port is None else given_port
    if not _HOST.fullmatch(host) or not 0 < port < 65_536:
        raise AddressRefused("The address has an impossible host name or port.", host[:80])
    if "@" in parts.netloc:
        raise AddressRefused(f"The address of {host} carries a user name; use a signed address instead.", host)
    if ":" not in host and _ENDS_IN_NUMBER.search(host) and literal(host) is None:
        raise AddressRefused(f"{host} is not a plain IPv4 address (four decimal numbers).", host)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port, quote(path, safe=_PATH_SAFE))


def _ascii(host: str) -> str:
    """As names are asked for. Raises ValueError for one that is only another spelling of an ASCII name, or of a number."""
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
        if "xn--" not in host:
            raise ValueError
    return host.rstrip(".").lower()


system_resolver: Resolver = NameResolver()
"""Asks the operating system, within 5 s, in threads that strangers' names have for themselves."""


async def checked_addresses(host: str, port: int, resolver: Resolver, *, allow_private: bool) -> list[str]:
    """Addresses of a host, each of them checked. The caller connects to one of these and never asks for the name again.

    Raises:
        AddressRefused: any of them is not public (or private, where that is allowed).
        HostUnknown: the name does not resolve.
    """
    written = literal(host)
    if written is not None:
        found = [written]
    else:
        try:
            found = [ipaddress.ip_address(text) for text in await resolver(host, port)]
        except (OSError, ValueError) as error:
            raise HostUnknown(f"The host {host} is not known.", host) from error
    if not found:
        raise HostUnknown(f"The host {host} has no address.", host)
    for address in found:
        if not permitted(address, allow_private=allow_private):
            raise AddressRefused(
                f"{host} is at a private, local or reserved address, which is not connected to"
                + ("." if allow_private else " (ALLOW_PRIVATE_URLS opens loopback and private ones)."),
                host,
            )
    return [str(address) for address in found]


def literal(host: str) -> Address | None:
    """The address that is written out, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def permitted(address: Address, *, allow_private: bool) -> bool:
    """Whether this address, and every IPv4 address that travels inside it, may be connected to."""
    return all(_allowed(one, allow_private) for one in _meant(address))


def _meant(address: Address) -> list[Address]:
    meant = [address]
    if isinstance(address, ipaddress.IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        compatible = int(address) >> 32 == 0 and not (address.is_loopback or address.is_unspecified)
        if address in _NAT64 or compatible:
            inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address.ipv4_mapped is not None:
            meant = []
        meant += [one for one in inner if one is not None]
    return meant


def _allowed(address: Address, allow_private: bool) -> bool:
    if any(address in block for block in _METADATA if block.version == address.version):
        return False
    if any(address in block for block in _PRIVATE if block.version == address.version):
        return allow_private
    if any(address in block for block in _RESERVED if block.version == address.version):
        return False
    if address.version == 6 and address not in _GLOBAL_V6 and address not in _NAT64:
        return False
    return address.is_global and not (address.is_multicast or address.is_unspecified)
