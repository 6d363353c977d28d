"""The composition root: settings in, an ASGI app out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Security
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from musetalk_agent.protocol import logs, traces
from musetalk_agent.protocol.http import VERSION
from musetalk_agent.protocol.problems import ProblemError
from musetalk_agent.protocol.throttle import Failures
from orchestrator.agents.agent_client import AgentClient
from orchestrator.agents.modal_pool import ModalAgentPool, ModalSessions
from orchestrator.agents.pool import AgentPool, StaticAgentPool
from orchestrator.audit import AuditLog
from orchestrator.avatars.avatar_library import Avatars
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.conversations import Conversations
from orchestrator.conversation.tool_calls import ToolCaller, ToolCalls
from orchestrator.events import EventBus
from orchestrator.keys import Credentials, KeyRing, KeysFile, operators
from orchestrator.livekit_rooms import Ingresses, LiveKitClient, Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.public_tokens import PublicTokens
from orchestrator.quotas import Quotas
from orchestrator.recording.film_store import FilmStore, FolderStore
from orchestrator.recording.films import Films
from orchestrator.recording.room_films import RoomEgress
from orchestrator.recovery import make_store, surviving
from orchestrator.render_orders import Renders
from orchestrator.routes import (
    audio_ws,
    avatar_routes,
    conversation_routes,
    error_responses,
    openai_api,
    ops,
    page,
    public_sessions,
    recording,
    render_routes,
    session_events,
    session_routes,
    speak,
    speak_ws,
    viewer_tokens,
)
from orchestrator.routes.auth import Access, AuthMiddleware, takes_public_tokens
from orchestrator.routes.context import Context, OwnAddress, RouteOptions
from orchestrator.routes.idempotency import Idempotency
from orchestrator.routes.public_access import PublicPreflights
from orchestrator.session.clip_player import ClipPlayer, ConversationClips
from orchestrator.session.deps import SessionDeps
from orchestrator.session.journal import SessionJournal
from orchestrator.session.manager import SessionManager
from orchestrator.session.model import SessionRequest
from orchestrator.session.standby_voice import StandbyVoices
from orchestrator.settings import Settings
from orchestrator.supervision import run_each
from orchestrator.tts import lexicon
from orchestrator.tts.voice_choice import is_auto
from orchestrator.tts.voices import Voices, synthesizers
from orchestrator.voice.voice_worker import VoiceWorker
from orchestrator.webhooks import Endpoint, Webhooks, secret

CLOSE_S = 15.0
"""How long each step of the end may take."""
_log = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/health", "/docs", "/openapi.json", page.PAGE_TOKEN_PATH})
"""What needs no key, beside the page's files. The page token has conditions of its own."""
_DESCRIPTION = "Talking avatars for LiveKit rooms. Errors are application/problem+json with a stable `code`."


