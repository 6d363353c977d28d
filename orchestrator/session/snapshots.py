"""What agents last said of their sessions."""

from __future__ import annotations

import time
from contextlib import suppress

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.agents.client import AgentClient
from orchestrator.session.record import Session

FRESH_S = 0.5
SNAPSHOT_TIMEOUT_S = 2.0


async def refresh(agents: AgentClient, session: Session) -> None:
    """Asks the agent for the session's state, unless that was done a moment ago. Keeps the old one on failure.

    However many ask at the same time, the agent is asked once.
    """
    async with session.refreshing:
        lease = session.lease
        if lease is None or session.ended or time.monotonic() - session.snapshot_at < FRESH_S:
            return
        with suppress(ProblemError):
            snapshot = await agents.session(lease, session.session_id, SNAPSHOT_TIMEOUT_S)
            if session.lease is lease:
                session.snapshot = snapshot
        session.snapshot_at = time.monotonic()  # also when it did not answer: those who wait do not wait for it in turn
