"""The page in a real Chromium, before the real stack: a person starts the avatar, makes it speak, interrupts, and leaves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.browser.chromium import LOOK_S, Page
from tests.browser.conftest import CHEAP_VOICE, Stack, running_demo
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.livekit, pytest.mark.voice]

PROBE = Path(__file__).with_name("probe.js")
SKEW = Path(__file__).with_name("skew.js")
LIVE = "document.body.dataset.phase === 'live'"
SAID = "The quick brown fox jumps over the lazy dog, and my lips move with every word that I say to you."
LOUD = 10 ** (-40 / 20)
QUIET = 10 ** (-60 / 20)
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
STATUSES = """globalThis.statuses = [], new MutationObserver(() =>
  statuses.push(document.getElementById('status').textContent)).observe(
  document.getElementById('status'), {childList: true, characterData: true, subtree: true}), null"""
TARGETS = """[...document.querySelectorAll('button, select, textarea, summary')].filter((e) => e.checkVisibility())
  .map((e) => [e.id || e.textContent.trim(), e.getBoundingClientRect().height])"""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Stack]:
    """A demo without conversations."""
    with running_demo(tmp_path / "log", "--no-conversation", **CHEAP_VOICE) as stack:
        yield stack


async def text(page: Page, element: str) -> str:
    value = await page.run(f"document.getElementById({element!r}).textContent")
    assert isinstance(value, str)
    return value


async def session_id(page: Page) -> str:
    """Of the session on the page, from its panel."""
    value = await page.until(
        "[...document.querySelectorAll('#session-facts dd')].map((e) => e.textContent).find((t) => t.startsWith('ses_'))"
    )
    assert isinstance(value, str)
    return value


async def start(page: Page, stack: Stack) -> None:
    """Opens the page and presses Start; the avatar is seen afterwards."""
    await page.size(1280, 800)
    await page.open(f"{stack.url}/")
    await page.click("#start")
    await page.until(LIVE)


async def watch(page: Page, frames: int) -> NDArray[np.float64]:
    """[frame, (time, change of the mouth, change of the forehead, loudness)] of the next frames that are shown."""
    await page.run("probe.take(), null")
    await page.until(f"probe.frames.length >= {frames}")
    return np.array((await page.run("probe.take()"))[:frames])


async def stopped(stack: Stack, session: str) -> None:
    """Waits until the orchestrator says that the session is over."""

    async def over() -> bool:
        status = await asyncio.to_thread(stack.get, f"/session/{session}")
        return bool(status.json()["state"] == "stopped")

    await until(over, every_s=LOOK_S)


def clean(page: Page, *expected: str) -> None:
    """No error in the console but those expected, and nothing was asked of any other machine."""
    assert [e for e in page.errors if not any(part in e for part in expected)] == []
    hosts = {urlsplit(url).hostname for url in page.requests if not url.startswith(("data:", "blob:", "about:"))}
    assert hosts <= {"127.0.0.1", "localhost"}


@pytest.mark.network
async def test_types_hears_and_sees_it_speak_and_interrupts(whole_page: Page, stack: Stack) -> None:
    page = whole_page  # the picture is as large as people see it
    await start(page, stack)
    await page.run(PROBE.read_text(), gesture=True)
    idle = await watch(page, 30)
    assert idle[5:, 3].max() < QUIET
    mouth_idle = idle[5:, 1].mean()

    await page.click("#text")
    await page.type(f"{SAID} {SAID}")  # long enough for a browser that shows only a few pictures a second
    await page.key("Enter")
    await page.until("document.getElementById('chip').dataset.state === 'speaking'")
    await page.until(f"probe.rms() > {LOUD}")

    async def speaks() -> bool:
        """In ten pictures, of which a busy browser shows some late and none in between."""
        said = await watch(page, 10)
        mouth = said[:, 1].mean()
        moves = mouth > 1.5 * mouth_idle + 0.5 and mouth > 1.5 * said[:, 2].mean()  # more than the forehead
        return bool(moves and np.mean(said[:, 3] > LOUD) > 0.5)

    await until(speaks)

    assert await page.run("document.getElementById('text').value") == ""
    await page.run(STATUSES)
    await page.key("Escape")
    await page.until("document.getElementById('events').textContent.includes('interrupted')")
    await page.until("statuses.some((status) => status.includes('Interrupted'))")

    async def rests() -> bool:  # sound and pictures that were under way are still heard and seen
        after = await watch(page, 15)
        return bool(after[:, 3].max() < QUIET and after[5:, 1].mean() < 2 * mouth_idle + 1)

    await until(rests, every_s=LOOK_S)
    clean(page)


async def test_the_policy_lets_the_page_connect_to_its_own_hosts_only(page: Page, stack: Stack) -> None:
    await page.open(f"{stack.url}/")
    code = """(async () => {
      const blocked = [];
      document.addEventListener('securitypolicyviolation', (event) => blocked.push([event.effectiveDirective, event.blockedURI]));
      await fetch('https://example.com/').catch(() => {});
      await fetch('http://127.0.0.1:9/').catch(() => {});
      new WebSocket('ws://example.com/');
      document.body.append(Object.assign(document.createElement('script'), {textContent: 'globalThis.inline = true'}));
      await new Promise((resolve) => setTimeout(resolve));
      return [blocked, globalThis.inline ?? null];
    })()"""
    blocked, inline = await page.run(code)
    assert sorted(blocked) == [
        ["connect-src", "http://127.0.0.1:9/"],
        ["connect-src", "https://example.com/"],
        ["connect-src", "ws://example.com/"],
        ["script-src-elem", "inline"],
    ]
    assert inline is None


def settled(measured: dict[str, list[float]]) -> bool:
    """The last ten bursts are seen and heard together, and the panel says what is so. Positive: the sound comes first."""
    seen = np.array(measured["seen"])
    ahead = np.median([seen[np.abs(seen - heard).argmin()] - heard for heard in measured["heard"][-10:]])
    reported = [value for value in measured["reported"] if value is not None][-1]
    return bool(abs(ahead) < 60 and abs(reported - ahead) < 30)


@pytest.mark.network
async def test_lips_and_sound_meet_in_the_browser(page: Page, stack: Stack) -> None:
    await page.open(f"{stack.url}/")
    await page.run(SKEW.read_text(), gesture=True)
    await page.until("skew.measured.heard.length >= 10 && skew.measured.reported.some(Number.isFinite)")
    # The jitter buffers settle first; on a machine that is busy with other tests that takes longer.

    async def together() -> bool:
        return settled(await page.run("skew.measured"))

    await until(together, 100, every_s=LOOK_S)
    await page.run("skew.stop(), null")
    clean(page)


async def test_keyboard_alone_does_everything(page: Page, stack: Stack) -> None:
    focus = "document.activeElement.id"

    await page.size(1280, 800)
    await page.open(f"{stack.url}/")
    await page.tab_to("start")
    await page.key("Enter")
    await page.until(LIVE)
    assert await page.run(focus) == "text"
    await page.type("Hello.")
    await page.key("Enter")
    await page.until("document.getElementById('events').textContent.includes('finished after')")

    await page.tab_to("captions-toggle")
    await page.key("Enter")
    assert await page.run("document.getElementById('captions-toggle').ariaPressed") == "false"

    session = await session_id(page)
    await page.tab_to("hold")

    async def taken() -> int:
        sources = (await asyncio.to_thread(stack.get, "/debug/audio")).json()["sessions"]
        return sum(s["source"]["received_samples"] for s in sources if s["session_id"] == session and s["source"])

    async def talks() -> None:
        async def heard() -> bool:
            return await taken() > 16_000

        await until(heard, every_s=LOOK_S)

    await page.key(" ", hold=talks)
    await page.until("document.getElementById('events').textContent.includes('Segment 2 started')")
    await page.until("document.getElementById('hold').ariaPressed === 'false'")
    await page.key("Escape")
    await page.tab_to("stop")
    await page.key("Enter")
    await page.until("document.body.dataset.phase === 'ready'")
    assert await page.run(focus) == "start"
    await stopped(stack, session)
    clean(page)


async def test_blocked_sound_takes_one_button(page: Page, stack: Stack) -> None:
    await page.open(f"{stack.url}/")
    await page.run("document.getElementById('start').click()")  # no person clicked: Chromium holds the sound back
    await page.until(LIVE)
    await page.until("!document.getElementById('unblock').hidden")
    assert await page.run("document.getElementById('audio').paused")
    await page.click("#unblock")
    await page.until("document.getElementById('unblock').hidden")
    assert not await page.run("document.getElementById('audio').paused || document.getElementById('video').paused")


async def test_asks_for_the_key_where_no_token_is_handed_out(page: Page, stack: Stack) -> None:
    port = urlsplit(stack.url).port
    await page.open(f"http://page.localhost:{port}/")  # not a name that the demo trusts
    await page.click("#start")
    for key, reported in (("a-wrong-one", "refused"), (stack.api_key, None)):
        await page.until("document.getElementById('key-dialog').open")
        await page.type(key)
        await page.key("Enter")
        if reported:
            await page.until(f"document.getElementById('key-text').textContent.includes({reported!r})")
    await page.until(LIVE)
    kept = await page.run("JSON.stringify({...localStorage}) + document.cookie")
    assert stack.api_key not in kept
    assert [e for e in page.errors if "404" not in e and "401" not in e] == []


@pytest.mark.network
async def test_captions_and_panel_follow_the_speech_and_the_status_is_asked_for_after_events_only(
    page: Page, stack: Stack
) -> None:
    await start(page, stack)
    await captions_follow_and_can_be_switched_off(page)
    await panel_tells_what_went_on(page)
    await status_follows_events(page, await session_id(page))
    clean(page)


async def captions_follow_and_can_be_switched_off(page: Page) -> None:
    """In a session that has said nothing; afterwards two texts are said."""
    log = "[...document.getElementById('captions-log').children].map((line) => line.textContent)"
    await page.click("#text")
    await page.type("This is shown. So is this.")
    await page.key("Enter")
    await page.until("document.getElementById('captions-text').textContent.startsWith('This is')")
    assert await page.run("document.getElementById('captions').checkVisibility()")
    assert await page.run("document.getElementById('captions').ariaHidden") == "true"
    assert await page.run("document.getElementById('captions-log').ariaLive") == "polite"
    await page.until(f"{log}.length === 2")
    assert await page.run(log) == ["This is shown.", "So is this."]  # whole sentences, for screen readers
    await page.until("document.getElementById('captions').hidden")

    await page.click("#captions-toggle")
    assert await page.run("document.getElementById('captions-toggle').ariaPressed") == "false"
    await page.click("#text")
    await page.type("This is not.")
    await page.click("#speak")
    await page.until("document.getElementById('events').textContent.includes('Segment 2 finished')")
    assert await page.run(log) == ["This is shown.", "So is this."]
    assert await page.run("document.getElementById('captions').hidden")


async def panel_tells_what_went_on(page: Page) -> None:
    """In a session that has spoken."""
    await page.until("document.getElementById('diagnosis-code').textContent === 'ok'")
    await page.until("document.getElementById('events').textContent.includes('finished after')")
    await page.until("!document.getElementById('skew').hidden")
    tiles: dict[str, Any] = await page.run(
        "Object.fromEntries([...document.querySelectorAll('.tiles > div')].map((e) => [...e.children].map((c) => c.textContent)))"
    )
    assert tiles["Publisher"] == "livekit"
    for name in ("First frame after", "Speak to audio", "Frame rate"):
        assert float(tiles[name].split()[0]) > 0, name
    assert math.isfinite(float(tiles["Audio vs video"].replace("−", "-").split()[0]))
    counts = await page.run("[...document.querySelectorAll('#funnel li')].map((e) => e.children[1].textContent)")
    assert len(counts) == 7
    assert "0" not in counts[:6]
    assert [url for url in page.requests if "/debug/" in url] == []  # which are for operators only


async def status_follows_events(page: Page, session: str) -> None:
    """Nothing is asked while nothing happens; something is after a text."""

    def asked() -> int:
        return sum(url.endswith(f"/session/{session}") for url in page.requests)

    await page.run("""globalThis.read = 0, new MutationObserver(() => read += 1).observe(
        document.getElementById('timing-facts'), {childList: true, characterData: true, subtree: true}), null""")

    async def rests() -> bool:  # the figures of the browser go on, and the orchestrator is asked nothing
        before = asked()
        await page.run("read = 0, null")
        await page.until("read >= 4")
        return asked() == before

    await until(rests, every_s=LOOK_S)
    before = asked()
    await page.click("#text")
    await page.type("One.")
    await page.key("Enter")
    await page.until("document.getElementById('events').textContent.includes('Segment 3 finished')")
    await until(lambda: asked() > before)


@pytest.mark.network
async def test_phone_shows_everything_without_scrolling_sideways_and_leaving_ends_the_session(
    page: Page, stack: Stack
) -> None:
    await page.size(360, 740, scale=2)
    await page.open(f"{stack.url}/")
    assert await page.run(OVERFLOW) == 0
    await page.click("#start")
    await page.until(LIVE)
    await page.run("document.getElementById('panel').open = true")
    session = await session_id(page)
    assert await page.run(OVERFLOW) == 0
    small = {name: height for name, height in await page.run(TARGETS) if height < 24}
    assert small == {}
    await page.open("about:blank")
    await stopped(stack, session)
    clean(page)


@pytest.mark.network
async def test_talk_says_what_is_missing_and_say_goes_on_until_the_session_ends(page: Page, silent: Stack) -> None:
    stack = silent
    await page.size(1280, 800)
    await page.open(f"{stack.url}/")
    await page.click("#start-talk")
    await page.until("!document.getElementById('problem').hidden")
    assert await text(page, "problem-code") == "conversation_unavailable"
    problem = await text(page, "problem-text")
    assert "“make demo” or “tools/setup conversation”" in problem and "Say works" in problem
    assert await page.run("document.body.dataset.phase") == "ready"
    await page.click("#start")
    await page.until(LIVE)
    assert await page.run("document.getElementById('problem').hidden")
    assert await page.run("document.getElementById('speak-form').checkVisibility()")

    await asyncio.to_thread(stack.post, f"/session/{await session_id(page)}/stop")
    await page.until("document.body.dataset.phase === 'ready'")
    assert "Press Talk or Say to begin again" in await text(page, "status")
    await page.click("#start")
    await page.until(LIVE)
    clean(page, "/session/start")