def create_app(settings: Settings, *, voices: Voices | None = None) -> FastAPI:
    """The orchestrator's app. It connects to nothing before its lifespan begins.

    Args:
        settings: the configuration.
        voices: text to speech; by default the voices that are installed.
    """
    metrics = Metrics()
    access = _access(settings, metrics)
    spoken = voices or _voices(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        logs.guard()
        traces.start("musetalk-orchestrator")
        context = _assemble(settings, access, metrics, spoken)
        app.state.context = context
        warming = asyncio.create_task(spoken.open(), name="voices")
        await asyncio.sleep(0)  # from its first step on `/speak` waits for it
        try:
            await context.rooms.open()
            await context.ingresses.open()
            await context.films.open()
            async with _trust(settings, access, metrics):
                context.own_voices.open()
                await context.renders.open()
                await context.avatars.open()
                async with surviving(context):
                    yield
        finally:
            await _close(context, spoken, warming)

    app = FastAPI(
        title="musetalk-livekit orchestrator",
        description=_DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    error_responses.install(app)
    _add_routes(app)
    _add_guards(app, settings, access, metrics)
    return app


async def _close(context: Context, spoken: Voices, warming: asyncio.Task[None]) -> None:
    """Ends every part, each whatever becomes of the others."""
    warming.cancel()
    await run_each(
        ("voices' start", partial(asyncio.wait, {warming})),
        ("renders", context.renders.aclose),
        ("avatars", context.avatars.aclose),
        ("conversations", context.conversations.aclose),
        ("own voices", context.own_voices.aclose),
        ("webhooks", context.webhooks.aclose),
        ("voices", spoken.aclose),
        ("films", context.films.aclose),
        ("ingresses", context.ingresses.aclose),
        ("rooms", context.rooms.aclose),
        ("pool", context.pool.aclose),
        ("agents", context.agents.aclose),
        ("traces", traces.stop),
        within_s=CLOSE_S,
    )
    if not warming.cancelled() and (failure := warming.exception()) is not None:
        _log.error("the voices did not start", exc_info=failure)


def _voices(settings: Settings, metrics: Metrics) -> Voices:
    return Voices(
        settings.voice,
        synthesizers=synthesizers(
            settings.voice_options, metrics, languages=settings.voice is None or is_auto(settings.voice)
        ),
        lexicon=lexicon.load(settings.lexicon_file) if settings.lexicon_file is not None else None,
    )


def _add_routes(app: FastAPI) -> None:
    bearer = Security(HTTPBearer(auto_error=False, description="An API key."))  # says so in /docs; the guard checks it
    app.include_router(speak.growing)  # before the other route of its address
    for module in (
        viewer_tokens,
        session_routes,
        session_events,
        speak,
        avatar_routes,
        conversation_routes,
        openai_api,
        public_sessions,
        recording,
        render_routes,
    ):
        app.include_router(module.router, dependencies=[bearer])
    app.include_router(ops.debug_router, dependencies=[bearer])
    for module in (audio_ws, speak_ws, ops, page):
        app.include_router(module.router)
    app.include_router(page.page_router())
    app.add_api_route("/docs", _docs, include_in_schema=False)


def _add_guards(app: FastAPI, settings: Settings, access: Access, metrics: Metrics) -> None:
    open_paths = OPEN_PATHS | page.load().by_address.keys()
    app.add_middleware(
        AuthMiddleware,
        access=access,
        metrics=metrics,
        is_open=lambda path: path in open_paths or path.startswith(page.ASSETS),
        uploads=avatar_routes.takes_clips,
        page_policy=page.content_policy(settings.livekit.public_url, settings.public_url),
        secure=(settings.public_url or "").startswith("https://"),
        public_url=settings.public_url,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Filename", "Range"],
            expose_headers=["Retry-After", "Content-Range"],
        )
    app.add_middleware(
        PublicPreflights, is_public=takes_public_tokens
    )  # outside of CORS_ORIGINS, which answers every preflight
    app.add_middleware(traces.TracedPosts)


def _access(settings: Settings, metrics: Metrics) -> Access:
    return Access(
        credentials=Credentials(
            KeyRing(operators(settings.api_keys)), settings.token_secret, page_tokens=settings.page_token_enabled
        ),
        audit=AuditLog(settings.audit_log, metrics),
        quotas=Quotas(),
        failures=Failures(),
    )


@asynccontextmanager
async def _trust(settings: Settings, access: Access, metrics: Metrics) -> AsyncIterator[None]:
    """The keys file is watched, and the audit log written."""
    path = settings.orchestrator_keys_file
    keys = KeysFile(path, access.credentials.keys, metrics) if path else None
    await asyncio.to_thread(access.audit.open)
    try:
        if keys is not None:
            await keys.open()
        yield
    finally:
        try:
            if keys is not None:
                await keys.aclose()
        finally:
            await asyncio.to_thread(access.audit.close)


def _assemble(settings: Settings, access: Access, metrics: Metrics, voices: Voices) -> Context:
    agents, store, bus = AgentClient(), make_store(settings), EventBus(metrics)
    pool, address = _pool(settings, agents), OwnAddress()
    rooms, minter = Rooms(settings.livekit), TokenMinter(settings.livekit, lambda: store.deployment_id)
    own_voices = StandbyVoices(VoiceWorker(metrics), minter, rooms, metrics, settings.voice_standby)
    ingresses = Ingresses(settings.livekit, settings.livekit_ingress, lambda: store.deployment_id)
    journal = SessionJournal(store, settings.livekit.api_secret, settings.public_url, metrics)
    tools = ToolCalls(
        lambda each: tool_caller(settings, sessions, each), bus, metrics, allow_private=settings.allow_private_urls
    )
    conversations = Conversations(
        settings.conversation_options, bus, metrics, partial(_own_speech, address, access), tools=tools
    )
    films = _films(settings, agents, bus, metrics)
    avatars, public_tokens = Avatars(settings.avatar_options, pool, agents), PublicTokens(store, settings.token_secret)
    services = SessionDeps(
        pool=pool,
        agents=agents,
        rooms=rooms,
        minter=minter,
        metrics=metrics,
        events=bus,
        journal=journal,
        ingresses=ingresses,
        conversations=conversations,
        public_tokens=public_tokens,
        films=films,
        avatars=avatars,
        voices=own_voices,
    )
    sessions = SessionManager(services, settings.session_options)
    webhooks = Webhooks(partial(endpoints, settings, sessions), metrics, allow_private=settings.allow_private_urls)
    clips = ClipPlayer(sessions, avatars, services.background)
    for listener in (webhooks, ConversationClips(sessions, avatars, services.background), clips):
        bus.listen(listener.on_event)
    return Context(
        options=_route_options(settings),
        access=access,
        metrics=metrics,
        events=bus,
        journal=journal,
        webhooks=webhooks,
        minter=minter,
        rooms=rooms,
        ingresses=ingresses,
        agents=agents,
        pool=pool,
        sessions=sessions,
        starts=_starts(sessions),
        voices=voices,
        own_voices=own_voices,
        conversations=conversations,
        public_tokens=public_tokens,
        films=films,
        tools=tools,
        renders=_renders(settings, voices, bus, metrics, avatars),
        avatars=avatars,
        clips=clips,
        address=address,
    )


def _renders(settings: Settings, voices: Voices, bus: EventBus, metrics: Metrics, avatars: Avatars) -> Renders:
    speech = settings.session_options.speech
    return Renders(settings.render_options, voices, speech, bus, metrics, avatars.copy_clip)


def _films(settings: Settings, agents: AgentClient, bus: EventBus, metrics: Metrics) -> Films:
    keys = settings.livekit
    egress = RoomEgress(LiveKitClient(keys.url, keys.api_key, keys.api_secret), settings.egress_dir)
    return Films(_film_store(settings), agents, bus, metrics, settings.recording_days, egress)


def _film_store(settings: Settings) -> FilmStore:
    if settings.recording_url is None:
        return FolderStore(settings.recording_dir)
    from orchestrator.recording.s3_store import S3FilmStore  # the extra [s3]

    return S3FilmStore(settings.recording_url)


def _own_speech(address: OwnAddress, access: Access) -> Provider | None:
    return address.speech(access.credentials.speech_token())


def _starts(sessions: SessionManager) -> Idempotency[dict[str, object]]:
    return Idempotency(
        holds=lambda answer: sessions.goes_on(str(answer["session_id"])),
        abandon=lambda answer: sessions.abandon(str(answer["session_id"])),
    )


def _route_options(settings: Settings) -> RouteOptions:
    return RouteOptions(
        public_url=settings.public_url,
        viewer_token_ttl_s=settings.viewer_token_ttl_s,
        page_token_ttl_s=settings.page_token_ttl_s,
        page_token_enabled=settings.page_token_enabled,
        avatar_upload_bytes=settings.avatar_upload_bytes,
        allowed_origins=frozenset(settings.allowed_origins or settings.cors_origins),
        audio_idle_s=settings.audio_idle_s,
        webhooks_signed=bool(settings.webhook_secrets),
    )


def _pool(settings: Settings, agents: AgentClient) -> AgentPool:
    key = settings.agent_api_key.get_secret_value()
    if settings.agent_pool == "static":
        return StaticAgentPool(settings.agent_url, key, agents)
    return ModalAgentPool(ModalSessions(settings.modal_app, settings.modal_agent), key, agents, settings.modal_options)


def endpoints(settings: Settings, sessions: SessionManager, session_id: str) -> list[Endpoint]:
    """The webhook endpoints of a session's events: the deployment's, and the session's own."""
    common = [Endpoint(url, settings.webhook_secrets) for url in settings.webhook_url]
    try:
        order = sessions.registry.get(session_id).order
    except ProblemError:
        return common
    if order.webhook_url is None:
        return common
    return [*common, Endpoint(order.webhook_url, _secrets(settings, order), owner=order.key)]


def tool_caller(settings: Settings, sessions: SessionManager, session_id: str) -> ToolCaller:
    """Who calls a tool. Raises ProblemError `session_not_found`."""
    order = sessions.registry.get(session_id).order
    return ToolCaller(order.room, _secrets(settings, order))


def _secrets(settings: Settings, order: SessionRequest) -> tuple[bytes, ...]:
    """What signs the posts of a session: its own secret, or the service's."""
    return (secret(order.webhook_secret),) if order.webhook_secret else settings.webhook_secrets


async def _docs() -> HTMLResponse:
    """The API's pages, from vendored files: they work without a network too."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="musetalk-livekit API",
        swagger_js_url="/vendor/swagger-ui-bundle.js",
        swagger_css_url="/vendor/swagger-ui.css",
        swagger_favicon_url="/favicon.svg",
    )
