"""The composition root: settings in, an ASGI app out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Security
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from musetalk_agent.protocol import logs
from musetalk_agent.protocol.version import VERSION
from orchestrator.agents.client import AgentClient
from orchestrator.agents.pool import StaticAgentPool
from orchestrator.credentials import Credentials
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.routes import audio_ws, avatars, debug, events, ops, page, problems, sessions, speak, tokens
from orchestrator.routes.context import Context, RouteOptions
from orchestrator.routes.guard import Guard
from orchestrator.session.lifecycle import Services, SessionLifecycle
from orchestrator.session.registry import Idempotency
from orchestrator.settings import Settings
from orchestrator.tokens import Rooms, TokenMinter
from orchestrator.tts.voices import Voices

OPEN_PATHS = frozenset({"/health", "/docs", "/openapi.json", page.PAGE_TOKEN_PATH})
"""What needs no key, beside the page's files. The page token has conditions of its own."""
_DESCRIPTION = "Talking avatars for LiveKit rooms. Errors are application/problem+json with a stable `code`."


def create_app(settings: Settings, *, voices: Voices | None = None) -> FastAPI:
    """The orchestrator's app. It connects to nothing before its lifespan begins.

    Args:
        settings: the configuration.
        voices: text to speech; by default the voices that are installed.
    """
    credentials = Credentials(settings.api_keys)
    metrics = Metrics()
    spoken = voices or Voices(settings.voice)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logs.guard()
        context = _assemble(settings, credentials, metrics, spoken)
        app.state.context = context
        await context.rooms.open()
        try:
            await spoken.open()
            yield
        finally:
            await context.starts.aclose()
            await context.sessions.aclose()
            await spoken.aclose()
            await context.rooms.aclose()
            await context.agents.aclose()

    app = FastAPI(
        title="musetalk-livekit orchestrator",
        description=_DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    bearer = Security(HTTPBearer(auto_error=False, description="An API key."))  # says so in /docs; the guard checks it
    for module in (tokens, sessions, events, speak, avatars, debug):
        app.include_router(module.router, dependencies=[bearer])
    for module in (audio_ws, ops, page):
        app.include_router(module.router)
    app.include_router(page.page_router())
    app.add_api_route("/docs", _docs, include_in_schema=False)
    open_paths = OPEN_PATHS | {address for address, _ in page.files()}
    app.add_middleware(
        Guard,
        credentials=credentials,
        metrics=metrics,
        is_open=open_paths.__contains__,
        uploads=frozenset({avatars.PATH}),
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Filename"],
        )
    return app


def _assemble(settings: Settings, credentials: Credentials, metrics: Metrics, voices: Voices) -> Context:
    agents = AgentClient()
    pool = StaticAgentPool(settings.agent_url, settings.agent_api_key.get_secret_value(), agents)
    rooms, minter = Rooms(settings.livekit), TokenMinter(settings.livekit)
    bus = EventBus(metrics)
    services = Services(pool=pool, agents=agents, rooms=rooms, minter=minter, metrics=metrics, events=bus)
    return Context(
        options=RouteOptions(
            public_url=settings.public_url,
            viewer_token_ttl_s=settings.viewer_token_ttl_s,
            page_token_ttl_s=settings.page_token_ttl_s,
            page_token_enabled=settings.page_token_enabled,
            avatar_upload_bytes=settings.avatar_upload_bytes,
        ),
        credentials=credentials,
        metrics=metrics,
        events=bus,
        minter=minter,
        rooms=rooms,
        agents=agents,
        pool=pool,
        sessions=SessionLifecycle(services, settings.session_options),
        starts=Idempotency(),
        voices=voices,
    )


async def _docs() -> HTMLResponse:
    """The API's pages, from vendored files: they work without a network too."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="musetalk-livekit API",
        swagger_js_url="/vendor/swagger-ui-bundle.js",
        swagger_css_url="/vendor/swagger-ui.css",
        swagger_favicon_url="/favicon.svg",
    )
