"""The look at footage: what is put aside is not looked at again, and joins to the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.identity import PlainDescriber
from musetalk_agent.renders.dub import scanning
from musetalk_agent.renders.dub.footage import Footage, footage_limits
from musetalk_agent.renders.dub.footage_scan import MESHES_FILE, FootageScan
from musetalk_agent.renders.dub.scanning import look_at
from musetalk_agent.weights import Manifest, ModelStore
from tests.musetalk_agent.avatars.clips import face
from tests.musetalk_agent.avatars.test_shots import other_shot
from tests.musetalk_agent.renders.dub.films import write_video

LIMITS = footage_limits(60, 1 << 30)


class Died(Exception):
    pass


@pytest.fixture(scope="module")
def net() -> FaceNet:
    return FaceNet(ModelStore(offline_settings().models_dir, Manifest.load()))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shots = [face(), other_shot(), np.zeros((256, 256, 3), np.uint8), face()[:, ::-1].copy(), other_shot()]
    return write_video(tmp_path_factory.mktemp("film") / "a.mp4", [shot for shot in shots for _ in range(10)])


def made(
    film: Path, aside: Path, folder: Path, net: FaceNet, until: int | None = None
) -> tuple[FootageScan, list[int]]:
    frames: list[int] = []

    def progress(done: int) -> None:
        frames.append(done)
        if done == until:
            raise Died

    folder.mkdir(exist_ok=True)
    return look_at(Footage(film, LIMITS), aside, folder, net, PlainDescriber(), progress), frames


def same(one: FootageScan, other: FootageScan) -> bool:
    arrays = ("cuts", "frame", "number", "aperture", "width", "turn", "nod", "evidence", "described")
    return one.clock == other.clock and all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays
    )


def test_a_look_that_died_goes_on_after_the_last_cut_it_put_aside(
    film: Path, net: FaceNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PUT_ASIDE_S", 0.5)
    whole, _ = made(film, tmp_path / "one", tmp_path / "whole", net)
    assert whole.cuts.tolist() == [0, 10, 20, 30, 40] and whole.frames == 50
    assert not set(whole.frame.tolist()) & set(range(20, 30)), "no face in black"
    assert set(range(10)) <= set(whole.frame.tolist())
    with pytest.raises(Died):
        made(film, tmp_path / "aside", tmp_path / "died", net, until=38)
    kept = sorted(path.name for path in (tmp_path / "aside").glob("*.npz"))
    assert kept == ["000000000.npz"] or kept == ["000000000.npz", "000000020.npz"]
    assert len(list((tmp_path / "aside").iterdir())) == 2 * len(kept), "nothing half done is left"
    first = 20 * len(kept)
    again, frames = made(film, tmp_path / "aside", tmp_path / "again", net)
    assert frames == list(range(first + 1, 51))
    assert same(again, whole) and same(FootageScan.load(tmp_path / "again"), whole)
    assert (tmp_path / "again" / MESHES_FILE).read_bytes() == (tmp_path / "whole" / MESHES_FILE).read_bytes()
    _, frames = made(film, tmp_path / "aside", tmp_path / "last", net)
    assert frames == [], "all of it was put aside"
