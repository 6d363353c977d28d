"""A voice that accepts and says nothing, while a session speaks or is stopped: a code within the deadline, nothing left."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.tts.elevenlabs import ElevenLabs, ElevenLabsOptions
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.openai_speech import OpenAIOptions, OpenAISpeech
from orchestrator.tts.synthesizer import Synthesizer
from orchestrator.tts.voices import Voices
from tests.fakes.elevenlabs import FakeElevenLabs
from tests.fakes.stage import Stage, stage
from tests.fakes.stuck import stuck
from tests.waiting import NEVER_S

HANGS = """
import sys, time
from orchestrator import worker_pipe as f
o = sys.stdout.buffer
o.write(f.encode({'voices': [{'name': 'x:y', 'language': 'en', 'provider': 'x', 'sample_rate': 16000}]})); o.flush()
while sys.stdin.buffer.read(1): time.sleep(60)
"""


@asynccontextmanager
async def silent(kind: str, deadline_s: float) -> AsyncIterator[tuple[Synthesizer, str]]:
    """A provider that gives no sound, and the name of its voice."""
    if kind == "openai":
        async with stuck() as port:
            yield OpenAISpeech(OpenAIOptions("k", f"http://127.0.0.1:{port}/v1", answer_s=deadline_s)), "openai:x"
    elif kind == "elevenlabs":
        fake = FakeElevenLabs(mute=True)
        async with fake.serving() as url:
            key = "eleven-key-of-the-tests"
            yield ElevenLabs(ElevenLabsOptions(key, base_url=url, answer_s=deadline_s)), "elevenlabs:x"
    else:
        local = LocalSynthesizer((sys.executable, "-c", HANGS))
        local._worker.part_timeout_s = deadline_s
        yield local, "x:y"


@asynccontextmanager
async def speaking(kind: str, deadline_s: float) -> AsyncIterator[tuple[Stage, str]]:
    async with silent(kind, deadline_s) as (synthesizer, voice):
        voices = Voices(voice, synthesizers=[synthesizer])
        async with stage(voices=voices) as running:
            yield running, voice


pytestmark = pytest.mark.usefixtures("no_process_left")
KINDS = pytest.mark.parametrize("kind", ["openai", "elevenlabs", "local"])


@KINDS
async def test_its_text_ends_with_a_code(kind: str) -> None:
    async with speaking(kind, 0.4) as (running, voice), running.live() as (started, line):
        path = f"/session/{started['session_id']}"
        answer = await running.http.post(f"{path}/speak", json={"text": "Is anybody there?", "voice": voice})
        assert answer.status_code == 202
        reported = await line.wait("warning")
        assert reported["code"] in ("voice_timeout", "tts_failed") and "Segment 1" in reported["message"]
        assert (await line.wait("playback.finished"))["segment"] == 1
        assert (await running.http.get(path)).json()["state"] == "ready"


@KINDS
@pytest.mark.parametrize("how", ["stop", "interrupt"])
async def test_a_session_does_not_wait_for_it(kind: str, how: str) -> None:
    async with speaking(kind, 600) as (running, voice), running.live() as (started, _):
        path = f"/session/{started['session_id']}"
        await running.http.post(f"{path}/speak", json={"text": "Is anybody there?", "voice": voice})
        async with asyncio.timeout(NEVER_S):  # and not for the 600 s of the voice
            assert (await running.http.post(f"{path}/{how}")).status_code == 200
        left = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("speech-ses")]
        assert left == []
