"""A voice for tests whose words are tones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import numpy as np

from musetalk_agent.protocol.messages import CaptionWord, CueItem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, VoiceInfo

RATE = 22050


class TonePerWord:
    """A synthesizer: 100 ms of tone a word. The word `break` breaks it, `hang` waits for ever, `crash` is a bug.

    It knows when its words are heard where `captions` is true.
    """

    def __init__(self) -> None:
        self.begun = self.closed = 0
        self.captions = False
        self.asked: list[tuple[str, str, SpeechOptions]] = []
        """What was asked for: text, voice, options."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    def names(self) -> list[VoiceInfo]:
        return [VoiceInfo("tone:one", "en", "tone", RATE), VoiceInfo("tone:two", "de", "tone", RATE)]

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        at, samples = 0, RATE // 10
        self.begun += 1
        self.asked.append((text, voice, options))
        try:
            for word in text.split():
                if word == "hang":
                    await asyncio.Event().wait()
                if word == "break":
                    raise ProblemError(ErrorCode.TTS_FAILED, "The voice broke.")
                if word == "crash":
                    raise RuntimeError("a bug")
                pcm = np.full(samples, 1000 if voice == "tone:one" else 2000, "<i2").tobytes()
                words = (CaptionWord(text=word + " ", start=at, end=at + samples),) if self.captions else ()
                yield SpeechChunk(pcm, RATE, (CueItem(phoneme=word, start=at, end=at + samples),), words)
                at += samples
                await asyncio.sleep(0)
        finally:
            self.closed += 1
