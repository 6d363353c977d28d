"""Whether LiveKit can be reached from this machine: its address, its keys, and a room with its media, as the agent joins one."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

import httpx

from musetalk_agent.checks import Check

_ANSWER_S = 5.0
JOIN_S = 20.0
"""A join through open UDP takes well under a second; through TCP alone some seconds."""
_WHAT = "LiveKit"


@dataclass(frozen=True, slots=True)
class LiveKitAddress:
    """The server, and the keys to join it with where they are known."""

    url: str
    api_key: str = ""
    api_secret: str = field(default="", repr=False)


async def check_livekit(server: LiveKitAddress, within_s: float = JOIN_S) -> Check:
    """Asks the server, and joins a room of a random name where there are keys. Never raises; when it is cancelled, the join ends in
    the background."""
    if not server.url:
        cure = "set LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET for this command, and it joins a room"
        return Check(_WHAT, "not tried: LIVEKIT_URL is not set", cure, needed=False)
    if not server.url.startswith(("ws://", "wss://", "http://", "https://")):
        return Check(_WHAT, f"LIVEKIT_URL is {server.url!r}", "give an address that begins with ws:// or wss://")
    address = server.url.replace("ws", "http", 1) if server.url.startswith("ws") else server.url
    try:
        async with httpx.AsyncClient(timeout=_ANSWER_S) as http:
            answer = await http.get(address)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        said = str(error).strip() or type(error).__name__
        return Check(
            _WHAT, f"{server.url} does not answer ({said})", "check LIVEKIT_URL, its name, port and TLS, and firewalls"
        )
    if answer.status_code >= 500:
        return Check(_WHAT, f"{server.url} answers {answer.status_code}", "look whether livekit-server runs behind it")
    if not (server.api_key and server.api_secret):
        cure = "set LIVEKIT_API_KEY and LIVEKIT_API_SECRET for this command, and it joins a room"
        return Check(_WHAT, f"{server.url} answers; no room was joined", cure, needed=False)
    return await _joined(server, within_s)


async def _joined(server: LiveKitAddress, within_s: float) -> Check:
    from livekit import api, rtc

    from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors, without_tokens
    from musetalk_agent.publishers.livekit.detached_connect import abandon, leave

    name = f"doctor-{secrets.token_hex(4)}"
    grants = api.VideoGrants(room_join=True, room=name)
    token = api.AccessToken(server.api_key, server.api_secret).with_identity(name).with_grants(grants).to_jwt()
    room, loop = rtc.Room(), asyncio.get_running_loop()
    begun = loop.time()
    connecting = asyncio.create_task(room.connect(server.url, token), name="doctor-join")
    try:
        done, _ = await asyncio.wait({connecting}, timeout=within_s)
    except asyncio.CancelledError:
        abandon(room, connecting)  # a join must not be cancelled
        raise
    if not done:
        abandon(room, connecting)
        found = f"{server.url} takes the call, and no media connection came about within {within_s:g} s"
        return Check(_WHAT, found, "open UDP to the server's rtc ports (7882, or 50000-60000), or its TCP port 7881")
    took = loop.time() - begun
    try:
        with sdk_errors():
            connecting.result()
            await asyncio.wait_for(leave(room), _ANSWER_S)
    except (SdkError, TimeoutError) as error:
        said = without_tokens(str(error).partition("\n")[0]) or type(error).__name__
        return Check(
            _WHAT, f"{server.url} lets no participant join ({said})", "check LIVEKIT_API_KEY and LIVEKIT_API_SECRET"
        )
    return Check(_WHAT, f"{server.url}: joined a room in {took:.2f} s", figures={"join_s": round(took, 3)})
