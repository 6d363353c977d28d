"""An embedded voice's utterance, with the worker's answers written by hand: order, pauses, places, and how far ahead it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.lexicon import Said
from orchestrator.tts.local import PARTS_AHEAD, TEXT_CHARACTERS, LocalSynthesizer
from orchestrator.tts.segmentation import (
    CLAUSE_PAUSE_MS,
    PARAGRAPH_PAUSE_MS,
    SENTENCE_PAUSE_MS,
    WORD_CHARACTERS,
    spread,
    weighted,
    words,
)
from orchestrator.tts.speech_worker import SpokenPart
from orchestrator.tts.synthesizer import CHUNK_MS, PAUSE, SpeechChunk, VoiceInfo, pieces
from tests.waiting import turns

RATE = 8000


class Worker:
    """`SpeechWorker`: each part is answered when the test says so, with `part_ms` of sound and a phoneme."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, float | None]] = []
        self.voices: tuple[VoiceInfo, ...] = ()
        self.said: list[tuple[float, tuple[Said, ...]]] = []
        self.results: list[asyncio.Future[SpokenPart]] = []
        self.part_ms = 300
        self.at_once = True
        self.reported = True
        self.busy: ProblemError | None = None

    def submit(
        self, voice: str, text: str, *, speed: float = 1.0, said: tuple[Said, ...] = (), due: float | None = None
    ) -> asyncio.Future[SpokenPart]:
        if self.busy is not None:
            raise self.busy
        self.asked.append((voice, text, due))
        self.said.append((speed, said))
        result: asyncio.Future[SpokenPart] = asyncio.get_running_loop().create_future()
        self.results.append(result)
        if self.at_once:
            self.answers(len(self.results) - 1)
        return result

    def answers(self, part: int) -> None:
        text, samples = self.asked[part][1], RATE * self.part_ms // 1000
        cues = ((text[0], 0, samples),) if samples else ()
        reported = ((text, 0, samples),) if self.reported and samples else ()
        self.results[part].set_result(SpokenPart(bytes([part + 1, 0]) * samples, RATE, cues, reported))


def voice() -> tuple[LocalSynthesizer, Worker]:
    made, worker = LocalSynthesizer(("/no/such/program",)), Worker()
    made._worker = worker
    return made, worker


