from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integrations.conversation import lasting_agent


@pytest.fixture(scope="session", autouse=True)
def _the_agent_ends() -> Iterator[None]:
    yield
    lasting_agent.end()
