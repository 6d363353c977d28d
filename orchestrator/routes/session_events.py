"""`GET /session/{id}/events`: what happens in a session, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.events import EventStream, SessionEvent
from orchestrator.keys import Caller
from orchestrator.routes.auth import current
from orchestrator.routes.context import Ctx, here
from orchestrator.routes.public_access import shown_event

router = APIRouter(tags=["sessions"])
HEARTBEAT_S = 15.0
"""A comment this often, so that no proxy takes a quiet stream for a dead one."""
RETRY_MS = 1000
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@router.get(
    "/session/{session_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events until the session is over."}},
)
async def events(
    session_id: str,
    ctx: Ctx,
    request: Request,
    last_event_id: Annotated[str | None, Header(max_length=20)] = None,
    query_id: Annotated[str | None, Query(alias="last_event_id", max_length=20)] = None,
) -> StreamingResponse:
    """The session's events as they happen, those of its history first; ends when the session is over.

    With `Last-Event-ID`, or `last_event_id` in the query, the history begins after that event, so that a reader that was cut off
    misses nothing.
    """
    caller = current(request.scope)
    await here(ctx, caller, session_id)
    after = event_number(last_event_id or query_id) or 0
    with ExitStack() as held:
        held.enter_context(ctx.access.quotas.connection(caller.name))
        stream = ctx.events.subscribe(session_id, after)
        held.callback(ctx.events.unsubscribe, session_id, stream)
        return _EventResponse(_lines(session_id, stream, caller), held.pop_all())


class _EventResponse(StreamingResponse):
    """Lets go of what it holds however it ends, also when the client went before the first line."""

    def __init__(self, lines: AsyncIterator[str], held: ExitStack) -> None:
        super().__init__(lines, media_type="text/event-stream", headers=_HEADERS)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        with self._held:
            await super().__call__(scope, receive, send)


def event_number(text: str | None) -> int | None:
    """The id in `Last-Event-ID` or `last_event_id`, None without one. Raises ProblemError `invalid_request`."""
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ProblemError(
            ErrorCode.INVALID_REQUEST,
            f"last_event_id: {text[:32]!r} is not the id of an event.",
            field="Last-Event-ID",
            value=text[:32],
        )
    return int(text)


async def _lines(session_id: str, stream: EventStream, caller: Caller) -> AsyncIterator[str]:
    taking: asyncio.Task[SessionEvent | None] | None = None
    try:
        yield f"retry: {RETRY_MS}\n\n"
        while True:
            taking = taking or asyncio.create_task(stream.take(), name=f"events-{session_id}")
            await asyncio.wait({taking}, timeout=HEARTBEAT_S)
            if not taking.done():
                yield ": \n\n"
                continue
            event, taking = taking.result(), None
            if event is None:
                return
            if (shown := shown_event(caller, event)) is not None:
                yield sse(shown)
    finally:
        if taking is not None:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


def sse(event: SessionEvent) -> str:
    """One event as the lines of an event stream. One that is not in the history has no id, so that readers keep their place."""
    place = f"id: {event.id}\n" if event.id else ""
    return f"{place}event: {event.type}\ndata: {event.text}\n\n"
