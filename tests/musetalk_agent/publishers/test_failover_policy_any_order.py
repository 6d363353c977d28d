"""What must hold of the failover's state machine whatever happens, in whatever order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.protocol.http import PublisherMode as Mode
from musetalk_agent.publishers.failover import policy as w
from musetalk_agent.publishers.failover.policy import (
    Action,
    AvailableTransports,
    Event,
    FailoverPolicy,
    State,
    TransportKind,
)
from tests.musetalk_agent.publishers.policy_stand import ALONE, BESIDE, INGRESS, PLAIN, TICK_S, Stand


@dataclass
class World:
    """What the acts have led to: who publishes under the identity."""

    ways: AvailableTransports
    room: bool = False
    joining: bool = False
    stream: bool = False
    whip: bool = False

    def take(self, acts: list[Action]) -> None:
        for act in acts:
            match act:
                case Action.JOIN:
                    assert not self.joining, "two joins of one identity"
                    assert not self.room, "a join although the room is joined"
                    self.joining = True
                case Action.LEAVE_ROOM:
                    assert self.room
                    self.room = False
                case Action.OPEN_STREAM:
                    self.stream = True
                case Action.CLOSE_STREAM:
                    self.stream = False
                case Action.OPEN_WHIP:
                    self.whip = True
                case Action.CLOSE_WHIP:
                    self.whip = False
                case _:
                    pass
        inside = [self.room or self.joining, self.whip, self.stream and self.ways.ingress]
        assert sum(inside) <= 1, f"two publishers of one identity: {inside}"

    def possible(self, event: Event) -> bool:
        match event:
            case Event.JOINED | Event.JOIN_FAILED | Event.JOIN_BROKE | Event.JOIN_REFUSED:
                return self.joining
            case Event.ROOM_LOST | Event.ROOM_ENDED:
                return self.room
            case Event.STREAM_UP | Event.STREAM_DOWN:
                return self.stream or self.ways.beside
            case Event.WHIP_UP | Event.WHIP_DOWN:
                return self.whip
            case _:
                return True

    def happen(self, event: Event) -> None:
        if event in (Event.JOINED, Event.JOIN_FAILED, Event.JOIN_BROKE, Event.JOIN_REFUSED):
            self.joining, self.room = False, event is Event.JOINED
        elif event in (Event.ROOM_LOST, Event.ROOM_ENDED):
            self.room = False


_STEPS = st.one_of(
    st.sampled_from([e for e in Event if e not in (Event.START, Event.TICK, Event.MODE)]),
    st.tuples(st.sampled_from([0.2, 1.0, 4.0, 20.0]), st.sampled_from([0.0, 1.1, 1.6, 30.0]), st.booleans()),
    st.sampled_from(list(Mode)),
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([ALONE, PLAIN, INGRESS, BESIDE]), st.sampled_from(list(Mode)), st.lists(_STEPS, max_size=60))
def test_whatever_happens_one_publisher_of_an_identity_and_no_flapping(
    ways: AvailableTransports, mode: Mode, steps: list[object]
) -> None:
    if not ways.rtmp and mode is Mode.RTMP:
        mode = Mode.AUTO
    made, world = Stand(FailoverPolicy(ways, mode, 100.0)), World(ways)
    world.take(made.on(Event.START))
    returns: list[float] = []

    def look(before: State) -> None:
        ladder = made.ladder
        if made.state is State.WEBRTC and before is State.SETTLING:
            returns.append(made.now)
        if ladder.rung is TransportKind.LIVEKIT:
            assert world.room
        if ladder.rung is TransportKind.RTMP:
            assert world.stream or ways.beside
        if ladder.rung is TransportKind.WHIP:
            assert world.whip
        if made.state is State.LOST:
            assert not (world.room or world.whip or (world.stream and not ways.beside))

    for step in steps:
        before = made.state
        if isinstance(step, Event):
            if world.possible(step):
                world.happen(step)
                world.take(made.on(step, reason="ROOM_CLOSED"))
        elif isinstance(step, Mode):
            if ways.rtmp or step is not Mode.RTMP:
                world.take(made.mode(step))
        else:
            seconds, silent_s, pause = step  # type: ignore[misc]
            for _ in range(round(seconds / TICK_S)):
                before = made.state
                world.take(made.after(TICK_S, silent_s, pause))
                look(before)
            continue
        look(before)
    if not any(isinstance(step, Mode) for step in steps):
        for one, other in itertools.pairwise(returns):
            assert other - one >= w.BACK_OFF_S[0]
