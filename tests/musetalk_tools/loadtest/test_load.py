"""The command against a real stack: what it reports, and that nothing stays behind, whichever way it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from musetalk_tools.loadtest.report import LoadReport
from tests.bench.stack import Demo, demo
from tests.waiting import NEVER_S, until

pytestmark = pytest.mark.livekit


DEMO_S = 5.0
"""A demo starts in so long on two cores that do nothing else."""


async def _loadtest(stack: Demo, *options: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "orchestrator", "loadtest", "--url", stack.info["orchestrator_url"], *options]
    environment = {**os.environ, "ORCHESTRATOR_API_KEY": stack.info["api_key"]}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, env=environment, stdout=pipe, stderr=pipe)


async def _running(stack: Demo) -> list[dict[str, Any]]:
    sessions = (await stack.http.get("/sessions")).json()["sessions"]
    return [each for each in sessions if each["state"] not in ("stopped", "failed")]


def _check(report: LoadReport) -> None:
    assert report.held and not report.cut_short and report.errors == {}
    assert (report.sessions.wanted, report.sessions.started, report.sessions.failed) == (2, 2, 0)
    figures, lost = report.figures, report.losses
    assert figures["start_s"].count == figures["first_picture_s"].count == 2
    assert all(figures[name].count and figures[name].max > 0 for name in ("first_picture_s", "gap_ms", "fps")), figures
    assert lost.marks_shown is not None and lost.marks_said >= max(1, lost.marks_heard, lost.marks_shown)
    # a busy machine may let a viewer hear or see none of the few within the second that a mark has
    assert (lost.marks_heard, lost.marks_shown) == tuple(
        figures[name].count if name in figures else 0 for name in ("sound_ms", "picture_ms")
    )
    assert lost.packets > 0
    happened = report.happened
    assert happened.utterances >= 2
    assert (
        happened.interrupts or happened.utterances <= 4
    )  # slow ones are still in their second, which is interrupted later
    assert report.services.note is None and report.services.sessions_seen == 2
    assert report.services.agents["spoken"] > 0
    assert report.services.orchestrator["avatar_session_starts_total{outcome=ok}"] >= 2
    assert [each.engine for each in report.each] == ["pattern", "pattern"]
    assert report.timeline and max(point.sessions for point in report.timeline) == 2
    assert report.machine.viewer_cores > 0


async def test_a_run_and_one_that_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOICE", "espeak:en-us")  # the voice of least work: it is not listened to
    picture, kept = tmp_path / "report.png", tmp_path / "cut.json"
    common = ("--engine", "pattern", "--interrupt-every", "2", "--speak-share", "0.9", "--yes")
    begun = time.monotonic()
    async with demo("--engine", "pattern", "--no-conversation") as stack:
        slowness = min(6.0, max(1.0, (time.monotonic() - begun) / DEMO_S))
        minutes = f"{0.17 * slowness:.2f}"  # in which two sessions start, speak and are interrupted
        whole = await _loadtest(
            stack, "--sessions", "2", "--minutes", minutes, "--json", "-", "--picture", str(picture), *common
        )
        refused = await _loadtest(stack, "--sessions", "1", "--minutes", "1", "--api-key", "wrong-key-wrong-key")
        cut = await _loadtest(stack, "--sessions", "1", "--minutes", "60", "--json", str(kept), *common)
        try:

            async def all_run() -> bool:
                return len(await _running(stack)) >= 3

            await until(all_run)
            viewers = psutil.Process(cut.pid).children()
            assert [child.cmdline()[-1] for child in viewers] == ["musetalk_tools.loadtest.viewer"]
            cut.send_signal(signal.SIGINT)
            out, _ = await asyncio.wait_for(cut.communicate(), NEVER_S)
            assert cut.returncode == 130, out
            assert not any(child.is_running() for child in viewers)
            assert json.loads(kept.read_text())["cut_short"]
            out, err = await asyncio.wait_for(whole.communicate(), 2 * NEVER_S)
            report = LoadReport.model_validate_json(out)
            assert whole.returncode == 0, (report.errors, [each.model_dump() for each in report.each], err[-1000:])
            _check(report)
            assert "2 sessions with one viewer each" in err.decode()
            assert picture.stat().st_size > 10_000
            assert await _running(stack) == []
            _, err = await refused.communicate()
            assert refused.returncode == 2 and b"unauthorized" in err
        finally:
            for process in (whole, cut, refused):
                if process.returncode is None:
                    process.kill()
                    await process.wait()
