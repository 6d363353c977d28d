"""Agents that die, hang, forget, fail and shut down under a session that speaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from musetalk_agent.protocol.messages import ErrorEvent, PublisherChanged
from tests.fakes.agent_server import FakeAgent
from tests.fakes.fleet import Fleet, fleet
from tests.fakes.stage import Line, Stage
from tests.waiting import NEVER_S, until

RATE = 16000


def ramp(seconds: float, first: int = 0) -> bytes:
    """PCM whose samples say which they are, modulo 65536."""
    return np.arange(first, first + round(seconds * RATE), dtype=np.int64).astype("<i2").tobytes()


def playing(agent: FakeAgent, session_id: str, number: int = 1, at_least_s: float = 0.3) -> Callable[[], bool]:
    def holds() -> bool:
        session = agent.sessions.get(session_id)
        segment = session.segments.get(number) if session else None
        return segment is not None and segment.heard - segment.base >= at_least_s * RATE

    return holds


def check_whole(here: Fleet, session_id: str, number: int, pcm: bytes, *, doubled_s: float = 1.0) -> None:
    """Every sample was heard, in order, and at most `doubled_s` twice a death."""
    reached = 0
    for base, part in here.heard(session_id, number):
        assert reached - doubled_s * RATE <= base <= reached, "lost or doubled"
        assert part == pcm[2 * base : 2 * base + len(part)], "not the sender's samples"
        reached = max(reached, base + len(part) // 2)
    assert reached == len(pcm) // 2


async def state(running: Stage, session_id: str) -> dict[str, Any]:
    return dict((await running.http.get(f"/session/{session_id}")).json())


async def known_heard_s(running: Stage, session_id: str) -> float:
    """How much of the segment was heard, as far as the orchestrator knows."""
    listed = (await running.http.get("/debug/audio")).json()["sessions"]
    (found,) = (each for each in listed if each["session_id"] == session_id)
    return float(found["agent_link"].get("heard_s", 0.0))


def states(line: Line) -> list[tuple[str, str | None]]:
    return [(message["state"], message.get("reason")) for message in line.of("session.state")]


def published(running: Stage, session_id: str) -> list[str]:
    """The session's events so far; of its states, which."""
    stream = running.app.state.context.events.subscribe(session_id)
    reported = [json.loads(event.text) for event in stream._waiting]
    running.app.state.context.events.unsubscribe(session_id, stream)
    return [event["data"].get("state") or event["type"] for event in reported]


async def test_an_agent_that_dies_in_mid_sentence_is_replaced_and_no_sample_is_lost() -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        pcm = ramp(2.0)
        await line.say("audio.start")
        await line.socket.send(pcm)
        await line.say("audio.end")
        await until(playing(first, session_id))
        await line.wait("playback.started")
        await here.kill(first)
        await line.wait("session.state", count=2)
        assert states(line) == [("recovering", "link_lost"), ("ready", "moved")]
        finished = await line.wait("playback.finished")
        assert finished["position_s"] == pytest.approx(2.0, abs=0.001) and not finished["interrupted"]
        assert [len(line.of(kind)) for kind in ("playback.started", "playback.finished", "error")] == [1, 1, 0]
        check_whole(here, session_id, 1, pcm)
        assert published(here.stage, session_id) == [
            *["ready", "playback.started", "recovering", "ready", "playback.finished"]
        ]
        (second,) = here.others(first)
        again = second.only.request
        assert again.session_id == session_id and again.probe_token
        assert again.avatar == first.only.request.avatar and again.room == first.only.request.room
        assert second.only.segments[1].received == 0
        view = await state(here.stage, session_id)
        assert view["moves"] == 1 and view["agent_lost_at"] is not None
        stopped = (await here.stage.http.post(f"/session/{session_id}/stop")).json()
        assert stopped["state"] == "stopped" and second.stopped == [session_id]


async def test_what_is_said_while_there_is_no_agent_is_heard_by_the_next() -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        (second,) = here.others(first)
        second.sessions_max = 0
        await line.socket.send(ramp(0.5))
        await until(playing(first, session_id, at_least_s=0.1))
        await here.kill(first)
        await line.wait("session.state")
        assert (await state(here.stage, session_id))["state"] == "recovering"
        await line.say("audio.end")
        await line.say("audio.start")
        await line.socket.send(ramp(0.4))
        await line.say("audio.end")
        session = here.stage.app.state.context.sessions.registry.get(session_id)
        await until(lambda: session.live.ingest.received_samples == round(0.9 * RATE))
        second.sessions_max = 8
        await line.wait("playback.finished", count=2)
        assert [message["segment"] for message in line.of("playback.finished")] == [1, 2]
        check_whole(here, session_id, 1, ramp(0.5))
        check_whole(here, session_id, 2, ramp(0.4))
        assert second.only.segments[2].received == RATE // 2


async def test_interrupt_and_stop_work_while_there_is_no_agent() -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        here.others(first)[0].sessions_max = 0
        await line.socket.send(ramp(3.0))
        await until(playing(first, session_id))
        await here.kill(first)
        await line.wait("session.state")
        answer = (await here.stage.http.post(f"/session/{session_id}/interrupt")).json()
        finished = await line.wait("playback.finished")
        assert finished["interrupted"] and finished["position_s"] + answer["dropped_s"] == pytest.approx(3.0, abs=0.01)
        assert (await line.wait("cleared"))["dropped_s"] == answer["dropped_s"]
        refused = await here.stage.http.post(f"/session/{session_id}/publisher", json={"mode": "webrtc"})
        assert (refused.status_code, refused.json().get("code")) == (409, "session_conflict"), refused.text
        stopped = (await here.stage.http.post(f"/session/{session_id}/stop")).json()
        assert stopped["state"] == "stopped"
        assert await line.closed() == 1001
        assert here.stage.rooms.removed == [("stage", started["avatar_identity"])]


async def test_an_agent_that_hangs_is_left_and_asked_to_stop_when_it_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        pcm = ramp(2.5)
        await line.say("audio.start")
        await line.socket.send(pcm)
        await line.say("audio.end")
        await until(playing(first, session_id))
        with monkeypatch.context() as hurried:
            hurried.setattr("orchestrator.session.agent_connection.STILL_S", 1.0)
            first.hung = True
            await line.wait("session.state", count=2)
        assert states(line) == [("recovering", "hung"), ("ready", "moved")]
        await line.wait("playback.finished")
        check_whole(here, session_id, 1, pcm)
        kept = first.only
        first.hung = False
        await until(lambda: session_id in first.stopped)
        assert kept.segments[1].heard < 2.5 * RATE
        assert not here.others(first)[0].stopped


async def test_an_agent_whose_network_is_away_is_no_agent_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        agent = here.of(started["session_id"])
        await line.socket.send(ramp(30.0))  # not played to its end before the fault, however slow the machine
        await until(playing(agent, started["session_id"], at_least_s=0.1))
        agent.only.emit(PublisherChanged(publisher="none", reason="ICE failed"))
        await line.wait("publisher.changed")
        monkeypatch.setattr("orchestrator.session.agent_connection.STILL_S", 0.3)
        agent.pace, agent.shows = 1e-9, False
        reports = agent.only.reports
        await until(lambda: agent.only.reports > reports + 20)  # a second of them, in which nothing moves
        assert states(line) == []
        heard = agent.only.segments[1].heard
        await here.kill(agent)
        await line.wait("session.state", count=2)
        (other,) = here.others(agent)
        await until(lambda: 1 in other.only.segments)
        assert heard - 0.2 * RATE <= other.only.segments[1].base <= heard, "its clock stood"


@pytest.mark.parametrize("how", ["forgets", "engine_failed", "ends"])
async def test_other_ways_to_lose_an_agent(how: str) -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        await line.socket.send(ramp(1.0))
        await until(playing(first, session_id, at_least_s=0.1))
        kept = first.only
        if how == "engine_failed":
            kept.emit(ErrorEvent(code="engine_failed", message="The card fell off."))
        else:
            if how == "forgets":
                first.sessions.clear()
            for socket in list(kept.sockets):
                await socket.close(1012 if how == "forgets" else 1001)
        await line.wait("playback.finished")
        cause = {"forgets": "session_lost", "ends": "session_lost"}.get(how, how)
        assert states(line) == [("recovering", cause), ("ready", "moved")]
        first.sessions[session_id] = kept
        check_whole(here, session_id, 1, ramp(1.0))


async def test_a_draining_agent_is_left_at_a_pause_in_speech() -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        session_id = started["session_id"]
        first = here.of(session_id)
        await line.say("audio.start")
        await line.socket.send(ramp(1.0))
        await until(playing(first, session_id, at_least_s=0.1))
        first.draining = True
        await line.say("audio.end")
        await line.wait("session.state", count=2)
        assert states(line) == [("recovering", "draining"), ("ready", "moved")]
        kinds = [message["type"] for message in line.messages]
        assert kinds.index("playback.finished") < kinds.index("session.state")
        (second,) = here.others(first)
        assert second.only.segments == {} and first.stopped == [session_id]
        await line.socket.send(ramp(0.3))
        await line.wait("playback.finished", count=2)
        assert second.only.segments[2].received == RATE


