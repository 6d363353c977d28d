from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import psutil
import pytest
import pytest_asyncio

from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.voices import Voices
from tests.waiting import NEVER_S


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def voices() -> AsyncIterator[Voices]:
    """The embedded voices with their real worker, started once for a module."""
    voices = Voices()
    for synthesizer in voices.synthesizers:
        if isinstance(synthesizer, LocalSynthesizer):
            synthesizer._worker.part_timeout_s = NEVER_S  # a busy machine takes long, and hangs are tried elsewhere
    await voices.open()
    try:
        yield voices
    finally:
        await voices.aclose()


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Fails a test that leaves a process behind. Those of other tests' fixtures (a whole demo) may be there."""
    before = set(psutil.Process().children())
    yield
    assert not set(psutil.Process().children()) - before
