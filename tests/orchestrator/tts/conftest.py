from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from orchestrator.tts.voices import Voices


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def voices() -> AsyncIterator[Voices]:
    """The embedded voices with their real worker, started once for a module."""
    voices = Voices()
    await voices.open()
    try:
        yield voices
    finally:
        await voices.aclose()
