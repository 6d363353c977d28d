"""The calls of `smoke` to an orchestrator that refuses: which are made again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from musetalk_tools.deploy.smoke import SmokeFailed, _call
from tests.fakes.serving import plain_config, serving
from tests.waiting import NEVER_S


@asynccontextmanager
async def answering(*answers: tuple[int, str]) -> AsyncIterator[tuple[httpx.AsyncClient, list[str]]]:
    """A client of a server with these answers, then success; and the paths that were asked."""
    left, asked = list(answers), []

    async def answer(request: Request) -> Response:
        asked.append(request.url.path)
        if not left:
            return JSONResponse({"ok": True})
        status, code = left.pop(0)
        return JSONResponse({"code": code}, status, {"Retry-After": "0"})

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    async with (
        serving(plain_config(app)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=NEVER_S) as http,
    ):
        yield http, asked


async def test_what_may_pass_is_asked_again() -> None:
    async with answering((503, "at_capacity"), (409, "session_conflict"), (502, "")) as (http, asked):
        assert await _call(http, "start", "POST", "/session/start") == {"ok": True}
    assert len(asked) == 4


async def test_what_may_have_been_said_is_not_said_again() -> None:
    async with answering((429, "rate_limited"), (502, "tts_failed")) as (http, asked):
        with pytest.raises(SmokeFailed, match="speak: HTTP 502"):
            await _call(http, "speak", "POST", "/speak", repeatable=False)
    assert len(asked) == 2


async def test_what_stays_is_reported_at_once() -> None:
    async with answering((403, "forbidden")) as (http, asked):
        with pytest.raises(SmokeFailed, match="start: HTTP 403"):
            await _call(http, "start", "POST", "/session/start")
    assert len(asked) == 1
