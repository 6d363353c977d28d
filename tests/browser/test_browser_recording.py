"""The page records a session and downloads its film, in a real Chromium and before the real stack."""

from __future__ import annotations

import asyncio
import base64

import pytest

from tests.browser.chromium import Page
from tests.browser.conftest import Stack
from tests.browser.test_browser_page import session_id, start, text
from tests.fakes.film_parts import watch
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.livekit, pytest.mark.voice]

KEEP = """globalThis.saved = null, HTMLAnchorElement.prototype.click = async function () {
  const bytes = new Uint8Array(await (await fetch(this.href)).arrayBuffer());
  let text = '';
  for (const byte of bytes) text += String.fromCharCode(byte);
  globalThis.saved = [this.download, btoa(text)];
}, null"""


async def saved(page: Page) -> tuple[str, bytes]:
    """What the download button saves: name and bytes."""
    await page.run(KEEP)
    await page.click("#film")
    name, content = await page.until("saved")
    return name, base64.b64decode(content)


async def test_record_download_stop_and_download_again(page: Page, stack: Stack) -> None:
    await start(page, stack)
    session = await session_id(page)
    assert await text(page, "record") == "Record" and await page.run("document.getElementById('film').hidden")
    await page.click("#record")
    await page.until("document.getElementById('record').getAttribute('aria-pressed') === 'true'")
    assert await text(page, "record") == "Stop recording"
    await page.until("!document.getElementById('film').hidden")
    name, growing = await saved(page)
    assert name == f"{session}.mp4" and len(watch(growing).times) > 0
    await page.click("#record")
    await page.until("document.getElementById('record').getAttribute('aria-pressed') === 'false'")
    told = (await asyncio.to_thread(stack.get, f"/session/{session}/recording")).json()
    assert told["state"] == "stopped" and told["bytes"] > len(growing)
    await page.click("#stop")
    await page.until("document.body.dataset.phase === 'ready'")
    name, whole = await saved(page)  # after the session's end
    assert whole.startswith(growing) and len(whole) == told["bytes"]


async def test_the_film_of_a_session_that_ends_while_it_is_recorded(page: Page, stack: Stack) -> None:
    await start(page, stack)
    session = await session_id(page)
    await page.click("#record")
    await page.until("!document.getElementById('film').hidden")
    await page.click("#stop")
    await page.until("document.getElementById('record').getAttribute('aria-pressed') === 'false'")

    async def ended() -> bool:
        told = (await asyncio.to_thread(stack.get, f"/session/{session}/recording")).json()
        return bool(told["state"] == "stopped")

    await until(ended)
    _, film = await saved(page)
    assert len(watch(film).times) > 0
