from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integrations.conversation import warm_python


@pytest.fixture(scope="session", autouse=True)
def _what_lasts_ends() -> Iterator[None]:
    yield
    warm_python.end()
