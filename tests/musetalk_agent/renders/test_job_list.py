"""A list of films: made by workers in processes of their own, not made twice, and refused with a sentence."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.protocol.renders import RenderFolder
from musetalk_agent.renders import job_list, render_command
from musetalk_agent.renders.job_list import JobsWrong, read_jobs
from musetalk_agent.renders.worker import RenderWorker
from tests.musetalk_agent.avatars.clips import archive, encoded, face, moving
from tests.musetalk_agent.tools.test_render_film import bursts, write_wav
from tests.waiting import NEVER_S


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    render_command.add_arguments(parser)
    return render_command.run(parser.parse_args(argv))


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_CACHE_DIR", str(tmp_path / "cache"))


class ThreadWorker:
    """A worker in a thread, with what `job_list` asks of a process: one of its own imports for more than a second."""

    def __init__(self, name: str, folder: RenderFolder, settings: AgentSettings) -> None:
        self.stdin = self
        self._settings = settings.model_copy(update={"renders_dir": folder.root, "renders_queue": None})
        self._begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work(name)), name=name)
        self._thread.start()

    async def _work(self, name: str) -> None:
        self._loop, self._worker = asyncio.get_running_loop(), RenderWorker(self._settings, name)
        self._begun.set()
        await self._worker.run()

    def poll(self) -> int | None:
        return None if self._thread.is_alive() else 0

    def close(self) -> None:
        """As when a process's input ends."""
        assert self._begun.wait(NEVER_S)
        self._loop.call_soon_threadsafe(self._worker.ending.set)

    def wait(self, timeout: float) -> None:
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired("a worker", timeout)

    def send_signal(self, number: int) -> None:
        raise AssertionError("the worker did not end when its input did")


@pytest.fixture(scope="module")
def threads() -> Iterator[None]:
    """Lists are made by workers in threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_list, "_worker", ThreadWorker)
        yield


def jobs(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "jobs.yaml"
    path.write_text("".join(f"- {{{line}}}\n" for line in lines))
    return path


def frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_a_list_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "in.wav", bursts(2.0, 16_000), 16_000)
    small = "avatar: x, engine: pattern, width: 64, height: 64"
    path = jobs(tmp_path, f"audio: in.wav, output: a.mp4, {small}", f"audio: in.wav, output: b.zip, {small}")
    assert run(str(path), "--engine", "pattern", "--workers", "1") == 0
    printed = capsys.readouterr().out
    assert "a.mp4: 2.00 s" in printed and "b.zip: 2.00 s" in printed
    assert frames(tmp_path / "a.mp4") == 50
    assert not (tmp_path / "jobs.yaml.renders").exists()
    before = (tmp_path / "a.mp4").stat().st_mtime_ns
    assert run(str(path), "--engine", "pattern") == 0
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == before
    assert capsys.readouterr().out == f"{tmp_path / 'a.mp4'}: made already\n{tmp_path / 'b.zip'}: made already\n"


SMALL = "engine: pattern, width: 64, height: 64, audio: in.wav, transcript: said.txt"


@pytest.fixture(scope="module")
def made(threads: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose list of two films is made, and beside it a copy of it."""
    folder = tmp_path_factory.mktemp("made") / "films"
    folder.mkdir()
    write_wav(folder / "in.wav", bursts(1.0, 16_000), 16_000)
    (folder / "said.txt").write_text("mama")
    path = jobs(folder, f"avatar: x, output: a.mp4, {SMALL}", f"avatar: x, output: b.mp4, fps: 20, {SMALL}")
    assert run(str(path), "--engine", "pattern", "--workers", "1") == 0
    shutil.copytree(folder, folder.with_name("copy"))
    return folder


@pytest.mark.parametrize("changed", ["the sound", "an option", "the transcript", "the film itself"])
def test_a_film_of_something_else_is_made_anew(made: Path, capsys: pytest.CaptureFixture[str], changed: str) -> None:
    shutil.rmtree(made)
    shutil.copytree(made.with_name("copy"), made)
    path = made / "jobs.yaml"
    if changed == "the sound":
        write_wav(made / "in.wav", bursts(2.0, 16_000), 16_000)
    elif changed == "the transcript":
        (made / "said.txt").write_text("papa")
    elif changed == "an option":
        jobs(made, f"avatar: x, output: a.mp4, fps: 30, {SMALL}", f"avatar: x, output: b.mp4, fps: 20, {SMALL}")
    else:
        (made / "a.mp4").write_text("no film")
    capsys.readouterr()
    assert run(str(path), "--engine", "pattern", "--workers", "1") == 0
    printed = capsys.readouterr().out
    assert f"{made / 'a.mp4'}: made already" not in printed
    assert (f"{made / 'b.mp4'}: made already" in printed) == (changed in ("an option", "the film itself"))
    assert frames(made / "a.mp4") == {"the sound": 50, "an option": 30}.get(changed, 25)
    assert "papa" in (made / "a.srt").read_text() or changed != "the transcript"


