"""What the routes share: the orchestrator's parts, how the session of a request is found, and the pages of lists.

Sessions owned by another orchestrator are read from the store; everything else is refused with 421.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import urlsplit

from fastapi import Depends, Query, Request, WebSocket
from starlette.requests import HTTPConnection

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient
from orchestrator.agents.pool import AgentPool
from orchestrator.avatars.avatar_library import Avatars
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.conversations import Conversations
from orchestrator.conversation.tool_calls import ToolCalls
from orchestrator.events import EventBus
from orchestrator.keys import Caller, Credentials
from orchestrator.livekit_rooms import Ingresses, Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.public_tokens import PublicTokens
from orchestrator.recording.films import Films
from orchestrator.render_orders import Renders
from orchestrator.routes.auth import Access, sees, sees_of
from orchestrator.routes.idempotency import Idempotency
from orchestrator.session.clip_player import ClipPlayer
from orchestrator.session.journal import SessionJournal
from orchestrator.session.manager import SessionManager
from orchestrator.session.model import ManagedSession
from orchestrator.session.standby_voice import StandbyVoices
from orchestrator.store.session_store import StoredSession
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


class OwnAddress:
    """Where this process listens, as its own children reach it; known once it listens, or from the first request on."""

    def __init__(self) -> None:
        self._port: int | None = None

    def note(self, request: HTTPConnection) -> None:
        """Takes the port from a request."""
        server = request.scope.get("server")
        if server is not None and server[1]:
            self.listens(int(server[1]))

    def listens(self, port: int) -> None:
        """This process listens there."""
        self._port = port

    def speech(self, token: str) -> Provider | None:
        """`/v1/audio/speech` for a child process; None before it is known."""
        if self._port is None:
            return None
        return Provider(base_url=f"http://127.0.0.1:{self._port}/v1", model="musetalk", api_key=token, dialect="own")


@dataclass(frozen=True)
class Context:
    """The orchestrator's parts, put together by `app`."""

    options: RouteOptions
    access: Access
    metrics: Metrics
    events: EventBus
    journal: SessionJournal
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
    conversations: Conversations
    public_tokens: PublicTokens
    films: Films
    tools: ToolCalls
    renders: Renders
    avatars: Avatars
    clips: ClipPlayer
    address: OwnAddress

    def note_address(self, request: HTTPConnection) -> None:
        """Remembers where this process listens."""
        self.address.note(request)

    @property
    def credentials(self) -> Credentials:
        """Keys, and the tokens made here."""
        return self.access.credentials


def context(connection: HTTPConnection) -> Context:
    """The app's parts."""
    return cast("Context", connection.app.state.context)


async def _context(
    connection: HTTPConnection,
) -> Context:  # FastAPI calls what is not async in a thread, for each request
    return context(connection)


Ctx = Annotated[Context, Depends(_context)]


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


async def run_once(
    answers: Idempotency[_Answer],
    request: Request,
    key: str | None,
    body: str,
    operation: Callable[[], Coroutine[Any, Any, _Answer]],
) -> _Answer:
    """The operation's answer; with a key that was used before, the answer of then. Cancelled when the caller closes the connection,
    at once without a key, and with one as `Idempotency.run` says.

    The request's body must have been read. Raises ProblemError `invalid_request` when the caller has left, which is not read, and
    what the operation and `Idempotency.run` raise.
    """
    work = operation() if key is None else answers.run(key, body, operation)
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


