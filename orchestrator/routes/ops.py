"""`/health`, `/metrics`, and `/debug/…`: diagnosis of the case that the start answered 200, PCM flows, and no lips move."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from musetalk_agent.protocol.http import VERSION, AgentDebug, AgentSession, SessionState
from musetalk_agent.protocol.problems import ProblemError
from orchestrator.agents.agent_client import AgentLease, unavailable
from orchestrator.routes.context import Context, Ctx
from orchestrator.session.model import ManagedSession

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(ctx: Ctx) -> Response:
    """200 when an agent is ready, else 503, as while the service drains. Names no addresses: it needs no key."""
    agents = await ctx.pool.status()
    usable = [agent for agent in agents if agent.usable]
    capacities = [agent.health.capacity for agent in usable if agent.health]
    status = "draining" if ctx.sessions.draining else "ok" if usable else "no_agent_ready"
    body = {
        "status": status,
        "version": VERSION,
        "store": "failing" if ctx.journal.failing else "ok",
        "agents": {"total": len(agents), "ready": len(usable)},
        "capacity": {
            "sessions": sum(c.sessions for c in capacities),
            "sessions_max": sum(c.sessions_max for c in capacities),
        },
    }
    return JSONResponse(body, status_code=200 if status == "ok" else 503, headers={"Cache-Control": "no-store"})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(ctx: Ctx) -> Response:
    """Prometheus text; needs a key as everything else."""
    sessions = ctx.sessions.registry.all()
    counts = Counter(session.state for session in sessions)
    for state in SessionState:
        ctx.metrics.sessions.labels(state=state.value).set(counts[state])
    lives = [session.live for session in sessions if session.live and not session.ended]
    ctx.metrics.backlog_seconds.set(sum(live.backlog_s for live in lives))
    queues = [live.queues() for live in lives]
    ctx.metrics.open_segments.set(sum(queue.segments for queue in queues))
    ctx.metrics.clears_waiting.set(sum(queue.clears for queue in queues))
    ctx.metrics.speech_ahead.set(sum(queue.speech_s for queue in queues))
    ctx.metrics.speech_notes.set(sum(queue.notes for queue in queues))
    return Response(generate_latest(ctx.metrics.registry), media_type=CONTENT_TYPE_LATEST)


debug_router = APIRouter(prefix="/debug", tags=["debug"])


@debug_router.get("/musetalk")
async def musetalk(ctx: Ctx) -> dict[str, Any]:
    """Weights, configuration and device as the agent sees them, and the funnel of every session.

    With several agents the first that answers describes the models; `agents` lists those that answered.
    """
    leases = ctx.pool.leases()
    answers = await asyncio.gather(*(_debug(ctx, lease) for lease in leases))
    reported = [answer for answer in answers if answer is not None]
    if not reported:
        raise unavailable("none of them")
    body = reported[0].model_dump(mode="json")
    body["sessions"] = [_session(ctx, session) for answer in reported for session in answer.sessions]
    body["agents"] = [
        {"url": lease.base_url, "reachable": answer is not None, "engine": answer.engine if answer else None}
        for lease, answer in zip(leases, answers, strict=True)
    ]
    return body


def _session(ctx: Context, reported: AgentSession) -> dict[str, Any]:
    """What its agent says of a session, and what only the orchestrator knows."""
    here = next((s for s in ctx.sessions.registry.running() if s.session_id == reported.session_id), None)
    if here is not None:
        reported = reported.model_copy(update={"diagnosis": here.diagnosed(reported.diagnosis)})
    return reported.model_dump(mode="json")


async def _debug(ctx: Context, lease: AgentLease) -> AgentDebug | None:
    try:
        return await ctx.agents.debug(lease)
    except ProblemError:
        return None


@debug_router.get("/audio")
async def audio(ctx: Ctx) -> dict[str, Any]:
    """The audio path of every running session: its source, rate, level, buffer, and the tracks in the room."""
    running = ctx.sessions.registry.running()
    await asyncio.gather(*(ctx.sessions.refresh(session) for session in running))
    return {"sessions": [_audio(ctx, session) for session in running]}


def _audio(ctx: Context, session: ManagedSession) -> dict[str, Any]:
    live, snapshot = session.live, session.snapshot
    now = time.monotonic()
    level = live.ingest.meter.level(now) if live else None
    return {
        "session_id": session.session_id,
        "room": session.order.room,
        "publisher": snapshot.publisher if snapshot else None,
        "state": session.state.value,
        "source": {
            "connected": live is not None and live.outbox.connection is not None,
            "received_samples": live.ingest.received_samples if live else 0,
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
        "conversation": ctx.conversations.debug(session.session_id),
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
