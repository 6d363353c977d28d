"""Moves a session whose agent was lost, or is about to leave, to another one, under the same identity."""

from __future__ import annotations

import asyncio
import logging
import time

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.client import AgentFailed, AgentLease
from orchestrator.session.agent_side import AgentLost
from orchestrator.session.live import LiveSession
from orchestrator.session.placing import Placing, Tries
from orchestrator.session.record import Session
from orchestrator.session.services import Services
from orchestrator.session.telling import tell_state

MOVE_S = 20.0
"""How long a session may be without an agent."""
MOVES = 5
MOVES_WITHIN_S = 600.0
"""At most so many moves in so many seconds: what fails everywhere is not the agents' fault."""
POLL_S = 0.25
PAUSE_S = 5.0
"""How long a planned move waits for a pause in speech."""
_log = logging.getLogger(__name__)


class Moving:
    """Moves sessions."""

    def __init__(self, services: Services, placing: Placing) -> None:
        self._services = services
        self._placing = placing

    async def move(self, session: Session, live: LiveSession, lost: AgentLost, to: AgentLease | None = None) -> None:
        """Takes the session from its agent to another, `to` if that can take it. Its link is the caller's to open.

        Raises ProblemError `agent_unavailable` when none takes it within 20 s, or when it has moved too often. Cancelling leaves
        what `_close` undoes.
        """
        old = session.lease
        assert old is not None
        live.rewind(*live.position(lost.at))
        self._admit(session, lost)
        session.note_loss(time.time(), time.monotonic())
        live.traces.lost(lost.cause)
        session.lease = None
        if lost.cause != "draining":
            self._services.pool.lost(old)
        self._services.metrics.moves.labels(cause=lost.cause).inc()
        extra = {"session_id": session.session_id, "cause": lost.cause, "detail": str(lost)}
        _log.warning("agent lost: the session moves", extra=extra)
        tell_state(self._services.events, session, SessionState.RECOVERING, lost.cause)
        self._placing.leave(session, old)
        async with self._services.voices.stand_in(session):
            await self._find(session, to, lost)
        self._services.metrics.move_seconds.observe(time.monotonic() - session.moved_at[-1])

    def _admit(self, session: Session, lost: AgentLost) -> None:
        since = time.monotonic() - MOVES_WITHIN_S
        if sum(at > since for at in session.moved_at) >= MOVES:
            raise ProblemError(
                ErrorCode.AGENT_UNAVAILABLE,
                f"The session was lost: {lost}, after {MOVES} moves in {MOVES_WITHIN_S / 60:g} minutes. Start another one.",
            )

    async def _find(self, session: Session, to: AgentLease | None, lost: AgentLost) -> None:
        """Asks every quarter of a second until an agent has taken the session.

        Agents that fail over it after they were reached are not asked again, and the second one ends it.
        """
        problem: ProblemError | None = None
        tries = Tries()
        try:
            async with asyncio.timeout(MOVE_S):
                while True:
                    lease = to
                    try:
                        lease = lease or await self._placing.acquire(session, tries.avoid)
                        await self._placing.start(session, lease)
                        return
                    except ProblemError as error:
                        problem, to = error, None
                        if lease is not None and isinstance(error, AgentFailed) and not tries.failed(lease, error):
                            raise
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            why = problem.detail if problem is not None else "no agent was ready in time"
            raise ProblemError(
                ErrorCode.AGENT_UNAVAILABLE,
                f"The session was lost: {lost}, and no other agent took it within {MOVE_S:g} s ({why}). Start another one.",
            ) from None

    async def wait_to_leave(self, session: Session, live: LiveSession) -> AgentLease:
        """Returns when the agent asks that the session be moved, another one has a place, and the speech pauses (5 s at most)."""
        assert session.lease is not None
        while live.side is None or not live.side.vitals.draining:  # noqa: ASYNC110 - there is no hurry
            await asyncio.sleep(POLL_S)
        while True:
            try:
                lease = await self._placing.acquire(session, frozenset({session.lease.name}))
                break
            except ProblemError:
                await asyncio.sleep(POLL_S)
        end = time.monotonic() + PAUSE_S
        while not live.pausing and time.monotonic() < end:  # noqa: ASYNC110 - the pause is a matter of time
            await asyncio.sleep(0.02)
        return lease
