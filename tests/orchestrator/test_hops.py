"""The way of a PCM chunk through the orchestrator, as docs/architecture.md lists it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from musetalk_agent.protocol.messages import LinkHello
from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.agent_link import AgentLink, LinkPeer
from orchestrator.audio.ingest import AudioFormat, AudioLimits, PcmDecoder
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.speech_pipeline import SpeechPipeline

ROOT = Path(__file__).parents[2]
MOST = 13
RATE = 16_000


def traced(work: Callable[[], object]) -> list[str]:
    """Functions of ours that `work` calls, in order."""
    called: list[str] = []

    def on_call(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith((str(ROOT / "orchestrator"), str(ROOT / "musetalk_agent")))
        if event == "call" and ours and not code.co_name.startswith("<"):
            called.append(code.co_qualname)

    sys.setprofile(on_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return called


async def test_a_pcm_chunk_takes_the_documented_way() -> None:
    metrics = Metrics()
    live = SpeechPipeline("ses_1", AudioLimits(), metrics, EventBus(metrics))
    link = AgentLink(AgentLease("http://agent"), "ses_1", LinkPeer(live.next_item, live.on_event), metrics)
    link._greet(LinkHello(items=0))
    live.attach_renderer(link)
    decoder = PcmDecoder(AudioFormat.S16LE)

    def forward() -> object:
        return link._core.next_item(live.next_item, time.monotonic())

    live.ingest.push(bytes(640), decoder, RATE)
    while forward() is not None:  # the segment is open and announced: what follows is the way of every later chunk
        pass
    way = ["_read", *traced(lambda: live.ingest.push(bytes(640), decoder, RATE)), "AgentLink._write", *traced(forward)]
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text.split("### In the orchestrator", 1)[1].split("\n#", 1)[0]
    assert way == re.findall(r"^\d+\. .*? `([\w.]+)`:", section, re.MULTILINE)
    assert len(way) <= MOST
