"""`audio-link.js` against a server that cuts the connection: every sample arrives once, in order, between its marks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.browser.chromium import Page
from tests.waiting import NEVER_S

pytestmark = pytest.mark.browser

OPEN = """(async () => {
  const { AudioLink } = await import('/avatar-client.js');
  globalThis.alive = null;
  globalThis.asked = 0;
  const options = {isAlive: async () => { asked += 1; return alive; }, ...%s};
  globalThis.link = new AudioLink(%r, options);
  globalThis.seen = [];
  for (const type of ['hello', 'playback.started', 'error', 'state'])
    link.addEventListener(type, (event) => seen.push([type, event.detail]));
  link.open();
})()"""
TALK = """(async () => {
  link.start();
  for (let at = 0; at < %d; at += 320) {
    if (!link.push(Int16Array.from({length: 320}, (_, k) => (at + k) %% 32000))) return at;
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
  link.end();
  return null;
})()"""


@pytest.fixture
def page(unseen_page: Page) -> Page:
    """Nothing here is looked at."""
    return unseen_page


class Session:
    """A session's side of `/audio`, which cuts the line at given samples, each time as if the last message were lost."""

    def __init__(self, cuts: list[int], received: int = 0) -> None:
        self.cuts = cuts
        self.received = received
        self.pcm: list[np.ndarray[Any, Any]] = []
        self.marks: list[tuple[str, int]] = []
        self.connections = 0
        self.refuses = False
        self.mute = False  # accepts, and says nothing: no greeting, no pong
        self.ended = asyncio.Event()

    async def serve(self, socket: ServerConnection) -> None:
        self.connections += 1
        if self.refuses:
            socket.transport.abort()
            return
        if self.mute:
            await socket.wait_closed()
            return
        hello = {"type": "hello", "protocol": 1, "session_id": "s", "received_samples": self.received}
        limits = {"message_bytes": 65536, "backlog_s": 30, "bytes_per_s": 10**6}
        await socket.send(json.dumps({**hello, "sample_rate": 16000, "limits": limits}))
        try:
            async for message in socket:
                if isinstance(message, str):
                    await self._text(socket, json.loads(message)["type"])
                elif self._cut():
                    socket.transport.abort()
                    return
                else:
                    self.pcm.append(np.frombuffer(message, np.int16))
                    self.received += len(self.pcm[-1])
                    if len(self.pcm) % 10 == 0:
                        await socket.send(json.dumps({"type": "ack", "received_samples": self.received}))
        except ConnectionClosed:
            pass

    async def _text(self, socket: ServerConnection, kind: str) -> None:
        if kind == "ping" and self.mute:
            return
        if kind == "ping":
            await socket.send('{"type": "pong"}')
            return
        self.marks.append((kind, self.received))
        if kind == "audio.end":
            self.ended.set()

    def _cut(self) -> bool:
        if self.cuts and self.received >= self.cuts[0]:
            self.cuts.pop(0)
            return True
        return False


@asynccontextmanager
async def linked(page: Page, web: str, session: Session, options: str = "{}") -> AsyncIterator[None]:
    """A page with a link to the session, after its first `hello`. `alive` answers whether the session is still there."""
    async with serve(session.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await page.open(f"{web}/LICENSE-of-nothing")
        await page.run(OPEN % (options, f"ws://127.0.0.1:{port}/audio"))
        await page.until("seen.some(([type]) => type === 'hello')")
        yield


async def test_resumes_after_cuts(page: Page, web: str) -> None:
    session = Session(cuts=[3200, 9600, 9920, 30_000], received=5_000)
    session.cuts = [cut + 5_000 for cut in session.cuts]
    async with linked(page, web, session):
        assert await page.run(TALK % 48_000) is None
        await asyncio.wait_for(session.ended.wait(), NEVER_S)
    assert session.connections == 5
    assert np.array_equal(np.concatenate(session.pcm), np.arange(48_000) % 32_000)
    assert session.marks[0] == ("audio.start", 5_000)
    assert session.marks[-1] == ("audio.end", 53_000)
    assert len(session.marks) == 2  # no mark is reported again once it was answered


async def test_refuses_what_it_cannot_keep(page: Page, web: str) -> None:
    session = Session(cuts=[])
    async with linked(page, web, session):
        session.refuses = True
        await page.run("link.backlogS = 1, link.socket.close()")
        await page.until("link.state === 'reconnecting'")
        assert await page.run(TALK % 48_000) == 16_000


async def test_stays_away_when_another_took_over(page: Page, web: str) -> None:
    class Taken(Session):
        async def _text(self, socket: ServerConnection, kind: str) -> None:
            await socket.send(json.dumps({"type": "error", "code": "replaced", "message": "Another sender took over."}))
            await socket.close(1008)

    session = Taken(cuts=[])
    async with linked(page, web, session, QUICK % (60, 5)):
        await page.run("link.start()")
        await page.until("link.state === 'closed'")
        await page.run("new Promise((done) => setTimeout(done, 200))")  # ten times the wait before another try
        assert session.connections == 1
        errors = await page.run("seen.filter(([type]) => type === 'error').map(([, detail]) => detail.code)")
        assert errors == ["replaced"]
        await page.run("link.open()")  # talking again takes the line back
        await page.until("link.state === 'open'")


QUICK = "{schedule: {first_s: 0.02, factor: 1, longest_s: 0.02, total_s: %s}, silenceS: %s}"
CODES = "seen.filter(([type]) => type === 'error').map(([, detail]) => detail.code)"


async def test_a_line_whose_pongs_stay_away_is_opened_again(page: Page, web: str) -> None:
    session = Session(cuts=[])
    async with linked(page, web, session, QUICK % (60, 0.3)):
        session.mute = True
        await page.run("link.push(Int16Array.from({length: 320})), link.start()")  # a mark is followed by a ping
        await page.until("link.state === 'reconnecting'")
        await page.until("link.attempts >= 2")  # nor does the next connection greet
        session.mute = False
        await page.until("link.state === 'open'")
        await page.run("link.push(Int16Array.from({length: 320})), link.end()")
        await asyncio.wait_for(session.ended.wait(), NEVER_S)
    assert session.received == 640  # what was sent before is not sent twice


async def test_gives_up_after_its_time_and_says_so(page: Page, web: str) -> None:
    session = Session(cuts=[])
    async with linked(page, web, session, QUICK % (0.5, 5)):
        session.refuses = True
        await page.run("link.socket.close()")
        await page.until("link.state === 'closed'")
        assert await page.run(CODES) == ["network"]
        assert session.connections > 3
        assert await page.run("asked") >= 2  # early, and at the end


async def test_goes_on_as_long_as_the_session_lives(page: Page, web: str) -> None:
    session = Session(cuts=[])
    async with linked(page, web, session, QUICK % (0.2, 5)):
        session.refuses = True
        await page.run("alive = true, link.socket.close()")
        await page.until("asked >= 6")  # several times of 0.2 s are over
        assert await page.run("link.state") == "reconnecting" and await page.run(CODES) == []
        session.refuses = False
        await page.until("link.state === 'open'")


async def test_ends_at_once_when_the_session_is_over(page: Page, web: str) -> None:
    session = Session(cuts=[])
    async with linked(page, web, session, QUICK % (600, 5)):
        session.refuses = True
        await page.run("alive = false, link.socket.close()")
        await page.until("link.state === 'closed'")
        assert await page.run(CODES) == ["session_ended"]


async def test_names_the_last_event_and_dispatches_none_twice(page: Page, web: str) -> None:
    class Telling(Session):
        paths: list[str]

        async def serve(self, socket: ServerConnection) -> None:
            assert socket.request is not None
            self.paths.append(socket.request.path)
            for number in range(1, len(self.paths) + 2):  # the first connection lost the last one
                await socket.send(json.dumps({"type": "playback.started", "id": 1000 + number, "segment": number}))
            await super().serve(socket)

    session = Telling(cuts=[])
    session.paths = []
    async with linked(page, web, session):
        await page.run("link.socket.close()")
        await page.until("seen.filter(([type]) => type === 'hello').length === 2")
        segments = await page.run("seen.filter(([type]) => type === 'playback.started').map(([, d]) => d.segment)")
    assert segments == [1, 2, 3]
    assert [path.partition("&last_event_id=")[2] for path in session.paths] == ["", "1002"]
