"""Spans by OpenTelemetry's SDK; imported only where they are wanted."""

from __future__ import annotations

import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from musetalk_agent.protocol.http import VERSION
from musetalk_agent.protocol.traces import HEADER, Span, Value

_W3C = TraceContextTextMapPropagator()


class RecordedSpan(Span):
    """A span that is written down."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, **attributes: Value) -> None:
        """See `Span`."""
        self._span.set_attributes(attributes)

    def event(self, name: str, **attributes: Value) -> None:
        """See `Span`."""
        self._span.add_event(name, attributes)

    def fail(self, message: str) -> None:
        """See `Span`."""
        self._span.set_status(Status(StatusCode.ERROR, message))

    def rename(self, name: str) -> None:
        """See `Span`."""
        self._span.update_name(name)

    def end(self, at: float | None = None) -> None:
        """See `Span`."""
        self._span.end(_ns(at))


class OtelTracer:
    """Spans of one service, through one processor."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        defaults = Resource({SERVICE_NAME: service, SERVICE_VERSION: VERSION})
        environment = Resource.create()
        named = environment.attributes.get(SERVICE_NAME, "unknown_service")
        resource = (
            environment.merge(defaults) if str(named).startswith("unknown_service") else defaults.merge(environment)
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("musetalk-livekit", VERSION)

    def begin(self, name: str, parent: str | None, at: float | None, attributes: dict[str, Value]) -> Span:
        """See `Tracer`. A parent that cannot be read is none."""
        context = _W3C.extract({HEADER: parent}, Context()) if parent else Context()
        return RecordedSpan(self._tracer.start_span(name, context, attributes=attributes, start_time=_ns(at)))

    def close(self) -> None:
        """See `Tracer`."""
        self._provider.shutdown()


def exporting(service: str) -> OtelTracer:
    """Spans go to the collector that the environment names, in batches, by a thread; of too many the newest are lost."""
    return OtelTracer(service, BatchSpanProcessor(OTLPSpanExporter()))


def _ns(at: float | None) -> int:
    return time.time_ns() if at is None else int(at * 1e9)
