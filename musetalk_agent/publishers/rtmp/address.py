"""Parses and checks the address of an RTMP server, by the rules of avatars' addresses; its stream key is a secret.

The host's name is resolved once, here. Everything later connects to one of the checked addresses and never asks for the name
again; for rtmps the certificate is nevertheless checked against the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from musetalk_agent.errors import RtmpUrlForbidden
from musetalk_agent.protocol.addresses import AddressRefused, Resolver, checked_addresses, parse, system_resolver

PORTS: Mapping[str, int] = {"rtmp": 1935, "rtmps": 443}
_HOST = re.compile(r"(?:[\w.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?")
"""A name or an address, perhaps with a port. What else stands there may be a part of the key or of a password."""


@dataclass(frozen=True, slots=True)
class RtmpAddress:
    """A checked target. `addresses` are those of `host`, in the order to try them; `key` is the path after the application."""

    scheme: str
    host: str
    port: int
    app: str
    key: str = field(repr=False)
    addresses: tuple[str, ...]

    @property
    def tls(self) -> bool:
        """The connection is encrypted, and the certificate is for `host`."""
        return self.scheme == "rtmps"

    @property
    def tc_url(self) -> str:
        """The address as the server receives it: the URL without the key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}/{self.app}"

    def __str__(self) -> str:
        return f"{self.tc_url}/…"


def redact(url: str) -> str:
    """The URL without what may be secret: scheme, host and port, for logs and errors."""
    scheme, separator, rest = url.partition("://")
    host = rest.partition("/")[0].partition("?")[0].rpartition("@")[2]
    return f"{scheme[:8]}://{host}/…" if separator and _HOST.fullmatch(host) else "…"


async def check_rtmp(url: str, allow_private: bool, resolver: Resolver = system_resolver) -> RtmpAddress:
    """Takes an RTMP address apart, resolves its host and checks where it is. Cancelling is safe.

    As in FFmpeg, the application is the first part of the path, or the first two where there are three or more.

    Raises:
        RtmpUrlForbidden: another scheme, a user name in it, no stream key, a host that is not known or may not be reached.
    """
    try:
        target = parse(url, PORTS)
        parts = target.path.lstrip("/").split("/")
        split = 2 if len(parts) > 2 else 1
        app, key = "/".join(parts[:split]), "/".join(parts[split:])
        if not app or not key:
            raise RtmpUrlForbidden(
                f"The RTMP address of {target.host} needs an application and a stream key: rtmp://host/app/key.",
                value=target.host,
            )
        addresses = await checked_addresses(target.host, target.port, resolver, allow_private=allow_private)
    except AddressRefused as error:
        raise RtmpUrlForbidden(error.detail, value=error.value) from error
    return RtmpAddress(target.scheme, target.host, target.port, app, key, tuple(addresses))
