"""The agent's routes for films: recording begins and ends, and the orchestrator fetches what was recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from musetalk_agent.protocol.http import FILM_LOG, AgentRecordingRequest, FilmPosition, RecordingState
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.service.routes import SessionsHere

_ANSWER_S = 4.0
"""An answer ends after so long: the next request says what has been stored, and can be forgotten."""

router = APIRouter()


@router.post("/session/{session_id}/recording")
async def record(session_id: str, body: AgentRecordingRequest, sessions: SessionsHere) -> FilmPosition:
    """Begins a part of the film, or ends it; answers when the encoder is ready, or all of the part is in the log."""
    session = sessions.get(session_id)
    if body.state is RecordingState.RECORDING:
        await session.record(body)
    else:
        await session.film.stop()
    entries = session.film.entries
    return FilmPosition(log_id=entries.log_id, entries=entries.last)


@router.get("/session/{session_id}/recording")
async def entries(
    session_id: str,
    sessions: SessionsHere,
    after: Annotated[int, Query(ge=0)] = 0,
    log_id: Annotated[str, Query(max_length=64)] = "",
) -> StreamingResponse:
    """The log's entries as they come, for 4 s or until its end.

    Those up to number `after` are forgotten where `log_id` is this log's; of another log, all that there are come.
    """
    return answer(sessions.film(session_id), after, log_id)


def answer(log: FragmentLog, after: int, log_id: str) -> StreamingResponse:
    """The log's entries as they come; see `entries`."""
    after = after if log_id == log.log_id else 0
    log.forget(after)
    return StreamingResponse(_coming(log, after), media_type="application/octet-stream", headers={FILM_LOG: log.log_id})


async def _coming(log: FragmentLog, after: int) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    until = loop.time() + _ANSWER_S
    while True:
        log.changed.clear()
        for entry in log.after(after):
            yield entry.encoded()
            after = entry.number
        left = until - loop.time()
        if log.closed or left <= 0:
            return
        try:
            async with asyncio.timeout(left):
                await log.changed.wait()
        except TimeoutError:
            return
