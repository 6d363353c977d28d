"""`/debug/…`: why start answered 200, PCM flows, and no lips move."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from musetalk_agent.protocol.http import AgentDebug, AgentSession
from musetalk_agent.protocol.problems import ProblemError
from orchestrator.agents.agent_client import AgentLease, unavailable
from orchestrator.routes.context import Context, Ctx
from orchestrator.session.model import ManagedSession

router = APIRouter(prefix="/debug", tags=["debug"])


@router.get("/musetalk")
async def musetalk(ctx: Ctx) -> dict[str, Any]:
    """Weights, configuration and device as the agent sees them, and the funnel of every session.

    With several agents the first that answers describes the models; `agents` tells which ones answered.
    """
    leases = ctx.pool.leases()
    answers = await asyncio.gather(*(_debug(ctx, lease) for lease in leases))
    told = [answer for answer in answers if answer is not None]
    if not told:
        raise unavailable("none of them")
    body = told[0].model_dump(mode="json")
    body["sessions"] = [_session(ctx, session) for answer in told for session in answer.sessions]
    body["agents"] = [
        {"url": lease.base_url, "reachable": answer is not None, "engine": answer.engine if answer else None}
        for lease, answer in zip(leases, answers, strict=True)
    ]
    return body


def _session(ctx: Context, told: AgentSession) -> dict[str, Any]:
    """What its agent says of a session, and what only the orchestrator knows."""
    here = next((s for s in ctx.sessions.registry.running() if s.session_id == told.session_id), None)
    if here is not None:
        told = told.model_copy(update={"diagnosis": here.diagnosed(told.diagnosis)})
    return told.model_dump(mode="json")


async def _debug(ctx: Context, lease: AgentLease) -> AgentDebug | None:
    try:
        return await ctx.agents.debug(lease)
    except ProblemError:
        return None


@router.get("/audio")
async def audio(ctx: Ctx) -> dict[str, Any]:
    """The audio path of every running session: its source, rate, level, buffer, and the tracks in the room."""
    running = ctx.sessions.registry.running()
    await asyncio.gather(*(ctx.sessions.refresh(session) for session in running))
    return {"sessions": [_audio(ctx, session) for session in running]}


def _audio(ctx: Context, session: ManagedSession) -> dict[str, Any]:
    live, snapshot = session.live, session.snapshot
    now = time.monotonic()
    level = live.meter.level(now) if live else None
    return {
        "session_id": session.session_id,
        "room": session.order.room,
        "publisher": snapshot.publisher if snapshot else None,
        "state": session.state.value,
        "source": {
            "connected": live is not None and live.outbox.connection is not None,
            "received_samples": live.received_samples if live else 0,
            "sample_rate": live.effective_rate if live else None,
            "bytes_per_s": round(level.bytes_per_s, 1) if level else 0.0,
            "rms_dbfs": level.rms_dbfs if level else None,
            "peak_dbfs": level.peak_dbfs if level else None,
            "dropping_after_clear": live.dropping if live else False,
            "format_suspicion": live.suspicion if live else None,
        },
        "agent_link": {
            "url": session.lease.base_url if session.lease else None,
            "connected": live.link_connected if live else False,
            "drops": live.link_drops if live else 0,
            **(live.side.figures(now) if live and live.side else {}),
        },
        "voice": _voice(ctx, session),
        "moves": session.moves,
        "buffer_s": round(live.backlog_s, 3) if live else 0.0,
        "queues": asdict(live.queues()) if live else None,
        "tracks": [track.model_dump(mode="json") for track in snapshot.tracks] if snapshot else [],
    }


def _voice(ctx: Context, session: ManagedSession) -> dict[str, Any]:
    """Who speaks, over which track, with how much in hand."""
    own = ctx.sessions.voice(session)
    if own is not None and own.get("role") in ("speaks", "stands_in"):
        return {"source": "orchestrator", **own}
    live, tracks = session.live, session.snapshot.tracks if session.snapshot else []
    track = next((track.sid for track in tracks if track.kind == "audio"), None)
    figures: dict[str, Any] = {
        "source": "agent" if session.lease else None,
        "room": session.order.room if session.order.connect_livekit else None,
        "track": track if session.lease else None,
        "level": None,
        "buffer_s": round(live.at_agent_s, 3) if live else 0.0,
    }
    return figures if own is None else {**figures, "own": own}
