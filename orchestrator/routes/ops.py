"""`/health` and `/metrics`."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.version import VERSION
from orchestrator.routes.context import Ctx

router = APIRouter(tags=["operations"])


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(ctx: Ctx) -> Response:
    """200 when an agent is ready, else 503, as while the service drains. Tells no addresses: it is open to everybody."""
    agents = await ctx.pool.status()
    usable = [agent for agent in agents if agent.usable]
    capacities = [agent.health.capacity for agent in usable if agent.health]
    status = "draining" if ctx.sessions.draining else "ok" if usable else "no_agent_ready"
    body = {
        "status": status,
        "version": VERSION,
        "store": "failing" if ctx.ledger.failing else "ok",
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
