"""A growing text spoken by a voice that takes whole sentences: one after the other, as one utterance."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.base import PAUSE, SpeechChunk, pieces
from orchestrator.tts.sentences import GrowingText
from orchestrator.tts.text import SENTENCE_PAUSE_MS


async def in_turn(
    text: GrowingText,
    speak: Callable[[str], AsyncGenerator[SpeechChunk, None]],
    pause_ms: int = SENTENCE_PAUSE_MS,
) -> AsyncGenerator[SpeechChunk, None]:
    """Speaks sentence by sentence, with a pause between them. Raises what `speak` raises; a sentence with nothing to say is left
    out, as long as another has something.
    """
    position, cued, unspeakable = 0, False, None
    try:
        while (sentence := await text.next()) is not None:
            try:
                spoken = speak(sentence)
                async with aclosing(spoken):
                    begin = position
                    async for chunk in spoken:
                        if position == begin and begin:
                            for silence in _silence(position, chunk.sample_rate, pause_ms, cued):
                                yield silence
                                position += len(silence.pcm) // 2
                            begin = position
                        yield _later(chunk, begin)
                        position += len(chunk.pcm) // 2
                        cued = cued or bool(chunk.cues)
            except ProblemError as error:
                if error.code is not ErrorCode.INVALID_REQUEST:
                    raise
                unspeakable = error
    finally:
        text.abandon()
    if unspeakable is not None and position == 0:
        raise unspeakable


def _silence(position: int, rate: int, pause_ms: int, cued: bool) -> list[SpeechChunk]:
    samples = rate * pause_ms // 1000
    out = list(pieces(bytes(2 * samples), rate))
    if out and cued:
        cue = CueItem(phoneme=PAUSE, start=position, end=position + samples)
        out[0] = SpeechChunk(out[0].pcm, rate, (cue,))
    return out


def _later(chunk: SpeechChunk, by: int) -> SpeechChunk:
    if not by:
        return chunk
    cues = tuple(CueItem(phoneme=c.phoneme, start=c.start + by, end=c.end + by) for c in chunk.cues)
    words = tuple(CaptionWord(text=w.text, start=w.start + by, end=w.end + by) for w in chunk.words)
    return SpeechChunk(chunk.pcm, chunk.sample_rate, cues, words)
