"""Codecs and sizes in a browser, through the whole demo: a desktop's window and a phone's get each what fits them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from musetalk_agent.protocol.http import VideoCodec
from tests.browser.chromium import Page
from tests.browser.conftest import Stack
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.livekit, pytest.mark.network]

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><title>sizes</title>
<style>body { margin: 0 } video { display: block; width: 100vw; height: 56vw }</style><video playsinline muted></video>"""
START = """(async () => {
  const { Avatar } = await import('/avatar.js');
  globalThis.avatar = new Avatar({ video: document.querySelector('video'), token: %r });
  await avatar.start(%s);
})()"""
DECODED = """(async () => {
  const reports = await Promise.all(peers.map((peer) => peer.getStats()));
  const all = reports.flatMap((report) => [...report.values()]);
  const video = all.find((s) => s.type === 'inbound-rtp' && s.kind === 'video');
  const codec = all.find((s) => s.id === video?.codecId);
  return video?.framesDecoded > 10 && [codec?.mimeType, video.frameWidth];
})()"""
PEERS = """globalThis.peers = [];
globalThis.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...options) { super(...options); peers.push(this); }
};"""


async def open_page(page: Page, stack: Stack, width: int, height: int, scale: float, order: str) -> None:
    await page.send("Page.addScriptToEvaluateOnNewDocument", source=PEERS)
    await page.serve(stack.url + "/sizes.html", PAGE)
    await page.size(width, height, scale=scale)
    await page.open(stack.url + "/sizes.html")
    await page.run(START % (stack.api_key, order))


async def decodes(page: Page, mime: str, wanted: Callable[[int], bool]) -> None:
    """Frames of this codec and of such a width are decoded."""

    found: list[Any] = []

    async def holds() -> bool:
        nonlocal found
        found = await page.run(DECODED) or []
        return bool(found) and found[0] == mime and wanted(found[1])

    try:
        await until(holds)
    except AssertionError as error:
        error.add_note(f"codec and width that were decoded last: {found}")
        raise


@pytest.mark.parametrize(("codec", "mime"), [("vp8", "video/VP8"), ("auto", "video/H264")])
async def test_the_window_of_a_phone_gets_a_smaller_size_and_a_large_one_the_largest(
    page: Page, stack: Stack, codec: str, mime: str
) -> None:
    order = f"{{room: 'sizes', engine: 'pattern', width: 1280, height: 720, video_codec: {codec!r}, simulcast: true}}"
    await open_page(page, stack, 1280, 800, 1, order)
    await decodes(page, mime, lambda width: width == 1280)
    await page.size(300, 600)
    await decodes(page, mime, lambda width: width < 640)
    await page.size(1280, 800)
    await decodes(page, mime, lambda width: width == 1280)

    async def reported() -> bool:
        sessions = (await asyncio.to_thread(stack.get, "/sessions")).json()["sessions"]
        running = [s["transport"] for s in sessions if s["state"] == "ready"]
        return [one.get("video_codec") for one in running] == [VideoCodec(codec).chosen.value]

    await until(reported)


async def test_one_size_stays_what_it_is_whatever_the_window(page: Page, stack: Stack) -> None:
    order = "{room: 'one-size', engine: 'pattern', width: 640, height: 360, video_codec: 'h264'}"
    await open_page(page, stack, 300, 600, 2, order)
    await decodes(page, "video/H264", lambda width: width == 640)
    assert [error for error in page.errors if "favicon" not in error] == []
