"""Spans of this process, while a test looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from musetalk_agent.protocol import traces
from musetalk_agent.protocol.otel import OtelTracer

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@contextmanager
def recorded() -> Iterator[InMemorySpanExporter]:
    """What ends meanwhile."""
    exporter = InMemorySpanExporter()
    tracer = OtelTracer("test", SimpleSpanProcessor(exporter))
    before = traces.use(tracer)
    try:
        yield exporter
    finally:
        traces.use(before)
        tracer.close()
