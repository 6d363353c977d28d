"""`WS /audio` as a sender sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
import websockets
from starlette.websockets import WebSocket

from musetalk_agent.protocol.messages import ErrorEvent, WarningEvent
from orchestrator.audio.ingest import AudioIngest
from tests.fakes.stage import Line, Stage, stage
from tests.waiting import NEVER_S, until


def tone(seconds: float, rate: int = 16000) -> bytes:
    return (np.sin(np.arange(round(seconds * rate)) * 0.3) * 8000).astype("<i2").tobytes()


async def test_raw_pcm_alone_is_enough(running: Stage) -> None:
    pcm = tone(1.0)
    async with running.live() as (started, line):
        hello = line.messages[0]
        assert hello == {
            "type": "hello",
            "protocol": 1,
            "session_id": started["session_id"],
            "received_samples": 0,
            "sample_rate": 16000,
            "limits": {"message_bytes": 1 << 20, "backlog_s": 120.0, "bytes_per_s": 4 << 20, "segments": 256},
        }
        for offset in range(0, len(pcm), 1281):  # odd lengths: every other message splits a sample
            await line.socket.send(pcm[offset : offset + 1281])
        finished = await line.wait("playback.finished")
        assert finished.pop("id") > line.of("playback.started")[0]["id"]
        assert finished == {"type": "playback.finished", "segment": 1, "position_s": 1.0, "interrupted": False}
        assert [m["type"] for m in line.messages if m["type"].startswith("playback")] == [
            "playback.started",
            "playback.finished",
        ]
        assert running.agent.only.pcm == pcm
        assert running.agent.only.segments[1].rate == 16000
        assert line.of("ack")[-1]["received_samples"] == 16000


async def test_what_came_is_acknowledged_without_more_coming(running: Stage) -> None:
    async with running.live() as (_, line):
        for number in range(1, 5):
            await line.socket.send(tone(0.04))
            await line.wait("ack", received_samples=number * 640)
        counts = [ack["received_samples"] for ack in line.of("ack")]
        assert counts == sorted(set(counts))


@pytest.mark.parametrize(("query", "rate"), [("&sample_rate=8000", 8000), ("&sample_rate=48000", 48000)])
async def test_other_rates_are_passed_on_at_their_own(running: Stage, query: str, rate: int) -> None:
    async with running.live(query) as (_, line):
        assert line.messages[0]["sample_rate"] == rate
        await line.socket.send(tone(0.5, rate))
        await line.say("audio.end")
        assert (await line.wait("playback.finished"))["position_s"] == 0.5
        assert running.agent.only.segments[1].rate == rate
        ack = await line.wait("ack")
        assert ack["received_samples"] == rate // 2


async def test_floats_are_taken_when_they_are_announced(running: Stage) -> None:
    async with running.live("&format=f32le") as (_, line):
        await line.socket.send((np.ones(1600, "<f4") * 0.5).tobytes())
        await line.say("audio.end")
        await line.wait("playback.finished")
        assert set(np.frombuffer(running.agent.only.pcm, "<i2").tolist()) == {16384}
        assert (await line.wait("ack"))["received_samples"] == 1600


async def test_the_rate_belongs_to_the_session(running: Stage) -> None:
    async with running.live() as (started, line):
        await line.socket.send(tone(0.1))
        await line.wait("ack")
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with websockets.connect(started["audio_url"] + "&sample_rate=48000", proxy=None):
                pass
        assert caught.value.response.status_code == 422
        assert json.loads(caught.value.response.body)["code"] == "sample_rate_changed"
        await line.say("ping")
        await line.wait("pong")  # the older connection was left alone


async def test_a_new_connection_takes_over(running: Stage) -> None:
    async with running.live() as (started, old):
        await old.socket.send(tone(0.1))
        await old.wait("ack")
        async with running.audio(started["audio_url"]) as new:
            hello = await new.wait("hello")
            assert hello["received_samples"] == 1600
            assert (await old.wait("error"))["code"] == "replaced"
            assert await old.closed() == 1008
            await new.socket.send(tone(0.1))
            await new.say("audio.end")
            await new.wait("playback.finished")
            assert len(running.agent.only.pcm) == 6400
            session = (await running.http.get("/debug/audio")).json()["sessions"][0]
            assert session["source"]["connected"] is True
        await until(lambda: running.app.state.context.sessions.registry.all()[0].live.outbox.connection is None)


async def test_a_sender_that_is_cut_resumes_and_nothing_is_lost_or_doubled(running: Stage) -> None:
    pcm = np.random.default_rng(3).integers(-9000, 9000, 40 * 640).astype("<i2").tobytes()
    started = await running.start()
    position = cuts = 0
    while position < len(pcm) // 2:
        async with running.audio(started["audio_url"]) as line:
            position = (await line.wait("hello"))["received_samples"]
            if cuts == 0:
                await line.say("audio.start")
            upto = len(pcm) if cuts == 20 else min(len(pcm), 2 * position + 2 * 1280 + 1)
            for offset in range(2 * position, upto, 333):
                await line.socket.send(pcm[offset : min(offset + 333, upto)])
            if upto == len(pcm):
                await line.say("audio.end")
                await line.wait("playback.finished")
                break
            line.cut()
            cuts += 1
    assert cuts >= 15
    assert running.agent.only.pcm == pcm


async def test_twenty_cuts_between_orchestrator_and_agent_are_not_heard(running: Stage) -> None:
    pcm = np.random.default_rng(4).integers(-9000, 9000, 400 * 160).astype("<i2").tobytes()
    async with running.live() as (_, line):
        session = running.agent.only
        await line.say("audio.start")
        for index, offset in enumerate(range(0, len(pcm), 320)):
            await line.socket.send(pcm[offset : offset + 320])
            if index % 20 == 19:
                connections = session.connections
                await running.agent.cut()
                await until(lambda: session.connections > connections)  # noqa: B023
        await line.say("audio.end")
        assert (await line.wait("playback.finished"))["position_s"] == 4.0
        assert session.pcm == pcm
        assert session.connections >= 21
        assert [len(line.of(kind)) for kind in ("playback.started", "playback.finished")] == [1, 1]


async def test_clear_by_message(running: Stage) -> None:
    running.agent.hold = True
    async with running.live() as (_, line):
        await line.say("audio.start")
        await line.socket.send(tone(1.0))
        await line.say("audio.start")
        await line.socket.send(tone(0.5))
        await line.say("audio.end")
        await until(lambda: len(running.agent.only.pcm) == 48000)
        await line.say("clear")
        cleared = await line.wait("cleared")
        assert cleared["dropped_s"] == 1.5
        kinds = [(m["type"], m.get("segment"), m.get("interrupted")) for m in line.messages if m["type"] != "ack"]
        assert kinds[1:] == [
            ("playback.finished", 1, True),
            ("playback.finished", 2, True),
            ("cleared", None, None),
        ]


async def test_interrupt_answers_with_what_was_dropped(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "orchestrator.audio.segments.CLEAR_PAUSE_S", NEVER_S
    )  # a slow machine is no pause of the sender's
    running.agent.hold = True
    async with running.live() as (started, line):
        await line.socket.send(tone(20.0))
        await until(lambda: len(running.agent.only.pcm) == 640_000)
        answer = await running.http.post(f"/session/{started['session_id']}/interrupt")
        assert (answer.status_code, answer.json()) == (200, {"dropped_s": 20.0})
        assert (await line.wait("playback.finished"))["interrupted"] is True
        assert (await line.wait("cleared"))["dropped_s"] == 20.0
        await line.socket.send(tone(0.1))  # it has not noticed yet
        await line.wait("ack", received_samples=321_600)
        assert len(running.agent.only.segments) == 1


async def test_interrupt_does_not_wait_for_an_agent_that_is_silent(running: Stage) -> None:
    async with running.live() as (started, line):
        running.agent.only.mutes_clears = True
        answer = await running.http.post(f"/session/{started['session_id']}/interrupt")
        assert answer.json() == {"dropped_s": 0.0}
        assert line.of("cleared") == []


async def test_wrong_messages(running: Stage) -> None:
    for text in ("{not json", "[]", '"clear"', "{}", '{"type": 7}', "[" * 50_000):
        async with running.live() as (_, line):
            await line.socket.send(text)
            assert (await line.wait("error"))["code"] == "invalid_message", text[:10]
            assert await line.closed() == 1008
    async with running.live() as (_, line):
        await line.socket.send('{"type": "audio.begin"}')
        warning = await line.wait("warning")
        assert warning["code"] == "unknown_type" and "audio.begin" in warning["message"]
        await line.socket.send('{"type": "ping", "later": 1}')
        await line.wait("pong")


async def test_limits_are_errors_and_nothing_of_the_message_is_taken() -> None:
    async with stage(audio_message_bytes=4096, audio_backlog_s=1, audio_bytes_per_s=64000) as running:
        running.agent.hold = True

        async def broken_by(line: Line, *messages: bytes) -> str:
            with suppress(websockets.ConnectionClosed):
                for message in messages:
                    await line.socket.send(message)
                    await asyncio.sleep(0)  # the service and the reader of its answers run beside it
            code = (await line.wait("error"))["code"]
            assert await line.closed() == 1008
            return str(code)

        started = await running.start()
        async with running.audio(started["audio_url"]) as line:
            assert await broken_by(line, tone(0.1), bytes(4098)) == "message_too_large"
        async with running.audio(started["audio_url"]) as line:
            assert (await line.wait("hello"))["received_samples"] == 1600
            assert await broken_by(line, *[tone(0.1)] * 100) == "backlog_exceeded"
        async with running.audio(started["audio_url"]) as line:
            taken = (await line.wait("hello"))["received_samples"]
            assert (
                16_000 <= taken < 160_000 and taken % 1600 == 0
            )  # a second, and what was played by the clock meanwhile
            assert await broken_by(line, *[b""] * 100_000) == "rate_exceeded"
        session = (await running.http.get(f"/session/{started['session_id']}")).json()
        assert session["state"] in ("ready", "speaking") and session["error"] is None


async def test_the_257th_open_segment_is_refused_and_the_session_goes_on(running: Stage) -> None:
    running.agent.hold = True
    async with running.live() as (started, line):
        for _ in range(257):
            await line.say("audio.start")
        error = await line.wait("error")
        assert error["code"] == "backlog_exceeded" and "256 segments" in error["message"]
        assert await line.closed() == 1008
        queues = (await running.http.get("/debug/audio")).json()["sessions"][0]["queues"]
        assert queues["segments"] == 256
        answer = await running.http.post(f"/session/{started['session_id']}/interrupt")
        assert answer.json() == {"dropped_s": 0.0}
        running.agent.hold = False
        async with running.audio(started["audio_url"]) as again:
            await again.say("audio.start")
            await again.socket.send(tone(0.5))
            await again.say("audio.end")
            await until(lambda: any(m["segment"] == 257 for m in again.of("playback.finished")))
            finished = again.of("playback.finished")[-1]
            assert (finished["position_s"], finished["interrupted"]) == (0.5, False)
        session = (await running.http.get(f"/session/{started['session_id']}")).json()
        assert (session["state"], session["moves"]) == ("ready", 0)


@pytest.mark.parametrize("ended_by", ["interrupt", "pause", "clear", "reconnect"])
async def test_half_a_sample_does_not_turn_the_next_utterance_into_noise(running: Stage, ended_by: str) -> None:
    async with running.live() as (started, line):
        await line.socket.send(tone(0.2) + b"\x01")
        await line.wait("ack")
        if ended_by == "interrupt":
            await running.http.post(f"/session/{started['session_id']}/interrupt")
        elif ended_by == "clear":
            await line.say("clear")
        if ended_by != "reconnect":
            await line.wait("playback.finished")
            await asyncio.sleep(0.31)  # the pause that says that the sender has noticed
            await line.socket.send(tone(0.5))
            await line.wait("playback.finished", count=2)
            assert running.agent.only.segments[2].pcm == tone(0.5)
            return
        line.cut()
        async with running.audio(started["audio_url"]) as again:
            await again.wait("hello")
            await again.socket.send(tone(0.5))
            await again.wait("playback.finished")
            assert running.agent.only.segments[1].pcm == tone(0.2) + tone(0.5)


async def test_stopping_closes_with_1001_and_tells_what_was_open(running: Stage) -> None:
    running.agent.hold = True
    async with running.live() as (started, line):
        await line.say("audio.start")
        await line.socket.send(tone(0.1))
        await running.http.post(f"/session/{started['session_id']}/stop")
        assert await line.closed() == 1001
        (finished,) = line.of("playback.finished")
        assert (finished["segment"], finished["position_s"], finished["interrupted"]) == (1, 0.0, True)


async def test_an_error_of_the_agent_ends_the_session_with_1011(running: Stage) -> None:
    async with running.live() as (started, line):
        running.agent.only.emit(ErrorEvent(code="livekit_unavailable", message="The room is gone."))
        error = await line.wait("error")
        assert (error["code"], error["message"]) == ("livekit_unavailable", "The room is gone.")
        assert await line.closed() == 1011
        path = f"/session/{started['session_id']}"

        async def session() -> dict[str, Any]:
            return dict((await running.http.get(path)).json())

        async def over() -> bool:  # the connection closes first, and the rest of the session after it
            return (await session())["state"] == "failed"

        await until(over)
        assert (await session())["error"]["code"] == "livekit_unavailable"


async def test_a_lost_agent_without_another_fails_the_session(running: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.session.session_failover.MOVE_S", 0.5)
    async with running.live() as (_, line):
        running.agent.sessions.clear()
        running.agent.status = "warming"
        for socket in running.agent.every_socket:
            await socket.close(1012)
        assert (await line.wait("error"))["code"] == "agent_unavailable"
        assert await line.closed() == 1011


async def test_warnings_of_the_agent_reach_the_sender_and_debug(running: Stage) -> None:
    async with running.live() as (_, line):
        message = "This looks like float32."
        running.agent.only.emit(WarningEvent(code="wrong_format_suspected", message=message, suspicion="float32"))
        warning = await line.wait("warning")
        assert warning["suspicion"] == "float32"
        (session,) = (await running.http.get("/debug/audio")).json()["sessions"]
        assert session["source"]["format_suspicion"] == "float32"


async def test_events_between_two_connections_are_reported_to_the_next(running: Stage) -> None:
    running.agent.hold = True
    async with running.live() as (started, line):
        await line.say("audio.start")
        await line.socket.send(tone(0.1))
        await line.say("audio.end")
        await until(lambda: running.agent.only.segments and running.agent.only.segments[1].ended)
        line.cut()
        await line.closed()
    await until(lambda: running.app.state.context.sessions.registry.all()[0].live.outbox.connection is None)
    live = running.app.state.context.sessions.registry.get(started["session_id"]).live
    running.agent.release()
    await until(lambda: live.quiet)
    async with running.audio(started["audio_url"]) as again:
        assert (await again.wait("playback.finished"))["segment"] == 1
        assert again.messages[0]["type"] == "hello"


async def test_events_after_the_last_one_seen_are_sent_again(running: Stage) -> None:
    """What was written to a connection that was half open is lost to its client, who says how far it has read."""
    async with running.live() as (started, line):
        for number in (1, 2):
            await line.say("audio.start")
            await line.socket.send(tone(0.1))
            await line.say("audio.end")
            await until(lambda: len(line.of("playback.finished")) == number)  # noqa: B023
        events = [m for m in line.messages if "id" in m]
        line.cut()
        await line.closed()
    for seen in (0, events[1]["id"], events[-1]["id"]):
        async with running.audio(f"{started['audio_url']}&last_event_id={seen}") as again:
            await again.say("ping")
            await again.wait("pong")
            assert [m for m in again.messages if "id" in m] == [e for e in events if e["id"] > seen]
            assert not again.of("warning")


async def test_the_ids_of_both_event_streams_are_the_same(running: Stage) -> None:
    async with running.live() as (started, line):
        await line.socket.send(tone(0.1))
        finished = await line.wait("playback.finished")
        (begun,) = line.of("playback.started")
        after = f"/session/{started['session_id']}/events?last_event_id={begun['id']}"
        async with running.http.stream("GET", after) as stream:
            async with asyncio.timeout(NEVER_S):
                lines = [text async for text in until_data(stream)]
    assert lines[-3:-1] == [f"id: {finished['id']}", "event: playback.finished"]


async def until_data(stream: httpx.Response) -> AsyncIterator[str]:
    async for text in stream.aiter_lines():
        yield text
        if text.startswith("data:"):
            return


@pytest.mark.parametrize("seen", ["-1", "x", "٣", "9" * 21])
async def test_a_last_event_id_that_is_none_is_refused(running: Stage, seen: str) -> None:
    started = await running.start()
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with running.audio(f"{started['audio_url']}&last_event_id={seen}"):
            pass
    assert refused.value.response.status_code == 422
    assert json.loads(refused.value.response.body)["field"] == "Last-Event-ID"


async def test_a_reader_that_reads_nothing_is_closed_and_the_memory_bounded(running: Stage) -> None:
    started = await running.start()
    socket = await websockets.connect(started["audio_url"], proxy=None, compression=None, max_queue=1)
    try:
        live = running.app.state.context.sessions.registry.get(started["session_id"]).live
        connection = live.outbox.connection

        def flooded() -> bool:
            for _ in range(400):
                live.outbox.publish(WarningEvent(code="test", message="x" * 2000))
            return bool(connection.closing)

        await until(flooded)
        assert connection.overrun and connection.close_code == 1008
    finally:
        socket.transport.abort()


async def test_tokens_are_blotted_out_of_the_logs(running: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with running.live() as (started, line):
        await line.say("ping")
        await line.wait("pong")
    assert "WebSocket /audio" in caplog.text
    assert started["audio_url"].split("token=")[1] not in caplog.text
    assert started["viewer_token"] not in caplog.text


async def test_a_session_that_ends_while_the_connection_is_accepted_closes_it(
    running: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await running.start()
    sessions = running.app.state.context.sessions
    accept = WebSocket.accept

    async def stops_meanwhile(socket: WebSocket, *args: Any, **named: Any) -> None:
        await sessions.stop(sessions.registry.get(started["session_id"]))
        await accept(socket, *args, **named)

    monkeypatch.setattr(WebSocket, "accept", stops_meanwhile)
    async with running.audio(started["audio_url"]) as line:
        async with asyncio.timeout(NEVER_S):
            assert await line.closed() == 1001


async def test_a_fault_of_our_own_ends_the_connection_and_is_logged(
    running: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> None:
        raise LookupError("a bug")

    async with running.live() as (_, line):
        monkeypatch.setattr(AudioIngest, "push", breaks)
        await line.socket.send(tone(0.1))
        assert await line.closed() == 1011
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [LookupError]
