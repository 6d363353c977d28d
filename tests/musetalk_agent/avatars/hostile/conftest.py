from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.weights import Manifest, ModelStore
from tests.waiting import NEVER_S

PATIENT = AvatarLimits(
    source_bytes=8 << 20,
    fetch_seconds=NEVER_S,
    fetch_grace_seconds=NEVER_S,
    fetch_silence_seconds=NEVER_S,
    fetch_connect_seconds=NEVER_S,
)


@pytest.fixture
def limits() -> AvatarLimits:
    return PATIENT


@pytest.fixture
def library(tmp_path: Path, decoders: DecoderPools, limits: AvatarLimits) -> Iterator[AvatarLibrary]:
    models = ModelStore(None, Manifest.load())
    made = AvatarLibrary(tmp_path / "cache", models, allow_private_urls=True, limits=limits, decoders=decoders)
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
