"""The WebSocket from a session to its agent. `LinkCore` has its rules without I/O: numbering, replay after a drop, events once.

Everything that goes to the agent is an *item*. Items are numbered from 1 in the order they are sent and kept until the agent
acknowledges them; after a drop the agent reports how many it has taken and the rest goes out again. Events of the agent are
numbered too: those seen before are dropped, a missing one is an error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlencode

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from musetalk_agent.protocol.messages import (
    CLOSE_GOING_AWAY,
    CLOSE_POLICY,
    TAKEN_OVER,
    AgentMessage,
    Event,
    LinkAck,
    LinkEvent,
    LinkHello,
    LinkVoice,
    agent_message,
)
from orchestrator.agents.agent_client import AgentLease
from orchestrator.audio.outgoing_segment import LinkMessage
from orchestrator.metrics import Metrics

WINDOW_S = 2.0
"""Unacknowledged seconds of audio at which the link takes no more PCM: the most that a clear can wait behind.

The agent acknowledges each large item at once, so that a round trip of 100 ms still carries twenty times real time.
"""
WINDOW_BYTES = 1 << 20
WINDOW_ITEMS = 2048
Pull = Callable[[float, float, bool], LinkMessage | None]
"""Gives the next message for the agent; None when there is none now.

Called with the monotonic time (s), the seconds of speech that are on their way to the agent or wait there, and whether only a
control message, which does not wait for the window, may be given.
"""


class LinkLost(Exception):
    """The link will not come back; the message says why."""


class LinkDesync(LinkLost):
    """The agent's counts cannot belong to this session: it lost its state, or broke the protocol."""


class LinkCore:
    """Counts of one session's link. Not thread-safe, no I/O; `connected()` begins every connection."""

    def __init__(self) -> None:
        self._unacked: deque[LinkMessage] = deque()
        self._acked = 0
        self._cursor = 0
        self._bytes = 0
        self._seconds = 0.0
        self._buffered_s = self._buffered_at = 0.0
        self.events_seen = 0

    @property
    def pushed(self) -> int:
        """Items numbered so far."""
        return self._acked + len(self._unacked)

    def outstanding_s(self, now: float) -> float:
        """Seconds of audio that the agent has not acknowledged, or holds and has not played."""
        return self._seconds + max(0.0, self._buffered_s - (now - self._buffered_at))

    @property
    def unacked(self) -> bool:
        """Whether the agent has not acknowledged everything."""
        return bool(self._unacked)

    def adopt(self, items: int, events_seen: int) -> None:
        """Another orchestrator had this session before: it sent `items`, its sender got the events so far."""
        self._acked = self._cursor = items
        self.events_seen = events_seen

    def next_item(self, pull: Pull, now: float) -> LinkMessage | None:
        """The next item to send on this connection: one that goes out again, else a new one from `pull`. It counts as sent, and is
        kept until it is acknowledged.
        """
        again = self._cursor - self._acked
        item: LinkMessage | None
        if again < len(self._unacked):
            item = self._unacked[again]
        else:
            full = self._seconds >= WINDOW_S or self._bytes >= WINDOW_BYTES or again >= WINDOW_ITEMS
            buffered_s = max(0.0, self._buffered_s - (now - self._buffered_at))
            item = pull(now, self._seconds + buffered_s, full)
            if item is None:
                return None
            self._unacked.append(item)
            self._bytes += len(item.payload)
            self._seconds += item.seconds
        self._cursor += 1
        return item

    def connected(self, items: int) -> None:
        """A new connection whose agent has taken `items`. Raises LinkDesync when that cannot be."""
        if not self._acked <= items <= self.pushed:
            raise LinkDesync(f"the agent has taken {items} items, {self._acked} to {self.pushed} were expected")
        self._cursor = items
        self._forget(items)

    def acked(self, items: int, buffered_s: float = 0.0, now: float = 0.0) -> None:
        """The agent has taken `items` and has `buffered_s` seconds of speech to play. Raises LinkDesync for items never sent; an
        older count is ignored.
        """
        if items > self._cursor:
            raise LinkDesync(f"the agent acknowledges {items} items, {self._cursor} were sent")
        self._forget(items)
        self._buffered_s, self._buffered_at = buffered_s, now

    def is_new(self, event_id: int) -> bool:
        """Whether this event was not seen before; it counts as seen. Raises LinkDesync when one before it is missing."""
        if event_id <= self.events_seen:
            return False
        if event_id != self.events_seen + 1:
            raise LinkDesync(f"event {event_id} came after event {self.events_seen}")
        self.events_seen = event_id
        return True

    def _forget(self, items: int) -> None:
        while self._acked < items:
            item = self._unacked.popleft()
            self._acked += 1
            self._bytes -= len(item.payload)
            self._seconds = self._seconds - item.seconds if self._unacked else 0.0


