"""`[wave]` in texts, with a real agent and the `warp` engine: the agent plays the clip when its word is heard."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import websockets

from musetalk_agent.protocol.messages import CaptionWord
from orchestrator.session.model import ManagedSession
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, VoiceInfo
from orchestrator.tts.voices import Voices
from tests.fakes.stage import API_KEY, Stage
from tests.musetalk_agent.avatars.clips import frames_zip
from tests.orchestrator.test_real_avatars import FACE, MIRRORED, ready, with_warp
from tests.waiting import until

RATE = 16_000
WORD_S = 0.5


class HalfSeconds:
    """A voice whose words last half a second each; `said` are its texts."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    def names(self) -> list[VoiceInfo]:
        return [VoiceInfo("half:one", "en", "half", RATE)]

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        self.said.append(text)
        samples = round(WORD_S * RATE)
        tone = (6000 * np.sin(2 * np.pi * 300 * np.arange(samples) / RATE)).astype("<i2")
        for number, word in enumerate(text.split()):
            at = number * samples
            words = (CaptionWord(text=f"{word} ", start=at, end=at + samples),)
            for begin in range(0, samples, RATE // 5):
                yield SpeechChunk(tone[begin : begin + RATE // 5].tobytes(), RATE, (), words if begin == 0 else ())


@pytest.fixture
async def speaking(tmp_path: Path) -> AsyncIterator[tuple[Stage, HalfSeconds]]:
    voice = HalfSeconds()
    async with with_warp(tmp_path, voices=Voices("half:one", synthesizers=[voice])) as made:
        yield made, voice


async def test_a_text_waves_where_it_says_so(
    speaking: tuple[Stage, HalfSeconds], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stack for all of it: an agent takes seconds to start."""
    running, voice = speaking
    avatar_id = await ready(running, FACE)
    put = await running.http.put(f"/avatars/{avatar_id}/clips/wave", content=frames_zip(MIRRORED))
    assert put.status_code == 201, put.text
    sessions = running.app.state.context.sessions
    act, played = sessions.act, list[tuple[bool, float]]()

    async def noted(session: ManagedSession, clip: str | None, *, loop: bool) -> None:
        assert session.live is not None
        at_s = session.live.position_s
        await act(session, clip, loop=loop)
        played.append((clip is not None, at_s))

    monkeypatch.setattr(sessions, "act", noted)
    async with running.live(connect_livekit=False, avatar_id=avatar_id) as (started, line):
        path = f"/session/{started['session_id']}"
        answer = await running.http.post(f"{path}/speak", json={"text": "one two [wave] three four [sic]."})
        assert answer.status_code == 202, answer.text
        await line.wait("playback.finished")
        assert voice.said == ["one two three four [sic]."]
        ((with_clip, at_s),) = played
        assert with_clip and 0.6 < at_s < 2.5, "with the third word, which begins after a second"

        async def pieces() -> AsyncIterator[bytes]:
            for piece in (b"five [wa", b"ve] six seven. [i", b"dle]"):
                yield piece

        plain = {"Content-Type": "text/plain"}
        answer = await running.http.post(f"{path}/speak", content=pieces(), headers=plain)
        assert answer.status_code == 202, answer.text
        await line.wait("playback.finished", count=2)
        await until(lambda: len(played) == 3)
        assert [with_clip for with_clip, _ in played[1:]] == [True, False]
        assert " ".join(voice.said[1:]).split() == ["five", "six", "seven."]

        address = f"{running.url.replace('http', 'ws')}{path}/speak"
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with websockets.connect(address, additional_headers=headers, proxy=None) as socket:
            for text in ("eight ", "[Wave", "] nine"):
                await socket.send(json.dumps({"type": "text", "text": text}))
            await socket.send(json.dumps({"type": "end"}))
            await line.wait("playback.finished", count=3)
        await until(lambda: len(played) == 4)
        assert voice.said[-1].split() == ["eight", "nine"]
        (session,) = (await running.http.get("/debug/musetalk")).json()["sessions"]
        assert not [each for each in session["funnel"] if each["last_error"]]
        await running.http.post(f"{path}/stop")
