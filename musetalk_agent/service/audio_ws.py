"""`WS /audio` of the agent: the orchestrator's items in, acknowledgements and events out. One connection a session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fastapi import WebSocket, WebSocketDisconnect

from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.session import Session
from musetalk_agent.sync.due import Due

log = logging.getLogger(__name__)

ACK_PERIOD_S = 0.1
"""What an orchestrator that loses the agent does not know of what was heard."""
_SEND_TIMEOUT_S = 5.0  # an orchestrator that reads nothing for this long has lost its connection


class LinkServer:
    """Serves connections one after the other; a new one takes over from the old.

    Args:
        draining: whether the agent asks that its sessions be moved elsewhere.
    """

    def __init__(self, draining: Callable[[], bool]) -> None:
        self._draining = draining
        self._current: dict[str, asyncio.Task[None]] = {}

    @property
    def empty(self) -> bool:
        """No link is open."""
        return not self._current

    async def serve(self, socket: WebSocket, session: Session, events_after: int) -> None:
        """Runs until the orchestrator leaves, the session is over, or a newer connection takes over."""
        task = asyncio.current_task()
        assert task is not None
        older = self._current.get(session.id)
        self._current[session.id] = task
        if older is not None:
            older.cancel()
            await asyncio.gather(older, return_exceptions=True)
        await socket.accept()
        try:
            await self._converse(socket, session, events_after)
        except asyncio.CancelledError:
            if self._current.get(session.id) is task:
                raise
            await self._close(socket, m.CLOSE_POLICY, m.TAKEN_OVER)
        finally:
            if self._current.get(session.id) is task:
                del self._current[session.id]

    async def _converse(self, socket: WebSocket, session: Session, events_after: int) -> None:
        try:
            await self._send(socket, _hello(session))
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(socket, session), name="link-read")
                telling = group.create_task(self._tell(socket, session, events_after), name="link-tell")
                done, _ = await asyncio.wait({reading, telling}, return_when=asyncio.FIRST_COMPLETED)
                for other in {reading, telling} - done:
                    other.cancel()
        except* (WebSocketDisconnect, RuntimeError, TimeoutError):
            log.info("link lost", extra={"session_id": session.id})
        except* ProblemError as errors:
            error = errors.exceptions[0]
            log.warning("link refused", extra={"session_id": session.id, "error": str(error)})
            await self._close(socket, m.CLOSE_POLICY, str(error))
        else:
            await self._close(socket, m.CLOSE_GOING_AWAY)

    async def _read(self, socket: WebSocket, session: Session) -> None:
        while not session.ended.is_set():
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1006))
            item = message.get("bytes")
            if item is None:
                item = message.get("text")
            if item is None:
                raise ProblemError(ErrorCode.INVALID_MESSAGE, "an empty WebSocket message")
            session.take(item)

    async def _tell(self, socket: WebSocket, session: Session, events_after: int) -> None:
        """Events as they happen, and an acknowledgement every 100 ms while items come or sound is played."""
        outbox, told = session.outbox, None
        while True:
            outbox.changed.clear()
            for event in outbox.after(events_after):
                await self._send(socket, event)
                events_after = event.id
            for due in outbox.due.take():
                await self._send(socket, _voice(due, session.pipeline.clock.now()))
            ack = _ack(session, draining=self._draining())
            if told is None or _differs(ack, told):
                told = ack
                await self._send(socket, ack)
            if session.ended.is_set() and not outbox.after(events_after):
                return
            try:
                async with asyncio.timeout(ACK_PERIOD_S):
                    await outbox.changed.wait()
            except TimeoutError:
                continue

    async def _send(self, socket: WebSocket, message: m.AgentMessage) -> None:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await socket.send_text(message.model_dump_json())

    async def _close(self, socket: WebSocket, code: int, reason: str = "") -> None:
        try:
            await socket.close(code, reason[:120])
        except RuntimeError:
            log.debug("link was closed already")


def _hello(session: Session) -> m.LinkHello:
    inbox = session.inbox
    return m.LinkHello(
        items=inbox.items,
        segments=inbox.segments,
        received_samples=inbox.received_samples,
        events=session.outbox.numbered,
    )


def _ack(session: Session, *, draining: bool) -> m.LinkAck:
    playback = session.pipeline.playback
    segment, heard_s = playback.heard
    return m.LinkAck(
        items=session.inbox.items,
        position_s=round(playback.position_s, 3),
        buffered_s=round(playback.buffered_s, 3),
        segment=segment,
        heard_s=round(heard_s, 3),
        frames=session.publisher.state.published_frames,
        draining=draining,
    )


def _differs(ack: m.LinkAck, told: m.LinkAck) -> bool:
    """Pictures alone are news only while speech waits: they are then the agent's sign of life."""
    return (ack if ack.buffered_s else ack.model_copy(update={"frames": told.frames})) != told


def _voice(due: Due, now: float) -> m.LinkVoice:
    return m.LinkVoice(segment=due.segment, heard_s=round(due.heard_s, 4), in_s=round(due.at - now, 4), held=due.held)
