"""Speech as a file: nothing is added to what the voice gave, and nothing follows it that is empty."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import numpy as np

from musetalk_agent.protocol.messages import CaptionWord
from orchestrator.tts.encoding import ENCODED_RATE, EncodedFormat, EncodedSpeech, encoded
from orchestrator.tts.synthesizer import SpeechChunk


async def voice(*pieces: bytes) -> AsyncGenerator[SpeechChunk, None]:
    for n, pcm in enumerate(pieces):
        yield SpeechChunk(pcm, ENCODED_RATE, (), (CaptionWord(text=f"w{n} ", start=0, end=240),))


async def test_pcm_of_the_files_own_rate_comes_as_it_is_and_ends_with_the_voice() -> None:
    pcm = np.arange(960, dtype="<i2").tobytes()
    pieces = [piece async for piece in encoded(voice(pcm[:800], b"", pcm[800:]), EncodedFormat.PCM)]
    assert b"".join(piece.data for piece in pieces) == pcm
    assert pieces[1] == EncodedSpeech(b"", (("w1 ", 0.0, 0.01),)), "a word without sound"
    assert len(pieces) == 3
