"""Training data: what is written is what the trainer reads, what cannot be used is named, and a run that was killed goes on."""

from __future__ import annotations

import argparse
import json
import wave
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_agent.dataset import command
from musetalk_agent.dataset.dataset_maker import DatasetMaker, DatasetSettings, clip_names, films_of
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.measure.lip_measures import video_frames
from tests.bench import judge_clips
from tests.musetalk_agent.judge.conftest import GoodFilm

SETTINGS = DatasetSettings(clip_s=1, validation=0.34, least_px=60)


@pytest.fixture(scope="module")
def films(good: GoodFilm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good films, one of 30 frames a second, one without a face from its second second on, one blurred, two broken ones."""
    folder = tmp_path_factory.mktemp("films")
    frames, voice = good.frames, good.voice
    judge_clips.write_film(folder / "one two.mp4", frames[:40], voice[: 40 * 640])
    judge_clips.write_film(folder / "three.mp4", frames[:36], voice[: 36 * 640], fps=30)
    lost = frames[:50].copy()
    lost[30:] = 90
    judge_clips.write_film(folder / "lost.mp4", lost, voice[: 50 * 640])
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 4) for frame in frames[:25]])
    judge_clips.write_film(folder / "soft.mp4", soft, voice[: 25 * 640])
    (folder / "broken.mp4").write_bytes((folder / "one two.mp4").read_bytes()[:5000])
    judge_clips.write_film(folder / "mute.mp4", frames[:25], None)
    (folder / "notes.txt").write_text("no film")
    return folder


def listed(out: Path, name: str) -> list[str]:
    first, *rest = (out / name).read_text().splitlines()
    assert first == "meta", "the trainer skips the first line"
    return rest


def test_clips_lists_and_meta_are_what_the_trainer_reads(films: Path, judge: Judge, tmp_path: Path) -> None:
    records = DatasetMaker(tmp_path / "out", judge.net, SETTINGS).make(films_of(films))
    out = tmp_path / "out"
    by_name = {record.name: record for record in records}
    assert by_name["one two.mp4"].clips == ["clip000_one_two", "clip001_one_two"]
    assert by_name["three.mp4"].clips == ["clip000_three"]
    assert by_name["lost.mp4"].clips == ["clip000_lost"]
    assert "shows no face" in by_name["lost.mp4"].left_out["clip001_lost"]
    assert "blurred" in by_name["soft.mp4"].left_out["clip000_soft"]
    assert {name for name, record in by_name.items() if record.broken} == {"broken.mp4", "mute.mp4"}
    train, validation = listed(out, "train.txt"), listed(out, "val.txt")
    assert sorted(train + validation) == [
        "clip000_lost.json",
        "clip000_one_two.json",
        "clip000_three.json",
        "clip001_one_two.json",
    ]
    assert train and validation and not {n.split("_", 1)[1] for n in train} & {n.split("_", 1)[1] for n in validation}
    left_out = (out / "left_out.txt").read_text()
    assert all(name in left_out for name in ("clip001_lost\t", "clip000_soft\t", "broken.mp4\t", "mute.mp4\t"))
    for name in train + validation:
        meta = json.loads((out / "meta" / name).read_text())
        pictures = [picture for _, picture in video_frames(Path(meta["mp4_path"]))]
        assert meta["frames"] == len(pictures) == len(meta["face_list"]) == len(meta["landmark_list"])
        assert np.array(meta["landmark_list"]).shape == (meta["frames"], 68, 2)
        assert meta["video_size"] == list(pictures[0].shape[:2]) and meta["isvalid"] is True
        x0, y0, x1, y1 = meta["face_list"][0]
        assert meta["face_size"] == [y1 - y0, x1 - x0] and x1 - x0 >= 60
        mouth = np.array(meta["landmark_list"][0])[48:].mean(0)
        assert x0 < mouth[0] < x1 and (y0 + y1) / 2 < mouth[1] < y1
        with wave.open(meta["wav_path"]) as sound:
            assert (sound.getframerate(), sound.getnchannels()) == (16_000, 1)
            assert sound.getnframes() == meta["frames"] * 640
    assert json.loads((out / "meta" / "clip000_three.json").read_text())["frames"] == 25


def test_a_run_that_was_killed_goes_on_and_ends_as_one_that_was_not(films: Path, judge: Judge, tmp_path: Path) -> None:
    whole = DatasetMaker(tmp_path / "whole", judge.net, SETTINGS).make(films_of(films))
    read = 0

    def dies(frames: int) -> None:
        nonlocal read
        read += frames
        if read == 85:  # within the second clip of a film
            raise KeyboardInterrupt

    maker = DatasetMaker(tmp_path / "out", judge.net, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        maker.make(films_of(films), dies)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("clip*") if path.suffix != ".part"}
    assert made and not (tmp_path / "out" / "train.txt").exists()
    again = DatasetMaker(tmp_path / "out", judge.net, SETTINGS).make(films_of(films))
    assert [(r.name, r.clips, r.left_out, r.broken) for r in again] == [
        (r.name, r.clips, r.left_out, r.broken) for r in whole
    ]
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what was made is not made again"
    for name in ("train.txt", "val.txt"):
        assert listed(tmp_path / "out", name) == listed(tmp_path / "whole", name)
    count = 0

    def counts(frames: int) -> None:
        nonlocal count
        count += frames

    DatasetMaker(tmp_path / "out", judge.net, SETTINGS).make(films_of(films), counts)
    assert count == 0, "a run after the last one reads nothing"


def test_a_film_that_changed_is_made_anew(good: GoodFilm, judge: Judge, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    folder.mkdir()
    film = judge_clips.write_film(folder / "one.mp4", good.frames[:50], good.voice[: 50 * 640])
    maker = DatasetMaker(tmp_path / "out", judge.net, SETTINGS)
    assert maker.make([film])[0].clips == ["clip000_one", "clip001_one"]
    judge_clips.write_film(film, good.frames[:20], good.voice[: 20 * 640])
    assert maker.make([film])[0].clips == ["clip000_one"]
    assert [path.name for path in (tmp_path / "out" / "meta").iterdir()] == ["clip000_one.json"]
    assert json.loads((tmp_path / "out" / "meta" / "clip000_one.json").read_text())["frames"] == 20


def test_names_of_clips_hold_no_space_and_are_distinct() -> None:
    names = clip_names([Path("a/one two.mp4"), Path("b/one two.mov"), Path("c/…mp4")])
    assert names[Path("a/one two.mp4")] == "one_two" and len(set(names.values())) == 3
    assert all(name.replace("_", "").isalnum() for name in names.values())


def test_the_command_names_what_is_broken_and_says_what_it_cannot_use(
    films: Path, judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*argv: str) -> int:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args(argv))

    out = str(tmp_path / "out")
    assert run(str(films), "-o", out, "--clip-seconds", "1", "--least-face", "60") == 0
    printed = capsys.readouterr()
    assert "4 clips of 6 films; 3 clips left out, 2 films broken" in printed.out
    assert (
        "broken.mp4 is no film that can be read, or it is damaged." in printed.err
        and "! clip001_lost is left out: frame" in printed.err
    )
    for argv, sentence in (
        ((str(films), "-o", out, "--validation", "2"), "--validation 2 is not within 0 … 1."),
        ((str(films), "-o", out, "--clip-seconds", "31"), "--clip-seconds 31 is not within 1 … 30"),
        ((str(tmp_path / "none"), "-o", out), "none cannot be used: No such file"),
    ):
        assert run(*argv) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(str(tmp_path / "empty"), "-o", str(tmp_path / "nothing")) == 1
