"""Commands without their work: refusals in words, exit codes, what is printed of a report and of files."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from musetalk_agent.measure import profile
from musetalk_agent.protocol.http import AvatarReport, AvatarWarning
from musetalk_agent.tools import build_engine, fetch_models, prepare
from musetalk_agent.weights import Manifest, ModelFile, ModelStore, UrlSource


def run(tool: ModuleType, *argv: str) -> int:
    """One of the commands, as the command line calls it."""
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    code: int = tool.run(parser.parse_args(argv))
    return code


def report(**more: object) -> AvatarReport:
    """Of a clip of two seconds."""
    return AvatarReport.model_validate(
        {"avatar_id": "sha256:ab", "frames": 50, "width": 640, "height": 480, "fps": 25, "face_px": 210} | more
    )


@pytest.mark.parametrize(
    ("of", "rows"),
    [
        (report(), ["picture      640×480 at 25 fps", "frames       50 (2.0 s)", "face         210 px wide"]),
        (report(still=True), ["frames       one picture"]),
        (report(frames_without_face=[1, 2, 3]), ["face         210 px wide, not seen in 3 frames"]),
        (
            report(motion_px=1.234, closed_mouth_frames=7),
            ["motion       1.23 px per frame", "lips closed  in 7 frames"],
        ),
        (report(cached=True), ["avatar_id    sha256:ab", "cached       yes"]),
        (
            report(
                warnings=[
                    AvatarWarning(code="face_small", message="Few pixels."),
                    AvatarWarning(code="b", message="C."),
                ]
            ),
            ["! face_small: Few pixels.", "! b: C."],
        ),
    ],
)
def test_a_report_is_a_row_for_each_figure_and_a_line_for_each_warning(of: AvatarReport, rows: list[str]) -> None:
    lines = prepare._table(of).splitlines()
    assert [row for row in rows if row not in lines] == []
    assert len(lines) == 7 + len(of.warnings)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--fps", "61"), "prepare: fps 61: "),
        (("--fps", "14"), "prepare: fps 14: "),
        (("--width", "63"), "prepare: width 63: "),
        (("--width", "1920", "--height", "1920"), "3686400 pixels"),
    ],
)
def test_a_picture_that_cannot_be_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str
) -> None:
    assert run(prepare, "clip.zip", *argv) == 2
    reported = capsys.readouterr()
    assert says in reported.err and reported.out == ""


def test_a_plan_is_not_built_without_the_extra_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(build_engine, "--models-dir", str(tmp_path)) == 1
    reported = capsys.readouterr()
    assert reported.err == "musetalk-agent: engine_unavailable: torch is not installed: install the extra [musetalk].\n"
    assert reported.out == "" and not list(tmp_path.iterdir())


def test_an_unknown_profile_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(build_engine, "--profile", "best")
    assert ended.value.code == 2 and "'quality'" in capsys.readouterr().err


def file(name: str, content: bytes | None) -> ModelFile:
    """An entry of the manifest; None: nobody knows its checksum."""
    known = {} if content is None else {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    source = UrlSource(kind="url", url="http://127.0.0.1:1/a")
    return ModelFile(name=name, group="face", source=source, licence="MIT", needed_by="a test", **known)  # type: ignore[arg-type]  # as above


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """A folder with a file of each kind."""
    entries = [file("whole", b"12345"), file("cut", b"12345"), file("absent", b"12345"), file("unknown", None)]
    manifest = Manifest({entry.name: entry for entry in entries})
    monkeypatch.setattr(fetch_models.Manifest, "load", lambda: manifest)
    store = ModelStore(tmp_path / "models", manifest)
    store.directory.mkdir()
    for name, content in (("whole", b"12345"), ("cut", b"123"), ("unknown", b"?")):
        (store.directory / name).write_bytes(content)
    return store


def test_the_list_says_of_every_file_what_is_known_and_hashes_none(
    models: ModelStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fetch_models, "--models-dir", str(models.directory), "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [
        ["face", "whole", "not"],
        ["face", "cut", "damaged"],
        ["face", "absent", "missing"],
        ["face", "unknown", "not"],
    ]
    assert lines[3].endswith("MIT  (no checksum known)") and lines[4] == f"in {models.directory}"
    assert models.verify("whole")
    run(fetch_models, "--models-dir", str(models.directory), "--list")
    assert capsys.readouterr().out.splitlines()[0].split()[2] == "verified"


def test_check_names_each_fault_and_counts_them(models: ModelStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fetch_models, "--models-dir", str(models.directory), "--check", "--quiet") == 1
    assert capsys.readouterr().err.splitlines() == [
        "fetch-models: cut is damaged: 3 bytes instead of 5",
        "fetch-models: absent is missing",
        f"fetch-models: 2 files to fetch in {models.directory}",
    ]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "stopped; run the command again to go on"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_what_ends_a_fetch_is_reported_in_a_line(
    models: ModelStore,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    says: str,
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fetch_models, "fetch", fetch)
    assert run(fetch_models, "--models-dir", str(models.directory), "--quiet") == code
    reported = capsys.readouterr().err
    assert reported.startswith("fetch-models: ") and says in reported and len(reported.splitlines()) == 1
    assert run(fetch_models, "--models-dir", str(models.directory), "bodies") == 2
    assert capsys.readouterr().err == "unknown group 'bodies'; there are face\n"


def test_the_buzz_of_a_measurement_is_one_sound_however_it_is_cut() -> None:
    whole = profile._buzz(0, 16_000)
    parts = [profile._buzz(at, min(16_000, at + 641)) for at in range(0, 16_000, 641)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    quarters = np.abs(whole.astype(float)).reshape(4, 8, 500).mean(axis=2)  # four syllables
    assert (quarters[:, 0] < 0.3 * quarters[:, 4]).all() and 5000 < np.abs(whole).max() < 32_767
