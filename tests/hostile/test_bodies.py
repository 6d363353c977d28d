"""Bodies, headers and paths made to break a parser: each gets a 4xx with a code, and the session beside it goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from musetalk_agent.protocol import http_server
from musetalk_agent.protocol.problems import MEDIA_TYPE, ErrorCode
from tests.fakes.stage import API_KEY, Stage, stage
from tests.waiting import NEVER_S

ROUTES = ("/token", "/session/start", "/session/{id}/speak")
REFUSED = (
    "invalid_request",
    "message_too_large",
    "avatar_missing",
)  # Python's JSON reads UTF-16 too, and then the avatar is missing
NOT_AN_OBJECT: dict[str, bytes] = {
    "nothing": b"",
    "a brace": b"{",
    "a half": b'{"room": "a", ',
    "null": b"null",
    "a number": b"1e999",
    "not a number": b"NaN",
    "a list": b"[]",
    "a string": b'"room"',
    "two objects": b'{"room":"a"}{"room":"b"}',
    "single quotes": b"{'room': 'a'}",
    "a comment": b'{"room": "a" /* b */}',
    "UTF-16": '{"room": "a"}'.encode("utf-16"),
    "a byte-order mark": b'\xef\xbb\xbf{"room": "a"}',
    "broken UTF-8": b'{"room": "\xff\xfe\x80"}',
    "overlong UTF-8": b'{"room": "\xc0\xaf"}',
    "lone surrogate bytes": b'{"room": "\xed\xa0\x80"}',
    "nul bytes": bytes(100),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "deep and closed": b"[" * 20_000 + b"]" * 20_000,
    "a form": b"room=a&identity=b",
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a zip": b"PK\x03\x04" + bytes(200),
}
WRONG_VALUES: dict[str, object] = {
    "a number": 5,
    "a list": ["a"],
    "an object": {"$ne": ""},
    "true": True,
    "empty": "",
    "very long": "x" * 100_000,
}
PATHS = (
    "/../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/static/../orchestrator/settings.py",
    "/app.js/../../app.py",
    "/app.js%00.html",
    "/session/%00",
    "/session/..%2f..%2f",
    "/session/ses_x%0d%0aSet-Cookie:%20a=b",
    "/session/" + "a" * 4000,
    "/session/🙂",
    "/session/%ff%fe",
    "/session/{session_id}",
    "/session/ses_0000000000000000/stop/",
    "//session/start",
    "/session//start",
    "/vendor/",
    "/vendor/..",
    "/.git/config",
    "/openapi.json/",
    "/metrics;/health",
)


@pytest.fixture
async def session() -> AsyncIterator[tuple[Stage, str]]:
    async with stage() as running:
        running.agent.sessions_max = 1000
        yield running, (await running.start())["session_id"]


async def reported(answer: httpx.Response) -> str:
    """The code of a refusal, which is problem+json and says something."""
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert answer.headers["content-type"] == MEDIA_TYPE
    body = answer.json()
    assert body["status"] == answer.status_code and len(body["detail"]) > 10
    assert len(answer.content) < 2000, "a refusal does not send the body back"
    return str(ErrorCode(body["code"]))


@pytest.mark.parametrize("route", ROUTES)
async def test_what_is_no_object_is_refused(session: tuple[Stage, str], route: str) -> None:
    running, session_id = session
    # /speak takes text/plain as what it is: see tests/orchestrator/routes/test_dictation.py.
    kinds = ("application/json", "application/xml" if route.endswith("/speak") else "text/plain")
    for name, body in NOT_AN_OBJECT.items():
        for kind in kinds:
            answer = await running.http.post(route.format(id=session_id), content=body, headers={"Content-Type": kind})
            assert await reported(answer) in REFUSED, name
    assert (await running.http.get(f"/session/{session_id}")).json()["state"] == "ready"


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/token", ("room", "identity", "ttl_s")),
        (
            "/session/start",
            ("room", "frames_zip_url", "idle_video_url", "avatar_id", "engine", "fps", "width", "height", "speaker"),
        ),
        ("/session/{id}/speak", ("text", "voice")),
    ],
)
async def test_wrong_values_name_their_field(session: tuple[Stage, str], route: str, fields: tuple[str, ...]) -> None:
    running, session_id = session
    good = {"/token": {"room": "a", "identity": "b"}, "/session/start": {"room": "a", "avatar_id": "demo"}}
    for field in fields:
        for name, value in WRONG_VALUES.items():
            body = {**good.get(route, {"text": "a"}), field: value}
            answer = await running.http.post(route.format(id=session_id), json=body)
            if answer.status_code < 300:
                continue  # an identity may be long, an address empty
            code = await reported(answer)
            assert code != "internal_error", (field, name)
            if code == "invalid_request":
                assert answer.json()["field"].split(".")[0] == field, (field, name)


async def test_an_unknown_field_is_named(session: tuple[Stage, str]) -> None:
    running, _ = session
    for name in ("rooms", "__proto__", "constructor", "room\0", "a" * 5000, "🙂"):
        answer = await running.http.post("/token", json={"room": "a", "identity": "b", name: 1})
        assert await reported(answer) == "invalid_request"


@pytest.mark.parametrize("path", PATHS)
async def test_paths_lead_nowhere(session: tuple[Stage, str], path: str) -> None:
    """Sent as they are: httpx would tidy them up."""
    running, _ = session
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {API_KEY}\r\nConnection: close\r\n\r\n"
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), NEVER_S)
    writer.close()
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 404, 405, 307), answer[:300]
    assert b"root:" not in answer and b"Set-Cookie" not in answer.partition(b"\r\n\r\n")[0]


async def test_bodies_too_large_are_refused_before_they_are_read(session: tuple[Stage, str]) -> None:
    running, _ = session

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(2000):
            yield bytes(1 << 10)

    announced = await running.http.post("/token", content=json.dumps({"room": "a" * (300 << 10)}))
    assert await reported(announced) == "message_too_large"
    try:
        streamed = await running.http.post("/token", content=endless())
    except httpx.TransportError:
        return  # the server may close while the client still sends
    assert await reported(streamed) == "message_too_large"


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Basic YWRtaW46YWRtaW4=",
        "bearer\tx",
        "Bearer \xe9",
        "Bearer " + "a" * 8000,
        "Bearer a, Bearer b",
    ],
)
async def test_keys_that_are_none(session: tuple[Stage, str], header: str) -> None:
    running, _ = session
    answer = await running.http.get("/sessions", headers={"Authorization": header.encode("latin-1")})
    assert await reported(answer) in ("unauthorized", "rate_limited")


@pytest.mark.parametrize("path", ["/token", "/avatars"])
async def test_a_body_that_stops_coming_ends(
    session: tuple[Stage, str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "SILENCE_S", 0.2)
    running, _ = session
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {API_KEY}\r\nContent-Length: 5000\r\n\r\nPK"
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.readuntil(b"}"), NEVER_S)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408") and b'"code": "body_timeout"' in answer
