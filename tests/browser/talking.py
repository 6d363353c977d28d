"""What the tests of *Talk* share: a microphone that plays a sentence when the test wants it, and the page's lines."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.browser.chromium import LOOK_S, Page
from tests.browser.conftest import Stack
from tests.browser.test_browser_page import session_id
from tests.fakes.openai_models import FakeModels
from tests.waiting import until

RATE = 48_000
PAUSE_S = 2.0
"""After a sentence, until it is said again: long enough that it is known to be over."""
TRACKS = """globalThis.tracks = [];
const ask = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
if (ask) navigator.mediaDevices.getUserMedia = async (wanted) => {
  globalThis.asked = wanted;
  const stream = await (globalThis.granted ?? ask)(wanted);
  tracks.push(...stream.getTracks());
  return stream;
};"""
# In place of the microphone that a person allowed: what `say` is given, on a faint noise, since none is digitally silent.
SPOKEN = """globalThis.granted = async (wanted) => {
  (await ask(wanted)).getTracks().forEach((track) => track.stop());
  const context = new AudioContext({sampleRate: %d});
  const buffer = (values) => {
    const made = context.createBuffer(1, values.length, context.sampleRate);
    made.copyToChannel(values, 0);
    return made;
  };
  const microphone = context.createMediaStreamDestination();
  const play = (options) => {
    const node = new AudioBufferSourceNode(context, options);
    node.connect(microphone);
    node.start();
    return new Promise((resolve) => node.addEventListener('ended', resolve));
  };
  void play({loop: true, buffer: buffer(Float32Array.from({length: context.sampleRate}, () => (Math.random() - 0.5) / 1024))});
  const speech = new Int16Array(Uint8Array.from(atob('%s'), (letter) => letter.charCodeAt(0)).buffer);
  globalThis.say = () => play({buffer: buffer(Float32Array.from(speech, (value) => value / 32768))});
  return microphone.stream;
};"""
FIRST = "document.querySelector('#messages > .line')"
LINES = """[...document.querySelectorAll('#messages > .line')].slice(1).map((line) => [
  line.classList.contains('user') ? 'user' : 'assistant', line.querySelector('.words').textContent,
  !line.querySelector('.mark').hidden])"""
STATE = "document.getElementById('conversation').dataset.state"
REPLIES = "(document.querySelectorAll('#messages > .line.assistant').length - 1)"
"""As `LINES` without the greeting."""


async def write(page: Page, text: str) -> None:
    await page.click("#chat-text")
    await page.type(text)
    await page.key("Enter")


async def agree(page: Page, stack: Stack) -> list[list[Any]]:
    """The lines of the page after the greeting, once the orchestrator's history has the same."""
    session = await session_id(page)

    async def same() -> list[list[Any]]:
        answer = await asyncio.to_thread(stack.get, f"/session/{session}/messages")
        known = [[each["role"], each["text"].strip(), each["interrupted"]] for each in answer.json()["messages"]]
        lines: list[list[Any]] = await page.run(LINES)
        return lines if known and lines == known[1:] else []

    return await until(same, every_s=LOOK_S)


async def said(page: Page, fake: FakeModels) -> None:
    """The sentence is said and recognised; again and again, since it is lost while the room takes the microphone's track."""
    before = len(fake.heard_s)

    async def recognised() -> bool:
        if len(fake.heard_s) == before:
            await page.run("say()")
        return len(fake.heard_s) > before

    await until(recognised, every_s=PAUSE_S)


async def given_back(page: Page) -> bool:
    """Whether every microphone track that was asked for has ended."""
    return bool(await page.run("tracks.length > 0 && tracks.every((track) => track.readyState === 'ended')"))
