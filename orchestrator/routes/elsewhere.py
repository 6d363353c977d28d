"""Sessions that are not this process's: what they are is told from the store, the rest is for their owner."""

from __future__ import annotations

from typing import Any

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.keys import Caller, Scope
from orchestrator.routes.context import Context
from orchestrator.session.model import ManagedSession
from orchestrator.store.session_store import StoredSession


async def here(ctx: Context, caller: Caller | None, session_id: str) -> ManagedSession:
    """The session, if it is this process's. `caller` None: the holder of the session's own token.

    Raises ProblemError: `session_elsewhere`, `session_conflict` while it is being taken over, `session_ended`,
    `session_not_found`, `store_unavailable`.
    """
    if ctx.sessions.registry.holds(session_id):
        return ctx.sessions.registry.get(session_id)
    record = await stored(ctx, caller, session_id)
    if record.ended:
        raise ProblemError(
            ErrorCode.SESSION_ENDED,
            f"Session {session_id} is {record.state.value}: start another one.",
            value=session_id,
        )
    holder = await ctx.ledger.holder(session_id)
    if holder is None or holder == ctx.ledger.owner:
        text = f"Session {session_id} is being taken over by another orchestrator: try again."
        raise ProblemError(ErrorCode.SESSION_CONFLICT, text, retry_after_s=2)
    text = f"Another orchestrator owns session {session_id}: ask there."
    raise ProblemError(ErrorCode.SESSION_ELSEWHERE, text, value=record.owner_url)


async def stored(ctx: Context, caller: Caller | None, session_id: str) -> StoredSession:
    """What the store has of it. Raises ProblemError `session_not_found`, also for another caller's, `store_unavailable`."""
    record = await ctx.ledger.elsewhere(session_id)
    if record is None or (caller is not None and not _sees(caller, record)):
        raise ctx.sessions.registry.unknown(session_id)
    return record


async def views(ctx: Context, caller: Caller, known: set[str]) -> list[dict[str, Any]]:
    """Every other session that the caller sees."""
    return [record.view for record in await ctx.ledger.others(known) if _sees(caller, record)]


def _sees(caller: Caller, record: StoredSession) -> bool:
    return caller.scope is not Scope.STARTER or record.key == caller.name
