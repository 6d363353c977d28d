"""Traces: nothing where they are off; one for each utterance, stage by stage, where they are on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from musetalk_agent.protocol import traces
from tests.musetalk_agent.stand import bursts, stand
from tests.spans import PARENT, SPAN, TRACE, recorded
from tests.waiting import NEVER_S


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What is traced while the test runs."""
    with recorded() as exporter:
        yield exporter


async def test_a_segment_is_traced_from_its_pcm_to_its_first_picture(
    spans: InMemorySpanExporter, executor: ThreadPoolExecutor
) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(3, 16_000, traceparent=PARENT)
        made.pipeline.push(bursts(1))
        made.pipeline.end()
        await made.pass_time(3)
    done = {span.name: span for span in spans.get_finished_spans()}
    assert set(done) == {"segment", "pcm", "features", "frame", "published"}
    segment = done["segment"]
    assert segment.parent is not None and segment.parent.span_id == SPAN
    assert {span.context.trace_id for span in done.values()} == {TRACE}
    assert segment.attributes == {"segment": 3, "interrupted": False, "position_s": pytest.approx(1.48, abs=0.001)}
    assert [event.name for event in segment.events] == ["playback.started"]
    stages = [done[name] for name in ("pcm", "features", "frame", "published")]
    assert all(span.parent is not None and span.parent.span_id == segment.context.span_id for span in stages)
    assert all(a.end_time == b.start_time for a, b in pairwise(stages)) and stages[0].start_time >= segment.start_time


async def test_a_rewound_and_cleared_segment_is_one_span_that_ends_once(
    spans: InMemorySpanExporter, executor: ThreadPoolExecutor
) -> None:
    async with stand(executor) as made:
        made.pipeline.begin(1, 16_000)
        made.pipeline.push(bursts(3))
        await made.pass_time(1)
        made.pipeline.rewind(9600)
        await made.pass_time(0.5)
        made.pipeline.clear()
        await made.pass_time(0.5)
    (segment,) = [span for span in spans.get_finished_spans() if span.name == "segment"]
    assert segment.parent is None and segment.attributes is not None and segment.attributes["interrupted"] is True
    assert len(spans.get_finished_spans()) == 5


def test_a_post_is_traced_within_its_caller_and_nothing_else_is(spans: InMemorySpanExporter) -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(traces.current() or "none", 503 if request.query_params else 200)

    app = Starlette(routes=[Route("/things/{thing}", answer, methods=["GET", "POST"])])
    client = TestClient(traces.TracedPosts(app))
    within = client.post("/things/7", headers={"traceparent": PARENT}).text
    assert within.split("-")[1] == f"{TRACE:032x}" and within.split("-")[2] != f"{SPAN:016x}"
    assert client.post("/things/7?broken=1", headers={"traceparent": "nonsense"}).status_code == 503
    assert client.get("/things/7").text == "none" and traces.current() is None
    first, second = spans.get_finished_spans()
    assert first.parent is not None and first.parent.span_id == SPAN and second.parent is None
    assert first.attributes is not None and first.attributes["http.response.status_code"] == 200
    assert not second.status.is_ok


def test_without_an_address_nothing_is_imported() -> None:
    code = (
        "import sys, musetalk_agent.service.agent_app, orchestrator.app\n"
        "from musetalk_agent.protocol import traces\n"
        "traces.start('x')\n"
        "assert traces.begin('y') is traces.OFF\n"
        "ours = ('opentelemetry.sdk', 'opentelemetry.exporter', 'musetalk_agent.protocol.otel')  # FastAPI has the bare API\n"
        "assert not [name for name in sys.modules if name.startswith(ours)]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=NEVER_S)


@pytest.mark.parametrize("more", [{}, {"OTEL_SDK_DISABLED": "true"}])
def test_an_address_without_the_extra_is_reported_and_harmless(
    more: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "musetalk_agent.protocol.otel", None)
    traces.start("x")
    assert traces.begin("y") is traces.OFF
    assert ("musetalk-livekit[otel]" in caplog.text) == (not more)


async def test_a_collector_that_does_not_answer_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Stuck:
        def begin(self, *_: object) -> traces.Span:
            return traces.Span()

        def close(self) -> None:
            released.wait(NEVER_S)

    monkeypatch.setattr(traces, "_FLUSH_S", 0.05)
    before = traces.use(Stuck())
    try:
        await asyncio.wait_for(traces.stop(), NEVER_S)
        assert traces.begin("y") is traces.OFF
    finally:
        released.set()
        traces.use(before)
