"""What the failover does with its ways out: which it opens, takes, leaves and closes, in which order, and what is said again."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from musetalk_agent.errors import PublisherUnavailable, PublishFailed
from musetalk_agent.media.playout import SwitchingClock
from musetalk_agent.media.segment import ROOM_RATE, Caption
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.protocol.problems import ErrorCode
from tests.musetalk_agent.publishers.fake_transports import ADDRESS, BLOCK, FIRST, World, world
from tests.waiting import NEVER_S, turns

__all__ = ["world"]

MODES = PublisherMode


async def on_air(world: World, **ways: object) -> None:
    """A session that is in its room."""
    await world.begin(**ways)
    await world.joined()
    await world.opening
    await world.passes(0.2)


async def test_a_start_in_the_room_is_no_change_and_the_picture_is_there_before_the_join(world: World) -> None:
    await world.begin(address=ADDRESS)
    assert world.log == ["join"] and world.publisher.name == "none"
    await world.joined()
    await world.opening
    publisher = world.publisher
    assert (publisher.name, publisher.transport.rung, publisher.transport.changes) == ("livekit", "livekit", 0)
    assert world.changes == [] and publisher.state.connected
    publisher.push_video(FIRST)
    assert world.room.pictures == [FIRST] and publisher.state.published_frames == 1
    await world.ends()
    assert world.log == ["join", "joined", "left"] and not publisher.state.connected and publisher.name == "livekit"


async def test_a_join_that_is_never_answered_is_a_start_on_the_stream_after_three_seconds(world: World) -> None:
    await world.begin(address=ADDRESS)
    await world.passes(2.8)
    assert world.streams == []
    await world.passes(0.4)
    assert world.log == ["join", "rtmp opens"] and not world.opening.done()
    world.stream.connects()
    await turns()
    await world.opening
    assert world.publisher.name == "rtmp"
    assert [(change.publisher, change.reason) for change in world.changes] == [("rtmp", "join_timeout")]
    await world.joined()  # at last
    assert world.publisher.name == "rtmp" and world.publisher._policy.state.value == "settling"
    await world.passes(0.4)
    assert world.publisher.name == "livekit" and world.log[-1] == "rtmp ended"
    await world.ends()


async def test_a_start_with_no_way_that_answers_fails_with_the_address_and_what_to_look_at(world: World) -> None:
    await world.begin()
    await world.passes(10.2)
    with pytest.raises(PublishFailed) as failed:
        await world.opening
    assert failed.value.code is ErrorCode.LIVEKIT_UNAVAILABLE and failed.value.value == "ws://sfu.example"
    assert "join_timeout" in failed.value.detail and "LIVEKIT_URL" in failed.value.detail
    await world.ends()


async def test_a_session_that_is_stopped_while_it_starts_ends_and_leaves_nothing(world: World) -> None:
    await world.begin(address=ADDRESS, beside=True)
    assert world.log == ["rtmp opens", "join"]
    async with asyncio.timeout(NEVER_S):
        await world.publisher.aclose()
        await world.publisher.aclose()
    with pytest.raises(PublishFailed):
        await world.opening
    assert sorted(world.log[2:]) == ["left", "rtmp ended"]
    world.stream.connects()  # too late: nothing follows from it
    assert world.publisher.name == "none" and world.changes == []


async def test_a_token_that_is_refused_is_reported_as_the_room_reported_it(world: World) -> None:
    await world.begin()
    await world.refused(world.refusal(401))
    with pytest.raises(PublishFailed, match="the agent could not publish"):
        await world.opening
    assert len(world.rooms) == 1 and world.publisher._policy.reason == "join_refused"
    await world.ends()


@pytest.mark.parametrize(
    ("answers", "error", "opens"),
    [(True, RuntimeError("panic"), "whip opens"), (False, RuntimeError("panic"), "rtmp opens")],
)
async def test_an_sdk_that_fails_at_once_is_tried_by_whip_only_where_the_server_answers(
    world: World, answers: bool, error: Exception, opens: str
) -> None:
    world.answers = answers
    await world.begin(address=ADDRESS)
    await world.refused(error)
    assert world.log == ["join", "left", opens] or world.log == ["join", opens, "left"]
    world.streams[-1].connects()
    await world.opening
    assert world.publisher.name == opens.split()[0]
    await world.ends()
    assert world.streams[-1].closed


async def test_a_room_that_falls_silent_opens_the_stream_then_takes_it_and_says_again_what_was_not_heard(
    world: World,
) -> None:
    await on_air(world, address=ADDRESS)
    await world.says(25)
    heard_at = world.clock.now()
    await world.passes(1.2, silent=True)
    assert world.log[-1] == "rtmp opens" and world.publisher.name == "livekit"
    await world.says(5)
    await world.passes(0.4, silent=True)
    assert world.publisher.name == "none" and world.publisher.playout.time_of(10**7) == math.inf
    assert len(world.rewinds) == 1 and world.rewinds[0] <= round((heard_at - 0.2) * ROOM_RATE)
    waiting = asyncio.create_task(world.publisher.push_audio(BLOCK))
    await turns()
    assert not waiting.done()  # nothing is handed over while nothing carries
    world.stream.connects()
    await turns()
    await world.clock.run(world.clock.now() + 0.1)
    await waiting
    assert world.publisher.name == "rtmp" and [len(block) for _, block in world.stream.heard] == [1920]
    assert [change.publisher for change in world.changes] == ["none", "rtmp"] and world.log.count("left") == 1
    await world.ends()


class Cuts:
    """A `MediaTap` that keeps since when nothing is heard."""

    def __init__(self) -> None:
        self.since: list[float] = []

    def offer_audio(self, at: float, block: Pcm) -> None:
        pass

    def offer_video(self, at: float, frame: VideoFrame) -> None:
        pass

    def clear_audio(self, since: float) -> None:
        self.since.append(since)


async def test_a_film_keeps_what_a_stream_was_given_before_an_interruption(world: World) -> None:
    await world.begin(PublisherMode.RTMP, address=ADDRESS)
    world.stream.connects()
    await turns()
    await world.opening
    world.publisher.tap = film = Cuts()
    now = world.clock.now()
    world.publisher.clear_audio()  # the stream has nothing: from now on
    world.stream.pushed_until = now + 0.1
    world.publisher.clear_audio()  # its viewers hear what was pushed ahead
    world.stream.pushed_until = now - 5
    world.publisher.clear_audio()
    assert film.since == [now, now + 0.1, now]
    await world.ends()


async def test_a_moment_of_silence_opens_a_stream_and_closes_it_and_says_nothing_again(world: World) -> None:
    await on_air(world, address=ADDRESS)
    await world.passes(1.2, silent=True)
    await world.passes(0.4)
    assert world.log[-2:] == ["rtmp opens", "rtmp ended"] and world.publisher.name == "livekit"
    assert world.rewinds == [] and world.changes == []
    await world.ends()


async def test_without_another_way_the_voice_waits_for_the_room_and_the_session_is_lost_after_two_minutes(
    world: World,
) -> None:
    await on_air(world)
    await world.passes(1.6, silent=True)
    assert world.publisher.name == "none" and world.lost == []
    for room in range(60):
        await world.passes(2.2, silent=True)
        if world.lost:
            break
        if not world.room.answer.done() and room % 2:
            await world.refused(PublishFailed("no answer"))
    assert world.lost == ["nothing_reachable"] and world.publisher.state.error == "nothing_reachable"
    assert 120 <= world.clock.now() < 126
    await world.ends()


@pytest.mark.parametrize("reason", ["PARTICIPANT_REMOVED", "ROOM_DELETED", "DUPLICATE_IDENTITY", "ROOM_CLOSED"])
async def test_an_avatar_that_was_sent_away_does_not_come_back(world: World, reason: str) -> None:
    await on_air(world, address=ADDRESS)
    assert world.room.lost is not None
    world.room.lost(reason)
    await turns()
    assert world.lost == [reason] and len(world.rooms) == 1 and world.streams == []
    assert world.publisher.name == "none" and not world.publisher.state.connected
    world.room.lost(reason)  # a room that is not ours any more says nothing
    assert world.lost == [reason]
    await world.ends()


async def test_another_end_of_the_connection_is_a_loss_and_the_next_room_has_the_newest_token(world: World) -> None:
    await on_air(world)
    assert world.room.lost is not None
    world.room.token = "token-2"
    world.room.state.acknowledged_frames = 70
    world.room.lost("SIGNAL_CLOSE")
    await turns()
    assert world.lost == [] and len(world.rooms) == 2 and world.room.options.token == "token-2"
    await world.joined()
    await world.passes(0.2)
    assert world.publisher.name == "livekit"
    assert [(change.publisher, change.reason) for change in world.changes] == [
        ("none", "room_lost SIGNAL_CLOSE"),
        ("livekit", "joined"),
    ]
    world.room.state.acknowledged_frames = 5
    await world.passes(0.2)
    assert world.publisher.state.acknowledged_frames == 75
    await world.ends()


async def test_modes_are_refused_where_there_is_no_such_way(world: World) -> None:
    await on_air(world)
    with pytest.raises(PublisherUnavailable) as refused:
        world.publisher.set_mode(MODES.RTMP)
    assert (refused.value.field, refused.value.value) == ("mode", "rtmp") and "rtmp_url" in refused.value.detail
    assert world.publisher.transport.mode is MODES.AUTO
    await world.ends()


async def test_a_session_without_a_room_has_its_stream_only(world: World) -> None:
    await world.begin(address=ADDRESS, joins=False)
    assert world.log == ["rtmp opens"] and world.publisher.transport.mode is MODES.RTMP
    world.stream.connects()
    await world.opening
    for mode in (MODES.AUTO, MODES.WEBRTC):
        with pytest.raises(PublisherUnavailable, match="connect_livekit"):
            world.publisher.set_mode(mode)
    await world.passes(30)
    assert world.rooms == [] and world.publisher.state.viewers == 1  # who watches a stream is not known
    await world.ends()


async def test_to_rtmp_by_hand_the_room_carries_until_the_stream_does(world: World) -> None:
    await on_air(world, address=ADDRESS)
    world.publisher.set_mode(MODES.RTMP)
    assert world.publisher.name == "livekit" and world.log[-1] == "rtmp opens"
    await world.says(3)
    assert len(world.room.heard) == 3
    world.stream.connects()
    await turns()
    assert world.publisher.name == "rtmp" and world.log[-1] == "left"
    world.publisher.set_mode(MODES.WEBRTC)
    await world.joined()
    await world.passes(0.4)
    assert world.publisher.name == "livekit" and world.log[-1] == "rtmp ended"
    assert [change.publisher for change in world.changes] == ["rtmp", "livekit"]
    await world.ends()


async def test_a_stream_that_breaks_is_awaited_and_the_room_is_probed_meanwhile(world: World) -> None:
    await world.begin(address=ADDRESS, probe_token="hidden")
    await world.passes(3.2)
    world.stream.connects()
    await world.opening
    await world.refused(PublishFailed("no answer"))
    await world.passes(0.2)
    (probe,) = world.probes
    assert (probe.token, probe.closed) == ("hidden", False)
    world.stream.breaks()
    await turns()
    assert world.publisher.name == "none" and world.changes[-1].reason == "stream_lost"
    world.stream.connects()
    assert world.publisher.name == "rtmp" and len(world.streams) == 1
    probe.report(False)
    assert len(world.rooms) == 1
    probe.report(True)
    await turns()
    assert len(world.rooms) == 2 and probe.closed
    await world.ends()


async def test_the_room_is_not_joined_before_a_push_of_the_same_identity_has_ended(world: World) -> None:
    await world.begin(MODES.RTMP, address=ADDRESS, ingress=True)
    world.stream.connects()
    await world.opening
    world.stream.may_end.clear()
    world.publisher.set_mode(MODES.WEBRTC)
    for _ in range(20):
        await world.passes(0.4)
    assert world.log[-1] != "join" and "join" not in world.log
    world.stream.may_end.set()
    await turns()
    assert world.log[-2:] == ["rtmp ended", "join"]
    await world.joined()
    assert world.publisher.name == "livekit"
    await world.ends()


async def test_a_room_that_hangs_at_the_end_does_not_hold_the_end_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musetalk_agent.publishers.failover.transports._CLOSE_S", 0.05)
    await on_air(world, address=ADDRESS, beside=True)
    world.room.stays = True
    async with asyncio.timeout(NEVER_S):
        await world.publisher.aclose()
    assert world.stream.closed and not world.publisher.state.connected
    for task in list(world.publisher._transports._tasks):
        task.cancel()
    await turns()


async def test_a_block_that_waited_while_the_sound_was_cleared_is_dropped(world: World) -> None:
    await world.begin()
    pushing = asyncio.create_task(world.publisher.push_audio(BLOCK))
    await turns()
    assert world.publisher.clear_audio() == 0
    await world.joined()
    await pushing
    assert world.room.heard == [] and world.publisher.playout.enqueued == 0
    await world.says()
    assert len(world.room.heard) == 1 and world.publisher.playout.enqueued == 1920
    await world.ends()


async def test_captions_and_attributes_go_to_the_room_and_to_the_next_one(world: World) -> None:
    await world.begin(address=ADDRESS)
    world.publisher.push_caption(Caption("1", "lost"))
    await world.publisher.set_state("speaking")
    await world.joined()
    assert world.room.attribute == "speaking"
    world.publisher.push_caption(Caption("1", "hello"))
    assert world.room.captions == [Caption("1", "hello")]
    await world.publisher.set_state("idle")
    assert world.room.attribute == "idle"
    await world.ends()


async def test_in_a_room_that_was_just_joined_the_voice_waits_a_second_for_ears(world: World) -> None:
    await world.begin()
    world.room.state.viewers = 1
    await world.joined()
    await world.passes(0.8)
    assert not world.publisher._flow.is_set()
    await world.passes(0.4)
    assert world.publisher._flow.is_set()  # who does not listen by now is not waited for
    await world.ends()


async def test_where_somebody_listened_the_next_room_waits_four_seconds_for_them_to_come_again(world: World) -> None:
    await on_air(world)
    world.room.state.viewers, world.room.state.subscribed = 1, True
    await world.passes(0.2)
    for returns_after_s in (3.6, None):
        assert world.room.lost is not None
        world.room.lost("SIGNAL_CLOSE")
        await turns()
        await world.joined()
        await world.passes(returns_after_s or 3.8)
        assert world.publisher.name == "livekit" and not world.publisher._flow.is_set()
        if returns_after_s:
            world.room.state.viewers, world.room.state.subscribed = 1, True
        await world.passes(0.4)
        assert world.publisher._flow.is_set()
    await world.ends()


async def test_a_stream_beside_tells_whether_it_is_live_and_is_opened_before_the_room(world: World) -> None:
    await on_air(world, address=ADDRESS, beside=True)
    assert world.log[:2] == ["rtmp opens", "join"] and world.publisher.transport.beside == "retrying"
    world.stream.connects()
    await world.passes(0.2)
    assert world.publisher.transport.beside == "live" and world.publisher.name == "livekit"
    await world.says(2)
    assert len(world.room.heard) == len(world.stream.heard) == 2
    world.stream.breaks()
    await world.passes(0.2)
    assert world.publisher.transport.beside == "retrying" and world.changes == []
    await world.ends()


async def test_a_tick_that_breaks_is_not_the_last(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await on_air(world)
    ticks: list[int] = []

    def breaks(*_: object) -> None:
        ticks.append(1)
        raise RuntimeError("a fault")

    with monkeypatch.context() as patched:
        patched.setattr(world.publisher._heard, "note", breaks)
        await world.passes(0.4)
    assert len(ticks) == 2
    await world.passes(1.6, silent=True)
    assert world.publisher.name == "none"
    await world.ends()


async def test_a_clock_that_is_held_knows_no_time_for_what_comes_and_that_of_what_was_handed_over(world: World) -> None:
    clock = SwitchingClock(world.clock, ROOM_RATE, grain_s=0.0, audio_delay_s=0.035)
    clock.enqueue(4800)
    clock.held = True
    assert clock.time_of(4799) == pytest.approx(4799 / ROOM_RATE + 0.035) and clock.time_of(4800) == math.inf
    assert clock.leaves_at(0) == 0.0 and clock.leaves_at(9000) == math.inf
    clock.held = False
    clock.set_audio_delay(0.0)
    assert clock.time_of(4800) == pytest.approx(0.1) and np.isfinite(clock.leaves_at(9000))
