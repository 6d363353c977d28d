"""Text that is spoken while it is being written: over HTTP and over a WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import websockets

from orchestrator.routes import auth, speak_ws
from orchestrator.tts.voices import Voices
from tests.fakes.stage import Line, Stage, stage
from tests.fakes.tone_voice import RATE, TonePerWord
from tests.hostile.test_bodies import NOT_AN_OBJECT
from tests.orchestrator.routes.test_auth import refused
from tests.waiting import until

PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


class Pen:
    """A body that is written piece by piece."""

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    def write(self, piece: str | None) -> None:
        self._pieces.put_nowait(piece if piece is None else piece.encode())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            yield piece


def post(running: Stage, session_id: str, body: Any, **query: str) -> asyncio.Task[httpx.Response]:
    sending = running.http.post(f"/session/{session_id}/speak", content=body, headers=PLAIN, params=query)
    return asyncio.create_task(sending)


@asynccontextmanager
async def chunked(running: Stage, session_id: str, *pieces: str) -> AsyncIterator[asyncio.Task[tuple[int, Any]]]:
    """A body that has begun and does not end, from a client that reads meanwhile (httpx does not). Yields its answer."""
    host, port = running.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [
        f"POST /session/{session_id}/speak HTTP/1.1",
        f"Host: {host}",
        f"Authorization: {running.http.headers['Authorization']}",
        "Content-Type: text/plain",
        "Transfer-Encoding: chunked",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    for piece in pieces:
        writer.write(f"{len(piece.encode()):x}\r\n{piece}\r\n".encode())

    async def answer() -> tuple[int, Any]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].split()[0])
        return int(head.split()[1]), json.loads(await reader.readexactly(length))

    reading = asyncio.create_task(answer())
    try:
        yield reading
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        writer.close()


@asynccontextmanager
async def writing(running: Stage, started: dict[str, Any], query: str = "") -> AsyncIterator[Line]:
    """A text connection."""
    base = running.url.replace("http", "ws")
    key = running.http.headers["Authorization"]
    url = f"{base}/session/{started['session_id']}/speak?{query.removeprefix('&')}"
    async with running.audio(url, Authorization=key) as line:
        yield line


async def say(line: Line, kind: str, **fields: Any) -> None:
    await line.socket.send(json.dumps({"type": kind, **fields}))


def live_of(running: Stage, started: dict[str, Any]) -> Any:
    return running.app.state.context.sessions.registry.get(started["session_id"]).live


def words(running: Stage, segment: int) -> list[str]:
    return [cue[0] for cue in running.agent.only.segments[segment].cues if cue[0] != "_"]


async def test_a_body_is_spoken_while_it_comes(speaking: Stage) -> None:
    async with speaking.live() as (started, line):
        pen = Pen()
        answer = post(speaking, started["session_id"], pen, voice="tone:two")
        pen.write("One t")
        pen.write("wo. Thr")
        await line.wait("playback.started")
        assert words(speaking, 1) == ["One", "two."] and not answer.done()
        pen.write("ee. Fünf 🙂".encode()[:-2].decode(errors="ignore"))
        pen.write(None)
        assert (await answer).status_code == 202 and answer.result().json() == {"segment": 1}
        finished = await line.wait("playback.finished")
        assert words(speaking, 1) == ["One", "two.", "Three.", "Fünf"]
        assert finished["position_s"] == pytest.approx(0.4 + 2 * 0.22, abs=0.01)
        assert speaking.agent.only.segments[1].rate == RATE


async def test_a_whole_body_needs_no_pieces(speaking: Stage) -> None:
    async with speaking.live() as (started, line):
        answer = await post(speaking, started["session_id"], b"All at once. Yes.")
        assert (answer.status_code, answer.json()) == (202, {"segment": 1})
        await line.wait("playback.finished")
        assert words(speaking, 1) == ["All", "at", "once.", "Yes."]


async def test_an_interrupt_answers_the_writer(speaking: Stage, voice: TonePerWord) -> None:
    async with speaking.live() as (started, line):
        session_id = started["session_id"]
        async with chunked(speaking, session_id, "One hang. Mo") as answer:
            await line.wait("playback.started")
            await speaking.http.post(f"/session/{session_id}/interrupt")
            assert await answer == (202, {"segment": 1})
        assert (await line.wait("playback.finished"))["interrupted"] is True and voice.closed == 1


async def test_a_voice_that_breaks_answers_the_writer(speaking: Stage) -> None:
    async with speaking.live() as (started, line):
        async with chunked(speaking, started["session_id"], "One break now. Mo") as answer:
            status, problem = await answer
        assert (status, problem["code"]) == (502, "tts_failed")
        assert (await line.wait("warning"))["code"] == "tts_failed"


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        (b"", {}, 422, "invalid_request"),
        ("… 🙂 —".encode(), {}, 422, "invalid_request"),
        (b"Hello.", {"voice": "tone:three"}, 422, "voice_unknown"),
        (b"Hello.", {"voice": "elevenlabs:any"}, 503, "voice_unavailable"),
        (b"Hello.", {"voice": "x" * 200}, 422, "invalid_request"),
        (b"word " * 14_000, {}, 413, "message_too_large"),
    ],
)
async def test_what_cannot_be_spoken(
    speaking: Stage, body: bytes, query: dict[str, str], status: int, code: str
) -> None:
    started = await speaking.start()
    answer = await post(speaking, started["session_id"], body, **query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("body", [b"caf\xe9 is closed.", b"\xff\xfe", "cut off \u20ac".encode()[:-1], b"a\xed\xa0\x80"])
async def test_a_text_that_is_no_utf8_is_refused_and_nothing_is_said(speaking: Stage, body: bytes) -> None:
    started = await speaking.start()
    answer = await post(speaking, started["session_id"], body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["field"]) == (422, "invalid_request", "text")
    assert body[problem["value"]] >= 0x80  # the byte that is wrong


async def test_utf8_may_be_cut_anywhere(speaking: Stage) -> None:
    started = await speaking.start()
    text = "Gr\u00fc\u00df dich, \U0001f600 Welt.".encode()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(len(text)):
            yield text[at : at + 1]

    assert (await post(speaking, started["session_id"], pieces())).status_code == 202


@pytest.mark.parametrize(("charset", "status"), [("latin-1", 422), ("utf-16", 422), ("UTF-8", 202), ('"utf-8"', 202)])
async def test_another_charset_is_refused(speaking: Stage, charset: str, status: int) -> None:
    started = await speaking.start()
    answer = await speaking.http.post(
        f"/session/{started['session_id']}/speak",
        content=b"Hello.",
        headers={"Content-Type": f"text/plain; charset={charset}"},
    )
    assert answer.status_code == status
    assert status == 202 or answer.json()["code"] == "invalid_request"


async def test_any_bytes_are_a_text_or_an_error(speaking: Stage) -> None:
    started = await speaking.start()
    for name, body in NOT_AN_OBJECT.items():
        answer = await post(speaking, started["session_id"], body)
        assert answer.status_code in (202, 413, 422), name
        await speaking.http.post(f"/session/{started['session_id']}/interrupt")
    assert (await speaking.http.get(f"/session/{started['session_id']}")).json()["state"] in ("ready", "speaking")


async def test_a_body_that_stops_coming_is_ended(speaking: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "PAUSE_S", 0.3)
    async with speaking.live() as (started, line):
        async with chunked(speaking, started["session_id"], "One two") as answer:
            status, problem = await answer
        assert (status, problem["code"]) == (408, "body_timeout")
        await line.wait("playback.finished")
        assert words(speaking, 1) == ["One", "two"]


async def test_a_writer_that_hangs_up_has_said_what_it_said(speaking: Stage) -> None:
    async with speaking.live() as (started, line):
        async with chunked(speaking, started["session_id"], "One two"):
            await until(lambda: live_of(speaking, started).queues().texts == 1)
        await line.wait("playback.finished")
        assert words(speaking, 1) == ["One", "two"]


async def test_texts_over_a_websocket(speaking: Stage) -> None:
    async with speaking.live() as (started, line), writing(speaking, started, "&voice=tone:two") as pen:
        await say(pen, "text", text="One two. Th")
        assert (await pen.wait("segment"))["segment"] == 1
        await line.wait("playback.started")
        await say(pen, "text", text="ree")
        await say(pen, "end")
        await say(pen, "end")
        await say(pen, "text", text="Again.")
        assert (await pen.wait("segment", count=2))["segment"] == 2
        await say(pen, "end")
        await line.wait("playback.finished", count=2)
        assert [words(speaking, number) for number in (1, 2)] == [["One", "two.", "Three"], ["Again."]]
        await say(pen, "ping")
        await pen.wait("pong")
        await say(pen, "sing")
        assert (await pen.wait("warning"))["code"] == "unknown_type"


async def test_clear_over_a_websocket(speaking: Stage, voice: TonePerWord) -> None:
    async with speaking.live() as (started, line), writing(speaking, started) as pen:
        await say(pen, "text", text="One hang. More")
        await line.wait("playback.started")
        await say(pen, "clear")
        assert (await line.wait("playback.finished"))["interrupted"] is True
        await say(pen, "text", text="New one.")
        await say(pen, "end")
        assert (await line.wait("playback.finished", count=2))["interrupted"] is False
        assert words(speaking, 2) == ["New", "one."] and voice.closed >= 1


async def test_a_clear_and_a_ping_are_read_whatever_waits_for_the_voice(voice: TonePerWord) -> None:
    async with stage(voices=Voices("tone:one", synthesizers=[voice]), audio_backlog_s=1) as running:
        running.agent.hold = True
        async with running.live() as (started, line), writing(running, started) as pen:
            for text in ("This is one of many sentences. " * 140, "And a second text. " * 140):
                await say(pen, "text", text=text)
                await say(pen, "end")
            await say(pen, "text", text="x" * (16 << 9))
            await say(pen, "ping")
            await pen.wait("pong")
            await until(lambda: running.agent.only.segments)
            await say(pen, "clear")
            await line.wait("cleared")
            assert [m["interrupted"] for m in line.of("playback.finished")] == [True] * 3
            running.agent.hold = False
            await say(pen, "text", text="New one.")
            await say(pen, "end")
            assert (await line.wait("playback.finished", count=4))["interrupted"] is False
            assert words(running, 4) == ["New", "one."]


async def test_a_client_that_leaves_is_noticed_whatever_waits_for_the_voice(voice: TonePerWord) -> None:
    async with stage(voices=Voices("tone:one", synthesizers=[voice]), audio_backlog_s=1) as running:
        running.agent.hold = True
        async with running.live() as (started, line):
            async with writing(running, started) as pen:
                await say(pen, "text", text="One of many sentences. " * 140)
                await pen.wait("segment")
                assert _reading() == 1
            await until(lambda: _reading() == 0)
            running.agent.hold = False
            await say_again(running, started)
            finished = await line.wait("playback.finished", count=2)
            assert (finished["segment"], finished["interrupted"]) == (2, False), "what was written is spoken first"


def _reading() -> int:
    """Text connections that are being read."""
    return sum(task.get_name() == "speak-read" and not task.done() for task in asyncio.all_tasks())


async def say_again(running: Stage, started: dict[str, Any]) -> None:
    answer = await running.http.post(f"/session/{started['session_id']}/speak", json={"text": "again"})
    assert answer.status_code == 202


async def test_a_writer_that_leaves_has_said_what_it_said(speaking: Stage) -> None:
    async with speaking.live() as (started, line):
        async with writing(speaking, started) as pen:
            await say(pen, "text", text="One two")
            await pen.wait("segment")
        await line.wait("playback.finished")
        assert words(speaking, 1) == ["One", "two"]


async def test_a_text_that_pauses_is_ended(speaking: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speak_ws, "PAUSE_S", 0.2)
    async with speaking.live() as (started, line), writing(speaking, started) as pen:
        await say(pen, "text", text="One two")
        assert (await pen.wait("warning"))["code"] == "segment_timeout"
        await line.wait("playback.finished")


async def test_a_broken_voice_is_reported_to_the_writer(speaking: Stage) -> None:
    async with speaking.live() as (started, _), writing(speaking, started) as pen:
        await say(pen, "text", text="One break now. ")
        assert (await pen.wait("warning"))["code"] == "tts_failed"
        await say(pen, "text", text="lost. ")
        await say(pen, "end")
        await say(pen, "text", text="Works again.")
        assert (await pen.wait("segment", count=2))["segment"] == 2


async def test_every_text_that_fails_is_reported_however_many_wait(voice: TonePerWord) -> None:
    async with stage(voices=Voices("tone:one", synthesizers=[voice]), audio_backlog_s=1) as running:
        running.agent.hold = True
        async with running.live() as (started, _), writing(running, started) as pen:
            for text in ("One of many words " * 20 + "break now. ", "Two break now. ", "Three."):
                await say(pen, "text", text=text)
                await say(pen, "end")
            await pen.wait("segment", count=3)  # the first one waits for room, and breaks later
            running.agent.hold = False
            warnings = [await pen.wait("warning", count=number) for number in (1, 2)]
            assert [warning["code"] for warning in warnings] == ["tts_failed"] * 2


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_message"),
        ('{"type":"text"}', "invalid_message"),
        ('{"type":"text","text":"half \\ud83d of it"}', "invalid_message"),
        ('{"type":"text","text":"' + "x" * (17 << 10) + '"}', "message_too_large"),
    ],
)
async def test_what_it_may_not_do(speaking: Stage, message: str, code: str) -> None:
    async with writing(speaking, await speaking.start()) as pen:
        await pen.socket.send(message)
        assert (await pen.wait("error"))["code"] == code
        assert await pen.closed() == 1008


async def test_a_text_has_an_end(speaking: Stage) -> None:
    async with writing(speaking, await speaking.start()) as pen:
        for _ in range(5):
            await say(pen, "text", text="x" * (15 << 10))
        assert (await pen.wait("error"))["code"] == "message_too_large"


async def test_the_token_of_the_audio_url_does_not_write(speaking: Stage) -> None:
    """It is for `/audio`; text costs money at a voice's provider."""
    started = await speaking.start()
    token = dict(parse_qsl(urlsplit(started["audio_url"]).query))["token"]
    url = f"{speaking.url.replace('http', 'ws')}/session/{started['session_id']}/speak?token={token}"
    assert await refused(url) == (403, "forbidden")
    assert await refused(url.replace(token, "9" + token)) == (401, "unauthorized")
    async with speaking.audio(started["audio_url"]) as line:
        await line.wait("hello")


async def test_it_ends_with_the_session(speaking: Stage) -> None:
    started = await speaking.start()
    async with writing(speaking, started) as pen:
        await say(pen, "text", text="One hang.")
        await pen.wait("segment")
        await speaking.http.post(f"/session/{started['session_id']}/stop")
        assert await pen.closed() == 1001


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("{id}/speak", {}, 401),
        ("{id}/speak?token=wrong", {}, 401),
        ("{id}/speak?voice=tone:three", {"Authorization": "key"}, 422),
        ("ses_none/speak", {"Authorization": "key"}, 404),
        ("{id}/speak", {"Authorization": "key", "Origin": "https://elsewhere.example"}, 403),
    ],
)
async def test_who_may_not_write(speaking: Stage, path: str, headers: dict[str, str], status: int) -> None:
    started = await speaking.start()
    if "Authorization" in headers:
        headers = {**headers, "Authorization": speaking.http.headers["Authorization"]}
    url = speaking.url.replace("http", "ws") + "/session/" + path.format(id=started["session_id"])
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with websockets.connect(url, additional_headers=headers, proxy=None):
            pass
    assert caught.value.response.status_code == status
