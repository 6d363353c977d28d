"""`/audio` under hostile messages: each ends in a warning, an error with a code, or sound; never in a crash or a stuck session."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import CLOSE_POLICY
from orchestrator.audio.ingest import AudioFormat, PcmDecoder
from tests.fakes.stage import Stage, stage

TEXTS: dict[str, str] = {
    "nothing": "",
    "a brace": "{",
    "null": "null",
    "a number": "1e400",
    "not a number": "NaN",
    "a list": '["audio.start"]',
    "a string": '"clear"',
    "no type": "{}",
    "a type of null": '{"type": null}',
    "a type that is a number": '{"type": 1}',
    "a type that is a list": '{"type": ["clear"]}',
    "a type that is an object": '{"type": {"type": "clear"}}',
    "an unknown type": '{"type": "shutdown"}',
    "a type with a nul": '{"type": "clear\\u0000"}',
    "a lone surrogate": '{"type": "\\ud800"}',
    "a type in capitals": '{"type": "CLEAR"}',
    "a type of a megabyte": '{"type": "' + "a" * 900_000 + '"}',
    "an inner message": '{"type": "segment.start", "segment": 1, "sample_rate": 16000}',
    "an answer as a question": '{"type": "playback.finished", "segment": 1, "position_s": 1, "interrupted": false}',
    "a hello": '{"type": "hello", "session_id": "x"}',
    "deep lists": "[" * 100_000,
    "deep objects": '{"type":' * 50_000,
    "deep and closed": '{"type": "ping", "a": ' + "[" * 5000 + "]" * 5000 + "}",
    "keys twice": '{"type": "ping", "type": "clear"}',
    "a prototype": '{"type": "ping", "__proto__": {"admin": true}}',
    "more fields": '{"type": "audio.start", "sample_rate": -1, "segment": "x"}',
    "a huge number": '{"type": "ping", "n": ' + "9" * 5000 + "}",
    "PCM as base64": '{"type": "audio", "pcm": "' + "AAAA" * 1000 + '"}',
    "a script": "<script>alert(1)</script>",
    "a template": "${jndi:ldap://127.0.0.1/a}",
}
BINARIES: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\x01",
    "odd": bytes(641),
    "loudest": struct.pack("<h", -32768) * 640,
    "alternating": struct.pack("<hh", -32768, 32767) * 320,
    "a WAV": b"RIFF\xff\xff\xff\xffWAVEfmt " + bytes(600),
    "an MP3": b"ID3\x04" + bytes(637),
    "JSON as bytes": b'{"type": "clear"}',
    "a zip": b"PK\x03\x04" + bytes(636),
    "the limit": bytes(1 << 20),
    "past the limit": bytes((1 << 20) + 2),
    "much": bytes(3 << 20),
}
QUERIES = (
    "&sample_rate=0",
    "&sample_rate=-16000",
    "&sample_rate=7999",
    "&sample_rate=48001",
    "&sample_rate=1e4",
    "&sample_rate=١٦٠٠٠",
    "&sample_rate=16000.0",
    "&sample_rate=" + "9" * 400,
    "&sample_rate=nan",
    "&format=s24le",
    "&format=S16LE%00",
    "&format=" + "a" * 5000,
    "&format=../../etc/passwd",
)


@pytest.fixture
async def running() -> AsyncIterator[Stage]:
    async with stage() as ready:
        yield ready


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_a_hostile_text_is_answered_or_ignored(running: Stage, text: str) -> None:
    async with running.live() as (started, line):
        await line.socket.send(text)
        await line.say("ping")
        await line.wait("pong", "error")
        errors = line.of("error")
        if errors:
            assert errors[0]["code"] in ("invalid_message", "message_too_large") and len(errors[0]["message"]) < 400
            assert await line.closed() == CLOSE_POLICY
    await still_works(running, started)


@pytest.mark.parametrize("data", BINARIES.values(), ids=BINARIES)
@pytest.mark.parametrize("form", list(AudioFormat))
async def test_hostile_bytes_are_sound_or_an_error(running: Stage, data: bytes, form: AudioFormat) -> None:
    async with running.live(query=f"&format={form.value}") as (started, line):
        await line.socket.send(data)
        await line.say("ping")
        await line.wait("pong", "error")
        if line.of("error"):
            assert line.of("error")[0]["code"] == "message_too_large"
    await still_works(running, started)


@pytest.mark.parametrize("query", QUERIES)
async def test_a_hostile_query_is_refused_before_the_upgrade(running: Stage, query: str) -> None:
    started = await running.start()
    url = httpx.URL(started["audio_url"].replace("ws://", "http://") + query)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    answer = await running.http.get(url, headers=upgrade)
    assert answer.status_code == 422 and answer.json()["code"] == "invalid_request"
    assert len(answer.content) < 1000


async def still_works(running: Stage, started: dict[str, object]) -> None:
    """A proper sender is served after it."""
    async with running.audio(str(started["audio_url"])) as line:
        hello = await line.wait("hello")
        await line.socket.send(json.dumps({"type": "audio.start"}))
        await line.socket.send(bytes(6400))
        await line.wait("ack", received_samples=hello["received_samples"] + 3200)  # an earlier one may come first


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(st.binary(max_size=64), max_size=20), form=st.sampled_from(AudioFormat))
def test_any_cut_of_the_bytes_is_the_same_sound(parts: list[bytes], form: AudioFormat) -> None:
    whole, pieces = PcmDecoder(form), PcmDecoder(form)
    assert b"".join(pieces.decode(part) for part in parts) == whole.decode(b"".join(parts))
