"""`/v1/audio/speech` against a stand-in, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import Schedule
from orchestrator.tts import openai_speech
from orchestrator.tts.openai_speech import OpenAIOptions, OpenAISpeech
from orchestrator.tts.pcm_stream import PcmStreamDecoder, WaveError
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import RemoteSynthesizer, SpeechChunk
from tests.fakes.elevenlabs import letters
from tests.fakes.openai_speech import KEY, FakeOpenAI, error, header
from tests.fakes.serving import plain_config, serving
from tests.fakes.stuck import stuck
from tests.waiting import NEVER_S, turns, until

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
    gc.collect()
    await turns()  # httpx's generators of an answer that was not read to its end close a moment later


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
    async with asyncio.timeout(NEVER_S):
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


async def test_what_does_not_pass_is_given_up(fake: FakeOpenAI, options: OpenAIOptions) -> None:
    fake.refusals = [(503, {})] * 99
    async for voice in opened(replace(options, schedule=Schedule(0.02, 1, 0.02, 0.1))):
        assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED
    assert 2 <= len(fake.bodies) <= 7


async def test_a_sentence_that_was_begun_is_not_said_twice(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.cut_after = [0, 3000]
    assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED
    assert [body["input"] for body in fake.bodies] == ["Good morning to you all."] * 2


async def test_one_that_is_silent_is_given_up(fake: FakeOpenAI, options: OpenAIOptions) -> None:
    fake.mute = True
    async for voice in opened(replace(options, answer_s=0.2)):
        assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.VOICE_TIMEOUT


async def test_what_is_no_sound_is_reported(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.junk = b"ID3\x04" + bytes(5000)
    problem = await failure(voice.speak(TEXT, VOICE))
    assert problem.code is ErrorCode.TTS_FAILED and "OPENAI_TTS_FORMAT" in problem.detail


async def test_closing_ends_the_request(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    chunks = voice.speak("This is long. " * 20, VOICE)
    await anext(chunks)
    await chunks.aclose()
    await until(lambda: bool(fake.ended))
    assert len(fake.bodies) == 1


async def test_an_utterance_in_progress_ends_with_a_code_when_the_provider_is_closed(
    fake: FakeOpenAI, voice: OpenAISpeech
) -> None:
    fake.pace_s = 0.01
    chunks = voice.speak(TEXT, VOICE)
    await anext(chunks)
    await voice.aclose()
    async with asyncio.timeout(NEVER_S):
        assert (await failure(chunks)).code is ErrorCode.TTS_FAILED
    assert len(fake.bodies) == 1
    assert "shutting down" in (await failure(voice.speak(TEXT, VOICE))).detail


HTML = b"<!doctype html><title>Sign in</title>" + b"<p>Please sign in.</p>" * 200
WEBM = b"\x1a\x45\xdf\xa3" + bytes(range(1, 250)) * 40
NOISE = np.random.default_rng(7).integers(0, 256, 20_000, np.uint8).tobytes()
SPEECH = (9000 * np.sin(np.arange(24_000) / 9)).astype("<i2").tobytes()


@pytest.mark.parametrize(
    ("media_type", "body", "reported"),
    [
        ("text/html; charset=utf-8", SPEECH, "text/html"),
        ("video/webm", WEBM, "video/webm"),
        ("application/json", b'{"audio": "AAAA"}', "application/json"),
        ("audio/pcm", HTML, "text"),
        ("audio/pcm", b'{"ok":true}', "text"),
        ("audio/pcm", WEBM, "WebM"),
        ("application/octet-stream", NOISE, "noise"),
        ("audio/pcm;rate=24000;channels=6", SPEECH, "channels"),
        ("audio/wav", b"RIFF\0\0", "does not begin"),
        ("audio/wav", header(24000), "no sound"),
    ],
)
async def test_an_answer_that_is_no_sound_is_reported_and_not_spoken(
    fake: FakeOpenAI, voice: OpenAISpeech, media_type: str, body: bytes, reported: str
) -> None:
    fake.media_type, fake.junk = media_type, body
    chunks = voice.speak("Hi you.", VOICE)
    with pytest.raises(ProblemError) as caught:
        await anext(chunks)  # not even a first piece is spoken
    assert caught.value.code is ErrorCode.TTS_FAILED and reported in caught.value.detail
    assert len(fake.bodies) == 1


@pytest.mark.parametrize("first", [b"{ ", b'{"', b"\xff\xfb", b"\xff\xf1", b"ID", b"Og", b"<h"])
async def test_sound_may_begin_with_any_sample(fake: FakeOpenAI, voice: OpenAISpeech, first: bytes) -> None:
    fake.junk = first + SPEECH
    assert b"".join(chunk.pcm for chunk in await gathered(voice.speak("Hi you.", VOICE))) == first + SPEECH


async def test_an_answer_with_nothing_in_it_is_asked_for_again_and_then_reported(
    fake: FakeOpenAI, options: OpenAIOptions
) -> None:
    fake.junk = b""
    async for voice in opened(replace(options, schedule=Schedule(0.02, 1, 0.02, 0.1))):
        problem = await failure(voice.speak("Hi you.", VOICE))
    assert problem.code is ErrorCode.TTS_FAILED and "no_sound" in problem.detail and len(fake.bodies) >= 2


async def test_a_packed_answer_is_reported(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.headers, fake.junk = {"Content-Encoding": "gzip"}, gzip.compress(bytes(50 << 20))
    problem = await failure(voice.speak("Hi you.", VOICE))
    assert problem.code is ErrorCode.TTS_FAILED and "gzip" in problem.detail


async def test_the_rate_may_be_reported_by_the_content_type(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.media_type, fake.junk = "audio/pcm; rate=16000", SPEECH
    assert {chunk.sample_rate for chunk in await gathered(voice.speak("Hi you.", VOICE))} == {16000}


async def test_one_that_trickles_is_given_up(fake: FakeOpenAI, options: OpenAIOptions) -> None:
    fake.junk, fake.pace_s, fake.block_bytes = SPEECH, 0.05, 2
    async for voice in opened(replace(options, answer_s=0.2)):
        async with asyncio.timeout(NEVER_S):
            assert (await failure(voice.speak("Hi you.", VOICE))).code is ErrorCode.VOICE_TIMEOUT


async def test_one_that_floods_is_cut_off(
    fake: FakeOpenAI, voice: OpenAISpeech, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_speech, "SENTENCE_S", 3.0)
    fake.junk, fake.flood = SPEECH, True
    problem = await failure(voice.speak("Hi you.", VOICE))
    assert problem.code is ErrorCode.TTS_FAILED and "does not end" in problem.detail


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 429 Busy\r\n\r\n{"])
async def test_one_that_accepts_and_says_no_more_is_given_up(says: bytes) -> None:
    """Nothing at all, a head that trickles for ever, an error whose body never ends."""
    async with stuck(says, then=says and b"a") as port:
        async for voice in opened(OpenAIOptions(KEY, f"http://127.0.0.1:{port}/v1", answer_s=0.3)):
            async with asyncio.timeout(NEVER_S):
                assert (await failure(voice.speak("Hi you.", VOICE))).code is ErrorCode.VOICE_TIMEOUT


async def test_retry_after_of_the_provider_is_waited(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.refusals, fake.headers = [(429, error("rate_limit_exceeded"))], {"Retry-After": "1"}
    began = asyncio.get_running_loop().time()
    assert heard(await gathered(voice.speak("Hi you.", VOICE))) == "Hi you."
    assert asyncio.get_running_loop().time() - began >= 1.0 and len(fake.bodies) == 2


async def test_a_retry_after_that_is_too_long_is_reported_at_once(fake: FakeOpenAI, voice: OpenAISpeech) -> None:
    fake.refusals, fake.headers = [(429, error("rate_limit_exceeded"))], {"Retry-After": "120"}
    problem = await failure(voice.speak("Hi you.", VOICE))
    assert (problem.code, problem.retry_after_s, len(fake.bodies)) == (ErrorCode.TTS_FAILED, 120, 1)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_wav_in_any_pieces(size: int) -> None:
    pcm = bytes(range(200))
    data = header(22050) + pcm + b"\x01"
    reader = PcmStreamDecoder()
    assert b"".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size)) == pcm
    assert (reader.rate, reader.samples) == (22050, 100)


@pytest.mark.parametrize(
    "data",
    [
        header(22050, channels=3),
        header(96000),
        b"OggS" + bytes(99),
        b"RIFF0000WAVE" + b"junk\x02\x00\x00\x00xx" * 500,
    ],
)
def test_other_sound_is_refused(data: bytes) -> None:
    with pytest.raises(WaveError):
        PcmStreamDecoder().feed(data + bytes(5000))
