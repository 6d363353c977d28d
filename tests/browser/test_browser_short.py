"""The page in short, in a real Chromium before the real stack. `make test-network` has more of it."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.conversation.conversations import find_python
from tests.browser.chromium import Page
from tests.browser.conftest import Stack
from tests.browser.talking import LINES, RATE, REPLIES, SPOKEN, STATE, TRACKS, agree, given_back, write
from tests.browser.test_browser_page import LIVE, SAID, STATUSES, clean, session_id, stopped, text
from tests.fakes.openai_models import FakeModels
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.livekit, pytest.mark.voice]
LONG = " ".join(["And then the cat went on to the next house, and looked in at every window."] * 4)
REFUSED = """globalThis.allowed = globalThis.granted;
globalThis.granted = async () => { throw new DOMException('no', 'NotAllowedError'); };"""


# `make test` brings the environment; a bare `pytest` may lack it
@pytest.mark.skipif(find_python() is None, reason="no environment for conversations: run `tools/setup conversation`")
async def test_what_is_written_and_said_is_shown_and_answered(
    page: Page, stack: Stack, fake: FakeModels, speech: NDArray[np.int16]
) -> None:
    fake.replies = [LONG, "My name is Ada."]
    spoken = SPOKEN % (RATE, base64.b64encode(speech.tobytes()).decode())
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=TRACKS + spoken + REFUSED)
    await page.size(920, 600)
    await page.open(f"{stack.url}/")
    await page.click("#start-talk")
    await page.until(LIVE)
    assert await text(page, "problem-code") == "microphone_forbidden"
    await page.until(f"{REPLIES} === 0 && {STATE} === 'listening'")  # it has greeted
    await write(page, "Can you read this?")
    await page.until(f"{STATE} === 'speaking'")
    await page.until("document.querySelector('#growing .assistant .words')?.textContent.split(' ').length > 4")
    await page.key("Escape")
    await page.until(f"{REPLIES} === 1 && {STATE} === 'listening'")

    await page.run("globalThis.granted = allowed, null")
    await page.click("#mic")
    await page.until("document.getElementById('mic').dataset.state === 'on'")
    await page.click("#mic")
    assert await page.run("[document.getElementById('mic-text').textContent, tracks[0].enabled]") == ["Unmute", False]
    await page.until("document.getElementById('talk-state').textContent === 'Muted: it does not hear you'")
    await page.tab_to("push-to-talk")
    await page.key(" ")
    assert await page.run("[tracks[0].enabled, document.getElementById('mic').hidden]") == [False, True]

    async def spoken_once() -> None:
        assert await page.run("document.getElementById('push').ariaPressed") == "true"
        await page.until("tracks[0].enabled")
        await page.run("say()")

    await page.tab_to("chat-text")
    await page.tab_to("push")
    await page.key(" ", hold=spoken_once)
    await page.until("!tracks[0].enabled")
    await page.until(f"{LINES}.some(([role, words]) => role === 'user' && words === 'What is your name?')")
    await page.until(f"{REPLIES} === 2 && {STATE} === 'listening'")
    await page.run("document.activeElement.blur()")
    await page.key(" ", hold=lambda: page.until("tracks[0].enabled"))  # nothing has the focus: the key itself talks
    lines = await agree(page, stack)
    assert [[role, cut] for role, _, cut in lines] == [
        ["user", False],
        ["assistant", True],
        ["user", False],
        ["assistant", False],
    ]
    assert LONG.startswith(lines[1][1]) and len(lines[1][1]) < len(LONG)
    assert [lines[2][1], lines[3][1]] == ["What is your name?", "My name is Ada."]

    await page.tab_to("switch")
    await page.key("Enter")
    await page.until("document.body.dataset.mode === 'say'")
    await page.until(LIVE)
    assert await given_back(page)
    assert await page.run("document.getElementById('conversation').hidden && !document.getElementById('hold').hidden")
    await page.run("document.getElementById('panel').open = false, null")
    await page.run("document.getElementById('panel').open = true, null")
    await page.click("#text")
    await page.type(SAID)
    await page.click("#speak")
    await page.until("document.getElementById('captions-text').textContent.startsWith('The quick brown')")
    await page.until("document.getElementById('chip').dataset.state === 'speaking'")
    await page.run(STATUSES)
    await page.key("Escape")
    await page.until("document.getElementById('events').textContent.includes('interrupted')")
    await page.until("statuses.some((status) => status.includes('Interrupted'))")
    await page.until("document.getElementById('captions').hidden")
    session = await session_id(page)
    asked = len(page.requests)
    await page.run("document.dispatchEvent(new Event('visibilitychange')), null")  # the tab is looked at again
    await until(lambda: any(url.endswith(f"/session/{session}") for url in page.requests[asked:]))
    await page.open("about:blank")
    await stopped(stack, session)
    clean(page)


TALK = """(async () => {
  const base = document.querySelector('script[src*=app]').src;
  const { Talk } = await import(new URL('talk.js', base));
  const { SessionView } = await import(new URL('session-view.js', base));
  const { Panel } = await import(new URL('panel.js', base));
  const panel = new Panel();
  for (let k = 0; k < 20; k += 1) panel.event(`Event ${k}`);
  const greeting = {id: 'greeting', role: 'assistant', text: 'Hello.', final: true, interrupted: false};
  globalThis.avatar = Object.assign(new EventTarget(), {
    conversation: {state: 'starting', messages: [greeting]},
    microphone: {state: 'off', track: null, muted: false},
    on(name, listener) { this.addEventListener(name, ({detail}) => listener(detail)); },
  });
  globalThis.happens = (name, detail) => avatar.dispatchEvent(new CustomEvent(name, {detail}));
  const context = new AudioContext();
  const view = new SessionView({avatar, panel, context, talks: true, showStatus: () => {}, showError: () => {}});
  const none = {fps: null, width: null, height: null, kbps: null, videoBufferMs: null, rttMs: null, lossPercent: null, codec: null};
  avatar.stats = async () => ({...none, skewMs: 7, audioBufferMs: 50, stalled: true});
  happens('state', {state: 'recovering'});
  const timing = document.getElementById('timing-facts');
  await new Promise((resolve) => new MutationObserver(resolve).observe(timing, {childList: true, subtree: true}));
  await new Promise((resolve) => setTimeout(resolve));
  view.close();
  globalThis.talk = new Talk({avatar, context, showError: () => {}});
  globalThis.becomes = (state) => {
    avatar.conversation.state = state;
    happens('conversation.state', state);
    return document.getElementById('talk-state').textContent;
  };
  globalThis.line = (id, role, text, final = true) => {
    const message = {id, role, text, final, interrupted: false};
    const known = avatar.conversation.messages.findIndex((each) => each.id === id);
    if (known < 0) avatar.conversation.messages.push(message);
    happens('message', message);
    return [...document.querySelectorAll('#messages .words')].map((words) => words.textContent);
  };
  const [facts, events] = ['session-facts', 'events'].map((id) => document.getElementById(id));
  return [timing.textContent, facts.textContent, events.children.length];
})()"""


async def test_states_and_lines_of_a_conversation_in_whatever_order_they_come(page: Page, web: str) -> None:
    await page.open(f"{web}/index.html")
    timing, facts, events = await page.run(TALK)
    assert "50 ms" in timing and facts == ""  # nothing is known of the session yet
    assert events == 8  # the last ones
    states = [await page.run(f"becomes('{state}')") for state in ("listening", "thinking", "away", "starting")]
    assert len(set(states)) == 4
    assert await page.run("happens('warning', {code: 'another'}), becomes('listening')") == states[0]
    missing = await page.run("happens('warning', {code: 'conversation_provider'}), becomes('listening')")
    assert missing not in states
    speaking = await page.run("becomes('speaking')")  # it is back
    assert speaking not in [*states, missing] and await page.run("becomes('listening')") == states[0]

    assert await page.run("line('a', 'user', 'First.', false)") == ["Hello."]
    assert await page.run("line('b', 'assistant', 'Second.')") == ["Hello.", "Second."]
    assert await page.run("line('a', 'user', 'First.')") == [
        "Hello.",
        "First.",
        "Second.",
    ]  # final later, and yet before it
    many = await page.run("Array.from({length: 250}, (_, k) => line(`m${k}`, 'user', `${k}.`)).at(-1)")
    assert len(many) == 200 and many[-1] == "249."
