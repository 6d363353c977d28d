"""An engine that raises, hangs or is cancelled at each of its calls, under a session in each of its states.

Whatever fails, a session either goes on or ends with a code; a stop ends it; what was opened is closed; the engine runs again.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from musetalk_agent.errors import Draining, EngineFailed
from musetalk_agent.media import pipeline
from musetalk_agent.media.format_detector import FormatDetector
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.http import DiagnosisCode, SessionState
from musetalk_agent.session.session import ENDED, Session
from tests.musetalk_agent.faulty import DEADLINE_S, GatedPublisher, World, world
from tests.musetalk_agent.stand import tone

STATES = ("starting", "ready", "speaking", "draining")
FRAMES = ("launch", "wait", "patches")


async def bring(here: World, state: str) -> asyncio.Task[Session]:
    """Session `b` in this state; the task of its start."""
    if state == "starting":
        here.held.add("b")
    starting = asyncio.create_task(here.start("b"))
    if state == "starting":
        await here.until(lambda: "b" in here.publishers and here.publishers["b"].opening.is_set())
        return starting
    await starting
    if state in ("speaking", "draining"):
        here.speak("b", 20)
        await here.until(lambda: here.sessions.get("b").state is SessionState.SPEAKING)
    if state == "draining":
        here.sessions.drain()
    return starting


async def end_all(here: World) -> None:
    """Every session can be stopped, and nothing of any is left."""
    here.held.clear()
    for gated in here.publishers.values():
        gated.gate.set()
    async with asyncio.timeout(DEADLINE_S):
        for session_id in list(here.sessions._sessions):
            assert (await here.sessions.stop(session_id)).state in ENDED
    assert here.sessions.empty
    here.plan.release()
    await here.until(lambda: here.plan.opened == here.plan.closed)


def pictures(session: Session) -> int:
    """Frames whose lips were made; on a busy machine they may all have come too late to be shown."""
    statistics = session.status().statistics
    return statistics["spoken"] + statistics["dropped"]


async def runs_again(here: World) -> None:
    """A session of the same id starts on the new engine and speaks to its end, unless the agent drains."""
    await here.until(lambda: here.factory.engines.ready)
    if here.sessions.draining:
        with pytest.raises(Draining):
            await here.start("b")
        return
    here.held.clear()
    before = here.sessions._sessions.get("b")
    if before is not None:
        await here.until(before.ended.is_set)  # the engine may be there again first
    await here.start("b")
    here.speak("b")
    await here.until(lambda: "playback.finished" in here.events("b"))
    assert pictures(here.sessions.get("b"))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["device", "hang"])
@pytest.mark.parametrize("call", FRAMES)
async def test_a_device_that_fails_ends_every_session_on_it_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, kind: str, state: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        other = await here.start("a")
        starting = await bring(here, state)
        here.plan.arm(call, kind)
        here.speak("a", 20)
        await here.until(here.plan.hit.is_set)
        if state == "starting":
            with pytest.raises(EngineFailed):
                await starting
            assert "b" not in here.sessions._sessions
        else:
            failed = starting.result()
            async with asyncio.timeout(DEADLINE_S):
                await failed.ended.wait()
            assert failed.error is not None
            assert (failed.state, failed.error["code"]) == (SessionState.FAILED, "engine_failed")
        async with asyncio.timeout(DEADLINE_S):
            await other.ended.wait()
        assert other.state is SessionState.FAILED
        assert here.publishers["b"].left == 1
        assert (await here.sessions.stop("a")).state is SessionState.FAILED
        await runs_again(here)
        await end_all(here)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", ["features", *FRAMES])
async def test_an_error_of_frames_costs_lips_and_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, state: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        speaker = await here.start("a")
        starting = await bring(here, state)
        here.plan.arm(call, "raise")
        here.speak("a")
        await here.until(lambda: "playback.finished" in here.events("a"))
        status = speaker.status()
        assert status.statistics["spoken"] == 0
        assert status.diagnosis.code is DiagnosisCode.ENGINE_FAILING and f"{call} broke" in status.diagnosis.message
        here.plan.faults.clear()
        here.publishers["b"].gate.set()
        assert (await starting).state not in ENDED
        here.speak("a")
        await here.until(lambda: here.events("a").count("playback.finished") == 2)
        assert "every frame" not in speaker.status().diagnosis.message, "though some of the last five seconds did fail"
        assert pictures(speaker), "its lips move again"
        await end_all(here)


@pytest.mark.parametrize("state", STATES)
async def test_features_that_hang_keep_no_session_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        await here.start("a")
        starting = await bring(here, state)
        here.plan.arm("features", "hang")
        here.speak("a")
        await here.until(lambda: "playback.finished" in here.events("a"))
        here.publishers["b"].gate.set()
        await starting
        await end_all(here)


@pytest.mark.parametrize("kind", ["raise", "device", "hang", "cancel"])
async def test_a_start_whose_avatar_is_not_opened_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        here.plan.arm("open", "hang" if kind == "cancel" else kind)
        if kind == "hang":
            monkeypatch.setattr("musetalk_agent.factory.OPEN_WITHIN_S", 0.2)
        starting = asyncio.create_task(here.start("b"))
        await here.until(here.plan.hit.is_set)
        if kind == "cancel":
            starting.cancel()
        expected = {"raise": RuntimeError, "cancel": asyncio.CancelledError}.get(kind, EngineFailed)
        with pytest.raises(expected):
            await starting
        assert here.sessions.empty
        here.plan.faults.clear()
        here.plan.release()
        await here.until(lambda: here.plan.opened == here.plan.closed == (kind in ("hang", "cancel")))
        assert here.factory.engines.ready == (kind != "device")  # the device is broken for everybody
        await here.until(lambda: here.factory.engines.ready)
        await here.start("b")
        await end_all(here)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["raise", "device", "hang"])
async def test_a_release_that_fails_keeps_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        starting = await bring(here, state)
        here.plan.arm("release", kind)
        async with asyncio.timeout(DEADLINE_S):
            if state == "starting":
                starting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await starting
            else:
                assert (await here.sessions.stop("b")).state is SessionState.STOPPED
        assert here.publishers["b"].left == 1
        here.plan.faults.clear()
        if state != "draining":
            here.held.clear()
            await here.start("b")
        await end_all(here)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("kind", ["raise", "device", "hang"])
async def test_an_engine_is_made_again_whatever_its_close_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, state: str
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        await here.start("a")
        starting = await bring(here, state)
        here.plan.arm("close", kind)
        here.plan.arm("launch", "device")
        here.speak("a")
        await asyncio.gather(starting, return_exceptions=True)
        await here.until(lambda: here.plan.engines_closed == 1)
        here.plan.faults.clear()
        await runs_again(here)
        await end_all(here)


@pytest.mark.parametrize("parts", [{"leave"}, {"leave", "release"}, {"discard", "leave", "release"}])
@pytest.mark.parametrize("kind", ["raise", "hang"])
async def test_every_part_of_a_session_ends_whatever_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, parts: set[str]
) -> None:
    def broken() -> None:
        raise OSError("this part broke")

    async with world(tmp_path, monkeypatch) as here:
        session = await here.start("b")
        gated = here.publishers["b"]
        if "leave" in parts and kind == "raise":
            gated.leave = broken
        elif "leave" in parts:
            gated.leave_gate.clear()
        if "release" in parts:
            here.plan.arm("release", kind)
        if "discard" in parts:
            monkeypatch.setattr(session.pipeline.renderer.ready, "discard", broken)
        async with asyncio.timeout(DEADLINE_S):
            assert (await here.sessions.stop("b")).state in ENDED
        assert session.ended.is_set() and gated.left == 1 and here.plan.closed == 1
        here.plan.faults.clear()
        await here.start("b")
        await end_all(here)


async def test_courtesies_that_break_are_tried_again_and_cost_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attribute of the room, whose future the SDK cancels, and the judge of the sender's rate."""
    shown, judged = [], []

    async def set_state(self: GatedPublisher, state: str) -> None:
        shown.append(state)
        if len(shown) == 1:
            raise asyncio.CancelledError

    def judge(_: object, sound: Pcm, rate: int, rest: object) -> None:
        judged.append(rate)
        if len(judged) == 1:
            raise MemoryError

    monkeypatch.setattr(GatedPublisher, "set_state", set_state)
    monkeypatch.setattr(pipeline, "detect_rate", judge)
    async with world(tmp_path, monkeypatch) as here:
        media = (await here.start("b")).pipeline
        await here.until(lambda: len(shown) == 2)
        for runs in (1, 2):
            media._for_rate = FormatDetector(16_000), tone(5)
            media._rate_wake.set()
            await here.until(lambda: len(judged) == runs and media._for_rate is None)  # noqa: B023 - awaited here
        here.speak("b")
        await here.until(lambda: "playback.finished" in here.events("b"))
        assert shown[:2] == ["idle", "idle"]
        await end_all(here)


