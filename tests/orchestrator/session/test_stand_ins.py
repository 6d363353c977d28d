"""A session whose agent is lost, and the voice that speaks meanwhile: real sessions on virtual time, a voice that is a fake."""

from __future__ import annotations

from orchestrator.session.standby_voice import VoiceStandby
from orchestrator.voice.worker_messages import JoinRoom, LeaveRoom, SegmentPcm
from tests.orchestrator.session.world import RATE, say, speech, world
from tests.virtual_loop import passes, virtually


@virtually
async def test_the_lost_agents_sound_is_muted_and_the_voice_leaves_when_the_next_one_speaks() -> None:
    async with world(agents=2, standby=VoiceStandby.WARM) as here:
        session = await here.start()
        assert here.voices.lines == [], "it joins when it is needed"
        live = session.running()
        live.audio_start()
        say(session, speech(10.0))
        live.audio_end()
        await passes(4.0)
        assert session.lease is not None
        here.network.kill(session.lease.base_url)
        await passes(20.0)
        assert here.rooms.muted == ["TR_a"], "of both its tracks the one with sound"
        kinds = [type(order) for order in here.voices.orders]
        assert kinds[0] is JoinRoom and kinds.count(JoinRoom) == kinds.count(LeaveRoom) == 1
        said = [order for order in here.voices.orders if isinstance(order, SegmentPcm)]
        assert said and 3.5 * RATE <= said[0].start <= 4.5 * RATE, "it was given what the agent had not said"
        assert here.voices.lines == [] and session.moves == 1
        assert here.metrics.voice_stand_ins._value.get() == 1
        (finished,) = here.events(session, "playback.finished")
        assert finished == {"segment": 1, "position_s": 10.0, "interrupted": False}
        await here.sessions.stop(session)
        assert len(here.voices.orders) == len(kinds), "it had left before"


@virtually
async def test_without_an_agent_the_voice_stays_until_the_session_ends() -> None:
    async with world(agents=1, standby=VoiceStandby.WARM) as here:
        session = await here.start()
        session.running().audio_start()
        say(session, speech(10.0))
        await passes(2.0)
        assert session.lease is not None
        here.network.kill(session.lease.base_url)
        await passes(5.0)
        assert len(here.voices.lines) == 1
        await here.sessions.stop(session)
        assert isinstance(here.voices.orders[-1], LeaveRoom) and here.voices.lines == []
