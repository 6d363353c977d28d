"""The plugin's calls to an orchestrator that refuses: which are made again, and with the same key."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.fakes.serving import plain_config, serving
from tests.integrations.livekit_agents.world import MISSING, PATHS, python

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
HTML = Response("<h1>Not here</h1>", 404, media_type="text/html")


def problem(status: int, code: str) -> Response:
    return JSONResponse({"code": code, "detail": "No."}, status, {"Retry-After": "0"})


async def called(*answers: Response) -> tuple[list[object], list[str]]:
    """What the plugin made of these answers, and the keys of the starts it sent."""
    left, keys = list(answers), []

    async def answer(request: Request) -> Response:
        if request.url.path.endswith("start"):
            keys.append(request.headers["idempotency-key"])
        return left.pop(0) if left else JSONResponse({"session_id": "ses_1"})

    routes = [Route("/{path:path}", answer, methods=["POST"])]
    async with serving(plain_config(Starlette(routes=routes))) as url:
        script = str(Path(__file__).with_name("calls.py"))
        process = await asyncio.create_subprocess_exec(
            python(), script, url, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATHS}
        )
        reported, _ = await process.communicate()
    return [json.loads(line) for line in reported.splitlines()], keys


async def test_what_may_pass_is_asked_again_with_the_same_key() -> None:
    reported, keys = await called(
        problem(409, "session_conflict"), problem(429, "rate_limited"), problem(503, "draining")
    )
    assert reported == [{"session_id": "ses_1"}, None]
    assert len(keys) == 4 and len(set(keys)) == 1


async def test_what_stays_is_reported_at_once_and_a_stop_is_repeated() -> None:
    reported, keys = await called(problem(422, "avatar_missing"), problem(421, "session_elsewhere"))
    assert reported == [["avatar_missing", 422], None] and len(keys) == 1


async def test_an_address_that_is_no_orchestrators_is_not_asked_again() -> None:
    reported, keys = await called(HTML)
    assert reported[0] == ["http_404", 404] and len(keys) == 1
