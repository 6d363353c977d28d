"""The agent's HTTP application, and the server that runs it. Only the orchestrator calls it, with the agent's own key."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from musetalk_agent.admission.admission import Admission
from musetalk_agent.admission.machine import Host
from musetalk_agent.agent_metrics import REGISTRY
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.engine_pool import OnLost
from musetalk_agent.factory import Factory
from musetalk_agent.protocol import traces
from musetalk_agent.protocol.http import VERSION, WARMING, AgentHealth
from musetalk_agent.protocol.http_server import TimedHttp
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.service.film_routes import router as film_router
from musetalk_agent.service.key_check import AgentAuthMiddleware, KeyChecker, problem_response
from musetalk_agent.service.link_server import LinkServer
from musetalk_agent.service.live_judge import LiveJudge
from musetalk_agent.service.live_sessions import LiveSessions
from musetalk_agent.service.mattes_ahead import MattesAhead
from musetalk_agent.service.preparation_routes import router as avatar_router
from musetalk_agent.service.render_workers import RenderWorkers
from musetalk_agent.service.routes import router
from musetalk_agent.service.warmup import WarmUp
from musetalk_agent.session.session import LEAVE_S, MEDIA_END_S, RELEASE_S
from musetalk_agent.tasks import Step, supervise, tear_down

log = logging.getLogger(__name__)

_SESSIONS_END_S = MEDIA_END_S + LEAVE_S + RELEASE_S + 5.0  # of all sessions at once, and of what is starting
_ENGINES_END_S = 20.0  # the steps of `Batcher.aclose`
_TRACES_END_S = 5.0
_BACKGROUND_END_S = 6.0  # workers of renders, and the judge


def create_app(
    settings: AgentSettings, on_start_failed: Callable[[], None] = lambda: None, on_engine_lost: OnLost = lambda: None
) -> FastAPI:
    """Builds the application. Engines warm up while the port is open: `/health` says `warming`, and no session starts.

    Args:
        settings: of the agent.
        on_start_failed: called on the event loop when an engine that the settings name does not start; `app.state.warmup.error`
            says why.
        on_engine_lost: see `EnginePool`.

    Raises `EngineUnknown`, `EngineUnavailable` or `WeightsMissing` when the engine that the settings name cannot run here.
    """
    factory = Factory(settings, on_engine_lost=on_engine_lost)
    admission = Admission(settings.max_sessions, Host(), factory.clock)

    async def start() -> None:
        await factory.start()
        await admission.measure()

    warmup = WarmUp(start, on_start_failed)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        traces.start("musetalk-agent")
        sessions = LiveSessions(factory, lambda: warmup.over, admission)
        app.state.factory, app.state.sessions = factory, sessions
        app.state.links = LinkServer(lambda: sessions.draining)
        warming = asyncio.create_task(warmup.run(), name="warm-up")
        looking = asyncio.create_task(supervise("admission", sessions.watch), name="admission")
        app.state.mattes = MattesAhead(factory.library, settings.cache_bytes, sessions.speaking)
        background = [*_render_workers(settings, sessions, factory), *_judge(settings, sessions, factory)]
        if settings.mattes_ahead:
            background.append(asyncio.create_task(app.state.mattes.run(), name="mattes"))
        try:
            yield
        finally:
            warming.cancel()
            looking.cancel()
            await asyncio.gather(warming, looking, return_exceptions=True)
            steps = [
                Step("background", partial(_ended, background), _BACKGROUND_END_S),
                Step("sessions", sessions.aclose, _SESSIONS_END_S),
                Step("engines", factory.aclose, _ENGINES_END_S),
                Step("traces", traces.stop, _TRACES_END_S),
            ]
            await tear_down("agent", steps)

    app = FastAPI(title="musetalk-agent", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.engines, app.state.warmup = settings, factory.engines, warmup
    app.state.instance = secrets.token_hex(8)
    app.state.key_checker = KeyChecker(settings.agent_api_key)
    app.add_middleware(AgentAuthMiddleware, key_checker=app.state.key_checker, open_metrics=settings.open_metrics)
    app.add_middleware(traces.TracedPosts)
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    app.include_router(router)
    app.include_router(film_router)
    app.include_router(avatar_router)
    app.add_api_route("/health", _health, response_model=AgentHealth)
    app.add_api_route("/metrics", _metrics)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StarletteHTTPException, _on_http)
    app.add_exception_handler(Exception, _on_crash)


def _render_workers(settings: AgentSettings, sessions: LiveSessions, factory: Factory) -> list[asyncio.Task[None]]:
    """The task that keeps the workers for renders, where there are to be any."""
    if settings.renders_dir is None or not settings.render_workers:
        return []
    workers = RenderWorkers(settings, sessions.speaking, lambda: factory.engines.device.startswith("cuda"))
    return [asyncio.create_task(workers.run(), name="renders")]


def _judge(settings: AgentSettings, sessions: LiveSessions, factory: Factory) -> list[asyncio.Task[None]]:
    """The task that judges samples, unless the settings say never."""
    if not settings.judge_every_s:
        return []
    judge = LiveJudge(settings.judge_every_s, factory.clock, sessions.live, settings.models_dir)
    return [asyncio.create_task(judge.run(), name="judge")]


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _health(request: Request, response: Response) -> AgentHealth:
    sessions: LiveSessions = request.app.state.sessions
    factory: Factory = request.app.state.factory
    warmup: WarmUp = request.app.state.warmup
    engine, note = factory.engines.default, factory.engines.note(None)
    if sessions.draining:
        status = "draining"
    elif not warmup.over:
        status, note = WARMING, warmup.note(engine)
    else:
        status = "ok" if factory.engines.ready else "engine_failed"
    if status != "ok":
        response.status_code = 503
    return AgentHealth(
        status=status,
        version=VERSION,
        engine=engine,
        engine_note=note,
        capacity=sessions.capacity(),
        draining=sessions.draining,
        instance=request.app.state.instance,
    )


async def _metrics() -> Response:
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


async def _on_problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProblemError)
    return problem_response(error)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    return problem_response(ProblemError(ErrorCode.INVALID_REQUEST, f"{field}: {first['msg']}", field=field))


async def _on_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error.__cause__, ProblemError):  # raised while FastAPI read the body
        return problem_response(error.__cause__)
    codes = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}
    return problem_response(ProblemError(codes.get(error.status_code, ErrorCode.INVALID_REQUEST), str(error.detail)))


async def _on_crash(request: Request, _: Exception) -> JSONResponse:
    log.error("request crashed", extra={"path": request.url.path})
    return problem_response(
        ProblemError(ErrorCode.INTERNAL, "The agent failed on this request; its log has the details.")
    )


_SHUTDOWN_S = 5  # for open requests, once nothing else is left
_WS_MAX_BYTES = 4 << 20


def server_config(app: FastAPI, *, host: str, port: int) -> uvicorn.Config:
    """uvicorn's configuration."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        http=TimedHttp,
        access_log=False,  # query strings would be logged
        ws="websockets-sansio",
        ws_max_size=_WS_MAX_BYTES,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


class AgentServer(uvicorn.Server):
    """Serves until SIGTERM, then takes no new session and ends when none is left, or when its time is up.

    Meanwhile links stay open, so that the orchestrator can move its sessions away. A second SIGTERM, or SIGINT, ends it at once.
    uvicorn by itself would close every WebSocket at the first one.
    """

    def __init__(self, app: FastAPI, settings: AgentSettings, *, host: str, port: int) -> None:
        super().__init__(server_config(app, host=host, port=port))
        self._state = app.state
        self._drain_s = settings.drain_s
        self._until: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal's handler; what it asks for is done on the next tick, ten a second."""
        if sig == signal.SIGTERM and self._until is None and self.started:
            self._until = time.monotonic() + self._drain_s
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        ends = await super().on_tick(counter)
        return ends or (self._until is not None and self._drained(self._until))

    def _drained(self, until: float) -> bool:
        sessions, links = self._state.sessions, self._state.links
        if not sessions.draining:
            log.info("draining", extra={"sessions": len(sessions.live()), "at_most_s": self._drain_s})
            sessions.drain()
        return (sessions.empty and links.empty) or time.monotonic() >= until
