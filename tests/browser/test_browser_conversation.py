"""The client's parts of a conversation by themselves, in a real Chromium: lines from words and events in any order, the event
stream over connections that end, and why there is no microphone.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.browser.chromium import Page
from tests.fakes.serving import plain_config, serving

pytestmark = pytest.mark.browser

ROOM = """(async () => {
  const { Conversation } = await import('/avatar.js');
  const listeners = new Map();
  const worker = {identity: 'conversation-ses_1', kind: 4, attributes: {}};
  globalThis.listeners = listeners;
  globalThis.room = {
    state: 'connected',
    localParticipant: {identity: 'me'},
    remoteParticipants: new Map([['avatar-ses_1', {identity: 'avatar-ses_1', kind: 4, attributes: {}}]]),
    on: (name, listener) => listeners.set(name, listener),
    off: (name) => listeners.delete(name),
    registerTextStreamHandler: (topic, handler) => (room.handler = handler),
    unregisterTextStreamHandler: () => (room.handler = null),
  };
  globalThis.conversation = new Conversation({session_id: 'ses_1', avatar_identity: 'avatar-ses_1'});
  globalThis.states = [];
  conversation.addEventListener('state', ({detail}) => states.push(detail));
  conversation.attach(room);
  globalThis.say = async (identity, id, text, attributes = {'lk.transcription_final': 'true'}) => {
    const info = {id: 'stream', attributes: {'lk.segment_id': id, ...attributes}};
    room.handler({info, async *[Symbol.asyncIterator]() { yield text; }}, {identity});
    await new Promise((resolve) => setTimeout(resolve));
  };
  globalThis.worker = (state) => {
    if (state === null) room.remoteParticipants.delete(worker.identity);
    else room.remoteParticipants.set(worker.identity, {...worker, attributes: {'lk.agent.state': state}});
    if (state === null) listeners.get('participantDisconnected')(worker);
    else listeners.get('participantAttributesChanged')({}, worker);
  };
  globalThis.event = (type, data) => conversation.handle(type, data);
  globalThis.lines = () => conversation.messages.map((m) => [m.role, m.text, m.final, m.interrupted, m.typed]);
})()"""
FOLLOW = """(async () => {
  const { AvatarClient } = await import('/avatar.js');
  globalThis.taken = [];
  globalThis.ended = null;
  globalThis.stop = new AbortController();
  const client = new AvatarClient({baseUrl: %r, token: 'a-key'});
  (async () => { for await (const event of client.events('ses_1', {signal: stop.signal})) taken.push(event.id); })()
    .then(() => (globalThis.ended = 'over'), (error) => (globalThis.ended = error.code));
})()"""


@pytest.fixture
def page(unseen_page: Page) -> Page:
    """Nothing here is looked at."""
    return unseen_page


async def test_lines_are_whole_in_whatever_order_words_and_events_come(page: Page, web: str) -> None:
    await page.open(f"{web}/favicon.svg")
    await page.run(ROOM)
    user, avatar = "'me'", "'conversation-ses_1'"
    unfinished = "{'lk.transcription_final': 'false'}"
    await page.run(f"say({user}, 'u1', 'What is', {unfinished})")
    assert await page.run("lines()") == [["user", "What is", False, False, False]]
    await page.run(f"say({user}, 'u1', 'What is this?')")
    await page.run(f"say({avatar}, 'r1', 'It is a')")
    await page.run("event('reply.finished', {text: 'It is a', interrupted: true})")
    await page.run(f"say({avatar}, 'r1', 'It is a test')")  # too late: what was heard is known
    assert await page.run("lines()") == [
        ["user", "What is this?", True, False, False],
        ["assistant", "It is a", True, True, False],
    ]
    await page.run("conversation.typed('msg_1', 'Go on.')")
    await page.run("event('user.transcript', {text: 'Go on.', final: true, message_id: 'msg_1'})")
    await page.run("event('user.transcript', {text: 'Spoken.', final: true})")  # comes through the room
    await page.run("event('user.transcript', {text: 'By another.', final: true, message_id: 'msg_2'})")
    await page.run("event('reply.finished', {text: 'All of it at once.', interrupted: false})")
    await page.run(f"say({avatar}, 'r2', 'All of')")  # its first word comes after its end was reported
    await page.run("say('avatar-ses_1', 'r3', 'Lost with its process')")
    await page.run(f"say({avatar}, 'r4', 'Here again.')")
    await page.run("event('reply.finished', {text: 'Here again.', interrupted: false})")
    await page.run("say('somebody-elses-agent', 'x', 'Nothing of ours.')")
    assert (await page.run("lines()"))[2:] == [
        ["user", "Go on.", True, False, True],
        ["user", "By another.", True, False, True],
        ["assistant", "All of it at once.", True, False, False],
        ["assistant", "Lost with its process", True, False, False],
        ["assistant", "Here again.", True, False, False],
    ]
    await page.run("conversation.close()")
    assert await page.run("room.handler") is None


async def test_states_follow_the_worker_and_its_loss(page: Page, web: str) -> None:
    await page.open(f"{web}/favicon.svg")
    await page.run(ROOM)
    assert await page.run("conversation.state") == "starting"
    for state in ("initializing", "listening", "thinking", "speaking"):
        await page.run(f"worker('{state}')")
    await page.run("event('conversation.state', {state: 'away'})")  # the room still shows the one that was killed
    await page.run("worker('listening')")
    await page.run("listeners.get('reconnected')()")  # nothing changed meanwhile
    await page.run("worker(null)")
    await page.run("worker('initializing')")
    assert await page.run("states") == [
        "listening",
        "thinking",
        "speaking",
        "away",
        "listening",
        "away",
        "starting",
    ]


async def test_events_come_once_over_connections_that_end(page: Page, web: str) -> None:
    asked: list[tuple[str, str | None]] = []
    held = asyncio.Event()

    def event(number: int, state: str = "ready") -> str:
        body = {"id": number, "type": "session.state", "data": {"state": state}}
        return f"id: {number}\nevent: session.state\ndata: {json.dumps(body)}\n\n"

    async def stream(last: int) -> Any:
        yield "retry: 1000\n\n: a comment\n\n"
        if last == 0:
            yield event(1)
            yield event(2)[:20]  # cut within an event
        elif last == 1:
            yield event(2)
            yield event(3)
        else:
            await held.wait()
            yield event(4, "stopped")

    async def events(request: Request) -> Response:
        asked.append((request.headers["authorization"], request.headers.get("last-event-id")))
        if len(asked) == 2:
            return JSONResponse({"code": "draining", "detail": "wait"}, 503)
        return StreamingResponse(stream(int(asked[-1][1] or 0)), media_type="text/event-stream")

    door = Middleware(CORSMiddleware, allow_origins=["*"], allow_headers=["*"])
    app = Starlette(routes=[Route("/session/ses_1/events", events)], middleware=[door])
    async with serving(plain_config(app)) as url:
        await page.open(f"{web}/favicon.svg")
        await page.run(FOLLOW % url)
        await page.until("taken.length === 3")
        held.set()
        await page.until("ended")
        assert await page.run("[taken, ended]") == [[1, 2, 3, 4], "over"]
    assert asked == [("Bearer a-key", last) for last in (None, "1", "1", "3")]


MICROPHONE_ERRORS = (
    ("NotAllowedError", "microphone_forbidden", "Allow it in the address bar"),
    ("NotFoundError", "microphone_missing", "Plug one in"),
    ("NotReadableError", "microphone_busy", "in use by another program"),
    ("OverconstrainedError", "microphone_failed", "(OverconstrainedError)"),
)


async def test_an_error_of_the_microphone_is_a_sentence(page: Page, web: str) -> None:
    await page.open(f"{web}/favicon.svg")
    for name, code, words in MICROPHONE_ERRORS:
        got = await page.run(f"""(async () => {{
          const {{ RoomMicrophone }} = await import('/avatar.js');
          navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('no', '{name}'); }};
          const microphone = new RoomMicrophone({{state: 'disconnected'}});
          return microphone.open().catch((error) => [error.code, error.message, microphone.state]);
        }})()""")
        assert got[0] == code and words in got[1] and got[2] == "off", name


async def test_a_microphone_that_comes_too_late_is_given_back(page: Page, web: str) -> None:
    await page.open(f"{web}/favicon.svg")
    got = await page.run("""(async () => {
      const { RoomMicrophone } = await import('/avatar.js');
      const track = new (class extends EventTarget { stop() { this.stopped = true; } })();
      let permit;
      navigator.mediaDevices.getUserMedia = () =>
        new Promise((resolve) => (permit = () => resolve({getAudioTracks: () => [track]})));
      const microphone = new RoomMicrophone({state: 'disconnected'});
      const opening = microphone.open().catch((error) => error.code);
      microphone.close();
      permit();
      return [await opening, track.stopped, microphone.state, microphone.track];
    })()""")
    assert got == ["cancelled", True, "off", None]
