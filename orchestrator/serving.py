"""How the app is served: the one place that knows uvicorn's switches."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from orchestrator.settings import Settings

SHUTDOWN_S = 5
_WS_MESSAGE_FACTOR = 4
"""The WebSocket library cuts the connection at this multiple of our limit; below it the sender gets an error with a code."""


def server_config(app: FastAPI, settings: Settings, *, host: str, port: int) -> uvicorn.Config:
    """uvicorn's configuration: no access log (addresses carry tokens), our own logging, no compression of PCM.

    Pings keep proxies from closing a quiet connection. An unanswered one closes nothing: a sender that only sends, and whose
    library stops reading (and so answering) once its queue of messages is full, is alive as long as its PCM comes.
    """
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        ws="websockets-sansio",
        ws_max_size=settings.audio_message_bytes * _WS_MESSAGE_FACTOR,
        ws_ping_interval=10.0,
        ws_ping_timeout=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
