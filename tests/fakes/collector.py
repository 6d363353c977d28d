"""An OTLP/HTTP collector: takes the protobuf that real exporters post, and keeps the spans."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

TYPE = "application/x-protobuf"


@dataclass(frozen=True)
class Taken:
    """A span as it came over the wire. Times are nanoseconds."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    start: int
    end: int
    attributes: dict[str, object]
    events: list[str]


@dataclass
class Collector:
    """What was posted to `/v1/traces`, and the headers that came with it."""

    spans: list[Taken] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/traces", self._take, methods=["POST"])])

    def named(self, name: str, service: str = "") -> list[Taken]:
        return [span for span in self.spans if span.name == name and service in span.service]

    async def _take(self, request: Request) -> Response:
        assert request.headers["content-type"] == TYPE
        self.headers = dict(request.headers)
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {
                        pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes
                    }
                    self.spans.append(
                        Taken(
                            service=attributes["service.name"],
                            name=span.name,
                            trace=span.trace_id.hex(),
                            span=span.span_id.hex(),
                            parent=span.parent_span_id.hex(),
                            start=span.start_time_unix_nano,
                            end=span.end_time_unix_nano,
                            attributes=values,
                            events=[event.name for event in span.events],
                        )
                    )
        return Response(ExportTraceServiceResponse().SerializeToString(), media_type=TYPE)
