"""What the routes share, and how they get it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient
from orchestrator.agents.pool import AgentPool
from orchestrator.credentials import Credentials
from orchestrator.events import EventBus
from orchestrator.ingress import Ingresses
from orchestrator.livekit_rooms import Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.routes.auth import Access
from orchestrator.routes.idempotency import Idempotency
from orchestrator.session.journal import SessionJournal
from orchestrator.session.manager import SessionManager
from orchestrator.session.standby_voice import StandbyVoices
from orchestrator.tts.voices import Voices
from orchestrator.webhooks import Webhooks


@dataclass(frozen=True)
class RouteOptions:
    """Settings of the HTTP surface; see `settings.Settings` for each."""

    public_url: str | None
    viewer_token_ttl_s: int
    page_token_ttl_s: int
    page_token_enabled: bool
    avatar_upload_bytes: int
    allowed_origins: frozenset[str]
    audio_idle_s: float
    webhooks_signed: bool


@dataclass(frozen=True)
class Context:
    """The orchestrator's parts, put together by `app`."""

    options: RouteOptions
    access: Access
    metrics: Metrics
    events: EventBus
    ledger: SessionJournal
    webhooks: Webhooks
    minter: TokenMinter
    rooms: Rooms
    ingresses: Ingresses
    agents: AgentClient
    pool: AgentPool
    sessions: SessionManager
    starts: Idempotency[dict[str, object]]
    voices: Voices
    own_voices: StandbyVoices

    @property
    def credentials(self) -> Credentials:
        """Keys, and the tokens made here."""
        return self.access.credentials


def context(connection: HTTPConnection) -> Context:
    """The app's parts."""
    return cast("Context", connection.app.state.context)


Ctx = Annotated[Context, Depends(context)]


def host_url(connection: HTTPConnection, public_url: str | None) -> str:
    """This service's WebSocket address as the client reaches it, without a trailing slash."""
    if public_url:
        base = public_url.rstrip("/")
    else:
        secure = connection.url.scheme in ("https", "wss")
        base = f"{'https' if secure else 'http'}://{connection.url.netloc}"
    scheme, _, rest = base.partition("://")
    return f"{'wss' if scheme == 'https' else 'ws'}://{rest}"


_Answer = TypeVar("_Answer")


async def unless_gone(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The work's answer. The work is cancelled when the caller closes the connection, and when this is.

    The request's body must have been read. Raises ProblemError `invalid_request` when the caller has left, which nobody reads, and
    what the work raises.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ProblemError(
                ErrorCode.INVALID_REQUEST, "The caller left before the answer: what it asked for is undone."
            )
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
