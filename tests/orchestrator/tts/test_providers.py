"""Which voices there are, by what is configured. Nothing is asked of any provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.settings import Settings
from orchestrator.tts.elevenlabs import ElevenLabs
from orchestrator.tts.openai_speech import OPENAI_VOICES, OpenAISpeech
from orchestrator.tts.speech_worker import TIMES, SpeechWorker
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, VoiceInfo
from orchestrator.tts.voices import Voices, synthesizers
from orchestrator.worker_process import backoff_s
from tests.waiting import NEVER_S

NEEDED = {
    "livekit_url": "ws://127.0.0.1:1",
    "livekit_api_key": "devkey",
    "livekit_api_secret": "secret",
    "orchestrator_api_key": "key",
    "agent_url": "http://127.0.0.1:2",
    "agent_api_key": "key",
}


def configured(**fields: Any) -> Voices:
    """Without the embedded ones, whose worker does not run here."""
    options = Settings(**NEEDED, **fields).voice_options
    return Voices(fields.get("voice"), synthesizers=synthesizers(options)[1:])


def refused(voices: Voices, voice: str | None) -> ErrorCode:
    with pytest.raises(ProblemError) as caught:
        voices.check(voice)
    return caught.value.code


def test_nothing_is_configured_by_itself() -> None:
    voices = configured()
    assert voices.synthesizers == () and not voices.available
    for voice in ("elevenlabs:any", "openai:alloy", "piper:joe", None):
        assert refused(voices, voice) is ErrorCode.VOICE_UNAVAILABLE


def test_elevenlabs_takes_any_id_and_lists_what_is_named() -> None:
    voices = configured(elevenlabs_api_key="sk", elevenlabs_voices="one, two", elevenlabs_sample_rate=16000)
    assert [(info.name, info.sample_rate) for info in voices.names()] == [
        ("elevenlabs:one", 16000),
        ("elevenlabs:two", 16000),
    ]
    for voice in ("elevenlabs:one", "elevenlabs:any", None):
        voices.check(voice)
    assert isinstance(voices.synthesizers[0], ElevenLabs) and voices.available
    assert refused(voices, "elevenlabs:") is ErrorCode.VOICE_UNKNOWN
    assert refused(voices, "other:one") is ErrorCode.VOICE_UNKNOWN
    assert refused(voices, "openai:alloy") is ErrorCode.VOICE_UNAVAILABLE


def test_openai_lists_its_voices_and_a_server_of_ones_own_does_not() -> None:
    voices = configured(openai_api_key="sk")
    assert [info.name for info in voices.names()] == [f"openai:{name}" for name in OPENAI_VOICES]
    own = configured(openai_base_url="http://127.0.0.1:9/v1/", voice="openai:af_sky")
    assert isinstance(own.synthesizers[0], OpenAISpeech)
    assert own.names() == [] and own.available
    own.check(None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"elevenlabs_sample_rate": 44100},
        {"openai_tts_format": "mp3"},
        {"openai_base_url": "speech.example"},
        {"elevenlabs_base_url": "ftp://speech.example"},
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**NEEDED, **wrong)


def test_a_text_without_a_letter_is_refused_at_once() -> None:
    voices = configured(elevenlabs_api_key="sk")
    with pytest.raises(ProblemError) as caught:
        voices.speak("… 🙂", "elevenlabs:any")
    assert caught.value.code is ErrorCode.INVALID_REQUEST


class Provider:
    """A synthesizer without voices that fails, or hangs, when it is opened or closed."""

    def __init__(self, *, opens: bool = True, closes: bool = True) -> None:
        self.opens, self.closes = opens, closes
        self.opened = self.closed = 0

    async def open(self) -> None:
        self.opened += 1
        if not self.opens:
            raise OSError("no such library")

    async def aclose(self) -> None:
        self.closed += 1
        if not self.closes:
            raise RuntimeError("a provider that does not end")

    def names(self) -> list[VoiceInfo]:
        return []

    def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        raise NotImplementedError


async def test_a_provider_that_does_not_end_keeps_none_of_the_others() -> None:
    first, second = Provider(closes=False), Provider()
    voices = Voices(synthesizers=[first, second])
    await voices.open()
    await voices.aclose()
    await voices.aclose()
    assert (first.closed, second.closed) == (2, 2)


async def test_who_waits_for_the_voices_goes_on_when_they_fail_to_open() -> None:
    voices = Voices(synthesizers=[Provider(opens=False)])
    await voices.wait_open()  # never opened: nothing to wait for
    opening = asyncio.create_task(voices.open())
    with pytest.raises(OSError, match="no such library"):
        await opening
    await voices.wait_open()


async def test_a_worker_that_is_closed_before_it_begins_ends_who_waits_for_it() -> None:
    worker = SpeechWorker(("/no/such/program",))
    opening = asyncio.create_task(worker.open())
    await asyncio.sleep(0)
    await worker.aclose()
    async with asyncio.timeout(NEVER_S):
        await opening
    with pytest.raises(ProblemError, match="not running"):
        worker.submit("x:y", "Hello.")


async def test_a_program_that_is_not_there_is_tried_again_and_its_texts_fail_at_once() -> None:
    worker = SpeechWorker(("/no/such/program",))
    await worker.open()
    try:
        assert worker.voices == () and worker.pid is None and worker.statistics.failures >= 1
        with pytest.raises(ProblemError, match="does not start") as caught:
            await worker.submit("x:y", "Hello.")
        assert caught.value.code is ErrorCode.TTS_FAILED and worker.statistics.waiting == 0
    finally:
        await worker.aclose()


@pytest.mark.parametrize(("losses", "wait_s"), [(1, 0.1), (2, 0.2), (4, 0.8), (7, 5.0), (2000, 5.0)])
def test_a_lost_worker_is_started_again_after_a_wait_that_doubles_up_to_a_bound(losses: int, wait_s: float) -> None:
    assert backoff_s(losses, TIMES.backoff_s) == pytest.approx(wait_s)
