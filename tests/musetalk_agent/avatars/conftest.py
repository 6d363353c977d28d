from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.weights import Manifest, ModelStore


@pytest.fixture(scope="session")
def models() -> ModelStore:
    """The real face models; `musetalk-agent fetch-models` brings them."""
    return ModelStore(None, Manifest.load())


@pytest.fixture
def library(tmp_path: Path, models: ModelStore, decoders: DecoderPools) -> Iterator[AvatarLibrary]:
    made = AvatarLibrary(tmp_path / "cache", models, allow_private_urls=True, decoders=decoders)
    yield made
    made.close()
