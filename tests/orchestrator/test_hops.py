"""The functions that a PCM chunk, a text and a start pass in the orchestrator, as docs/architecture.md lists them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.agent_link import AgentLink, LinkPeer
from orchestrator.audio.ingest import AudioFormat, AudioLimits, PcmDecoder
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.tts.local import LocalSynthesizer
from orchestrator.tts.voices import Voices
from tests.fakes.stage import Stage, stage
from tests.waiting import until

ROOT = Path(__file__).parents[2]
MOST_OF_A_CHUNK, MOST_OF_A_TEXT, MOST_OF_A_START = 12, 24, 32
WORKER = """
import json, sys
from orchestrator import worker_pipe

def send(header, payload=b""):
    sys.stdout.buffer.write(worker_pipe.encode(header, payload))
    sys.stdout.buffer.flush()

voice = {"name": "piper:joe", "language": "en", "provider": "piper", "sample_rate": 16000}
send({"voices": [voice], "missing": []})
while prefix := sys.stdin.buffer.read(worker_pipe.LENGTHS.size):
    head, _ = worker_pipe.lengths(prefix)
    asked = json.loads(sys.stdin.buffer.read(head))
    send({"id": asked["id"], "sample_rate": 16000, "cues": [], "words": []}, bytes(32000))
"""
"""Speaks a second of silence for each part."""
RATE = 16_000


Call = tuple[str, str]
"""File within the package, and the function's qualified name."""


@contextmanager
def tracing() -> Iterator[list[Call]]:
    """Functions of ours that are entered meanwhile, in order; coroutines also whenever they go on."""
    called: list[Call] = []

    def on_call(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        package, _, file = code.co_filename.removeprefix(f"{ROOT}/").partition("/")
        if event == "call" and package in ("orchestrator", "musetalk_agent") and not code.co_name.startswith("<"):
            called.append((file, code.co_qualname))

    sys.setprofile(on_call)
    try:
        yield called
    finally:
        sys.setprofile(None)


def traced(work: Callable[[], object]) -> list[Call]:
    with tracing() as called:
        work()
    return called


def documented(heading: str) -> list[Call]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split(heading, 1)[1].split("\n#", 1)[0]
    hops = re.findall(r"^(\d+)\. `([\w./]+)` `([\w.]+)`:", section, re.MULTILINE)
    assert [int(number) for number, _, _ in hops] == list(range(1, len(hops) + 1))
    return [(file, name) for _, file, name in hops]


def check_order(hops: list[Call], called: list[Call], beside: Collection[str] = ()) -> None:
    """The hops were called, in this order; files of `beside` run in a process of their own."""
    trace = iter(called)
    assert [hop for hop in hops if hop[0] not in beside and hop not in trace] == []  # `in` goes on where it was


async def test_a_pcm_chunk_takes_the_documented_way() -> None:
    metrics = Metrics()
    live = SpeechPipeline("ses_1", AudioLimits(), metrics, EventBus(metrics))
    link = AgentLink(AgentLease("http://agent"), "ses_1", LinkPeer(live.next_item, live.on_event), metrics)
    live.attach_renderer(link)
    decoder = PcmDecoder(AudioFormat.S16LE)

    def forward() -> object:
        return link._core.next_item(live.next_item, time.monotonic())

    live.ingest.push(bytes(640), decoder, RATE)
    while forward() is not None:  # the segment is open and announced: what follows is the way of every later chunk
        pass
    way = [("routes/audio_ws.py", "_read"), *traced(lambda: live.ingest.push(bytes(640), decoder, RATE))]
    way += [("agents/agent_link.py", "AgentLink._write"), *traced(forward)]
    assert way == documented("### In the orchestrator")
    assert len(way) <= MOST_OF_A_CHUNK


async def test_a_text_takes_the_documented_way() -> None:
    hops = documented("#### A text of `/speak`")
    voices = Voices(synthesizers=[LocalSynthesizer((sys.executable, "-c", WORKER))])
    async with stage(voices=voices) as running:
        started = await running.start()
        with tracing() as called:
            answer = await running.http.post(f"/session/{started['session_id']}/speak", json={"text": "Hello there."})
            await until(lambda: hops[-1] in called)
    assert answer.status_code == 202, answer.text
    check_order(hops, called, beside={"tts/worker/__main__.py"})
    assert len(hops) <= MOST_OF_A_TEXT


async def test_a_start_takes_the_documented_way(running: Stage) -> None:
    hops = documented("#### A start, from its route on")
    with tracing() as called:
        await running.start()
    check_order(hops, called)
    assert len(hops) <= MOST_OF_A_START