_FIRST_DELAY_S = 0.1
_LAST_DELAY_S = 2.0
_SETTLED_S = 1.0
"""A connection that held this long is worth another at once: every tenth of a second away can be heard."""
GIVE_UP_S = 1.5
"""How long an agent may stay away before the session moves to another one: a mere drop is over in a tenth of a second."""
REFUSALS = 2
"""Connections refused in a row after which the agent's process is gone."""
OPEN_S = 5.0
"""How long the first connection may take; an agent that hangs lets a later one wait for `_REOPEN_S`."""
_REOPEN_S = 2.5
_PING_S = 5.0
_MAX_MESSAGE = 1 << 20
_log = logging.getLogger(__name__)


class LinkTaken(LinkLost):
    """Another link was made for the session: another orchestrator has it."""


class LinkOver(Exception):
    """The agent says that the session is over, or knows of none. `at` is the monotonic time at which it was there last."""

    at = float("-inf")


@dataclass(frozen=True)
class LinkPeer:
    """Where a link's messages come from and go to. All are called on the event loop and must not block."""

    pull: Pull
    on_event: Callable[[Event], None]
    on_ack: Callable[[LinkAck], None] | None = None
    on_voice: Callable[[LinkVoice], None] | None = None
    on_hello: Callable[[LinkHello], None] | None = None


