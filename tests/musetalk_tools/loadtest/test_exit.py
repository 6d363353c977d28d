"""How the command ends: its exit code, its summary and its files, with a run that is made up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musetalk_tools.loadtest import run as module
from musetalk_tools.loadtest.deployment import CallError
from musetalk_tools.loadtest.plan import Plan
from musetalk_tools.loadtest.report import LoadReport
from musetalk_tools.loadtest.run import summary
from musetalk_tools.loadtest.speech_source import SpeechSource
from musetalk_tools.loadtest.thresholds import ThresholdResult
from orchestrator.__main__ import main
from tests.musetalk_tools.loadtest.test_command import _report

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; its run gives this report, or raises this."""

    def made(outcome: LoadReport | Exception, *options: str) -> int:
        async def instead(plan: Plan, speech: SpeechSource, key: str, bars: dict[str, float]) -> LoadReport:
            await asyncio.sleep(0)
            asked.update(plan=plan, speech=speech, key=key, bars=bars)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(module, "_run", instead)
        return main(["loadtest", "--sessions", "2", "--minutes", "1", *options])

    monkeypatch.setenv("ORCHESTRATOR_API_KEY", "first-key, second-key")
    return made


asked: dict[str, Any] = {}


def report(**fields: Any) -> LoadReport:
    return _report().model_copy(update=fields)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"held": True}, 0),
        ({"held": False}, 1),
        ({"held": True, "cut_short": True}, 130),
        ({"held": False, "cut_short": True}, 130),
    ],
)
def test_the_code_says_whether_the_bars_held(fields: dict[str, bool], code: int, run: Run) -> None:
    assert run(report(**fields)) == code


def test_a_service_that_refuses_is_wrong_use_and_reported_by_its_code(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(CallError("unauthorized", "This key is not known.")) == 2
    out, err = capsys.readouterr()
    assert "loadtest: unauthorized: This key is not known." in err and out == ""


def test_options_become_the_plan_and_the_bars_that_were_given(run: Run) -> None:
    options = ["--url", "http://127.0.0.1:1/", "--engine", "pattern", "--ramp", "4", "--speak-share", "0.2"]
    options += ["--interrupt-every", "0", "--avatar-id", "a", "--max-p95-start", "1.5", "--min-p5-fps", "24", "--yes"]
    run(report(held=True), *options)
    plan = asked["plan"]
    assert (plan.url, plan.engine, plan.ramp_s, plan.speak_share) == ("http://127.0.0.1:1", "pattern", 4.0, 0.2)
    assert (plan.interrupt_every, plan.avatar_id, plan.sessions, plan.speech) == (0, "a", 2, "tones")
    assert asked["bars"] == {"max-failed": 0, "max-p95-start": 1.5, "min-p5-fps": 24.0}
    assert asked["key"] == "first-key"


def test_a_key_that_is_given_comes_before_the_environments(run: Run) -> None:
    run(report(), "--api-key", "given")
    assert asked["key"] == "given"


@pytest.mark.parametrize("keys", ["", " , second"])
def test_without_a_first_key_nothing_begins(
    keys: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.clear()
    monkeypatch.setenv("ORCHESTRATOR_API_KEY", keys)
    assert run(report()) == 2 and "give a key with --api-key" in capsys.readouterr().err
    assert asked == {}


def test_the_report_goes_to_standard_output_alone_with_a_dash(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made = report(held=True)
    assert run(made, "--json", "-") == 0
    out, err = capsys.readouterr()
    assert LoadReport.model_validate_json(out) == made
    assert err.startswith("loadtest: 2 sessions with one viewer each")


def test_files_are_written_beside_the_summary(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, kept, drawn = report(), tmp_path / "report.json", tmp_path / "report.svg"
    assert run(made, "--json", str(kept), "--picture", str(drawn)) == 1
    assert LoadReport.model_validate(json.loads(kept.read_text())) == made
    assert drawn.read_text().startswith("<svg ") and capsys.readouterr().out.rstrip() == summary(made)


def test_a_file_that_cannot_be_written_at_the_end_loses_no_summary_and_no_code(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "report.json"
    folder.mkdir()
    assert run(report(held=True), "--json", str(folder)) == 0
    out, err = capsys.readouterr()
    assert "sessions started" in out and f"loadtest: {folder}: Is a directory" in err


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_a_folder_that_is_not_there_is_reported_before_the_run(
    option: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked.clear()
    assert run(report(), option, str(tmp_path / "no" / "report.svg")) == 2
    assert f"there is no folder {tmp_path / 'no'}" in capsys.readouterr().err and asked == {}


def test_the_summary_in_full() -> None:
    made = report(
        bars=[
            ThresholdResult(option="max-p95-skew", bar=40, value=94.1, unit="ms", held=False),
            ThresholdResult(option="max-failed", bar=2, value=1, unit="", held=True),
            ThresholdResult(option="min-p5-fps", bar=24, value=None, unit="1/s", held=False),
        ]
    )
    assert summary(made).splitlines() == [
        "2 of 3 sessions started, 1 failed, 30 s",
        "  picture against sound  p5 5  p50 50  p95 94  max 99 ms  (100)",
        "  between pictures       p5 5  p50 50  p95 94  max 99 ms  (100)",
        "  of 4 marks of speech 0 heard",
        "  0 pictures missing, 0 of 0 packets lost",
        "  1 × at_capacity",
        "  NOT HELD --max-p95-skew 40: 94.1 ms",
        "  held     --max-failed 2: 1",
        "  NOT HELD --min-p5-fps 24: nothing measured",
    ]


def test_pictures_that_were_looked_for_are_in_the_summary() -> None:
    losses = _report().losses.model_copy(update={"marks_heard": 3, "marks_shown": 0})
    assert "  of 4 marks of speech 3 heard, 0 seen" in summary(report(losses=losses)).splitlines()
