"""How the app is served: the one place that knows uvicorn's switches."""

from __future__ import annotations

import uvicorn
from fastapi import FastAPI

from orchestrator.settings import Settings

SHUTDOWN_S = 5
_WS_MESSAGE_FACTOR = 4
"""The WebSocket library cuts the connection at this multiple of our limit; below it the sender gets an error with a code."""


def server_config(app: FastAPI, settings: Settings, *, host: str, port: int) -> uvicorn.Config:
    """uvicorn's configuration: no access log (addresses carry tokens), our own logging, no compression of PCM."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_config=None,
        ws="websockets-sansio",
        ws_max_size=settings.audio_message_bytes * _WS_MESSAGE_FACTOR,
        ws_ping_interval=10.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