async def whole(chunks: AsyncGenerator[SpeechChunk, None]) -> tuple[bytes, list[CueItem], list[CaptionWord]]:
    """All of it; every chunk's cues and words come before their sound."""
    pcm, cues, said = b"", list[CueItem](), list[CaptionWord]()
    async for chunk in chunks:
        assert 0 < len(chunk.pcm) <= 2 * RATE * CHUNK_MS // 1000 and len(chunk.pcm) % 2 == 0
        assert all(one.start >= len(pcm) // 2 for one in (*chunk.cues, *chunk.words))
        pcm, cues, said = pcm + chunk.pcm, [*cues, *chunk.cues], [*said, *chunk.words]
    return pcm, cues, said


async def test_parts_follow_each_other_with_the_pause_of_their_kind_and_none_behind_the_last() -> None:
    made, _ = voice()
    text = "After all of that had happened, she left. He stayed.\n\nThe end."
    pcm, cues, said = await whole(made.speak(text, "x:y"))
    part = RATE * 300 // 1000
    pauses = [RATE * ms // 1000 for ms in (CLAUSE_PAUSE_MS, SENTENCE_PAUSE_MS, PARAGRAPH_PAUSE_MS, 0)]
    expected = b"".join(bytes([n + 1, 0]) * part + bytes(2 * pause) for n, pause in enumerate(pauses))
    assert pcm == expected
    assert [(cue.phoneme, cue.end - cue.start) for cue in cues if cue.phoneme == PAUSE] == [
        (PAUSE, pause) for pause in pauses[:-1]
    ]
    assert cues[0].start == 0 and cues[-1].end == len(pcm) // 2
    assert all(a.end == b.start for a, b in pairwise(cues))
    assert "".join(word.text for word in said).split() == text.split()
    assert [word.start for word in said] == [cue.start for cue in cues if cue.phoneme != PAUSE]


async def test_without_words_of_the_voice_they_share_the_sound_by_their_letters() -> None:
    made, worker = voice()
    worker.reported = False
    _, _, said = await whole(made.speak("Go now.", "x:y"))
    assert [(word.text, word.start, word.end) for word in said] == [("Go ", 0, 960), ("now. ", 960, 2400)]


async def test_little_is_made_ahead_and_the_nearer_is_due_first() -> None:
    made, worker = voice()
    speech = made.speak("One is here. Two is here. Three is here. Four is here. Five is here.", "x:y")
    assert [(text, due) for _, text, due in worker.asked] == [("One is here.", None)]
    await anext(speech)
    assert len(worker.asked) == 1 + PARTS_AHEAD
    dues = [due for _, _, due in worker.asked[1:]]
    assert all(due is not None for due in dues) and dues == sorted(dues)
    await whole(speech)
    assert [text.split()[0] for _, text, _ in worker.asked] == ["One", "Two", "Three", "Four", "Five"]


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_who_listens_no_more_calls_off_what_is_being_made(how: str) -> None:
    made, worker = voice()
    speech = made.speak("One is here. Two is here. Three is here. Four is here.", "x:y")
    worker.at_once = False
    await anext(speech)
    assert [result.done() for result in worker.results] == [True, False, False]
    if how == "close":
        await speech.aclose()
    else:
        reading = asyncio.create_task(whole(speech))
        await turns()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert [result.cancelled() for result in worker.results] == [False, True, True]


async def test_a_part_that_fails_ends_the_utterance_and_calls_off_the_next() -> None:
    made, worker = voice()
    speech = made.speak("One is here. Two is here. Three is here.", "x:y")
    worker.at_once = False
    heard = len((await anext(speech)).pcm)
    worker.results[1].set_exception(ProblemError(ErrorCode.TTS_FAILED, "It broke."))
    with pytest.raises(ProblemError, match="It broke"):
        async for chunk in speech:
            heard += len(chunk.pcm)
    assert heard == 2 * RATE * (300 + SENTENCE_PAUSE_MS) // 1000 and worker.results[2].cancelled()


async def test_a_worker_without_room_refuses_at_once_and_a_voice_without_sound_says_why() -> None:
    made, worker = voice()
    worker.part_ms = 0
    with pytest.raises(ProblemError) as silent:
        await whole(made.speak("你好。世界。", "x:y"))
    assert (silent.value.code, silent.value.field) == (ErrorCode.INVALID_REQUEST, "text")
    assert "'x:y' can pronounce nothing" in silent.value.detail
    worker.busy = ProblemError(ErrorCode.TTS_FAILED, "busy", retry_after_s=1)
    with pytest.raises(ProblemError, match="busy"):
        made.speak("Hello.", "x:y")


async def test_a_text_is_as_long_as_is_allowed_after_it_was_cleaned() -> None:
    made, worker = voice()
    await made.speak("a" * TEXT_CHARACTERS + "<b>" * 500, "x:y").aclose()
    with pytest.raises(ProblemError) as refused:
        made.speak("a" * (TEXT_CHARACTERS + 1), "x:y")
    assert (refused.value.limit, refused.value.value) == (TEXT_CHARACTERS, TEXT_CHARACTERS + 1)
    assert "send it in pieces" in refused.value.detail and len(worker.asked) == 1


TEXTS = st.text(st.sampled_from("ab 1,.;，。一é\n"), max_size=200)


@settings(max_examples=60)
@given(TEXTS, st.integers(0, 10**6), st.integers(0, 10**6))
def test_words_cover_the_sound_without_a_gap_and_are_the_text(text: str, start: int, length: int) -> None:
    cut = words(text)
    assert "".join(cut) == (text if text.strip() else "")
    assert all(len(word.strip()) <= WORD_CHARACTERS for word in cut)
    spoken = spread(text, start, start + length)
    assert [word.text for word in spoken] == cut
    if spoken:
        assert (spoken[0].start, spoken[-1].end) == (start, start + length)
        assert all(a.end == b.start for a, b in pairwise(spoken))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 10**6))
def test_each_piece_is_as_long_as_its_weight_says_to_the_sample(weights: list[int], samples: int) -> None:
    made = weighted([(str(n), weight) for n, weight in enumerate(weights)], 0, samples)
    for word, weight in zip(made, weights, strict=True):
        assert word.end - word.start == pytest.approx(samples * weight / sum(weights), abs=1)


@settings(max_examples=40)
@given(st.integers(0, 5000), st.sampled_from([8000, 22_050, 48_000]))
def test_pieces_are_all_of_the_sound_and_no_longer_than_a_chunk(samples: int, rate: int) -> None:
    pcm = bytes(n % 251 for n in range(2 * samples))
    cut = list(pieces(pcm, rate))
    assert b"".join(chunk.pcm for chunk in cut) == pcm
    assert all(0 < len(chunk.pcm) <= 2 * (rate * CHUNK_MS // 1000) for chunk in cut)
