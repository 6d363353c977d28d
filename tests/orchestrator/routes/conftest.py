from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from orchestrator.tts.voices import Voices
from tests.fakes.stage import Stage, stage
from tests.fakes.tone_voice import TonePerWord


@pytest.fixture
def voice() -> TonePerWord:
    return TonePerWord()


@pytest.fixture
async def speaking(voice: TonePerWord) -> AsyncIterator[Stage]:
    async with stage(voices=Voices("tone:one", synthesizers=[voice])) as ready:
        yield ready
