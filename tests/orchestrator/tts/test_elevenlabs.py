"""ElevenLabs against a stand-in that speaks its wire format, over real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.retries import Schedule
from orchestrator.tts import elevenlabs
from orchestrator.tts.elevenlabs import ElevenLabs, ElevenLabsOptions
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import RemoteSynthesizer, SpeechChunk
from tests.fakes.elevenlabs import KEY, FakeElevenLabs, letters
from tests.fakes.stuck import stuck
from tests.waiting import NEVER_S, until

VOICE = "elevenlabs:Rachel/1"
QUICK = Schedule(first_s=0.02, factor=1, longest_s=0.02, total_s=0.1)
TEXT = "Good morning to you all. The weather is fine today."


@pytest.fixture
def fake() -> FakeElevenLabs:
    return FakeElevenLabs()


@pytest.fixture
async def voice(fake: FakeElevenLabs) -> AsyncIterator[ElevenLabs]:
    async with fake.serving() as url:
        made = ElevenLabs(ElevenLabsOptions(KEY, ("Rachel/1",), base_url=url))
        await made.open()
        yield made
        await made.aclose()


async def spoken(chunks: Any) -> tuple[str, tuple[CaptionWord, ...]]:
    """What was heard, and the words that were reported. Words come with or before their sound."""
    every: list[SpeechChunk] = [chunk async for chunk in chunks]
    position = 0
    for chunk in every:
        assert len(chunk.pcm) <= 2 * chunk.sample_rate // 5 and chunk.sample_rate == every[0].sample_rate
        assert all(word.start >= position for word in chunk.words if word.end > word.start)
        position += len(chunk.pcm) // 2
    pcm = b"".join(chunk.pcm for chunk in every)
    words = tuple(word for chunk in every for word in chunk.words)
    return letters(pcm, every[0].sample_rate) if every else "", words


async def failure(chunks: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await spoken(chunks)
    return caught.value


async def test_a_text_is_spoken_with_its_words(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    assert isinstance(voice, RemoteSynthesizer) and [info.name for info in voice.names()] == [VOICE]
    heard, words = await spoken(voice.speak(TEXT, VOICE))
    assert heard.split() == TEXT.split()
    assert "".join(word.text for word in words).strip() == TEXT
    for word in words:
        begin, end = (sample // (24 * 20) for sample in (word.start, word.end))
        assert heard[begin:end] == word.text.strip()
    (call,) = fake.calls
    assert call.voice == "Rachel%2F1"
    assert call.query == {
        "model_id": "eleven_flash_v2_5",
        "output_format": "pcm_24000",
        "inactivity_timeout": "60",
        "sync_alignment": "true",
        "auto_mode": "true",
    }
    assert call.texts == [" ", "Good morning to you all. ", "The weather is fine today. ", ""]


async def test_the_rate_is_the_configured_one(fake: FakeElevenLabs) -> None:
    async with fake.serving() as url:
        voice = ElevenLabs(ElevenLabsOptions(KEY, base_url=url, sample_rate=16000))
        chunks = [chunk async for chunk in voice.speak("Hi there.", VOICE)]
    assert {chunk.sample_rate for chunk in chunks} == {16000} and fake.calls[0].query["output_format"] == "pcm_16000"


async def test_a_growing_text_is_spoken_before_it_is_complete(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    text = GrowingText()
    chunks = voice.stream(text, VOICE)
    for piece in ("Good mor", "ning. And", " now"):
        await text.push(piece)
    async with asyncio.timeout(NEVER_S):
        first = await anext(chunks)
    assert letters(first.pcm, 24000).startswith("Good")
    assert fake.calls[0].texts == [" ", "Good morning. "]
    await text.push(" the rest.")
    text.end()
    heard, _ = await spoken(chunks)
    assert heard.split()[-4:] == ["And", "now", "the", "rest."]
    assert len(fake.calls) == 1


@pytest.mark.parametrize("drops", [[0], [9], [22, 13], [48], [3, 0, 20]])
async def test_a_connection_that_breaks_repeats_and_loses_no_word(
    fake: FakeElevenLabs, voice: ElevenLabs, drops: list[int | None]
) -> None:
    fake.drops = [*drops]
    heard, words = await spoken(voice.speak(TEXT, VOICE))
    assert heard.split() == TEXT.split()
    assert "".join(word.text for word in words).strip() == TEXT
    assert [w.start for w in words] == sorted(w.start for w in words)
    assert len(fake.calls) == len(drops) + 1
    assert fake.calls[-1].texts[0] == " " and fake.calls[-1].texts[1].strip() in TEXT


async def test_one_that_keeps_breaking_is_given_up(fake: FakeElevenLabs) -> None:
    fake.drops = [9, *[0] * 99]
    async with fake.serving() as url:
        voice = ElevenLabs(ElevenLabsOptions(KEY, base_url=url, schedule=QUICK))
        problem = await failure(voice.speak(TEXT, VOICE))
    assert (
        problem.code is ErrorCode.TTS_FAILED and 2 <= len(fake.calls) <= 8
    )  # a slow machine has time for one more try only


async def test_without_alignment_nothing_is_said_twice(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    fake.aligned = False
    heard, words = await spoken(voice.speak(TEXT, VOICE))
    assert heard.split() == TEXT.split() and "".join(word.text for word in words).strip() == TEXT
    fake.drops = [20]
    assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED
    fake.drops = [0]
    heard, _ = await spoken(voice.speak(TEXT, VOICE))
    assert heard.split() == TEXT.split()


async def test_a_pause_in_the_text_outlasts_the_inactivity_of_the_provider(
    fake: FakeElevenLabs, voice: ElevenLabs
) -> None:
    fake.inactivity_s = 0.2
    text = GrowingText()
    chunks = voice.stream(text, VOICE)
    await text.push("Good morning. ")
    saying = asyncio.create_task(spoken(chunks))
    await until(lambda: bool(fake.calls) and fake.calls[0].closed)
    await text.push("Here I am again. ")
    text.end()
    heard, _ = await saying
    assert heard.split() == "Good morning. Here I am again.".split()
    assert [call.texts[1] for call in fake.calls[:1]] == ["Good morning. "] and len(fake.calls) >= 2


async def test_blanks_keep_a_connection_whose_text_pauses(
    fake: FakeElevenLabs, voice: ElevenLabs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elevenlabs, "KEEP_ALIVE_S", 0.05)
    fake.inactivity_s = 1.0
    text = GrowingText()
    saying = asyncio.create_task(spoken(voice.stream(text, VOICE)))
    await text.push("Good morning. ")
    await until(lambda: bool(fake.calls) and fake.calls[0].texts.count(" ") >= 30)
    await text.push("Here I am again.")
    text.end()
    assert (await saying)[0].split() == "Good morning. Here I am again.".split()
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("invalid_api_key", ErrorCode.VOICE_UNAUTHORIZED),
        ("quota_exceeded", ErrorCode.VOICE_QUOTA_EXCEEDED),
        ("voice_not_found", ErrorCode.VOICE_UNKNOWN),
        ("model_not_found", ErrorCode.TTS_FAILED),
    ],
)
async def test_refusals_have_codes(fake: FakeElevenLabs, voice: ElevenLabs, word: str, code: ErrorCode) -> None:
    fake.errors = [word]
    problem = await failure(voice.speak(TEXT, VOICE))
    assert problem.code is code and KEY not in problem.detail and len(fake.calls) == 1


async def test_a_wrong_key_is_reported(fake: FakeElevenLabs) -> None:
    async with fake.serving() as url:
        voice = ElevenLabs(ElevenLabsOptions("wrong", base_url=url))
        problem = await failure(voice.speak(TEXT, VOICE))
    assert problem.code is ErrorCode.VOICE_UNAUTHORIZED and "ELEVENLABS_API_KEY" in problem.detail


async def test_a_busy_provider_is_asked_again(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    fake.refusals = [(429, {"detail": {"status": "too_many_concurrent_requests"}}), (503, {})]
    fake.errors = [None, "system_busy"]
    heard, _ = await spoken(voice.speak(TEXT, VOICE))
    assert heard.split() == TEXT.split() and len(fake.calls) == 2


async def test_quota_as_an_answer_to_the_handshake(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    fake.refusals = [(401, {"detail": {"status": "quota_exceeded", "message": "…"}})]
    assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.VOICE_QUOTA_EXCEEDED


async def test_one_that_is_silent_is_given_up(fake: FakeElevenLabs) -> None:
    fake.mute = True
    async with fake.serving() as url:
        voice = ElevenLabs(replace(ElevenLabsOptions(KEY, base_url=url), answer_s=0.3))
        problem = await failure(voice.speak(TEXT, VOICE))
    assert problem.code is ErrorCode.VOICE_TIMEOUT and problem.limit == 0.3


async def test_one_that_is_silent_is_noticed_while_text_keeps_coming(fake: FakeElevenLabs) -> None:
    fake.mute = True
    text = GrowingText()

    async def write() -> None:
        while await text.push("Here is one more sentence. "):  # noqa: ASYNC110 - the text's own pace
            await asyncio.sleep(0.05)

    async with fake.serving() as url:
        voice = ElevenLabs(ElevenLabsOptions(KEY, base_url=url, answer_s=0.4))
        writing = asyncio.create_task(write())
        problem = await failure(voice.stream(text, VOICE))
        assert problem.code is ErrorCode.VOICE_TIMEOUT and not writing.done()  # not only when the text is over
        await writing
    # 0.4 s of the loop hold 8 sentences at this pace; without a deadline it goes on until 800 letters wait
    assert len(fake.calls[0].texts) < 30


@dataclass
class Script:
    """A provider that sends what it is asked to, as fast or as slowly."""

    messages: list[dict[str, Any]]
    pace_s: float = 0.0
    forever: bool = True
    sent: int = 0

    async def talk(self, socket: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            while self.forever or self.sent < len(self.messages):
                await socket.send(json.dumps(self.messages[self.sent % len(self.messages)]))
                self.sent += 1
                await asyncio.sleep(self.pace_s)
            await socket.wait_closed()

    async def problem(self, **options: Any) -> ProblemError:
        async with serve(self.talk, "127.0.0.1", 0, compression=None) as server:
            url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
            voice = ElevenLabs(ElevenLabsOptions(KEY, base_url=url, schedule=QUICK, **options))
            async with asyncio.timeout(NEVER_S):
                return await failure(voice.speak(TEXT, VOICE))


def audio(seconds: float) -> str:
    return base64.b64encode(bytes(2 * round(24_000 * seconds))).decode()


def timed(*chars: object, at: object = 0, ms: object = 20) -> dict[str, Any]:
    times = {"chars": list(chars), "charStartTimesMs": [at] * len(chars), "charDurationsMs": [ms] * len(chars)}
    return {"audio": audio(0.1), "alignment": times}


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 101 Switching Protocols\r\nX-"])
async def test_one_that_never_greets_is_given_up(says: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elevenlabs, "CONNECT_S", 0.2)
    async with stuck(says, then=says and b"a") as port:
        voice = ElevenLabs(ElevenLabsOptions(KEY, base_url=f"ws://127.0.0.1:{port}", schedule=QUICK))
        async with asyncio.timeout(NEVER_S):
            assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED


async def test_messages_without_sound_do_not_keep_a_silent_one_alive() -> None:
    assert (await Script([{"audio": None}], 0.02).problem(answer_s=0.4)).code is ErrorCode.VOICE_TIMEOUT


async def test_one_that_trickles_is_given_up() -> None:
    assert (await Script([{"audio": audio(0.001)}], 0.1).problem(answer_s=0.3)).code is ErrorCode.VOICE_TIMEOUT


async def test_one_that_falls_silent_after_some_sound_is_given_up() -> None:
    script = Script([timed(*"Good")], forever=False)
    assert (await script.problem(answer_s=0.3)).code is ErrorCode.VOICE_TIMEOUT


@pytest.mark.parametrize("letters", [None, timed(*"ab cd ")["alignment"]])
async def test_one_that_floods_is_cut_off(letters: dict[str, Any] | None) -> None:
    problem = await Script([{"audio": audio(5), "alignment": letters}]).problem(answer_s=5)
    assert problem.code is ErrorCode.TTS_FAILED and "does not end" in problem.detail


async def test_a_word_that_never_ends_is_not_kept() -> None:
    script = Script([{"audio": audio(5), "alignment": timed("x")["alignment"]}])
    problem = await script.problem(answer_s=5)
    assert problem.code is ErrorCode.TTS_FAILED and script.sent < 60


@pytest.mark.parametrize(
    "message",
    [
        timed("a", at=float("nan")),
        timed("a", at=float("inf")),
        timed("a", at=10**400),
        timed("a", at=-1),
        timed("a", ms="long"),
        timed("a", ms=1e12),
        timed("x" * 10_000),
        timed(["a"]),
        timed(""),
        {"audio": 7},
        {"audio": "no base64"},
        {"audio": audio(0.1), "alignment": [1]},
        {"audio": audio(0.1), "alignment": {"chars": "a"}},
    ],
)
async def test_nonsense_has_a_code(message: dict[str, Any]) -> None:
    problem = await Script([message], 0.01).problem()
    assert problem.code is ErrorCode.TTS_FAILED and "nonsense" in problem.detail


async def test_retry_after_of_the_provider_is_waited(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    fake.refusals, fake.headers = [(429, {"detail": {"status": "system_busy"}})], {"Retry-After": "1"}
    began = asyncio.get_running_loop().time()
    heard, _ = await spoken(voice.speak(TEXT, VOICE))
    assert heard.split() == TEXT.split() and asyncio.get_running_loop().time() - began >= 1.0


async def test_nobody_there() -> None:
    voice = ElevenLabs(ElevenLabsOptions(KEY, base_url="ws://127.0.0.1:9", schedule=QUICK))
    assert (await failure(voice.speak(TEXT, VOICE))).code is ErrorCode.TTS_FAILED


async def test_one_that_ends_by_itself_is_called_again_for_the_rest_of_the_text() -> None:
    calls: list[list[str]] = []

    async def ends_after_a_sentence(socket: ServerConnection) -> None:
        calls.append([])
        async for message in socket:
            text = json.loads(message)["text"]
            calls[-1].append(text)
            if text.strip():
                await socket.send(json.dumps(timed(*text)))
                await socket.send(json.dumps({"audio": None, "isFinal": True}))
                return

    async with serve(ends_after_a_sentence, "127.0.0.1", 0, compression=None) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        text = GrowingText()
        chunks = ElevenLabs(ElevenLabsOptions(KEY, base_url=url)).stream(text, VOICE)
        await text.push("Good day. ")
        words = list((await anext(chunks)).words)
        await text.push("More to say.")
        text.end()
        async with asyncio.timeout(NEVER_S):
            words += [word for chunk in [chunk async for chunk in chunks] for word in chunk.words]
    assert "".join(word.text for word in words).split() == "Good day. More to say.".split()
    assert [call[1:] for call in calls] == [["Good day. "], ["More to say. "]]


async def test_closing_ends_the_connection_and_the_text(fake: FakeElevenLabs, voice: ElevenLabs) -> None:
    text = GrowingText()
    chunks = voice.stream(text, VOICE)
    await text.push("Good morning. ")
    await anext(chunks)
    await chunks.aclose()
    await until(lambda: fake.calls[0].closed)
    assert text.abandoned and await text.push("more") is False


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(ElevenLabsOptions(KEY))


async def test_neither_the_key_nor_the_text_is_logged(
    fake: FakeElevenLabs, voice: ElevenLabs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    fake.drops = [9]
    await spoken(voice.speak(TEXT, VOICE))
    ours = [record for record in caplog.records if record.name.startswith("orchestrator")]
    assert ours and not any(KEY in str(vars(record)) or "weather" in str(vars(record)) for record in ours)
    assert not any(
        "xi-api-key" in record.getMessage() for record in caplog.records if record.name == "websockets.client"
    )