async def here(ctx: Context, caller: Caller | None, session_id: str) -> ManagedSession:
    """The session, if it is this process's. `caller` None: the holder of the session's own token.

    Raises ProblemError: `session_elsewhere`, `session_conflict` while it is being taken over, `session_ended`,
    `session_not_found`, `store_unavailable`.
    """
    if ctx.sessions.registry.holds(session_id):
        return ctx.sessions.registry.get(session_id)
    record = await stored(ctx, caller, session_id)
    if record.ended:
        raise ProblemError(
            ErrorCode.SESSION_ENDED,
            f"Session {session_id} is {record.state.value}: start another one.",
            value=session_id,
        )
    holder = await ctx.journal.holder(session_id)
    if holder is None or holder == ctx.journal.owner:
        text = f"Session {session_id} is being taken over by another orchestrator: try again."
        raise ProblemError(ErrorCode.SESSION_CONFLICT, text, retry_after_s=2)
    text = f"Another orchestrator owns session {session_id}: ask there."
    raise ProblemError(ErrorCode.SESSION_ELSEWHERE, text, value=record.owner_url)


async def stored(ctx: Context, caller: Caller | None, session_id: str) -> StoredSession:
    """What the store has of it. Raises ProblemError `session_not_found`, also for another caller's, `store_unavailable`."""
    record = await ctx.journal.elsewhere(session_id)
    if record is None or (caller is not None and not _sees(caller, record)):
        raise ctx.sessions.registry.unknown(session_id)
    return record


async def views(ctx: Context, caller: Caller, known: set[str]) -> list[dict[str, Any]]:
    """Every other session that the caller sees."""
    return [record.view for record in await ctx.journal.others(known) if _sees(caller, record)]


def _sees(caller: Caller, record: StoredSession) -> bool:
    return sees_of(caller, record.key, record.public_token)


async def admit(ctx: Context, socket: WebSocket, session_id: str, *, text: bool = False) -> ManagedSession:
    """The session, for who may speak in it; `text` is for those who hold a key.

    Raises ProblemError with status 401, 403, 404, 409, 421, 422, 429 or 503.
    """
    _check_origin(ctx.options, socket)
    access = ctx.access
    caller = access.speaker(socket.scope, session_id) if text else access.audio_caller(socket.scope, session_id)
    if not session_id:
        raise ProblemError(ErrorCode.INVALID_REQUEST, "session_id: name the session in the query.", field="session_id")
    session = await _here(ctx, caller, session_id)
    if caller is not None and not sees(caller, session):
        raise ctx.sessions.registry.unknown(session_id)
    return session


async def _here(ctx: Context, caller: Caller | None, session_id: str) -> ManagedSession:
    """The session; one that is over is not there for a sender."""
    try:
        session = await here(ctx, caller, session_id)
        session.running()
    except ProblemError as error:
        if error.code is ErrorCode.SESSION_ENDED:
            raise ProblemError(ErrorCode.SESSION_NOT_FOUND, error.detail) from None
        raise
    return session


def _check_origin(options: RouteOptions, socket: WebSocket) -> None:
    """Browsers let any page open a WebSocket, and say whose page it is. What is no browser sends no Origin."""
    origin = socket.headers.get("origin")
    if origin is None or {origin, "*"} & options.allowed_origins:
        return
    ours = {socket.headers.get("host", ""), urlsplit(options.public_url or "").netloc}
    if (host := urlsplit(origin).netloc) and host in ours:
        return
    raise ProblemError(
        ErrorCode.FORBIDDEN,
        f"Pages of {origin[:100]!r} may not open {socket.url.path[:100]}: name the origin in ALLOWED_ORIGINS.",
        value=origin[:100],
    )


Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(max_length=64)]
USUAL = 50
_Entry = TypeVar("_Entry")


def page_of(
    entries: Sequence[_Entry], id_of: Callable[[_Entry], str], what: str, limit: int, after: str | None
) -> tuple[Sequence[_Entry], str | None]:
    """The page, and the `after` of the next one; None on the last page. `what` names an entry in an error.

    Raises ProblemError `invalid_request` for an `after` that is no entry's id.
    """
    if after is not None:
        ids = [id_of(entry) for entry in entries]
        if after not in ids:
            text = f"after: there is no such {what}."
            raise ProblemError(ErrorCode.INVALID_REQUEST, text, field="after", value=after)
        entries = entries[ids.index(after) + 1 :]
    page = entries[:limit]
    return page, id_of(page[-1]) if len(entries) > limit else None
