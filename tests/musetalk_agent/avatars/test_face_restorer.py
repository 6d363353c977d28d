"""Faces are cut out, handed to a network of restoration, and laid back: with networks that are known, made here as ONNX."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars import face_restorer
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.face_restorer import (
    RESTORER,
    SIDE,
    TEMPLATE,
    FaceRestorer,
    five_points,
    pixels_of,
    placement_of,
)
from musetalk_agent.errors import EngineUnavailable, WeightsInvalid, WeightsMissing
from musetalk_agent.protocol.problems import ErrorCode
from musetalk_agent.weights import Manifest, ModelStore
from tests.musetalk_agent.avatars.clips import face

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from tests.fakes.tiny_restorer import write_restorer


def store(folder: Path) -> ModelStore:
    """A models folder whose manifest knows no size of the weights: the tiny network is another file."""
    entries = {
        name: entry.model_copy(update={"size": None, "sha256": None} if name == RESTORER else {})
        for name, entry in Manifest.load().entries.items()
    }
    return ModelStore(folder, Manifest(entries))


def restorer(folder: Path, tint: tuple[float, float, float] = (0, 0, 0)) -> FaceRestorer:
    write_restorer(folder, tint)
    return FaceRestorer(store(folder))


@pytest.fixture(scope="module")
def seen(models: ModelStore) -> tuple[np.ndarray, np.ndarray]:
    """A picture of 512×512, and its face's mesh."""
    picture = face(512)
    found = FaceNet(models).faces(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return picture, found[0].points


def test_the_five_points_come_to_lie_where_the_network_was_trained_to_find_them(
    seen: tuple[np.ndarray, np.ndarray],
) -> None:
    placement = placement_of(seen[1])
    there = five_points(seen[1]) @ placement[:, :2].T + placement[:, 2]
    assert np.abs(there - TEMPLATE).max() < 15, "a face is not FFHQ's mean, but near it"
    assert pixels_of(placement) == pytest.approx(512 * 0.37 * 2, rel=0.25)  # a face is half the aligned square


@pytest.mark.parametrize(("scale", "degrees"), [(0.4, 0), (1.0, 25), (2.5, -70)])
def test_a_placement_follows_a_face_that_is_turned_and_scaled(
    seen: tuple[np.ndarray, np.ndarray], scale: float, degrees: float
) -> None:
    turn = cv2.getRotationMatrix2D((200.0, 300.0), degrees, scale)
    moved = seen[1] @ turn[:, :2].T + turn[:, 2]
    before = five_points(seen[1]) @ placement_of(seen[1])[:, :2].T + placement_of(seen[1])[:, 2]
    after = five_points(moved) @ placement_of(moved)[:, :2].T + placement_of(moved)[:, 2]
    assert np.allclose(before, after, atol=1e-6)
    assert pixels_of(placement_of(moved)) == pytest.approx(scale * pixels_of(placement_of(seen[1])))


def test_a_network_that_changes_nothing_changes_next_to_nothing(
    tmp_path: Path, seen: tuple[np.ndarray, np.ndarray]
) -> None:
    picture, mesh = seen
    smooth = cv2.GaussianBlur(picture, (0, 0), 2)  # sampling twice loses what is finer
    given = smooth.copy()
    out = restorer(tmp_path).restored(smooth, mesh)
    assert np.array_equal(smooth, given), "what is given is not written to"
    assert np.abs(out.astype(int) - smooth).mean() < 0.3
    assert np.percentile(np.abs(out.astype(int) - smooth), 99.9) <= 6


def test_what_the_network_adds_is_laid_on_the_face_whole_in_the_right_channels_and_fades_out(
    tmp_path: Path, seen: tuple[np.ndarray, np.ndarray]
) -> None:
    _, mesh = seen
    grey = np.full((512, 512, 3), 100, np.uint8)
    out = restorer(tmp_path, tint=(30, 0, -20)).restored(grey, mesh).astype(int)
    x, y = np.rint(mesh[1]).astype(int)
    assert out[y, x].tolist() == pytest.approx([80, 100, 130], abs=1)  # BGR: red up, blue down
    edge = out[..., 2][0] - 100
    assert np.abs(np.diff(out[..., 2], axis=1)).max() <= 4, "no edge is seen"
    assert edge.max() <= 30
    corners = out[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.array_equal(corners, np.full((4, 3), 100))
    half = restorer(tmp_path, tint=(30, 0, -20)).restored(grey, mesh, strength=0.5)
    assert half[y, x].tolist() == pytest.approx([90, 100, 115], abs=1)
    assert np.array_equal(restorer(tmp_path, tint=(30, 0, 0)).restored(grey, mesh, strength=0.0), grey)


def test_a_face_at_the_edge_or_outside_the_picture_is_laid_as_far_as_it_lies_in_it(
    tmp_path: Path, seen: tuple[np.ndarray, np.ndarray]
) -> None:
    tinted = restorer(tmp_path, tint=(30, 30, 30))
    grey = np.full((512, 512, 3), 100, np.uint8)
    half_out = tinted.restored(grey, seen[1] - (seen[1][1, 0], 0))
    assert half_out[:, 0].max() > 120 and half_out[:, -1].max() == 100
    assert np.array_equal(tinted.restored(grey, seen[1] + 5000), grey)


def test_numbers_that_are_none_and_levels_beyond_white_do_not_get_into_the_picture(tmp_path: Path) -> None:
    white = np.full((SIDE, SIDE, 3), 250, np.uint8)
    assert restorer(tmp_path, tint=(60, 60, 60)).face(white).min() == 255
    assert restorer(tmp_path, tint=(float("nan"), 0, 0)).face(white)[..., 2].max() == 128


def test_without_the_weights_the_error_names_the_command_that_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="fetch-models restore") as caught:
        FaceRestorer(store(tmp_path))
    assert caught.value.code is ErrorCode.WEIGHTS_MISSING


def test_another_file_than_such_a_network_is_recognised_by_its_path(tmp_path: Path) -> None:
    path = write_restorer(tmp_path, side=256)
    with pytest.raises(WeightsInvalid, match="one face of 3×512×512") as caught:
        FaceRestorer(store(tmp_path))
    assert caught.value.code is ErrorCode.WEIGHTS_INVALID
    path.write_bytes(b"no network")
    with pytest.raises(WeightsInvalid, match="no network that onnxruntime reads"):
        FaceRestorer(store(tmp_path))
    write_restorer(tmp_path, out=1)
    with pytest.raises(WeightsInvalid, match="answers"):
        FaceRestorer(store(tmp_path)).face(np.zeros((SIDE, SIDE, 3), np.uint8))


def test_a_file_of_one_s_own_is_taken_in_its_place(tmp_path: Path) -> None:
    own = write_restorer(tmp_path / "elsewhere", tint=(10, 10, 10))
    assert FaceRestorer(store(tmp_path), own).face(np.zeros((SIDE, SIDE, 3), np.uint8)).max() == 10


def test_without_onnxruntime_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name=name)

    monkeypatch.setattr(face_restorer, "importlib", SimpleNamespace(import_module=absent))
    with pytest.raises(EngineUnavailable, match=r"\[restore\]") as caught:
        FaceRestorer(store(tmp_path))
    assert caught.value.code is ErrorCode.ENGINE_UNAVAILABLE
