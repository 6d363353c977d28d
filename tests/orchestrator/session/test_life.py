"""The life of sessions on virtual time: what each way into it and out of it tells, takes, waits for and leaves behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from musetalk_agent.protocol.http import AudioSource, PublisherMode, SessionState
from musetalk_agent.protocol.messages import Hello, StateChanged
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.session.model import ManagedSession
from orchestrator.session.session_failover import LATE_STOP_S
from orchestrator.store.session_store import StoredSession
from tests.fakes.agent_server import FakeAgent
from tests.fakes.memory_store import MemoryStore
from tests.orchestrator.session.world import RATE, World, say, speech, world
from tests.virtual_loop import EPOCH_S, passes, virtually


def counted(here: World, name: str, **labels: str) -> float:
    return here.metrics.registry.get_sample_value(name, labels) or 0.0


async def refused(start: asyncio.Task[ManagedSession]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await start
    return caught.value


# --- starts


@virtually
async def test_a_start_makes_the_room_takes_a_place_and_writes_the_session_down() -> None:
    async with world(agents=1) as here:
        session = await here.start(room="lobby")
        assert session.session_id.startswith("ses_") and len(session.session_id) == 20
        assert here.rooms.made == ["lobby"] and session.base_state is SessionState.READY
        assert here.agent_of(session).only.request.room == "lobby"
        record = here.store.records[session.session_id]
        assert (record.room, record.owner, record.ended) == ("lobby", here.journal.owner, False)
        assert counted(here, "avatar_session_starts_total", outcome="ok") == 1
        assert here.sessions.registry.get(session.session_id) is session


@pytest.mark.parametrize(
    ("breaks", "code"),
    [
        ("rooms", ErrorCode.LIVEKIT_UNAVAILABLE),
        ("agent dead", ErrorCode.AGENT_UNAVAILABLE),
        ("agent full", ErrorCode.AT_CAPACITY),
        ("avatar", ErrorCode.AVATAR_EMPTY),
        ("link", ErrorCode.AGENT_UNAVAILABLE),
    ],
)
def test_a_start_that_fails_has_its_code_and_leaves_nothing(breaks: str, code: ErrorCode) -> None:
    @virtually
    async def played() -> None:
        async with world(agents=1) as here:
            ((url, agent),) = here.agents.items()
            here.rooms.broken = breaks == "rooms"
            agent.refuse_link = breaks == "link"
            if breaks == "agent dead":
                here.network.kill(url)
            elif breaks == "agent full":
                agent.sessions_max = 0
            elif breaks == "avatar":
                agent.start_error = ProblemError(ErrorCode.AVATAR_EMPTY, "No frame in it.")
            assert (await refused(asyncio.create_task(here.start()))).code is code
            await asyncio.sleep(1)
            assert here.sessions.registry.all() == [] and here.pool._held == {}
            assert agent.sessions == {} and here.store.records == {} and here.store.leases == {}
            assert counted(here, "avatar_session_starts_total", outcome=code.value) == 1

    played()


@virtually
async def test_a_caller_that_leaves_takes_its_start_with_it() -> None:
    async with world(agents=1) as here:
        (agent,) = here.agents.values()
        agent.may_start.clear()
        starting = asyncio.create_task(here.start())
        await asyncio.sleep(3)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        (session,) = here.sessions.registry.all() or [None]
        assert session is None, "no client knows of it"
        agent.may_start.set()
        await asyncio.sleep(1)
        assert agent.sessions == {} and len(agent.stopped) == 1, "the agent was through with it: it is stopped there"


@virtually
async def test_nothing_begins_while_the_service_shuts_down() -> None:
    async with world() as here:
        session = await here.start()
        here.sessions.draining = True
        problem = await refused(asyncio.create_task(here.start()))
        assert (problem.code, problem.retry_after_s) == (ErrorCode.DRAINING, 5)
        assert session.base_state is SessionState.READY, "what runs goes on"


@pytest.mark.parametrize(("seconds", "within_s", "takes_s"), [(0.0, 20.0, 0.0), (3.0, 20.0, 3.0), (60.0, 20.0, 20.0)])
def test_draining_waits_for_speech_and_no_longer(seconds: float, within_s: float, takes_s: float) -> None:
    @virtually
    async def played() -> None:
        async with world() as here:
            session = await here.start()
            if seconds:
                session.running().audio_start()
                say(session, speech(seconds))
                session.running().audio_end()
            begun = time.monotonic()
            await here.sessions.drain(within_s)
            assert time.monotonic() - begun == pytest.approx(takes_s, abs=0.3)

    played()


@virtually
async def test_draining_that_is_given_up_leaves_the_speech_as_it_is() -> None:
    async with world() as here:
        session = await here.start()
        session.running().audio_start()
        say(session, speech(10.0))
        draining = asyncio.create_task(here.sessions.drain(1000.0))
        await passes(2.0)
        assert not draining.done()
        draining.cancel()
        await asyncio.wait({draining})
        assert draining.cancelled() and here.sessions.draining
        assert session.base_state is SessionState.READY and here.agent_of(session).only.segments[1].end == 10 * RATE


# --- ends


@virtually
async def test_stop_tells_every_step_and_is_harmless_twice() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        (agent,) = here.agents.values()
        connection = session.running().connect(RATE)
        session.running().audio_start()
        say(session, speech(10.0))
        await asyncio.sleep(1.0)
        await asyncio.gather(here.sessions.stop(session), here.sessions.stop(session, "shutdown"))
        await here.sessions.stop(session)
        assert here.states(session) == ["ready", "draining", "stopped"] and session.end_reason == "stopped"
        (finished,) = here.events(session, "playback.finished")
        assert finished["interrupted"] and finished["position_s"] == pytest.approx(1.0, abs=0.2)
        assert agent.sessions == {} and agent.stopped == [session.session_id]
        messages = []
        while (message := await connection.take()) is not None:
            messages.append(message.type)
        assert messages == ["hello", "playback.started", "ack", "session.state", "playback.finished"]
        assert connection.close_code == 1001
        with pytest.raises(ProblemError, match=r"is stopped \(stopped\): start another one"):
            session.running()


@pytest.mark.parametrize(
    ("options", "fields", "agent_has", "reason", "at_s"),
    [
        ({"idle_ttl_s": 30.0}, {}, {}, "idle", 30.0),
        ({"viewer_grace_s": 12.0}, {}, {"viewers": 0}, "no_viewers", 12.0),
        ({"max_s": 40}, {}, {}, "expired", 40.0),
        (
            {"speaker_grace_s": 9.0},
            {"audio_source": AudioSource.DATASTREAM, "speaker": "bot"},
            {},
            "speaker_left",
            9.0,
        ),
        ({"viewer_grace_s": 5.0, "idle_ttl_s": 50.0}, {"connect_livekit": False}, {"viewers": 0}, "idle", 50.0),
    ],
)
def test_a_session_that_nobody_uses_ends_at_its_deadline(
    options: dict[str, float], fields: dict[str, object], agent_has: dict[str, int], reason: str, at_s: float
) -> None:
    @virtually
    async def played() -> None:
        async with world(agents=1, **options) as here:
            for name, value in agent_has.items():
                setattr(*here.agents.values(), name, value)
            session = await here.start(**fields)
            await asyncio.sleep(at_s - 0.5)
            assert not session.ended
            await asyncio.sleep(1.5)
            assert session.ended and session.end_reason == reason and session.error is None
            assert session.ended_at == pytest.approx(EPOCH_S + at_s, abs=1.0)
            assert counted(here, "avatar_session_ends_total", reason=reason) == 1

    played()


@virtually
async def test_speech_that_is_still_heard_keeps_a_session_from_being_idle() -> None:
    async with world(agents=1, idle_ttl_s=30.0) as here:
        session = await here.start()
        session.running().audio_start()
        say(session, speech(60.0))
        session.running().audio_end()
        await asyncio.sleep(80.0)
        assert not session.ended, "a minute of speech, and then half a minute of nothing"
        await asyncio.sleep(20.0)
        assert session.end_reason == "idle"


@virtually
async def test_the_end_of_the_process_ends_what_no_other_process_can_take() -> None:
    async with world() as here:
        sessions = [await here.start(room=f"r{n}") for n in range(3)]
        await here.sessions.aclose()
        assert {session.end_reason for session in sessions} == {"shutdown"}
        assert all(agent.sessions == {} for agent in here.agents.values())
        assert sorted(room for room, _ in here.rooms.removed) == ["r0", "r1", "r2"]


@virtually
async def test_a_session_without_a_room_removes_nobody_from_one() -> None:
    async with world() as here:
        session = await here.start(connect_livekit=False)
        await here.sessions.stop(session)
        assert here.rooms.removed == []


# --- the agent is lost


async def kill(here: World, session: ManagedSession) -> FakeAgent:
    agent = here.agent_of(session)
    assert session.lease is not None
    here.network.kill(session.lease.base_url)
    return agent


async def hang(here: World, session: ManagedSession) -> FakeAgent:
    agent = here.agent_of(session)
    agent.hung = True
    return agent


async def lose_engine(here: World, session: ManagedSession) -> FakeAgent:
    agent = here.agent_of(session)
    agent.only.error = {"code": "engine_failed", "detail": "the device is gone"}
    for socket in list(agent.only.sockets):
        await socket.close(1001)
    return agent


async def forget(here: World, session: ManagedSession) -> FakeAgent:
    agent = here.agent_of(session)
    agent.sessions.clear()
    assert session.lease is not None
    here.network.cut(session.lease.base_url)
    return agent


@pytest.mark.parametrize(
    ("loses", "cause"),
    [(kill, "link_lost"), (hang, "hung"), (lose_engine, "engine_failed"), (forget, "session_lost")],
)
def test_a_session_whose_agent_is_lost_goes_on_at_another(
    loses: Callable[[World, ManagedSession], object], cause: str
) -> None:
    @virtually
    async def played() -> None:
        async with world(agents=2) as here:
            session = await here.start()
            live = session.running()
            live.audio_start()
            say(session, speech(10.0))
            live.audio_end()
            await asyncio.sleep(4.0)
            before = await loses(here, session)  # type: ignore[misc]  # each is a coroutine function
            await asyncio.sleep(20.0)
            assert here.states(session) == ["ready", "recovering", "ready"]
            assert here.events(session, "session.state")[1]["reason"] == cause
            assert here.events(session, "session.state")[2]["reason"] == "moved"
            after = here.agent_of(session)
            assert after is not before and session.moves == 1 and session.agent_lost_at is not None
            segment = after.only.segments[1]
            assert 0 < segment.base <= 4.5 * RATE and segment.end == 10 * RATE, "it goes on where it was"
            (finished,) = here.events(session, "playback.finished")
            assert finished == {"segment": 1, "position_s": 10.0, "interrupted": False}
            assert len(here.events(session, "playback.started")) == 1, "no event is reported twice"
            assert counted(here, "avatar_session_moves_total", cause=cause) == 1

    played()


@virtually
async def test_an_agent_that_hangs_for_longer_is_not_asked_to_stop_any_more() -> None:
    async with world(agents=2) as here:
        session = await here.start()
        session.running().audio_start()
        say(session, speech(10.0))
        session.running().audio_end()
        await passes(2.0)
        before = await hang(here, session)
        await passes(LATE_STOP_S + 30.0)
        assert here.agent_of(session) is not before and not before.stopped
        before.hung = False
        await passes(30.0)
        assert not before.stopped, "it was given up, and ends at its own deadline"
        assert session.base_state is SessionState.READY and session.moves == 1


@virtually
async def test_an_error_of_the_session_itself_is_no_reason_to_move() -> None:
    async with world(agents=2) as here:
        session = await here.start()
        agent = here.agent_of(session)
        agent.only.error = {"code": "avatar_too_large", "detail": "It passes a limit."}
        for socket in list(agent.only.sockets):
            await socket.close(1001)
        await passes(2.0)
        assert session.base_state is SessionState.FAILED and session.moves == 0
        assert session.error is not None and session.error.code is ErrorCode.AVATAR_TOO_LARGE
        assert session.end_reason == "avatar_too_large"


@virtually
async def test_a_link_that_merely_drops_is_made_again_and_nothing_is_lost() -> None:
    async with world(agents=2) as here:
        session = await here.start()
        live = session.running()
        live.audio_start()
        say(session, speech(6.0))
        live.audio_end()
        for _ in range(3):
            await asyncio.sleep(1.5)
            assert session.lease is not None
            here.network.cut(session.lease.base_url)
        await asyncio.sleep(5.0)
        assert here.states(session) == ["ready"] and session.moves == 0
        assert here.agent_of(session).only.segments[1].pcm == speech(6.0) and live.link_drops == 3
        assert len(here.events(session, "playback.finished")) == 1


@virtually
async def test_without_another_agent_it_fails_after_twenty_seconds_with_what_was_open_reported() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        connection = session.running().connect(RATE)
        session.running().audio_start()
        say(session, speech(5.0))
        await kill(here, session)
        await asyncio.sleep(19.0)
        assert not session.ended and session.base_state is SessionState.RECOVERING
        await asyncio.sleep(3.0)
        assert session.base_state is SessionState.FAILED and session.end_reason == "agent_lost"
        assert session.error is not None and session.error.code is ErrorCode.AGENT_UNAVAILABLE
        assert "Start another one" in session.error.detail
        assert here.events(session, "playback.finished")[0]["interrupted"]
        assert here.events(session, "error")[0]["code"] == "agent_unavailable"
        while await connection.take() is not None:
            pass
        assert connection.close_code == 1011


@virtually
async def test_it_goes_back_to_the_only_agent_when_that_is_there_again() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        (url,) = here.agents
        await kill(here, session)
        await asyncio.sleep(10.0)
        here.restart(url)
        await asyncio.sleep(5.0)
        assert here.states(session) == ["ready", "recovering", "ready"]
        assert here.agents[url].only.request.session_id == session.session_id


@pytest.mark.parametrize(("earlier_s", "state"), [(0.0, SessionState.FAILED), (600.0, SessionState.READY)])
def test_a_sixth_move_within_ten_minutes_is_one_too_many(earlier_s: float, state: SessionState) -> None:
    @virtually
    async def played() -> None:
        async with world(agents=2) as here:
            session = await here.start(connect_livekit=False)
            for agent in here.agents.values():
                agent.pace = 0.0  # nobody speaks
            for move in range(6):
                await asyncio.sleep(5.0)
                if move == 5:
                    session.moved_at[:] = [at - earlier_s for at in session.moved_at]
                assert session.base_state is SessionState.READY and session.moves == move and session.lease is not None
                url = session.lease.base_url
                await kill(here, session)
                await asyncio.sleep(5.0)
                here.restart(url)
            assert session.base_state is state and session.moves == (5 if state is SessionState.FAILED else 6)
            if session.error is not None:
                assert "after 5 moves in 10 minutes" in session.error.detail

    played()


@virtually
async def test_an_agent_that_drains_hands_its_session_on_in_a_pause() -> None:
    async with world(agents=2) as here:
        session = await here.start()
        old = here.agent_of(session)
        session.running().audio_start()
        say(session, speech(3.0))
        session.running().audio_end()
        await asyncio.sleep(1.0)
        old.draining = True
        await asyncio.sleep(1.0)
        assert here.agent_of(session) is old, "it speaks"
        await asyncio.sleep(5.0)
        assert here.agent_of(session) is not old and here.states(session) == ["ready", "recovering", "ready"]
        assert here.events(session, "session.state")[1]["reason"] == "draining"
        assert here.events(session, "playback.finished")[0]["interrupted"] is False
        await asyncio.sleep(5.0)
        assert old.sessions == {}, "it was asked to stop it"


@virtually
async def test_a_stop_while_it_moves_ends_it() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        await kill(here, session)
        await asyncio.sleep(10.0)
        assert session.base_state is SessionState.RECOVERING
        await here.sessions.stop(session)
        assert here.states(session) == ["ready", "recovering", "draining", "stopped"]


@virtually
async def test_pcm_and_clears_while_it_moves_are_taken() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        (url,) = here.agents
        await kill(here, session)
        await asyncio.sleep(5.0)
        live = session.running()
        live.audio_start()
        say(session, speech(1.0, 7))
        assert await live.interrupt() == 1.0, "nobody has it but the orchestrator"
        live.audio_start()
        say(session, speech(2.0, 8))
        live.audio_end()
        here.restart(url)
        await asyncio.sleep(8.0)
        assert here.agents[url].only.pcm == speech(2.0, 8)
        assert [one["interrupted"] for one in here.events(session, "playback.finished")] == [True, False]


# --- what is asked of it in between


@virtually
async def test_the_publishers_mode_is_kept_over_a_move_and_refused_during_one() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        ((url, agent),) = here.agents.items()
        await here.sessions.set_publisher(session, PublisherMode.WEBRTC)
        assert agent.only.mode is PublisherMode.WEBRTC
        with pytest.raises(ProblemError) as caught:
            await here.sessions.set_publisher(session, PublisherMode.RTMP)
        assert caught.value.code is ErrorCode.PUBLISHER_UNAVAILABLE and session.publisher_mode is PublisherMode.WEBRTC
        await kill(here, session)
        await asyncio.sleep(5.0)
        with pytest.raises(ProblemError) as caught:
            await here.sessions.set_publisher(session, PublisherMode.AUTO)
        assert (caught.value.code, caught.value.retry_after_s) == (ErrorCode.SESSION_CONFLICT, 2)
        here.restart(url)
        await asyncio.sleep(5.0)
        assert session.base_state is SessionState.READY
        assert agent.only.request.publisher_mode is PublisherMode.WEBRTC


@virtually
async def test_a_newer_connection_takes_over_and_gets_what_the_older_one_missed() -> None:
    async with world() as here:
        session = await here.start()
        older = session.running().connect(RATE)
        assert isinstance(await older.take(), Hello)
        await kill(here, session)
        await asyncio.sleep(8.0)
        newer = session.running().connect(RATE)
        assert [type(await newer.take()) for _ in range(3)] == [Hello, StateChanged, StateChanged]
        kinds = []
        while (message := await older.take()) is not None:
            kinds.append(message.type)
        assert kinds == ["session.state", "session.state", "error"] and older.close_code == 1008


# --- other processes


@virtually
async def test_a_session_that_is_handed_over_goes_on_where_it_was() -> None:
    store = MemoryStore(durable=True)
    async with world(agents=1, store=store) as here:
        session = await here.start()
        live = session.running()
        live.audio_start()
        say(session, speech(4.0))
        live.audio_end()
        await passes(2.0)
        (agent,) = here.agents.values()
        await here.sessions.aclose()
        record = store.records[session.session_id]
        assert (record.owner, record.ended, record.progress.unfinished) == ("", False, {1: True})
        assert here.store._holder(session.session_id) is None
        assert session.session_id in agent.sessions and here.rooms.removed == []
        assert not here.sessions.registry.holds(session.session_id) and here.pool._held == {}

        here.sessions.draining = False
        assert await store.claim(session.session_id, here.journal.owner, 10.0)
        again = here.sessions.adopt(record)
        await again.started
        await asyncio.sleep(4.0)
        assert again.adopted and again.moves == 0 and agent.only.connections == 2
        (finished,) = here.events(again, "playback.finished")
        assert finished == {"segment": 1, "position_s": 4.0, "interrupted": False}
        assert len(here.events(again, "playback.started")) == 1


@virtually
async def test_a_session_that_another_one_has_taken_ends_here_only() -> None:
    store = MemoryStore(shared=True, durable=True)
    async with world(agents=1, store=store) as here:
        session = await here.start()
        (agent,) = here.agents.values()
        record: StoredSession = store.records[session.session_id]
        store.records[session.session_id] = record.model_copy(update={"owner": "another"})
        store.leases[session.session_id] = "another", time.monotonic() + 1e6
        await asyncio.sleep(5.0)
        assert session.end_reason == "handed_over" and session.owner is not None and session.owner.done()
        assert session.session_id in agent.sessions and agent.stopped == [] and here.rooms.removed == []
        assert not here.sessions.registry.holds(session.session_id)
        assert store.records[session.session_id].owner == "another"


@virtually
async def test_a_store_that_fails_ends_no_session_and_is_filled_again() -> None:
    async with world(agents=1) as here:
        session = await here.start()
        here.store.failing = True
        await asyncio.sleep(60.0)
        assert here.journal.failing and not session.ended
        other = await here.start(room="begun without it")
        here.store.failing = False
        await asyncio.sleep(5.0)
        assert not here.journal.failing
        assert set(here.store.records) == {session.session_id, other.session_id}


@virtually
async def test_a_shared_store_that_fails_lets_nothing_new_begin() -> None:
    store = MemoryStore(shared=True, durable=True)
    async with world(agents=1, store=store) as here:
        session = await here.start()
        store.failing = True
        problem = await refused(asyncio.create_task(here.start()))
        assert problem.code is ErrorCode.STORE_UNAVAILABLE and problem.retry_after_s == 2
        await passes(30.0)
        assert not session.ended
        store.failing = False
        await asyncio.sleep(5.0)
        assert set(store.records) == {session.session_id}
