"""Whether an agent that is connected is alive, without a clock: every method takes `now` (seconds, monotonic).

An agent acknowledges items as they come, and tells where the voice is while it speaks. One that does neither although it should
hangs. One whose publisher says that nothing can be reached is alive: it waits for the network, as another agent would.
"""

from __future__ import annotations

from musetalk_agent.protocol.messages import LinkAck

SILENT_S = 2.5
"""An agent that takes nothing of what it was sent for this long hangs."""
STILL_S = 3.0
"""One that neither sounds nor shows anything for this long, although it has speech, hangs."""
SPEECH_S = 0.5
"""Speech at the agent from which it must have begun to speak, whatever it waits for."""


class Vitals:
    """Signs of life of one agent for one session. Begins when its link is made."""

    def __init__(self, now: float) -> None:
        self._taken_at = now
        self._moved_at = now
        self._items = 0
        self._place: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)
        self.ack_at: float | None = None
        self.last: LinkAck | None = None
        self.draining = False
        self.publisher = "livekit"
        self.nowhere = False
        """The agent's publisher reaches nothing."""

    @property
    def buffered_s(self) -> float:
        """Speech that it says it has, also such as came to it through the room."""
        return self.last.buffered_s if self.last is not None else 0.0

    @property
    def resting(self) -> bool:
        """It hears nobody speak in what it plays."""
        return self.last is not None and self.last.resting

    def acked(self, ack: LinkAck, now: float) -> None:
        """The agent's word."""
        self.ack_at, self.last = now, ack
        if ack.items != self._items:
            self._items, self._taken_at = ack.items, now
        place = (ack.segment, ack.heard_s, ack.position_s, ack.frames)
        if place != self._place:
            self._place, self._moved_at = place, now
        self.draining = ack.draining

    def published(self, publisher: str, now: float) -> None:
        """Media take another way now, or none."""
        self.publisher = publisher
        self.nowhere = publisher == "none"
        self._moved_at = now

    def gone(self, now: float) -> None:
        """The connection is down: silence says nothing."""
        self._taken_at = self._moved_at = now

    def hung(self, now: float, *, unacked: bool, at_agent_s: float) -> str | None:
        """Why the agent is taken for hung, None while it is well.

        `unacked`: items are on their way to it; `at_agent_s`: seconds of speech it has that are not known to be heard.
        """
        if not unacked:
            self._taken_at = now
        if at_agent_s < SPEECH_S or self.nowhere:
            self._moved_at = now
        if now - self._taken_at > SILENT_S:
            return f"it has taken nothing for {SILENT_S:g} s"
        if now - self._moved_at > STILL_S:
            return f"neither voice nor pictures have moved for {STILL_S:g} s"
        return None
