"""The agent's HTTP application. Only the orchestrator calls it, with the agent's own key."""

from __future__ import annotations

import gc
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from musetalk_agent.factory import Factory
from musetalk_agent.metrics import REGISTRY
from musetalk_agent.protocol import traces
from musetalk_agent.protocol.http import AgentHealth
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.version import VERSION
from musetalk_agent.service.auth import Door, Guard, problem_response
from musetalk_agent.service.link_server import LinkServer
from musetalk_agent.service.routes import router
from musetalk_agent.service.sessions import Sessions
from musetalk_agent.session.session import LEAVE_S, MEDIA_END_S, RELEASE_S
from musetalk_agent.settings import AgentSettings
from musetalk_agent.tasks import Step, tear_down

log = logging.getLogger(__name__)

_SESSIONS_END_S = MEDIA_END_S + LEAVE_S + RELEASE_S + 5.0  # of all sessions at once, and of what is starting
_ENGINES_END_S = 20.0  # the steps of `Batcher.aclose`
_TRACES_END_S = 5.0


def create_app(settings: AgentSettings) -> FastAPI:
    """Builds the application. Engines warm up in its lifespan: the port opens when they have.

    Raises `EngineUnknown`, `EngineUnavailable` or `WeightsMissing` when the engine that the settings name cannot run here.
    """
    factory = Factory(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        traces.start("musetalk-agent")
        sessions: Sessions | None = None
        try:
            await factory.start()
            gc.collect()
            gc.freeze()
            sessions = Sessions(factory)
            app.state.factory, app.state.sessions = factory, sessions
            app.state.links = LinkServer(lambda: app.state.sessions.draining)
            yield
        finally:
            steps = [Step("engines", factory.aclose, _ENGINES_END_S), Step("traces", traces.stop, _TRACES_END_S)]
            if sessions is not None:
                steps.insert(0, Step("sessions", sessions.aclose, _SESSIONS_END_S))
            await tear_down("agent", steps)

    app = FastAPI(title="musetalk-agent", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.settings, app.state.engines = settings, factory.engines
    app.state.instance = secrets.token_hex(8)
    app.state.door = Door(settings.agent_api_key)
    app.add_middleware(Guard, door=app.state.door, open_metrics=settings.open_metrics)
    app.add_middleware(traces.TracedPosts)
    app.include_router(router)
    app.add_api_route("/health", _health, response_model=AgentHealth)
    app.add_api_route("/metrics", _metrics)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(StarletteHTTPException, _on_http)
    app.add_exception_handler(Exception, _on_crash)
    return app


async def _health(request: Request, response: Response) -> AgentHealth:
    sessions: Sessions = request.app.state.sessions
    factory: Factory = request.app.state.factory
    status = "draining" if sessions.draining else "ok" if factory.engines.ready else "engine_failed"
    if status != "ok":
        response.status_code = 503
    return AgentHealth(
        status=status,
        version=VERSION,
        engine=factory.engines.default,
        engine_note=factory.engines.note(None),
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
