"""Which way media leave: the state machine of the failover, without any I/O. docs/topics/failover.md has it as a table.

Events and the time go in, acts come out, and `rung`, `probing` and `holding` say what is so in the state reached. The room and a
stream that leads into it (an ingress, WHIP) carry one identity, so one of them is left before the other begins; a plain RTMP
address is another place, so the way back from there joins first and lets go of the stream after.
"""

from __future__ import annotations

from collections.abc import Callable

from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.publishers import ladder_words as w
from musetalk_agent.publishers.ladder_moves import Moves
from musetalk_agent.publishers.ladder_words import Act, Event, Rung, State


class Ladder(Moves):
    """Decides: `on` and `tick` take what happens, `_TABLE` says what is done about it in which state."""

    def on(self, event: Event, now: float, reason: str = "") -> list[Act]:
        """Takes an event; returns what is to be done about it. `reason` is told where it ends the use of a way."""
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

    def tick(self, now: float, silent_s: float, pause: bool) -> list[Act]:
        """Time passes. Several times a second.

        Args:
            silent_s: how long nothing has come back from the SFU; of no meaning while there is no room.
            pause: all that was handed over was heard.
        """
        self.silent_s, self.pause = silent_s, pause
        acts = self.on(Event.TICK, now)
        down = self.rung is Rung.NONE and self.state is not State.LOST
        if down and self._carried and now - self._down_since > w.LOST_S:
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
        if self._elapsed >= w.PROBE_AT_START_S:
            self._fall("room_unreachable")

    def _tick_joining(self) -> None:
        if self._carried:
            return
        if self._stream_allowed and not self.ways.ingress and self._elapsed >= w.JOIN_AT_START_S:
            self._fall("join_timeout")
        elif self._elapsed >= w.ALONE_AT_START_S:
            self._lose("join_timeout")

    def _join_failed(self) -> None:
        self._fall("join_failed")

    def _join_broke(self) -> None:
        if self.ways.whip and not self._whip_tried:
            self._whip_tried = True
            self._distrust()
            self._do(Act.OPEN_WHIP)
            self._go(State.WHIP_OPENING, "join_broke")
        else:
            self._fall("join_broke")

    def _join_refused(self) -> None:
        if self._stream_allowed:
            self._fall("join_refused")
        else:
            self._lose("join_refused")

    def _tick_webrtc(self) -> None:
        if self.silent_s >= w.DEAD_S:
            self._die("transport_silent")
        elif self.silent_s >= w.SUSPECT_S:
            if self._stream_allowed and not self.ways.ingress:
                self._do(Act.OPEN_STREAM)
            self._go(State.SUSPECT, "transport_silent")

    def _tick_suspect(self) -> None:
        if self.silent_s >= w.DEAD_S:
            self._die("transport_silent")
        elif self.silent_s < w.SUSPECT_S:
            self._close_stream()
            self._go(State.WEBRTC, "healthy")

    def _tick_moving(self) -> None:
        if self.silent_s >= w.DEAD_S:
            self._die("transport_silent")

    def _tick_silent(self) -> None:
        if self.silent_s < w.SUSPECT_S:
            self._go(State.WEBRTC, "healthy")
        elif self._elapsed >= w.SDK_S:
            self._join("sdk_gave_nothing")

    def _tick_waiting(self) -> None:
        if self._elapsed >= self._retry_s:
            self._join("retry")

    def _tick_leaving(self) -> None:
        if self._elapsed >= w.LEAVE_S:
            self._left()

    def _left(self) -> None:
        self._do(Act.OPEN_STREAM)
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
            self._do(Act.REWIND)
        self._leave_room()
        self._go(State.RTMP, "mode")

    def _stream_lost(self) -> None:
        if self.ways.ingress:  # what it had not played yet went with it; a sink keeps only what it could not push
            self._do(Act.REWIND)
        self._go(State.RTMP_OPENING, "stream_lost")

    def _tick_rtmp_opening(self) -> None:
        if not self._carried and self._elapsed >= w.STREAM_AT_START_S:
            self._lose(f"{self.reason}, and the stream does not connect")

    def _joined_late(self) -> None:
        """A join that was given up has succeeded after all."""
        if self.ways.ingress or self.mode is PublisherMode.RTMP or self.state is State.LOST:
            self._leave_room()
        elif self.rung is Rung.NONE:
            self._arrive()
        elif self.state is State.RTMP and self._now >= self._no_return_before:
            self._go(State.SETTLING, "healthy")
        else:
            self._leave_room()

    def _whip_connected(self) -> None:
        self._go(State.WHIP, self.reason)

    def _whip_failed(self) -> None:
        self._do(Act.CLOSE_WHIP)
        self._fall("whip_failed")

    def _tick_whip_opening(self) -> None:
        if self._elapsed >= w.WHIP_S:
            self._whip_failed()

    def _whip_lost(self) -> None:
        self._do(Act.CLOSE_WHIP, Act.REWIND)
        if self._stream_allowed:
            self._take_stream("whip_lost")
        else:
            self._join("whip_lost")

    def _return(self) -> None:
        """The room is healthy again."""
        if self.state is State.RTMP and not self.ways.ingress:
            self._join("healthy", State.REJOINING)
        else:
            self._way = self.rung
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
        if self.silent_s >= w.DEAD_S:
            self._return_failed()
        elif self.silent_s < w.SUSPECT_S and (self.pause or self._elapsed >= w.PAUSE_S):
            self._arrive()

    def _tick_draining(self) -> None:
        if self.pause or self._elapsed >= w.PAUSE_S + w.DRAIN_S:
            self._let_go()

    def _let_go(self) -> None:
        """The stream ends, then the room is joined."""
        self._do(Act.CLOSE_WHIP)
        self._close_stream()
        self._whip_tried = False
        self._join("healthy")

    def _drain_lost(self) -> None:
        self._do(Act.REWIND)
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
                    self._do(Act.OPEN_STREAM)
                    self._go(State.MOVING, "mode")
            case State.WEBRTC | State.SUSPECT:
                self._do(Act.REWIND)
                self._take_stream("mode")
            case State.SILENT | State.WAITING | State.PROBING | State.JOINING if not (
                self.ways.ingress and self._joining
            ):
                self._fall("mode")
            case State.WHIP | State.WHIP_OPENING:
                self._do(Act.CLOSE_WHIP, Act.REWIND)
                self._take_stream("mode")
            case State.REJOINING | State.SETTLING:
                self._leave_room()
                self._go(State.RTMP, "mode")
            case State.DRAINING if self._way is Rung.RTMP:
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


_Handler = Callable[[Ladder], None]
_L = Ladder
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
