"""What `measure-sync` says of a measurement: a figure, or one sentence that says why there is none."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.errors import WeightsMissing
from musetalk_agent.measure import measure_sync
from musetalk_agent.measure.lip_measures import LipSync, MouthTrack, VideoUnreadable
from musetalk_agent.measure.measure_sync import Lag, SyncReport, _problem, add_arguments
from musetalk_agent.tools.audio_file import AudioUnreadable

GOOD = Lag(0.0404, 0.812, 0.9004)


def track(values: list[float], period: float = 0.02) -> MouthTrack:
    return MouthTrack(np.arange(len(values)) * period, np.array(values))


SPEECH = track([0.05] * 150 + [0.0] * 150)
FACE = track([0.05] * 100, 0.04)


@pytest.mark.parametrize(
    ("seen", "heard", "lag", "says"),
    [
        (FACE, SPEECH, GOOD, None),
        (track([float("nan")] * 51 + [0.1] * 49, 0.04), SPEECH, GOOD, "51 of 100 frames show no face"),
        (track([float("nan")] * 50 + [0.1] * 50, 0.04), SPEECH, GOOD, None),
        (FACE, track([0.05] * 40 + [0.0] * 200), GOOD, "only 0.8 s of open-mouthed speech are heard; 1 s are needed"),
        (FACE, track([0.011] * 300), GOOD, "only 0.0 s of open-mouthed speech"),
        (FACE, SPEECH, None, "overlap for less than 2 s"),
        (FACE, SPEECH, Lag(0.1, 0.31, 0.594), "correlation 0.31, confidence 0.59, 0.6 needed"),
        (FACE, SPEECH, Lag(0.1, 0.31, 0.6), None),
    ],
)
def test_a_problem_is_named_with_its_figures(
    seen: MouthTrack, heard: MouthTrack, lag: Lag | None, says: str | None
) -> None:
    problem = _problem(seen, heard, lag)
    if says is None:
        assert problem is None
    else:
        assert problem is not None and says in problem and problem.endswith(".")


@pytest.mark.parametrize(
    ("verdict", "reported"),
    [
        (SyncReport(GOOD, None), {"lag_ms": 40.4, "correlation": 0.812, "confidence": 0.9}),
        (
            SyncReport(Lag(-0.12, 0.9, 0.4), None, LipSync(7.6543, 6.5, -80)),
            {
                "lag_ms": -120.0,
                "correlation": 0.9,
                "confidence": 0.4,
                "lse_c": 7.654,
                "lse_d": 6.5,
                "syncnet_offset_ms": -80,
            },
        ),
        (
            SyncReport(GOOD, "no face"),
            {"lag_ms": None, "correlation": 0.812, "confidence": 0.9, "problem": "no face"},
        ),
        (
            SyncReport(None, "too short"),
            {"lag_ms": None, "correlation": None, "confidence": None, "problem": "too short"},
        ),
    ],
)
def test_the_json_of_a_verdict_tells_no_lag_beside_a_problem(verdict: SyncReport, reported: dict[str, object]) -> None:
    assert json.loads(verdict.as_json()) == reported


def command(monkeypatch: pytest.MonkeyPatch, outcome: SyncReport | BaseException, *argv: str) -> int:
    """The command on a film that is measured with this outcome."""

    def measure(video: Path, audio: Path | None, *rest: object) -> SyncReport:
        assert (video, audio) == (Path("film.mp4"), None)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(measure_sync, "measure", measure)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return measure_sync.run(parser.parse_args(["film.mp4", *argv]))


@pytest.mark.parametrize(
    ("lag_s", "says"),
    [
        (0.0404, "the lips are 40 ms late"),
        (-0.12, "the lips are 120 ms early"),
        (0.0004, "the lips are in step"),
        (-0.0004, "the lips are in step"),
    ],
)
def test_the_sentence_says_late_or_early(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lag_s: float, says: str
) -> None:
    assert command(monkeypatch, SyncReport(Lag(lag_s, 0.812, 0.5), None, LipSync(7.6, 6.5, 40))) == 0
    reported = capsys.readouterr().out
    assert reported == f"{says} (correlation 0.81, confidence 0.50)\nSyncNet: LSE-C 7.60, LSE-D 6.50, offset 40 ms\n"


@pytest.mark.parametrize(
    ("outcome", "code", "says"),
    [
        (SyncReport(GOOD, "no face is seen."), 1, "measure-sync: no face is seen."),
        (VideoUnreadable("film.mp4 is no film."), 1, "measure-sync: film.mp4 is no film."),
        (AudioUnreadable("film.mp4 has no sound track."), 1, "measure-sync: film.mp4 has no sound track."),
        (WeightsMissing("The face networks are missing."), 1, "weights_missing: The face networks are missing."),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_cannot_be_measured_is_reported_on_stderr_with_a_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: SyncReport | BaseException,
    code: int,
    says: str,
) -> None:
    assert command(monkeypatch, outcome) == code
    reported = capsys.readouterr()
    assert reported.out == "" and says in reported.err


def test_json_is_printed_also_when_nothing_can_be_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, SyncReport(None, "too short."), "--json") == 1
    assert json.loads(capsys.readouterr().out)["problem"] == "too short."
    assert command(monkeypatch, SyncReport(GOOD, None), "--json") == 0
    assert json.loads(capsys.readouterr().out)["lag_ms"] == 40.4
