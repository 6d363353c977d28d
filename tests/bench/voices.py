"""First sound of a text that is being written, at a viewer: behind providers that need 200 ms for their first byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import websockets

from tests.bench.figures import Figure, percentile
from tests.bench.stack import Demo, Live, demo, environment
from tests.fakes import elevenlabs, openai_speech
from tests.fakes.elevenlabs import FakeElevenLabs
from tests.fakes.openai_speech import FakeOpenAI
from tests.fakes.serving import plain_config, serving

FIRST_BYTE_S = 0.2
ROUNDS = 20
BEGINNING = "Well, that is a good question. "
REST = "Let me see what I can find for you, and then we talk about it.".split(" ")
TOKEN_S = 0.03
"""Between two words, as a language model writes them."""
LEVEL = 3000
Writer = Callable[[Live, str], Awaitable[float]]


async def _pieces(said: list[float]) -> AsyncIterator[bytes]:
    """The text word by word; `said` gets the moment at which its first clause was complete."""
    said.append(asyncio.get_running_loop().time())
    yield BEGINNING.encode()
    for word in REST:
        await asyncio.sleep(TOKEN_S)
        yield (word + " ").encode()


async def _by_http(live: Live, voice: str) -> float:
    said: list[float] = []
    path = f"/session/{live.started['session_id']}/speak"
    headers = {"Content-Type": "text/plain"}
    answer = await live.demo.http.post(path, params={"voice": voice}, content=_pieces(said), headers=headers)
    answer.raise_for_status()
    return said[0]


async def _by_socket(live: Live, voice: str) -> float:
    said: list[float] = []
    base, _, query = live.started["audio_url"].partition("/audio?")
    url = f"{base}/session/{live.started['session_id']}/speak?{query}&voice={voice}"
    async with websockets.connect(url, proxy=None) as socket:
        async for piece in _pieces(said):
            await socket.send(json.dumps({"type": "text", "text": piece.decode()}))
        await socket.send(json.dumps({"type": "end"}))
    return said[0]


async def _round(live: Live, write: Writer, voice: str) -> tuple[float, float]:
    """When the first clause was said, and when the first sound was heard after it."""
    begun = asyncio.get_running_loop().time()
    said = await write(live, voice)
    assert await live.viewer.until(5, lambda: live.viewer.onsets(begun, LEVEL)), "nothing was heard"
    heard = live.viewer.onsets(begun, LEVEL)[0]
    await live.interrupt()
    await asyncio.sleep(0.7)
    return said, heard


async def _measured(
    stack: Demo, write: Writer, voice: str, first_bytes: list[float]
) -> tuple[list[float], list[float]]:
    """Milliseconds from the first clause, and from the provider's first byte, to the sound."""
    from_text, from_byte = [], []
    async with stack.live(engine="pattern") as live:
        await asyncio.sleep(1.0)
        for _ in range(ROUNDS + 1):
            del first_bytes[:]
            said, heard = await _round(live, write, voice)
            from_text.append(1000 * (heard - said))
            from_byte.append(1000 * (heard - first_bytes[0]))
    return from_text[1:], from_byte[1:]


async def voices(seconds: int) -> list[Figure]:
    """Both providers, both ways to write."""
    eleven = FakeElevenLabs(first_byte_s=FIRST_BYTE_S, letter_ms=60, tone=True)
    openai = FakeOpenAI(first_byte_s=FIRST_BYTE_S, letter_ms=60, tone=True, block_bytes=9600)
    out = []
    async with eleven.serving() as eleven_url, serving(plain_config(openai.app)) as openai_url:
        variables = {
            "ELEVENLABS_API_KEY": elevenlabs.KEY,
            "ELEVENLABS_BASE_URL": eleven_url,
            "OPENAI_API_KEY": openai_speech.KEY,
            "OPENAI_BASE_URL": f"{openai_url}/v1",
        }
        with environment(**variables):
            async with demo() as stack:
                for voice, first_bytes in (("elevenlabs:any", eleven.first_bytes), ("openai:any", openai.first_bytes)):
                    for way, write in (("POST", _by_http), ("WebSocket", _by_socket)):
                        texts, sounds = await _measured(stack, write, voice, first_bytes)
                        name = f"{voice.partition(':')[0]}, text by {way}"
                        out += _figures(name, texts, sounds)
    return out


def _figures(name: str, from_text: list[float], from_byte: list[float]) -> list[Figure]:
    return [
        Figure(
            f"first sound of a streamed text at a viewer, {name}, p95 of {len(from_text)}",
            percentile(from_text, 95),
            "ms",
            350,
            note=f"median {np.median(from_text):.0f}, longest {max(from_text):.0f}; provider's first byte after 200",
        ),
        Figure(
            f"the same from the provider's first byte, {name}, p95 of {len(from_byte)}",
            percentile(from_byte, 95),
            "ms",
            150,
            note=f"median {np.median(from_byte):.0f}, longest {max(from_byte):.0f}",
        ),
    ]
