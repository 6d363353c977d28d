"""What the ladder's events have in common: its state, the one setter of it, and the moves that several of them make."""

from __future__ import annotations

import logging

from musetalk_agent.protocol.http import PublisherMode
from musetalk_agent.publishers import ladder_words as w
from musetalk_agent.publishers.ladder_words import Act, Rung, State, Ways

log = logging.getLogger(__name__)


class Moves:
    """Where the ladder stands; `state` is only changed by `_go`, which logs it.

    Args:
        now: monotonic seconds, as everywhere here.
    """

    def __init__(self, ways: Ways, mode: PublisherMode, now: float) -> None:
        self.ways, self.mode = ways, mode
        self.state = State.NEW
        self.reason = ""
        self.since = now
        self.silent_s = 0.0
        self.pause = True
        self.stream_up = False
        self._way = Rung.RTMP  # which stream `DRAINING` lets go of
        self._joining = False  # a join is under way; it cannot be called off
        self._room = False  # joined, and not left
        self._carried = False  # something has carried: the start is over
        self._whip_tried = False
        self._down_since = now
        self._returned_at: float | None = None
        self._no_return_before = now
        self._back_off_s = 0.0
        self._retry_s = w.RETRY_S[0]
        self._acts: list[Act] = []
        self._now, self._why = now, ""

    @property
    def rung(self) -> Rung:
        """What carries now."""
        return self._way if self.state is State.DRAINING else w.RUNGS.get(self.state, Rung.NONE)

    @property
    def holding(self) -> bool:
        """The voice waits although something carries: what was sent has to be heard first, or nobody can hear it yet."""
        elapsed_s = self._now - self.since
        if self.state is State.RTMP:
            return self.ways.ingress and elapsed_s < w.INGRESS_LEAD_S
        patience_s = w.PAUSE_S if self._way is Rung.WHIP else 0.0  # an ingress is too slow for pauses to be seen
        return self.state is State.DRAINING and elapsed_s >= patience_s

    @property
    def probing(self) -> bool:
        """Whether the room can be reached is to be found out."""
        may = self.mode is PublisherMode.AUTO and self._now >= self._no_return_before and not self._joining
        return self.state in w.PROBED and (may or self.state is State.PROBING)

    def _go(self, to: State, reason: str) -> None:
        """The one place that changes the state."""
        before = self.rung
        log.info("ladder", extra={"from": self.state.value, "to": to.value, "reason": reason})
        self.state, self.reason, self.since = to, reason, self._now
        if self.rung is Rung.NONE and before is not Rung.NONE:
            self._down_since = self._now
        self._carried = self._carried or self.rung is not Rung.NONE

    def _do(self, *acts: Act) -> None:
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
            self._do(Act.LEAVE_ROOM)

    def _join(self, reason: str, state: State = State.JOINING) -> None:
        if not self._joining:
            self._joining = True
            self._leave_room()
            self._do(Act.JOIN)
        self._go(state, reason)

    def _lose(self, reason: str) -> None:
        self._leave_room()
        self._close_stream()
        self._do(Act.CLOSE_WHIP, Act.GIVE_UP)
        self._go(State.LOST, reason)

    def _close_stream(self) -> None:
        if self.ways.rtmp and not self.ways.beside:
            self.stream_up = False
            self._do(Act.CLOSE_STREAM)

    def _take_stream(self, reason: str) -> None:
        """From nothing to RTMP."""
        if self.ways.ingress:
            self._no_return_before = max(self._no_return_before, self._now + w.INGRESS_STAY_S)
        if self.ways.ingress and self._room:
            self._leave_room()
            self._go(State.LEAVING, reason)
            return
        self._leave_room()
        if self.stream_up:
            self._go(State.RTMP, reason)
        else:
            self._do(Act.OPEN_STREAM)
            self._go(State.RTMP_OPENING, reason)

    def _fall(self, reason: str) -> None:
        """Nothing carries: the next way that there is."""
        if self._stream_allowed and not (self.ways.ingress and self._joining):
            self._take_stream(reason)
        elif not self._carried:
            self._lose(reason)
        else:
            self._retry_s = min(w.RETRY_S[1], self._retry_s * 2)
            self._go(State.WAITING, reason)

    def _distrust(self) -> None:
        """The room has died: soon after a return it is not trusted quickly again."""
        lately = self._returned_at is not None and self._now - self._returned_at < w.TRUST_S
        self._back_off_s = min(w.BACK_OFF_S[1], max(w.BACK_OFF_S[0], 2 * self._back_off_s)) if lately else 0.0
        self._no_return_before = self._now + self._back_off_s

    def _die(self, reason: str) -> None:
        """The room that carried is dead."""
        self._distrust()
        if not (self.ways.beside and self.stream_up):
            self._do(Act.REWIND)
        if self._stream_allowed:
            self._take_stream(reason)
        elif self._room:
            self._go(State.SILENT, reason)
        else:
            self._join(reason)

    def _arrive(self) -> None:
        """The room carries from now on."""
        self._retry_s, self._whip_tried, self.silent_s = w.RETRY_S[0], False, 0.0
        if self._carried:
            self._returned_at = self._now
        if self.mode is PublisherMode.RTMP and self.ways.rtmp:
            self._take_stream("mode")
            return
        self._close_stream()
        self._go(State.WEBRTC, "joined" if self.state is State.JOINING else "healthy")
