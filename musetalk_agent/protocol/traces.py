"""Traces of both services: what an utterance and a request went through, and how long each took.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) is set and the extra `[otel]` is installed; else
nothing of OpenTelemetry's SDK is imported, and a span costs a call that does nothing. The other `OTEL_*` variables count too.
A span travels between processes as a W3C `traceparent` (docs/how-to/traces.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

Value = str | int | float | bool
HEADER = "traceparent"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_S = 3.0


class Span:
    """A stretch of time; this one is of a service that traces nothing. Times are Unix times in seconds; None is now."""

    traceparent: str | None = None

    def set(self, **attributes: Value) -> None:
        """Sets attributes of the span."""

    def event(self, name: str, **attributes: Value) -> None:
        """Something happened in it, now."""

    def fail(self, message: str) -> None:
        """What it is about went wrong."""

    def rename(self, name: str) -> None:
        """What it is about is known better now."""

    def end(self, at: float | None = None) -> None:
        """It is over. Once."""


class Tracer(Protocol):
    """Makes spans and brings them to a collector, in the background."""

    def begin(self, name: str, parent: str | None, at: float | None, attributes: dict[str, Value]) -> Span:
        """A span within `parent`, or of a trace of its own."""
        ...

    def close(self) -> None:
        """Sends what is left. Blocks, as long as the exporter's own time-out at most."""
        ...


OFF = Span()
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)
_tracer: Tracer | None = None


def begin(name: str, parent: str | None = None, at: float | None = None, **attributes: Value) -> Span:
    """A span that the caller ends; `OFF` where nothing is traced."""
    return _tracer.begin(name, parent, at, attributes) if _tracer is not None else OFF


def current() -> str | None:
    """The request that is being answered, as a parent."""
    return _current.get()


def use(tracer: Tracer | None) -> Tracer | None:
    """Spans go there from now on, those of the whole process. Returns the tracer before."""
    global _tracer
    before, _tracer = _tracer, tracer
    return before


def start(service: str) -> None:
    """Begins to trace if the environment asks for it. Idempotent."""
    if _tracer is not None or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from musetalk_agent.protocol.otel import exporting
    except ImportError as error:
        text = "OTEL_EXPORTER_OTLP_ENDPOINT is set, but nothing is traced: pip install 'musetalk-livekit[otel]'"
        log.warning(text, extra={"missing": error.name})
        return
    use(exporting(service))


async def stop() -> None:
    """Traces no more, and sends what is left; what takes longer than 3 s is lost."""
    tracer = use(None)
    if tracer is None:
        return
    loop, closed = asyncio.get_running_loop(), asyncio.Event()
    # a daemon: a collector that does not answer must not keep the process
    threading.Thread(target=_close, args=(tracer, loop, closed.set), daemon=True, name="traces-close").start()
    try:
        async with asyncio.timeout(_FLUSH_S):
            await closed.wait()
    except TimeoutError:
        log.warning("the last spans were not sent in time")


def _close(tracer: Tracer, loop: asyncio.AbstractEventLoop, closed: Callable[[], None]) -> None:
    tracer.close()
    if not loop.is_closed():
        loop.call_soon_threadsafe(closed)


class TracedPosts:
    """An ASGI layer: a span for each POST, within that of the caller if it names one. Polls, streams and sockets get none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _tracer is None or scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        parent = dict(scope["headers"]).get(HEADER.encode(), b"").decode("latin-1")
        span = begin("POST", parent or None)
        status = 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = _current.set(span.traceparent)
        try:
            await self._app(scope, receive, sending)
        finally:
            _current.reset(token)
            route = str(getattr(scope.get("route"), "path", "(none)"))
            span.rename(f"POST {route}")
            known: dict[str, Value] = {"http.request.method": "POST", "http.route": route}
            span.set(**known, **{"http.response.status_code": status})
            if status >= 500:
                span.fail(f"status {status}")
            span.end()
