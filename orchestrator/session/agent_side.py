"""One agent's time with a session: its link, and whether it is alive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from musetalk_agent.protocol.messages import Event, Failed, LinkAck, LinkHello, LinkVoice, PublisherChanged
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.client import AgentLease
from orchestrator.agents.link import AgentLink, LinkLost, LinkOver, LinkPeer, LinkTaken
from orchestrator.agents.vitals import Vitals
from orchestrator.audio.items import LinkItem
from orchestrator.metrics import Metrics

CHECK_S = 0.1
TAKEN = "taken"
"""Cause of a loss that is none: another orchestrator has made a link for the session."""


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


class AgentSide:
    """Serves one session through one agent.

    Args:
        take: the next item for the agent.
        control_waiting: whether that is a control item.
        hear: takes what the agent says was heard (segment, seconds, now).
        tell: takes the agent's events, but for failures, which end `run`.
        voice: takes what the agent says is due, when the orchestrator publishes the voice.
        greet: takes what the agent says when it is reached.
        adopt_after: see `AgentLink`.
    """

    def __init__(
        self,
        session_id: str,
        lease: AgentLease,
        metrics: Metrics,
        *,
        take: Callable[[], LinkItem | None],
        control_waiting: Callable[[], bool],
        hear: Callable[[int, float, float], None],
        tell: Callable[[Event], None],
        voice: Callable[[LinkVoice], None],
        greet: Callable[[LinkHello], None],
        adopt_after: int | None = None,
    ) -> None:
        self.lease = lease
        self.vitals = Vitals(time.monotonic())
        self._hear, self._tell = hear, tell
        self._failure: asyncio.Future[ProblemError] = asyncio.get_running_loop().create_future()
        peer = LinkPeer(take, self._on_event, self._on_ack, voice, greet, control_waiting)
        self.link = AgentLink(lease, session_id, peer, metrics, adopt_after=adopt_after)

    async def run(self, at_agent_s: Callable[[], float]) -> None:
        """Returns never. Cancelling closes the link. `at_agent_s`: seconds of speech the agent has that nobody heard yet.

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
                self._check(time.monotonic(), at_agent_s())
        finally:
            link.cancel()
            await asyncio.gather(link, return_exceptions=True)

    def figures(self, now: float) -> dict[str, Any]:
        """For `/debug/audio`: what the agent said last, and how long ago."""
        ack, at = self.vitals.last, self.vitals.ack_at
        return {
            "ack_age_s": round(now - at, 3) if at is not None else None,
            "segment": ack.segment if ack else 0,
            "heard_s": round(ack.heard_s, 3) if ack else 0.0,
            "frames": ack.frames if ack else 0,
            "delay_ms": round(1000 * self.link.delay_s, 1),
            "draining": self.vitals.draining,
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
            self.vitals.gone(now)
            return
        reason = self.vitals.hung(now, unacked=self.link.unacked, at_agent_s=at_agent_s)
        if reason is not None:
            raise AgentLost("hung", f"its agent hangs: {reason}", now)

    def _judge(self, problem: ProblemError) -> Exception:
        """A device that failed is one agent's trouble; anything else would happen to the next one too."""
        if problem.code is ErrorCode.ENGINE_FAILED:
            return AgentLost("engine_failed", problem.detail, time.monotonic())
        return problem

    def _on_ack(self, ack: LinkAck) -> None:
        now = time.monotonic()
        self.vitals.acked(ack, now)
        if ack.segment:
            self._hear(ack.segment, ack.heard_s, now)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, PublisherChanged):
            self.vitals.published(event.publisher, time.monotonic())
        if not isinstance(event, Failed):
            self._tell(event)
        elif not self._failure.done():
            self._failure.set_result(ProblemError(_code(event.code), event.message))


def _code(code: str) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL
