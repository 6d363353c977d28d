"""Which addresses may be fetched from: the guard against a stranger's URL reaching what only this machine can see."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx

from musetalk_agent.errors import AvatarFetchFailed, AvatarUrlForbidden

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]
"""Addresses (as text) of a host name at a port; raises OSError when there are none."""

_PORTS = {"http": 80, "https": 443}
_ENDS_IN_NUMBER = re.compile(r"(^|\.)([0-9]+|0[xX][0-9a-fA-F]*)\.?$")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*|[0-9a-f:.]*:[0-9a-f:.]*")
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
"""Link-local, and where clouds hand out credentials: AWS, Google, Azure, Alibaba. Never fetched."""
_RESERVED = tuple(
    ipaddress.ip_network(block)
    for block in ("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4")
)
"""Special blocks (RFC 6890) of which some Python versions hold parts to be global."""
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Target:
    """An address taken apart. `host` is without brackets, in ASCII; `path` has the query with it."""

    scheme: str
    host: str
    port: int
    path: str


def parse(url: str, ports: Mapping[str, int] = _PORTS) -> Target:
    """Takes a URL apart and refuses what is never connected to. `ports` are the schemes allowed, with their usual ports.

    Raises:
        AvatarUrlForbidden: not of these schemes, no host, credentials in it, or a number that is no plain address.
    """
    schemes = " and ".join(f"{scheme}://" for scheme in ports)
    try:
        parts = httpx.URL(url.strip())
        host = parts.raw_host.decode("ascii").strip("[]").rstrip(".").lower()
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError) as error:
        raise AvatarUrlForbidden(f"This is not a valid address; only {schemes} are allowed.") from error
    if parts.scheme not in ports:
        raise AvatarUrlForbidden(
            f"Only {schemes} are allowed, not {parts.scheme[:20] + ':' if parts.scheme else 'a relative path'}.",
            value=parts.scheme[:20],
        )
    if not host:
        raise AvatarUrlForbidden("The address names no host.")
    port = parts.port or ports[parts.scheme]
    if not _HOST.fullmatch(host) or not 0 < port < 65_536:
        raise AvatarUrlForbidden("The address has an impossible host name or port.", value=host[:80])
    if parts.userinfo:
        raise AvatarUrlForbidden(
            f"The address of {host} carries a user name; use a signed address instead.", value=host
        )
    if ":" not in host and _ENDS_IN_NUMBER.search(host) and _literal(host) is None:
        raise AvatarUrlForbidden(f"{host} is not a plain IPv4 address (four decimal numbers).", value=host)
    return Target(parts.scheme, host, port, parts.raw_path.decode("ascii"))


async def system_resolver(host: str, port: int) -> list[str]:
    """Asks the operating system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def checked_addresses(host: str, port: int, resolver: Resolver, *, allow_private: bool) -> list[str]:
    """Addresses of a host, each of them checked. The caller connects to one of these and never asks for the name again.

    Raises:
        AvatarUrlForbidden: any of them is not public (or private, where that is allowed).
        AvatarFetchFailed: the name does not resolve.
    """
    literal = _literal(host)
    if literal is not None:
        found = [literal]
    else:
        try:
            found = [ipaddress.ip_address(text) for text in await resolver(host, port)]
        except (OSError, ValueError, UnicodeError) as error:
            raise AvatarFetchFailed(f"The host {host} is not known.", value=host) from error
    if not found:
        raise AvatarFetchFailed(f"The host {host} has no address.", value=host)
    for address in found:
        if not all(_allowed(one, allow_private) for one in _meant(address)):
            raise AvatarUrlForbidden(
                f"{host} is at a private, local or reserved address, which is not fetched"
                + ("." if allow_private else " (--allow-private-urls opens loopback and private ones)."),
                value=host,
            )
    return [str(address) for address in found]


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _meant(address: Address) -> list[Address]:
    """The address and every IPv4 address that travels inside it."""
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
