"""A disk that is full while an avatar comes in or is prepared: a code that says so, and nothing half-written."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import DiskFull
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode
from musetalk_agent.weights import ModelStore

from .clips import frames_zip, moving


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def small(disk: Path, models: ModelStore, decoders: DecoderPools) -> Iterator[AvatarLibrary]:
    made = AvatarLibrary(disk, models, decoders=decoders)
    yield made
    made.close()


def _files(disk: Path) -> list[str]:
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())


async def test_an_upload_that_does_not_fit_leaves_nothing(small: AvatarLibrary, disk: Path) -> None:
    with pytest.raises(DiskFull) as caught:
        await small.add(b"PK\x03\x04" + bytes(2 << 20))
    problem = Problem.of(caught.value)
    assert (problem.code, problem.status) == (ErrorCode.DISK_FULL, 503)
    assert not _files(disk) and not list((disk / "parts").iterdir())


@pytest.mark.parametrize("spare_kib", [40, 100, 160, 180, 220, 260])
async def test_a_clip_that_cannot_be_prepared_leaves_nothing_and_can_be_later(
    small: AvatarLibrary, disk: Path, spare_kib: int
) -> None:
    """However far it came: frames, landmarks, face windows or the head."""
    avatar_id = await small.add(frames_zip(moving(6, 128)))
    before = _files(disk)
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - (spare_kib << 10)))
    with pytest.raises(DiskFull):
        await small.prepare(AvatarSource(avatar_id=avatar_id), Picture())
    (disk / "other").unlink()
    assert _files(disk) == before and not list((disk / "parts").iterdir())
    bundle = await small.prepare(AvatarSource(avatar_id=avatar_id), Picture())
    assert len(bundle) == 6 and not bundle.report.cached


async def test_what_an_engine_cannot_write_is_reported_too(small: AvatarLibrary) -> None:
    def derive(bundle: Bundle) -> None:
        np.save(bundle.path / "artefacts.npy", np.zeros(2 << 20, np.uint8))

    avatar_id = await small.add(frames_zip(moving(2, 64)))
    with pytest.raises(DiskFull):
        await small.prepare(AvatarSource(avatar_id=avatar_id), Picture(), derive)
