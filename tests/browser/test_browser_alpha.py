"""A transparent avatar in a browser: the canvas shows its person and lets the page through, with WebGL and without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Page
from tests.browser.conftest import Stack
from tests.waiting import until

pytestmark = pytest.mark.browser

MADE = """(async () => {
  const { AlphaCanvas } = await import('/alpha-canvas.js');
  const source = Object.assign(document.createElement('canvas'), {width: 64, height: 128});
  const pen = source.getContext('2d');
  const paint = () => {
    pen.fillStyle = '#c02020'; pen.fillRect(0, 0, 64, 64);
    pen.fillStyle = '#fff'; pen.fillRect(0, 64, 32, 64);
    pen.fillStyle = '#000'; pen.fillRect(32, 64, 32, 64);
  };
  paint();
  globalThis.painting = setInterval(paint, 40);
  const video = Object.assign(document.createElement('video'), {muted: true, srcObject: source.captureStream(25)});
  document.body.append(video);
  void video.play();
  const canvas = document.createElement('canvas');
  document.body.append(canvas);
  if (%s) canvas.getContext('2d');  // a canvas that has one kind of picture gets no other: as without WebGL
  globalThis.drawn = new AlphaCanvas(video, canvas);
  globalThis.canvas = canvas;
  Object.assign(globalThis, {source, video});
  drawn.start();
  return drawn.transparent;
})()"""
AT = """
  const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
  const pen = copy.getContext('2d');
  pen.drawImage(canvas, 0, 0);
  const at = (x, y) => [...pen.getImageData(Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data];
"""
PIXELS = f"""(() => {{{AT}
  return {{size: [canvas.width, canvas.height], left: at(0.25, 0.5), right: at(0.75, 0.5), low: at(0.25, 0.98)}};
}})()"""
KEPT = """HTMLCanvasElement.prototype.getContext = ((get) => function (kind, more) {
  return get.call(this, kind, {...more, preserveDrawingBuffer: true});
})(HTMLCanvasElement.prototype.getContext)"""
EMPTY = "<!doctype html><title>alpha</title><body style='background: #00c000'></body>"
LIVE = """(async () => {
  const { Avatar } = await import('/avatar.js');
  const video = document.body.appendChild(Object.assign(document.createElement('video'), {playsInline: true, muted: true}));
  globalThis.canvas = document.body.appendChild(document.createElement('canvas'));
  globalThis.heard = [];
  globalThis.avatar = new Avatar({ video, canvas, token: %r });
  avatar.on('alpha', (alpha) => heard.push(alpha));
  const started = await avatar.start({room: 'see-through', avatar_id: 'demo', width: 192, height: 192, engine: 'warp',
    avatar_settings: {background: 'transparent'}});
  return [started.alpha, started.width, started.height];
})()"""
LIVE_PIXELS = f"""(() => {{{AT}
  return {{size: [canvas.width, canvas.height], corner: at(0.03, 0.03), face: at(0.5, 0.45), transparent: heard[0] ?? null}};
}})()"""


@pytest.mark.parametrize("webgl", [True, False], ids=["webgl", "without webgl"])
async def test_the_lower_half_is_the_alpha_of_the_upper_one(page: Page, web: str, webgl: bool) -> None:
    await page.serve(f"{web}/alpha.html", EMPTY)
    await page.open(f"{web}/alpha.html")
    await page.run(KEPT)
    transparent = await page.run(MADE % ("false" if webgl else "true"))
    if not webgl:
        assert transparent is False
    seen: dict[str, Any] = {}

    async def drawn() -> bool:
        seen.update(await page.run(PIXELS))
        return seen["size"] == [64, 64] and seen["left"][3] > 0

    await until(drawn)
    red, green, blue, alpha = seen["left"]
    assert alpha > 250 and red > 150 and max(green, blue) < 80
    assert seen["low"][3] > 250, "the seam does not shine in"
    assert seen["right"][3] == 0 if transparent else seen["right"][3] == 255
    await page.run("source.height = 96, null")
    await page.until("canvas.height === 48")  # it follows the video's size
    await page.run("drawn.stop()")
    await page.run("new Promise((resolve) => video.requestVideoFrameCallback(resolve))")
    assert await page.run("clearInterval(painting), [canvas.width, canvas.height]") == [
        1,
        1,
    ]  # nothing is drawn any more


@pytest.mark.network
@pytest.mark.livekit
async def test_a_transparent_session_on_a_page(page: Page, stack: Stack) -> None:
    """From the matte over the room to the canvas; the corner is the page's, the face is the avatar's."""
    await page.serve(f"{stack.url}/alpha.html", EMPTY)
    await page.open(f"{stack.url}/alpha.html")
    await page.run(KEPT)
    assert await page.run(LIVE % stack.api_key, gesture=True) == ["below", 192, 192]
    seen: dict[str, Any] = {}

    async def drawn() -> bool:
        seen.update(await page.run(LIVE_PIXELS))
        return (
            seen["size"][0] > 0 and seen["size"][0] == seen["size"][1] and seen["face"][3] > 0 and seen["size"][0] > 64
        )

    await until(drawn)
    assert seen["transparent"] is True and seen["face"][3] > 240
    webgl = await page.run("Boolean(document.createElement('canvas').getContext('webgl'))")
    assert seen["corner"][3] == (0 if webgl else 255)
    if shot := os.environ.get("ALPHA_SHOT"):
        await page.screenshot(Path(shot))
    await page.run("avatar.stop()")
