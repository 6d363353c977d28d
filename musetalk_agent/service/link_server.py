"""`WS /audio` of the agent: the orchestrator's items in, acknowledgements and events out. One connection a session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import WebSocket, WebSocketDisconnect

from musetalk_agent.media.playout import VoiceTiming
from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.session.link import ConnectionLost
from musetalk_agent.session.session import Session

log = logging.getLogger(__name__)

ACK_PERIOD_S = 0.1
"""What an orchestrator that loses the agent does not know of what was heard."""
_SEND_TIMEOUT_S = 5.0  # an orchestrator that reads nothing for this long has lost its connection
_CLOSE_TIMEOUT_S = 1.0


@dataclass
class _Connection:
    task: asyncio.Task[None]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """It takes no more items; its socket may still be closing."""


class LinkServer:
    """Serves connections one after the other; a new one takes over from the old.

    Args:
        draining: whether the agent asks that its sessions be moved elsewhere.
    """

    def __init__(self, draining: Callable[[], bool]) -> None:
        self._draining = draining
        self._current: dict[str, _Connection] = {}

    @property
    def empty(self) -> bool:
        """No link is open."""
        return not self._current

    async def serve(self, socket: WebSocket, session: Session, events_after: int) -> None:
        """Runs until the orchestrator leaves, the session is over, or a newer connection takes over."""
        task = asyncio.current_task()
        assert task is not None
        older, connection = self._current.get(session.id), _Connection(task)
        self._current[session.id] = connection
        try:
            if older is not None:
                older.task.cancel()
                await older.over.wait()
            await socket.accept()
            await self._converse(socket, session, events_after)
        except asyncio.CancelledError:
            connection.over.set()
            if self._current.get(session.id) is connection:
                raise
            await self._close(socket, m.CLOSE_POLICY, m.TAKEN_OVER)
        finally:
            connection.over.set()
            if self._current.get(session.id) is connection:
                del self._current[session.id]

    async def _converse(self, socket: WebSocket, session: Session, events_after: int) -> None:
        try:
            await self._send(socket, _hello(session))
            async with asyncio.TaskGroup() as group:
                receiving = session.receiver.read(socket.receive, session.ended, session.events.changed.set)
                reading = group.create_task(receiving, name="link-read")
                writing = group.create_task(self._write(socket, session, events_after), name="link-write")
                done, _ = await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
                for other in {reading, writing} - done:
                    other.cancel()
        except* ConnectionLost as errors:
            log.info("link lost", extra={"session_id": session.id, "reason": str(errors.exceptions[0])})
        except* ProblemError as errors:
            error = errors.exceptions[0]
            log.warning("link refused", extra={"session_id": session.id, "error": str(error)})
            await self._close(socket, m.CLOSE_POLICY, str(error))
        except* Exception as errors:  # task boundary: a fault of ours, and an item half taken must not come again
            log.exception("link failed", extra={"session_id": session.id})
            session.break_off(ProblemError(ErrorCode.INTERNAL, "The agent broke on an item; its log has the details."))
            await self._close(socket, m.CLOSE_INTERNAL, type(errors.exceptions[0]).__name__)
        else:
            await self._close(socket, m.CLOSE_GOING_AWAY)

    async def _write(self, socket: WebSocket, session: Session, events_after: int) -> None:
        """Sends events as they happen, and an acknowledgement every 100 ms while items come or audio is played."""
        outbox, sent = session.events, None
        while True:
            outbox.changed.clear()
            for event in outbox.after(events_after):
                await self._send(socket, event)
                events_after = event.id
            for due in outbox.due.take():
                await self._send(socket, _voice(due, session.pipeline.clock.now()))
            ack = _ack(session, draining=self._draining())
            if sent is None or _differs(ack, sent):
                sent = ack
                await self._send(socket, ack)
            if session.ended.is_set() and not outbox.after(events_after):
                return
            try:
                async with asyncio.timeout(ACK_PERIOD_S):
                    await outbox.changed.wait()
            except TimeoutError:
                continue

    async def _send(self, socket: WebSocket, message: m.AgentMessage) -> None:
        text = message.model_dump_json(exclude_none=True)
        try:
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await socket.send_text(text)
        except (
            WebSocketDisconnect,
            RuntimeError,
            OSError,
            TimeoutError,
        ) as error:  # RuntimeError: Starlette's, as above
            raise ConnectionLost(f"{type(error).__name__}: {error}") from error

    async def _close(self, socket: WebSocket, code: int, reason: str = "") -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await socket.close(code, reason[:120])
        except (WebSocketDisconnect, RuntimeError, OSError, TimeoutError) as error:
            log.debug("link was closed already, or its peer reads nothing", extra={"error": str(error)})


def _hello(session: Session) -> m.LinkHello:
    inbox = session.receiver
    return m.LinkHello(
        items=inbox.items,
        segments=inbox.segments,
        received_samples=inbox.received_samples,
        events=session.events.numbered,
    )


def _ack(session: Session, *, draining: bool) -> m.LinkAck:
    playback = session.pipeline.player
    segment, heard_s = playback.heard
    return m.LinkAck(
        items=session.receiver.items,
        position_s=round(playback.position_s, 3),
        buffered_s=round(playback.buffered_s, 3),
        segment=segment,
        heard_s=round(heard_s, 3),
        frames=session.publisher.state.published_frames,
        draining=draining,
        resting=playback.resting,
    )


def _differs(ack: m.LinkAck, sent: m.LinkAck) -> bool:
    """Frames alone are news only while speech waits: they are then the agent's sign of life."""
    return (ack if ack.buffered_s else ack.model_copy(update={"frames": sent.frames})) != sent


def _voice(due: VoiceTiming, now: float) -> m.LinkVoice:
    return m.LinkVoice(segment=due.segment, heard_s=round(due.heard_s, 4), in_s=round(due.at - now, 4), held=due.held)