@pytest.mark.usefixtures("threads")
def test_a_single_film_is_made_whatever_its_output_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "in.wav", bursts(1.0, 16_000), 16_000)
    options = "--avatar", "x", "--audio", str(tmp_path / "in.wav"), "-o", str(tmp_path / "a.zip"), "--engine", "pattern"
    for _ in range(2):
        assert run(*options, "--width", "64", "--height", "64") == 0
        assert "a.zip: 1.00 s" in capsys.readouterr().out
    kept = (tmp_path / "a.mp4").write_text("a film of before")
    dub = "--dub", str(tmp_path / "none.mp4"), "--audio", str(tmp_path / "in.wav"), "-o", str(tmp_path / "a.mp4")
    assert run(*dub, "--engine", "pattern") == 1
    assert "none.mp4 cannot be read" in capsys.readouterr().err and (tmp_path / "a.mp4").stat().st_size == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.zip", "cache", "in.wav"]


@pytest.mark.usefixtures("threads")
def test_a_transcript_that_is_not_found_is_a_sentence_beside_the_film(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "in.wav", bursts(1.0, 16_000), 16_000)
    (tmp_path / "said.txt").write_text("Добрый день")
    small = "avatar: x, engine: pattern, width: 64, height: 64"
    path = jobs(tmp_path, f"audio: in.wav, output: a.mp4, transcript: said.txt, {small}")
    assert run(str(path), "--engine", "pattern", "--workers", "1") == 0
    printed = capsys.readouterr()
    assert "a.mp4: 1.00 s" in printed.out and "Latin letters" in printed.err
    assert frames(tmp_path / "a.mp4") == 25 and not (tmp_path / "a.srt").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("avatar: x, audio: in.wav", "output"),
        ("avatar: x, audio: in.wav, output: a.avi", "neither in .mp4 nor in .webm nor in .zip"),
        ("avatar: x, audio: in.wav, output: a.mp4, speed: 2", "speed"),
    ],
)
def test_a_list_that_is_wrong_is_refused(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(JobsWrong, match=says):
        read_jobs(jobs(tmp_path, line))


def test_refusals_have_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "in.wav", np.full(1600, -1, np.int16), 16_000)
    small = "engine: pattern, width: 64, height: 64, output: a.mp4"
    for line, says in (
        (f"avatar: x, audio: none.wav, {small}", "none.wav cannot be read"),
        ("avatar: none.png, audio: in.wav, output: a.mp4", "none.png cannot be read"),
        (f"avatar: x, audio: in.wav, fps: 14, {small}", "greater than or equal to 15"),
    ):
        assert run(str(jobs(tmp_path, line)), "--engine", "pattern") == 1, line
        assert says in capsys.readouterr().err, line
    for options, says in (
        (("-o", "nowhere/a.webm"), "there is no folder"),
        (("-o", "a.webm", "--width", "64"), "--width and --height together"),
        (("-o", "a.webm", "--transcript", "none.txt"), "none.txt cannot be read: No such file"),
        (("-o", "a.webm", "--transcript", "in.wav"), "in.wav is no text in UTF-8"),
        (("-o", "a.mp4", "--background", "transparent"), "a.mp4: format: mp4 has no transparency"),
    ):
        monkeypatch.chdir(tmp_path)
        assert run("--avatar", "x", "--audio", "in.wav", "--engine", "pattern", *options) in (1, 2), options
        assert says in capsys.readouterr().err, options
    assert not (tmp_path / "nowhere").exists() and not list(tmp_path.glob("*.renders"))
    assert run("--engine", "pattern") == 2
    assert run(str(tmp_path / "jobs.yaml"), "--avatar", "x") == 2


@pytest.mark.usefixtures("threads")
def test_a_clip_is_played_where_the_transcript_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "in.wav", bursts(2.0, 16_000), 16_000)
    (tmp_path / "said.txt").write_text("mama [wave] papa")
    (tmp_path / "idle.png").write_bytes(encoded(face(160)))
    (tmp_path / "wave.zip").write_bytes(
        archive([(f"{k}.png", encoded(each)) for k, each in enumerate(moving(12, 160))])
    )
    film = ("--avatar", str(tmp_path / "idle.png"), "--audio", str(tmp_path / "in.wav"), "-o", str(tmp_path / "a.mp4"))
    said = ("--transcript", str(tmp_path / "said.txt"), "--engine", "warp", "--workers", "1")
    assert run(*film, *said, "--clip", f"wave={tmp_path / 'wave.zip'}") == 0, capsys.readouterr().err
    assert frames(tmp_path / "a.mp4") >= 50
    assert run(*film, "--clip", "wave=x.mp4") == 2
    assert "--transcript" in capsys.readouterr().err
    assert run(*film, *said, "--clip", "wave") == 2
    assert run(*film, *said, "--clip", f"wave={tmp_path / 'none.mp4'}") == 1
    assert "none.mp4 cannot be read" in capsys.readouterr().err
