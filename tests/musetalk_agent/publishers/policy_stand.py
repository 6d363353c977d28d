"""A ladder to stand on: its time, all that it asked for, and the shortest way to each of its states."""

from __future__ import annotations

from dataclasses import dataclass, field

from musetalk_agent.protocol.http import PublisherMode as Mode
from musetalk_agent.publishers.failover import policy as w
from musetalk_agent.publishers.failover.policy import Action, AvailableTransports, Event, FailoverPolicy, State

ALONE = AvailableTransports(whip=True)
PLAIN = AvailableTransports(rtmp=True, whip=True)
INGRESS = AvailableTransports(rtmp=True, ingress=True, whip=True)
BESIDE = AvailableTransports(rtmp=True, beside=True, whip=True)

TICK_S = 0.2


@dataclass
class Stand:
    """A ladder, its time, and all that it asked for."""

    ladder: FailoverPolicy
    now: float = 100.0
    acts: list[Action] = field(default_factory=list)

    def on(self, *events: Event, reason: str = "") -> list[Action]:
        acts = [act for event in events for act in self.ladder.on(event, self.now, reason)]
        self.acts += acts
        return acts

    def after(self, seconds: float, silent_s: float = 0.0, pause: bool = True, *, grows: bool = False) -> list[Action]:
        """Ticks through `seconds`; with `grows` nothing comes back meanwhile."""
        acts: list[Action] = []
        for _ in range(max(1, round(seconds / TICK_S))):
            self.now += TICK_S
            silent_s += TICK_S if grows else 0.0
            acts += self.ladder.tick(self.now, silent_s, pause)
        self.acts += acts
        return acts

    def mode(self, mode: Mode) -> list[Action]:
        self.ladder.mode = mode
        return self.on(Event.MODE)

    @property
    def state(self) -> State:
        return self.ladder.state


def begun(ways: AvailableTransports, mode: Mode = Mode.AUTO) -> Stand:
    made = Stand(FailoverPolicy(ways, mode, 100.0))
    made.on(Event.START)
    return made


def reach(state: State, ways: AvailableTransports) -> Stand:
    """A ladder in `state`, by the shortest way there."""
    made = begun(ways, Mode.RTMP if state is State.RTMP_OPENING and ways.ingress else Mode.AUTO)
    if state is State.NEW:
        return Stand(FailoverPolicy(ways, Mode.AUTO, 100.0))
    if state is State.JOINING and ways.ingress:
        made.on(Event.PROBE_OK)
    if state in (State.PROBING, State.JOINING) or (state is State.RTMP_OPENING and ways.ingress):
        return made
    if state is State.LOST:
        made.on(Event.ROOM_ENDED, reason="ROOM_CLOSED")
        return made
    if ways.ingress:
        made.on(Event.PROBE_OK)
    made.on(Event.JOINED)
    match state:
        case State.WEBRTC:
            pass
        case State.SUSPECT:
            made.after(TICK_S, w.SUSPECT_S)
        case State.MOVING:
            made.mode(Mode.RTMP)
        case State.WAITING:
            made.on(Event.ROOM_LOST, Event.JOIN_FAILED)
        case State.WHIP_OPENING:
            made.on(Event.ROOM_LOST, Event.JOIN_BROKE)
        case State.WHIP:
            made.on(Event.ROOM_LOST, Event.JOIN_BROKE, Event.WHIP_UP)
        case _:
            made.after(TICK_S, w.DEAD_S)
            if state in (State.RTMP, State.REJOINING, State.SETTLING):
                made.on(Event.ROOM_LEFT, Event.STREAM_UP)
            if state in (State.REJOINING, State.SETTLING):
                made.on(Event.PROBE_OK)
            if state is State.SETTLING:
                made.on(Event.JOINED)
            if state is State.DRAINING:
                made.on(Event.ROOM_LEFT, Event.STREAM_UP, Event.PROBE_OK)
    assert made.state is state, made.state
    return made
