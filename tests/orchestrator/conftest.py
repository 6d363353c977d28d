from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.stage import Stage, stage


@pytest.fixture
async def running() -> AsyncIterator[Stage]:
    """A running orchestrator with one agent."""
    async with stage() as ready:
        yield ready
