"""`<talking-avatar>` on a site of another origin: started by a click, heard, written to, stopped, removed."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.conversation.conversations import find_python
from orchestrator.tts.voices import Voices
from tests.browser.chromium import Page
from tests.clients.printed import lines, printed
from tests.fakes.openai_models import KEY, FakeModels
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import API_KEY, Stage
from tests.fakes.tone_voice import TonePerWord
from tests.integrations.conversation import lasting_agent, warm_python
from tests.orchestrator.voice.stack import stack
from tests.waiting import until

pytestmark = [pytest.mark.browser, pytest.mark.livekit]
TALKS = pytest.mark.skipif(
    find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
)
NAMES = ("ready", "state", "transcript", "reply", "error", "ended")
WATCH = """<script>
globalThis.seen = [];
for (const element of document.querySelectorAll("talking-avatar"))
  for (const name of %s) element.addEventListener(name, ({detail}) => seen.push([name, detail, element.id]));
globalThis.$ = (part, id = "a") => document.getElementById(id).shadowRoot.querySelector(`[part~=${part}]`);
globalThis.states = (id = "a") => seen.filter(([name, , of]) => name === "state" && of === id).map(([, {state}]) => state);
globalThis.visible = (part, id) => $(part, id).checkVisibility();
</script>"""
FRAMES = """new Promise((resolve) => {
  const video = $("video", %r);
  let count = 0;
  const next = () => (++count === 5 ? resolve([video.videoWidth, video.videoHeight]) : video.requestVideoFrameCallback(next));
  video.requestVideoFrameCallback(next);
})"""


@dataclass
class Site:
    """A shop's own server: one page, and a token for each visitor where the page asks for one."""

    url: str
    stage: Stage
    models: FakeModels
    body: str = ""
    minted: int = 0
    given: Callable[[], Awaitable[Any]] | None = None
    """Answers `/avatar-token`."""

    def policy(self) -> str:
        """The one of docs/how-to/embed.md, with the page's own script allowed."""
        livekit = self.stage.settings.livekit_url
        connect = f"'self' {self.stage.url} {livekit} {livekit.replace('ws', 'http')}"
        scripts = f"script-src {self.stage.url} 'unsafe-inline'"
        return f"default-src 'none'; {scripts}; connect-src {connect}; img-src {self.stage.url}"

    async def mint(self, **fields: Any) -> str:
        body = {"origins": [self.url], "engine": "pattern", **fields}
        answer = await self.stage.http.post("/public-tokens", json=body)
        assert answer.status_code == 201, answer.text
        self.minted += 1
        return str(answer.json()["token"])

    async def sessions(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = (await self.stage.http.get("/sessions")).json()["sessions"]
        return listed

    async def open(self, page: Page, *tags: str) -> None:
        self.body = "".join(tags)
        await page.open(self.url + "/")
        await page.until("customElements.get('talking-avatar') !== undefined")

    def tag(self, attributes: str = "", id: str = "a", src: str | None = None) -> str:
        return f'<talking-avatar id="{id}" src="{src or self.stage.url}" {attributes}></talking-avatar>'


@pytest.fixture
async def site(livekit_server: LiveKitAccess) -> AsyncIterator[Site]:
    models = FakeModels(replies=["We have red shoes and blue shoes."])
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(serving(plain_config(models.app)))
        running = await exits.enter_async_context(
            stack(
                livekit_server,
                agents=0,
                lasting=lasting_agent.address(),
                voice_standby="off",
                voices=Voices("tone:one", synthesizers=[TonePerWord()]),
                llm_base_url=url + "/v1",
                llm_api_key=KEY,
                stt_base_url=url + "/v1",
                allow_private_urls=True,
                **({"conversation_python": warm_python.path()} if find_python() else {}),
            )
        )

        async def home(request: Request) -> Response:
            module = f'<script type="module" src="{running.stage.url}/talking-avatar.js"></script>'
            html = (
                f"<!doctype html><html lang=en><title>shop</title>{module}{made.body}{WATCH % json.dumps(NAMES)}</html>"
            )
            return HTMLResponse(html, headers={"Content-Security-Policy": made.policy()})

        async def token(request: Request) -> Response:
            return JSONResponse({"token": await made.mint(sessions=2)})

        async def printed_token(request: Request) -> Response:
            assert made.given is not None
            return JSONResponse(await made.given())

        app = Starlette(routes=[Route("/", home), Route("/token", token), Route("/avatar-token", printed_token)])
        made = Site("", running.stage, models)
        made.url = await exits.enter_async_context(serving(plain_config(app)))
        yield made


def clean(page: Page, *expected: str) -> list[str]:
    """What went wrong in the page, but for the browser's icon and the answers that the test expects."""
    return [error for error in page.errors if not any(part in error for part in ("favicon", *expected))]


@TALKS
async def test_a_visitor_talks_to_a_face_on_another_site(page: Page, site: Site, tmp_path: Path) -> None:
    token = await site.mint(conversation={"instructions": "Sell shoes.", "greeting": "Good morning."})
    await site.open(page, site.tag(f'token="{token}" talk text'))
    assert await page.run("[visible('start'), visible('stop'), visible('form'), visible('talk')]") == [
        True,
        False,
        False,
        False,
    ]
    await page.click("talking-avatar")  # the whole stage is the button
    await page.until("seen.some(([name]) => name === 'ready')")
    assert await page.run("states().slice(0, 2)") == ["starting", "ready"]
    width, height = await page.run(FRAMES % "a")
    assert width > 2 and height > 2 and await page.run("a.getAttribute('state')") in ("ready", "speaking")
    await page.until("seen.some(([name, {text, final}]) => name === 'reply' && final && text === 'Good morning.')")
    assert await page.run("[visible('form'), visible('talk'), visible('stop')]") == [True, True, True]

    await page.run("$('input').focus()")
    await page.type("Which shoes do you have?")
    await page.key("Enter")
    await page.until("seen.some(([name, {text, typed}]) => name === 'transcript' && typed && text.startsWith('Which'))")
    await page.until("seen.some(([name, {text, final}]) => name === 'reply' && final && text.includes('blue shoes'))")
    assert site.models.asked[-1][0][1].startswith("Sell shoes.") and site.models.asked[-1][-1][1].startswith("Which")
    assert await page.run("a.shadowRoot.querySelector('[role=log]').textContent.includes('You: Which shoes')")
    await page.until("a.activity === 'listening'")

    await page.run("$('talk').click()", gesture=True)
    await page.until("$('talk').getAttribute('aria-pressed') === 'true' && a.listening")
    await page.screenshot(tmp_path / "running.png")
    await page.run("$('talk').click()", gesture=True)
    await page.until("!a.listening")
    await page.run("a.muted = true, null")
    assert await page.run("$('mute').getAttribute('aria-label')") == "Turn sound on"

    await page.run("$('stop').click()")
    await page.until("a.state === 'ended' && seen.at(-1)[0] === 'ended'")
    assert await page.run("[seen.at(-1)[1], visible('start'), $('video').srcObject]") == [
        {"reason": "stopped"},
        True,
        None,
    ]

    async def stopped() -> bool:
        return [session["end_reason"] for session in await site.sessions()] == ["stopped"]

    await until(stopped)
    assert clean(page) == []


@pytest.mark.network
async def test_two_on_one_page_are_removed_moved_and_restarted(page: Page, site: Site) -> None:
    await site.open(
        page, site.tag('token-url="/token"', "a"), site.tag('token-url="/token" lang="zh-CN"', "b"), "<p id=p></p>"
    )
    assert await page.run("[$('start').textContent, $('start', 'b').textContent]") == ["Start talking", "开始对话"]
    await page.run("void Promise.all([a.start(), b.start()])", gesture=True)
    for id in "ab":
        await page.until(f"states('{id}').includes('ready')")
        assert (await page.run(FRAMES % id))[0] > 2
    assert site.minted == 2 and len({session["room"] for session in await site.sessions()}) == 2
    await page.run("p.append(a)")
    assert (await page.run(FRAMES % "a"))[0] > 2 and await page.run("a.state") == "ready"

    await page.run("globalThis.gone = b, b.remove()")
    await page.until("gone.state === 'ended' && gone.shadowRoot.querySelector('video').srcObject === null")

    async def ended() -> list[str]:
        return [s["end_reason"] for s in await site.sessions() if s["state"] == "stopped"]

    await until(lambda: _is(ended, ["stopped"]))
    await page.run("a.src = a.src + '/'")  # another address of the orchestrator: it starts anew there
    await page.until("states().filter((state) => state === 'ready').length === 2")
    assert site.minted == 3 and await page.run("states()") == ["starting", "ready", "ended", "starting", "ready"]
    await until(lambda: _is(ended, ["stopped"] * 2))
    assert clean(page) == []


async def test_one_is_moved_started_anew_where_its_address_changes_and_ends_with_its_element(
    page: Page, site: Site
) -> None:
    await site.open(page, site.tag('token-url="/token" lang="zh-CN"'), "<p id=p></p>")
    assert await page.run("$('start').textContent") == "开始对话"
    await page.run("void a.start()", gesture=True)
    await page.until("states().includes('ready')")
    await page.run("p.append(a)")
    assert await page.run("a.state") == "ready"
    await page.run("a.src = a.src + '/'")  # another address of the orchestrator
    await page.until("states().filter((state) => state === 'ready').length === 2")
    assert site.minted == 2 and await page.run("states()") == ["starting", "ready", "ended", "starting", "ready"]
    await page.run("globalThis.gone = a, a.remove()")
    await page.until("gone.state === 'ended'")

    async def ended() -> list[str]:
        return [s["end_reason"] for s in await site.sessions() if s["state"] == "stopped"]

    await until(lambda: _is(ended, ["stopped"] * 2))
    assert clean(page) == []


async def _is(read: Callable[[], Any], wanted: object) -> bool:
    return bool(await read() == wanted)


async def test_what_goes_wrong_is_shown_in_plain_words(page: Page, site: Site, tmp_path: Path) -> None:
    elsewhere = await site.mint(origins=["https://elsewhere.example"])
    used = await site.mint(minutes=0.2, sessions=2)
    tokens = site.stage.app.state.context.public_tokens
    await tokens.pay(tokens.token_id(used), "an earlier session", 9.0)
    await site.open(
        page,
        site.tag(f'token="{elsewhere}"'),
        '<talking-avatar id="b" lang=""></talking-avatar>',
        site.tag(f'token="{used}"', "c"),
    )

    await page.run("$('start').closest('button').focus()")
    await page.key("Enter")
    await page.until("a.state === 'failed'")
    assert await page.run(
        "[seen.find(([name]) => name === 'error')[1].code, $('error').textContent, visible('start')]"
    ) == [
        "origin_forbidden",
        "This site may not show this avatar.",
        True,
    ]
    await page.screenshot(tmp_path / "problem.png")
    assert await page.run("b.start().catch(({code}) => code)") == "no_token"
    assert await page.run("[b.state, $('error', 'b').textContent]") == [
        "failed",
        "This avatar is not set up: it has no token.",
    ]
    await page.run("void c.start()", gesture=True)
    await page.until(
        "seen.some(([name, {reason}, id]) => name === 'ended' && id === 'c' && reason === 'minutes_exhausted')"
    )
    assert await page.run("[c.state, $('error', 'c').textContent]") == [
        "ended",
        "The time for this conversation is over.",
    ]
    assert await page.run("c.start().catch(({code}) => code)") == "minutes_exhausted"
    assert await page.run("c.chat('Hello?').catch(({code}) => code)") == "session_not_found"
    await site.stage.http.delete(f"/public-tokens/{tokens.token_id(used)}")
    assert await page.run("c.start().catch(({code}) => code)") == "unauthorized"
    assert await page.run("$('error', 'c').textContent") == "This page was open for too long. Reload it to talk."
    assert clean(page, "status of 40", "signal stream") == []  # the last: livekit-client, of a room that closed


async def test_a_start_that_is_stopped_leaves_nothing(page: Page, site: Site) -> None:
    await site.open(page, site.tag('token-url="/token"'))
    assert await page.run(
        "(async () => { const s = a.start().catch(({code}) => code); await a.stop(); return s; })()"
    ) == ("cancelled")
    assert await page.run("[a.state, seen.filter(([name]) => name !== 'state')]") == ["ended", []]

    async def over() -> bool:
        return all(session["state"] == "stopped" for session in await site.sessions())

    await until(over)
    await a_room_that_closes_is_shown(page)


async def a_room_that_closes_is_shown(page: Page) -> None:
    """As LiveKit's client reports it."""
    await page.run(
        """(async () => {
      const module = performance.getEntriesByType('resource').find(({name}) => name.includes('livekit-client')).name;
      const { Room } = await import(module);
      const on = Room.prototype.on;
      Room.prototype.on = function (...given) { globalThis.room = this; return on.apply(this, given); };
      void a.start();
    })()""",
        gesture=True,
    )
    await page.until("a.state === 'ready'")
    await page.run("room.emit('disconnected', 5), null")  # DisconnectReason.ROOM_DELETED
    assert await page.run("[a.state, seen.findLast(([name]) => name === 'error')[1].code]") == ["failed", "room_left"]
    assert await page.run("visible('start') && $('error').textContent.length > 0")


@pytest.mark.network
@TALKS
async def test_the_how_to_works_as_printed(page: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page and the route of docs/how-to/embed.md, with other addresses."""
    how_to = "docs/how-to/embed.md"
    html, route = printed(how_to, "html"), printed(how_to, "python")
    assert lines(html) + lines(route) == 10
    monkeypatch.setenv("AVATAR_KEY", API_KEY)
    route = route.replace("https://www.shop.example", site.url).replace('"avatar_id": "demo"', '"engine": "pattern"')
    known: dict[str, Any] = {"app": FastAPI(), "os": os, "httpx": httpx}
    exec(route.replace("https://avatars.example", site.stage.url), known)
    site.given = known["avatar_token"]
    await site.open(
        page, html.replace("https://avatars.example", site.stage.url).replace("-avatar ", '-avatar id="a" ')
    )
    await page.click("talking-avatar")
    await page.until("a.state === 'ready'")
    assert (await page.run(FRAMES % "a"))[0] > 2
    assert clean(page) == []
