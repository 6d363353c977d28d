"""The judge on live sessions: which one is looked at, what is reported, and that nothing is left of a sample."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import psutil
import pytest

from musetalk_agent.agent_metrics import JUDGE_FAULTS, JUDGED
from musetalk_agent.clock import MonotonicClock
from musetalk_agent.media_types import FEATURE_RATE
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, SessionState
from musetalk_agent.publishers.base import MediaTaps
from musetalk_agent.publishers.film import recorder
from musetalk_agent.service import live_judge
from musetalk_agent.service.live_judge import LiveJudge
from tests.musetalk_agent.measure.test_measure_sync import speech
from tests.musetalk_agent.service.served import Agent, agent
from tests.waiting import NEVER_S, until

OUTCOMES = ("passed", "failed", "not_judged")


def judged() -> dict[str, float]:
    return {outcome: JUDGED.labels(outcome)._value.get() for outcome in OUTCOMES}


def judges() -> list[psutil.Process]:
    """This process's children that judge."""
    return [c for c in psutil.Process().children() if c.status() != psutil.STATUS_ZOMBIE and "judge" in c.cmdline()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agents' cache: the first one prepares the avatar for all."""
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Samples are short, and lie in this folder."""
    folder = tmp_path / "samples"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(live_judge, "SAMPLE_S", 2.0)
    monkeypatch.setattr(live_judge, "_LEAST_S", 1.0)
    monkeypatch.setattr(recorder, "_READY_S", NEVER_S)  # a busy machine is waited for
    return folder


@asynccontextmanager
async def speaking(here: Agent, **more: Any) -> AsyncIterator[None]:
    """The demo avatar says ten seconds."""
    answer = await here.start(engine="warp", avatar={"avatar_id": DEMO_AVATAR_ID}, **more)
    assert answer.is_success, answer.text
    async with here.link() as socket:
        await socket.send(json.dumps({"type": "segment.start", "segment": 1, "sample_rate": FEATURE_RATE}))
        for at in range(0, 10 * FEATURE_RATE, FEATURE_RATE):
            await socket.send(speech()[at : at + FEATURE_RATE].tobytes())
        yield


async def test_a_session_that_speaks_is_judged_and_the_sample_is_gone(prepared: Path, samples: Path) -> None:
    before, seen = judged(), False
    async with agent(prepared, engine="warp", judge_every_s=0.05) as here, speaking(here):

        def over() -> bool:
            nonlocal seen
            seen = seen or bool(list(samples.glob("judge-*/sample.mp4")))
            return judged() != before

        await until(over)
    assert seen and not list(samples.iterdir()) and not judges()
    after = judged()  # where the machine is too busy the sample lacks frames, and may fail
    assert after["passed"] + after["failed"] > before["passed"] + before["failed"]  # the next sample may be judged, too
    assert after["not_judged"] == before["not_judged"]


async def test_of_a_session_without_a_background_the_picture_is_judged(
    prepared: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    async def look(_: LiveJudge, sample: Path) -> None:
        with av.open(str(sample)) as film:
            sizes.append((film.streams.video[0].width, film.streams.video[0].height))

    monkeypatch.setattr(LiveJudge, "_judge", look)
    settings = {"background": "transparent"}
    async with agent(prepared, engine="warp", judge_every_s=0.05) as here, speaking(here, avatar_settings=settings):
        status = (await here.http.get("/session/s1")).json()
        await until(lambda: bool(sizes))
    assert sizes[0] == (status["width"], status["height"]), "not the alpha below it"


async def test_an_agent_that_ends_leaves_no_judge_and_no_sample(prepared: Path, samples: Path) -> None:
    async with agent(prepared, engine="warp", judge_every_s=0.05) as here, speaking(here):
        await until(judges)
    assert not judges() and not list(samples.iterdir())


async def test_without_networks_nothing_is_judged(tmp_path: Path) -> None:
    before = judged()
    found = await _judge(models_dir=tmp_path)._judge(tmp_path / "nothing.mp4")
    assert found is None
    _judge()._report("s1", found)
    assert judged()["not_judged"] == before["not_judged"] + 1


def test_faults_are_counted_by_measure() -> None:
    before, sharpness = judged(), JUDGE_FAULTS.labels("sharpness")._value.get()
    face = {"lag_ms": {"value": 12.0}, "lip_correlation": {"value": None}}
    _judge()._report("s1", {"passed": False, "faults": ["sharpness"], "faces": [face]})
    assert judged()["failed"] == before["failed"] + 1
    assert JUDGE_FAULTS.labels("sharpness")._value.get() == sharpness + 1


def test_the_one_that_was_judged_longest_ago_is_next() -> None:
    sessions = [_session(name, engine="warp") for name in "abc"]
    judge = _judge(sessions)
    sessions[0].state = SessionState.READY
    assert _next(judge) == "b"
    judge._judged_at = {"b": 5.0, "c": 3.0, "gone": 1.0}
    assert _next(judge) == "c" and set(judge._judged_at) == {"b", "c"}
    judge._judged_at = {"c": 3.0}
    assert _next(judge) == "b"
    for session in sessions:
        session.engine = "pattern"
    assert judge._next() is None


def test_every_tap_gets_everything_until_it_is_removed() -> None:
    class Tap:
        def __init__(self) -> None:
            self.got: list[Any] = []

        def offer_audio(self, at: float, block: Any) -> None:
            self.got.append((at, block))

        def offer_video(self, at: float, frame: Any) -> None:
            self.got.append((at, frame))

        def clear_audio(self, since: float) -> None:
            self.got.append(since)

    one, other, taps = Tap(), Tap(), MediaTaps()
    taps.add(one)
    taps.add(one)
    taps.offer_audio(1.0, "a")  # type: ignore[arg-type]  # what it is does not matter
    taps.add(other)
    taps.offer_video(2.0, "f")  # type: ignore[arg-type]  # nor here
    taps.remove(one)
    taps.remove(one)
    taps.clear_audio(3.0)
    assert one.got == [(1.0, "a"), (2.0, "f")] and other.got == [(2.0, "f"), 3.0]


def _session(name: str, engine: str) -> SimpleNamespace:
    return SimpleNamespace(id=name, engine=engine, state=SessionState.SPEAKING, ended=asyncio.Event())


def _judge(sessions: list[Any] | None = None, models_dir: Path = Path()) -> LiveJudge:
    return LiveJudge(60.0, MonotonicClock(), lambda: sessions or [], models_dir)


def _next(judge: LiveJudge) -> str:
    found = judge._next()
    assert found is not None
    return found.id