async def test_sessions_that_begin_together_are_judged_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rests three quarters of its time; eight at once took the interpreter's lock from the event loop."""
    going_on, at_work, most = threading.Event(), list[int](), list[int]()

    def judge(_: object, sound: Pcm, rate: int, rest: object) -> int:
        at_work.append(rate)
        most.append(len(at_work))
        going_on.wait()
        at_work.pop()
        return rate

    monkeypatch.setattr(pipeline, "detect_rate", judge)
    async with world(tmp_path, monkeypatch) as here:
        sessions = [(await here.start(name)).pipeline for name in "abc"]
        for media in sessions:
            media._for_rate = FormatDetector(16_000), tone(5)
            media._rate_wake.set()
        await here.until(lambda: sum(thread.name == "rates" for thread in threading.enumerate()) >= len(sessions))
        going_on.set()
        await here.until(lambda: all(media._for_rate is None for media in sessions))
        assert most == [1, 1, 1]
        await end_all(here)


async def test_a_session_whose_own_task_is_cancelled_leaves_the_room_and_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        session = await here.start("b")
        here.speak("b", 20)
        task = session._task
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert session.ended.is_set() and session.state is SessionState.STOPPED
        assert here.publishers["b"].left == 1 and here.plan.closed == 1 and here.sessions.empty


async def test_the_end_of_the_agent_skips_nothing_when_its_engines_take_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, monkeypatch) as here:
        with monkeypatch.context() as patch:
            reached = asyncio.Event()

            async def hangs() -> None:
                reached.set()
                await asyncio.Event().wait()

            patch.setattr(here.factory.engines, "aclose", hangs)
            ending = asyncio.create_task(here.factory.aclose())
            await reached.wait()
            ending.cancel()  # as the step's time is up
            with pytest.raises(asyncio.CancelledError):
                await ending
        assert here.factory.library._decoders.builders._closed and here.factory._executor._shutdown
