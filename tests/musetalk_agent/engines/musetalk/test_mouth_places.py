"""Where the head has its mouth: a head that moves, leans and comes nearer, whose own mouth does what it likes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.engines.musetalk.artefacts import SIDE, MuseTalkArtefacts
from musetalk_agent.engines.musetalk.picture.mouth_picture import mouth_places
from musetalk_agent.engines.warp.mouth_space import OUTER_LOWER, OUTER_UPPER
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved

LIPS = [*OUTER_UPPER, *OUTER_LOWER]


@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_it_is_carried_by_the_head_and_not_by_the_lips(tmp_path: Path, degrees: float) -> None:
    """`degrees`: by how much the head leans in the second frame; a leaning head has a picture of its own."""
    frames = [moved(70, 30, 1.0, (720, 640)), moved(76, 34, 1.04, (720, 640))]
    turn = np.exp(1j * np.radians(degrees))
    around = frames[1][1].mean(0) @ (1, 1j)
    points = (frames[1][1] @ (1, 1j) - around) * turn + around
    frames[1] = (frames[1][0], np.stack([points.real, points.imag], 1).astype(np.float32))
    bundle = bundle_of(tmp_path, frames)
    artefacts = MuseTalkArtefacts.of(bundle, lambda crops: np.zeros((len(crops), 8, 32, 32), np.float16))
    places = mouth_places(bundle.landmarks, artefacts)
    opened = bundle.landmarks.copy()
    opened[1, LIPS] += (5, 30)
    assert np.allclose(mouth_places(opened, artefacts), places, atol=1e-3)
    lips = bundle.landmarks[:, LIPS].mean(1)
    if artefacts.placements is None:
        boxes = artefacts.boxes
        expected = (lips - boxes[:, :2]) * (SIDE / (boxes[:, 2:] - boxes[:, :2]))
        assert np.allclose(places, expected, atol=0.1)
    else:
        back = np.array([p[:, :2] @ at + p[:, 2] for p, at in zip(artefacts.placements, places, strict=True)])
        assert np.allclose(back, lips, atol=0.1)
