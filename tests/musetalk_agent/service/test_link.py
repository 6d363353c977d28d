"""The agent's side of the inner link: whose connection a session has, what a broken one costs, and when it acknowledges."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import websockets

from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.service import link_server
from musetalk_agent.service.link_server import LinkServer
from musetalk_agent.session.link import ACK_BYTES, EventLog, LinkReceiver
from tests.musetalk_agent.service.served import agent
from tests.musetalk_agent.stand import tone
from tests.waiting import NEVER_S


class Socket:
    """A connection in the hands of the test: what it receives, and where it gets stuck."""

    def __init__(self, *, accept_fails: bool = False, close_hangs: bool = False, send_fails: bool = False) -> None:
        self._accept_fails, self._close_hangs, self._send_fails = accept_fails, close_hangs, send_fails
        self.accepted, self.closing = asyncio.Event(), asyncio.Event()
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.closed: tuple[int, str] | None = None

    async def accept(self) -> None:
        if self._accept_fails:
            raise OSError("the client is gone")
        self.accepted.set()

    async def receive(self) -> dict[str, Any]:
        return await self.incoming.get()

    async def send_text(self, text: str) -> None:
        if self._send_fails:
            raise RuntimeError('Cannot call "send" once a close message has been sent.')
        self.sent.append(json.loads(text))

    async def close(self, code: int, reason: str = "") -> None:
        self.closing.set()
        if self._close_hangs:
            await asyncio.Event().wait()
        self.closed = (code, reason)


class Receiver(LinkReceiver):
    """Reads as the real one does, and fails with `error` at the first item."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(None, 1, 25, print)  # type: ignore[arg-type]  # nothing is handed on
        self._error = error

    def take(self, item: str | bytes) -> None:
        if self._error is not None:
            raise self._error


class LinkSession:
    """What a link needs of a session, without media."""

    id = "s"
    pipeline = SimpleNamespace(player=SimpleNamespace(heard=(0, 0.0), position_s=0.0, buffered_s=0.0, resting=False))
    publisher = SimpleNamespace(state=SimpleNamespace(published_frames=0))

    def __init__(self, fails_with: Exception | None = None) -> None:
        self.events, self.ended = EventLog(), asyncio.Event()
        self.broken: ProblemError | None = None
        self.receiver = Receiver(fails_with)

    def break_off(self, error: ProblemError) -> None:
        self.broken = error


def served(links: LinkServer, socket: Socket, session: LinkSession) -> asyncio.Task[None]:
    return asyncio.create_task(links.serve(socket, session, 0))  # type: ignore[arg-type]  # what `serve` uses of both


async def ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_connection_that_is_never_accepted_leaves_no_entry() -> None:
    links = LinkServer(lambda: False)
    task = served(links, Socket(accept_fails=True), LinkSession())
    await asyncio.wait({task})
    assert isinstance(task.exception(), OSError)
    assert links.empty


async def test_a_newer_connection_does_not_wait_for_the_close_of_the_older_one() -> None:
    session, links = LinkSession(), LinkServer(lambda: False)
    sockets = [Socket(close_hangs=True), Socket(), Socket()]
    tasks = []
    for socket in sockets:
        tasks.append(served(links, socket, session))
        await asyncio.wait_for(socket.accepted.wait(), NEVER_S)
    await asyncio.wait({tasks[1]}, timeout=NEVER_S)
    assert sockets[1].closed == (m.CLOSE_POLICY, m.TAKEN_OVER) and sockets[0].closing.is_set()
    assert sockets[2].closed is None and not links.empty
    sockets[2].incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await asyncio.wait_for(asyncio.gather(*tasks), NEVER_S)
    assert links.empty


async def test_a_connection_that_breaks_under_a_send_is_lost_and_the_session_waits_for_the_next() -> None:
    session, links = LinkSession(), LinkServer(lambda: False)
    await asyncio.wait_for(served(links, Socket(send_fails=True), session), NEVER_S)
    assert session.broken is None and links.empty
    again = Socket()
    task = served(links, again, session)
    await asyncio.wait_for(again.accepted.wait(), NEVER_S)
    await ended(task)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TimeoutError(), KeyError("a bug")])
async def test_a_fault_of_ours_fails_the_session_and_never_passes_for_a_lost_connection(error: Exception) -> None:
    session, links, socket = LinkSession(fails_with=error), LinkServer(lambda: False), Socket()
    socket.incoming.put_nowait({"type": "websocket.receive", "bytes": bytes(640)})
    await asyncio.wait_for(served(links, socket, session), NEVER_S)
    assert isinstance(session.broken, ProblemError) and session.broken.code is ErrorCode.INTERNAL
    assert socket.closed == (m.CLOSE_INTERNAL, type(error).__name__)


async def test_a_large_item_is_acknowledged_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The orchestrator sends no more than 2 s ahead of acknowledgements."""
    monkeypatch.setattr(link_server, "ACK_PERIOD_S", 3600)
    async with agent(tmp_path) as here:
        await here.start()
        async with here.link() as socket:
            await socket.send('{"type":"segment.start","segment":1,"sample_rate":16000}')
            pcm = tone(1.0).tobytes()
            assert len(pcm) >= ACK_BYTES
            for count in range(2, 42):
                await socket.send(pcm)
                await acknowledged(socket, count)


async def acknowledged(socket: websockets.ClientConnection, items: int) -> None:
    async with asyncio.timeout(NEVER_S):
        while True:
            message = json.loads(await socket.recv())
            if message["type"] == "link.ack" and message["items"] >= items:
                return
