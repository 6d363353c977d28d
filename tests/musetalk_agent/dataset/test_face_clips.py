"""Which clips may be trained on, by faces that are made up; and how films are divided and named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from musetalk_agent.avatars.face import Face
from musetalk_agent.dataset import face_clip
from musetalk_agent.dataset.dataset_maker import (
    HEADER,
    DatasetMaker,
    DatasetSettings,
    SourceRecord,
    clip_names,
    films_of,
)
from musetalk_agent.dataset.face_clip import LANDMARKS, LEAST_DETAIL, FaceClip
from musetalk_agent.judge.following import SeenFace

FRAME = np.zeros((480, 640, 3), np.uint8)


def seen(number: int = 0, width: float = 200.0, left: float = 100.0, top: float = 50.0) -> SeenFace:
    """A face that is so wide and as high, its points on a diagonal."""
    points = np.linspace((left, top), (left + width, top + width), 468).astype(np.float32)
    return SeenFace(number, Face(points, 9.0))


class Follower:
    """Sees what it is given, frame after frame."""

    def __init__(self, frames: list[list[SeenFace]]) -> None:
        self.frames = frames

    def push(self, _: object) -> list[SeenFace]:
        return self.frames.pop(0)


def clip(frames: list[list[SeenFace]], monkeypatch: pytest.MonkeyPatch, detail: float = 0.4) -> FaceClip:
    """A clip of these frames, all of which it takes."""
    net: Any = None
    monkeypatch.setattr(face_clip, "detail", lambda bgr, points: detail)
    made = FaceClip(net, least_px=150)
    follower: Any = Follower(frames)
    made._follower = follower
    for _ in range(len(frames)):
        made.push(FRAME)
    return made


def test_a_face_on_every_frame_makes_a_clip_with_a_box_and_landmarks_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    made = clip([[seen(0, 200.0 + k)] for k in range(30)], monkeypatch)
    assert made.verdict() is None
    assert made.boxes[0] == [100, 50, 300, 250] and made.boxes[29] == [100, 50, 329, 279]
    assert len(made.landmarks) == 30 and {len(each) for each in made.landmarks} == {68} == {len(LANDMARKS)}


def test_a_box_ends_where_the_picture_does(monkeypatch: pytest.MonkeyPatch) -> None:
    made = clip([[seen(left=-20.5, top=400.2)]], monkeypatch)
    assert made.boxes == [[0, 400, 180, 480]]


@pytest.mark.parametrize(
    ("second", "fault"),
    [([], "frame 1 shows no face"), ([seen(1)], "frame 1 shows another face"), ([seen(1), seen(0)], None)],
)
def test_the_face_of_the_first_frame_must_be_on_every_one(
    second: list[SeenFace], fault: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = clip([[seen()], second, [seen()]], monkeypatch)
    assert made.verdict() == made.fault == fault
    assert len(made.boxes) == (3 if fault is None else 1)


def test_a_clip_is_left_out_for_a_small_face_or_a_blurred_one_or_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    small = clip([[seen(width=100.0)], [seen(width=149.0)], [seen(width=400.0)]], monkeypatch)
    assert small.verdict() == "the face is 149 px wide; 150 are needed", "its median counts"
    blurred = clip([[seen()]], monkeypatch, detail=LEAST_DETAIL - 0.01)
    assert blurred.verdict() == "the face is blurred (detail 0.24; 0.25 is needed)"
    assert clip([[seen()]], monkeypatch, detail=LEAST_DETAIL).verdict() is None
    assert clip([], monkeypatch).verdict() == "it has no frame"


@given(
    st.lists(st.text("aB -_é.ß/", min_size=1, max_size=6).map(lambda name: f"{name.replace('/', 'x')}.mp4"), max_size=6)
)
def test_every_film_has_a_name_of_its_own_which_no_list_splits(names: list[str]) -> None:
    films = [Path(f"/films/{number}/{name}") for number, name in enumerate(names)]
    found = clip_names(films)
    assert list(found) == films and len(set(found.values())) == len(films)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in found.values())


def test_films_are_found_below_the_folder_by_their_endings(tmp_path: Path) -> None:
    for name in ("b.MP4", "a.mkv", "c.txt", "below/d.webm", ".hidden.mp4x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [path.name for path in films_of(tmp_path)] == ["a.mkv", "b.MP4", "d.webm"]
    with pytest.raises(FileNotFoundError):
        films_of(tmp_path / "none")


def records(clips: list[int]) -> list[SourceRecord]:
    """Films with so many clips each."""
    return [
        SourceRecord(f"film{k}.mp4", 1, 1, "30/150", [f"clip{n:03d}_film{k}" for n in range(count)])
        for k, count in enumerate(clips)
    ]


def lists(out: Path) -> tuple[list[str], list[str]]:
    first, second = ((out / name).read_text().splitlines() for name in ("train.txt", "val.txt"))
    assert first[0] == second[0] == HEADER
    return first[1:], second[1:]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3), max_size=12), st.floats(0, 1))
def test_each_clip_is_in_one_list_and_each_film_too(tmp_path: Path, clips: list[int], share: float) -> None:
    net: Any = None
    made = records(clips)
    DatasetMaker(tmp_path / "out", net, DatasetSettings(validation=share))._write_lists(made)
    train, validation = lists(tmp_path / "out")
    assert sorted([*train, *validation]) == sorted(f"{clip}.json" for record in made for clip in record.clips)
    films = [{clip.partition("_")[2] for clip in each} for each in (train, validation)]
    assert not films[0] & films[1]
    usable = sum(count > 0 for count in clips)
    assert len(films[1]) == (min(usable - 1, max(1, round(share * usable))) if share and usable > 1 else 0)
    assert train or not usable, "there is always something to train on"


def test_what_is_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    net: Any = None
    good, bad = records([1, 0])
    good.left_out = {"clip001_film0": "it has 3 frames only"}
    bad.broken = "film1.mp4 is no film."
    DatasetMaker(tmp_path / "out", net, DatasetSettings())._write_lists([good, bad])
    assert (tmp_path / "out" / "left_out.txt").read_text().splitlines() == [
        "clip001_film0\tit has 3 frames only",
        "film1.mp4\tfilm1.mp4 is no film.",
    ]


@pytest.mark.parametrize("stored", ["", "{", "[]", '{"unknown": 1}', "null"])
def test_a_record_that_cannot_be_read_is_made_anew_with_all_of_its_clips(tmp_path: Path, stored: str) -> None:
    net: Any = None
    film = tmp_path / "one.mp4"
    film.write_bytes(b"film")
    maker = DatasetMaker(tmp_path / "out", net, DatasetSettings())
    for folder, name in (("meta", "clip000_one.json"), ("video_audio_clip_root", "clip000_one.mp4")):
        (tmp_path / "out" / folder / name).touch()
    other = tmp_path / "out" / "meta" / "clip000_one_two.json"
    other.touch()
    (tmp_path / "out" / "sources" / "one.json").write_text(stored)
    record = maker._begun(film, "one")
    assert not record.done and record.size == 4 and record.clips == []
    assert [path.name for path in (tmp_path / "out" / "meta").iterdir()] == [other.name], "those of another film stay"
    assert json.loads((tmp_path / "out" / "sources" / "one.json").read_text())["name"] == "one.mp4"
