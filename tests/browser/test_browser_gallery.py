"""The page's gallery in a real Chromium, before the real stack: avatars are added, looked at, adjusted, shown and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.browser.chromium import Page
from tests.browser.conftest import Stack
from tests.browser.test_browser_page import LIVE, OVERFLOW, clean, text
from tests.waiting import NEVER_S, until

pytestmark = [pytest.mark.browser, pytest.mark.livekit, pytest.mark.voice]

DEMO_FACE = Path(__file__).resolve().parents[2] / "musetalk_agent" / "assets" / "demo-avatar.png"
LOADED = "document.getElementById('load-avatars').hidden"
PICKED = "document.querySelector('#avatars :checked').parentElement"
STATE = f"{PICKED}.dataset.state"
STATES = """globalThis.states = [], new MutationObserver(() => states.push(document.getElementById('picked-text').textContent))
  .observe(document.getElementById('picked-text'), {childList: true, characterData: true, subtree: true}), null"""
CHOOSE = """(([id, value]) => { const list = document.getElementById(id); list.value = value;
  list.dispatchEvent(new Event('input', {bubbles: true})); })(['%s', '%s'])"""
MOUTH = """(() => { const film = document.getElementById('preview-film');
  const canvas = Object.assign(document.createElement('canvas'), {width: 64, height: 64});
  const context = canvas.getContext('2d');
  const {videoWidth: w, videoHeight: h} = film;
  context.drawImage(film, w * 0.4, h * 0.5, w * 0.3, h * 0.2, 0, 0, 64, 64);
  return [...context.getImageData(0, 0, 64, 64).data].filter((_, k) => k % 4 !== 3); })()"""


@pytest.fixture
def library(stack: Stack) -> Iterator[Stack]:
    """The demo, with no avatar left behind for the next test."""
    yield stack
    token = httpx.get(f"{stack.url}/page/token", trust_env=False, timeout=NEVER_S).json()["token"]
    with httpx.Client(base_url=stack.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as client:
        for session in client.get("/sessions").json()["sessions"]:
            if session["state"] not in ("stopped", "failed"):
                client.post(f"/session/{session['session_id']}/stop")
        for avatar in client.get("/avatars").json()["avatars"]:
            client.delete(f"/avatars/{avatar['avatar_id']}")


async def opened(page: Page, stack: Stack) -> None:
    await page.open(f"{stack.url}/")
    await page.until(LOADED)


async def choose_file(page: Page, selector: str, file: Path) -> None:
    document = await page.send("DOM.getDocument")
    field = await page.send("DOM.querySelector", nodeId=document["root"]["nodeId"], selector=selector)
    await page.send("DOM.setFileInputFiles", nodeId=field["nodeId"], files=[str(file)])


async def add(page: Page, file: Path, name: str) -> None:
    """Adds a file by the dialog; its tile is picked afterwards."""
    await page.click("#add-avatar")
    await choose_file(page, "#file", file)
    await page.click("#add-name")
    await page.type(name)
    await page.click("#add-go")
    await page.until("!document.getElementById('add-dialog').open")


async def set_range(page: Page, field: str, value: float) -> None:
    await page.run(
        f"(() => {{ const field = document.getElementById({field!r}); field.value = {value};"
        " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


async def frame_with(page: Page, gain: float) -> list[int]:
    """Pixels around the mouth on the frame that is previewed with this gain of the mouth."""
    await set_range(page, "mouth-gain", gain)
    await page.click("#preview-frame")
    await page.until("document.getElementById('preview-status').textContent.startsWith('Making')")
    await page.until("document.getElementById('preview-status').textContent === 'One frame, with these settings.'")
    await page.until("!document.getElementById('preview-film').seeking")
    pixels: list[int] = await page.run(MOUTH)
    return pixels


async def saved(page: Page) -> None:
    """Saves the settings in the dialog."""
    await page.click("#tune-save")
    said = "document.getElementById('tune-status').textContent.startsWith('Saved')"
    await page.until(f"{said} || !document.getElementById('tune-problem').hidden")
    assert await page.run(said), await text(page, "tune-problem")


async def again(page: Page, close: str, button: str, first: str = "") -> None:
    """Closes a dialog, opens it again and does this `first`, all before the next frame, with which its `close` event comes."""
    await page.run(f"document.getElementById({close!r}).click(); document.getElementById({button!r}).click(); {first}")
    await page.run("new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))")


async def clips_come_and_go(page: Page) -> None:
    """In the dialog of an avatar that is ready."""
    await page.click("#clip-name")
    await page.type("Nod!")
    await page.key("Enter")
    assert (await text(page, "clip-status")).startswith("Give the clip a name")
    await page.run("document.getElementById('clip-name').value = ''")
    await page.type("nod")
    await page.key("Enter")
    assert await text(page, "clip-status") == "Choose a video of the same person first."
    await choose_file(page, "#clip-file", DEMO_FACE)
    await page.click("#clip-add")
    await page.until("document.getElementById('clip-status').textContent === 'nod was added.'")
    assert (await page.run("document.querySelector('#clip-list li').textContent")).startswith("nod: ")
    await page.click("#clip-list button")
    await page.until("document.getElementById('clip-status').textContent === 'nod was removed.'")
    assert await page.run("document.querySelectorAll('#clip-list li').length") == 0
    await page.until("document.activeElement.id === 'clip-name'")


async def test_a_picture_becomes_an_avatar_and_is_adjusted(page: Page, library: Stack) -> None:
    await page.size(1280, 800)
    await opened(page, library)
    await page.run(STATES)
    await add(page, DEMO_FACE, "Zoë 佐伊")
    await page.until(f"{STATE} === 'ready'")
    seen = await page.run("states")
    assert seen[0].startswith("Zoë 佐伊: Preparing") and seen[-1] == "Zoë 佐伊: Ready"
    await page.until("document.getElementById('gallery-status').textContent === 'Zoë 佐伊 is ready.'")
    await page.until("document.getElementById('poster').src.startsWith('blob:')")

    await page.click("#tune")
    assert await text(page, "tune-title") == "Zoë 佐伊"
    assert await text(page, "tune-facts") == "640 × 640 pixels, made from one picture, face 237 pixels wide"
    still, wide = await frame_with(page, 0.5), await frame_with(page, 2)
    changed = sum(abs(a - b) > 20 for a, b in zip(still, wide, strict=True)) / len(still)
    assert changed > 0.02, f"only {changed:.3f} of the pixels around the mouth depend on the setting"
    await page.run("document.getElementById('preview-text').value = 'Hello to you all.', null")
    await page.click("#preview-speech")
    await page.until("document.getElementById('preview-status').textContent === 'Speech, with these settings.'")
    assert 0.5 < await page.run("document.getElementById('preview-film').duration") < 3
    await clips_come_and_go(page)
    await page.run(CHOOSE % ("background", "colour"))
    await page.until("document.getElementById('background-colour').checkVisibility()")
    await page.click("#tune-name")
    await page.run("document.getElementById('tune-name').select()")
    await page.type("Zoë")
    await saved(page)
    await page.click("#preview-frame")  # given up
    await again(page, "tune-close", "tune")
    assert await page.run(f"{PICKED}.querySelector('.tile-name').textContent") == "Zoë"
    assert await page.run("document.getElementById('preview-status').textContent") == ""
    assert await page.run("document.getElementById('background-colour').checkVisibility()")
    assert await page.run("document.getElementById('mouth-gain').value") == "2"
    await page.run(CHOOSE % ("background", "keep"))
    await saved(page)
    await page.click("#tune-close")
    await page.until(f"{STATE} === 'ready'")

    clean(page)


@pytest.mark.network
async def test_a_picture_becomes_an_avatar_that_speaks(page: Page, library: Stack) -> None:
    await page.size(1280, 800)
    await opened(page, library)
    await add(page, DEMO_FACE, "Zoë")
    await page.until(f"{STATE} === 'ready'")
    await page.click("#start")
    await page.until(LIVE)
    session = (await asyncio.to_thread(library.get, "/sessions")).json()["sessions"]
    running = [each for each in session if each["state"] in ("ready", "speaking")]
    assert [each["avatar_id"] for each in running] == [
        await page.run("document.querySelector('#avatars :checked').value")
    ]
    await page.click("#text")
    await page.type("Hello.")
    await page.key("Enter")
    await page.until("document.getElementById('events').textContent.includes('finished after')")
    clean(page)


async def test_a_photo_without_a_face_says_why_and_can_be_deleted(page: Page, library: Stack) -> None:
    await page.size(360, 740, scale=2)
    await opened(page, library)
    await page.click("#add-avatar")
    await page.click("input[value=camera]")  # the browser's fake camera shows no face
    await page.until("!document.getElementById('take-photo').disabled")
    assert await page.run("document.getElementById('add-go').disabled")
    await page.click("#take-photo")
    await page.until("document.getElementById('photo').checkVisibility()")
    assert await page.run("document.getElementById('camera').srcObject") is None  # its light is off
    assert await page.run(OVERFLOW) == 0
    await page.click("#add-go")
    await page.until(f"!document.getElementById('add-dialog').open && {STATE} === 'failed'")
    assert "show no face" in await text(page, "picked-text")
    await page.until(
        "document.getElementById('gallery-status').textContent.startsWith('Photo cannot be used. 1 of 1 frames')"
    )

    await page.click("#tune")
    assert await page.run(OVERFLOW) == 0
    assert await page.run("document.getElementById('preview-frame').disabled")
    await page.click("#tune-delete")
    assert await text(page, "tune-status") == "Press again to delete it for good."
    await page.click("#tune-delete")
    await page.until("!document.getElementById('tune-dialog').open")
    assert await page.run("document.querySelectorAll('#avatars input').length") == 1
    assert await page.run("document.querySelector('#avatars :checked').value") == "demo"
    clean(page)


async def test_an_address_that_is_none_and_one_that_is_forbidden(page: Page, library: Stack) -> None:
    await page.size(360, 740, scale=2)
    await opened(page, library)
    await page.click("#add-avatar")
    await page.click("input[value=url]")
    await page.click("#add-go")
    await page.until("!document.getElementById('add-problem').hidden")
    assert await page.run("document.activeElement.id") == "url"
    await again(page, "add-cancel", "add-avatar", "document.querySelector('input[value=url]').click()")
    await page.click("#url")
    await page.type("http://169.254.169.254/latest/meta-data/a-rather-long-address-of-a-face-that-is-none.mp4")
    await page.key("Enter")
    await page.until(f"!document.getElementById('add-dialog').open && {STATE} === 'failed'")
    assert "169.254.169.254" in await text(page, "picked-text")
    assert await page.run(OVERFLOW) == 0
    clean(page)


async def test_one_that_is_shown_is_not_deleted_and_gives_way_to_another(page: Page, library: Stack) -> None:
    await page.size(1280, 800)
    await opened(page, library)
    await add(page, DEMO_FACE, "Ada")
    await page.until(f"{STATE} === 'ready'")
    await page.click("#start")
    await page.until(LIVE)
    await page.click("#change")
    await page.click("#tune")
    await page.click("#tune-delete")
    await page.click("#tune-delete")
    await page.until("!document.getElementById('tune-problem').hidden")
    assert "shows this avatar: stop it, or change its avatar." in await text(page, "tune-problem")

    await page.click("#tune-close")
    await page.click("#demo-tile")
    await page.click("#show-avatar")
    await page.until("document.getElementById('status').textContent === 'Now you see Demo face.'")
    assert not await page.run("document.getElementById('change-dialog').open")
    await page.click("#change")
    await page.run("document.querySelectorAll('#avatars input')[1].click()")
    await page.click("#tune")
    await page.click("#tune-delete")
    await page.click("#tune-delete")
    await page.until("!document.getElementById('tune-dialog').open")
    assert await page.run("document.querySelectorAll('#avatars input').length") == 1
    assert await page.run("document.body.dataset.phase") == "live"
    clean(page, "/avatars/")


@pytest.mark.network
async def test_keys_alone_pick_an_avatar_and_close_dialogs(page: Page, library: Stack) -> None:
    focus = "document.activeElement.id || document.activeElement.value"

    await page.size(1280, 800)
    await opened(page, library)
    await add(page, DEMO_FACE, "Ada")
    await page.until(f"{STATE} === 'ready'")
    await page.tab_to("tune")
    await page.key("Enter")
    assert await page.run(focus) == "tune-title"  # so that screen readers begin with the name
    await page.tab_to("mouth-gain")
    await page.key("Escape")
    await page.until("!document.getElementById('tune-dialog').open")
    assert await page.run(focus) == "tune"
    assert await page.run("document.body.dataset.phase") == "ready"
    named = await page.run(
        "[...document.querySelectorAll('dialog :is(input, select, video, progress, textarea), #avatars input')]"
        ".filter((e) => !(e.labels?.length || e.ariaLabel || e.ariaHidden)).map((e) => e.id)"
    )
    assert named == []
    clean(page)


async def test_avatars_of_a_key_come_when_they_are_asked_for(page: Page, library: Stack) -> None:
    headers = {"Authorization": f"Bearer {library.api_key}", "X-Filename": "Grace.png"}
    added = await asyncio.to_thread(
        lambda: httpx.post(
            f"{library.url}/avatars", content=DEMO_FACE.read_bytes(), headers=headers, trust_env=False, timeout=NEVER_S
        ).json()
    )
    await page.open(library.url.replace("127.0.0.1", "page.localhost"))  # not a name that the demo trusts
    await page.until("!document.getElementById('load-avatars').hidden")
    assert not await page.run("document.getElementById('key-dialog').open")
    await page.click("#load-avatars")
    await page.until("document.getElementById('key-dialog').open")
    await page.type(library.api_key)
    await page.key("Enter")
    await page.until(f"document.querySelector('#avatars input[value={added['avatar_id']}]') !== null")
    assert await page.run("document.getElementById('load-avatars').hidden")

    async def ready() -> bool:
        answer = await asyncio.to_thread(library.get, f"/avatars/{added['avatar_id']}")
        return bool(answer.json()["state"] == "ready")

    await until(ready)
