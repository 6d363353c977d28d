"""An agent that speaks the real inner protocol over real sockets and plays nothing: time passes only when a test says so.

Segments finish as soon as their end has come, unless `hold` is set: then they stay open until `release()` or a clear. With `pace`
they are played, so many seconds a second, and acknowledged with their positions. Every item of the link is recorded. `cut()` ends
the link as a network would, `hung` is a process that was stopped.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocketDisconnect

from musetalk_agent.protocol.http import (
    FUNNEL_STAGES,
    AgentActionRequest,
    AgentAvatarRequest,
    AgentDebug,
    AgentHealth,
    AgentSession,
    AgentStartRequest,
    AvatarReport,
    Capacity,
    Diagnosis,
    DiagnosisCode,
    FunnelStage,
    Playback,
    PublisherMode,
    PublisherRequest,
    SessionState,
    TrackInfo,
    Transport,
)
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import MEDIA_TYPE, ErrorCode, ProblemError
from musetalk_agent.session.link import ACK_BYTES
from tests.fakes.agent_avatars import FakeAvatars
from tests.fakes.agent_session import FakeSession
from tests.fakes.film_agent import FakeFilms

AGENT_KEY = "agent-key-of-the-tests"
AVATAR_ID = "sha256:0123"


class FakeAgent:
    """State of the agent, and the ASGI app in front of it."""

    def __init__(self) -> None:
        self.sessions: dict[str, FakeSession] = {}
        self.stopped: list[str] = []
        self.every_socket: list[WebSocket] = []
        self.sessions_max = 8
        self.viewers = 1
        """In the room of each session that begins."""
        self.shows = True
        """Whether it reports pictures while it plays."""
        self.draining = False
        self.status = "ok"
        self.hold = False
        self.pace = 0.0
        self.hung = False
        self.may_start = asyncio.Event()
        """While it is clear, starts wait."""
        self.may_start.set()
        self.refuse_link = False
        self.full_times = 0
        self.start_error: ProblemError | None = None
        self.start_breaks = False
        """A start ends the connection without an answer, as one that kills the agent does."""
        self.starts = 0
        """Starts that were asked for."""
        self.drop_link_after: int | None = None
        """Items after which the link is cut without an acknowledgement, again and again."""
        self.acknowledges = True
        """Whether items are acknowledged as they come."""
        self.films = FakeFilms()
        self.avatars = FakeAvatars()
        self.instance = f"fake-{id(self):x}"
        """Another one is another process."""
        self.app = self._make_app()

    @property
    def only(self) -> FakeSession:
        """The one session there is."""
        (session,) = self.sessions.values()
        return session

    def release(self) -> None:
        """Plays everything that is held to its end."""
        for session in self.sessions.values():
            for segment in session.segments.values():
                if segment.ended:
                    session.finish(segment)

    def begin(self, number: int = 1) -> None:
        """The first sample of the segment is heard."""
        self.only.begin(self.only.segments[number])

    async def cut(self) -> None:
        """Ends every link."""
        for session in self.sessions.values():
            for socket in list(session.sockets):
                await socket.close(1012)

    # --- HTTP

    def _make_app(self) -> FastAPI:
        app = FastAPI(openapi_url=None)

        @app.middleware("http")
        async def key(request: Request, call_next: Any) -> Response:
            while self.hung:  # noqa: ASYNC110 - a stopped process, which a test makes go on by the flag
                await asyncio.sleep(0.02)
            if request.url.path != "/health" and request.headers.get("authorization") != f"Bearer {AGENT_KEY}":
                return _problem(ProblemError(ErrorCode.UNAUTHORIZED, "no key"))
            return await call_next(request)  # type: ignore[no-any-return]

        @app.exception_handler(ProblemError)
        async def problem(request: Request, error: ProblemError) -> Response:
            return _problem(error)

        app.add_api_route("/session/start", self._start, methods=["POST"])
        app.add_api_route("/session/{session_id}", self._get, methods=["GET"])
        app.add_api_route("/session/{session_id}/stop", self._stop, methods=["POST"])
        app.add_api_route("/session/{session_id}/publisher", self._publisher, methods=["POST"])
        app.add_api_route("/session/{session_id}/avatar", self._avatar, methods=["POST"])
        app.add_api_route("/session/{session_id}/action", self._action, methods=["POST"])
        self.films.add_to(app)
        self.avatars.add_to(app)
        app.add_api_route("/health", self._health, methods=["GET"])
        app.add_api_route("/debug", self._debug, methods=["GET"])
        app.add_api_websocket_route("/audio", self._audio)
        return app

    async def _start(self, body: AgentStartRequest) -> AgentSession:
        self.starts += 1
        if self.start_breaks:
            raise ConnectionAbortedError("the process dies of it")
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error
        self.avatars.check(body.avatar.avatar_id)
        self.full_times -= 1
        if self.full_times >= 0 or len(self.sessions) >= self.sessions_max:
            raise ProblemError(ErrorCode.AT_CAPACITY, "full", retry_after_s=3)
        self.sessions[body.session_id] = FakeSession(body, viewers=self.viewers)
        if body.film is not None:
            self.films.begin(body.session_id, body.film)
        return self._view(body.session_id)

    async def _get(self, session_id: str) -> AgentSession:
        return self._view(session_id)

    async def _stop(self, session_id: str) -> AgentSession:
        view = self._view(session_id)
        self.stopped.append(session_id)
        self.films.close(session_id)
        session = self.sessions.pop(session_id)
        for socket in list(session.sockets):
            await socket.close(1001)
        return view.model_copy(update={"state": SessionState.STOPPED})

    async def _publisher(self, session_id: str, body: PublisherRequest) -> AgentSession:
        view = self._view(session_id)
        request = self.sessions[session_id].request
        if body.mode is PublisherMode.RTMP and request.rtmp is None:
            raise ProblemError(ErrorCode.PUBLISHER_UNAVAILABLE, "no RTMP target")
        self.sessions[session_id].mode = body.mode
        return view.model_copy(update={"transport": Transport(mode=body.mode)})

    async def _avatar(self, session_id: str, body: AgentAvatarRequest) -> AgentSession:
        view = self._view(session_id)
        await self.avatars.may_show.wait()
        self.avatars.check(body.avatar.avatar_id)
        self.avatars.shown.append(body)
        return view

    async def _action(self, session_id: str, body: AgentActionRequest) -> AgentSession:
        view = self._view(session_id)
        if not body.avatar.empty:
            self.avatars.check(body.avatar.avatar_id)
        self.avatars.played.append(body)
        return view

    async def _health(self) -> Response:
        body = AgentHealth(
            status=self.status,
            version="0",
            engine="warp",
            capacity=Capacity(sessions=len(self.sessions), sessions_max=self.sessions_max),
            draining=self.draining,
            instance=self.instance,
        )
        return JSONResponse(body.model_dump(), status_code=200 if self.status == "ok" else 503)

    async def _debug(self) -> AgentDebug:
        return AgentDebug(engine="warp", device="cpu", sessions=[self._view(s) for s in self.sessions])

    def _view(self, session_id: str) -> AgentSession:
        session = self.sessions.get(session_id)
        if session is None:
            raise ProblemError(ErrorCode.SESSION_NOT_FOUND, "no such session")
        request = session.request
        return AgentSession(
            session_id=session_id,
            state=session.state,
            room=request.room,
            publisher="livekit" if request.connect_livekit else "null",
            engine=request.engine or "warp",
            fps=request.picture.fps,
            width=request.picture.width or 512,
            height=request.picture.height or 512,
            avatar=AvatarReport(avatar_id=AVATAR_ID, frames=100, width=512, height=512, fps=25, face_px=212),
            viewers=session.viewers,
            speaker_present=session.speaker_present,
            microphone=session.microphone,
            playback=Playback(),
            transport=Transport(mode=session.mode),
            diagnosis=Diagnosis(code=DiagnosisCode.NO_AUDIO, message="No audio came."),
            funnel=[FunnelStage(stage=name, count=n, last_error=None) for n, name in enumerate(FUNNEL_STAGES)],
            tracks=[TrackInfo(kind="audio", sid="TR_a", muted=False), TrackInfo(kind="video", sid="TR_v", muted=False)],
            started_at="2026-11-21T10:00:00Z",
            error=session.error,
        )

    # --- the link

    async def _audio(self, socket: WebSocket, session_id: str, events_after: int = 0) -> None:
        if socket.headers.get("authorization") != f"Bearer {AGENT_KEY}":
            await socket.send_denial_response(_problem(ProblemError(ErrorCode.UNAUTHORIZED, "no key")))
            return
        if self.refuse_link:
            await socket.send_denial_response(_problem(ProblemError(ErrorCode.NOT_READY, "not now")))
            return
        session = self.sessions.get(session_id)
        if session is None:
            await socket.send_denial_response(_problem(ProblemError(ErrorCode.SESSION_NOT_FOUND, "none")))
            return
        await socket.accept()
        session.connections += 1
        session.sockets.append(socket)
        self.every_socket.append(socket)
        await socket.send_text(session.hello().model_dump_json())
        tasks = [asyncio.create_task(_write(session, socket, events_after))]
        tasks.append(asyncio.create_task(self._play(session, socket) if self.pace else self._show(session, socket)))
        try:
            await self._read(session, socket)
        except WebSocketDisconnect:
            pass
        finally:
            session.sockets.remove(socket)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _show(self, session: FakeSession, socket: WebSocket) -> None:
        """While speech is held, pictures go on, so that however long a test takes the agent is none that hangs."""
        while True:
            await asyncio.sleep(0.5)  # the pace of a fake's frames: no test waits for it
            if self.hold and not self.hung and self.acknowledges:
                session.frames += 1
                await socket.send_text(session.ack().model_dump_json())

    async def _play(self, session: FakeSession, socket: WebSocket) -> None:
        """Time passes; every 50 ms the agent says where it is."""
        session.played_at = time.monotonic()
        for tick in count():
            await asyncio.sleep(0.01)
            self.play_on(session)
            if not self.hung and tick % 5 == 0:
                session.frames += self.shows
                session.reports += 1
                ack = session.ack().model_copy(update={"draining": self.draining})
                await socket.send_text(ack.model_dump_json())

    def play_on(self, session: FakeSession) -> None:
        """It has played until now."""
        now = time.monotonic()
        if not self.hung:
            session.play((now - session.played_at) * self.pace)
        session.played_at = now

    async def _read(self, session: FakeSession, socket: WebSocket) -> None:
        taken = 0
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            while self.hung:  # noqa: ASYNC110 - a stopped process, which a test makes go on by the flag
                await asyncio.sleep(0.02)
            if self.drop_link_after is not None and taken >= self.drop_link_after:
                await socket.close(1012)  # what is on its way now is lost
                return
            taken += 1
            session.items += 1
            session.take(message, at_once=not self.hold and not self.pace)
            large = len(message.get("bytes") or b"") >= ACK_BYTES
            if (
                self.acknowledges
                and (large or not self.pace)
                and (self.drop_link_after is None or session.items % 3 == 0)
            ):
                await socket.send_text(session.ack().model_dump_json())


async def _write(session: FakeSession, socket: WebSocket, sent: int) -> None:
    while True:
        session.wake.clear()
        while sent < len(session.events):
            await socket.send_text(session.events[sent].model_dump_json())
            sent += 1
        await session.wake.wait()


def _problem(error: ProblemError) -> Response:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    body = Problem.of(error).model_dump(mode="json", exclude_none=True)
    return JSONResponse(body, status_code=error.status, headers=headers, media_type=MEDIA_TYPE)
