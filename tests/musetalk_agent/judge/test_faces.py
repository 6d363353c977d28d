"""Faces: several at once, through cuts and absences; who is who, with dlib's network and without it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars import identity
from musetalk_agent.avatars.face_picture import EYES, cut_face
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.following import FaceFollower
from musetalk_agent.judge.picture_measures import regions
from musetalk_agent.media_types import Pixels
from musetalk_agent.weights import Manifest, ModelStore
from tests.bench import judge_clips
from tests.musetalk_agent.judge.conftest import GoodFilm


def beside(one: Pixels, other: Pixels) -> Pixels:
    return np.ascontiguousarray(np.concatenate([one, other], 1))


def test_two_faces_keep_their_numbers_and_one_that_leaves_and_comes_back_has_its_own(
    judge: Judge, good: GoodFilm
) -> None:
    follower = FaceFollower(judge.net)
    empty = np.full_like(good.frames[0], 120)
    two = [beside(frame, frame[:, ::-1]) for frame in good.frames[:6]]
    one = [beside(frame, empty) for frame in good.frames[6:10]]
    found = [follower.push(frame) for frame in [*two, *one, *two]]
    middles = [{seen.number: seen.face.points[:, 0].mean() for seen in faces} for faces in found]
    assert [sorted(faces) for faces in middles[:6]] == [[0, 1]] * 6
    assert all(len(faces) == 1 for faces in middles[6:10])
    left = next(number for number in (0, 1) if middles[0][number] < 320)
    assert all(faces[left] < 320 for faces in middles) and left in middles[-1]
    assert set(middles[-1]) <= {0, 1} and follower.shot == 0


def test_after_a_cut_faces_are_new_ones_and_black_is_no_cut(judge: Judge, good: GoodFilm) -> None:
    follower = FaceFollower(judge.net)
    black = np.zeros_like(good.frames[0])
    turned = np.ascontiguousarray(255 - good.frames[0])
    numbers = [[s.number for s in follower.push(frame)] for frame in (good.frames[0], black, good.frames[1])]
    assert numbers[0] == numbers[2] == [0] and numbers[1] == [] and follower.shot == 0
    follower.push(turned)
    assert follower.shot == 1
    assert [s.number for s in follower.push(good.frames[2])] == [1] and follower.shot == 2


def test_a_face_is_cut_out_upright_at_one_size_whatever_the_frame(good: GoodFilm) -> None:
    frame, points = good.frames[0], good.meshes[0]
    small = cut_face(frame, points)
    large = cut_face(
        cv2.resize(frame, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC), (points * 4 + 1.5).astype(np.float32)
    )
    assert np.linalg.norm(small.points[263] - small.points[33]) == pytest.approx(EYES, abs=0.01)
    assert large.scale == pytest.approx(4 * small.scale, rel=1e-3)
    assert np.abs(small.pixels.astype(int) - large.pixels).mean() < 3
    parts = regions(small.points)
    assert not (parts.inside & parts.around).any() and not (parts.inside & parts.mouth).any()
    assert min(part.sum() for part in (parts.mouth, parts.inside, parts.around, parts.upper)) > 200


def test_a_face_that_becomes_another_one_is_named(judge: Judge, good: GoodFilm, tmp_path: Path) -> None:
    """The other person is the same face with its upper half upside down: no second face ships with the repository."""
    other = good.frames[:40].copy()
    for frame, points in zip(other[20:], good.meshes[20:40], strict=True):
        x0, y0 = points[[127, 10]].min(0).astype(int)
        x1, y1 = int(points[356, 0]), int(points[4, 1])
        frame[y0:y1, x0:x1] = cv2.GaussianBlur(frame[y0:y1, x0:x1][:, ::-1], (0, 0), 6)
    report = judge.judge(judge_clips.write_film(tmp_path / "other.mp4", other, None))
    whole = judge.judge(judge_clips.write_film(tmp_path / "same.mp4", good.frames[:40], None))
    values = [one.faces[0].measures["identity"].value for one in (report, whole)]
    assert values[0] is not None and values[1] is not None and values[0] < values[1] - 0.1
    assert "identity" in report.faults and whole.faults == []


def test_dlib_s_network_is_used_where_it_and_its_weights_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: GoodFilm
) -> None:
    store = ModelStore(tmp_path, Manifest.load())
    assert identity.describer(store).name == "plain"
    weights = store.location(identity.NETWORK)
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    given: list[Any] = []

    def net(path: str) -> Any:
        given.append(path)

        def describe(chip: Pixels) -> list[float]:
            given.append(chip)
            return [3.0, 4.0]

        return SimpleNamespace(compute_face_descriptor=describe)

    monkeypatch.setitem(sys.modules, "dlib", SimpleNamespace(face_recognition_model_v1=net, __spec__=object()))
    people = identity.describer(store)
    picture = cut_face(good.frames[0], good.meshes[0])
    assert people.name == "dlib" and people.describe(good.frames[0], good.meshes[0], picture) == pytest.approx(
        [0.6, 0.8]
    )
    assert given[0] == str(weights) and given[1].shape == (150, 150, 3)
    eyes = given[1][55:80]  # dlib's mean face has its eyes a third of the way down
    assert given[1].std() > 20 and eyes.std() > 20
