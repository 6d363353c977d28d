"""`avatar.js` as others use it: the page of `docs/how-to/javascript.md` as printed, and joining without a key."""

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
  for (const name of ['state', 'firstframe', 'picture', 'publisher.changed', 'playback.started',
    'playback.finished', 'cleared', 'error'])
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
SHARE = """(async () => {
  const { Avatar } = await import('/avatar.js');
  const { Room } = await import('/vendor/livekit-client.esm.js');
  globalThis.room = new Room();
  await room.connect(%r, %r, {autoSubscribe: %s});
  globalThis.avatars = %s.map((session) => {
    const video = document.body.appendChild(Object.assign(document.createElement('video'), {playsInline: true}));
    const avatar = new Avatar({ video, room, token: %r });
    avatar.video = video;
    avatar.captions = [];
    avatar.frames = 0;
    avatar.on('caption', (caption) => avatar.captions.push(caption)).on('firstframe', () => (avatar.frames += 1));
    return [avatar, session];
  });
  for (const [avatar, session] of avatars) await avatar.join(session);
  globalThis.avatars = avatars.map(([avatar]) => avatar);
})()"""
TEXT = """((k) => {
  const lines = new Map(avatars[k].captions.map(({id, text, final}) => [id, [text, final]]));
  return [...lines.values()].every(([, final]) => final) && [...lines.values()].map(([text]) => text).join('').trim();
})"""
STOPPED = """(async () => {
  const { Avatar } = await import('/avatar.js');
  const avatar = new Avatar({ video: document.querySelector('video'), token: %r });
  const starting = avatar.start({room: 'left', engine: 'pattern'}).catch((error) => error.code);
  await avatar.stop();
  return [await starting, avatar.state];
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
    example = printed("docs/how-to/javascript.md", "html")
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
    await page.until("seen.some(([name]) => name === 'firstframe')")
    await page.until("seen.some(([name]) => name === 'picture')")  # the earlier name
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


@pytest.mark.network
@pytest.mark.parametrize("subscribes", ["true", "false"])
async def test_two_avatars_share_the_callers_room_and_leave_it_connected(
    page: Page, stack: Stack, subscribes: str
) -> None:
    async def post(path: str, body: dict[str, object]) -> Any:
        answer = await asyncio.to_thread(stack.post, path, body)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()

    room = f"shared-{subscribes}"
    first, second = [await post("/session/start", {"room": room, "engine": "pattern"}) for _ in range(2)]
    viewer = await post("/token", {"room": room, "identity": "both"})
    await hello(page, stack, "<title>shares</title>", "/shares.html")
    bodies = f"[{body(first)}, {body(second)}]"
    share = SHARE % (viewer["livekit_url"], viewer["token"], subscribes, bodies, stack.api_key)
    await page.run(share, gesture=True)
    await page.until("avatars.every(({frames, video}) => frames === 1 && video.videoWidth > 100)")
    assert await page.run("avatars[0].video.srcObject !== avatars[1].video.srcObject")

    assert (await page.run("avatars[1].speak('Only the second one speaks.')"))["segment"] == 1
    await page.until("avatars[1].state === 'speaking'")
    assert await page.run("avatars[0].state") == "ready"
    assert await page.until(f"avatars[1].captions.length && {TEXT}(1)") == "Only the second one speaks."
    assert await page.run("avatars[0].captions") == []
    assert await page.run("avatars[1].captions.every(({segment}) => segment === 1)")

    await page.run("avatars[1].leave()")
    assert await page.run("[room.state, avatars[1].state, avatars[1].video.srcObject]") == [
        "connected",
        "stopped",
        None,
    ]
    await page.run("avatars[0].speak('The first one still has captions.')")
    assert await page.until(f"avatars[0].captions.length && {TEXT}(0)") == "The first one still has captions."
    await page.run("avatars[0].stop()")
    assert await page.run("[room.state, avatars[0].video.srcObject]") == ["connected", None]
    sessions = (await asyncio.to_thread(stack.get, "/sessions")).json()["sessions"]
    over = {s["session_id"]: s["state"] in ("stopped", "draining") for s in sessions}
    assert (over[first["session_id"]], over[second["session_id"]]) == (True, False)
    assert [error for error in page.errors if "favicon" not in error] == []


async def test_a_room_that_is_not_connected_is_refused(page: Page, stack: Stack) -> None:
    await hello(page, stack, "<video></video>", "/unconnected.html")
    code = """(async () => {
      const { Avatar } = await import('/avatar.js');
      const { Room } = await import('/vendor/livekit-client.esm.js');
      const avatar = new Avatar({ video: document.querySelector('video'), room: new Room() });
      const session = {session_id: 'ses_1', livekit_url: 'ws://x', viewer_token: 'x', avatar_identity: 'avatar-ses_1'};
      return avatar.join(session).catch((error) => [error.code, error.message, avatar.state]);
    })()"""
    assert await page.run(code) == [
        "room_unreachable",
        "The room cannot be joined: the given room is not connected. Connect it first.",
        "failed",
    ]


async def test_a_start_that_is_stopped_leaves_no_session(page: Page, stack: Stack) -> None:
    await hello(page, stack, "<video></video>", "/stopped.html")
    assert await page.run(STOPPED % stack.api_key, gesture=True) == ["cancelled", "stopped"]
    sessions = (await asyncio.to_thread(stack.get, "/sessions")).json()["sessions"]
    assert [s["room"] for s in sessions if s["room"] == "left" and s["state"] in ("ready", "speaking")] == []
