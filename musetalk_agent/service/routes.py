"""The agent's routes. A start ends when its caller's connection ends: nothing reads the answer then."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request, WebSocket

from musetalk_agent.errors import PublisherUnavailable, SessionEnded
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import (
    AgentActionRequest,
    AgentAvatarRequest,
    AgentDebug,
    AgentSession,
    AgentStartRequest,
    PublisherRequest,
)
from musetalk_agent.protocol.problems import ProblemError
from musetalk_agent.publishers.base import MovingPublisher
from musetalk_agent.service.key_check import problem_response
from musetalk_agent.service.live_sessions import LiveSessions

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller's connection ends, or when this is. The body must have been read.

    Raises:
        SessionEnded: the caller has gone; nothing reads the answer.
    """
    job = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return await job
        raise SessionEnded(
            "The caller closed the connection before the session had started, so the start was given up."
        )
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


router = APIRouter()


async def _sessions(request: Request) -> LiveSessions:  # FastAPI calls what is not async in a thread, for each request
    sessions: LiveSessions = request.app.state.sessions
    return sessions


SessionsHere = Annotated[LiveSessions, Depends(_sessions)]


@router.post("/session/start")
async def start(body: AgentStartRequest, request: Request, sessions: SessionsHere) -> AgentSession:
    """Prepares the avatar, joins the room and publishes both tracks; answers when the server has acknowledged them.

    A caller that closes the connection meanwhile gives the start up.
    """
    return (await while_connected(request, sessions.start(body))).status()


@router.post("/session/{session_id}/stop")
async def stop(session_id: str, sessions: SessionsHere) -> AgentSession:
    """Ends the session; any number of times."""
    return await sessions.stop(session_id)


@router.get("/session/{session_id}")
async def session(session_id: str, sessions: SessionsHere) -> AgentSession:
    """State, playback, funnel and diagnosis."""
    return sessions.status(session_id)


@router.post("/session/{session_id}/publisher")
async def publisher(session_id: str, body: PublisherRequest, sessions: SessionsHere) -> AgentSession:
    """Sets which transports may be used; answers at once, and `transport` says which one is in use."""
    found = sessions.get(session_id)
    if not isinstance(found.publisher, MovingPublisher):
        text = "This session publishes nothing (connect_livekit false, and no rtmp_url); start another one."
        raise PublisherUnavailable(text, field="mode", value=body.mode.value)
    found.publisher.set_mode(body.mode)
    return found.status()


@router.post("/session/{session_id}/avatar")
async def avatar(session_id: str, body: AgentAvatarRequest, request: Request, sessions: SessionsHere) -> AgentSession:
    """Shows another avatar on the same tracks; answers when it is shown. Until then, and when it fails, the old one goes on."""
    return (await while_connected(request, sessions.change_avatar(session_id, body))).status()


@router.post("/session/{session_id}/action", status_code=202)
async def action(session_id: str, body: AgentActionRequest, request: Request, sessions: SessionsHere) -> AgentSession:
    """Plays a clip of the avatar; answers when it is about to begin."""
    return (await while_connected(request, sessions.act(session_id, body))).status()


@router.get("/debug")
async def debug(request: Request, sessions: SessionsHere) -> AgentDebug:
    """Engine, device, model files and every live session."""
    factory: Factory = request.app.state.factory
    engines = factory.engines
    config_path, config = await asyncio.to_thread(engines.model_config)
    return AgentDebug(
        engine=engines.default,
        engine_note=engines.note(None),
        engine_figures=engines.stats(),
        device=engines.device,
        config_path=config_path,
        files=await asyncio.to_thread(engines.model_files),
        unet_config=config,
        sessions=[s.status() for s in sessions.live()],
    )


@router.websocket("/audio")
async def audio(socket: WebSocket, session_id: str, events_after: Annotated[int, Query(ge=0)] = 0) -> None:
    """The inner link; see `protocol.messages`. Refused before the upgrade with problem+json."""
    try:
        socket.app.state.key_checker.admit(socket.headers.get("authorization"), socket.scope.get("client"))
        found = socket.app.state.sessions.get(session_id)
    except ProblemError as error:
        await socket.send_denial_response(problem_response(error))
        return
    await socket.app.state.links.serve(socket, found, events_after)
