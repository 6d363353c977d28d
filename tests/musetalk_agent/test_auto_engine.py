"""`auto` on every machine: it ends in a working engine and says why. The card is faked at torch's boundary, the rest is real."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent import engine_pool
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.session.session import ENDED
from tests.fakes.weights import write_models
from tests.late import late_imports
from tests.musetalk_agent.card_world import CardWorld, card_world, paint
from tests.waiting import until

with late_imports("torch", "diffusers", "transformers"):
    from tests.fakes.cuda import FakeCuda, fake_cuda

OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by downloading and "
    "installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), taesd=True)


async def _works(here: CardWorld) -> str:
    """The default engine, after a session on it has spoken, and what is said of the choice."""
    pool = here.factory.engines
    session = await here.start("a", engine="auto")
    here.speak("a", 0.3)
    await until(lambda: "playback.finished" in [e.event.type for e in session.events.after(0)])
    assert session.state not in ENDED and session.engine == pool.default
    capacity = here.sessions.capacity()
    assert capacity.sessions_max >= 1
    return f"{pool.default}: {pool.note(None)}"


def _too_slow(cuda: FakeCuda) -> None:
    cuda.seconds = lambda size: 0.1 * size  # ten pictures a second: 0.3 of a session with the rest that it needs


def _small(cuda: FakeCuda) -> None:
    """4 GB, of which another process has the most: not one frame fits."""
    cuda.fits = lambda size: False


def _full(cuda: FakeCuda) -> None:
    """Not even the weights fit."""
    cuda.arm("h2d", "full")


CASES: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no CUDA": (
        {"driver": "No CUDA GPUs are available"},
        None,
        r"warp: .*sees no CUDA device \(driver 580\.95;.*No CUDA GPUs are available",
    ),
    "old driver": (
        {"driver": OLD},
        None,
        r"warp: .*driver 550\.54 runs CUDA 12\.4 at most.*Install a driver 580 or newer.*is too old",
    ),
    "sm 70": (
        {"capability": (7, 0)},
        None,
        r"warp: .*The Fake card has compute capability 7\.0, and torch \S+ has kernels for sm_75",
    ),
    "4 GB, no frame fits": ({}, _small, r"warp: .*In 'quality'.*no memory.*In 'lower'.*In 'fast'.*no memory"),
    "full": ({}, _full, r"warp: .*In 'quality': The card has no memory to load.*In 'fast'"),
    "capacity 0.3": (
        {},
        _too_slow,
        r"warp: .*In 'quality': cuda:0 makes \d\S* pictures a second, too few.*In 'fast'.*too few",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_auto_is_warp_where_musetalk_cannot_run_and_says_why(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    arguments, prepare, said = CASES[case]
    with fake_cuda(monkeypatch, **arguments) as cuda:
        paint(monkeypatch, cuda)
        if prepare:
            prepare(cuda)
        async with card_world(tmp_path, models, cuda, monkeypatch) as here:
            await here.factory.start()
            reported = await _works(here)
    assert re.match(said, reported, re.DOTALL), reported


async def test_broken_weights_are_named(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = shutil.copytree(models, tmp_path / "models")
    with (broken / "musetalkV15" / "unet.pth").open("r+b") as file:
        file.truncate(1000)
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        async with card_world(tmp_path, broken, cuda, monkeypatch) as here:
            await here.factory.start()
            reported = await _works(here)
            with pytest.raises(Exception, match=r"unet\.pth is damaged"):
                here.factory.engines.resolve("musetalk")
    assert reported.startswith("warp: ") and "unet.pth is damaged or cut off" in reported


@pytest.mark.parametrize(("profile", "slow"), [("lower", {"quality"}), ("fast", {"quality", "lower"})])
async def test_auto_goes_down_the_profiles_until_one_does(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, profile: str, slow: set[str]
) -> None:
    from musetalk_agent.engines.musetalk import engine

    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        real = engine.MuseTalkEngine.capacity
        monkeypatch.setattr(
            engine.MuseTalkEngine,
            "capacity",
            lambda self, fps: 0 if self.profile.name in slow else max(1, real(self, fps)),
        )
        async with card_world(tmp_path, models, cuda, monkeypatch) as here:
            await here.factory.start()
            reported = await _works(here)
            assert here.factory.engines.stats()["profile"] == profile
            assert here.sessions.get("a").engine_note == here.factory.engines.note("auto")
    assert reported.startswith(f"musetalk: MuseTalk runs in the profile '{profile}': In 'quality': ")
    assert reported.count("too few") == len(slow)


async def test_fast_without_its_weights_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = write_models(tmp_path / "models")
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        _too_slow(cuda)
        async with card_world(tmp_path, models, cuda, monkeypatch) as here:
            await here.factory.start()
            assert "In 'fast': The profile 'fast' needs TAESD" in await _works(here)


async def test_a_card_too_slow_for_one_session_says_so_and_takes_none(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With AGENT_ENGINE=musetalk: /health promises no session on it; the other engines still run."""
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        _too_slow(cuda)
        async with card_world(tmp_path, models, cuda, monkeypatch, engine="musetalk") as here:
            await here.factory.start()
            assert here.sessions.capacity().sessions_max == 0
            with pytest.raises(EngineUnavailable, match="too slow for one session at 25 pictures a second"):
                await here.start("a")
            session = await here.start("b", engine="warp")
            assert session.engine == "warp" and session.state not in ENDED


async def test_weights_that_come_later_are_picked_up_between_sessions(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_pool, "WEIGHTS_EVERY_S", 0.02)
    later = tmp_path / "models"
    (later / "musetalkV15").mkdir(parents=True)
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        async with card_world(tmp_path, later, cuda, monkeypatch) as here:
            await here.factory.start()
            pool = here.factory.engines
            assert pool.default == "warp" and "unet.pth" in (pool.note(None) or "")
            session = await here.start("a", engine="auto")
            for path in sorted(models.rglob("*")):
                target = later / path.relative_to(models)
                if path.is_file():
                    target.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, target.with_suffix(".part"))
                    os.replace(target.with_suffix(".part"), target)
            asked: list[int] = []
            busy = pool.busy
            pool.busy = lambda: asked.append(1) or busy()  # type: ignore[func-returns-value]  # None, then the answer
            await until(lambda: len(asked) > 2)
            assert pool.default == "warp" and session.engine == "warp"  # while a session runs nothing is loaded
            await here.sessions.stop("a")
            await until(lambda: pool.default == "musetalk")
            assert pool.note(None) is None and (await here.start("b", engine="auto")).engine == "musetalk"
            await asyncio.sleep(0)
            assert pool._weights_watch is not None and pool._weights_watch.done()
