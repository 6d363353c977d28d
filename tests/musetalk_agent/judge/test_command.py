"""`musetalk-agent judge`: exit codes, what is printed, and the sheet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from musetalk_agent.judge import command
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.film_report import MEASURES
from musetalk_agent.judge.film_scan import FilmScan
from tests.bench import judge_clips
from tests.musetalk_agent.judge.conftest import GoodFilm


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, judge: Judge, good: GoodFilm) -> None:
    """The command judges with the same networks on every machine, and knows the good film."""
    look = Judge.look

    def known(self: Judge, film: Path, *args: Any, **more: Any) -> FilmScan:
        return good.seen if film == good.path else look(self, film, *args, **more)

    monkeypatch.setattr(Judge, "load", classmethod(lambda cls, store: judge))
    monkeypatch.setattr(Judge, "look", known)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def test_a_good_film_ends_with_0_and_its_sheet_shows_frames(
    good: GoodFilm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert run(str(good.path), "--reference", str(good.path), "--sheet", str(sheet)) == 0
    reported = capsys.readouterr().out
    assert reported.strip().endswith("out.mp4: passed") and all(name in reported for name in MEASURES)
    picture = cv2.imread(str(sheet))
    assert picture.shape[1] == 800 and picture.std() > 20


def test_a_bad_film_ends_with_1_and_says_where(
    good: GoodFilm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = judge_clips.write_film(tmp_path / "bad.mp4", judge_clips.blackened(good.frames[:40]), None)
    sheet = tmp_path / "sheet.png"
    assert run(str(bad), "--json", "--sheet", str(sheet)) == 1
    reported = json.loads(capsys.readouterr().out)
    assert (reported["passed"], reported["faults"], reported["frames"]) == (False, ["black"], 40)
    [face] = reported["faces"]
    assert face["black"]["verdict"] == "failed" and face["black"]["worst_s"] == pytest.approx([0.8, 0.84, 0.88, 0.92])
    assert sorted(set(face) & set(MEASURES)) == sorted(MEASURES)
    picture = cv2.imread(str(sheet))
    assert picture.shape[:2] == (222, 800) and picture[30:180, :600].mean() < 20, "four black frames"


def test_what_cannot_be_judged_ends_with_2_and_a_sentence(
    good: GoodFilm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no film")
    for argv, sentence in (
        ((str(tmp_path / "none.mp4"),), "none.mp4 cannot be read: No such file"),
        ((str(text),), "text.mp4 is no film that can be read"),
        ((str(good.path), "--audio", str(text)), "text.mp4 is no sound file"),
        ((str(good.path), "--reference", str(text)), "text.mp4 is no film that can be read"),
        ((str(good.path), "--sheet", str(tmp_path / "no" / "sheet.png")), "sheet.png cannot be written"),
    ):
        assert run(*argv) == 2
        seen = capsys.readouterr()
        assert sentence in seen.err and seen.out == ""


def test_a_film_without_a_face_ends_with_1_and_has_a_sheet_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = judge_clips.write_film(tmp_path / "grey.mp4", np.full((10, 96, 96, 3), 90, np.uint8), None)
    assert run(str(grey), "--sheet", str(tmp_path / "sheet.png")) == 1
    assert capsys.readouterr().out.strip().endswith("grey.mp4: failed: no_face")
    assert (tmp_path / "sheet.png").exists()
