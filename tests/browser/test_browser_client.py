"""`avatar.js` as others use it: the page of `docs/clients/javascript.md` as printed, and joining without a key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.browser.chromium import Page
from tests.browser.conftest import Stack
from tests.clients.printed import lines, printed

pytestmark = [pytest.mark.browser, pytest.mark.livekit, pytest.mark.voice]

LISTEN = """globalThis.logged = [];
const log = console.log;
console.log = (...words) => { logged.push(words.join(" ").trim()); log(...words); };
globalThis.peers = [];
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...options) { super(...options); peers.push(this); }
};"""
ENERGY = """(async () => {
  const reports = await Promise.all(peers.map((peer) => peer.getStats()));
  const sound = reports.flatMap((report) => [...report.values()]).filter((s) => s.type === 'inbound-rtp' && s.kind === 'audio');
  return sound.reduce((sum, s) => sum + (s.totalAudioEnergy ?? 0), 0);
})()"""
JOIN = """(async () => {
  const { Avatar } = await import('/avatar.js');
  const video = document.body.appendChild(Object.assign(document.createElement('video'), {playsInline: true}));
  globalThis.seen = [];
  globalThis.avatar = new Avatar({ video });
  for (const name of ['state', 'picture', 'publisher.changed', 'playback.started', 'playback.finished', 'cleared', 'error'])
    avatar.on(name, (detail) => seen.push([name, detail]));
  await avatar.join(%s);
})()"""
TONE = """(async () => {
  avatar.link.start();
  avatar.link.push(Int16Array.from({length: 64000}, (_, k) => 9000 * Math.sin(k / 6)));
  avatar.link.end();
})()"""
START = """(async () => {
  const { Avatar } = await import('/avatar.js');
  globalThis.avatar = new Avatar({ video: document.querySelector('video'), token: %r });
  return avatar.start(%s).catch((error) => [error.code, avatar.state]);
})()"""
HAPPEN = """(() => {
  for (const [type, detail] of %s) avatar.link.dispatchEvent(new CustomEvent(type, {detail}));
  return seen.splice(0);
})()"""


async def hello(page: Page, stack: Stack, html: str, path: str = "/hello.html") -> None:
    """A page on the orchestrator's host."""
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
    await page.serve(stack.url + path, html)
    await page.open(f"{stack.url}{path}#{stack.api_key}")


async def test_example_speaks_as_printed(page: Page, stack: Stack) -> None:
    example = printed("docs/clients/javascript.md", "html")
    assert lines(example) == 10
    await hello(page, stack, example)
    await page.click("button")
    await page.until("logged.includes('speaking')")
    assert await page.run("logged.slice(0, 3)") == ["starting", "ready", "speaking"]
    await page.until("document.querySelector('video').videoWidth > 100")
    await page.until("!document.querySelector('video').paused")
    await page.until(f"{ENERGY}.then((energy) => energy > 0.001)")
    sessions = (await asyncio.to_thread(stack.get, "/sessions")).json()["sessions"]
    assert [s["room"] for s in sessions if s["state"] == "speaking"] == ["hello"]
    assert [error for error in page.errors if "favicon" not in error] == []


def body(session: dict[str, Any]) -> str:
    """What a server hands to its page: no key in it."""
    return str(
        {name: session[name] for name in ("session_id", "livekit_url", "viewer_token", "avatar_identity", "audio_url")}
    )


async def test_joins_without_a_key_sends_sound_and_follows_the_session(page: Page, stack: Stack) -> None:
    started = await asyncio.to_thread(stack.post, "/session/start", {"room": "joined", "engine": "pattern"})
    session = started.json()
    await hello(page, stack, "<title>joins</title>", "/joins.html")
    await page.run(JOIN % body(session), gesture=True)
    await page.until("seen.some(([name]) => name === 'picture')")
    await page.until("avatar.link.state === 'open'")
    await page.run(TONE)
    await page.until("avatar.state === 'speaking'")
    assert await page.run("avatar.interrupt()") is None  # the key would tell how much; here the event does
    await page.until("seen.some(([name, {interrupted}]) => name === 'playback.finished' && interrupted)")
    dropped = await page.until("seen.find(([name]) => name === 'cleared')?.[1].dropped_s")
    assert 1 < dropped <= 4
    await page.until("avatar.state === 'ready'")
    for call in ("avatar.speak('Hello.')", "avatar.start({room: 'another'})"):
        assert await page.run(f"(async () => {call})().catch((error) => error.code)") == "unauthorized"

    await page.run("seen.splice(0), null")
    assert await page.run(
        HAPPEN % [["session.state", {"type": "session.state", "state": "recovering", "reason": "hung"}]]
    ) == [["state", {"state": "recovering", "reason": "hung"}]]
    changed = {"publisher": "rtmp", "reason": "no WebRTC"}
    back = {"state": "ready", "reason": "moved"}
    assert await page.run(HAPPEN % [["publisher.changed", changed], ["session.state", back]]) == [
        ["publisher.changed", changed],
        ["state", back],
    ]
    await asyncio.to_thread(stack.post, f"/session/{session['session_id']}/stop")
    await page.until("avatar.state === 'stopped'")
    assert await page.run("seen.map(([name, {state}]) => state ?? name)") == ["draining", "stopped"]
    assert [error for error in page.errors if "favicon" not in error] == []


async def test_start_that_is_refused_tells_code_and_state(page: Page, stack: Stack) -> None:
    await hello(page, stack, "<video></video>", "/refused.html")
    assert await page.run(START % (stack.api_key, "{room: 'x', avatar_id: 'sha256:none'}")) == [
        "avatar_not_found",
        "failed",
    ]
    assert await page.run("avatar.start({room: 'x'}).catch((e) => e.code)") == "session_conflict"
    assert await page.run(START % ("wrong", "{room: 'x', avatar_id: 'demo'}")) == ["unauthorized", "failed"]
    another = "import('/avatar.js').then(({ AvatarClient }) => new AvatarClient({ token: %r }).%s)"
    token = await page.run(another % (stack.api_key, "viewerToken('x', 'another')"))
    assert (token["room"], token["identity"], token["livekit_url"][:5]) == ("x", "another", "ws://")
    nowhere = await page.run(another % (stack.api_key, "setPublisher('ses_none', 'rtmp').catch((error) => error.code)"))
    assert nowhere == "session_not_found"
