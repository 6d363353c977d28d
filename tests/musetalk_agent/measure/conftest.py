"""What the tests of lags share: each film's faces are looked for once, a second or two of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.measure import measure_sync
from musetalk_agent.measure.lip_measures import VideoFaces


@pytest.fixture(scope="module", autouse=True)
def _faces_are_found_once() -> Iterator[None]:
    real, found = measure_sync.find_faces, dict[Path, VideoFaces]()

    def find_faces(path: Path, net: FaceNet, progress: Callable[[int], object] = lambda _: None) -> VideoFaces:
        if path not in found:
            found[path] = real(path, net, progress)
        return found[path]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure_sync, "find_faces", find_faces)
        yield
