"""One agent's connection to a session: its link, and the signs that it is alive.

`LivenessMonitor` has no clock: every method takes `now` (seconds, monotonic). An agent acknowledges items as they come and reports
its playout position while it speaks; one that does neither although it should is hung. One whose publisher reports that nothing can
be reached is alive: it waits for the network, as another agent would.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from musetalk_agent.protocol.messages import ErrorEvent, Event, LinkAck, LinkHello, LinkVoice, PublisherChanged
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.agent_link import AgentLink, LinkLost, LinkOver, LinkPeer, LinkTaken, Pull
from orchestrator.metrics import Metrics

SILENT_S = 2.5
"""An agent that takes nothing of what it was sent for this long hangs."""
STILL_S = 3.0
"""One that neither sounds nor shows anything for this long, although it has speech, hangs."""
SPEECH_S = 0.5
"""Speech at the agent from which it must have begun to speak, whatever it waits for."""


class LivenessMonitor:
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
        """Whether what it plays is silence."""
        return self.last is not None and self.last.resting

    def acked(self, ack: LinkAck, now: float) -> None:
        """The agent has acknowledged items and reported its state."""
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


CHECK_S = 0.1
TAKEN = "taken"
"""Not a failure: another orchestrator has taken the session over, with a link of its own."""


class AgentLost(Exception):
    """The agent serves the session no longer, and another one may.

    Attributes:
        cause: `link_lost`, `hung`, `engine_failed`, `session_lost`, `draining`, or `taken`.
        at: monotonic time up to which it can have spoken.
    """

    def __init__(self, cause: str, detail: str, at: float) -> None:
        super().__init__(detail)
        self.cause = cause
        self.at = at


@dataclass(frozen=True, slots=True)
class AgentHandlers:
    """The session's side of a connection to its agent. All are called on the event loop and must not block.

    Args:
        pull: gives the next message for the agent, see `Pull`.
        at_agent_s: seconds of speech that were forwarded and are not known to be heard.
        on_heard: called with each playout position that the agent reports (segment, seconds).
        on_event: called with the agent's events, except failures, which end `AgentConnection.run`.
        on_end: called with the connection when `run` ends.
        on_voice: called with the agent's playout times where the orchestrator publishes the audio.
        on_hello: called with the first message of each connection.
    """

    pull: Pull
    at_agent_s: Callable[[], float]
    on_heard: Callable[[int, float], None]
    on_event: Callable[[Event], None]
    on_end: Callable[[AgentConnection], None]
    on_voice: Callable[[LinkVoice], None] | None = None
    on_hello: Callable[[LinkHello], None] | None = None


class AgentConnection:
    """Serves one session through one agent. `adopt_after`: see `AgentLink`."""

    def __init__(
        self,
        session_id: str,
        lease: AgentLease,
        metrics: Metrics,
        session: AgentHandlers,
        adopt_after: int | None = None,
    ) -> None:
        self.lease = lease
        self.liveness = LivenessMonitor(time.monotonic())
        self._session = session
        self._failure: asyncio.Future[ProblemError] = asyncio.get_running_loop().create_future()
        peer = LinkPeer(session.pull, self._on_event, self._on_ack, session.on_voice, session.on_hello)
        self.link = AgentLink(lease, session_id, peer, metrics, adopt_after=adopt_after)

    async def run(self) -> None:
        """Serves until cancelled, which closes the link; never returns normally.

        Raises AgentLost, LinkOver when the agent ended the session or knows of none, and ProblemError for what the agent says went
        wrong with the session itself.
        """
        link = asyncio.create_task(self.link.run(), name=f"link-{self.link.session_id}")
        ends: set[asyncio.Future[Any]] = {link, self._failure}
        try:
            while True:
                await asyncio.wait(ends, timeout=CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                if self._failure.done():
                    raise self._judge(self._failure.result())
                if link.done():
                    self._end(link)
                self._check(time.monotonic(), max(self._session.at_agent_s(), self.liveness.buffered_s))
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)
            self._session.on_end(self)

    def figures(self, now: float) -> dict[str, Any]:
        """For `/debug/audio`: what the agent said last, and how long ago."""
        ack, at = self.liveness.last, self.liveness.ack_at
        return {
            "ack_age_s": round(now - at, 3) if at is not None else None,
            "segment": ack.segment if ack else 0,
            "heard_s": round(ack.heard_s, 3) if ack else 0.0,
            "frames": ack.frames if ack else 0,
            "delay_ms": round(1000 * self.link.delay_s, 1),
            "draining": self.liveness.draining,
        }

    def _end(self, link: asyncio.Task[None]) -> None:
        try:
            link.result()
        except LinkLost as error:
            cause = TAKEN if isinstance(error, LinkTaken) else "link_lost"
            raise AgentLost(cause, str(error), self.link.lost_at) from error
        except LinkOver as over:
            over.at = self.link.lost_at
            raise

    def _check(self, now: float, at_agent_s: float) -> None:
        if not self.link.connected:
            self.liveness.gone(now)
            return
        reason = self.liveness.hung(now, unacked=self.link.unacked, at_agent_s=at_agent_s)
        if reason is not None:
            raise AgentLost("hung", f"its agent hangs: {reason}", now)

    def _judge(self, problem: ProblemError) -> Exception:
        """A device that failed is one agent's trouble; anything else would happen to the next one too."""
        if problem.code is ErrorCode.ENGINE_FAILED:
            return AgentLost("engine_failed", problem.detail, time.monotonic())
        return problem

    def _on_ack(self, ack: LinkAck) -> None:
        now = time.monotonic()
        self.liveness.acked(ack, now)
        if ack.segment:
            self._session.on_heard(ack.segment, ack.heard_s)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, PublisherChanged):
            self.liveness.published(event.publisher, time.monotonic())
        if not isinstance(event, ErrorEvent):
            self._session.on_event(event)
        elif not self._failure.done():
            self._failure.set_result(ProblemError(_code(event.code), event.message))


def _code(code: str) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL
