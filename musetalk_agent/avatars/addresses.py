"""Which addresses avatars may be fetched from: `protocol.addresses` with the errors of avatars."""

from __future__ import annotations

from collections.abc import Mapping

from musetalk_agent.errors import AvatarFetchFailed, AvatarUrlForbidden
from musetalk_agent.protocol import addresses
from musetalk_agent.protocol.addresses import AddressRefused, HostUnknown, Resolver, Target, system_resolver

__all__ = ["Resolver", "Target", "checked_addresses", "parse", "system_resolver"]
_PORTS = {"http": 80, "https": 443}


def parse(url: str, ports: Mapping[str, int] = _PORTS) -> Target:
    """Takes a URL apart and refuses what is never fetched. `ports` are the schemes allowed, with their usual ports.

    Raises:
        AvatarUrlForbidden: not of these schemes, no host, credentials in it, or a number that is no plain address.
    """
    try:
        return addresses.parse(url, ports)
    except AddressRefused as error:
        raise AvatarUrlForbidden(error.detail, value=error.value) from error


async def checked_addresses(host: str, port: int, resolver: Resolver, *, allow_private: bool) -> list[str]:
    """Addresses of a host, each of them checked. The caller connects to one of these and never asks for the name again.

    Raises:
        AvatarUrlForbidden: any of them is not public (or private, where that is allowed).
        AvatarFetchFailed: the name does not resolve.
    """
    try:
        return await addresses.checked_addresses(host, port, resolver, allow_private=allow_private)
    except HostUnknown as error:
        raise AvatarFetchFailed(error.detail, value=error.value) from error
    except AddressRefused as error:
        raise AvatarUrlForbidden(error.detail, value=error.value) from error
