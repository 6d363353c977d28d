"""What is refused before anything starts, the speech, and the picture."""

from __future__ import annotations

import wave
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from musetalk_tools.loadtest.chart import draw
from musetalk_tools.loadtest.deployment import ServiceMetrics, samples
from musetalk_tools.loadtest.plan import Plan, PlanError, check
from musetalk_tools.loadtest.report import (
    Happened,
    LoadReport,
    Losses,
    Machine,
    Point,
    SessionCounts,
    reported_plan,
)
from musetalk_tools.loadtest.speech_source import RATE, SpeechError, recording, tones
from musetalk_tools.loadtest.thresholds import ThresholdResult
from musetalk_tools.loadtest.viewer_metrics import Histogram
from orchestrator.__main__ import main

SOME = ["loadtest", "--sessions", "1", "--minutes", "1"]


@pytest.mark.parametrize(
    ("more", "reported"),
    [
        ([], "ORCHESTRATOR_API_KEY"),
        (["--api-key", "k", "--sessions", "9999"], "--sessions 9999: give 1 to 1000"),
        (["--api-key", "k", "--minutes", "0"], "--minutes 0: give 0.1 to 1440"),
        (["--api-key", "k", "--speak-share", "2"], "--speak-share 2: give 0.05 to 1"),
        (["--api-key", "k", "--url", "ftp://x"], "--url ftp://x"),
        (["--api-key", "k", "--picture", "a.gif"], "a.gif: give a name that ends in .svg or .png"),
        (["--api-key", "k", "--json", "/nowhere/at/all.json"], "there is no folder /nowhere/at"),
        (["--api-key", "k", "--speech", "/nowhere.wav"], "/nowhere.wav: No such file"),
        (["--api-key", "k", "--url", "http://127.0.0.1:1"], "unreachable: http://127.0.0.1:1 cannot be reached"),
    ],
)
def test_wrong_use_is_reported(more: list[str], reported: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SOME, *more]) == 2
    assert reported in capsys.readouterr().err


def test_more_than_the_cores_bear_wants_a_yes() -> None:
    here = Plan("http://127.0.0.1:8080", 5, 1)
    with pytest.raises(PlanError, match="with 2 cores 4 make sense here"):
        check(here, anyway=False, cores=2)
    check(here, anyway=True, cores=2)
    check(Plan("https://avatar.example", 16, 1), anyway=False, cores=2)
    with pytest.raises(PlanError, match="--yes"):
        check(Plan("https://avatar.example", 17, 1), anyway=False, cores=2)


def test_the_plan() -> None:
    plan = Plan("http://127.0.0.1:8080", 4, 0.5, engine="pattern", ramp_s=8, speak_share=0.25)
    assert [plan.begins_at(k) for k in range(4)] == [0, 2, 4, 6]
    assert (plan.seconds, plan.pause_s, plan.window_s) == (38, 12, 2)
    assert plan.body(2) == {"room": f"loadtest-{plan.run_id}-2", "engine": "pattern"}
    assert Plan("http://x", 1, 1).body(0)["avatar_id"] == "demo"
    assert "4 sessions" in plan.sentence() and "38 s" in plan.sentence()


def test_tones_are_marked_where_they_begin() -> None:
    speech = tones()
    (bursts,) = speech.utterances
    loud = np.abs(bursts.pcm.astype(int)) > 2000
    assert bursts.marks == (0, 16_000, 32_000, 48_000) and bursts.seconds == 4
    for mark in bursts.marks:
        assert loud[mark : mark + 160].any() and not loud[max(0, mark - 1600) : mark].any()
    assert np.abs(speech.interrupted[0].pcm.astype(int)).reshape(-1, 160).max(axis=1).min() > 2000  # without a pause


def _wav(path: Path, pcm: np.ndarray, rate: int, channels: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(pcm, channels).astype("<i2").tobytes())
    return path


def test_a_recording_becomes_utterances(tmp_path: Path) -> None:
    time = np.arange(10 * 48_000) / 48_000
    pcm = np.where(time < 1.5, 0, 12_000 * np.sin(2 * np.pi * 300 * time))
    speech = recording(_wav(tmp_path / "said.wav", pcm, 48_000, 2))
    assert [round(each.seconds, 3) for each in speech.utterances] == [4, 4, 2]
    assert speech.utterances[0].marks[0] == pytest.approx(1.5 * RATE, abs=40)
    assert not speech.tones
    with pytest.raises(SpeechError, match="silent"):
        recording(_wav(tmp_path / "quiet.wav", np.zeros(16_000), RATE, 1))
    (tmp_path / "not.wav").write_bytes(b"no sound at all")
    with pytest.raises(SpeechError, match="give a WAV file"):
        recording(tmp_path / "not.wav")


def test_metrics_are_read_and_nonsense_is_none() -> None:
    text = (
        'avatar_session_starts_total{outcome="ok"} 3.0\navatar_session_start_seconds_bucket{le="1"} 3\nother_total 5\n'
    )
    header = "# TYPE avatar_session_starts counter\n"
    assert samples(header + text) == {"avatar_session_starts_total{outcome=ok}": 3.0}
    assert samples("<html>") == {}


def _report() -> LoadReport:
    tally = Histogram("ms", 0.1)
    for value in range(100):
        tally.add(float(value))
    figure = tally.figure()
    assert figure is not None
    return LoadReport(
        begun_at="2026-11-21T10:00:00.000Z",
        seconds=30,
        cut_short=False,
        held=False,
        bars=[ThresholdResult(option="max-p95-skew", bar=40, value=94, unit="ms", held=False)],
        plan=reported_plan(Plan("http://127.0.0.1:8080/<&>", 3, 0.5)),
        machine=Machine(processor="P", cores=2, system="S", viewer_cores=0.5, load=1),
        sessions=SessionCounts(wanted=3, started=2, failed=1),
        figures={"skew_abs_ms": figure, "gap_ms": figure},
        losses=Losses(marks_said=4),
        happened=Happened(utterances=1, finished=1, interrupts=0, moves=0, audio_reconnects=0, viewer_reconnects=0),
        errors={"at_capacity": 1},
        warnings={},
        services=ServiceMetrics(),
        timeline=[
            Point(at_s=2.0 * k, sessions=min(k, 3), fps_low=24, fps_mean=25, gap_ms=41, errors=k == 2)
            for k in range(1, 6)
        ],
        each=[],
    )


def test_the_picture_in_both_formats(tmp_path: Path) -> None:
    draw(_report(), tmp_path / "report.svg")
    root = ElementTree.parse(tmp_path / "report.svg").getroot()
    words = " ".join(element.text or "" for element in root.iter())
    for reported in (
        "3 sessions",
        "NOT within",
        "/<&>",
        "at_capacity 1",
        "picture against sound",
        "p95 94",
        "--max-p95-skew 40",
    ):
        assert reported in words
    draw(_report(), tmp_path / "report.png")
    pixels = cv2.imread(str(tmp_path / "report.png"))
    assert pixels is not None and pixels.shape[1] == 2 * int(root.attrib["width"])
    assert (pixels.min(), pixels.max()) == (pixels.min(), 255) and pixels.min() < 80
