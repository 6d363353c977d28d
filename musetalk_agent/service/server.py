"""How the app is served: the one place that knows uvicorn's switches, and what a signal means."""

from __future__ import annotations

import logging
import signal
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from musetalk_agent.protocol.connections import TimedHttp
from musetalk_agent.settings import AgentSettings

log = logging.getLogger(__name__)

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


class DrainingServer(uvicorn.Server):
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
