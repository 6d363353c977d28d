"""The judge on a film of the demo avatar: a good one passes, and of each one made wrong that fault is named and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.judge import bars
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.film_report import MEASURES, Verdict
from musetalk_agent.media_types import Pixels
from tests.bench import judge_clips
from tests.musetalk_agent.judge.conftest import GoodFilm
from tests.musetalk_agent.measure.test_measure_sync import RATE
from tests.musetalk_agent.tools.test_render_film import write_wav

ENOUGH = 90
"""Frames of a wrong film that are judged: more than two seconds of speech."""

WRONG: dict[str, Callable[[GoodFilm], Pixels]] = {
    "frozen": lambda film: judge_clips.frozen(film.frames, film.meshes),
    "sharpness": lambda film: judge_clips.blurred(film.frames, film.meshes),
    "colour_step": lambda film: judge_clips.tinted(film.frames, film.meshes, (0, 0, 20)),
    "flicker": lambda film: judge_clips.flickering(film.frames, film.meshes),
    "black": lambda film: judge_clips.blackened(film.frames),
}


def test_a_good_film_passes_by_itself_and_with_its_reference(judge: Judge, good: GoodFilm) -> None:
    for reference in (None, good.seen):
        report = judge.decide(good.path, good.seen, reference=reference)
        assert report.faults == [] and report.passed
        [face] = report.faces
        assert sorted(face.measures) == sorted(MEASURES)
        assert abs(face.measures["lag_ms"].value or 99.0) < bars.LAG_MS
        assert face.frames == len(good.frames) == report.frames and report.left_out == 0
        judged = {name for name, measure in face.measures.items() if measure.verdict is not Verdict.NOT_JUDGED}
        needs_reference = {"seam", "colour_step"}
        assert judged >= {*MEASURES} - {"closures"} - (set() if reference else needs_reference)


@pytest.mark.parametrize("fault", WRONG)
def test_pictures_made_wrong_are_named_and_nothing_else_is(
    judge: Judge, good: GoodFilm, tmp_path: Path, fault: str
) -> None:
    film = judge_clips.write_film(
        tmp_path / "wrong.mp4", WRONG[fault](good)[:ENOUGH], good.voice[: ENOUGH * RATE // 25]
    )
    report = judge.decide(film, judge.look(film), reference=good.seen)
    assert report.faults == [fault]
    assert report.faces[0].measures[fault].reason


@pytest.mark.parametrize("late_ms", [80, -80, 200, -320])
def test_lips_that_are_late_or_early_are_named_with_their_lag(
    judge: Judge, good: GoodFilm, tmp_path: Path, late_ms: int
) -> None:
    sound = write_wav(tmp_path / "moved.wav", judge_clips.shifted(good.voice, late_ms), RATE)
    report = judge.decide(good.path, good.seen, reference=good.seen, audio=sound)
    assert report.faults == ["lag_ms"]
    assert report.faces[0].measures["lag_ms"].value == pytest.approx(late_ms, abs=15)


def test_other_speech_and_lips_that_move_in_silence_are_named(judge: Judge, good: GoodFilm, tmp_path: Path) -> None:
    begin = good.voice[: len(good.voice) // 8]
    backwards = np.concatenate([begin, good.voice[len(begin) :][::-1]])
    other = write_wav(tmp_path / "other.wav", backwards, RATE)
    assert judge.decide(good.path, good.seen, audio=other).faults == ["lip_correlation"]
    half = good.voice.copy()
    half[int(0.65 * len(half)) :] = 0
    silent = write_wav(tmp_path / "half.wav", half, RATE)
    report = judge.decide(good.path, good.seen, audio=silent)
    assert report.faces[0].measures["rest"].value == pytest.approx(bars.REST, abs=bars.REST)
    assert report.faults in (["rest"], [])


def test_a_film_without_sound_is_judged_by_its_pictures_alone(judge: Judge, good: GoodFilm, tmp_path: Path) -> None:
    mute = judge_clips.write_film(tmp_path / "mute.mp4", good.frames[:40], None)
    report = judge.judge(mute)
    [face] = report.faces
    assert report.passed and face.measures["lag_ms"].reason == "the film has no sound."
    assert face.measures["sharpness"].verdict is Verdict.PASSED


def test_a_film_without_a_face_fails_by_that(judge: Judge, tmp_path: Path) -> None:
    grey = judge_clips.write_film(tmp_path / "grey.mp4", np.full((30, 96, 96, 3), 90, np.uint8), None)
    report = judge.judge(grey)
    assert (report.faults, report.passed, report.faces) == (["no_face"], False, [])
