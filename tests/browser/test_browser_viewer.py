"""`viewer.js` in a room that is played to it: what is attached, which size is asked for, what is dispatched.

`make test-network` has real rooms with several sizes, with two avatars, and with a transparent one.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.chromium import Page

pytestmark = pytest.mark.browser

ROOM = """(async () => {
  const { Viewer } = await import('/viewer.js');
  const { RoomEvent } = await import('/vendor/livekit-client.esm.js');
  const listeners = new Map();
  globalThis.attached = [];
  globalThis.wanted = [];
  globalThis.wrote = [];
  const media = new Map();
  const track = (kind, name) => ({kind, mediaStreamTrack: name,
    attach: (element) => { attached.push([name, media.get(element)]); },
    detach: (element) => { attached.push([name, null]); }});
  const person = (identity, attributes, ...tracks) =>
    ({identity, attributes, trackPublications: new Map(tracks.map((publication, k) => [k, publication]))});
  globalThis.avatar = person('avatar-ses_1', {'avatar.state': 'ready', 'avatar.alpha': 'below'},
    {track: track('video', 'face'), simulcasted: true, setVideoDimensions: (size) => wanted.push(size)},
    {track: null, isDesired: false, setSubscribed: (is) => attached.push(['voice', is])});
  globalThis.standby = person('voice-ses_1', {}, {track: track('audio', 'standby')}, {track: track('video', 'nothing')});
  const other = person('other', {}, {track: track('video', 'other')});
  globalThis.room = {
    state: 'connected',
    localParticipant: {identity: 'me', sendText: async (text, {topic}) => (wrote.push([text, topic]), {id: 'msg_1'})},
    startAudio: async () => {},
    canPlaybackAudio: false,
    remoteParticipants: new Map([avatar, standby, other].map((person) => [person.identity, person])),
    on: (name, listener) => listeners.set(name, listener),
    off: (name) => listeners.delete(name),
    registerTextStreamHandler: (topic, handler) => {
      if (globalThis.taken) throw new Error('taken');
      globalThis.reader = handler;
    },
    unregisterTextStreamHandler: () => (globalThis.reader = null),
  };
  globalThis.happens = (name, ...details) => listeners.get(RoomEvent[name])(...details);
  globalThis.track = track;
  globalThis.left = () => listeners.size;
  globalThis.seen = [];
  const video = document.body.appendChild(Object.assign(document.createElement('video'), {style: 'width: 320px; height: 180px'}));
  const [audio, standbyAudio] = [new Audio(), new Audio()];
  media.set(video, 'video').set(audio, 'audio').set(standbyAudio, 'standby');
  const canvas = document.body.appendChild(document.createElement('canvas'));
  globalThis.video = video;
  globalThis.viewer = new Viewer({video, audio, standbyAudio, canvas, room});
  for (const name of ['connection', 'avatar.state', 'audiotrack', 'audioblocked', 'caption', 'disconnected', 'alpha'])
    viewer.addEventListener(name, ({detail}) => seen.push([name, detail]));
})()"""
JOIN = "viewer.join({session_id: 'ses_1', avatar_identity: 'avatar-ses_1'}).then(() => seen.splice(0))"
READER = """{info: {id: 'stream', attributes: %s},
  async *[Symbol.asyncIterator]() { yield 'Half a '; %s }}, {identity: 'avatar-ses_1'}"""


async def prepare(page: Page, web: str) -> None:
    """A page with a viewer whose room has the avatar, its stand-by and another person."""
    await page.serve(f"{web}/viewer.html", "<!doctype html><body></body>")
    await page.open(f"{web}/viewer.html")
    await page.run(ROOM)


async def happens(page: Page, event: str) -> Any:
    """What is dispatched when this happens in the room."""
    return await page.run(f"(happens({event}), seen.splice(0))")


async def test_what_is_in_the_room_is_attached_and_asked_for_in_the_elements_size(whole_page: Page, web: str) -> None:
    page = whole_page  # sizes are observed as frames are painted
    await prepare(page, web)
    assert await page.run(JOIN) == [
        ["audiotrack", "standby"],
        ["connection", "connected"],
        ["avatar.state", "ready"],
        ["alpha", True],
        ["audioblocked", True],
    ]
    assert await page.run("attached.splice(0)") == [["face", "video"], ["voice", True], ["standby", "standby"]]
    await page.until("wanted.length")
    assert await page.run("wanted.splice(0)") == [{"width": 320, "height": 180}]
    await page.run("video.style.width = '100px', null")
    await page.until("wanted.some(({width}) => width === 100)")

    voice = "track('audio', 'voice'), {}, avatar"
    assert await happens(page, f"'TrackSubscribed', {voice}") == [["audiotrack", "voice"]]
    await happens(page, "'TrackPublished', {}, avatar")  # what is attached stays as it is
    await happens(page, "'TrackUnsubscribed', viewer.tracks.video")
    assert await page.run("attached") == [["voice", "audio"], ["voice", True], ["face", None]]
    assert await page.run("viewer.tracks.video") is None
    await page.run("viewer.leave()")
    assert await page.run("[left(), reader, viewer.tracks.audio]") == [0, None, None]


async def test_what_happens_in_the_room_is_dispatched(unseen_page: Page, web: str) -> None:
    page = unseen_page
    await prepare(page, web)
    await page.run(JOIN)
    assert await happens(page, "'ParticipantDisconnected', avatar") == [["avatar.state", "reconnecting"]]
    assert await happens(page, "'ParticipantConnected', avatar") == [["avatar.state", "ready"]]
    assert await happens(page, "'ParticipantConnected', standby") == []
    await page.run("avatar.attributes = {}, null")
    assert await happens(page, "'ParticipantAttributesChanged', {}, avatar") == [["avatar.state", None]]
    assert await happens(page, "'ParticipantAttributesChanged', {}, standby") == []
    assert await happens(page, "'Reconnecting'") == [["connection", "reconnecting"]]
    assert await happens(page, "'Reconnected'") == [["connection", "connected"]]
    assert await happens(page, "'SignalReconnecting'") == [["connection", "reconnecting"]]
    assert await happens(page, "'AudioPlaybackStatusChanged'") == [["audioblocked", True]]

    names = "{'lk.segment_id': 'ses_1-3'}"
    await page.run("reader(%s)" % (READER % (names, "yield 'word';")))
    await page.until("seen.some(([, {final}]) => final)")
    whole = [caption["text"] for _, caption in await page.run("seen.splice(0)")]
    assert whole == ["Half a ", "Half a word", "Half a word"]
    await page.run("reader(%s)" % (READER % ("{}", "throw new Error('left');")))
    await page.until("seen.some(([, {final}]) => final)")
    cut = await page.run("seen.splice(0).at(-1)[1]")
    assert (cut["id"], cut["segment"], cut["text"]) == ("stream", None, "Half a ")

    closed = "'Disconnected', 5"  # DisconnectReason.ROOM_DELETED
    assert await happens(page, closed) == [["disconnected", "The room was closed."]]
    assert await happens(page, closed) == []  # once


async def test_a_room_whose_owner_reads_the_captions_is_joined_without_them(unseen_page: Page, web: str) -> None:
    page = unseen_page
    await prepare(page, web)
    await page.run("globalThis.taken = true, null")
    assert ["connection", "connected"] in await page.run(JOIN)
    await page.run("viewer.leave()")


AVATAR = """(async () => {
  const { Avatar } = await import('/avatar.js');
  globalThis.avatar = new Avatar({video: globalThis.video, room});
  for (const name of ['state', 'error', 'message']) avatar.on(name, (detail) => seen.push([name, detail]));
  await avatar.join({session_id: 'ses_1', avatar_identity: 'avatar-ses_1', conversation: {}});
})()"""


async def test_without_a_key_a_text_goes_into_the_room_and_a_room_that_closes_ends_the_avatar(
    unseen_page: Page, web: str
) -> None:
    page = unseen_page
    await prepare(page, web)
    await page.run(AVATAR)
    await page.run("avatar.send('Can you read this?')")
    assert await page.run("wrote") == [["Can you read this?", "lk.chat"]]
    messages = [detail for name, detail in await page.run("seen.splice(0)") if name == "message"]
    assert [(one["id"], one["role"], one["text"], one["typed"]) for one in messages] == [
        ("msg_1", "user", "Can you read this?", True)
    ]
    assert await happens(page, "'TrackSubscribed', track('video', 'other'), {}, {identity: 'other'}") == []
    assert await happens(page, "'Disconnected', 2") == [  # DisconnectReason.DUPLICATE_IDENTITY
        ["error", {"code": "room_left", "message": "This viewer joined again from another page."}],
        ["state", {"state": "failed", "reason": "room_left"}],
    ]


READINGS = """(async () => {
  const { Statistics } = await import('/statistics.js');
  let at = 0;
  const report = (kind, late) => new Map([
    ['in', {type: 'inbound-rtp', kind, timestamp: at, estimatedPlayoutTimestamp: at + late, bytesReceived: 2 * at}],
    ['pair', {type: 'candidate-pair', nominated: true, currentRoundTripTime: 0.012}]]);
  const track = (kind, late) => ({getRTCStatsReport: async () => report(kind, late.shift())});
  const [audio, video] = [track('audio', [10, 90, 20]), track('video', [0, 0, 0])];
  const statistics = new Statistics();
  const read = [];
  for (at = 1000; at <= 3000; at += 1000) read.push(await statistics.read(audio, video));
  return read.map(({skewMs, rttMs, kbps}) => [skewMs, rttMs, kbps]);
})()"""


async def test_the_panel_gets_the_median_skew_and_what_was_received_between_two_readings(
    unseen_page: Page, web: str
) -> None:
    await unseen_page.open(f"{web}/favicon.svg")
    assert await unseen_page.run(READINGS) == [
        [10, 12, None],
        [90, 12, 32],
        [20, 12, 32],
    ]
