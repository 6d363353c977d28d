from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from musetalk_agent.protocol.http import AvatarReport
from tests.musetalk_agent.avatars.clips import archive, frames_zip, moving
from tests.waiting import NEVER_S


def run(tmp_path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command as people run it; the cache is the test's own."""
    return subprocess.run(
        [sys.executable, "-m", "musetalk_agent", "prepare", *argv],
        capture_output=True,
        text=True,
        timeout=NEVER_S,
        check=False,
        env={"AVATAR_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"},
    )


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.zip"
    path.write_bytes(frames_zip(moving(4, 128)))
    return path


def test_json_is_the_report_and_the_second_run_is_cached(tmp_path: Path, clip: Path) -> None:
    first = run(tmp_path, str(clip), "--json", "--fps", "30", "--width", "96")
    assert first.returncode == 0, first.stderr
    report = AvatarReport.model_validate(json.loads(first.stdout))
    assert (report.frames, report.fps, report.width, report.height, report.cached) == (4, 30, 96, 96, False)
    again = run(tmp_path, str(clip), "--fps", "30", "--width", "96")
    assert "96×96 at 30 fps" in again.stdout and "cached       yes" in again.stdout
    assert "! face_small:" in again.stdout


def test_a_refusal_is_code_and_sentence_on_stderr(tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    bad.write_bytes(archive([("../a.png", b"x")]))
    done = run(tmp_path, str(bad))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("avatar_unsafe_archive: '../a.png' climbs out")


def test_wrong_usage(tmp_path: Path, clip: Path) -> None:
    assert run(tmp_path, str(clip), "--fps", "3").returncode == 2
    assert run(tmp_path).returncode == 2
    assert run(tmp_path, str(tmp_path / "nowhere.mp4")).returncode == 1
