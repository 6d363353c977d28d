"""What the session says of its quality, and what it asks of the way out in use: once a second, and anew for each way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from musetalk_agent.agent_metrics import ADAPTATION_STEP
from musetalk_agent.protocol.http import Transport
from musetalk_agent.publishers.base import MediaTaps
from musetalk_agent.publishers.failover.quality import STEPS, QualityController
from musetalk_agent.publishers.livekit.stats import TransportStats
from musetalk_agent.publishers.stream.sink import StreamOptions
from tests.musetalk_agent.publishers.fake_transports import ADDRESS, FIRST, FakeRoom, FakeStream, World, world

__all__ = ["world"]

BITRATE = 1_500_000


def sessions(step: int) -> float:
    return float(ADAPTATION_STEP.labels(str(step))._value.get())


class Watched:
    """A watch, its time, and the transport that it describes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.transport = Transport()
        self.watch = QualityController(BITRATE, 25, self.now)

    def looks(self, sink: FakeRoom | FakeStream | None, seconds: float, *, bad: bool = False) -> None:
        """Looks five times a second, while the way is bad or good."""
        for _ in range(round(seconds * 5)):
            self.now += 0.2
            if isinstance(sink, FakeStream):
                sink.state.queue_s = 0.45 if bad else 0.05
                sink.state.frames_sent += 5
            elif sink is not None:
                before = sink.reading
                sink.reading = TransportStats(
                    frames_sent=before.frames_sent + 5,
                    bytes_sent=before.bytes_sent + 20_000,
                    available_bitrate=0 if bad else 2 * BITRATE,
                    limited=bad,
                    width=64,
                    height=64,
                )
            self.watch.look(sink, FIRST, self.transport, self.now)


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.watch.close()


async def a_room(world: World) -> FakeRoom:
    await world.begin()
    await world.joined()
    return world.room


def a_stream(world: World) -> FakeStream:
    return FakeStream(world, "rtmp", StreamOptions("", 25, 64, 64, BITRATE), lambda: None)


async def test_frames_are_wanted_by_a_rooms_subscribers_by_streams_and_by_recordings(world: World) -> None:
    await world.begin(address=ADDRESS)
    await world.joined()
    room, publisher = world.room, world.publisher

    def watched() -> bool:
        publisher.push_video(FIRST)
        return publisher.state.watched

    assert watched()
    room.state.watched = False
    assert not watched()
    room.state.reconnecting = True  # what is known of its subscribers was known before
    assert watched()
    room.state.reconnecting = False
    publisher.tap = MediaTaps()
    assert watched()
    publisher.tap = None
    assert not watched()
    world.publisher._transports.open_stream()
    assert watched()
    await world.ends()


async def test_a_room_is_described_in_frames_and_bits_a_second(world: World, watched: Watched) -> None:
    room = await a_room(world)
    watched.looks(room, 3)
    reported = watched.transport
    assert (reported.width, reported.height, reported.fps, reported.bitrate, reported.adaptation) == (
        64,
        64,
        25.0,
        800_000,
        0,
    )
    room.reading = TransportStats()  # counts that begin anew are no negative rate
    watched.watch.look(room, FIRST, reported, watched.now + 1.0)
    assert (reported.fps, reported.bitrate, reported.width) == (0.0, 0, None)
    await world.ends()


async def test_a_stream_is_described_with_the_size_of_its_pictures(world: World, watched: Watched) -> None:
    watched.looks(a_stream(world), 3)
    reported = watched.transport
    assert (reported.width, reported.height, reported.fps, reported.bitrate) == (64, 64, 25.0, BITRATE)


async def test_a_room_gets_smaller_pictures_and_a_stream_fewer_bits(world: World, watched: Watched) -> None:
    room = await a_room(world)
    watched.looks(room, 4, bad=True)
    assert watched.transport.adaptation == 0  # the estimation of a new connection begins low
    watched.looks(room, 12, bad=True)
    assert watched.transport.adaptation == len(STEPS) - 1
    asked = [line for line in world.log if line.startswith("quality")]
    assert asked == ["quality 1.0 1", "quality 1.0 1", "quality 0.75 1", "quality 0.5 1", "quality 0.5 2"]
    await world.ends()
    stream = a_stream(world)
    watched.looks(stream, 10, bad=True)
    asked = [line for line in world.log if line.startswith("rtmp bitrate")]
    assert asked[:3] == [f"rtmp bitrate {bits}" for bits in (1_500_000, 900_000, 525_000)]


async def test_another_way_begins_at_full_quality(world: World, watched: Watched) -> None:
    room, stream = await a_room(world), a_stream(world)
    watched.looks(room, 9, bad=True)
    assert watched.transport.adaptation >= 1
    watched.looks(stream, 2)
    assert watched.transport.adaptation == 0 and world.log[-1] == f"rtmp bitrate {BITRATE}"
    watched.looks(None, 3)
    watched.looks(room, 2)
    assert watched.transport.adaptation == 0
    await world.ends()


async def test_each_session_is_counted_at_its_step_and_no_longer_than_it_lasts(world: World) -> None:
    before = [sessions(step) for step in range(len(STEPS))]
    one, other = Watched(), Watched()
    assert sessions(0) == before[0] + 2
    one.looks(a_stream(world), 8, bad=True)
    step = one.transport.adaptation
    assert step > 0 and (sessions(0), sessions(step)) == (before[0] + 1, before[step] + 1)
    one.watch.close()
    other.watch.close()
    assert [sessions(step) for step in range(len(STEPS))] == before


async def test_nothing_is_said_more_than_once_a_second(world: World, watched: Watched) -> None:
    stream = a_stream(world)
    watched.looks(stream, 0.8)
    assert watched.transport.fps is None
    watched.looks(stream, 0.6)
    fps = watched.transport.fps
    stream.state.frames_sent += 1000
    watched.looks(stream, 0.4)
    assert fps is not None and watched.transport.fps == fps
