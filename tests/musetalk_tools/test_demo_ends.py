"""How the demo ends: asked to while it starts, when a part ends, and what stays of its logs."""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from musetalk_tools import demo
from musetalk_tools.demo import DemoInfo
from musetalk_tools.processes import Child, ChildFailed
from tests.waiting import NEVER_S

INFO = DemoInfo(**{field.name: f"the {field.name}" for field in fields(DemoInfo)})


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(given)


def part(code: str, log_path: Path | None = None) -> Child:
    return Child("agent", [sys.executable, "-c", code], {}, log_path)


async def test_a_demo_that_is_ended_while_it_starts_gives_up_the_start_and_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, given_up = asyncio.Event(), asyncio.Event()

    async def start(args: argparse.Namespace, children: list[Child], logs: Path) -> DemoInfo:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    monkeypatch.setattr(demo, "_start", start)
    stopping = asyncio.Event()
    running = asyncio.create_task(demo._run(arguments(), [], tmp_path, stopping))
    await begun.wait()
    stopping.set()
    async with asyncio.timeout(NEVER_S):
        assert await running == 0
    assert given_up.is_set()


async def test_a_part_that_ends_by_itself_ends_the_demo_and_is_named_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def start(args: argparse.Namespace, children: list[Child], logs: Path) -> DemoInfo:
        children += [part("import sys; sys.stdin.read()"), part("print('no such card'); raise SystemExit(7)", log)]
        for child in children:
            await child.start()
        return INFO

    monkeypatch.setattr(demo, "_start", start)
    log = tmp_path / "agent.log"
    children: list[Child] = []
    try:
        async with asyncio.timeout(NEVER_S):
            code = await demo._run(arguments(), children, tmp_path, asyncio.Event())
    finally:
        for child in children:
            await child.stop()
    out, err = capfd.readouterr()
    assert code == 1
    assert "demo: agent ended unexpectedly with exit code " in err
    assert INFO.orchestrator_url in out and INFO.api_key in out and INFO.livekit_url in out
    assert INFO.livekit_api_secret not in out and INFO.agent_api_key not in out, "for a person; `--json` has them"


async def test_a_demo_that_is_ended_leaves_its_parts_to_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(args: argparse.Namespace, children: list[Child], logs: Path) -> DemoInfo:
        stopping.set()
        return INFO

    monkeypatch.setattr(demo, "_start", start)
    stopping = asyncio.Event()
    async with asyncio.timeout(NEVER_S):
        assert await demo._run(arguments("--json"), [], tmp_path, stopping) == 0


@pytest.mark.parametrize("fails", [True, False])
async def test_the_logs_of_a_failure_stay_and_those_of_a_demo_that_was_ended_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fails: bool
) -> None:
    kept: list[Path] = []

    async def run(args: argparse.Namespace, children: list[Child], logs: Path, stopping: asyncio.Event) -> int:
        kept.append(logs)
        (logs / "agent.log").write_text("what it said")
        if fails:
            raise ChildFailed("agent ended with exit code 70 while starting")
        return 0

    monkeypatch.setattr(demo, "_run", run)
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", lambda *_: None)
    monkeypatch.setattr(demo.tempfile, "mkdtemp", lambda prefix: str(_made(tmp_path / prefix)))
    assert await demo._main(arguments()) == (1 if fails else 0)
    (logs,) = kept
    assert (logs / "agent.log").exists() == fails
    said = "demo: agent ended with exit code 70 while starting\n" if fails else ""
    assert capfd.readouterr().err == said


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
