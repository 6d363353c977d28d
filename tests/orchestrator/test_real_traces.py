"""One trace over two processes, as a collector sees it."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest

from musetalk_tools.processes import Child, free_port
from tests.fakes.agent_server import AGENT_KEY
from tests.fakes.collector import Collector
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import stage
from tests.orchestrator.test_real_agent import tone
from tests.spans import PARENT
from tests.waiting import NEVER_S, until


async def test_an_utterance_is_one_trace_from_its_pcm_to_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    collector, port = Collector(), free_port()
    async with serving(plain_config(collector.app())) as address:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "NO_PROXY": "127.0.0.1",
        }
        command = [sys.executable, "-m", "musetalk_agent", "serve", "--host", "127.0.0.1", "--port", str(port)]
        own = {"AGENT_API_KEY": AGENT_KEY, "AGENT_ENGINE": "pattern", "LOG_LEVEL": "WARNING"}
        agent = Child("agent", command, {**own, **variables})
        await agent.start()
        try:
            await agent.ready(f"http://127.0.0.1:{port}/health", NEVER_S)
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
            async with stage(agent_url=f"http://127.0.0.1:{port}") as running:
                running.http.headers["traceparent"] = PARENT
                async with running.live(connect_livekit=False) as (started, line):
                    for _ in range(2):
                        await line.say("audio.start")
                        await line.socket.send(tone(0.6))
                        await line.say("audio.end")
                    await line.wait("playback.finished", count=2)
                    await running.http.post(f"/session/{started['session_id']}/stop")
        finally:
            await agent.stop()
        await until(lambda: len(collector.named("segment")) == 2)
    assert collector.headers["x-key"] == "secret"

    utterances = collector.named("utterance", "musetalk-orchestrator")
    assert len({span.trace for span in utterances}) == 2, "each utterance is a trace of its own"
    for utterance in utterances:
        number = utterance.attributes["segment"]
        assert utterance.attributes["session_id"] == started["session_id"] and utterance.parent == ""
        (segment,) = [span for span in collector.named("segment", "musetalk-agent") if span.trace == utterance.trace]
        assert segment.parent == utterance.span and segment.attributes["segment"] == number
        assert segment.attributes["position_s"] == utterance.attributes["position_s"] == pytest.approx(0.6)
        assert segment.events == utterance.events == ["playback.started"]
        stages = [
            next(span for span in collector.named(name, "musetalk-agent") if span.parent == segment.span)
            for name in ("pcm", "features", "frame", "published")
        ]
        assert all(a.end == b.start for a, b in pairwise(stages))
        assert utterance.start <= segment.start <= stages[0].start and stages[-1].end <= segment.end <= utterance.end

    (asked,) = collector.named("POST /session/start", "musetalk-orchestrator")
    (begun,) = collector.named("POST /session/start", "musetalk-agent")
    assert asked.trace == begun.trace == PARENT.split("-")[1] and begun.parent == asked.span
