"""`/session/{id}/recording` against an agent whose films grow when the test says so."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.recording.film_store import FolderStore, StoreFailed
from tests.fakes.film_parts import RATE, part, watch
from tests.fakes.fleet import fleet
from tests.fakes.stage import OTHER_KEY, Stage, stage
from tests.waiting import until


async def _reported(here: Stage, session_id: str) -> dict[str, Any]:
    answer = await here.http.get(f"/session/{session_id}/recording")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def _grown(here: Stage, session_id: str, seconds: float) -> dict[str, Any]:
    """What is reported once the film is so long."""

    async def long() -> dict[str, Any] | None:
        reported = await _reported(here, session_id)
        return reported if reported["seconds"] >= seconds else None

    return await until(long)


async def test_a_session_is_recorded_from_its_start_and_plays_while_it_grows(running: Stage) -> None:
    session_id = (await running.start(record=True))["session_id"]
    reported = await _reported(running, session_id)
    assert (reported["state"], reported["parts"]) == ("recording", 0) and reported["url"] is None
    assert running.agent.films.asked[0].width is None and not running.agent.films.asked[0].skip_idle
    address = f"/session/{session_id}/recording.mp4"
    assert (await running.http.get(address)).json()["code"] == "recording_not_found"
    running.agent.films.grow(7)
    reported = await _grown(running, session_id, 0.5)
    first = await running.http.get(address)
    assert (first.status_code, first.headers["content-type"]) == (200, "video/mp4")
    assert len(watch(first.content).times) >= 13
    running.agent.films.grow(99)
    await _grown(running, session_id, 2.9)
    stopped = await running.http.post(f"/session/{session_id}/recording", json={"state": "stopped"})
    reported = stopped.json()
    assert (stopped.status_code, reported["state"], reported["parts"], reported["dropped_frames"]) == (
        200,
        "stopped",
        1,
        2,
    )
    whole = await running.http.get(reported["url"])
    assert len(whole.content) == reported["bytes"] and whole.content.startswith(first.content)
    seen = watch(whole.content)
    assert abs(seen.times[-1] + 0.04 - reported["seconds"]) < 0.1 and len(seen.bursts) == 6
    again = await running.http.post(f"/session/{session_id}/recording", json={"state": "stopped"})
    assert again.json() == reported


async def test_ranges_of_a_film(running: Stage) -> None:
    session_id = (await running.start(record=True))["session_id"]
    running.agent.films.grow(13)
    size = (await _grown(running, session_id, 1.0))["bytes"]
    address = f"/session/{session_id}/recording.mp4"
    whole = (await running.http.get(address)).content

    async def get(asked: str) -> tuple[int, bytes, str | None]:
        answer = await running.http.get(address, headers={"Range": asked})
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert await get("bytes=0-99") == (206, whole[:100], f"bytes 0-99/{size}")
    assert await get("bytes=100-") == (206, whole[100:], f"bytes 100-{size - 1}/{size}")
    assert await get("bytes=-7") == (206, whole[-7:], f"bytes {size - 7}-{size - 1}/{size}")
    assert await get(f"bytes=0-{10**9}") == (206, whole, f"bytes 0-{size - 1}/{size}")
    for not_understood in ("bytes=9-1", "bytes=-", "lines=1-2", "bytes=0-1,5-6"):
        assert await get(not_understood) == (200, whole, None)
    behind = await running.http.get(address, headers={"Range": f"bytes={size}-"})
    assert (behind.status_code, behind.json()["code"]) == (416, "range_not_satisfiable")
    assert behind.json()["limit"] == size


async def test_recording_begins_and_ends_at_any_time_and_is_reset(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    address = f"/session/{session_id}/recording"
    assert (await _reported(running, session_id))["state"] == "none"
    for method in ("POST", "DELETE"):
        body = {"json": {"state": "stopped"}} if method == "POST" else {}
        nothing = await running.http.request(method, address, **body)
        assert (nothing.status_code, nothing.json()["code"]) == (404, "recording_not_found")
    for count in (1, 2):
        begun = await running.http.post(address, json={"state": "recording", "skip_idle": True})
        assert (begun.status_code, begun.json()["state"], begun.json()["skip_idle"]) == (200, "recording", True)
        running.agent.films.grow(13)
        await _grown(running, session_id, count * 1.0)
        ended = await running.http.post(address, json={"state": "stopped"})
        assert ended.json()["parts"] == count
    film = await running.http.get(f"{address}.mp4")
    assert len(watch(film.content).times) == 52
    assert (await running.http.delete(address)).status_code == 204
    assert (await running.http.get(f"{address}.mp4")).status_code == 404
    assert (await _reported(running, session_id))["bytes"] == 0
    await running.http.post(address, json={"state": "recording"})
    running.agent.films.grow(13)
    await _grown(running, session_id, 1.0)
    assert (await running.http.delete(address)).status_code == 204  # while it is recorded: it begins again
    reported = await _reported(running, session_id)
    assert (reported["state"], reported["parts"]) == ("recording", 0)
    running.agent.films.grow(5)
    assert (await _grown(running, session_id, 0.3))["parts"] == 1


async def test_the_film_is_there_after_the_session_for_whom_the_session_was(running: Stage) -> None:
    session_id = (await running.start(record=True))["session_id"]
    running.agent.films.grow(13)
    await _grown(running, session_id, 1.0)
    running.agent.films.grow(5)  # nobody has fetched these when the session ends
    await running.http.post(f"/session/{session_id}/stop")
    reported = await _reported(running, session_id)
    assert reported["state"] == "stopped" and reported["seconds"] > 1.4
    events = await running.http.get(f"/session/{session_id}/events")
    kinds = [line.removeprefix("event: ") for line in events.text.splitlines() if line.startswith("event: ")]
    assert kinds[-2:] == ["recording.ready", "session.state"]
    running.app.state.context.sessions.registry._sessions.clear()  # as after ten minutes
    assert len(watch((await running.http.get(f"/session/{session_id}/recording.mp4")).content).times) == 36
    other = {"Authorization": f"Bearer {OTHER_KEY}"}
    assert (await running.http.get(f"/session/{session_id}/recording", headers=other)).status_code == 200  # operators
    assert (await running.http.delete(f"/session/{session_id}/recording")).status_code == 204
    assert (await running.http.get(f"/session/{session_id}/recording")).status_code in (404, 409)


@pytest.mark.parametrize("path", ["/recording", "/recording.mp4"])
async def test_an_unknown_session_has_no_film(running: Stage, path: str) -> None:
    answer = await running.http.get(f"/session/ses_unknown{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
    answer = await running.http.get(f"/session/..%2f..%2fetc{path}")
    assert answer.status_code == 404


async def test_an_encoder_that_does_not_start_is_reported(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    running.agent.films.refuses = ProblemError(ErrorCode.RECORDING_UNAVAILABLE, "no encoder")
    answer = await running.http.post(f"/session/{session_id}/recording", json={"state": "recording"})
    assert (answer.status_code, answer.json()["code"]) == (503, "recording_unavailable")
    assert (await _reported(running, session_id))["state"] == "none"
    wrong = await running.http.post("/session/start", json={"room": "r", "engine": "pattern", "skip_idle": True})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "skip_idle")


async def test_one_film_over_two_agents() -> None:
    async with fleet(2) as here:
        session_id = (await here.stage.start(record=True))["session_id"]
        first = here.of(session_id)
        first.films.grow(13, session_id)
        await _grown(here.stage, session_id, 1.0)
        await here.kill(first)
        await until(lambda: any(session_id in other.sessions for other in here.others(first)))
        second = next(other for other in here.others(first) if session_id in other.sessions)
        assert (second.films.asked[0].width, second.films.asked[0].height) == (512, 512)  # one size for all parts
        second.films.grow(40, session_id)
        reported = await _grown(here.stage, session_id, 1.0 + 2.9)
        assert reported["parts"] == 2 and reported["lost_fragments"] == 0
        film = await here.stage.http.get(f"/session/{session_id}/recording.mp4")
        seen = watch(film.content)
        assert len(seen.times) == 26 + 75 and max(map(abs, seen.skews_ms)) < 40


async def test_what_was_heard_and_not_filmed_before_an_agent_died_is_in_the_film() -> None:
    async with fleet(2, pace=1.0) as here, here.stage.live(record=True) as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        first.films.grow(13, session_id)
        await _grown(here.stage, session_id, 1.0)
        times = np.arange(16_000 * 4) / 16_000
        await line.say("audio.start")
        await line.socket.send((12_000 * np.sin(2 * np.pi * 1000 * times)).astype("<i2").tobytes())
        await line.say("audio.end")
        await line.wait("playback.started")
        await until(lambda: first.sessions[session_id].segments[1].heard > 8000)
        await here.kill(first)
        (second,) = here.others(first)
        await until(lambda: session_id in second.sessions and 1 in second.sessions[session_id].segments)
        heard_s = second.sessions[session_id].segments[1].base / 16_000
        assert heard_s > 0.3
        second.films.grow(40, session_id)
        reported = await _grown(here.stage, session_id, 1.0 + heard_s + 2.9)
        assert reported["parts"] == 2 and reported["lost_fragments"] == 0
        film = await here.stage.http.get(f"/session/{session_id}/recording.mp4")
        seen = watch(film.content)
    loud = np.flatnonzero(np.abs(seen.pcm[RATE * 21 // 20 :]) > 0.08)
    ends = loud[np.append(np.diff(loud) > RATE // 10, True)]
    assert ends[0] - loud[0] == pytest.approx(heard_s * RATE, abs=0.06 * RATE)
    assert max(map(abs, seen.skews_ms)) < 40


async def test_a_film_goes_on_with_the_next_process_that_has_the_session(tmp_path: Path) -> None:
    films = str(tmp_path / "films")
    async with fleet(1) as agents:
        settings: dict[str, Any] = {
            "store_path": str(tmp_path / "o.db"),
            "recording_dir": films,
            "agent_url": list(agents.agents),
        }
        (agent,) = agents.agents.values()
        async with stage(**settings) as here:
            session_id = (await here.start(record=True))["session_id"]
            agent.films.grow(13, session_id)
            await _grown(here, session_id, 1.0)
        agent.films.grow(13, session_id)
        async with stage(**settings) as here:
            reported = await _grown(here, session_id, 2.0)
            assert reported["state"] == "recording" and reported["parts"] == 1 and reported["lost_fragments"] == 0
            film = await here.http.get(f"/session/{session_id}/recording.mp4")
            assert len(watch(film.content).times) == 52


async def test_old_films_are_removed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    async with stage(recording_dir=str(tmp_path), recording_days=1.0) as here:
        session_id = (await here.start(record=True))["session_id"]
        here.agent.films.grow(13)
        await _grown(here, session_id, 1.0)
        await here.http.post(f"/session/{session_id}/stop")
    assert await store.expired(time.time() - 3600) == []
    for path in tmp_path.iterdir():
        os.utime(path, (0, time.time() - 2 * 24 * 3600))
    assert await store.expired(time.time() - 24 * 3600) == [session_id]
    async with stage(recording_dir=str(tmp_path), recording_days=1.0):
        await until(lambda: not list(tmp_path.iterdir()))


async def test_a_store_that_fails_stops_no_session_and_loses_nothing_that_fits(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = asyncio.Event()
    broken.set()
    append = FolderStore.append

    async def failing(store: FolderStore, name: str, at: int, data: bytes) -> None:
        if broken.is_set():
            raise StoreFailed("the disk is full")
        await append(store, name, at, data)

    monkeypatch.setattr(FolderStore, "append", failing)
    session_id = (await running.start(record=True))["session_id"]
    running.agent.films.grow(13)
    await _grown(running, session_id, 1.0)
    metrics = running.app.state.context.metrics
    await until(lambda: metrics.film_store_errors._value.get() > 0)
    film = await running.http.get(f"/session/{session_id}/recording.mp4")
    assert len(watch(film.content).times) == 26  # from memory
    broken.clear()
    running.agent.films.grow(13)
    await running.http.post(f"/session/{session_id}/recording", json={"state": "stopped"})
    film = await running.http.get(f"/session/{session_id}/recording.mp4")
    assert len(watch(film.content).times) == 52
    stored = Path(running.settings.recording_dir) / f"{session_id}.mp4"
    assert stored.read_bytes() == film.content and film.content.startswith(part().header)