async def test_a_draining_agent_without_another_keeps_its_session() -> None:
    async with fleet(1) as here, here.stage.live() as (started, line):
        agent = here.of(started["session_id"])
        agent.draining = True
        await line.socket.send(ramp(0.5))
        await line.wait("playback.finished")
        assert states(line) == [] and agent.stopped == []


async def test_the_only_agent_gets_its_session_back() -> None:
    async with fleet(1) as here, here.stage.live() as (started, line):
        agent = here.of(started["session_id"])
        await line.socket.send(ramp(0.5))
        await until(lambda: known_heard_s(here.stage, started["session_id"]))
        agent.only.emit(ErrorEvent(code="engine_failed", message="The card fell off."))
        await line.wait("playback.finished")
        assert agent.stopped == [started["session_id"]], "it was asked to stop before it began again"
        assert agent.only.segments[1].base > 0 and agent.only.segments[1].ended


async def test_a_session_that_moves_too_often_fails() -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        for _ in range(6):
            agent = here.of(started["session_id"])
            moves = (await state(here.stage, started["session_id"]))["moves"]
            agent.only.emit(ErrorEvent(code="engine_failed", message="The card fell off."))
            if moves < 5:
                await line.wait("session.state", count=2 * (moves + 1))
        error = await line.wait("error")
        assert error["code"] == "agent_unavailable" and "5 moves" in error["message"]
        assert await line.closed() == 1011
        registry = here.stage.app.state.context.sessions.registry
        await until(lambda: registry.get(started["session_id"]).ended)  # the connection is closed before
        view = await state(here.stage, started["session_id"])
        assert (view["state"], view["end_reason"], view["moves"]) == ("failed", "agent_lost", 5)


async def test_no_agent_within_the_bound_fails_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.session.session_failover.MOVE_S", 0.6)
    async with fleet(1) as here, here.stage.live() as (started, line):
        await line.socket.send(ramp(0.5))
        await here.kill(here.of(started["session_id"]))
        assert (await line.wait("error"))["code"] == "agent_unavailable"
        assert len(line.of("playback.finished")) == 1


async def test_a_dropped_link_does_not_move_the_session() -> None:
    async with fleet() as here, here.stage.live() as (started, line):
        agent = here.of(started["session_id"])
        await line.socket.send(ramp(1.0))
        for _ in range(5):
            await until(lambda: bool(agent.only.sockets))
            connections = agent.only.connections
            await agent.cut()
            await until(lambda: agent.only.connections > connections)  # noqa: B023
        await line.wait("playback.finished")
        assert states(line) == [] and agent.only.connections >= 5
        check_whole(here, started["session_id"], 1, ramp(1.0), doubled_s=0)


async def test_twenty_cuts_of_the_senders_line_in_a_minute_of_speech_lose_and_double_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.session.agent_connection.SILENT_S", NEVER_S)  # no agent hangs here
    monkeypatch.setattr("orchestrator.session.agent_connection.STILL_S", NEVER_S)
    pcm, cuts, received = ramp(60.0), 0, 0
    async with fleet(pace=30.0) as here, here.stage.live() as (started, line):
        await line.say("audio.start")
        await line.aclose()
        while received < len(pcm) // 2:
            async with here.stage.audio(started["audio_url"]) as again:
                received = (await again.wait("hello"))["received_samples"]
                for begin in range(2 * received, len(pcm), 9600):
                    await again.socket.send(pcm[begin : begin + 9600])
                    if begin - 2 * received >= 86_400 and cuts < 20:
                        again.cut()
                        cuts += 1
                        break
                else:
                    await again.say("audio.end")
                    finished = await again.wait("playback.finished")
                    received = len(pcm) // 2
        assert cuts == 20
        segments = here.of(started["session_id"]).only.segments
        assert list(segments) == [1] and bytes(segments[1].pcm) == pcm
        assert finished["position_s"] == pytest.approx(60.0)


async def test_a_start_passes_over_an_agent_that_died_a_moment_ago() -> None:
    async with fleet() as here:
        first = await here.stage.start()
        (other,) = here.others(here.of(first["session_id"]))
        await here.kill(other)  # the pool has not asked it since
        second = await here.stage.start()
        assert here.of(second["session_id"]) is here.of(first["session_id"])
