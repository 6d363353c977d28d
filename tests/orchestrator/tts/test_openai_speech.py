"""`/v1/audio/speech` against a stand-in, over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts import openai_speech
from orchestrator.tts.base import RemoteSynthesizer, SpeechChunk
from orchestrator.tts.openai_speech import OpenAIOptions, OpenAISpeech
from orchestrator.tts.sentences import GrowingText
from orchestrator.tts.wave import SoundReader, WaveError
from tests.fakes.elevenlabs import letters, until
from tests.fakes.openai_speech import KEY, FakeOpenAI, error, header
from tests.fakes.serving import plain_config, serving

VOICE = "openai:alloy"
TEXT = "Good morning to you all. The weather is fine."


@pytest.fixture
def fake() -> FakeOpenAI:
    return FakeOpenAI()


@pytest.fixture
async def options(fake: FakeOpenAI) -> AsyncIterator[OpenAIOptions]:
    async with serving(plain_config(fake.app)) as url:
        yield OpenAIOptions(KEY, f"{url}/v1", ("alloy",))


@pytest.fixture
async def voice(options: OpenAIOptions) -> AsyncIterator[OpenAISpeech]:
    async for made in opened(options):
        yield made


async def opened(options: OpenAIOptions) -> AsyncIterator[OpenAISpeech]:
    made = OpenAISpeech(options)
    await made.open()
    yield made
    await made.aclose()
    await made.aclose()
    await asyncio.sleep(0.05)  # httpx's generators of an answer that was not read to its end close a moment later


async def gathered(chunks: Any) -> list[SpeechChunk]:
    return [chunk async for chunk in chunks]


def heard(chunks: list[SpeechChunk]) -> str:
    rate = chunks[0].sample_rate
    pcm = b"".join(chunk.pcm for chunk in chunks)
    silence = bytes(2 * (rate * 110 // 1000))
    return " | ".join(letters(part, rate) for part in pcm.split(silence))


async def failure(chunks: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await gathered(chunks)
    return caught.value


async def test_sentences_follow_each_other(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    assert isinstance(voice, RemoteSynthesizer) and [info.name for info in voice.names()] == [VOICE]
    chunks = await gathered(voice.speak(TEXT, VOICE))
    assert heard(chunks) == "Good morning to you all. | The weather is fine."
    assert all(len(chunk.pcm) <= 2 * 24000 // 5 and len(chunk.pcm) % 2 == 0 for chunk in chunks)
    assert fake.bodies == [
        {"model": "gpt-4o-mini-tts", "input": sentence, "voice": "alloy", "response_format": "pcm"}
        for sentence in ("Good morning to you all.", "The weather is fine.")
    ]
    words = [word for chunk in chunks for word in chunk.words]
    assert "".join(word.text for word in words).strip() == TEXT
    assert [word.start for word in words] == sorted(word.start for word in words)
    assert words[5].text == "The " and words[5].start == 24 * (24 * 20 + 110)


async def test_wav_has_its_own_rate(fake: FakeOpenAI, options: OpenAIOptions) -> None:
    async for voice in opened(replace(options, sound="wav")):
        chunks = await gathered(voice.speak("Hi you.", "openai:other"))
        assert chunks[0].sample_rate == 16000 and heard(chunks) == "Hi you."
        assert fake.bodies[0]["voice"] == "other"


async def test_a_growing_text_is_spoken_before_it_is_complete(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    text = GrowingText()
    chunks = voice.stream(text, VOICE)
    await text.push("Good morning. And")
    async with asyncio.timeout(10):
        assert letters((await anext(chunks)).pcm, 24000).startswith("G")
    text.end()
    assert heard(await gathered(chunks)).endswith("| And")


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, error("invalid_api_key"), ErrorCode.VOICE_UNAUTHORIZED),
        (403, {}, ErrorCode.VOICE_UNAUTHORIZED),
        (429, error("insufficient_quota"), ErrorCode.VOICE_QUOTA_EXCEEDED),
        (400, error("voice_not_found"), ErrorCode.VOICE_UNKNOWN),
        (400, error("", "Your secret sentence."), ErrorCode.TTS_FAILED),
        (404, {"detail": "Not Found"}, ErrorCode.TTS_FAILED),
    ],
)
async def test_refusals_have_codes(
    fake: FakeOpenAI, voice: OpenAISpeech, status: int, body: dict[str, Any], code: ErrorCode
) -> None:
    fake.refusals = [(status, body)]
    problem = await failure(voice.speak(TEXT, VOICE))
    assert problem.code is code and len(fake.bodies) == 1
    assert KEY not in problem.detail and "secret" not in problem.detail


async def test_what_may_pass_is_asked_again(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.refusals = [(429, error("rate_limit_exceeded")), (500, {})]
    assert heard(await gathered(voice.speak("Hi you.", VOICE))) == "Hi you."
    assert len(fake.bodies) == 3


async def test_what_does_not_pass_is_given_up(
    fake: FakeOpenAI, voice: OpenAISpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_speech, "BACKOFF_S", (0.0,))
    fake.refusals = [(503, {})] * 9
    assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED
    assert len(fake.bodies) == 2


async def test_a_sentence_that_was_begun_is_not_said_twice(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.cut_after = [0, 3000]
    assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED
    assert [body["input"] for body in fake.bodies] == ["Good morning to you all."] * 2


async def test_one_that_is_silent_is_given_up(fake: FakeOpenAI, options: OpenAIOptions) -> None:
    fake.mute = True
    async for voice in opened(replace(options, answer_s=0.2)):
        assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.VOICE_TIMEOUT


async def test_what_is_no_sound_is_told(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.junk = b"ID3\x04" + bytes(5000)
    problem = await failure(voice.speak(TEXT, VOICE))
    assert problem.code is ErrorCode.TTS_FAILED and "OPENAI_TTS_FORMAT" in problem.detail


async def test_closing_ends_the_request(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    chunks = voice.speak("This is long. " * 20, VOICE)
    await anext(chunks)
    await chunks.aclose()
    await until(lambda: bool(fake.ended))
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_wav_in_any_pieces(size: int) -> None:
    pcm = bytes(range(200))
    data = header(22050) + pcm + b"\x01"
    reader = SoundReader()
    assert b"".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size)) == pcm
    assert (reader.rate, reader.samples) == (22050, 100)


@pytest.mark.parametrize(
    "data",
    [
        header(22050, channels=2),
        b"OggS" + bytes(99),
        b'{"error": 1234}',
        b"RIFF0000WAVE" + b"junk\x02\x00\x00\x00xx" * 500,
    ],
)
def test_other_sound_is_refused(data: bytes) -> None:
    with pytest.raises(WaveError):
        SoundReader().feed(data + bytes(5000))
