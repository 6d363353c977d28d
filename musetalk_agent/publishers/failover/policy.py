"""The failover policy: which transport carries the media. A state machine without I/O.

Its table is in docs/explanation/failover.md.

Input: events and the current time. Output: actions. `rung`, `probing` and `holding` describe the resulting state. The room and a
stream that leads into it (an ingress, WHIP) carry one identity, so one of them is left before the other begins. A plain RTMP
address is another place, so the return from there joins the room first and stops the stream afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from musetalk_agent.protocol.http import PublisherMode

SUSPECT_S = 1.0
"""Nothing came back from the SFU for so long (its answers are 0.3 s apart, 0.8 s when it stalls): a stream is opened in case."""
DEAD_S = 1.5
"""Nothing for so long: the room counts as dead. A cut of one second, which the SDK rides out by itself, looks shorter than this."""
PROBE_AT_START_S = 2.5
JOIN_AT_START_S = 3.0
"""A start that has another way waits so long for the room."""
STREAM_AT_START_S = 2.5
ALONE_AT_START_S = 10.0
"""A start that has no other way waits so long: a join through blocked UDP fails by itself after a minute only."""
WHIP_S = 4.0
LEAVE_S = 0.8
"""An identity counts as left after this, whether its leave was acknowledged or not."""
PAUSE_S = 3.0
"""A return waits so long for a pause of the voice."""
DRAIN_S = 5.0  # on top of it, the most that an identity's own stream may take to be heard
INGRESS_LEAD_S = 1.0
"""The voice waits so long when a push to an ingress begins: no one has subscribed to its tracks yet."""
INGRESS_STAY_S = 4.0
"""An ingress is not left before it can have begun."""
SDK_S = 60.0
"""The SDK tries so long to reconnect before its room is given up for a new one."""
LOST_S = 120.0
RETRY_S = (1.0, 10.0)
"""Pause after a join that failed: it doubles from the first to the second."""
TRUST_S = 60.0
BACK_OFF_S = (10.0, 120.0)
"""A room that dies within `TRUST_S` of a return is not returned to for 10 s, and twice as long each time, up to 120 s."""


class TransportKind(StrEnum):
    """The way that media take."""

    LIVEKIT = "livekit"
    WHIP = "whip"
    RTMP = "rtmp"
    NONE = "none"


class State(StrEnum):
    """State of the policy."""

    NEW = "new"
    PROBING = "probing"  # nothing carries: whether the room can be reached is tried under another identity
    JOINING = "joining"  # nothing carries: the room is being joined
    WEBRTC = "webrtc"  # the room carries
    SUSPECT = "suspect"  # the room carries, and nothing came back for a moment
    MOVING = "moving"  # the room carries until the stream is connected: RTMP was asked for
    SILENT = "silent"  # nothing carries: the room is dead, the SDK tries to reconnect
    WAITING = "waiting"  # nothing carries: until the next join
    LEAVING = "leaving"  # nothing carries: the room is being left for a stream of the same identity
    WHIP_OPENING = "whip_opening"  # nothing carries: WHIP is being connected
    WHIP = "whip"
    RTMP_OPENING = "rtmp_opening"  # nothing carries: the stream is being connected
    RTMP = "rtmp"
    REJOINING = "rejoining"  # RTMP carries while the room is being joined
    SETTLING = "settling"  # RTMP carries, the room is joined: until the voice pauses
    DRAINING = "draining"  # a stream of the same identity carries until all of it was heard
    LOST = "lost"


class Event(Enum):
    """What happens to it."""

    START = auto()
    TICK = auto()
    PROBE_OK = auto()
    PROBE_FAILED = auto()
    JOINED = auto()
    JOIN_FAILED = auto()  # timed out, or the SFU does not answer
    JOIN_BROKE = auto()  # the SDK failed at once, although the SFU answers over HTTP
    JOIN_REFUSED = auto()  # the SFU does not take the token
    ROOM_LOST = auto()  # the SDK has given up
    ROOM_ENDED = auto()  # it was ended on purpose: the avatar was removed or replaced, the room closed
    ROOM_LEFT = auto()
    STREAM_UP = auto()
    STREAM_DOWN = auto()
    WHIP_UP = auto()
    WHIP_DOWN = auto()
    MODE = auto()


class Action(Enum):
    """What is to be done, in this order."""

    JOIN = auto()
    LEAVE_ROOM = auto()
    OPEN_STREAM = auto()
    CLOSE_STREAM = auto()
    OPEN_WHIP = auto()
    CLOSE_WHIP = auto()
    REWIND = auto()  # play again what is not known to be heard
    GIVE_UP = auto()


KINDS = {
    State.WEBRTC: TransportKind.LIVEKIT,
    State.SUSPECT: TransportKind.LIVEKIT,
    State.MOVING: TransportKind.LIVEKIT,
    State.WHIP: TransportKind.WHIP,
    State.RTMP: TransportKind.RTMP,
    State.REJOINING: TransportKind.RTMP,
    State.SETTLING: TransportKind.RTMP,
}
PROBED = frozenset({State.PROBING, State.RTMP_OPENING, State.RTMP, State.WHIP})


@dataclass(frozen=True, slots=True)
class AvailableTransports:
    """What there is besides the room.

    `rtmp`: an RTMP target; `ingress`: it leads into the same room, under the same identity; `beside`: it runs all the time;
    `whip`: the SFU may be reached by WHIP.
    """

    rtmp: bool = False
    ingress: bool = False
    beside: bool = False
    whip: bool = False


log = logging.getLogger(__name__)


class FailoverPolicy:
    """Decides: `on` and `tick` take events and the time, `_TABLE` has the rule for each. Only `_go` changes `state`, and logs it.

    Args:
        now: monotonic seconds, as everywhere here.
    """

    def __init__(self, ways: AvailableTransports, mode: PublisherMode, now: float) -> None:
        self.ways, self.mode = ways, mode
        self.state = State.NEW
        self.reason = ""
        self.since = now
        self.silent_s = 0.0
        self.pause = True
        self.stream_up = False
        self._stream = TransportKind.RTMP  # which stream `DRAINING` closes
        self._joining = False  # a join is under way; it cannot be called off
        self._room = False  # joined, and not left
        self._carried = False  # something has carried: the start is over
        self._whip_tried = False
        self._down_since = now
        self._returned_at: float | None = None
        self._no_return_before = now
        self._back_off_s = 0.0
        self._retry_s = RETRY_S[0]
        self._acts: list[Action] = []
        self._now, self._why = now, ""

    @property
    def rung(self) -> TransportKind:
        """What carries now."""
        return self._stream if self.state is State.DRAINING else KINDS.get(self.state, TransportKind.NONE)

    @property
    def holding(self) -> bool:
        """The voice waits although something carries: what was sent has to be heard first, or no one can hear it yet."""
        elapsed_s = self._now - self.since
        if self.state is State.RTMP:
            return self.ways.ingress and elapsed_s < INGRESS_LEAD_S
        patience_s = PAUSE_S if self._stream is TransportKind.WHIP else 0.0  # an ingress is too slow to show pauses
        return self.state is State.DRAINING and elapsed_s >= patience_s

    @property
    def probing(self) -> bool:
        """Whether the room can be reached is to be found out."""
        may = self.mode is PublisherMode.AUTO and self._now >= self._no_return_before and not self._joining
        return self.state in PROBED and (may or self.state is State.PROBING)

    def _go(self, to: State, reason: str) -> None:
        """The one place that changes the state."""
        before = self.rung
        log.info("failover policy", extra={"from": self.state.value, "to": to.value, "reason": reason})
        self.state, self.reason, self.since = to, reason, self._now
        if self.rung is TransportKind.NONE and before is not TransportKind.NONE:
            self._down_since = self._now
        self._carried = self._carried or self.rung is not TransportKind.NONE

    def _do(self, *acts: Action) -> None:
        self._acts.extend(acts)

    @property
    def _elapsed(self) -> float:
        return self._now - self.since

    @property
    def _stream_allowed(self) -> bool:
        return self.ways.rtmp and self.mode is not PublisherMode.WEBRTC

    def _leave_room(self) -> None:
        if self._room:
            self._room = False
            self._do(Action.LEAVE_ROOM)

    def _join(self, reason: str, state: State = State.JOINING) -> None:
        if not self._joining:
            self._joining = True
            self._leave_room()
            self._do(Action.JOIN)
        self._go(state, reason)

    def _lose(self, reason: str) -> None:
        self._leave_room()
        self._close_stream()
        self._do(Action.CLOSE_WHIP, Action.GIVE_UP)
        self._go(State.LOST, reason)

    def _close_stream(self) -> None:
        if self.ways.rtmp and not self.ways.beside:
            self.stream_up = False
            self._do(Action.CLOSE_STREAM)

    def _take_stream(self, reason: str) -> None:
        """From nothing to RTMP."""
        if self.ways.ingress:
            self._no_return_before = max(self._no_return_before, self._now + INGRESS_STAY_S)
        if self.ways.ingress and self._room:
            self._leave_room()
            self._go(State.LEAVING, reason)
            return
        self._leave_room()
        if self.stream_up:
            self._go(State.RTMP, reason)
        else:
            self._do(Action.OPEN_STREAM)
            self._go(State.RTMP_OPENING, reason)

    def _fall(self, reason: str) -> None:
        """Nothing carries: the next way that there is."""
        if self._stream_allowed and not (self.ways.ingress and self._joining):
            self._take_stream(reason)
        elif not self._carried:
            self._lose(reason)
        else:
            self._retry_s = min(RETRY_S[1], self._retry_s * 2)
            self._go(State.WAITING, reason)

    def _distrust(self) -> None:
        """The room has died: soon after a return it is not trusted quickly again."""
        lately = self._returned_at is not None and self._now - self._returned_at < TRUST_S
        self._back_off_s = min(BACK_OFF_S[1], max(BACK_OFF_S[0], 2 * self._back_off_s)) if lately else 0.0
        self._no_return_before = self._now + self._back_off_s

    def _die(self, reason: str) -> None:
        """The room that carried is dead."""
        self._distrust()
        if not (self.ways.beside and self.stream_up):
            self._do(Action.REWIND)
        if self._stream_allowed:
            self._take_stream(reason)
        elif self._room:
            self._go(State.SILENT, reason)
        else:
            self._join(reason)

    def _arrive(self) -> None:
        """The room carries from now on."""
        self._retry_s, self._whip_tried, self.silent_s = RETRY_S[0], False, 0.0
        if self._carried:
            self._returned_at = self._now
        if self.mode is PublisherMode.RTMP and self.ways.rtmp:
            self._take_stream("mode")
            return
        self._close_stream()
        self._go(State.WEBRTC, "joined" if self.state is State.JOINING else "healthy")

    def on(self, event: Event, now: float, reason: str = "") -> list[Action]:
        """Takes an event; returns what is to be done about it. `reason` is reported where the event ends the use of a transport."""
        self._now, self._why, self._acts = now, reason, []
        if event in (Event.JOINED, Event.JOIN_FAILED, Event.JOIN_BROKE, Event.JOIN_REFUSED):
            self._joining = False
        if event in (Event.STREAM_UP, Event.STREAM_DOWN):
            self.stream_up = event is Event.STREAM_UP
        if event is Event.JOINED:
            self._room = True
        if event in (Event.ROOM_LOST, Event.ROOM_ENDED):
            self._room = False
        handler = _TABLE.get((self.state, event)) or _ANYWHERE.get(event)
        if handler is not None:
            handler(self)
        return self._acts

    def tick(self, now: float, silent_s: float, pause: bool) -> list[Action]:
        """Time passes. Several times a second.

        Args:
            silent_s: how long nothing has come back from the SFU; of no meaning while there is no room.
            pause: all that was handed over was heard.
        """
        self.silent_s, self.pause = silent_s, pause
        acts = self.on(Event.TICK, now)
        down = self.rung is TransportKind.NONE and self.state is not State.LOST
        if down and self._carried and now - self._down_since > LOST_S:
            self._lose("nothing_reachable")
        return acts

    # --- what events do ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self.mode is PublisherMode.RTMP and self.ways.rtmp:
            self._take_stream("mode")
        elif self.ways.ingress and self._stream_allowed:
            self._go(State.PROBING, "start")
        else:
            self._join("start")

    def _probed(self) -> None:
        self._join("probed")

    def _unreachable(self) -> None:
        self._fall("room_unreachable")

    def _tick_probing(self) -> None:
        if self._elapsed >= PROBE_AT_START_S:
            self._fall("room_unreachable")

    def _tick_joining(self) -> None:
        if self._carried:
            return
        if self._stream_allowed and not self.ways.ingress and self._elapsed >= JOIN_AT_START_S:
            self._fall("join_timeout")
        elif self._elapsed >= ALONE_AT_START_S:
            self._lose("join_timeout")

    def _join_failed(self) -> None:
        self._fall("join_failed")

    def _join_broke(self) -> None:
        if self.ways.whip and not self._whip_tried:
            self._whip_tried = True
            self._distrust()
            self._do(Action.OPEN_WHIP)
            self._go(State.WHIP_OPENING, "join_broke")
        else:
            self._fall("join_broke")

    def _join_refused(self) -> None:
        if self._stream_allowed:
            self._fall("join_refused")
        else:
            self._lose("join_refused")

    def _tick_webrtc(self) -> None:
        if self.silent_s >= DEAD_S:
            self._die("transport_silent")
        elif self.silent_s >= SUSPECT_S:
            if self._stream_allowed and not self.ways.ingress:
                self._do(Action.OPEN_STREAM)
            self._go(State.SUSPECT, "transport_silent")

    def _tick_suspect(self) -> None:
        if self.silent_s >= DEAD_S:
            self._die("transport_silent")
        elif self.silent_s < SUSPECT_S:
            self._close_stream()
            self._go(State.WEBRTC, "healthy")

    def _tick_moving(self) -> None:
        if self.silent_s >= DEAD_S:
            self._die("transport_silent")

    def _tick_silent(self) -> None:
        if self.silent_s < SUSPECT_S:
            self._go(State.WEBRTC, "healthy")
        elif self._elapsed >= SDK_S:
            self._join("sdk_gave_nothing")

    def _tick_waiting(self) -> None:
        if self._elapsed >= self._retry_s:
            self._join("retry")

    def _tick_leaving(self) -> None:
        if self._elapsed >= LEAVE_S:
            self._left()

    def _left(self) -> None:
        self._do(Action.OPEN_STREAM)
        self._go(State.RTMP_OPENING, self.reason)

    def _lost_room(self) -> None:
        self._die(f"room_lost {self._why}".strip())

    def _rejoin(self) -> None:
        self._join(f"room_lost {self._why}".strip())

    def _ended(self) -> None:
        self._lose(self._why)

    def _stream_connected(self) -> None:
        self._go(State.RTMP, self.reason)

    def _moved(self) -> None:
        if not self.ways.beside:  # else the stream has had it all
            self._do(Action.REWIND)
        self._leave_room()
        self._go(State.RTMP, "mode")

    def _stream_lost(self) -> None:
        if self.ways.ingress:  # what it had not played yet went with it; a sink keeps only what it could not push
            self._do(Action.REWIND)
        self._go(State.RTMP_OPENING, "stream_lost")

    def _tick_rtmp_opening(self) -> None:
        if not self._carried and self._elapsed >= STREAM_AT_START_S:
            self._lose(f"{self.reason}, and the stream does not connect")

    def _joined_late(self) -> None:
        """A join that was given up has succeeded after all."""
        if self.ways.ingress or self.mode is PublisherMode.RTMP or self.state is State.LOST:
            self._leave_room()
        elif self.rung is TransportKind.NONE:
            self._arrive()
        elif self.state is State.RTMP and self._now >= self._no_return_before:
            self._go(State.SETTLING, "healthy")
        else:
            self._leave_room()

    def _whip_connected(self) -> None:
        self._go(State.WHIP, self.reason)

    def _whip_failed(self) -> None:
        self._do(Action.CLOSE_WHIP)
        self._fall("whip_failed")

    def _tick_whip_opening(self) -> None:
        if self._elapsed >= WHIP_S:
            self._whip_failed()

    def _whip_lost(self) -> None:
        self._do(Action.CLOSE_WHIP, Action.REWIND)
        if self._stream_allowed:
            self._take_stream("whip_lost")
        else:
            self._join("whip_lost")

    def _return(self) -> None:
        """The room is healthy again."""
        if self.state is State.RTMP and not self.ways.ingress:
            self._join("healthy", State.REJOINING)
        else:
            self._stream = self.rung
            self._go(State.DRAINING, "healthy")

    def _returned(self) -> None:
        self._go(State.SETTLING, "healthy")
        self.silent_s = 0.0

    def _return_failed(self) -> None:
        self._returned_at = self._now
        self._distrust()
        self._leave_room()
        self._go(State.RTMP, "return_failed")

    def _stream_lost_while_joining(self) -> None:
        self._go(State.JOINING, "stream_lost")

    def _tick_settling(self) -> None:
        if self.silent_s >= DEAD_S:
            self._return_failed()
        elif self.silent_s < SUSPECT_S and (self.pause or self._elapsed >= PAUSE_S):
            self._arrive()

    def _tick_draining(self) -> None:
        if self.pause or self._elapsed >= PAUSE_S + DRAIN_S:
            self._let_go()

    def _let_go(self) -> None:
        """The stream ends, then the room is joined."""
        self._do(Action.CLOSE_WHIP)
        self._close_stream()
        self._whip_tried = False
        self._join("healthy")

    def _drain_lost(self) -> None:
        self._do(Action.REWIND)
        self._let_go()

    def _mode_changed(self) -> None:
        """`mode` was set: moves at once where it forbids the way in use."""
        if self.mode is PublisherMode.RTMP:
            self._to_rtmp()
        elif self.mode is PublisherMode.WEBRTC:
            self._to_webrtc()
        elif self.state is State.SILENT and self.ways.rtmp:
            self._fall("mode")
        else:
            self._no_return_before = self._now

    def _to_rtmp(self) -> None:
        match self.state:
            case State.WEBRTC | State.SUSPECT if not self.ways.ingress:
                if self.stream_up:
                    self._moved()
                else:
                    self._do(Action.OPEN_STREAM)
                    self._go(State.MOVING, "mode")
            case State.WEBRTC | State.SUSPECT:
                self._do(Action.REWIND)
                self._take_stream("mode")
            case State.SILENT | State.WAITING | State.PROBING | State.JOINING if not (
                self.ways.ingress and self._joining
            ):
                self._fall("mode")
            case State.WHIP | State.WHIP_OPENING:
                self._do(Action.CLOSE_WHIP, Action.REWIND)
                self._take_stream("mode")
            case State.REJOINING | State.SETTLING:
                self._leave_room()
                self._go(State.RTMP, "mode")
            case State.DRAINING if self._stream is TransportKind.RTMP:
                self._go(State.RTMP, "mode")
            case _:
                pass

    def _to_webrtc(self) -> None:
        match self.state:
            case State.RTMP:
                self._return()
            case State.RTMP_OPENING | State.LEAVING:
                self._let_go()
            case State.MOVING:
                self._close_stream()
                self._go(State.WEBRTC, "mode")
            case _:
                pass


_Handler = Callable[[FailoverPolicy], None]
_L = FailoverPolicy
_TABLE: dict[tuple[State, Event], _Handler] = {
    (State.NEW, Event.START): _L._start,
    (State.PROBING, Event.TICK): _L._tick_probing,
    (State.PROBING, Event.PROBE_OK): _L._probed,
    (State.PROBING, Event.PROBE_FAILED): _L._unreachable,
    (State.JOINING, Event.TICK): _L._tick_joining,
    (State.JOINING, Event.JOINED): _L._arrive,
    (State.JOINING, Event.JOIN_FAILED): _L._join_failed,
    (State.JOINING, Event.JOIN_BROKE): _L._join_broke,
    (State.JOINING, Event.JOIN_REFUSED): _L._join_refused,
    (State.WEBRTC, Event.TICK): _L._tick_webrtc,
    (State.WEBRTC, Event.ROOM_LOST): _L._lost_room,
    (State.SUSPECT, Event.TICK): _L._tick_suspect,
    (State.SUSPECT, Event.ROOM_LOST): _L._lost_room,
    (State.MOVING, Event.TICK): _L._tick_moving,
    (State.MOVING, Event.ROOM_LOST): _L._lost_room,
    (State.MOVING, Event.STREAM_UP): _L._moved,
    (State.SILENT, Event.TICK): _L._tick_silent,
    (State.SILENT, Event.ROOM_LOST): _L._rejoin,
    (State.WAITING, Event.TICK): _L._tick_waiting,
    (State.LEAVING, Event.TICK): _L._tick_leaving,
    (State.LEAVING, Event.ROOM_LEFT): _L._left,
    (State.WHIP_OPENING, Event.TICK): _L._tick_whip_opening,
    (State.WHIP_OPENING, Event.WHIP_UP): _L._whip_connected,
    (State.WHIP_OPENING, Event.WHIP_DOWN): _L._whip_failed,
    (State.WHIP, Event.WHIP_DOWN): _L._whip_lost,
    (State.WHIP, Event.PROBE_OK): _L._return,
    (State.RTMP_OPENING, Event.TICK): _L._tick_rtmp_opening,
    (State.RTMP_OPENING, Event.STREAM_UP): _L._stream_connected,
    (State.RTMP_OPENING, Event.PROBE_OK): _L._let_go,
    (State.RTMP, Event.STREAM_DOWN): _L._stream_lost,
    (State.RTMP, Event.PROBE_OK): _L._return,
    (State.REJOINING, Event.JOINED): _L._returned,
    (State.REJOINING, Event.JOIN_FAILED): _L._return_failed,
    (State.REJOINING, Event.JOIN_BROKE): _L._return_failed,
    (State.REJOINING, Event.JOIN_REFUSED): _L._return_failed,
    (State.REJOINING, Event.STREAM_DOWN): _L._stream_lost_while_joining,
    (State.SETTLING, Event.TICK): _L._tick_settling,
    (State.SETTLING, Event.ROOM_LOST): _L._return_failed,
    (State.SETTLING, Event.STREAM_DOWN): _L._arrive,
    (State.DRAINING, Event.TICK): _L._tick_draining,
    (State.DRAINING, Event.STREAM_DOWN): _L._drain_lost,
    (State.DRAINING, Event.WHIP_DOWN): _L._drain_lost,
}
_ANYWHERE: dict[Event, _Handler] = {
    Event.JOINED: _L._joined_late,
    Event.ROOM_ENDED: _L._ended,
    Event.MODE: _L._mode_changed,
}
