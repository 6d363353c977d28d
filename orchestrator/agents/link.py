"""The persistent WebSocket from a session to its agent: `LinkCore` with sockets around it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlencode

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.messages import (
    CLOSE_GOING_AWAY,
    CLOSE_POLICY,
    AgentMessage,
    Event,
    LinkAck,
    LinkEvent,
    LinkHello,
    agent_message,
)
from orchestrator.agents.client import AgentLease
from orchestrator.agents.link_core import LinkCore, LinkDesync
from orchestrator.audio.items import LinkItem
from orchestrator.metrics import Metrics

_FIRST_DELAY_S = 0.1
_LAST_DELAY_S = 2.0
_SETTLED_S = 1.0
"""A connection that held this long is worth another at once: every tenth of a second away can be heard."""
GIVE_UP_S = 20.0
"""How long an agent may stay away: a hard-killed one leaves the room by LiveKit's own time-outs after 15 to 20 s."""
_OPEN_TIMEOUT_S = 5.0
_PING_S = 5.0
_MAX_MESSAGE = 1 << 20
_log = logging.getLogger(__name__)


class LinkLost(Exception):
    """The link will not come back; the message says why."""


class LinkOver(Exception):
    """The agent says that the session is over."""


@dataclass(frozen=True)
class LinkPeer:
    """What the link serves: where items come from and where events go. All are called on the event loop and must not block."""

    next_item: Callable[[], LinkItem | None]
    on_event: Callable[[Event], None]


class AgentLink:
    """One session's link. `run()` keeps it up until it is cancelled, lost or over; `wake()` says that items may be waiting."""

    def __init__(
        self, lease: AgentLease, session_id: str, peer: LinkPeer, metrics: Metrics, *, give_up_s: float = GIVE_UP_S
    ) -> None:
        self._lease = lease
        self._session_id = session_id
        self._peer = peer
        self._metrics = metrics
        self._give_up_s = give_up_s
        self._core = LinkCore()
        self._wake = asyncio.Event()
        self._up = asyncio.Event()
        self._up_at = 0.0
        self._buffered = (0.0, 0.0)
        self.position_s = 0.0
        self.drops = 0

    @property
    def connected(self) -> bool:
        """Whether the agent is there now."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Returns once the agent has said hello. Cancelling is harmless."""
        await self._up.wait()

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def outstanding_s(self, now: float) -> float:
        """Seconds of speech on their way to the agent or waiting there to be heard."""
        buffered, at = self._buffered
        return self._core.unacked_s + max(0.0, buffered - (now - at))

    async def run(self) -> None:
        """Connects, and reconnects with back-off. Cancelling closes the connection.

        Raises LinkLost when the agent stayed away for too long or has forgotten the session, LinkOver when it ended it.
        """
        delay, lost_at = _FIRST_DELAY_S, time.monotonic()
        while True:
            reason = "the agent closed the connection"
            try:
                await self._connection()
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                reason = _judge(error)
            finally:
                if self._up.is_set():
                    self._up.clear()
                    self.drops += 1
                    self._metrics.link_drops.inc()
                    now = time.monotonic()
                    delay = 0.0 if now - self._up_at > _SETTLED_S else _FIRST_DELAY_S
                    lost_at = now
            if time.monotonic() - lost_at > self._give_up_s:
                raise LinkLost(f"no connection to the agent for {self._give_up_s:g} s ({reason})")
            _log.info("agent link down", extra={"session_id": self._session_id, "reason": reason})
            await asyncio.sleep(delay)
            delay = min(_LAST_DELAY_S, max(_FIRST_DELAY_S, 2 * delay))

    async def _connection(self) -> None:
        query = urlencode({"session_id": self._session_id, "events_after": self._core.events_seen})
        async with connect(
            f"{self._lease.audio_url}?{query}",
            additional_headers=dict(self._lease.headers),
            compression=None,
            max_size=_MAX_MESSAGE,
            open_timeout=_OPEN_TIMEOUT_S,
            ping_interval=_PING_S,
            ping_timeout=_PING_S,
            close_timeout=1.0,
            proxy=None,
        ) as socket:
            async with asyncio.timeout(_OPEN_TIMEOUT_S):
                hello = _read(await socket.recv())
            if not isinstance(hello, LinkHello):
                raise LinkLost("the agent did not begin with link.hello")
            self._sync(lambda: self._core.connected(hello.items))
            self._metrics.link_connects.inc()
            self._up.set()
            self._up_at = time.monotonic()
            writer = asyncio.create_task(self._write(socket), name=f"link-write-{self._session_id}")
            writer.add_done_callback(lambda _: socket.transport.abort())  # it ends by an error or with us
            try:
                async for message in socket:
                    self._take(message)
                if socket.close_code == CLOSE_GOING_AWAY:
                    raise LinkOver("the agent ended the session")
            finally:
                writer.cancel()
                with suppress(asyncio.CancelledError, ConnectionClosed):
                    await writer

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            self._wake.clear()
            while (item := self._next()) is not None:
                await socket.send(item.payload)
            await self._wake.wait()

    def _next(self) -> LinkItem | None:
        item = self._core.next_item()
        if item is None and self._core.window_open:
            fresh = self._peer.next_item()
            if fresh is not None:
                self._core.push(fresh)
                item = self._core.next_item()
        return item

    def _take(self, message: str | bytes) -> None:
        told = _read(message)
        if isinstance(told, LinkAck):
            self._sync(lambda: self._core.acked(told.items))
            self._buffered = (told.buffered_s, time.monotonic())
            self.position_s = told.position_s
            self._wake.set()
        elif isinstance(told, LinkEvent):
            if self._sync(lambda: self._core.is_new(told.id)):
                self._peer.on_event(told.event)

    def _sync(self, step: Callable[[], bool | None]) -> bool | None:
        try:
            return step()
        except LinkDesync as error:
            raise LinkLost(str(error)) from error


def _read(message: str | bytes) -> AgentMessage:
    try:
        return agent_message.validate_json(message)
    except ValidationError as error:
        raise LinkLost("the agent sent a message that is not the protocol's") from error


def _judge(error: Exception) -> str:
    """Why a connection ended; raises when there is no use in another."""
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status in (401, 403):
            raise LinkLost("the agent refuses our key") from error
        if status in (404, 409, 422):
            raise LinkOver("the agent has no such session any more") from error
        return f"HTTP {status}"
    if isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code == CLOSE_POLICY:
        raise LinkLost(f"the agent refused the link: {error.rcvd.reason}") from error
    return type(error).__name__
