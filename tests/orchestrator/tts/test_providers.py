"""Which voices there are, by what is configured. Nothing is asked of any provider."""

from __future__ import annotations

from typing import Any

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.settings import Settings
from orchestrator.tts.elevenlabs import ElevenLabs
from orchestrator.tts.openai_speech import OPENAI_VOICES, OpenAISpeech
from orchestrator.tts.providers import synthesizers
from orchestrator.tts.voices import Voices

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
