"""`WS /audio` of the agent: the orchestrator's items in, acknowledgements and events out. One connection a session."""

from __future__ import annotations

import asyncio
import logging

from fastapi import WebSocket, WebSocketDisconnect

from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.session import Session

log = logging.getLogger(__name__)

ACK_PERIOD_S = 0.2
_SEND_TIMEOUT_S = 5.0  # an orchestrator that reads nothing for this long has lost its connection


class LinkServer:
    """Serves connections one after the other; a new one takes over from the old."""

    def __init__(self) -> None:
        self._current: dict[str, asyncio.Task[None]] = {}

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
            await self._close(socket, m.CLOSE_POLICY)  # taken over by a newer connection
        finally:
            if self._current.get(session.id) is task:
                del self._current[session.id]

    async def _converse(self, socket: WebSocket, session: Session, events_after: int) -> None:
        try:
            await socket.send_text(m.LinkHello(items=session.items).model_dump_json())
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
        """Events as they happen, and an acknowledgement every 200 ms while items come or sound is played."""
        told_items, told_position = -1, -1.0
        while True:
            session.outbox.changed.clear()
            for event in session.outbox.after(events_after):
                await self._send(socket, event.model_dump_json())
                events_after = event.id
            playback = session.pipeline.playback
            position = round(playback.position_s, 3)
            if session.items != told_items or position != told_position:
                told_items, told_position = session.items, position
                buffered = round(playback.buffered_s, 3)
                ack = m.LinkAck(items=told_items, position_s=position, buffered_s=buffered)
                await self._send(socket, ack.model_dump_json())
            if session.ended.is_set() and not session.outbox.after(events_after):
                return
            try:
                async with asyncio.timeout(ACK_PERIOD_S):
                    await session.outbox.changed.wait()
            except TimeoutError:
                continue

    async def _send(self, socket: WebSocket, text: str) -> None:
        async with asyncio.timeout(_SEND_TIMEOUT_S):
            await socket.send_text(text)

    async def _close(self, socket: WebSocket, code: int, reason: str = "") -> None:
        try:
            await socket.close(code, reason[:120])
        except RuntimeError:
            log.debug("link was closed already")
