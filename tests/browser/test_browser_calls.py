"""`AvatarClient` against a server that refuses: what is asked again, and a start whose page goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.browser.chromium import Page
from tests.fakes.serving import plain_config, serving
from tests.waiting import NEVER_S, until

pytestmark = pytest.mark.browser
WEB = Path(__file__).resolve().parents[2] / "orchestrator" / "web"
CALL = """(async () => {
  const { AvatarClient } = await import('/avatar-client.js');
  const client = new AvatarClient({ token: 'key' });
  return client.%s.catch((error) => [error.code, error.status]);
})()"""


@pytest.fixture
def page(unseen_page: Page) -> Page:
    """Nothing here is looked at."""
    return unseen_page


class Server:
    """Answers with `answers` (status, code), one each, then with success. A start waits as long as `slow` says."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.asked: list[str] = []
        self.keys: list[str] = []
        self.slow = False
        self.left = asyncio.Event()

    async def answer(self, request: Request) -> Response:
        self.asked.append(f"{request.method} {request.url.path}")
        if request.url.path == "/session/start":
            self.keys.append(request.headers["idempotency-key"])
            if self.slow:
                await request.body()
                while not await request.is_disconnected():  # noqa: ASYNC110 - Starlette has no event for it
                    await asyncio.sleep(0.02)
                self.left.set()
        if self.answers:
            status, code = self.answers.pop(0)
            return JSONResponse({"code": code, "detail": "No."}, status, {"Retry-After": "0"})
        return JSONResponse({"session_id": "ses_1", "segment": 1})

    async def token(self, request: Request) -> Response:
        return JSONResponse({"token": "key", "expires_at": "2099-01-01T00:00:00Z"})

    async def avatars(self, request: Request) -> Response:
        return JSONResponse({"avatars": [], "next": None})

    @property
    def app(self) -> Starlette:
        calls: list[Any] = [
            Route("/page/token", self.token),
            Route("/avatars", self.avatars),
            Route("/session/{path:path}", self.answer, methods=["GET", "POST"]),
            Mount("/", StaticFiles(directory=WEB, html=True)),
        ]
        return Starlette(routes=calls)


@asynccontextmanager
async def served(page: Page) -> AsyncIterator[tuple[Server, str]]:
    server = Server()
    async with serving(plain_config(server.app)) as url:
        yield server, url


async def test_what_may_pass_is_asked_again(page: Page) -> None:
    async with served(page) as (server, url):
        await page.open(f"{url}/favicon.svg")
        server.answers = [(409, "session_conflict"), (503, "draining"), (502, ""), (429, "rate_limited")]
        assert (await page.run(CALL % "start({room: 'r'})"))["session_id"] == "ses_1"
        assert len(server.keys) == 5 and len(set(server.keys)) == 1


@pytest.mark.parametrize(
    ("call", "answers", "reported"),
    [
        ("start({room: 'r'})", [(422, "avatar_missing")], ["avatar_missing", 422]),
        ("session('ses_1')", [(404, "session_not_found")], ["session_not_found", 404]),
        ("speak('ses_1', 'Hi.')", [(502, "tts_failed")], ["tts_failed", 502]),
        ("interrupt('ses_1')", [(409, "session_conflict")], ["session_conflict", 409]),
    ],
)
async def test_what_stays_or_may_have_been_done_is_reported_at_once(
    page: Page, call: str, answers: list[tuple[int, str]], reported: list[Any]
) -> None:
    async with served(page) as (server, url):
        await page.open(f"{url}/favicon.svg")
        server.answers = answers
        assert await page.run(CALL % call) == reported
        assert len(server.asked) == 1


async def test_a_page_that_is_reloaded_takes_its_start_with_it(whole_page: Page) -> None:
    page = whole_page  # it is clicked
    async with served(page) as (server, url):
        server.slow = True
        await page.size(1280, 800)
        await page.open(url)
        await page.click("#start")
        await until(lambda: server.asked)
        await page.open(f"{url}/favicon.svg")
        async with asyncio.timeout(NEVER_S):
            await server.left.wait()


async def test_a_conversation_that_cannot_be_had_is_explained(whole_page: Page) -> None:
    page = whole_page  # it is clicked
    async with served(page) as (server, url):
        server.answers = [(422, "conversation_unavailable")]
        await page.size(1000, 700)
        await page.open(url)
        await page.click("#start-talk")
        await page.until("document.getElementById('problem-code').textContent === 'conversation_unavailable'")
        assert "Say works" in await page.run("document.getElementById('problem-text').textContent")
        assert await page.run("document.body.dataset.phase") == "ready"