class AgentLink:
    """One session's link. `run()` keeps it up until it is cancelled, lost or over; `wake()` says that items may be waiting.

    Args:
        give_up_s: how long the agent may stay away, once it was there.
        open_s: how long it may take to be there for the first time.
        adopt_after: for a session that another orchestrator began: the last event of the agent that the sender got. What
            the agent has taken is then where the items begin.

    Attributes:
        up: set while the agent is there.
    """

    def __init__(
        self,
        lease: AgentLease,
        session_id: str,
        peer: LinkPeer,
        metrics: Metrics,
        *,
        give_up_s: float = GIVE_UP_S,
        open_s: float = OPEN_S,
        adopt_after: int | None = None,
    ) -> None:
        self._lease = lease
        self.session_id = session_id
        self._peer = peer
        self._metrics = metrics
        self._give_up_s = give_up_s
        self._open_s = open_s
        self._adopting = adopt_after is not None
        self._core = LinkCore()
        self._core.events_seen = adopt_after or 0
        self._wake = asyncio.Event()
        self.wake: Callable[[], None] = self._wake.set
        """To be called when there may be something to send."""
        self.up = asyncio.Event()
        self._up_at = 0.0
        self._was_up = False
        self._socket: ClientConnection | None = None
        self.lost_at = time.monotonic()
        self.drops = 0

    @property
    def connected(self) -> bool:
        """Whether the agent is there now."""
        return self.up.is_set()

    @property
    def unacked(self) -> bool:
        """Whether items are on their way that the agent has not acknowledged."""
        return self._core.unacked

    @property
    def delay_s(self) -> float:
        """Half the round-trip time of the last ping; 0 without a connection."""
        return self._socket.latency / 2 if self._socket is not None else 0.0

    @property
    def events_seen(self) -> int:
        """Events of the agent so far."""
        return self._core.events_seen

    def outstanding_s(self, now: float) -> float:
        """Seconds of speech on their way to the agent or waiting there to be heard."""
        return self._core.outstanding_s(now)

    async def run(self) -> None:
        """Connects, and reconnects with back-off. Cancelling closes the connection.

        Raises LinkLost when the agent stayed away for too long, refuses connections or has forgotten what it took; LinkOver when
        it has ended the session or knows of none. `lost_at` is when it was there last.
        """
        delay, refusals = _FIRST_DELAY_S, 0
        while True:
            reason = "the agent closed the connection"
            try:
                await self._connection()
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake) as error:
                reason = _judge(error)
                refusals = refusals + 1 if isinstance(error, ConnectionRefusedError) else 0
            finally:
                if self.up.is_set():
                    self.up.clear()
                    self.drops += 1
                    refusals = 0
                    self._metrics.link_drops.inc()
                    self.lost_at = time.monotonic()
                    delay = 0.0 if self.lost_at - self._up_at > _SETTLED_S else _FIRST_DELAY_S
            self._give_up(reason, refusals)
            _log.info("agent link down", extra={"session_id": self.session_id, "reason": reason})
            await asyncio.sleep(delay)
            delay = min(_LAST_DELAY_S, max(_FIRST_DELAY_S, 2 * delay))

    def _give_up(self, reason: str, refusals: int) -> None:
        if refusals >= REFUSALS and self._was_up:
            raise LinkLost("the agent refuses connections: its process is gone")
        patience_s = self._give_up_s if self._was_up else self._open_s
        if time.monotonic() - self.lost_at > patience_s:
            raise LinkLost(f"no connection to the agent for {patience_s:g} s ({reason})")

    async def _connection(self) -> None:
        open_s = _REOPEN_S if self._was_up else self._open_s
        query = urlencode({"session_id": self.session_id, "events_after": self._core.events_seen})
        async with connect(
            f"{self._lease.audio_url}?{query}",
            additional_headers=dict(self._lease.headers),
            compression=None,
            max_size=_MAX_MESSAGE,
            open_timeout=open_s,
            ping_interval=_PING_S,
            ping_timeout=_PING_S,
            close_timeout=1.0,
            proxy=None,
        ) as socket:
            async with asyncio.timeout(open_s):
                hello = _read(await socket.recv())
            if not isinstance(hello, LinkHello):
                raise LinkLost("the agent did not begin with link.hello")
            if self._adopting:
                self._core.adopt(hello.items, self._core.events_seen)
                self._adopting = False
            self._core.connected(hello.items)
            self._metrics.link_connects.inc()
            self._was_up, self._up_at = True, time.monotonic()
            self.up.set()
            if self._peer.on_hello is not None:
                self._peer.on_hello(hello)
            self._socket = socket
            writer = asyncio.create_task(self._write(socket), name=f"link-write-{self.session_id}")
            writer.add_done_callback(partial(_written, socket))  # it ends by an error or with us
            try:
                async for message in socket:
                    self._take(message)
                if socket.close_code == CLOSE_GOING_AWAY:
                    raise LinkOver("the agent ended the session")
            finally:
                self._socket = None
                writer.cancel()
                await asyncio.wait(
                    {writer}
                )  # not `await writer`: its cancellation would look like ours, and ours like its
                if not writer.cancelled() and not isinstance(writer.exception(), ConnectionClosed | None):
                    writer.result()

    async def _write(self, socket: ClientConnection) -> None:
        while True:
            self._wake.clear()
            while (item := self._core.next_item(self._peer.pull, time.monotonic())) is not None:
                await socket.send(item.payload)
            await self._wake.wait()

    def _take(self, message: str | bytes) -> None:
        received = _read(message)
        if isinstance(received, LinkAck):
            self._core.acked(received.items, received.buffered_s, time.monotonic())
            if self._peer.on_ack is not None:
                self._peer.on_ack(received)
            self._wake.set()
        elif isinstance(received, LinkEvent):
            if self._core.is_new(received.id):
                self._peer.on_event(received.event)
        elif isinstance(received, LinkVoice) and self._peer.on_voice is not None:
            self._peer.on_voice(received)


def _written(socket: ClientConnection, writer: asyncio.Task[None]) -> None:
    """The writer has ended, and with it the connection. Its error may not be awaited any more."""
    socket.transport.abort()
    if not writer.cancelled():
        writer.exception()


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
        kind = LinkTaken if error.rcvd.reason == TAKEN_OVER else LinkLost
        raise kind(f"the agent refused the link: {error.rcvd.reason}") from error
    return type(error).__name__
