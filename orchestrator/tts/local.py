"""The voices that need no network: piper's neural voice and espeak-ng, in the worker process."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts import segmentation as texts
from orchestrator.tts.segmentation import spread
from orchestrator.tts.speech_worker import SpeechWorker, SpokenPart, WorkerStatistics
from orchestrator.tts.synthesizer import CHUNK_MS, PAUSE, PLAIN, SpeechChunk, SpeechOptions, VoiceInfo

TEXT_CHARACTERS = 10_000
"""Longest text: ten minutes of speech."""
CHARACTER_S = 0.06
"""About how long a character of text sounds (s): orders the parts of different utterances, nothing depends on it."""
PARTS_AHEAD = 2
"""Parts of an utterance that may be finished or in the making beyond the one being handed out."""


class LocalSynthesizer:
    """`Synthesizer` of the embedded voices `piper:joe` and `espeak:LANGUAGE`."""

    def __init__(self, command: tuple[str, ...] = (sys.executable, "-m", "orchestrator.tts.worker")) -> None:
        self._worker = SpeechWorker(command)

    @property
    def pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        return self._worker.pid

    @property
    def statistics(self) -> WorkerStatistics:
        """Counters of the worker."""
        return self._worker.statistics

    async def open(self) -> None:
        """Starts the worker and waits until it is warm (2 s)."""
        await self._worker.open()

    def names(self) -> list[VoiceInfo]:
        """What the worker found installed; empty before `open`."""
        return list(self._worker.voices)

    def speak(self, text: str, voice: str, options: SpeechOptions = PLAIN) -> AsyncGenerator[SpeechChunk, None]:
        """See `Synthesizer.speak`."""
        cleaned = texts.clean(text)
        if not cleaned:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                "`text` has nothing that can be spoken: give it at least one letter or digit.",
                field="text",
            )
        if len(cleaned) > TEXT_CHARACTERS:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                f"`text` has {len(cleaned)} characters, at most {TEXT_CHARACTERS} can be spoken at once: send it in pieces.",
                field="text",
                limit=TEXT_CHARACTERS,
                value=len(cleaned),
            )
        parts = deque(texts.parts(cleaned))
        first = self._worker.submit(voice, parts[0].text, options)
        return self._speak(parts, first, voice, options)

    async def aclose(self) -> None:
        """Ends the worker."""
        await self._worker.aclose()

    async def _speak(
        self, parts: deque[texts.Part], first: asyncio.Future[SpokenPart], voice: str, options: SpeechOptions
    ) -> AsyncGenerator[SpeechChunk, None]:
        making = deque([(parts.popleft(), first)])
        position, character_s = 0, CHARACTER_S / options.speed
        began: float | None = None
        try:
            while making:
                part, result = making[0]
                spoken = await result
                making.popleft()
                began = asyncio.get_running_loop().time() if began is None else began
                due = began + (position + len(spoken.pcm) // 2) / spoken.sample_rate
                due += sum(character_s * len(ahead.text) for ahead, _ in making)
                while parts and len(making) < PARTS_AHEAD:
                    following = parts.popleft()
                    making.append((following, self._worker.submit(voice, following.text, options, due=due)))
                    due += character_s * len(following.text)
                for chunk in _chunks(spoken, part, position, options.speed):
                    yield chunk
                    position += len(chunk.pcm) // 2
        finally:
            for _, result in making:
                result.cancel()
        if position == 0:
            raise ProblemError(
                ErrorCode.INVALID_REQUEST,
                f"The voice {voice!r} can pronounce nothing of `text`: use a voice of the text's language.",
                field="text",
            )


def _chunks(spoken: SpokenPart, part: texts.Part, position: int, speed: float) -> Iterator[SpeechChunk]:
    """The part and the pause after it in pieces; all its cues and words go with the first, so that they come before their sound."""
    rate = spoken.sample_rate
    if not spoken.pcm:
        return
    pause = round(rate * part.pause_ms / speed / 1000)
    samples = len(spoken.pcm) // 2
    pcm = memoryview(spoken.pcm + bytes(2 * pause))
    cues = [CueItem(phoneme=p, start=position + a, end=position + b) for p, a, b in spoken.cues]
    if cues and pause:
        cues.append(CueItem(phoneme=PAUSE, start=position + samples, end=position + samples + pause))
    words = _words(spoken, part.text, position)
    step = 2 * (rate * CHUNK_MS // 1000)
    for begin in range(0, len(pcm), step):
        piece = bytes(pcm[begin : begin + step])
        yield SpeechChunk(piece, rate, tuple(cues), words) if begin == 0 else SpeechChunk(piece, rate, ())


def _words(spoken: SpokenPart, text: str, position: int) -> tuple[CaptionWord, ...]:
    """What is said, with a space after the part."""
    if not spoken.words:
        return spread(text + " ", position, position + len(spoken.pcm) // 2)
    words = [CaptionWord(text=word, start=position + a, end=position + b) for word, a, b in spoken.words]
    words[-1].text += " "
    return tuple(words)
