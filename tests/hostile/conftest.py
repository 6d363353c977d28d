from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musetalk_agent.avatars.decoder_pool import Decoders
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.weights import Manifest, ModelStore

LIMITS = AvatarLimits(
    source_bytes=8 << 20,
    fetch_seconds=3.0,
    fetch_grace_seconds=0.5,
    fetch_silence_seconds=1.0,
    fetch_connect_seconds=1.0,
)


@pytest.fixture
def library(tmp_path: Path, decoders: Decoders) -> Iterator[AvatarLibrary]:
    models = ModelStore(None, Manifest.load())
    made = AvatarLibrary(tmp_path / "cache", models, allow_private_urls=True, limits=LIMITS, decoders=decoders)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever was refused leaves no part, no bundle, and no file outside the cache."""
    yield
    cache = tmp_path / "cache"
    if cache.exists():
        assert not list((cache / "parts").iterdir())
        assert not list((cache / "bundles").iterdir())
        assert {path.name for path in tmp_path.iterdir()} == {"cache"}
